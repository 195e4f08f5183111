// A runner: one cache, and the prompts that run in it one after another.
//
// This is the part that uses kvc: open, extend, Dec_kv and Dec, commit, close. `CacheRunner` is a template over the
// element type and the policy; the rest of the program sees the interface `PromptRunner`.
#pragma once

#include <algorithm>
#include <chrono>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "kvc/attention/extern.hpp"
#include "kvc/cache.hpp"
#include "kvc/element/float16.hpp"
#include "kvc/element/quantized.hpp"
#include "kvc/llama/decoder.hpp"
#include "kvc/llama/llama.hpp"
#include "kvc/llama/sampler.hpp"
#include "kvc/llama/tokenizer.hpp"
#include "kvc/policy/contiguous.hpp"
#include "kvc/policy/paged.hpp"
#include "kvc/policy/prefix_shared.hpp"
#include "threads.hpp"

namespace generate {

using kvc::Index;
using kvc::Pos;
using kvc::Token;

/// The settings that all runners of one run share.
struct Settings {
  const kvc::llama::Model* model = nullptr;
  Pos steps = 0;  ///< positions of a prompt and its continuation; at most the model's sequence length
  Index prompts = 1;
  Pos block_tokens = 16;
  Pos chunk = 0;  ///< tokens of a prompt to compute at a time; 0: all
  Threads threads;
  kvc::llama::SamplerConfig sampler;
};

/// The cost of one prompt under one policy.
struct Measurement {
  std::string_view policy;
  std::vector<Token> tokens;  ///< as printed: the prompt without its BOS, and the continuation
  Pos prompt_tokens = 0;      ///< BOS included
  Pos computed = 0;           ///< of the prompt
  Pos reused = 0;             ///< of the prompt: found in the cache
  Pos generated = 0;
  double prefill_seconds = 0;  ///< from the start to the first generated token: the TTFT
  double decode_seconds = 0;   ///< for the rest
  Pos decoded = 0;             ///< tokens computed in that time
  Index reserved_bytes = 0;    ///< of keys and values at the end, by the sequence
  Index used_bytes = 0;
  kvc::Stats stats;  ///< at the end, the sequence still open

  [[nodiscard]] double decode_rate() const { return decoded == 0 ? 0.0 : decoded / decode_seconds; }
};

/// Called with each token as soon as it is known, the tokens of the prompt first.
using OnToken = std::function<void(Token)>;
/// Called while a prompt is computed, with the number of its tokens that are in the cache and that there are.
using OnPrefill = std::function<void(Pos done, Pos all)>;

class PromptRunner {
 public:
  virtual ~PromptRunner() = default;
  /// Continues `prompt`, which begins with BOS and has at most settings.steps tokens, up to settings.steps positions or
  /// until the model ends the text.
  virtual Measurement run(std::span<const Token> prompt, const OnToken& on_token, const OnPrefill& on_prefill) = 0;
};

/// A pool for one sequence at a time; for prefix sharing also for the blocks that earlier prompts leave cached.
template <class Policy>
typename Policy::Config pool_for(const Settings& s) {
  const Index blocks = kvc::ceil_div<Index>(s.steps, s.block_tokens);
  if constexpr (std::same_as<Policy, kvc::Contiguous>) {
    return {.sequences = 1, .max_tokens = s.steps};
  } else if constexpr (std::same_as<Policy, kvc::Paged>) {
    return {.blocks = blocks, .block_tokens = s.block_tokens};
  } else {
    // One more, for the copy of a partly shared block.
    return {.blocks = blocks * s.prompts + 1, .block_tokens = s.block_tokens};
  }
}

template <class T, class Policy>
class CacheRunner final : public PromptRunner {
 public:
  explicit CacheRunner(const Settings& settings)
      : s_(settings), cache_(s_.model->config.cache_shape(), pool_for<Policy>(settings)) {}

