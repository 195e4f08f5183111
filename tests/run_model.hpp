// Running a model over a cache in one line, for tests.
#pragma once

#include <algorithm>
#include <cstring>
#include <span>
#include <vector>

#include "kvc/attention/extern.hpp"
#include "kvc/llama/decoder.hpp"
#include "kvc/llama/sampler.hpp"
#include "kvc/parallel/executor.hpp"
#include "kvc/policy/contiguous.hpp"
#include "kvc/policy/paged.hpp"
#include "kvc/policy/prefix_shared.hpp"

namespace kvc_test {

inline bool equal_bits(const kvc::llama::Matrix& a, const kvc::llama::Matrix& b) {
  return a.rows() == b.rows() && a.cols() == b.cols() &&
         std::memcmp(a.data(), b.data(), static_cast<std::size_t>(a.size()) * sizeof(float)) == 0;
}

/// A pool for `sequences` of `tokens` positions each.
template <class Policy>
typename Policy::Config pool_for(kvc::Pos tokens, kvc::Pos block_tokens, kvc::Index sequences = 1) {
  if constexpr (std::same_as<Policy, kvc::Contiguous>) {
    return {.sequences = sequences, .max_tokens = tokens};
  } else {
    return {.blocks = (kvc::ceil_div<kvc::Index>(tokens, block_tokens) + 1) * sequences, .block_tokens = block_tokens};
  }
}

/// Appends `tokens` to a sequence, `chunk` at a time (0: all at once), and returns the logits of each [tokens,
/// vocab_size].
template <class Cache, kvc::Executor Ex = kvc::Sequential>
kvc::llama::Matrix teach(const kvc::llama::Model& model, Cache& cache, kvc::SeqId seq,
                         std::span<const kvc::Token> tokens, std::size_t chunk = 0, Ex&& ex = {}) {
  kvc::llama::Matrix all(static_cast<kvc::Index>(tokens.size()), model.config.vocab_size);
  for (std::size_t first = 0; first < tokens.size();) {
    const std::size_t count = std::min(chunk == 0 ? tokens.size() : chunk, tokens.size() - first);
    auto step = cache.extend(seq, tokens.subspan(first, count));
    all.middleRows(static_cast<kvc::Index>(first), static_cast<kvc::Index>(count)) =
        kvc::llama::dec(model, cache, step, tokens.subspan(first, count), kvc::llama::Logits::all, ex);
    cache.commit(std::move(step));
    first += count;
  }
  return all;
}

/// The prompt and what the model says after it: at most `steps` tokens after the first, or up to the next BOS. The
/// prompt is computed `chunk` tokens at a time (0: at once), as far as the cache does not hold it.
template <class Cache, kvc::Executor Ex = kvc::Sequential>
std::vector<kvc::Token> continue_greedily(const kvc::llama::Model& model, Cache& cache,
                                          std::span<const kvc::Token> prompt, std::size_t steps, std::size_t chunk = 0,
                                          Ex&& ex = {}) {
  std::vector<kvc::Token> tokens(prompt.begin(), prompt.end());
  const auto [seq, cached] = cache.open(prompt);
  std::size_t done = static_cast<std::size_t>(cached);
  for (;;) {
    std::span<const kvc::Token> next = std::span(tokens).subspan(done);
    if (chunk != 0 && next.size() > chunk) next = next.first(chunk);
    auto step = cache.extend(seq, next);
    done += next.size();
    if (done < tokens.size()) {
      kvc::llama::dec_kv(model, cache, step, next, ex);
      cache.commit(std::move(step));
      continue;
    }
    const kvc::llama::Matrix logits = kvc::llama::dec(model, cache, step, next, kvc::llama::Logits::last, ex);
    cache.commit(std::move(step));
    const kvc::Token token = kvc::llama::Sampler::greedy({logits.data(), static_cast<std::size_t>(logits.size())});
    if (token == 1) break;
    tokens.push_back(token);
    if (tokens.size() > steps) break;
  }
  cache.close(seq);
  return tokens;
}

}  // namespace kvc_test
