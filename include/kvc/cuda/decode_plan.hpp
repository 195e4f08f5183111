// The plan of a decode: its work items, and which of them serve several sequences. The host makes it from the block
// tables, once per step and window; it serves all layers.
//
// Each sequence is cut into splits of 512 positions at multiples of 512, independent of the rest of the batch, so its
// result has the same bits in every batch. A work item is one split, of one sequence or of all sequences that have the
// same blocks there: the rows of a shared prefix are read once for as many query rows as fit an item. Only whole splits
// are shared, and only by sequences that see all of the split. (Shared prefixes: Hydragen, 2024, and FlashInfer's
// cascade, 2024. Fixed splits: Flash-Decoding, 2023.)
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "kvc/attention/kernel/split_plan.hpp"
#include "kvc/batch.hpp"
#include "kvc/core/error.hpp"
#include "kvc/core/types.hpp"

namespace kvc {
inline namespace v0 {
namespace cuda {

/// Positions of a split.
inline constexpr Pos split_positions = Pos{kvc::detail::split_keys};

/// One split of one or several sequences, for all kv heads. It has members * heads query rows per kv head.
struct DecodeItem {
  std::int32_t sequence;      ///< whose block table locates the rows
  std::int32_t first_member;  ///< index in DecodePlan::members
  std::int32_t members;
  std::int32_t first;  ///< visible positions [first, last) of the split
  std::int32_t last;
  std::int32_t first_head;  ///< query heads [first_head, first_head + heads) of each GQA group
  std::int32_t heads;
  std::int32_t reserved;
};

/// A sequence that an item serves, and the index of its partial result; -1 if the item computes the whole result.
struct DecodeMember {
  std::int32_t sequence;
  std::int32_t partial;
};

/// Query rows that each of the two kernels handles at once: `narrow` for items of one sequence, `wide` for shared ones.
struct ItemRows {
  std::int32_t narrow = 8;
  std::int32_t wide = 8;
};

/// The work items of a batch: those whose query rows fit the narrow kernel, and the others.
struct DecodePlan {
  std::vector<DecodeItem> narrow;
  std::vector<DecodeItem> wide;
  std::vector<DecodeMember> members;
  std::vector<std::int32_t> partial_begin;  ///< [size + 1]; partial results before those of sequence b
};

/// Upper bounds of the sizes of a plan.
struct DecodeCapacity {
  Index partials;  ///< of partial results, and of members
  Index items;     ///< of either list
};
/// Bounds for `sequences` sequences with `positions` positions together. A sequence has at most two splits more than it
/// fills, and a split has at most one item for each tile of its query heads.
[[nodiscard]] constexpr DecodeCapacity decode_capacity(Index sequences, Index positions, Index group,
                                                       ItemRows item_rows) noexcept {
  const Index partials = positions / split_positions + 2 * sequences;
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

/// The sequences of a batch, ordered so that those that share whole splits are neighbours.
[[nodiscard]] inline kvc::detail::SharedOrder order_by_blocks(const BatchTables& tables) {
  const auto length = [&](Index b) { return Index{tables.seq_lens[static_cast<std::size_t>(b)]}; };
  const auto visit = [&](Index b, Index end, auto f) {
    const auto sequence = static_cast<std::int32_t>(b);
    const auto blocks = tables.blocks_of(sequence), slots = tables.first_slots_of(sequence);
    Index first = 0;
    for (std::size_t i = 0; first < end; ++i, first += tables.block_tokens) {
      f(BlockRun{blocks[i], slots.empty() ? 0 : slots[i], std::min(Index{tables.block_tokens}, end - first), first});
    }
  };
  const auto before = [](const BlockRun& x, const BlockRun& y) {
    return x.block != y.block ? x.block < y.block : x.slot < y.slot;
  };
  const auto same = [](const BlockRun& x, const BlockRun& y) { return x.block == y.block && x.slot == y.slot; };
  return kvc::detail::find_shared_order<BlockRun>(tables.size(), kvc::detail::split_keys, length, visit, before, same);
}

}  // namespace detail

/// The plan for decoding one row of each sequence, at its last position.
///
///   tables     block tables of the batch
///   group      query heads per kv head
///   window     positions that a row sees; 0: all
///   item_rows  query rows that each kernel handles at once
///   share      whether to look for shared prefixes
///
/// O(table entries + items), and a sort of the sequences. Throws std::invalid_argument if positions are gone: see
/// BatchTables::has_gaps.
[[nodiscard]] inline DecodePlan make_decode_plan(const BatchTables& tables, std::int32_t group, Pos window,
                                                 ItemRows item_rows, bool share = true) {
  using kvc::detail::KeyRange, kvc::detail::SharedOrder, kvc::detail::SplitIndex, kvc::detail::VisibleKeys;
  require(!tables.has_gaps(), "tables", "without entries for positions that a layer group has dropped",
          "of sequences that have all of theirs: the kernels of kvc::cuda read no others");
  const auto visible = [&](Index b) {
    const Pos length = tables.seq_lens[static_cast<std::size_t>(b)];
    return KeyRange{window > 0 && length > window ? length - window : 0, length};
  };
  const SplitIndex splits(tables.size(), [&](Index b) { return VisibleKeys{{0, 0}, visible(b)}; });
  const SharedOrder order = share ? detail::order_by_blocks(tables) : SharedOrder::unshared(tables.size());

  DecodePlan plan;
  for (std::int32_t b = 0; b < tables.size(); ++b) {
    plan.partial_begin.push_back(static_cast<std::int32_t>(splits.begin(b)));
  }
  plan.partial_begin.push_back(static_cast<std::int32_t>(splits.total()));
  const auto member = [&](std::int32_t b, Index split) {
    return DecodeMember{b, splits.count(b) == 1 ? -1 : static_cast<std::int32_t>(splits.number(b, split))};
  };
  // Adds items for these sequences, cut to the rows that a kernel handles.
  const auto add = [&](const std::vector<std::int32_t>& sequences, Index split, KeyRange keys) {
    const auto count = static_cast<std::int32_t>(sequences.size());
    const std::int32_t rows =
        count * group <= item_rows.narrow ? item_rows.narrow : std::max(item_rows.narrow, item_rows.wide);
    std::vector<DecodeItem>& items = rows == item_rows.narrow ? plan.narrow : plan.wide;
    const std::int32_t heads = std::min(group, rows), at_once = std::max(std::int32_t{1}, rows / group);
    for (std::int32_t begin = 0; begin < count; begin += at_once) {
      const std::int32_t taken = std::min(at_once, count - begin);
      const auto first_member = static_cast<std::int32_t>(plan.members.size());
      for (std::int32_t i = 0; i < taken; ++i) {
        plan.members.push_back(member(sequences[static_cast<std::size_t>(begin + i)], split));
      }
      for (std::int32_t head = 0; head < group; head += heads) {
        items.push_back({sequences.front(), first_member, taken, static_cast<std::int32_t>(keys.first),
                         static_cast<std::int32_t>(keys.last), head, std::min(heads, group - head), 0});
      }
    }
  };

  std::vector<std::int32_t> together, alone(1);
  for (Index split = 0; split < splits.end(); ++split) {
    const KeyRange whole{split * split_positions, (split + 1) * split_positions};
    for_each_sharing(order, whole.last, [&](Index begin, Index end) {
      together.clear();
      for (Index i = begin; i < end; ++i) {
        const auto b = static_cast<std::int32_t>(order.sequence[static_cast<std::size_t>(i)]);
        if (!splits.contains(b, split)) {
          continue;
        }
        const KeyRange keys{std::max(whole.first, visible(b).first), std::min(whole.last, visible(b).last)};
        if (end - begin > 1 && keys.last - keys.first == split_positions) {
          together.push_back(b);
        } else {
          alone[0] = b;
          add(alone, split, keys);
        }
      }
      if (!together.empty()) {
        add(together, split, whole);
      }
    });
  }
  return plan;
}

}  // namespace cuda
}  // namespace v0
}  // namespace kvc
