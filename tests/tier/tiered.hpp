// A cache with slower tiers whose rows are a function of all tokens up to theirs, so that a wrong row is seen.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "catch.hpp"
#include "kvc/cache.hpp"
#include "kvc/policy/eviction/lru.hpp"
#include "kvc/policy/prefix_shared.hpp"
#include "kvc/tier/tiers.hpp"
#include "serve.hpp"

namespace kvc_test {

template <class Eviction = kvc::Lru, class L = kvc::HeadMajor>
using TieredCache = kvc::KvCache<float, kvc::PrefixShared<Eviction, kvc::ChainHash, kvc::EventCallback>, L>;

inline constexpr kvc::Shape tiered_shape{.layers = 2, .kv_heads = 2, .key_dim = 2, .value_dim = 2};
inline constexpr kvc::Pos tiered_block = 4;

/// The number that stands in all rows of the last of these tokens, for a model and a salt.
inline float row_number(std::span<const kvc::Token> tokens, std::uint32_t model) {
  std::uint32_t hash = 2166136261U ^ model;
  for (const kvc::Token token : tokens) {
    hash = (hash ^ static_cast<std::uint32_t>(token)) * 16777619U;
  }
  return static_cast<float>(hash >> 8);
}
/// Of each position of `range`.
inline std::vector<float> row_numbers(std::span<const kvc::Token> tokens, kvc::PosRange range, std::uint32_t model,
                                      kvc::Index layer) {
  constexpr std::size_t columns = 4;
  std::vector<float> rows;
  for (kvc::Pos p = range.first; p < range.last; ++p) {
    const float number = row_number(tokens.first(static_cast<std::size_t>(p) + 1), model) + static_cast<float>(layer);
    rows.insert(rows.end(), columns, number);
  }
  return rows;
}

/// Extends the sequence to all of `tokens`, writes the rows of what it lacks, and commits. False if there is no room.
template <class Cache>
bool compute(Cache& cache, kvc::SeqId seq, std::span<const kvc::Token> tokens, std::uint32_t model = 0) {
  const auto rest = tokens.subspan(static_cast<std::size_t>(cache.length(seq)));
  auto append = cache.try_extend(seq, rest);
  if (!append) {
    return false;
  }
  for (kvc::Index layer = 0; layer < tiered_shape.layers; ++layer) {
    const std::vector<float> rows = row_numbers(tokens, append->range(), model, layer);
    const kvc::MatrixRef<const float> matrix(rows.data(), append->size(), 4);
    cache.write(layer, *append, matrix, matrix);
  }
  cache.commit(std::move(*append));
  return true;
}
/// The rows of the sequence are those of `tokens`.
template <class Cache>
bool has_rows(const Cache& cache, kvc::SeqId seq, std::span<const kvc::Token> tokens, std::uint32_t model = 0) {
  const kvc::PosRange all{0, cache.length(seq)};
  std::vector<float> k(static_cast<std::size_t>(all.last) * 4), v(k.size());
  for (kvc::Index layer = 0; layer < tiered_shape.layers; ++layer) {
    cache.gather(layer, seq, all, kvc::MatrixRef<float>(k.data(), all.last, 4),
                 kvc::MatrixRef<float>(v.data(), all.last, 4));
    const std::vector<float> rows = row_numbers(tokens, all, model, layer);
    if (k != rows || v != rows) {
      return false;
    }
  }
  return true;
}

/// Opens, checks what is found, computes the rest, checks all, closes. How many tokens were found, or -1 if a row was
/// wrong.
template <class Tiers, class Cache>
kvc::Pos serve_tiered(Tiers& tiers, Cache& cache, const Tokens& prompt, const kvc::OpenOptions& options = {},
                      std::uint32_t model = 0) {
  const auto opened = tiers.open(prompt, options);
  bool right = has_rows(cache, opened.seq, prompt, model);
  (void)compute(cache, opened.seq, prompt, model);
  right = right && has_rows(cache, opened.seq, prompt, model);
  cache.close(opened.seq);
  return right ? opened.cached : -1;
}
/// Polls until nothing more arrives.
template <class Tiers>
void settle(Tiers& tiers) {
  for (int i = 0; i < 1000 && (i < 4 || tiers.loads() > 0); ++i) {
    (void)tiers.poll();
  }
}

}  // namespace kvc_test
