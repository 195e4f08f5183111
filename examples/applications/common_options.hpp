// Options that the examples generate and disaggregated have in common.
#pragma once

#include <CLI/CLI.hpp>
#include <cstdint>
#include <string>

#include "kvc/core/types.hpp"
#include "validators.hpp"

namespace common_options {

/// --model and --tokenizer: both, or none for those in the program.
inline void add_model(CLI::App& app, std::string& model, std::string& tokenizer) {
  auto* of_model = app.add_option("--model", model, "Checkpoint in the legacy format of llama2.c")->type_name("FILE");
  auto* of_tokenizer =
      app.add_option("--tokenizer", tokenizer, "Its tokenizer, in the format of llama2.c")->type_name("FILE");
  of_model->needs(of_tokenizer);
  of_tokenizer->needs(of_model);
}

inline void add_seed(CLI::App& app, std::uint64_t& seed, const std::string& text) {
  app.add_option("--seed", seed, text)
      ->type_name("S")
      ->transform(
          validators::number<std::uint64_t>("a whole number from 0 to 2^64 - 1", [](std::uint64_t) { return true; }))
      ->capture_default_str();
}

inline void add_block_tokens(CLI::App& app, kvc::Pos& block_tokens, const std::string& text) {
  app.add_option("--block-tokens", block_tokens, text)
      ->type_name("N")
      ->transform(validators::whole(1, 65536))
      ->capture_default_str();
}

inline void add_json(CLI::App& app, std::string& json) {
  app.add_option("--json", json, "Write all figures to this file")->type_name("FILE");
}

}  // namespace common_options