  Measurement run(std::span<const Token> prompt, const OnToken& on_token, const OnPrefill& on_prefill) override {
    Measurement m;
    m.policy = Policy::name;
    kvc::llama::Sampler sampler(s_.sampler);
    Clock::duration printing{};  // not measured
    const auto emit = [&](Token token) {
      m.tokens.push_back(token);
      const auto before = Clock::now();
      on_token(token);
      printing += Clock::now() - before;
    };
    const auto start = Clock::now();

    const auto [seq, cached] = cache_.open(prompt);
    m.prompt_tokens = static_cast<Pos>(prompt.size());
    m.reused = cached;
    m.computed = m.prompt_tokens - cached;
    kvc::llama::Matrix logits = prefill(seq, prompt, on_prefill);
    Token next = sampler(row(logits));
    const auto first = Clock::now();

    // The text lags one token behind the positions: position p predicts token p + 1.
    for (std::size_t i = 1; i < prompt.size(); ++i) {
      emit(prompt[i]);
    }
    while (next != kvc::llama::Tokenizer::bos) {
      emit(next);
      ++m.generated;
      if (cache_.length(seq) == s_.steps) {
        break;
      }
      auto step = cache_.extend(seq, std::span(&next, 1));
      logits = kvc::llama::dec(*s_.model, cache_, step, std::span(&next, 1), kvc::llama::Logits::last, s_.threads);
      cache_.commit(std::move(step));
      next = sampler(row(logits));
      ++m.decoded;
    }

    m.prefill_seconds = seconds(first - start);
    m.decode_seconds = seconds(Clock::now() - first - printing);
    m.stats = cache_.stats();
    m.reserved_bytes = m.stats.tokens_reserved * cache_.bytes_per_token();
    m.used_bytes = m.stats.tokens_stored * cache_.bytes_per_token();
    cache_.close(seq);
    return m;
  }

 private:
  using Clock = std::chrono::steady_clock;
  static double seconds(Clock::duration d) { return std::chrono::duration<double>(d).count(); }
  static std::span<const float> row(const kvc::llama::Matrix& logits) {
    return {logits.data(), static_cast<std::size_t>(logits.size())};
  }

  /// Computes what is not in the cache, chunk by chunk: Dec_kv, and Dec for the last, whose logits are returned.
  kvc::llama::Matrix prefill(kvc::SeqId seq, std::span<const Token> prompt, const OnPrefill& on_prefill) {
    for (;;) {
      const Pos done = cache_.length(seq);
      on_prefill(done, static_cast<Pos>(prompt.size()));
      std::span<const Token> chunk = prompt.subspan(static_cast<std::size_t>(done));
      const bool last = s_.chunk == 0 || chunk.size() <= static_cast<std::size_t>(s_.chunk);
      if (!last) {
        chunk = chunk.first(static_cast<std::size_t>(s_.chunk));
      }
      auto step = cache_.extend(seq, chunk);
      if (last) {
        kvc::llama::Matrix logits =
            kvc::llama::dec(*s_.model, cache_, step, chunk, kvc::llama::Logits::last, s_.threads);
        cache_.commit(std::move(step));
        return logits;
      }
      kvc::llama::dec_kv(*s_.model, cache_, step, chunk, s_.threads);
      cache_.commit(std::move(step));
    }
  }

  Settings s_;
  kvc::KvCache<T, Policy> cache_;
};

/// The runner for a policy and an element type by their names, which have been checked.
template <class T>
std::unique_ptr<PromptRunner> make_runner(std::string_view policy, const Settings& settings) {
  if (policy == kvc::Contiguous::name) {
    return std::make_unique<CacheRunner<T, kvc::Contiguous>>(settings);
  }
  if (policy == kvc::Paged::name) {
    return std::make_unique<CacheRunner<T, kvc::Paged>>(settings);
  }
  return std::make_unique<CacheRunner<T, kvc::PrefixShared<>>>(settings);
}

inline std::unique_ptr<PromptRunner> make_runner(std::string_view element, std::string_view policy,
                                                 const Settings& settings) {
  if (element == kvc::Element<Eigen::half>::name) {
    return make_runner<Eigen::half>(policy, settings);
  }
  if (element == kvc::Element<Eigen::bfloat16>::name) {
    return make_runner<Eigen::bfloat16>(policy, settings);
  }
  if (element == kvc::Element<kvc::Int8>::name) {
    return make_runner<kvc::Int8>(policy, settings);
  }
  if (element == kvc::Element<kvc::Fp8E4M3>::name) {
    return make_runner<kvc::Fp8E4M3>(policy, settings);
  }
  if (element == kvc::Element<kvc::Int4>::name) {
    return make_runner<kvc::Int4>(policy, settings);
  }
  return make_runner<float>(policy, settings);
}

}  // namespace generate
