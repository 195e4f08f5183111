// StateChains: the blocks of cached recurrent states.
#pragma once

#include <cstddef>
#include <span>
#include <vector>

#include "kvc/core/group_rule.hpp"
#include "kvc/core/types.hpp"
#include "kvc/policy/block_array.hpp"

namespace kvc {
inline namespace v0 {
namespace detail {

/// The states of one kind after one length take one block or several. The prefix index knows the first one; from it a
/// chain leads to the others. A column is a layer group or, behind those, a kind of states. O(1) unless stated
/// otherwise.
class StateChains {
 public:
  /// For `groups` groups and these kinds. Throws std::bad_alloc. O(blocks).
  StateChains(Index blocks, std::size_t groups, std::span<const StateSizes> kinds) : others_(groups, 0) {
    for (const StateSizes& kind : kinds) {
      others_.push_back(kind.blocks - 1);
      next_ = BlockArray<BlockId>(blocks, no_block);
    }
  }

  /// How many blocks follow the first one in a column; 0 of a layer group.
  [[nodiscard]] Index others(std::size_t column) const noexcept { return others_[column]; }
  /// The block behind this one; no_block behind the last one.
  [[nodiscard]] BlockId next(BlockId block) const noexcept { return next_[block]; }
  /// Makes these blocks a chain. O(blocks).
  void link(std::span<const BlockId> blocks) noexcept {
    for (std::size_t i = 0; i < blocks.size(); ++i) {
      next_[blocks[i]] = i + 1 < blocks.size() ? blocks[i + 1] : no_block;
    }
  }
  /// f(block) for all blocks behind the first one, in a column. O(those).
  template <class F>
  void for_each_other(BlockId first, std::size_t column, F&& f) const noexcept {
    if (others_[column] == 0) {
      return;
    }
    for (BlockId block = next_[first]; block != no_block;) {
      const BlockId next = next_[block];
      f(block);
      block = next;
    }
  }

 private:
  std::vector<Index> others_;  // [columns]
  BlockArray<BlockId> next_;   // [blocks], if there are states
};

}  // namespace detail
}  // namespace v0
}  // namespace kvc
