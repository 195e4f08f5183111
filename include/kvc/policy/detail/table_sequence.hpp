// TableSequence: a sequence with a table of blocks in each layer group.
#pragma once

#include <algorithm>
#include <vector>

#include "kvc/core/types.hpp"
#include "kvc/policy/detail/group_sequences.hpp"
#include "kvc/policy/group_table.hpp"

namespace kvc {
inline namespace v0 {
namespace detail {

/// The record of a sequence of GroupTables. `State` is what a policy keeps of it beside its tables.
template <class State>
struct TableSequence : GroupSequence {
  std::vector<GroupTable> tables;  ///< [groups]
  std::vector<BlockId> replaced;   ///< [groups] shared tails that the uncommitted extension has copied
  Pos fits_until = 0;         ///< length that all tails have room for; 0: it is not known whether they are writable
  Pos drops_at = 0;           ///< committed length, less the reserve, with which a group can drop a block
  bool owns_tails = false;    ///< nothing else references a tail of these, or can come to do so but by a fork
  bool has_replaced = false;  ///< one of them at least
  State state{};

  /// Forgets everything, but not its memory.
  void reset() noexcept {
    GroupSequence::reset();
    for (GroupTable& table : tables) {
      table.clear();
    }
    std::ranges::fill(replaced, no_block);
    fits_until = 0;
    drops_at = 0;
    owns_tails = false;
    has_replaced = false;
    if constexpr (requires { state.reset(); }) {
      state.reset();
    } else {
      state = {};
    }
  }
  /// Of a sequence of no positions, which references no blocks but those of other inputs.
  void forget_rows() noexcept {
    for (GroupTable& table : tables) {
      if (table.grows() || !has_cross) {
        table.clear();
      }
    }
  }
};

}  // namespace detail
}  // namespace v0
}  // namespace kvc
