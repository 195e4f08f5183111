// Generation: continues requests with an Engine, one alone or several together.
#pragma once

#include <cstddef>
#include <span>
#include <string>
#include <vector>

#include "engine.hpp"
#include "kvc/llama/sampler.hpp"
#include "options.hpp"

namespace ggml_engine {

/// A prompt and its continuation.
struct Request {
  std::vector<Token> prompt;
  kvc::SeqId seq;                ///< open from Generation::start on
  Pos cached = 0;                ///< tokens of the prompt that were in the cache
  std::vector<Token> generated;  ///< the last one is not in the cache yet
  std::string text;              ///< of the generated tokens, as a terminal may print it
  bool done = false;             ///< has all its tokens, or the model ended the text
  double prefill_seconds = 0;    ///< to the first token: the TTFT
};

/// Runs requests in one engine.
class Generation {
 public:
  /// What is passed must outlive it.
  Generation(const Options& options, const Model& model, Cache& cache);

  /// Computes the prompt, but for what is in the cache, and the first token. Throws as Cache::open and Engine::pass.
  void start(Request& request);
  /// Computes one more token of each request, all in one pass. They must have started, and not be done.
  void step(std::span<Request* const> requests);

  /// Tokens that `step` computed, and the seconds that it took.
  [[nodiscard]] Index decoded() const noexcept { return decoded_; }
  [[nodiscard]] double decode_seconds() const noexcept { return decode_seconds_; }
  [[nodiscard]] const Profile& profile() const noexcept { return engine_.profile(); }

 private:
  void accept(Request& request, std::span<const float> logits);

  const Options* options_;
  const Model* model_;
  Cache* cache_;
  Engine engine_;
  kvc::llama::Sampler sampler_;
  Index decoded_ = 0;
  double decode_seconds_ = 0;
};

}  // namespace ggml_engine
