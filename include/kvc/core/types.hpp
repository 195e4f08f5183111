// The integers of kvc: positions and counts of tokens have 32 bits, offsets 64, and a block id or the handle of a
// sequence cannot be mixed up with either. Standard library only.
#pragma once

#include <compare>
#include <concepts>
#include <cstdint>
#include <limits>

namespace kvc {
inline namespace v0 {

using Index = std::int64_t;  ///< counts and offsets of elements, rows, blocks, layers, heads
using Pos = std::int32_t;    ///< a position in a sequence, or a number of tokens
using Token = std::int32_t;  ///< a token id; kvc only compares them, any value is allowed

static_assert(sizeof(void*) >= 8, "kvc counts memory in 64 bits");

inline constexpr Pos max_pos = std::numeric_limits<Pos>::max();

/// A block of the pool: 0 <= id < policy.blocks(). Other engines call it a page.
enum class BlockId : std::int32_t {};
inline constexpr BlockId no_block{-1};

/// The number of a block.
[[nodiscard]] constexpr Index to_index(BlockId block) noexcept { return static_cast<Index>(block); }

/// The handle of an open sequence. The generation tells a handle that outlived its sequence from that of the next
/// sequence.
struct SeqId {
  std::uint32_t index = std::numeric_limits<std::uint32_t>::max();
  std::uint32_t generation = 0;
  friend constexpr bool operator==(SeqId, SeqId) = default;
};

/// The positions first <= p < last.
struct PosRange {
  Pos first = 0;
  Pos last = 0;
  /// last - first, clamped to [-max_pos, max_pos].
  [[nodiscard]] constexpr Pos size() const noexcept {
    const Index positions = Index{last} - Index{first};
    return static_cast<Pos>(positions > max_pos ? max_pos : positions < -max_pos ? -max_pos : positions);
  }
  /// Whether no position lies in it.
  [[nodiscard]] constexpr bool empty() const noexcept { return last <= first; }
  friend constexpr bool operator==(PosRange, PosRange) = default;
};

/// A run: consecutive positions of a sequence that lie in consecutive slots of one block. Policies hand out runs; they
/// hold no pointers and know no element type.
struct SlotRun {
  BlockId block;  ///< where
  Pos offset;     ///< first slot within the block
  Pos count;      ///< number of slots
  Pos first;      ///< position of the first slot in its sequence
  friend constexpr bool operator==(const SlotRun&, const SlotRun&) = default;
};

/// A copy that the owner of the memory carries out for a policy: `count` rows from one place of the pool to another, in
/// every layer and head of one layer group. The two ranges of slots do not overlap.
struct RowCopy {
  BlockId from = no_block;
  BlockId to = no_block;
  Pos from_slot = 0;
  Pos to_slot = 0;
  Pos count = 0;
  std::int32_t group = 0;  ///< whose rows the blocks hold; 0 where there is one group
};

/// The quotient, rounded up; both >= 0, and the denominator not 0.
template <class I>
[[nodiscard]] constexpr I ceil_div(I numerator, I denominator) noexcept {
  return numerator / denominator + (numerator % denominator != 0 ? 1 : 0);
}

}  // namespace v0
}  // namespace kvc
