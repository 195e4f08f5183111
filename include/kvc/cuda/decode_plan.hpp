// The plan of a decode: its work items, and which of them serve several sequences. The host makes it from the block
// tables, once per step and window; it serves all layers.
//
// The plan computes query rows: one of each sequence, or several, as speculative decoding and the end of a prompt after
// a long prefix have. The keys of each row are cut into splits of 512 positions at multiples of 512, independent of the
// rest of the batch, so its result has the same bits in every batch. Kept positions and those of the window have splits
// of their own, unless there is no gap between them; whether positions in the gap are stored makes no difference.
//
// A split has two halves, of 256 positions. Each is computed as if it were alone, then both are merged. So a plan of
// few items may be halved (halve): then each half is an item of its own, and the merge of partial results begins with
// that of halves. Since the order of operations is the same, so are the bits.
//
// A work item is one split, of one row or of all rows whose sequences have the same blocks there, among them all rows
// of one sequence: the keys and values of a shared prefix are read once for as many rows as fit an item. Only whole
// splits are shared, and only by rows that see all of the split. (Shared prefixes: Hydragen, 2024, and FlashInfer's
// cascade,
// 2024. Fixed splits: Flash-Decoding, 2023.)
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <utility>
#include <vector>

#include "kvc/attention/kernel/split_plan.hpp"
#include "kvc/attention/options.hpp"
#include "kvc/batch.hpp"
#include "kvc/core/error.hpp"
#include "kvc/core/retained.hpp"
#include "kvc/core/types.hpp"

