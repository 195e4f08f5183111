// StateBlocks: the blocks in which recurrent states lie.
#pragma once

#include <cstddef>
#include <span>
#include <utility>
#include <vector>

#include "kvc/core/error.hpp"
#include "kvc/core/group_rule.hpp"
#include "kvc/core/types.hpp"
#include "kvc/policy/detail/state_table.hpp"
#include "kvc/policy/restore_options.hpp"

namespace kvc {
inline namespace v0 {
namespace detail {

/// Takes blocks for the states of sequences from a source, and gives them back: what StateTable names is referenced
/// here, once for each table that names it. `Blocks` has the members allocate, ref_referenced and release of
/// GroupBlockSource. The states of one length take the blocks of all kinds, one kind after the other.
template <class Blocks>
class StateBlocks {
 public:
  /// `shares_block`: a block has the states of all kinds, each in a pool of its own.
  StateBlocks(Blocks& blocks, std::vector<StateSizes> sizes, bool shares_block = false)
      : blocks_(blocks), sizes_(std::move(sizes)) {
    for (const StateSizes& kind : sizes_) {
      first_.push_back(shares_block ? 0 : all_);
      all_ = shares_block ? 1 : all_ + static_cast<std::size_t>(kind.blocks);
    }
  }

  /// Whether there are no recurrent layers.
  [[nodiscard]] bool empty() const noexcept { return sizes_.empty(); }
  /// Blocks of the states of one length.
  [[nodiscard]] Index blocks_of_one() const noexcept { return static_cast<Index>(all_); }
  /// The table of a sequence without states.
  [[nodiscard]] StateTable table() const noexcept { return StateTable(blocks_of_one()); }
  /// How the states of one kind lie in blocks. Throws std::invalid_argument if there is no such kind.
  [[nodiscard]] StateSizes sizes(Index kind) const {
    require_between(kind, Index{0}, std::ssize(sizes_) - 1, "kind");
    return sizes_[static_cast<std::size_t>(kind)];
  }
  /// The blocks of one kind of states after `length` tokens. Throws std::invalid_argument if there are none.
  [[nodiscard]] std::span<const BlockId> of(const StateTable& table, Index kind, Pos length) const {
    const auto count = static_cast<std::size_t>(sizes(kind).blocks);
    const std::span<const BlockId> all = table.blocks(length);
    require(!all.empty(), "length", length, "one of which the sequence has recurrent states: see state_lengths");
    return all.subspan(first_[static_cast<std::size_t>(kind)], count);
  }

  /// See WantedStates::list. Valid until the next call.
  [[nodiscard]] std::span<const WantedState> wanted(PosRange range, std::span<const Pos> asked,
                                                    std::span<const Pos> more = {}) {
    return wanted_.list(!empty(), range, asked, more);
  }
  /// Takes blocks for states. Requires room in the table, and free blocks.
  void add(StateTable& table, std::span<const WantedState> states) noexcept {
    for (const WantedState& state : states) {
      table.push(state, [&] { return blocks_.allocate(); });
    }
  }
  /// See WantedStates::restored. Valid until the next call.
  [[nodiscard]] std::span<const WantedState> restored(std::span<const RestoredState> states, Pos settled, Pos grain,
                                                      Index most = max_pos) {
    return wanted_.restored(states, settled, grain, most);
  }
  /// Blocks that `restore` takes. O(states).
  [[nodiscard]] Index blocks_to_restore(std::span<const WantedState> states, const StateTable* like) const noexcept {
    Index blocks = 0;
    for (const WantedState& state : states) {
      blocks += shared(state, like).empty() ? blocks_of_one() : 0;
    }
    return blocks;
  }
  /// Gives a table the states of a restored sequence: new blocks, or those of `like` (nullptr: none) where they are
  /// shared. Requires room in the table, and free blocks.
  void restore(StateTable& table, std::span<const WantedState> states, const StateTable* like) noexcept {
    for (const WantedState& state : states) {
      const std::span<const BlockId> theirs = shared(state, like);
      auto next = theirs.begin();
      table.push(state, [&] {
        if (theirs.empty()) {
          return blocks_.allocate();
        }
        blocks_.ref_referenced(*next);
        return *next++;
      });
    }
  }
  /// Gives the table of a fork the state of its length, if there is one. Requires room for it.
  void share(const StateTable& from, Pos length, StateTable& to) noexcept {
    if (const std::span<const BlockId> blocks = from.blocks(length); !blocks.empty()) {
      auto next = blocks.begin();
      to.push({length}, [&] {
        blocks_.ref_referenced(*next);
        return *next++;
      });
    }
  }
  /// Releases the states above a length; `state` is that of the sequence.
  void cut(StateTable& table, Pos length, const auto& state) noexcept {
    table.cut(length, [&](std::span<const BlockId> blocks) { release(blocks, state); });
  }
  /// Releases the states that no query begins from any more: see StateTable::drop. f(blocks of a length) before they
  /// are released.
  template <class F>
  void drop(StateTable& table, Pos settled, Pos grain, const auto& state, F&& f) noexcept {
    table.drop(settled, grain, [&](std::span<const BlockId> blocks) {
      f(blocks);
      release(blocks, state);
    });
  }

 private:
  /// The blocks that a restored state shares with `like`; empty if it shares none.
  [[nodiscard]] static std::span<const BlockId> shared(const WantedState& state, const StateTable* like) noexcept {
    return like != nullptr && state.is_shared ? like->blocks(state.length) : std::span<const BlockId>();
  }
  /// The first block last: an index has the state by that one.
  void release(std::span<const BlockId> blocks, const auto& state) noexcept {
    for (std::size_t i = blocks.size(); i-- > 0;) {
      blocks_.release(blocks[i], state);
    }
  }

  Blocks& blocks_;
  std::vector<StateSizes> sizes_;   // [kinds]
  std::vector<std::size_t> first_;  // [kinds] among the blocks of one length
  std::size_t all_ = 0;
  WantedStates wanted_;
};

}  // namespace detail
}  // namespace v0
}  // namespace kvc
