// BatchTables and BatchIndex: the block tables of a batch of sequences, in the forms that batched kernels take. All
// entries are 32-bit integers.
//
// A table is a snapshot: build it after the last extend of a step, and anew after a commit.
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

/// The block tables of a batch for any policy, in compressed rows (CSR), as FlashInfer's paged wrappers and the kernels
/// of kvc::cuda take them. Sequence i has query rows q_indptr[i] .. q_indptr[i + 1] - 1.
///
/// Each table entry stands for block_tokens consecutive positions of a sequence in consecutive slots of a block. With a
/// BlockTablePolicy an entry is a block. With another policy it is a whole sequence (block_tokens == max_pos) if every
/// sequence of the batch is a single run, and a single position otherwise.
struct BatchTables {
  Pos block_tokens = 1;                    ///< positions per entry
  std::vector<std::int32_t> q_indptr{0};   ///< [batch + 1]; query rows before sequence i
  std::vector<std::int32_t> kv_indptr{0};  ///< [batch + 1]; entries before sequence i
  std::vector<std::int32_t> kv_indices;    ///< [kv_indptr[batch]]; the block of each entry
  std::vector<std::int32_t> first_slots;   ///< [kv_indptr[batch]]; the slot of its first position; empty if all are 0
  std::vector<std::int32_t> seq_lens;      ///< [batch]; positions, with those of an uncommitted extension

  /// Sequences of the batch.
  [[nodiscard]] std::int32_t size() const noexcept { return static_cast<std::int32_t>(seq_lens.size()); }
  /// Query rows of the batch.
  [[nodiscard]] std::int32_t queries() const noexcept { return q_indptr.back(); }
  /// The blocks of the entries of sequence i.
  [[nodiscard]] std::span<const std::int32_t> blocks_of(std::int32_t i) const { return entries_of(kv_indices, i); }
  /// The first slots of the entries of sequence i; empty if first_slots is.
  [[nodiscard]] std::span<const std::int32_t> first_slots_of(std::int32_t i) const {
    return first_slots.empty() ? std::span<const std::int32_t>{} : entries_of(first_slots, i);
  }

 private:
  [[nodiscard]] std::span<const std::int32_t> entries_of(const std::vector<std::int32_t>& all, std::int32_t i) const {
    const auto first = static_cast<std::size_t>(kv_indptr[static_cast<std::size_t>(i)]);
    return std::span(all).subspan(first, static_cast<std::size_t>(kv_indptr[static_cast<std::size_t>(i) + 1]) - first);
  }
};

/// The tables of a batch of a BlockTablePolicy in two forms: compressed rows, with last_page_len as FlashInfer takes
/// it, and a dense table, as FlashAttention and others take it.
struct BatchIndex : BatchTables {
  static constexpr std::int32_t padding = -1;  ///< in block_table, behind the last block of a sequence

  Index max_blocks = 0;                     ///< of any sequence in the batch
  std::vector<std::int32_t> last_page_len;  ///< [batch]; slots in use of the last block: 1 .. block_tokens, 0 if empty
  std::vector<std::int32_t> block_table;    ///< [batch, max_blocks]; block ids, padded
};