namespace kvc {
inline namespace v0 {
namespace cuda {

/// Positions of a split.
inline constexpr Pos split_positions = Pos{kvc::detail::split_keys};
/// Positions of a half of a split.
inline constexpr Pos half_positions = split_positions / 2;

/// Which query rows a decode computes.
///
///   last   one of each sequence, at its last position; query rows of the tables do not count
///   every  those of the tables, at the last positions of each sequence; each sees the positions up to its own
enum class QueryRows { last, every };

/// One split, or half of one, of one or several rows, for all kv heads. For each kv head it has members * heads rows of
/// queries.
struct DecodeItem {
  std::int32_t sequence;      ///< whose block table locates the rows
  std::int32_t first_member;  ///< index in DecodePlan::members
  std::int32_t members;
  std::int32_t first;  ///< visible positions [first, last) of the split, or of its half
  std::int32_t last;
  std::int32_t first_head;  ///< query heads [first_head, first_head + heads) of each GQA group
  std::int32_t heads;
  std::int32_t empty;  ///< of a plan in halves: the partial result of the other half is the next one (1) or the one
                       ///< before (-1), and no item computes it, since it has no visible position; 0 otherwise
};

/// A row that an item serves, and the place of its partial result.
struct DecodeMember {
  std::int32_t row;
  std::int32_t partial;  ///< an index; ~index if the item computes the whole result

  /// The index of a partial result that nothing else uses.
  [[nodiscard]] KVC_HOST_DEVICE constexpr std::int32_t place() const noexcept {
    return partial < 0 ? ~partial : partial;
  }
};

/// Rows of queries that each of the two kernels handles at once: `narrow` for items of one row, `wide` for shared ones.
struct ItemRows {
  std::int32_t narrow = 8;
  std::int32_t wide = 8;
};

/// The work items of a batch: those whose query rows fit the narrow kernel, and the others.
struct DecodePlan {
  std::vector<DecodeItem> narrow;
  std::vector<DecodeItem> wide;
  std::vector<DecodeMember> members;
  std::vector<std::int32_t> partial_begin;  ///< [rows + 1]; splits before those of row r
  std::int32_t parts = 1;                   ///< partial results of a split: 1, or 2 if it is computed in halves

  /// Rows that it computes.
  [[nodiscard]] Index rows() const noexcept { return std::ssize(partial_begin) - 1; }
  /// Splits of all rows.
  [[nodiscard]] Index splits() const noexcept { return partial_begin.back(); }
  /// Whether a row has several partial results, or none: then the results of items are not all.
  [[nodiscard]] bool merges() const noexcept {
    return std::any_of(members.begin(), members.end(), [](const DecodeMember& m) { return m.partial >= 0; }) ||
           std::adjacent_find(partial_begin.begin(), partial_begin.end()) != partial_begin.end();
  }
};

/// Upper bounds of the sizes of a plan.
struct DecodeCapacity {
  Index partials;  ///< of partial results, and of members
  Index items;     ///< of either list
};
/// Splits up to which there is memory for a plan in halves.
inline constexpr Index most_halved = 512;
/// Bounds for `rows` rows that see `positions` positions together. A row has at most three splits more than it fills,
/// and a split has at most one item for each tile of its query heads. Plans in halves, where there may be any, have
/// twice as much of everything, but no more than `most_halved` splits.
[[nodiscard]] constexpr DecodeCapacity decode_capacity(Index rows, Index positions, Index group, ItemRows item_rows,
                                                       bool halves = true) noexcept {
  const Index splits = positions / split_positions + 3 * rows;
  const Index partials = splits + (halves ? std::min(splits, most_halved) : 0);
  return {partials, partials * ceil_div(group, Index{item_rows.narrow})};
}

namespace detail {

/// An entry of a block table, as the planner reads it.
struct BlockRun {
  std::int32_t block;
  std::int32_t slot;
  Index rows;
  Index first;
};

/// A row to compute: its sequence, and the positions up to its own.
struct PlannedRow {
  std::int32_t sequence;
  Pos length;
};
/// The rows to compute, in the order of their queries. Throws std::invalid_argument if a sequence has more of them than
/// positions.
[[nodiscard]] inline std::vector<PlannedRow> planned_rows(const BatchTables& tables, QueryRows which) {
  std::vector<PlannedRow> rows;
  for (std::int32_t b = 0; b < tables.size(); ++b) {
    const auto at = static_cast<std::size_t>(b);
    const Pos length = tables.seq_lens[at];
    if (which == QueryRows::last) {
      rows.push_back({b, length});
      continue;
    }
    const Pos queries = tables.q_indptr[at + 1] - tables.q_indptr[at];
    require(queries <= length, "query rows of a sequence", queries,
            "at most its positions: QueryRows::every is not for rows of another input");
    for (Pos i = queries; i-- > 0;) {
      rows.push_back({b, length - i});
    }
  }
  return rows;
}

/// The rows of a batch, ordered so that those that share whole splits are neighbours.
[[nodiscard]] inline kvc::detail::SharedOrder order_by_blocks(const BatchTables& tables,
                                                              const std::vector<PlannedRow>& rows) {
  const auto length = [&](Index r) { return Index{rows[static_cast<std::size_t>(r)].length}; };
  const auto visit = [&](Index r, Index end, auto f) {
    const std::int32_t sequence = rows[static_cast<std::size_t>(r)].sequence;
    const auto b = static_cast<std::size_t>(sequence);
    const auto blocks = tables.blocks_of(sequence), slots = tables.first_slots_of(sequence);
    const bool gone = !tables.kv_starts.empty() && tables.kv_starts[b] > 0;
    const Index kept = gone ? tables.kept_entries[b] : std::ssize(blocks);
    Index first = 0;
    for (std::size_t i = 0; i < blocks.size(); ++i, first += tables.block_tokens) {
      if (std::cmp_equal(i, kept)) {
        first = tables.kv_starts[b];
      }
      if (first >= end) {
        break;
      }
      f(BlockRun{blocks[i], slots.empty() ? 0 : slots[i], std::min(Index{tables.block_tokens}, end - first), first});
    }
  };
  const auto before = [](const BlockRun& x, const BlockRun& y) {
    return x.block != y.block ? x.block < y.block : x.slot < y.slot;
  };
  const auto same = [](const BlockRun& x, const BlockRun& y) { return x.block == y.block && x.slot == y.slot; };
  return kvc::detail::find_shared_order<BlockRun>(std::ssize(rows), kvc::detail::split_keys, length, visit, before,
                                                  same);
}

}  // namespace detail

/// The keys that a row at position length - 1 sees: [0, kept) and [first, length), with a gap between them, or
/// [first, length) alone. For a sequence without positions both are empty.
struct DecodeKeys {
  Pos kept;
  Pos first;
  Pos length;
};
/// These keys, in a group or under options that see `seen`.
[[nodiscard]] constexpr DecodeKeys decode_keys(const Retained& seen, Pos length) noexcept {
  const Pos first = length > 0 ? seen.first_seen(length - 1) : 0;
  return first <= seen.kept ? DecodeKeys{0, 0, length} : DecodeKeys{seen.kept, first, length};
}

/// The plan for decoding rows of a batch.
///
///   tables     block tables of the batch
///   group      query heads per kv head
///   seen       positions that a row sees
///   item_rows  rows of queries that each kernel handles at once
///   share      whether to look for shared prefixes
///   which      the rows to compute
///
/// O(table entries + items), and a sort of the rows; with QueryRows::every the entries count once for each row. Throws
/// std::invalid_argument if a row sees a position whose row is gone (BatchTables::require_rows_for), or with
/// QueryRows::every a sequence has more query rows than positions.
[[nodiscard]] inline DecodePlan make_decode_plan(const BatchTables& tables, std::int32_t group, const Retained& seen,
                                                 ItemRows item_rows, bool share = true,
                                                 QueryRows which = QueryRows::last) {
  using kvc::detail::KeyRange, kvc::detail::SharedOrder, kvc::detail::SplitIndex, kvc::detail::VisibleKeys;
  tables.require_rows_for(seen);
  const std::vector<detail::PlannedRow> rows = detail::planned_rows(tables, which);
  const Index count = std::ssize(rows);
  const auto keys_of = [&](Index r) { return decode_keys(seen, rows[static_cast<std::size_t>(r)].length); };
  const SplitIndex kept_splits(count, [&](Index r) { return VisibleKeys{{0, 0}, {0, keys_of(r).kept}}; });
  const SplitIndex splits(count, [&](Index r) { return VisibleKeys{{0, 0}, {keys_of(r).first, keys_of(r).length}}; });
  const SharedOrder order = share ? detail::order_by_blocks(tables, rows) : SharedOrder::unshared(count);

  DecodePlan plan;
  for (Index r = 0; r < count; ++r) {
    plan.partial_begin.push_back(static_cast<std::int32_t>(kept_splits.begin(r) + splits.begin(r)));
  }
  plan.partial_begin.push_back(static_cast<std::int32_t>(kept_splits.total() + splits.total()));
  // Partial results of kept positions come first.
  const auto member = [&](std::int32_t r, Index split, bool kept) {
    const Index kept_count = kept_splits.count(r);
    const Index number = kept ? kept_splits.number(r, split) + splits.begin(r)
                              : kept_splits.begin(r) + kept_count + splits.number(r, split);
    const auto at = static_cast<std::int32_t>(number);
    return DecodeMember{r, kept_count + splits.count(r) == 1 ? ~at : at};
  };
  // Adds items for these rows, cut to what a kernel handles.
  const auto add = [&](const std::vector<std::int32_t>& of, Index split, bool kept, KeyRange keys) {
    const auto members = static_cast<std::int32_t>(of.size());
    const std::int32_t most =
        members * group <= item_rows.narrow ? item_rows.narrow : std::max(item_rows.narrow, item_rows.wide);
    std::vector<DecodeItem>& items = most == item_rows.narrow ? plan.narrow : plan.wide;
    const std::int32_t heads = std::min(group, most), at_once = std::max(std::int32_t{1}, most / group);
    const std::int32_t sequence = rows[static_cast<std::size_t>(of.front())].sequence;
    for (std::int32_t begin = 0; begin < members; begin += at_once) {
      const std::int32_t taken = std::min(at_once, members - begin);
      const auto first_member = static_cast<std::int32_t>(plan.members.size());
      for (std::int32_t i = 0; i < taken; ++i) {
        plan.members.push_back(member(of[static_cast<std::size_t>(begin + i)], split, kept));
      }
      for (std::int32_t head = 0; head < group; head += heads) {
        items.push_back({sequence, first_member, taken, static_cast<std::int32_t>(keys.first),
                         static_cast<std::int32_t>(keys.last), head, std::min(heads, group - head), 0});
      }
    }
  };

  std::vector<std::int32_t> together, alone(1);
  const auto add_splits = [&](const SplitIndex& of, bool kept) {
    for (Index split = 0; split < of.end(); ++split) {
      const KeyRange whole{split * split_positions, (split + 1) * split_positions};
      for_each_sharing(order, whole.last, [&](Index begin, Index end) {
        together.clear();
        for (Index i = begin; i < end; ++i) {
          const auto r = static_cast<std::int32_t>(order.sequence[static_cast<std::size_t>(i)]);
          if (!of.contains(r, split)) {
            continue;
          }
          const DecodeKeys all = keys_of(r);
          const Index first = kept ? 0 : all.first, last = kept ? all.kept : all.length;
          const KeyRange keys{std::max(whole.first, first), std::min(whole.last, last)};
          if (end - begin > 1 && keys.last - keys.first == split_positions) {
            together.push_back(r);
          } else {
            alone[0] = r;
            add(alone, split, kept, keys);
          }
        }
        if (!together.empty()) {
          add(together, split, kept, whole);
        }
      });
    }
  };
  add_splits(kept_splits, true);
  add_splits(splits, false);
  return plan;
}

/// Cuts the items of a plan into halves of splits: then each row is merged from partial results. No result changes.
/// O(items + members).
inline void halve(DecodePlan& plan) {
  const std::vector<DecodeMember> whole = std::exchange(plan.members, {});
  plan.members.assign(2 * whole.size(), DecodeMember{0, 0});
  plan.parts = 2;
  const auto cut = [&](std::vector<DecodeItem>& items) {
    for (const DecodeItem& item : std::exchange(items, {})) {
      const Pos middle = item.first / split_positions * split_positions + half_positions;
      const bool has[2] = {item.first<middle, item.last> middle};
      for (std::int32_t half = 0; half < 2; ++half) {
        if (!has[half]) {
          continue;
        }
        DecodeItem part = item;  // items of other query heads may have the same members
        part.first_member = 2 * item.first_member + half * item.members;
        part.first = half == 0 ? item.first : std::max(item.first, middle);
        part.last = half == 0 ? std::min(item.last, middle) : item.last;
        part.empty = has[1 - half] ? 0 : 1 - 2 * half;
        for (std::int32_t i = 0; i < item.members; ++i) {
          const DecodeMember& of = whole[static_cast<std::size_t>(item.first_member + i)];
          plan.members[static_cast<std::size_t>(part.first_member + i)] = {of.row, 2 * of.place() + half};
        }
        items.push_back(part);
      }
    }
  };
  cut(plan.narrow);
  cut(plan.wide);
}

}  // namespace cuda
}  // namespace v0
}  // namespace kvc
