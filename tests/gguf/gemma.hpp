// Gemma 3 270M and what llama.cpp computed with it, where they are present.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <memory>
#include <nlohmann/json.hpp>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "catch.hpp"
#include "ggml/cache.hpp"
#include "ggml/engine.hpp"
#include "ggml/model.hpp"
#include "test_data.hpp"

namespace kvc_test {

using ggml_engine::CacheOptions;
using ggml_engine::Chunk;
using ggml_engine::Engine;
using ggml_engine::Wanted;
using kvc::Index;
using kvc::Pos;
using kvc::Token;
using Tokens = std::vector<Token>;

/// The path of the model. The running test case ends as skipped where it is absent.
inline std::string gemma_file() {
  const char* given = std::getenv("KVC_GGUF_DIR");
  const std::string folder = given != nullptr && *given != '\0' ? given : KVC_SOURCE_DIR "/build/gguf";
  const std::string path = folder + "/gemma-3-270m-q4_k_m.gguf";
  if (!std::filesystem::exists(path)) {
    KVC_SKIP("no " << path << "; tools/get-ggml --model fetches it, KVC_GGUF_DIR names its folder");
  }
  return path;
}

inline const ggml_engine::Model& gemma() {
  static const ggml_engine::Model model = ggml_engine::Model::load(gemma_file());
  return model;
}

/// A prompt, and the greedy tokens that follow with the five largest log-probabilities at each of them.
struct Golden {
  std::string name;
  std::string prompt;
  Tokens prompt_tokens;
  Tokens tokens;
  std::string text;
  std::vector<std::vector<std::pair<Token, double>>> top;
};

inline std::vector<Golden> goldens() {
  std::ifstream file(data_file("gemma3_270m/goldens.json"));
  const auto prompts = nlohmann::ordered_json::parse(file);
  std::vector<Golden> all;
  for (const auto& [name, g] : prompts.items()) {
    all.push_back({name, g["prompt"], g["prompt_tokens"], g["tokens"], g["text"], g["top5"]});
  }
  return all;
}

inline Golden golden(const std::string& name) {
  for (Golden& g : goldens()) {
    if (g.name == name) return g;
  }
  FAIL("no golden prompt " << name);
  return {};
}

inline Token most_likely(std::span<const float> logits) {
  return static_cast<Token>(std::ranges::max_element(logits) - logits.begin());
}

/// log(sum of exp(logits)): a logit minus this is the log-probability of its token.
inline double log_sum(std::span<const float> logits) {
  const double largest = *std::ranges::max_element(logits);
  double sum = 0;
  for (const float logit : logits) {
    sum += std::exp(static_cast<double>(logit) - largest);
  }
  return largest + std::log(sum);
}

/// A cache of the given kind, and an engine on it.
struct EngineRun {
  std::unique_ptr<ggml_engine::Cache> cache;
  Engine engine;

  explicit EngineRun(const CacheOptions& options, int threads = 1, const ggml_engine::Model& model = gemma())
      : cache(ggml_engine::make_cache(model, options)), engine(model, *cache, threads) {}
  explicit EngineRun(std::unique_ptr<ggml_engine::Cache> given, int threads = 1)
      : cache(std::move(given)), engine(gemma(), *cache, threads) {}

  /// The logits behind the last of `tokens`, computed `chunk` at a time (0: all at once).
  ggml_engine::Logits compute(kvc::SeqId seq, std::span<const Token> tokens, std::size_t chunk = 0) {
    for (; chunk > 0 && tokens.size() > chunk; tokens = tokens.subspan(chunk)) {
      const Chunk part{seq, tokens.first(chunk)};
      const ggml_engine::Logits none = engine.pass(std::span(&part, 1), Wanted::none);
      REQUIRE(none.rows() == 0);
    }
    const Chunk part{seq, tokens};
    return engine.pass(std::span(&part, 1), Wanted::last);
  }

  /// The `count` greedy tokens after a prompt; `each(i, logits)` sees the logits of the i-th. The sequence is closed.
  template <class F>
  Tokens continue_greedily(const Tokens& prompt, std::size_t count, std::size_t chunk, F&& each) {
    const kvc::Opened opened = cache->open(prompt);
    ggml_engine::Logits logits =
        compute(opened.seq, std::span(prompt).subspan(static_cast<std::size_t>(opened.cached)), chunk);
    Tokens tokens;
    for (;;) {
      each(tokens.size(), logits.row(0));
      tokens.push_back(most_likely(logits.row(0)));
      if (tokens.size() == count) break;
      logits = compute(opened.seq, std::span(&tokens.back(), 1));
    }
    cache->close(opened.seq);
    return tokens;
  }
  Tokens continue_greedily(const Tokens& prompt, std::size_t count, std::size_t chunk = 0) {
    return continue_greedily(prompt, count, chunk, [](std::size_t, std::span<const float>) {});
  }
};

}  // namespace kvc_test
