// GroupRegions: sequences with regions of slots in each layer group. What Contiguous is made of when it holds several
// groups, or one that drops rows.
//
// Each group has a pool of its own. In it a sequence has a region for the kept positions, if there are any, and a ring
// for the others, which is as long as the sequence where the group keeps everything. Every operation is one of all
// groups: it finds room in all of them before it changes any. Rows are dropped at commit, never before: a pass of many
// tokens sees all of them.
#pragma once

#include <algorithm>
#include <cstddef>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "kvc/core/error.hpp"
#include "kvc/core/group_rule.hpp"
#include "kvc/core/limit.hpp"
#include "kvc/core/scope_guard.hpp"
#include "kvc/core/stats.hpp"
#include "kvc/core/types.hpp"
#include "kvc/policy/block_pool.hpp"
#include "kvc/policy/concept.hpp"
#include "kvc/policy/detail/region_list.hpp"
#include "kvc/policy/detail/region_sizes.hpp"
#include "kvc/policy/detail/retained_rows.hpp"
#include "kvc/policy/detail/ring.hpp"
#include "kvc/policy/detail/state_table.hpp"
#include "kvc/policy/restore_options.hpp"
#include "kvc/policy/sequence_table.hpp"

namespace kvc {
inline namespace v0 {
namespace detail {

class GroupRegions {
 public:
  /// The rows of one sequence in one group.
  struct Rows {
    RetainedRows retained;
    Region kept;         // of the kept positions
    Ring ring;           // of those behind them
    Region kept_before;  // both before the uncommitted extension; one that moved has both places
    Ring ring_before;
  };
  struct Sequence {
    SequenceLengths lengths;
    std::vector<Rows> groups;
    StateTable states;        // of recurrent layers: of each length one block for all kinds
    Pos most = 0;             // the most tokens of this sequence
    bool has_cross = false;   // rows of other inputs are committed
    bool adds_cross = false;  // the uncommitted extension reserves them
    void reset() noexcept {
      lengths = {};
      for (Rows& rows : groups) {
        rows.retained.clear();
        rows.kept = rows.kept_before = {};
        rows.ring = rows.ring_before = {};
      }
      states.clear();
      has_cross = adds_cross = false;
    }
  };

  /// Throws std::invalid_argument if a pool has 2^31 slots or more, std::bad_alloc.
  GroupRegions(const GroupRules& rules, const RegionOptions& options)
      : rules_(rules), options_(options), sizes_(rules_, options_), states_(state_slots()) {
    for (std::size_t g = 0; g < rules_.groups.size(); ++g) {
      const Index slots = sizes_.pool(g);
      require(slots <= max_pos, concat({"slots in the pool of group ", std::to_string(g)}), slots,
              "less than 2^31: see config.sequences, max_tokens and pool_tokens");
      pools_.push_back({static_cast<Pos>(slots), RegionList(static_cast<Pos>(slots), 3 * options_.sequences)});
      empty_.push_back({RetainedRows(rules_.groups[g].retained), {}, {}, {}, {}});
      has_cross_groups_ = has_cross_groups_ || rules_.groups[g].cross_rows > 0;
    }
    found_.resize(pools_.size());
    copies_.reserve(4 * pools_.size());  // of a fork: kept positions, and a ring into another one
  }
  GroupRegions(const GroupRegions&) = delete;  // sizes_ refers to rules_ and options_
  GroupRegions& operator=(const GroupRegions&) = delete;

  [[nodiscard]] Index groups() const noexcept { return static_cast<Index>(pools_.size()); }
  /// Slots in the pool of a group.
  [[nodiscard]] Pos slots(Index group) const noexcept { return pools_[at_group(group)].slots; }
  /// Free slots of all groups.
  [[nodiscard]] Index available() const noexcept {
    Index slots = 0;
    for (const Pool& pool : pools_) {
      slots += pool.holes.available();
    }
    return slots;
  }
  [[nodiscard]] Sequence& at(SeqId seq) { return sequences_.at(seq); }
  [[nodiscard]] const Sequence& at(SeqId seq) const { return sequences_.at(seq); }
  [[nodiscard]] bool contains(SeqId seq) const noexcept { return sequences_.contains(seq); }
  [[nodiscard]] Index size() const noexcept { return sequences_.size(); }
  template <class F>
  void for_each_handle(F&& f) const {
    sequences_.for_each_handle(f);
  }

  /// A new sequence of at most `most` tokens. O(holes).
  std::optional<SeqId> try_open(Pos most) { return try_insert(most, nullptr, 0); }
  /// The limit that try_open would meet.
  [[nodiscard]] LimitMet why_not_open(Pos most) const { return why_not_insert(most, nullptr, 0); }

  /// Reserves rows in every group, and a block for the states of each length that is wanted. O(holes + states).
  std::optional<Extension> try_extend(SeqId seq, PosRange range, std::span<const Pos> states_at = {}) {
    Sequence& s = sequences_.at(seq);
    const std::span<const WantedState> wanted = wanted_.list(has_states(), range, states_at, {});
    const Index held = std::ssize(s.states.lengths()) + std::ssize(wanted);
    require(held <= options_.states, "states_at.size()", states_at.size(),
            concat({"so many that the sequence has states of at most ", std::to_string(options_.states),
                    " lengths (config.states)"}));
    if (range.last > s.most) {
      return std::nullopt;
    }
    s.states.reserve(wanted.size());  // the last thing that can fail
    for (std::size_t g = 0; g < pools_.size(); ++g) {
      if (const std::optional<Place> place = place_of(s, g, range.last)) {
        found_[g] = *place;
      } else {
        return std::nullopt;
      }
    }
    copies_.clear();
    for (std::size_t g = 0; g < pools_.size(); ++g) {
      Rows& rows = s.groups[g];
      rows.kept_before = std::exchange(rows.kept, found_[g].kept);
      rows.ring_before = std::exchange(rows.ring, found_[g].ring);
      if (found_[g].taken.size > 0) {
        pools_[g].holes.allocate(found_[g].taken);
        copy(g, rows.ring_before, rows.ring, in_ring(s, g, s.lengths.committed));
      }
    }
    for (const WantedState& state : wanted) {
      push_states(s, state, states_.allocate());
    }
    s.adds_cross = has_cross_groups_ && !s.has_cross;
    s.lengths.reserve(range);
    return Extension{range, copies_};
  }
  /// Reserves the rows and states of a sequence that was computed elsewhere: see RestoresSequences. It has room for one
  /// state more, so that it can go on. O(holes + states).
  std::optional<Extension> try_restore(SeqId seq, const RestoreOptions& options) {
    Sequence& s = *sequences_.find(seq);
    const Pos settled = std::max(options.length - rules_.rewind, 0);
    std::vector<Pos> states;
    for (const WantedState& state : wanted_.restored(options.states, settled, 0, options_.states - 1)) {
      states.push_back(state.length);
    }
    for (std::size_t g = 0; g < pools_.size(); ++g) {
      if (!is_cross(g)) {
        s.groups[g].retained.retain(settled);
        s.groups[g].retained.lose(missing_of(rules_, g, options).last);
      }
    }
    ScopeGuard undo([&] { forget_rows(s); });
    std::optional<Extension> extension = try_extend(seq, {0, options.length}, states);
    undo.dismiss();
    if (!extension) {
      forget_rows(s);
    }
    return extension;
  }
  /// The limit that try_extend would meet.
  [[nodiscard]] LimitMet why_not_extend(const Sequence& s, PosRange range) const noexcept {
    if (range.last > s.most) {
      return {Limit::max_tokens, s.most, range.last};
    }
    LimitMet least;
    for (std::size_t g = 0; g < pools_.size(); ++g) {
      if (place_of(s, g, range.last)) {
        continue;
      }
      const Pos first = in_ring(s, g, s.lengths.committed).first;
      if (!options_.reserves) {
        const Pos need = end_of(g, range.last) - first;
        return why_no_hole(g, kept_to_take(s, g, range.last) + std::max(need, 0));
      }
      const Index fits = Index{first} + s.groups[g].ring.region.size - range.first;
      if (least.limit == Limit::none || fits < least.allowed) {
        least = {Limit::pass_tokens, fits, range.size(), static_cast<Index>(g)};
      }
    }
    return least;
  }

  /// The positions of a group that the uncommitted extension reserves: those of the sequence, or all rows of another
  /// input where the extension is the first.
  [[nodiscard]] PosRange extension(const Sequence& s, Index group) const noexcept {
    const Pos cross = rules_.groups[at_group(group)].cross_rows;
    return cross > 0 ? PosRange{0, s.adds_cross ? cross : 0} : PosRange{s.lengths.committed, s.lengths.reserved};
  }
  /// Positions of a group that can be read: committed and reserved ones.
  [[nodiscard]] Pos positions(const Sequence& s, Index group) const noexcept {
    const Pos cross = rules_.groups[at_group(group)].cross_rows;
    return cross > 0 ? (s.has_cross || s.adds_cross ? cross : 0) : s.lengths.reserved;
  }

  /// The reserved positions count, and what no group keeps is dropped. Throws std::invalid_argument if nothing is
  /// uncommitted. O(holes).
  void commit(SeqId seq) {
    Sequence& s = sequences_.at(seq);
    s.lengths.check_uncommitted(seq);
    // A ring keeps room for another extension like this one, up to growth_tokens: decoding, with or without
    // speculation, then finds its room in place.
    const Pos next = std::clamp(s.lengths.reserved - s.lengths.committed, Pos{1}, options_.growth_tokens);
    s.lengths.commit();
    s.has_cross = s.has_cross || s.adds_cross;
    s.adds_cross = false;
    for (std::size_t g = 0; g < pools_.size(); ++g) {
      Rows& rows = s.groups[g];
      if (rows.ring_before.region.start != rows.ring.region.start) {
        pools_[g].holes.free(rows.ring_before.region);
      }
      rows.kept_before = {};
      rows.ring_before = {};
      if (!is_cross(g)) {
        rows.retained.retain(std::max(s.lengths.committed - rules_.rewind, 0));
        shrink(s, g, next);
      }
    }
    s.states.drop(std::max(s.lengths.committed - rules_.rewind, 0), 0,
                  [&](std::span<const BlockId> blocks) { release_states(blocks); });
  }
  void rollback(SeqId seq) noexcept {
    Sequence* const s = sequences_.find(seq);
    if (s == nullptr || !s->lengths.uncommitted) {
      return;
    }
    for (std::size_t g = 0; g < pools_.size(); ++g) {
      Rows& rows = s->groups[g];
      const Region before = rows.ring_before.region;
      const Region now = rows.ring.region;
      if (before.size > 0 && before.start == now.start) {
        pools_[g].holes.free({now.start + before.size, now.size - before.size});
      } else {
        pools_[g].holes.free(now);
      }
      if (rows.kept_before.size == 0) {
        pools_[g].holes.free(rows.kept);
      }
      rows.kept = std::exchange(rows.kept_before, {});
      rows.ring = std::exchange(rows.ring_before, {});
    }
    s->states.cut(s->lengths.committed, [&](std::span<const BlockId> blocks) { release_states(blocks); });
    s->adds_cross = false;
    s->lengths.rollback();
    if (s->lengths.committed == 0) {
      forget_rows(*s);
    }
  }

  /// Throws unless a sequence that ends at `length` still finds all that it needs, in every group.
  void require_retained(const Sequence& s, Pos length, std::string_view argument) const {
    for (std::size_t g = 0; g < s.groups.size(); ++g) {
      s.groups[g].retained.require_end_at(length, g, argument);
    }
    s.states.require_end_at(length, argument);
  }

  [[nodiscard]] bool has_states() const noexcept { return !rules_.states.empty(); }
  [[nodiscard]] std::span<const Pos> state_lengths(const Sequence& s) const noexcept { return s.states.lengths(); }
  /// Whether a sequence has states after `length` tokens when all that is reserved is committed. O(states).
  [[nodiscard]] bool keeps_state(const Sequence& s, Pos length) const noexcept {
    return s.states.keeps(length, std::max(s.lengths.reserved - rules_.rewind, 0), 0);
  }
  /// Throws std::invalid_argument if there are no such states.
  [[nodiscard]] std::span<const BlockId> state_blocks(const Sequence& s, Index kind, Pos length) const {
    require_between(kind, Index{0}, std::ssize(rules_.states) - 1, "kind");
    const std::span<const BlockId> all = s.states.blocks(length);
    require(!all.empty(), "length", length, "one of which the sequence has recurrent states: see state_lengths");
    return all.subspan(at_group(kind), 1);
  }
  [[nodiscard]] StateSizes state_sizes(Index kind) const {
    require_between(kind, Index{0}, std::ssize(rules_.states) - 1, "kind");
    return {rules_.states[at_group(kind)].layers, 1, states_.size()};
  }

  /// A new sequence with copies of what the first `at` positions have. O(holes).
  std::optional<Forked> try_fork(SeqId parent, Pos at) {
    const std::optional<SeqId> seq = try_insert(sequences_.at(parent).most, &checked_fork(parent, at), at);
    if (!seq) {
      return std::nullopt;
    }
    const Sequence& p = sequences_.at(parent);  // the insertion may have moved it
    Sequence& s = sequences_.at(*seq);
    copies_.clear();
    s.has_cross = p.has_cross;
    if (const std::span<const BlockId> blocks = p.states.blocks(at); !blocks.empty()) {
      states_.ref(blocks[0]);
      push_states(s, {at}, blocks[0]);
    }
    for (std::size_t g = 0; g < pools_.size(); ++g) {
      const Rows& from = p.groups[g];
      Rows& to = s.groups[g];
      if (!is_cross(g)) {
        to.retained = from.retained;
        to.retained.cut(at);
        copy(g, from.kept.start, to.kept.start, std::min(at, rules_.groups[g].retained.kept));
      }
      if (!options_.reserves) {
        to.ring.origin = to.retained.first();
      }
      copy(g, from.ring, to.ring, in_ring(p, g, at));
    }
    s.lengths.set(at);
    return Forked{*seq, copies_};
  }
  /// The limit that try_fork would meet. Throws as that does.
  [[nodiscard]] LimitMet why_not_fork(SeqId parent, Pos at) const {
    return why_not_insert(sequences_.at(parent).most, &checked_fork(parent, at), at);
  }

  /// Forgets the positions from `length` on. O(holes).
  void truncate(SeqId seq, Pos length) {
    Sequence& s = sequences_.at(seq);
    s.lengths.check_truncate(seq, length);
    require_retained(s, length, "length");
    s.states.cut(length, [&](std::span<const BlockId> blocks) { release_states(blocks); });
    s.lengths.set(length);
    for (std::size_t g = 0; g < pools_.size(); ++g) {
      if (is_cross(g)) {
        continue;
      }
      Rows& rows = s.groups[g];
      rows.retained.cut(length);
      shrink(s, g, 0);
      if (length == 0 && !options_.reserves) {
        pools_[g].holes.free(std::exchange(rows.kept, {}));
      }
    }
  }

  /// Forgets the sequence, and what it has reserved. O(holes).
  void close(SeqId seq) {
    require(sequences_.contains(seq), "seq", seq, "an open sequence");
    rollback(seq);
    Sequence& s = sequences_.at(seq);
    s.states.cut(0, [&](std::span<const BlockId> blocks) { release_states(blocks); });
    for (std::size_t g = 0; g < pools_.size(); ++g) {
      pools_[g].holes.free(s.groups[g].kept);
      pools_[g].holes.free(s.groups[g].ring.region);
    }
    sequences_.erase(seq);
  }

  [[nodiscard]] Pos retained_from(const Sequence& s, Index group) const noexcept {
    return s.groups[at_group(group)].retained.retained_from();
  }
  /// f(SlotRun) for the retained positions of a range of a group: at most three.
  template <class F>
  void for_each_run(SeqId seq, Index group, PosRange range, F&& f) const {
    const Sequence& s = sequences_.at(seq);
    const Pos end = s.groups.empty() ? s.lengths.reserved : positions(s, group);
    require(0 <= range.first && range.first <= range.last && range.last <= end, "range", range,
            "within the positions of the sequence");
    if (s.groups.empty()) {
      return;  // states alone
    }
    const Rows& rows = s.groups[at_group(group)];
    if (const Pos last = std::min(range.last, rows.retained.rule().kept); range.first < last) {
      f(SlotRun{BlockId{0}, rows.kept.start + range.first, last - range.first, range.first});
    }
    rows.ring.for_each_run({std::max(range.first, rows.retained.first()), range.last},
                           [&](Pos slot, Pos first, Pos count) { f(SlotRun{BlockId{0}, slot, count, first}); });
  }

  [[nodiscard]] Index copied_tokens() const noexcept { return copied_tokens_; }

  /// The slots of one group, and the rows in them. O(sequences + holes).
  void add_to(Stats& stats, Index group) const {
    const Pool& pool = pools_[at_group(group)];
    stats.blocks_total += pool.slots;
    stats.blocks_free += pool.holes.available();
    stats.blocks_referenced += pool.slots - pool.holes.available();
    stats.tokens_reserved += pool.slots - pool.holes.available();
    stats.largest_free_run += pool.holes.largest();
    sequences_.for_each([&](const Sequence& s) {
      const PosRange ring = in_ring(s, at_group(group), s.lengths.committed);
      stats.tokens_stored += ring.size();
      if (!is_cross(at_group(group))) {
        stats.tokens_stored += std::min(s.lengths.committed, rules_.groups[at_group(group)].retained.kept);
      }
    });
  }
  /// The same of all groups together.
  void add_to(Stats& stats) const {
    for (Index group = 0; group < groups(); ++group) {
      add_to(stats, group);
    }
    stats.sequences = sequences_.size();
    stats.copies = copy_count_;
    stats.copied_tokens = copied_tokens_;
  }

  /// Regions and holes tile the pool of each group, and regions have room for what they hold. Throws InvariantError.
  void verify() const {
    for (std::size_t g = 0; g < pools_.size(); ++g) {
      std::vector<Region> taken;
      const auto take = [&](Region region) {
        if (region.size > 0) {
          taken.push_back(region);
        }
      };
      sequences_.for_each([&](const Sequence& s) {
        const Rows& rows = s.groups[g];
        const Pos length = positions(s, static_cast<Index>(g));
        if (s.lengths.committed > s.lengths.reserved || s.lengths.reserved > s.most ||
            (!s.lengths.uncommitted && (s.lengths.committed != s.lengths.reserved || s.adds_cross)) ||
            length - rows.retained.first() > rows.ring.region.size ||
            std::min(length, rules_.groups[g].retained.kept) > rows.kept.size ||
            !rows.retained.can_end_at(s.lengths.committed)) {
          throw_error(InvariantError("kvc: group " + std::to_string(g) + " has no room for the rows of a sequence"));
        }
        take(rows.kept);
        take(rows.ring.region);
        if (s.lengths.uncommitted && rows.ring_before.region.start != rows.ring.region.start) {
          take(rows.ring_before.region);
        }
      });
      pools_[g].holes.verify(std::move(taken));
    }
    BlockArray<std::int32_t> references(states_.size(), 0);
    sequences_.for_each([&](const Sequence& s) {
      if (!s.states.can_end_at(s.lengths.committed) || std::ssize(s.states.lengths()) > options_.states) {
        throw_error(InvariantError("kvc: a sequence lacks a recurrent state, or has too many"));
      }
      for (const Pos length : s.states.lengths()) {
        ++references[s.states.blocks(length)[0]];
      }
    });
    states_.verify(references);
  }

 private:
  struct Pool {
    Pos slots;
    RegionList holes;
  };
  /// Where the rows of a sequence will lie, and the region that is taken for them.
  struct Place {
    Region taken;
    Region kept;
    Ring ring;
  };
  /// Slots of a new sequence.
  struct Need {
    Pos kept = 0;
    Pos ring = 0;
  };

  [[nodiscard]] static constexpr std::size_t at_group(Index group) noexcept { return static_cast<std::size_t>(group); }
  [[nodiscard]] bool is_cross(std::size_t g) const noexcept { return rules_.groups[g].cross_rows > 0; }
  /// Blocks for states. Throws std::invalid_argument if they are too many.
  [[nodiscard]] Index state_slots() const {
    if (rules_.states.empty()) {
      return 1;
    }
    require(options_.states <= max_pos / options_.sequences, "config.states", options_.states,
            "less than 2^31 / config.sequences");
    return options_.sequences * options_.states;
  }
  void push_states(Sequence& s, const WantedState& state, BlockId block) noexcept {
    s.states.push(state, [&] { return block; });
  }
  void release_states(std::span<const BlockId> blocks) noexcept {
    if (states_.unref(blocks[0]) == 0) {
      states_.free(blocks[0]);
    }
  }
  /// Of a sequence of no positions.
  static void forget_rows(Sequence& s) noexcept {
    for (Rows& rows : s.groups) {
      rows.retained.clear();
    }
  }

  /// So many slots of a ring, rounded up where the most tokens of the sequence allow it.
  [[nodiscard]] Pos rounded(std::size_t g, Pos slots, Pos most) const noexcept {
    const Index up = ceil_div<Index>(slots, options_.growth_tokens) * options_.growth_tokens;
    return std::max(slots, static_cast<Pos>(std::min<Index>(up, most - sizes_.kept(g, most))));
  }
  /// Where the positions of a group end that a sequence of `length` has.
  [[nodiscard]] Pos end_of(std::size_t g, Pos length) const noexcept {
    return is_cross(g) ? rules_.groups[g].cross_rows : length;
  }
  /// The positions in the ring of a sequence that has `length` of them committed.
  [[nodiscard]] PosRange in_ring(const Sequence& s, std::size_t g, Pos length) const noexcept {
    if (is_cross(g)) {
      return {0, s.has_cross ? rules_.groups[g].cross_rows : 0};
    }
    const Pos first = s.groups[g].retained.first();
    return {first, std::max(first, length)};
  }
  /// Slots for kept positions that an extension to `last` must take.
  [[nodiscard]] Pos kept_to_take(const Sequence& s, std::size_t g, Pos last) const noexcept {
    return s.groups[g].kept.size == 0 && last > 0 ? sizes_.kept(g, s.most) : 0;
  }

  /// Where the rows of an extension to `last` positions have room: where they are, in place if the slots behind the ring
  /// are free, or elsewhere.
  [[nodiscard]] std::optional<Place> place_of(const Sequence& s, std::size_t g, Pos last) const noexcept {
    const Rows& rows = s.groups[g];
    const Region now = rows.ring.region;
    const PosRange old = in_ring(s, g, s.lengths.committed);
    const Pos need = std::max(end_of(g, last) - old.first, 0);
    const Pos kept = kept_to_take(s, g, last);
    if (need <= now.size && kept == 0) {
      return Place{{}, rows.kept, rows.ring};
    }
    if (options_.reserves) {
      return std::nullopt;
    }
    const auto room_for = [&](Pos slots) { return is_cross(g) ? slots : rounded(g, slots, s.most); };
    const RegionList& holes = pools_[g].holes;
    if (now.size > 0) {
      // From the first row on, all of them will lie one behind the other: those that lie at the front of a ring that
      // wraps are copied, and stay where they are as well until the commit.
      const Pos offset = old.empty() ? 0 : rows.ring.offset(old.first);
      const Pos behind = holes.free_at(now.start + now.size);
      if (behind >= Index{offset} + need - now.size) {
        const Pos size = std::min(now.size + behind, room_for(offset + need));
        return Place{
            {now.start + now.size, size - now.size}, rows.kept, {{now.start, size}, Index{old.first} - offset}};
      }
    }
    const std::optional<Region> found = holes.find(kept + room_for(need), kept + need, options_.fit);
    if (!found) {
      return std::nullopt;
    }
    const Region ring{found->start + kept, found->size - kept};
    // The rows that the commit leaves must lie at the front, so that the slots behind it are free again.
    Index first = old.first;
    if (!is_cross(g)) {
      first = std::max(first, Index{rules_.groups[g].retained.first_seen(std::max(last - rules_.rewind, 0))});
    }
    return Place{*found, kept > 0 ? Region{found->start, kept} : rows.kept,
                 ring.size > 0 ? Ring{ring, first - ring.size} : Ring{}};
  }

  /// Grow mode: frees the slots of a ring beside its rows, but for `more` of them, if the rows do not wrap.
  void shrink(Sequence& s, std::size_t g, Pos more) noexcept {
    Ring& ring = s.groups[g].ring;
    const PosRange rows = in_ring(s, g, s.lengths.committed);
    const Index wanted = std::min(Index{rows.size()} + more, Index{ring.region.size});
    const Pos size = rounded(g, static_cast<Pos>(wanted), s.most);
    if (options_.reserves || ring.region.size <= size) {
      return;
    }
    const Pos offset = rows.empty() ? 0 : ring.offset(rows.first);
    if (offset + rows.size() > ring.region.size) {
      return;
    }
    RegionList& holes = pools_[g].holes;
    const Region all = ring.region;
    const Pos before = std::max(offset + rows.size() - size, 0);
    holes.free({all.start, before});
    holes.free({all.start + before + size, all.size - before - size});
    ring = size > 0 ? Ring{{all.start + before, size}, Index{rows.first} - (offset - before)} : Ring{};
  }

  [[nodiscard]] const Sequence& checked_fork(SeqId parent, Pos at) const {
    const Sequence& p = sequences_.at(parent);
    p.lengths.check_fork(at);
    require_retained(p, at, "at");
    return p;
  }
  /// The slots that a new sequence must have in a group: all that it may ever need (reserve), or those of the rows that
  /// it has as a fork of `parent`, if there is one.
  [[nodiscard]] Need need_of(std::size_t g, Pos most, const Sequence* parent, Pos at) const noexcept {
    if (options_.reserves) {
      const Pos kept = sizes_.kept(g, most);
      return {kept, sizes_.capacity(g, most) - kept};
    }
    return parent == nullptr ? Need{} : Need{at > 0 ? sizes_.kept(g, most) : 0, in_ring(*parent, g, at).size()};
  }

  /// A new sequence with its first regions. `parent` may move.
  std::optional<SeqId> try_insert(Pos most, const Sequence* parent, Pos at) {
    if (sequences_.size() >= options_.sequences) {
      return std::nullopt;
    }
    for (std::size_t g = 0; g < pools_.size(); ++g) {
      const Need need = need_of(g, most, parent, at);
      const Pos ring = options_.reserves || is_cross(g) ? need.ring : rounded(g, need.ring, most);
      const std::optional<Region> found = pools_[g].holes.find(need.kept + ring, need.kept + need.ring, options_.fit);
      if (!found) {
        return std::nullopt;
      }
      found_[g] = {*found, {found->start, need.kept}, {{found->start + need.kept, found->size - need.kept}, 0}};
    }
    const SeqId seq = sequences_.insert();
    Sequence& s = sequences_.at(seq);
    if (s.most == 0) {  // its first use
      ScopeGuard undo([&] { sequences_.erase(seq); });
      s.groups = empty_;
      s.states = StateTable(std::ssize(rules_.states));
      s.states.reserve(2);
      undo.dismiss();
    }
    s.most = most;
    for (std::size_t g = 0; g < pools_.size(); ++g) {
      Rows& rows = s.groups[g];
      pools_[g].holes.allocate(found_[g].taken);
      rows.kept = found_[g].kept.size > 0 ? found_[g].kept : Region{};
      rows.ring = found_[g].ring.region.size > 0 ? found_[g].ring : Ring{};
      rows.ring.origin = rules_.groups[g].retained.kept;
    }
    return seq;
  }
  [[nodiscard]] LimitMet why_not_insert(Pos most, const Sequence* parent, Pos at) const noexcept {
    if (sequences_.size() >= options_.sequences) {
      return {Limit::sequences, options_.sequences, sequences_.size() + 1};
    }
    for (std::size_t g = 0; g < pools_.size(); ++g) {
      const Need need = need_of(g, most, parent, at);
      if (pools_[g].holes.largest() < Index{need.kept} + need.ring) {
        return why_no_hole(g, Index{need.kept} + need.ring);
      }
    }
    return {};
  }
  [[nodiscard]] LimitMet why_no_hole(std::size_t g, Index need) const noexcept {
    const RegionList& holes = pools_[g].holes;
    return holes.available() < need ? LimitMet{Limit::pool, holes.available(), need, static_cast<Index>(g)}
                                    : LimitMet{Limit::fragmentation, holes.largest(), need, static_cast<Index>(g)};
  }

  void copy(std::size_t g, Pos from, Pos to, Pos count) noexcept {
    if (count > 0) {
      copies_.push_back({BlockId{0}, BlockId{0}, from, to, count, static_cast<std::int32_t>(g)});
      ++copy_count_;
      copied_tokens_ += count;
    }
  }
  void copy(std::size_t g, const Ring& from, const Ring& to, PosRange rows) noexcept {
    for_each_move(from, to, rows, [&](Pos slot, Pos to_slot, Pos count) { copy(g, slot, to_slot, count); });
  }

  GroupRules rules_;
  RegionOptions options_;
  RegionSizes sizes_;
  bool has_cross_groups_ = false;
  BlockPool states_;          // a block has the states of all layers after one length
  WantedStates wanted_;       // of the last extension
  std::vector<Pool> pools_;   // [groups]
  std::vector<Rows> empty_;   // [groups]
  std::vector<Place> found_;  // [groups], of the operation in hand
  SequenceTable<Sequence> sequences_;
  std::vector<RowCopy> copies_;  // of the last operation that copied rows
  Index copy_count_ = 0;
  Index copied_tokens_ = 0;
};

}  // namespace detail
}  // namespace v0
}  // namespace kvc