namespace detail {

/// The entries of sequences that are not tables of blocks, appended to tables that have their lengths.
template <class P>
void add_runs(const P& policy, std::span<const SeqId> sequences, BatchTables& tables) {
  Index positions = 0;
  bool one_run_each = true;
  for (std::size_t i = 0; i < sequences.size(); ++i) {
    const Pos length = tables.seq_lens[i];
    positions += length;
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
}

/// The entries of sequences that are tables of blocks, appended likewise.
template <class P>
void add_blocks(const P& policy, std::span<const SeqId> sequences, BatchTables& tables) {
  tables.block_tokens = policy.block_tokens();
  for (const SeqId seq : sequences) {
    for (const BlockId block : policy.block_table(seq)) {
      tables.kv_indices.push_back(static_cast<std::int32_t>(block));
    }
    const auto blocks = static_cast<Index>(tables.kv_indices.size());
    require(blocks <= max_pos, "blocks of the batch", blocks, "at most 2^31 - 1");
    tables.kv_indptr.push_back(static_cast<std::int32_t>(blocks));
  }
}

/// f(sequences, queries) of a range of Append, each with the rows that it reserves.
/// Throws std::invalid_argument if one of them is not an uncommitted one of this cache.
template <class Cache, std::ranges::input_range Appends, class F>
[[nodiscard]] auto with_rows_of(const Cache& cache, const Appends& appends, F f) {
  std::vector<SeqId> sequences;
  std::vector<Pos> queries;
  for (const auto& append : appends) {
    require(cache.owns(append), "append", "finished or of another cache", "an uncommitted one of this cache");
    sequences.push_back(append.seq());
    queries.push_back(append.size());
  }
  return f(std::span<const SeqId>(sequences), std::span<const Pos>(queries));
}

}  // namespace detail

/// The tables of `sequences`, each with `queries[i]` query rows, for any policy. A policy with a lock is locked once
/// for the whole batch. O(entries of the batch).
/// Throws std::invalid_argument if a handle is stale, the sizes differ, a total exceeds 32 bits, or the policy has layer
/// groups.
template <Policy P>
[[nodiscard]] BatchTables make_tables(const P& policy, std::span<const SeqId> sequences, std::span<const Pos> queries) {
  require(sequences.size() == queries.size(), "queries.size()", queries.size(), "the number of sequences");
  BatchTables tables;
  Index rows = 0;
  for (const Pos count : queries) {
    rows += count;
    require(count >= 0 && rows <= max_pos, "rows of queries", rows, "between 0 and 2^31 - 1 in all");
    tables.q_indptr.push_back(static_cast<std::int32_t>(rows));
  }
  with_shared_lock(policy, [&](const auto& bare) {
    if constexpr (HoldsGroups<P>) {
      require(bare.group_rules().is_plain(), "policy.groups()", bare.groups(), "one that keeps everything");
    }
    for (const SeqId seq : sequences) {
      tables.seq_lens.push_back(bare.reserved(seq));
    }
    if constexpr (BlockTablePolicy<P>) {
      detail::add_blocks(bare, sequences, tables);
    } else {
      detail::add_runs(bare, sequences, tables);
    }
  });
  return tables;
}

/// The tables of the sequences of `appends` (a range of Append), each with the rows that its append reserves.
/// Throws std::invalid_argument if one of them is not an uncommitted one of this cache.
template <class Cache, std::ranges::input_range Appends>
  requires Policy<typename Cache::PolicyType>
[[nodiscard]] BatchTables make_tables(const Cache& cache, const Appends& appends) {
  return detail::with_rows_of(
      cache, appends, [&](auto sequences, auto queries) { return make_tables(cache.policy(), sequences, queries); });
}

/// The tables of `sequences` in both forms, each with `queries[i]` query rows. A policy with a lock is locked once for
/// the whole batch. O(blocks of the batch, padded). Throws as make_tables does.
template <BlockTablePolicy P>
[[nodiscard]] BatchIndex make_batch(const P& policy, std::span<const SeqId> sequences, std::span<const Pos> queries) {
  BatchIndex batch{make_tables(policy, sequences, queries), 0, {}, {}};
  for (std::int32_t i = 0; i < batch.size(); ++i) {
    const Pos length = batch.seq_lens[static_cast<std::size_t>(i)];
    batch.max_blocks = std::max(batch.max_blocks, static_cast<Index>(batch.blocks_of(i).size()));
    batch.last_page_len.push_back(length == 0 ? 0 : (length - 1) % batch.block_tokens + 1);
  }
  batch.block_table.assign(sequences.size() * static_cast<std::size_t>(batch.max_blocks), BatchIndex::padding);
  for (std::int32_t i = 0; i < batch.size(); ++i) {
    const std::span<const std::int32_t> blocks = batch.blocks_of(i);
    std::copy(blocks.begin(), blocks.end(), batch.block_table.begin() + i * batch.max_blocks);
  }
  return batch;
}

/// The tables of the sequences of `appends` (a range of Append), each with the rows that its append reserves.
/// Throws std::invalid_argument if one of them is not an uncommitted one of this cache.
template <class Cache, std::ranges::input_range Appends>
  requires BlockTablePolicy<typename Cache::PolicyType>
[[nodiscard]] BatchIndex make_batch(const Cache& cache, const Appends& appends) {
  return detail::with_rows_of(
      cache, appends, [&](auto sequences, auto queries) { return make_batch(cache.policy(), sequences, queries); });
}

}  // namespace v0
}  // namespace kvc
