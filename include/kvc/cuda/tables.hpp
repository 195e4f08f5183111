// BatchTables: the block tables of a batch in the form that kernels take, for any policy. Integers on the host.
#pragma once

#include <algorithm>
#include <cstdint>
#include <span>
#include <vector>

#include "kvc/batch.hpp"
#include "kvc/core/error.hpp"
#include "kvc/core/types.hpp"
#include "kvc/policy/capabilities.hpp"
#include "kvc/policy/concept.hpp"

namespace kvc {
inline namespace v0 {
namespace cuda {

/// BatchIndex for every policy: an entry names a block and stands for block_tokens positions. See cuda::BatchView for
/// the arrays.
struct BatchTables {
  Pos block_tokens = 1;
  std::vector<std::int32_t> q_indptr{0};
  std::vector<std::int32_t> kv_indptr{0};
  std::vector<std::int32_t> kv_indices;
  std::vector<std::int32_t> first_slots;  ///< empty where every entry begins with slot 0 of its block
  std::vector<std::int32_t> seq_lens;

  [[nodiscard]] std::int32_t size() const noexcept { return static_cast<std::int32_t>(seq_lens.size()); }
  [[nodiscard]] std::int32_t queries() const noexcept { return q_indptr.back(); }
  /// The blocks of the entries of sequence b, and the slots where entries begin (empty as first_slots is).
  [[nodiscard]] std::span<const std::int32_t> blocks_of(std::int32_t b) const { return entries_of(kv_indices, b); }
  [[nodiscard]] std::span<const std::int32_t> first_slots_of(std::int32_t b) const {
    return first_slots.empty() ? std::span<const std::int32_t>{} : entries_of(first_slots, b);
  }

 private:
  [[nodiscard]] std::span<const std::int32_t> entries_of(const std::vector<std::int32_t>& all, std::int32_t b) const {
    const auto first = static_cast<std::size_t>(kv_indptr[static_cast<std::size_t>(b)]);
    return std::span(all).subspan(first, static_cast<std::size_t>(kv_indptr[static_cast<std::size_t>(b) + 1]) - first);
  }
};

/// From an index that is there already. O(blocks of the batch).
[[nodiscard]] inline BatchTables make_tables(const BatchIndex& index) {
  return {std::max(index.block_tokens, Pos{1}), index.q_indptr, index.kv_indptr, index.kv_indices, {}, index.seq_lens};
}

/// The tables of `sequences`, each with `queries[i]` rows of queries. An entry is a block where the policy has
/// block tables, a sequence where all sequences are one run, and a position anywhere else. O(entries of the batch).
/// Throws std::invalid_argument if a handle is stale, the sizes differ, or a total exceeds 32 bits.
template <Policy P>
[[nodiscard]] BatchTables make_tables(const P& policy, std::span<const SeqId> sequences, std::span<const Pos> queries) {
  if constexpr (BlockTablePolicy<P>) {
    return make_tables(make_batch(policy, sequences, queries));
  } else {
    require(sequences.size() == queries.size(), "queries.size()", queries.size(), "the number of sequences");
    BatchTables tables;
    Index rows = 0, positions = 0;
    bool one_run_each = true;
    for (std::size_t i = 0; i < sequences.size(); ++i) {
      const Pos length = policy.reserved(sequences[i]);
      rows += queries[i];
      positions += length;
      require(queries[i] >= 0 && rows <= max_pos, "rows of queries", rows, "between 0 and 2^31 - 1 in all");
      tables.q_indptr.push_back(static_cast<std::int32_t>(rows));
      tables.seq_lens.push_back(length);
      int runs = 0;
      policy.for_each_run(sequences[i], {0, length}, [&](const SlotRun&) { ++runs; });
      one_run_each = one_run_each && runs <= 1;
    }
    require(one_run_each || positions <= max_pos, "positions of the batch", positions, "at most 2^31 - 1");
    tables.block_tokens = one_run_each ? max_pos : 1;
    for (std::size_t i = 0; i < sequences.size(); ++i) {
      policy.for_each_run(sequences[i], {0, tables.seq_lens[i]}, [&](const SlotRun& run) {
        for (Pos row = 0; row < (one_run_each ? 1 : run.count); ++row) {
          tables.kv_indices.push_back(static_cast<std::int32_t>(run.block));
          tables.first_slots.push_back(run.offset + row);
        }
      });
      tables.kv_indptr.push_back(static_cast<std::int32_t>(tables.kv_indices.size()));
    }
    return tables;
  }
}

/// The tables of the sequences of `appends` (a range of Append), each with the rows that its append reserves.
/// Throws std::invalid_argument if one of them is not of this cache or no longer under way.
template <class Cache, std::ranges::input_range Appends>
  requires Policy<typename Cache::PolicyType>
[[nodiscard]] BatchTables make_tables(const Cache& cache, const Appends& appends) {
  return kvc::detail::with_rows_of(
      cache, appends, [&](auto sequences, auto queries) { return make_tables(cache.policy(), sequences, queries); });
}

}  // namespace cuda
}  // namespace v0
}  // namespace kvc
