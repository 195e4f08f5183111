// RegionPool: the slots of one layer group, and where the rows of a sequence lie in them.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "kvc/core/error.hpp"
#include "kvc/core/group_rule.hpp"
#include "kvc/core/limit.hpp"
#include "kvc/core/stats.hpp"
#include "kvc/core/types.hpp"
#include "kvc/policy/detail/group_sequences.hpp"
#include "kvc/policy/detail/region_list.hpp"
#include "kvc/policy/detail/region_sizes.hpp"
#include "kvc/policy/detail/retained_rows.hpp"
#include "kvc/policy/detail/ring.hpp"
#include "kvc/policy/detail/row_copies.hpp"

namespace kvc {
inline namespace v0 {
namespace detail {

/// The rows of one sequence in one group: a region for the kept positions, if there are any, and a ring for the others,
/// which is as long as the sequence where the group keeps everything.
struct RegionRows {
  RetainedRows retained;
  Region kept;         ///< of the kept positions
  Ring ring;           ///< of those behind them
  Region kept_before;  ///< both before the uncommitted extension; one that moved has both places
  Ring ring_before;

  /// Forgets everything.
  void clear() noexcept {
    retained.clear();
    kept = kept_before = {};
    ring = ring_before = {};
  }
};

/// The record of a sequence of GroupRegions.
struct RegionSequence : GroupSequence {
  std::vector<RegionRows> groups;
  Pos most = 0;  ///< the most tokens of this sequence

  /// Forgets everything, but not its memory.
  void reset() noexcept {
    GroupSequence::reset();
    for (RegionRows& rows : groups) {
      rows.clear();
    }
  }
};

/// Where the rows of a sequence will lie, and the region that is taken for them.
struct RegionPlace {
  Region taken;
  Region kept;
  Ring ring;
};

/// Finds places without taking them, so that all groups can be asked before one is changed; takes and frees them. A
/// sequence is a RegionSequence, whose rows in this group are meant. References the rules and options that it is made
/// of. O(holes) unless stated otherwise. No member but the constructor throws.
class RegionPool {
 public:
  /// Throws std::invalid_argument if the pool has 2^31 slots or more, std::bad_alloc.
  RegionPool(const GroupRules& rules, std::size_t group, const RegionOptions& options)
      : rules_(rules),
        options_(options),
        sizes_(rules, options),
        group_(group),
        slots_(checked_slots(sizes_.pool(group), group)),
        holes_(slots_, 3 * options.sequences) {}

  /// Slots of the pool. O(1).
  [[nodiscard]] Pos slots() const noexcept { return slots_; }
  /// Those that are free. O(1).
  [[nodiscard]] Index available() const noexcept { return holes_.available(); }
  /// Whether the group holds rows of another input.
  [[nodiscard]] bool is_cross() const noexcept { return rule().cross_rows > 0; }

  // --- a sequence that is there --------------------------------------------------------------------------------------

  /// Where the rows of an extension to `last` positions have room: where they are, in place if the slots behind the
  /// ring are free, or elsewhere.
  [[nodiscard]] std::optional<RegionPlace> place_of(const RegionSequence& s, Pos last) const noexcept {
    const RegionRows& rows = s.groups[group_];
    const Region now = rows.ring.region;
    const PosRange old = in_ring(s, s.lengths.committed);
    const Pos need = std::max(end_of(last) - old.first, 0);
    const Pos kept = kept_to_take(s, last);
    if (need <= now.size && kept == 0) {
      return RegionPlace{{}, rows.kept, rows.ring};
    }
    if (options_.reserves) {
      return std::nullopt;
    }
    const auto room_for = [&](Pos slots) { return is_cross() ? slots : rounded(slots, s.most); };
    if (now.size > 0) {
      // From the first row on, all of them will lie one behind the other: those that lie at the front of a ring that
      // wraps are copied, and stay where they are as well until the commit.
      const Pos offset = old.empty() ? 0 : rows.ring.offset(old.first);
      const Pos behind = holes_.free_at(now.start + now.size);
      if (behind >= Index{offset} + need - now.size) {
        const Pos size = std::min(now.size + behind, room_for(offset + need));
        return RegionPlace{
            {now.start + now.size, size - now.size}, rows.kept, {{now.start, size}, Index{old.first} - offset}};
      }
    }
    const std::optional<Region> found = holes_.find(kept + room_for(need), kept + need, options_.fit);
    if (!found) {
      return std::nullopt;
    }
    const Region ring{found->start + kept, found->size - kept};
    // The rows that the commit leaves must lie at the front, so that the slots behind it are free again.
    Index first = old.first;
    if (!is_cross()) {
      first = std::max(first, Index{rule().retained.first_seen(std::max(last - rules_.rewind, 0))});
    }
    return RegionPlace{*found, kept > 0 ? Region{found->start, kept} : rows.kept,
                       ring.size > 0 ? Ring{ring, first - ring.size} : Ring{}};
  }
  /// The limit that an extension for which place_of has no place meets.
  [[nodiscard]] LimitMet why_no_place(const RegionSequence& s, PosRange range) const noexcept {
    const Pos first = in_ring(s, s.lengths.committed).first;
    if (!options_.reserves) {
      return why_no_hole(kept_to_take(s, range.last) + std::max(end_of(range.last) - first, 0));
    }
    const Index fits = Index{first} + s.groups[group_].ring.region.size - range.first;
    return {Limit::pass_tokens, fits, range.size(), static_cast<Index>(group_)};
  }
  /// Takes the place of an extension. O(holes + copies).
  void extend(RegionSequence& s, const RegionPlace& place, RowCopies& copies) noexcept {
    RegionRows& rows = s.groups[group_];
    rows.kept_before = std::exchange(rows.kept, place.kept);
    rows.ring_before = std::exchange(rows.ring, place.ring);
    if (place.taken.size > 0) {
      holes_.allocate(place.taken);
      copy(rows.ring_before, rows.ring, in_ring(s, s.lengths.committed), copies);
    }
  }
  /// After the extension was committed: frees where the rows lay before, and what the group does not keep, but for
  /// `more` slots.
  void commit(RegionSequence& s, Pos more) noexcept {
    RegionRows& rows = s.groups[group_];
    if (rows.ring_before.region.start != rows.ring.region.start) {
      holes_.free(rows.ring_before.region);
    }
    rows.kept_before = {};
    rows.ring_before = {};
    if (!is_cross()) {
      rows.retained.retain(std::max(s.lengths.committed - rules_.rewind, 0));
      shrink(s, more);
    }
  }
  /// The rows lie where they lay before the extension.
  void rollback(RegionSequence& s) noexcept {
    RegionRows& rows = s.groups[group_];
    const Region before = rows.ring_before.region;
    const Region now = rows.ring.region;
    if (before.size > 0 && before.start == now.start) {
      holes_.free({now.start + before.size, now.size - before.size});
    } else {
      holes_.free(now);
    }
    if (rows.kept_before.size == 0) {
      holes_.free(rows.kept);
    }
    rows.kept = std::exchange(rows.kept_before, {});
    rows.ring = std::exchange(rows.ring_before, {});
  }
  /// After the sequence was cut to its committed length.
  void truncate(RegionSequence& s) noexcept {
    if (is_cross()) {
      return;
    }
    RegionRows& rows = s.groups[group_];
    rows.retained.cut(s.lengths.committed);
    shrink(s, 0);
    if (s.lengths.committed == 0 && !options_.reserves) {
      holes_.free(std::exchange(rows.kept, {}));
    }
  }
  /// Frees all slots of a sequence.
  void close(const RegionSequence& s) noexcept {
    holes_.free(s.groups[group_].kept);
    holes_.free(s.groups[group_].ring.region);
  }

  // --- a new sequence ------------------------------------------------------------------------------------------------

  /// Where a new sequence of at most `most` tokens has room: all that it may ever need (reserve), or the rows that it
  /// has as a fork at `at` of `parent`, if there is one.
  [[nodiscard]] std::optional<RegionPlace> place_of_new(Pos most, const RegionSequence* parent, Pos at) const noexcept {
    const Need need = need_of_new(most, parent, at);
    const Pos ring = options_.reserves || is_cross() ? need.ring : rounded(need.ring, most);
    const std::optional<Region> found = holes_.find(need.kept + ring, need.kept + need.ring, options_.fit);
    if (!found) {
      return std::nullopt;
    }
    return RegionPlace{*found, {found->start, need.kept}, {{found->start + need.kept, found->size - need.kept}, 0}};
  }
  /// The limit that place_of_new meets, if it finds no place.
  [[nodiscard]] LimitMet why_no_place_of_new(Pos most, const RegionSequence* parent, Pos at) const noexcept {
    const Need need = need_of_new(most, parent, at);
    const Index slots = Index{need.kept} + need.ring;
    return holes_.largest() < slots ? why_no_hole(slots) : LimitMet{};
  }
  /// Gives a new sequence its place.
  void open(RegionSequence& s, const RegionPlace& place) noexcept {
    RegionRows& rows = s.groups[group_];
    holes_.allocate(place.taken);
    rows.kept = place.kept.size > 0 ? place.kept : Region{};
    rows.ring = place.ring.region.size > 0 ? place.ring : Ring{};
    rows.ring.origin = rule().retained.kept;
  }
  /// Gives the fork at `at` of a sequence, which has a place, copies of its rows.
  void fork(const RegionSequence& parent, Pos at, RegionSequence& s, RowCopies& copies) noexcept {
    const RegionRows& from = parent.groups[group_];
    RegionRows& to = s.groups[group_];
    if (!is_cross()) {
      to.retained = from.retained;
      to.retained.cut(at);
      copy(from.kept.start, to.kept.start, std::min(at, rule().retained.kept), copies);
    }
    if (!options_.reserves) {
      to.ring.origin = to.retained.first();
    }
    copy(from.ring, to.ring, in_ring(parent, at), copies);
  }

  // --- reading -------------------------------------------------------------------------------------------------------

  /// f(SlotRun) for the positions of a range that are there: at most three. O(1).
  template <class F>
  void for_each_run(const RegionSequence& s, PosRange range, F&& f) const {
    const RegionRows& rows = s.groups[group_];
    if (const Pos last = std::min(range.last, rule().retained.kept); range.first < last) {
      f(SlotRun{BlockId{0}, rows.kept.start + range.first, last - range.first, range.first});
    }
    rows.ring.for_each_run({std::max(range.first, rows.retained.first()), range.last},
                           [&](Pos slot, Pos first, Pos count) { f(SlotRun{BlockId{0}, slot, count, first}); });
  }
  /// Adds the slots of the pool, which count as blocks.
  void add_to(Stats& stats) const noexcept {
    const Index taken = slots_ - holes_.available();
    stats.blocks_total += slots_;
    stats.blocks_free += holes_.available();
    stats.blocks_referenced += taken;
    stats.tokens_reserved += taken;
    stats.largest_free_run += holes_.largest();
  }
  /// Committed rows of a sequence. O(1).
  [[nodiscard]] Index stored(const RegionSequence& s) const noexcept {
    return Index{in_ring(s, s.lengths.committed).size()} +
           (is_cross() ? 0 : std::min(s.lengths.committed, rule().retained.kept));
  }
  /// Appends the regions of a sequence that has `length` positions in this group. Throws InvariantError if they have no
  /// room for its rows, std::bad_alloc.
  void verify(const RegionSequence& s, Pos length, std::vector<Region>& taken) const {
    const RegionRows& rows = s.groups[group_];
    if (length - rows.retained.first() > rows.ring.region.size ||
        std::min(length, rule().retained.kept) > rows.kept.size || !rows.retained.can_end_at(s.lengths.committed)) {
      throw_error(InvariantError("kvc: group " + std::to_string(group_) + " has no room for the rows of a sequence"));
    }
    const auto take = [&](Region region) {
      if (region.size > 0) {
        taken.push_back(region);
      }
    };
    take(rows.kept);
    take(rows.ring.region);
    if (s.lengths.uncommitted && rows.ring_before.region.start != rows.ring.region.start) {
      take(rows.ring_before.region);
    }
  }
  /// Regions and holes tile the pool. Throws InvariantError.
  void verify(std::vector<Region> taken) const { holes_.verify(std::move(taken)); }

 private:
  /// Slots of a new sequence.
  struct Need {
    Pos kept = 0;
    Pos ring = 0;
  };

  [[nodiscard]] static Pos checked_slots(Index slots, std::size_t group) {
    require(slots <= max_pos, concat({"slots in the pool of group ", std::to_string(group)}), slots,
            "less than 2^31: see config.sequences, max_tokens and pool_tokens");
    return static_cast<Pos>(slots);
  }
  [[nodiscard]] const GroupRule& rule() const noexcept { return rules_.groups[group_]; }

  /// So many slots of a ring, rounded up where the most tokens of the sequence allow it.
  [[nodiscard]] Pos rounded(Pos slots, Pos most) const noexcept {
    const Index up = ceil_div<Index>(slots, options_.growth_tokens) * options_.growth_tokens;
    return std::max(slots, static_cast<Pos>(std::min<Index>(up, most - sizes_.kept(group_, most))));
  }
  /// Where the positions of the group end that a sequence of `length` has.
  [[nodiscard]] Pos end_of(Pos length) const noexcept { return is_cross() ? rule().cross_rows : length; }
  /// The positions in the ring of a sequence that has `length` of them committed.
  [[nodiscard]] PosRange in_ring(const RegionSequence& s, Pos length) const noexcept {
    if (is_cross()) {
      return {0, s.has_cross ? rule().cross_rows : 0};
    }
    const Pos first = s.groups[group_].retained.first();
    return {first, std::max(first, length)};
  }
  /// Slots for kept positions that an extension to `last` must take.
  [[nodiscard]] Pos kept_to_take(const RegionSequence& s, Pos last) const noexcept {
    return s.groups[group_].kept.size == 0 && last > 0 ? sizes_.kept(group_, s.most) : 0;
  }
  [[nodiscard]] Need need_of_new(Pos most, const RegionSequence* parent, Pos at) const noexcept {
    if (options_.reserves) {
      const Pos kept = sizes_.kept(group_, most);
      return {kept, sizes_.capacity(group_, most) - kept};
    }
    return parent == nullptr ? Need{} : Need{at > 0 ? sizes_.kept(group_, most) : 0, in_ring(*parent, at).size()};
  }
  [[nodiscard]] LimitMet why_no_hole(Index need) const noexcept {
    const auto group = static_cast<Index>(group_);
    return holes_.available() < need ? LimitMet{Limit::pool, holes_.available(), need, group}
                                     : LimitMet{Limit::fragmentation, holes_.largest(), need, group};
  }

  /// Grow mode: frees the slots of a ring beside its rows, but for `more` of them, if the rows do not wrap.
  void shrink(RegionSequence& s, Pos more) noexcept {
    Ring& ring = s.groups[group_].ring;
    const PosRange rows = in_ring(s, s.lengths.committed);
    const Index wanted = std::min(Index{rows.size()} + more, Index{ring.region.size});
    const Pos size = rounded(static_cast<Pos>(wanted), s.most);
    if (options_.reserves || ring.region.size <= size) {
      return;
    }
    const Pos offset = rows.empty() ? 0 : ring.offset(rows.first);
    if (offset + rows.size() > ring.region.size) {
      return;
    }
    const Region all = ring.region;
    const Pos before = std::max(offset + rows.size() - size, 0);
    holes_.free({all.start, before});
    holes_.free({all.start + before + size, all.size - before - size});
    ring = size > 0 ? Ring{{all.start + before, size}, Index{rows.first} - (offset - before)} : Ring{};
  }

  void copy(Pos from, Pos to, Pos count, RowCopies& copies) const noexcept {
    if (count > 0) {
      copies.add({BlockId{0}, BlockId{0}, from, to, count, static_cast<std::int32_t>(group_)});
    }
  }
  void copy(const Ring& from, const Ring& to, PosRange rows, RowCopies& copies) const noexcept {
    for_each_move(from, to, rows, [&](Pos slot, Pos to_slot, Pos count) { copy(slot, to_slot, count, copies); });
  }

  const GroupRules& rules_;
  const RegionOptions& options_;
  RegionSizes sizes_;
  std::size_t group_;
  Pos slots_;
  RegionList holes_;
};

}  // namespace detail
}  // namespace v0
}  // namespace kvc
