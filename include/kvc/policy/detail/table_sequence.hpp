// TableSequence: a sequence with a table of blocks in each layer group.
#pragma once

#include <algorithm>
#include <cstddef>
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
  Pos appends_until = 0;           ///< an extension by one token to at most this length needs nothing but to be counted
  Pos fits_until = 0;         ///< length that all tails have room for; 0: it is not known whether they are writable
  Pos drops_at = 0;           ///< committed length, less the reserve, with which a group can drop a block
  Pos quiet_until = 0;        ///< a commit of fewer positions does nothing but count them
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
    forget_tails();
    drops_at = 0;
    quiet_until = 0;
    has_replaced = false;
    if constexpr (requires { state.reset(); }) {
      state.reset();
    } else {
      state = {};
    }
  }
  /// Whether an extension by `count` positions, of so many known tokens, needs nothing but to be counted: nearly always
  /// that by one.
  [[nodiscard]] bool appends(Pos count, std::size_t tokens) const noexcept {
    return count == 1 && tokens <= 1 && lengths.committed < appends_until && !lengths.uncommitted;
  }
  /// Other sequences may reference its tails from now on.
  void share_tails() noexcept {
    owns_tails = false;
    appends_until = 0;
  }
  /// Nothing is known of its tails.
  void forget_tails() noexcept {
    share_tails();
    fits_until = 0;
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
