// Options that the programs generate, with either of its engines, and disaggregated have in common.
#pragma once

#include <CLI/CLI.hpp>
#include <cmath>
#include <cstdint>
#include <string>
#include <vector>

#include "kvc/core/types.hpp"
#include "validators.hpp"

namespace common_options {

/// --model and --tokenizer: both, or none for those in the program.
inline void add_model(CLI::App& app, std::string& model, std::string& tokenizer) {
  auto* of_model =
      app.add_option("--model", model, "Checkpoint in the legacy format of llama2.c [the model in the program]")
          ->type_name("FILE")
          ->check(validators::file_name());
  auto* of_tokenizer = app.add_option("--tokenizer", tokenizer,
                                      "Its tokenizer, in the format of llama2.c [that of the model in the program]")
                           ->type_name("FILE")
                           ->check(validators::file_name());
  of_model->needs(of_tokenizer);
  of_tokenizer->needs(of_model);
}

inline void add_seed(CLI::App& app, std::uint64_t& seed, const std::string& text) {
  app.add_option("--seed", seed, text)
      ->type_name("S")
      ->transform(validators::number<std::uint64_t>(
          "a whole number from 0 to 2^64 - 1", [](std::uint64_t) { return true; }, "at least 0"))
      ->capture_default_str();
}

inline void add_block_tokens(CLI::App& app, kvc::Pos& block_tokens, const std::string& text) {
  app.add_option("--block-tokens", block_tokens, text)
      ->type_name("N")
      ->transform(validators::whole(1, 65536))
      ->capture_default_str();
}

/// An option that may be given again and again. Takes any text: CLI11 itself would read "[a,b]" and "{}" as lists.
inline void add_texts(CLI::App& app, const char* name, std::vector<std::string>& texts, const std::string& text,
                      const char* type = "TEXT") {
  app.add_option(name, CLI::callback_t([&texts](const CLI::results_t& given) {
                   texts.assign(given.begin(), given.end());
                   return true;
                 }),
                 text)
      ->type_name(type)
      ->take_all()
      ->allow_extra_args(false);
}

/// --temperature, --top-p and --seed, with the values given as defaults.
inline void add_sampling(CLI::App& app, double& temperature, double& top_p, std::uint64_t& seed) {
  using validators::number;
  app.add_option("--temperature", temperature, "0 always takes the most likely token")
      ->type_name("T")
      ->check(number<double>(
          "a number that is at least 0", [](double t) { return std::isfinite(t) && t >= 0; }, "at least 0"))
      ->capture_default_str();
  app.add_option("--top-p", top_p, "Draw from the most likely tokens that add up to this probability; 1: from all")
      ->type_name("P")
      ->check(number<double>(
          "a number above 0 and at most 1", [](double p) { return p > 0 && p <= 1; }, "above 0, at most 1"))
      ->capture_default_str();
  add_seed(app, seed, "Seed of the random draws");
}

inline void add_element(CLI::App& app, std::string& element) {
  app.add_option("--element", element, "Type that keys and values are stored as: f32, f16, bf16, int8, fp8 or int4")
      ->type_name("NAME")
      ->check(validators::one_of({"f32", "f16", "bf16", "int8", "fp8", "int4"}))
      ->capture_default_str();
}

inline void add_threads(CLI::App& app, int& threads, int most) {
  app.add_option("--threads", threads, "Threads to compute with")
      ->type_name("N")
      ->transform(validators::whole(1, most))
      ->capture_default_str();
}

inline void add_json(CLI::App& app, std::string& json) {
  app.add_option("--json", json, "Write all figures to this file, as one JSON document")
      ->type_name("FILE")
      ->check(validators::file_name());
}

}  // namespace common_options
