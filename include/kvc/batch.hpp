// BatchTables and BatchIndex: the block tables of a batch of sequences, in the forms that batched kernels take. All
// entries are 32-bit integers.
//
// A table is a snapshot: build it after the last extend of a step, and anew after a commit.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <ranges>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "kvc/core/error.hpp"
#include "kvc/core/group_rule.hpp"
#include "kvc/core/retained.hpp"
#include "kvc/core/types.hpp"
#include "kvc/policy/capabilities.hpp"
#include "kvc/policy/concept.hpp"
#include "kvc/policy/group_table.hpp"

namespace kvc {
inline namespace v0 {

/// The block tables of a batch for any policy, in compressed rows (CSR), as FlashInfer's paged wrappers and the kernels
/// of kvc::cuda take them. Sequence i has query rows q_indptr[i] .. q_indptr[i + 1] - 1.
///
/// Each table entry stands for block_tokens consecutive positions of a sequence in consecutive slots of a block. With a
/// BlockTablePolicy an entry is a block. With another policy it is a whole sequence (block_tokens == max_pos) if every
/// sequence of the batch is a single run, and a single position otherwise.
///
/// Tables of a **layer group** (`make_tables(policy, group, ...)`) have entries only for what is there. Entry e of
/// sequence i begins at position
///
///   e * block_tokens                                         if e < kept_entries[i]
///   kv_starts[i] + (e - kept_entries[i]) * block_tokens      otherwise
///
/// The entries on both sides of the missing ones may have rows that are gone; attention by the rule of
/// the group never sees them: see require_rows_for. The kernels of kvc::cuda take all such tables. A kernel of another
/// library with a window takes them as they are where kept_entries are 0. It counts
/// positions from the first entry on, and takes kv_lens for the lengths: then all positions of a sequence, those of its
/// query rows too, are less by kv_starts[i]. A kernel with chunks has to add kv_starts[i]. Kept positions lie before a
/// jump that such a kernel does not know of: attend to them in a call of their own, and merge both by their
/// log-sum-exp.
struct BatchTables {
  Pos block_tokens = 1;                    ///< positions per entry
  std::vector<std::int32_t> q_indptr{0};   ///< [batch + 1]; query rows before sequence i
  std::vector<std::int32_t> kv_indptr{0};  ///< [batch + 1]; entries before sequence i
  std::vector<std::int32_t> kv_indices;    ///< [kv_indptr[batch]]; the block of each entry
  std::vector<std::int32_t> first_slots;   ///< [kv_indptr[batch]]; the slot of its first position; empty if all are 0
  std::vector<std::int32_t> seq_lens;      ///< [batch]; positions, with those of an uncommitted extension
  // Of a layer group; otherwise these are empty, and nothing is gone.
  std::vector<std::int32_t> kept_entries;  ///< [batch]; entries before the positions that are gone: of kept positions
  std::vector<std::int32_t> kv_starts;     ///< [batch]; the position of the entry behind those; 0 if none are gone
  std::vector<std::int32_t> kv_lens;       ///< [batch]; positions in entries: seq_lens less those that have none
  std::vector<std::int32_t> rows_from;     ///< [batch]; positions from here on have rows; 0 if none are gone
  Index group = 0;                         ///< its number
  Retained retained{};                     ///< its rule: rows of the first retained.kept positions are there, too

  /// Sequences of the batch.
  [[nodiscard]] std::int32_t size() const noexcept { return static_cast<std::int32_t>(seq_lens.size()); }
  /// Query rows of the batch.
  [[nodiscard]] std::int32_t queries() const noexcept { return q_indptr.back(); }
  /// Whether a sequence has positions without an entry: a layer group has dropped them.
  [[nodiscard]] bool has_gaps() const noexcept {
    return std::ranges::any_of(kv_starts, [](std::int32_t start) { return start > 0; });
  }
  /// Throws std::invalid_argument, naming sequence and position, if a query row of the batch that sees what `seen` says
  /// would see a position of which the row is gone. O(batch).
  void require_rows_for(const Retained& seen) const {
    for (std::int32_t i = 0; i < static_cast<std::int32_t>(rows_from.size()); ++i) {
      const auto at = static_cast<std::size_t>(i);
      const Pos queries = q_indptr[at + 1] - q_indptr[at], first_row = seq_lens[at] - queries;
      if (queries == 0 || rows_from[at] <= retained.kept) {
        continue;
      }
      const Pos first = seen.first_seen(first_row);
      // The first row sees [0, seen.kept) and [first, first_row]; later rows see no position before these.
      const Pos lacking = seen.kept > retained.kept ? retained.kept : std::max(first, retained.kept);
      require(
          seen.kept <= retained.kept && first >= rows_from[at],
          detail::concat({"position ", std::to_string(lacking), " of sequence ", std::to_string(i), " of the batch"}),
          "gone",
          detail::concat(
              {"one whose row is there, because the row at position ", std::to_string(first_row), " sees it"}));
    }
  }
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
/// it, and a dense table, as FlashAttention and others take it. Both have the same entries in the same order; of a
/// layer group kv_lens counts the slots in use.
struct BatchIndex : BatchTables {
  static constexpr std::int32_t padding = -1;  ///< in block_table, behind the last block of a sequence

  Index max_blocks = 0;                     ///< of any sequence in the batch
  std::vector<std::int32_t> last_page_len;  ///< [batch]; slots in use of the last block: 1 .. block_tokens, 0 if empty
  std::vector<std::int32_t> block_table;    ///< [batch, max_blocks]; block ids, padded
};

namespace detail {

/// The entries of one sequence, and then their end.
inline void add_entries(BatchTables& tables, std::span<const BlockId> blocks) {
  for (const BlockId block : blocks) {
    tables.kv_indices.push_back(static_cast<std::int32_t>(block));
  }
}
inline void end_entries(BatchTables& tables) {
  const auto entries = static_cast<Index>(tables.kv_indices.size());
  require(entries <= max_pos, "blocks of the batch", entries, "at most 2^31 - 1");
  tables.kv_indptr.push_back(static_cast<std::int32_t>(entries));
}

/// The entries of sequences that are not tables of blocks, appended to tables that have their lengths.
/// visit(seq, length, f) calls f(SlotRun) for the runs of a sequence.
template <class F>
void add_runs(std::span<const SeqId> sequences, BatchTables& tables, F visit) {
  Index positions = 0;
  bool one_run_each = true;
  for (std::size_t i = 0; i < sequences.size(); ++i) {
    int runs = 0;
    visit(sequences[i], tables.seq_lens[i], [&](const SlotRun& run) {
      positions += run.count;
      ++runs;
    });
    one_run_each = one_run_each && runs <= 1;
  }
  require(one_run_each || positions <= max_pos, "positions of the batch", positions, "at most 2^31 - 1");
  tables.block_tokens = one_run_each ? max_pos : 1;
  for (std::size_t i = 0; i < sequences.size(); ++i) {
    visit(sequences[i], tables.seq_lens[i], [&](const SlotRun& run) {
      for (Pos row = 0; row < (one_run_each ? 1 : run.count); ++row) {
        tables.kv_indices.push_back(static_cast<std::int32_t>(run.block));
        tables.first_slots.push_back(run.offset + row);
      }
    });
    end_entries(tables);
  }
}
/// The entries of sequences that are tables of blocks, appended likewise.
template <class P>
void add_blocks(const P& policy, std::span<const SeqId> sequences, BatchTables& tables) {
  tables.block_tokens = policy.block_tokens();
  for (const SeqId seq : sequences) {
    add_entries(tables, policy.block_table(seq));
    end_entries(tables);
  }
}

/// Says of a sequence of a group that its positions in [covered, start) have no entry, and those behind the kept ones
/// no rows before `rows_from`.
inline void add_gap(BatchTables& tables, Pos length, Pos covered, Pos start, Pos rows_from) {
  const bool gone = start > covered;
  tables.rows_from.push_back(rows_from);
  tables.kept_entries.push_back(gone ? covered / tables.block_tokens : 0);
  tables.kv_starts.push_back(gone ? start : 0);
  tables.kv_lens.push_back(gone ? length - (start - covered) : length);
}
/// The same of one layer group.
template <class P>
void add_group_runs(const P& policy, Index group, std::span<const SeqId> sequences, BatchTables& tables) {
  const auto visit = [&](SeqId seq, Pos length, auto f) { policy.for_each_run(seq, group, {0, length}, f); };
  detail::add_runs(sequences, tables, visit);
  for (std::size_t i = 0; i < sequences.size(); ++i) {
    Pos covered = 0;
    Pos start = tables.seq_lens[i];
    visit(sequences[i], tables.seq_lens[i], [&](const SlotRun& run) {
      covered += run.first == covered ? run.count : 0;
      start = run.first > covered ? std::min(start, run.first) : start;
    });
    add_gap(tables, tables.seq_lens[i], covered, start, start > covered ? start : 0);
  }
}
/// The first position from `start` on that a sequence of a group retains; `length` if there is none. O(1) where it lies
/// within a few blocks.
template <class P>
[[nodiscard]] Pos first_retained(const P& policy, SeqId seq, Index group, Pos start, Pos length) {
  Pos first = length;
  const auto look = [&](Pos from, Pos to) {
    policy.for_each_run(seq, group, {from, to}, [&](const SlotRun& run) { first = std::min(first, run.first); });
  };
  const Pos near = static_cast<Pos>(std::min(Index{length}, start + Index{4} * policy.block_tokens(group)));
  look(start, near);
  if (first == length && near < length) {
    look(near, length);
  }
  return first;
}
template <class P>
void add_group_blocks(const P& policy, Index group, std::span<const SeqId> sequences, BatchTables& tables) {
  tables.block_tokens = policy.block_tokens(group);
  for (std::size_t i = 0; i < sequences.size(); ++i) {
    const GroupBlocks blocks = policy.group_blocks(sequences[i], group);
    add_entries(tables, blocks.kept);
    add_entries(tables, blocks.rest);
    end_entries(tables);
    const Pos length = tables.seq_lens[i];
    const Index covered = std::ssize(blocks.kept) * Index{tables.block_tokens};
    const Pos start = length > covered ? blocks.first * tables.block_tokens : 0;
    const Pos kept = tables.retained.kept;
    Pos rows_from = 0;
    if (!tables.retained.everything() && length > kept) {
      rows_from = detail::first_retained(policy, sequences[i], group, start > covered ? start : kept, length);
    }
    add_gap(tables, length, static_cast<Pos>(std::min(covered, Index{length})), start,
            rows_from > kept ? rows_from : 0);
  }
}

/// Tables with query rows, and no entries yet.
[[nodiscard]] inline BatchTables with_queries(std::span<const SeqId> sequences, std::span<const Pos> queries) {
  require(sequences.size() == queries.size(), "queries.size()", queries.size(), "the number of sequences");
  BatchTables tables;
  Index rows = 0;
  for (const Pos count : queries) {
    rows += count;
    require(count >= 0 && rows <= max_pos, "rows of queries", rows, "between 0 and 2^31 - 1 in all");
    tables.q_indptr.push_back(static_cast<std::int32_t>(rows));
  }
  return tables;
}

/// The second form beside the first.
[[nodiscard]] inline BatchIndex in_both_forms(BatchTables&& tables) {
  BatchIndex batch{std::move(tables), 0, {}, {}};
  const std::vector<std::int32_t>& lengths = batch.kv_lens.empty() ? batch.seq_lens : batch.kv_lens;
  for (std::int32_t i = 0; i < batch.size(); ++i) {
    const Pos length = lengths[static_cast<std::size_t>(i)];
    batch.max_blocks = std::max(batch.max_blocks, static_cast<Index>(batch.blocks_of(i).size()));
    batch.last_page_len.push_back(length == 0 ? 0 : (length - 1) % batch.block_tokens + 1);
  }
  batch.block_table.assign(static_cast<std::size_t>(batch.size() * batch.max_blocks), BatchIndex::padding);
  for (std::int32_t i = 0; i < batch.size(); ++i) {
    const std::span<const std::int32_t> blocks = batch.blocks_of(i);
    std::copy(blocks.begin(), blocks.end(), batch.block_table.begin() + i * batch.max_blocks);
  }
  return batch;
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

/// The tables of `sequences`, each with `queries[i]` query rows, for any policy with one group of full attention. A
/// policy with a lock is locked once for the whole batch. O(entries of the batch).
/// Throws std::invalid_argument if a handle is stale, the sizes differ, a total exceeds 32 bits, or the policy holds
/// other layer groups, each of which has tables of its own.
template <Policy P>
[[nodiscard]] BatchTables make_tables(const P& policy, std::span<const SeqId> sequences, std::span<const Pos> queries) {
  if constexpr (HoldsGroups<P>) {
    const GroupRules& rules = policy.group_rules();
    require(rules.is_plain(), "policy.groups()", rules.groups.size(),
            "one that keeps everything; otherwise name the group, as in make_tables(policy, group, ...)");
  }
  BatchTables tables = detail::with_queries(sequences, queries);
  with_shared_lock(policy, [&](const auto& bare) {
    for (const SeqId seq : sequences) {
      tables.seq_lens.push_back(bare.reserved(seq));
    }
    if constexpr (BlockTablePolicy<P>) {
      detail::add_blocks(bare, sequences, tables);
    } else {
      detail::add_runs(sequences, tables,
                       [&](SeqId seq, Pos length, auto f) { bare.for_each_run(seq, {0, length}, f); });
    }
  });
  return tables;
}
/// The tables of one layer group, with entries only for what is there. `seq_lens` counts positions of the group: of a
/// cross-attention group the rows of the other input. O(entries of the batch).
/// Throws std::invalid_argument if a handle is stale, the group is not there, the sizes differ, or a total exceeds 32
/// bits.
template <HoldsGroups P>
[[nodiscard]] BatchTables make_tables(const P& policy, Index group, std::span<const SeqId> sequences,
                                      std::span<const Pos> queries) {
  (void)policy.block_tokens(group);  // throws if it is not there
  BatchTables tables = detail::with_queries(sequences, queries);
  tables.group = group;
  tables.retained = policy.group_rules().groups[static_cast<std::size_t>(group)].retained;
  with_shared_lock(policy, [&](const auto& bare) {
    for (const SeqId seq : sequences) {
      tables.seq_lens.push_back(bare.positions(seq, group));
    }
    if constexpr (GroupTablePolicy<P>) {
      detail::add_group_blocks(bare, group, sequences, tables);
    } else {
      detail::add_group_runs(bare, group, sequences, tables);
    }
  });
  return tables;
}

/// The tables of the sequences of `appends` (a range of Append), each with the rows that its append reserves.
/// Throws std::invalid_argument as above, and if one of them is not an uncommitted one of this cache.
template <class Cache, std::ranges::input_range Appends>
  requires Policy<typename Cache::PolicyType>
[[nodiscard]] BatchTables make_tables(const Cache& cache, const Appends& appends) {
  return detail::with_rows_of(cache, appends, [&](auto sequences, auto queries) {
    return kvc::make_tables(cache.policy(), sequences, queries);
  });
}
/// The same of one layer group: of layer i that of number cache.layers().place(i).group.
template <class Cache, std::ranges::input_range Appends>
  requires HoldsGroups<typename Cache::PolicyType>
[[nodiscard]] BatchTables make_tables(const Cache& cache, Index group, const Appends& appends) {
  return detail::with_rows_of(cache, appends, [&](auto sequences, auto queries) {
    return kvc::make_tables(cache.policy(), group, sequences, queries);
  });
}

/// The tables of `sequences` in both forms, each with `queries[i]` query rows. A policy with a lock is locked once for
/// the whole batch. O(blocks of the batch, padded). Throws as make_tables does.
template <BlockTablePolicy P>
[[nodiscard]] BatchIndex make_batch(const P& policy, std::span<const SeqId> sequences, std::span<const Pos> queries) {
  return detail::in_both_forms(kvc::make_tables(policy, sequences, queries));
}
/// The same of one layer group.
template <GroupTablePolicy P>
[[nodiscard]] BatchIndex make_batch(const P& policy, Index group, std::span<const SeqId> sequences,
                                    std::span<const Pos> queries) {
  return detail::in_both_forms(kvc::make_tables(policy, group, sequences, queries));
}

/// The tables of the sequences of `appends` (a range of Append), each with the rows that its append reserves.
/// Throws std::invalid_argument as above, and if one of them is not an uncommitted one of this cache.
template <class Cache, std::ranges::input_range Appends>
  requires BlockTablePolicy<typename Cache::PolicyType>
[[nodiscard]] BatchIndex make_batch(const Cache& cache, const Appends& appends) {
  return detail::in_both_forms(kvc::make_tables(cache, appends));
}
/// The same of one layer group.
template <class Cache, std::ranges::input_range Appends>
  requires GroupTablePolicy<typename Cache::PolicyType>
[[nodiscard]] BatchIndex make_batch(const Cache& cache, Index group, const Appends& appends) {
  return detail::in_both_forms(kvc::make_tables(cache, group, appends));
}

}  // namespace v0
}  // namespace kvc
