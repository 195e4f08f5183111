// GroupExtender: reserves rows at the end of a sequence in all layer groups, or in none.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <utility>
#include <vector>

#include "kvc/config.hpp"
#include "kvc/core/group_rule.hpp"
#include "kvc/core/limit.hpp"
#include "kvc/core/types.hpp"
#include "kvc/policy/concept.hpp"
#include "kvc/policy/detail/row_copies.hpp"
#include "kvc/policy/detail/state_blocks.hpp"
#include "kvc/policy/detail/state_table.hpp"
#include "kvc/policy/group_table.hpp"

namespace kvc {
inline namespace v0 {
namespace detail {

/// Counts what an extension takes in all groups before it changes any; copies shared tails. `Blocks` is a
/// GroupBlockSource, and `Sequence` a TableSequence. References what it is made of.
template <class Blocks, class Sequence>
class GroupExtender {
 public:
  GroupExtender(Blocks& blocks, StateBlocks<Blocks>& states, const GroupRules& rules)
      : blocks_(blocks), states_(states), rules_(rules), needs_(rules.groups.size()) {
    copies_.reserve(rules.groups.size());
  }

  /// Whether the last blocks have room for a range, and can be written. Nearly always for one token.
  [[nodiscard]] bool fits(const Sequence& s, PosRange range) const noexcept {
    return range.last <= s.fits_until && !range.empty() && (s.owns_tails || has_unshared_tails(s));
  }
  /// The extension of one more token, without states or rows of other inputs, nearly always: each group takes one
  /// block, or none, and copies no tail. False, and nothing has changed, where it is another one. O(groups).
  [[nodiscard]] bool extend_by_one_block(Sequence& s, PosRange range) noexcept {
    if (range.empty()) {
      return false;
    }
    Index taken = 0;
    for (const GroupTable& table : s.tables) {
      if (!table.grows()) {
        continue;
      }
      const Index room = table.room();
      if (range.last > room) {
        if (range.first < room || range.last > room + table.block_tokens() || !table.can_push()) {
          return false;
        }
        ++taken;
      } else if (!blocks_.is_private(table.blocks().back())) {
        return false;
      }
    }
    if (taken > blocks_.available()) {
      return false;
    }
    Index fits_until = max_pos;
    for (GroupTable& table : s.tables) {
      if (!table.grows()) {
        continue;
      }
      Index room = table.room();
      if (range.last > room) {
        table.push(blocks_.allocate());
        room += table.block_tokens();
      }
      fits_until = std::min(fits_until, room);
    }
    s.fits_until = s.appends_until = static_cast<Pos>(fits_until);
    s.owns_tails = true;
    s.lengths.reserve(range);
    return true;
  }
  /// Reserves rows in every group, and blocks for states: of lengths within the range, ascending, the last one its end.
  /// Empty, and nothing has changed, if there is no room. Throws std::bad_alloc; nothing has changed then.
  /// O(groups + blocks taken).
  ///   adds_cross   the rows of other inputs are reserved, too
  KVC_OUT_OF_LINE std::optional<Extension> extend_by_blocks(Sequence& s, PosRange range,
                                                            std::span<const WantedState> states, bool adds_cross) {
    Needs sum{static_cast<Index>(states.size()) * states_.blocks_of_one(), 0, 0};
    for (std::size_t g = 0; g < s.tables.size(); ++g) {
      needs_[g] = needs_of(s, g, range);
      sum.add(needs_[g]);
    }
    bool reclaims = false;
    if (sum.blocks + sum.copies > blocks_.available()) {
      // A tail that nothing else references need not be copied to be written: where there is no room, none is.
      if (sum.least() > blocks_.available()) {
        return std::nullopt;
      }
      reclaims = true;
    }
    for (std::size_t g = 0; g < s.tables.size(); ++g) {
      s.tables[g].reserve(needs_[g].blocks);
    }
    s.states.reserve(states.size());  // the last thing that can fail
    copies_.clear();
    if (!range.empty()) {  // known again when all groups have been looked at
      s.fits_until = max_pos;
      s.owns_tails = true;
    }
    for (std::size_t g = 0; g < s.tables.size(); ++g) {
      const Needs& needs = needs_[g];
      GroupTable& table = s.tables[g];
      if (needs.copies > 0) [[unlikely]] {
        write_tail(s, g, table.tail_rows(range.first), reclaims && needs.reclaimable > 0);
      }
      for (Index i = 0; i < needs.blocks; ++i) {
        table.push(blocks_.allocate());
      }
      if (table.grows() && !range.empty()) {
        // Nothing else references a block that was allocated now.
        s.owns_tails = s.owns_tails && (needs.blocks > 0 || blocks_.is_private(table.blocks().back()));
        s.fits_until = static_cast<Pos>(std::min(Index{s.fits_until}, table.room()));
      }
    }
    states_.add(s.states, states);
    if (!states_.empty()) {  // each extension takes blocks for them
      s.forget_tails();
    }
    s.appends_until = s.owns_tails ? s.fits_until : 0;
    s.adds_cross = adds_cross;
    if (s.has_replaced || adds_cross) {  // its commit does more
      s.quiet_until = 0;
    }
    s.lengths.reserve(range);
    return Extension{range, copies_.list()};
  }
  /// The reason for which extend_by_blocks has no room for this range, if it has none.
  ///   unit     tokens for which a block counts
  ///   states   lengths of which it has states
  [[nodiscard]] LimitMet why_not_extend(const Sequence& s, PosRange range, Pos unit, Index states) const noexcept {
    Needs needs{states * states_.blocks_of_one(), 0, 0};
    for (std::size_t g = 0; g < s.tables.size(); ++g) {
      needs.add(needs_of(s, g, range));
    }
    return needs.least() <= blocks_.available()
               ? LimitMet{}
               : LimitMet{Limit::pool, blocks_.available() * unit, needs.least() * unit};
  }

  /// The copies of all extensions.
  [[nodiscard]] const RowCopies& copies() const noexcept { return copies_; }

 private:
  /// The blocks that an extension takes.
  struct Needs {
    Index blocks = 0;       // new ones
    Index copies = 0;       // of shared tails
    Index reclaimable = 0;  // of these copies, those that can be avoided
    void add(const Needs& other) noexcept {
      blocks += other.blocks;
      copies += other.copies;
      reclaimable += other.reclaimable;
    }
    [[nodiscard]] Index least() const noexcept { return blocks + copies - reclaimable; }
  };

  /// Whether nothing else references the last blocks, which are writable otherwise. O(groups).
  [[nodiscard]] bool has_unshared_tails(const Sequence& s) const noexcept {
    for (const GroupTable& table : s.tables) {
      if (table.grows() && !blocks_.unshared(table.blocks().back())) [[unlikely]] {
        return false;
      }
    }
    return true;
  }

  [[nodiscard]] Needs needs_of(const Sequence& s, std::size_t g, PosRange range) const noexcept {
    const GroupTable& table = s.tables[g];
    Needs needs{table.end_for(table.grows() ? range.last : rules_.groups[g].cross_rows) - table.end(), 0, 0};
    const Pos rows = range.empty() || !table.grows() ? 0 : table.tail_rows(range.first);
    if (rows > 0 && !blocks_.writable(table.blocks().back(), rows)) [[unlikely]] {
      needs.copies = 1;
      needs.reclaimable = blocks_.reclaimable(table.blocks().back(), rows) ? 1 : 0;
    }
    return needs;
  }
  /// Makes the last block of a group, which is shared or cached, one that can be written behind its first `rows`.
  void write_tail(Sequence& s, std::size_t g, Pos rows, bool reclaims) noexcept {
    GroupTable& table = s.tables[g];
    BlockId& tail = table[table.end() - 1];
    if (reclaims) {
      blocks_.reclaim(tail);
      return;
    }
    s.replaced[g] = std::exchange(tail, blocks_.allocate());
    s.has_replaced = true;
    copies_.add({s.replaced[g], tail, 0, 0, rows, static_cast<std::int32_t>(g)});
  }

  Blocks& blocks_;
  StateBlocks<Blocks>& states_;
  const GroupRules& rules_;
  RowCopies copies_;
  std::vector<Needs> needs_;  // [groups] of the last extension
};

}  // namespace detail
}  // namespace v0
}  // namespace kvc
