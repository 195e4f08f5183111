// The plan of a decode: which work items there are, and which of them serve several sequences. Made on the host
// from the block tables, once per step and window; it serves all layers.
//
// A sequence is cut into splits of 512 positions at multiples of 512, whatever else is in the batch, so that its
// result has the same bits in every batch. An item is one split, for one sequence or for all those that have the same
// blocks there: the rows of a shared prefix are read once for as many query rows as fit an item. (Shared prefixes:
// Hydragen, 2024; FlashInfer's cascade, 2024. Fixed splits: Flash-Decoding, 2023.) Only whole splits are shared, and
// only among sequences that may see all of the split.
#pragma once

#include <algorithm>
#include <cstdint>
#include <numeric>
#include <vector>

#include "kvc/core/error.hpp"
#include "kvc/core/types.hpp"
#include "kvc/cuda/tables.hpp"

namespace kvc {
inline namespace v0 {
namespace cuda {

inline constexpr Pos split_positions = 512;

/// One split of one or several sequences, for all kv heads. Its query rows: members x heads.
struct DecodeItem {
  std::int32_t sequence;      ///< whose table says where the rows are
  std::int32_t first_member;  ///< in DecodePlan::members
  std::int32_t members;
  std::int32_t first;  ///< positions [first, last), within one split
  std::int32_t last;
  std::int32_t first_head;  ///< query heads [first_head, first_head + heads) of each GQA group
  std::int32_t heads;
  std::int32_t reserved;
};

/// A sequence that an item serves, and where its partial state goes: -1 if it is the whole result.
struct DecodeMember {
  std::int32_t sequence;
  std::int32_t partial;
};

/// Query rows that the two kernels take at a time. `narrow` is for items of one sequence, `wide` for shared ones.
struct RowTiles {
  std::int32_t narrow = 8;
  std::int32_t wide = 8;
};

struct DecodePlan {
  std::vector<DecodeItem> narrow;
  std::vector<DecodeItem> wide;
  std::vector<DecodeMember> members;
  std::vector<std::int32_t> partial_begin;  ///< [size + 1]; parts before sequence b
};

/// The most parts, and items of one list, that a plan has for so many sequences and positions of all of them together.
struct DecodeCapacity {
  Index partials;  ///< and members
  Index items;
};
/// A sequence has at most one split more than it fills, and a split one item for each tile of its query heads.
[[nodiscard]] constexpr DecodeCapacity decode_capacity(Index sequences, Index positions, Index group,
                                                       RowTiles tiles) noexcept {
  const Index partials = positions / split_positions + 2 * sequences;
  return {partials, partials * ceil_div(group, Index{tiles.narrow})};
}

namespace detail {

/// Whole splits in which two sequences have the same blocks from their beginning on. O(blocks of the shorter).
[[nodiscard]] inline Pos shared_splits(const BatchTables& tables, std::int32_t a, std::int32_t b) {
  const auto blocks_a = tables.blocks_of(a), blocks_b = tables.blocks_of(b);
  const auto slots_a = tables.first_slots_of(a), slots_b = tables.first_slots_of(b);
  const std::size_t most = std::min(blocks_a.size(), blocks_b.size());
  auto same = static_cast<std::size_t>(
      std::mismatch(blocks_a.begin(), blocks_a.begin() + static_cast<std::ptrdiff_t>(most), blocks_b.begin()).first -
      blocks_a.begin());
  if (!slots_a.empty()) {
    same = static_cast<std::size_t>(
        std::mismatch(slots_a.begin(), slots_a.begin() + static_cast<std::ptrdiff_t>(same), slots_b.begin()).first -
        slots_a.begin());
  }
  const Index length =
      std::min(tables.seq_lens[static_cast<std::size_t>(a)], tables.seq_lens[static_cast<std::size_t>(b)]);
  return static_cast<Pos>(std::min(static_cast<Index>(same) * tables.block_tokens, length) / split_positions);
}

/// Sequences in an order in which those that share blocks are neighbours.
[[nodiscard]] inline std::vector<std::int32_t> order_by_blocks(const BatchTables& tables) {
  std::vector<std::int32_t> order(static_cast<std::size_t>(tables.size()));
  std::iota(order.begin(), order.end(), 0);
  std::stable_sort(order.begin(), order.end(), [&](std::int32_t a, std::int32_t b) {
    const auto blocks_a = tables.blocks_of(a), blocks_b = tables.blocks_of(b);
    const auto slots_a = tables.first_slots_of(a), slots_b = tables.first_slots_of(b);
    const std::size_t most = std::min(blocks_a.size(), blocks_b.size());
    for (std::size_t i = 0; i < most; ++i) {
      if (blocks_a[i] != blocks_b[i]) {
        return blocks_a[i] < blocks_b[i];
      }
      if (!slots_a.empty() && slots_a[i] != slots_b[i]) {
        return slots_a[i] < slots_b[i];
      }
    }
    return blocks_a.size() > blocks_b.size();
  });
  return order;
}

}  // namespace detail

/// The plan of decoding one row of each sequence, at its last position.
///
///   group   query heads per kv head
///   tiles   rows that the kernels take at a time
///   share   whether to look for shared prefixes
///
/// O(blocks, and items, of the batch; times log of its size for the order).
[[nodiscard]] inline DecodePlan make_decode_plan(const BatchTables& tables, std::int32_t group, Pos window,
                                                 RowTiles tiles, bool share = true) {
  const std::int32_t size = tables.size();
  DecodePlan plan;
  std::vector<Pos> first_visible(static_cast<std::size_t>(size));
  plan.partial_begin.push_back(0);
  Pos most_splits = 0;
  for (std::int32_t b = 0; b < size; ++b) {
    const Pos length = tables.seq_lens[static_cast<std::size_t>(b)];
    const Pos first = window > 0 && length > window ? length - window : 0;
    first_visible[static_cast<std::size_t>(b)] = first;
    const Pos splits = ceil_div(length, split_positions);
    most_splits = std::max(most_splits, splits);
    plan.partial_begin.push_back(plan.partial_begin.back() + splits - first / split_positions);
  }

  std::vector<std::int32_t> order(static_cast<std::size_t>(size));
  std::iota(order.begin(), order.end(), 0);
  std::vector<Pos> shared(static_cast<std::size_t>(size), 0);  // splits in common with the sequence before in the order
  if (share && size > 1) {
    order = detail::order_by_blocks(tables);
    for (std::size_t i = 1; i < order.size(); ++i) {
      shared[i] = detail::shared_splits(tables, order[i - 1], order[i]);
    }
  }

  const auto member = [&](std::int32_t b, Pos split) {
    const auto at = static_cast<std::size_t>(b);
    const bool whole = plan.partial_begin[at + 1] - plan.partial_begin[at] == 1;
    return DecodeMember{b, whole ? -1 : plan.partial_begin[at] + split - first_visible[at] / split_positions};
  };
  // Items for these members, cut to the rows that a kernel takes.
  const auto add = [&](const std::vector<std::int32_t>& sequences, Pos split, Pos first, Pos last) {
    const auto count = static_cast<std::int32_t>(sequences.size());
    const std::int32_t rows = count * group <= tiles.narrow ? tiles.narrow : std::max(tiles.narrow, tiles.wide);
    std::vector<DecodeItem>& items = rows == tiles.narrow ? plan.narrow : plan.wide;
    const std::int32_t heads = std::min(group, rows), at_once = std::max(std::int32_t{1}, rows / group);
    for (std::int32_t begin = 0; begin < count; begin += at_once) {
      const std::int32_t taken = std::min(at_once, count - begin);
      const auto first_member = static_cast<std::int32_t>(plan.members.size());
      for (std::int32_t i = 0; i < taken; ++i) {
        plan.members.push_back(member(sequences[static_cast<std::size_t>(begin + i)], split));
      }
      for (std::int32_t head = 0; head < group; head += heads) {
        items.push_back({sequences.front(), first_member, taken, first, last, head, std::min(heads, group - head), 0});
      }
    }
  };

  std::vector<std::int32_t> together, alone(1);
  for (Pos split = 0; split < most_splits; ++split) {
    const Pos begin = split * split_positions;
    for (std::size_t i = 0; i < order.size();) {
      std::size_t end = i + 1;
      while (end < order.size() && shared[end] > split) {
        ++end;
      }
      together.clear();
      for (std::size_t j = i; j < end; ++j) {
        const std::int32_t b = order[j];
        const Pos length = tables.seq_lens[static_cast<std::size_t>(b)];
        const Pos visible = first_visible[static_cast<std::size_t>(b)];
        const Pos first = std::max(begin, visible);
        const Pos last = length - begin > split_positions ? begin + split_positions : length;
        if (first >= last) {
          continue;
        }
        if (end - i > 1 && first == begin && last - begin == split_positions) {
          together.push_back(b);
        } else {
          alone[0] = b;
          add(alone, split, first, last);
        }
      }
      if (!together.empty()) {
        add(together, split, begin, begin + split_positions);
      }
      i = end;
    }
  }
  return plan;
}

}  // namespace cuda
}  // namespace v0
}  // namespace kvc
