// BatchIndex: the block tables of a batch of sequences, in the forms that batched kernels take.
//
// Two forms of the same tables, as 32-bit integers:
//   CSR, as FlashInfer's paged wrappers take it:  kv_indptr [batch + 1],  kv_indices [kv_indptr[batch]],  last_page_len [batch]
//   dense, as FlashAttention and others take it:  block_table [batch, max_blocks],  seq_lens [batch]
// and, for ragged queries, q_indptr [batch + 1]: sequence i brings rows q_indptr[i] .. q_indptr[i + 1].
//
// It is a snapshot: build it after the last extend of a step, and anew after a commit.
#pragma once

#include <algorithm>
#include <cstdint>
#include <ranges>
#include <span>
#include <vector>

#include "kvc/core/error.hpp"
#include "kvc/core/types.hpp"
#include "kvc/policy/capabilities.hpp"
#include "kvc/policy/concept.hpp"

namespace kvc {
inline namespace v0 {

struct BatchIndex {
  static constexpr std::int32_t padding = -1;  ///< in block_table, behind the last block of a sequence

  Pos block_tokens = 0;
  Index max_blocks = 0;                     ///< of any sequence in the batch
  std::vector<std::int32_t> q_indptr;       ///< [batch + 1]; rows of queries before sequence i
  std::vector<std::int32_t> kv_indptr;      ///< [batch + 1]; blocks before sequence i
  std::vector<std::int32_t> kv_indices;     ///< [kv_indptr[batch]]; block ids
  std::vector<std::int32_t> last_page_len;  ///< [batch]; slots in use of the last block: 1 .. block_tokens, 0 if empty
  std::vector<std::int32_t> block_table;    ///< [batch, max_blocks]; block ids, padded
  std::vector<std::int32_t> seq_lens;       ///< [batch]; positions, with those of an extension under way

  [[nodiscard]] Index size() const noexcept { return static_cast<Index>(seq_lens.size()); }
};

namespace detail {
/// make_batch of a policy without a lock, or behind one.
template <class P>
[[nodiscard]] BatchIndex batch_of(const P& policy, std::span<const SeqId> sequences, std::span<const Pos> queries) {
  require(sequences.size() == queries.size(), "queries.size()", queries.size(), "the number of sequences");
  BatchIndex batch;
  batch.block_tokens = policy.block_tokens();
  Index rows = 0;
  Index blocks = 0;
  batch.q_indptr.push_back(0);
  batch.kv_indptr.push_back(0);
  for (std::size_t i = 0; i < sequences.size(); ++i) {
    const std::span<const BlockId> table = policy.block_table(sequences[i]);
    const Pos length = policy.reserved(sequences[i]);
    rows += queries[i];
    blocks += static_cast<Index>(table.size());
    require(queries[i] >= 0 && rows <= max_pos, "rows of queries", rows, "between 0 and 2^31 - 1 in all");
    require(blocks <= max_pos, "blocks of the batch", blocks, "at most 2^31 - 1");
    batch.max_blocks = std::max(batch.max_blocks, static_cast<Index>(table.size()));
    batch.q_indptr.push_back(static_cast<std::int32_t>(rows));
    batch.kv_indptr.push_back(static_cast<std::int32_t>(blocks));
    for (const BlockId block : table) {
      batch.kv_indices.push_back(static_cast<std::int32_t>(block));
    }
    batch.last_page_len.push_back(length == 0 ? 0 : (length - 1) % batch.block_tokens + 1);
    batch.seq_lens.push_back(length);
  }
  const auto width = static_cast<std::size_t>(batch.max_blocks);
  batch.block_table.assign(sequences.size() * width, BatchIndex::padding);
  for (std::size_t i = 0; i < sequences.size(); ++i) {
    std::copy(batch.kv_indices.begin() + batch.kv_indptr[i], batch.kv_indices.begin() + batch.kv_indptr[i + 1],
              batch.block_table.begin() + static_cast<std::ptrdiff_t>(i * width));
  }
  return batch;
}

/// f(sequences, queries) of a range of Append, each with the rows that it reserves.
/// Throws std::invalid_argument if one of them is not of this cache or no longer under way.
template <class Cache, std::ranges::input_range Appends, class F>
[[nodiscard]] auto with_rows_of(const Cache& cache, const Appends& appends, F f) {
  std::vector<SeqId> sequences;
  std::vector<Pos> queries;
  for (const auto& append : appends) {
    require(cache.owns(append), "append", "finished or of another cache", "one of this cache under way");
    sequences.push_back(append.seq());
    queries.push_back(append.size());
  }
  return f(std::span<const SeqId>(sequences), std::span<const Pos>(queries));
}
}  // namespace detail

/// The tables of `sequences`, each with `queries[i]` rows of queries. A policy with a lock is locked once for the whole
/// batch. O(blocks of the batch, padded).
/// Throws std::invalid_argument if a handle is stale, the sizes differ, or a total exceeds 32 bits.
template <BlockTablePolicy P>
[[nodiscard]] BatchIndex make_batch(const P& policy, std::span<const SeqId> sequences, std::span<const Pos> queries) {
  return with_shared_lock(policy, [&](const auto& bare) { return detail::batch_of(bare, sequences, queries); });
}

/// The tables of the sequences of `appends` (a range of Append), each with the rows that its append reserves.
/// Throws std::invalid_argument if one of them is not of this cache or no longer under way.
template <class Cache, std::ranges::input_range Appends>
  requires BlockTablePolicy<typename Cache::PolicyType>
[[nodiscard]] BatchIndex make_batch(const Cache& cache, const Appends& appends) {
  return detail::with_rows_of(
      cache, appends, [&](auto sequences, auto queries) { return make_batch(cache.policy(), sequences, queries); });
}

}  // namespace v0
}  // namespace kvc
