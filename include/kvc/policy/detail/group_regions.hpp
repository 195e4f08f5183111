// GroupRegions: sequences with regions of slots in each layer group. Contiguous uses it when it holds several groups,
// or one that drops rows.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
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
#include "kvc/policy/block_array.hpp"
#include "kvc/policy/block_pool.hpp"
#include "kvc/policy/concept.hpp"
#include "kvc/policy/detail/group_sequences.hpp"
#include "kvc/policy/detail/region_list.hpp"
#include "kvc/policy/detail/region_pool.hpp"
#include "kvc/policy/detail/region_sizes.hpp"
#include "kvc/policy/detail/row_copies.hpp"
#include "kvc/policy/detail/state_blocks.hpp"
#include "kvc/policy/detail/state_table.hpp"
#include "kvc/policy/restore_options.hpp"

namespace kvc {
inline namespace v0 {
namespace detail {

/// Each group has a pool of its own. Every operation is one of all groups: it finds room in all of them before it
/// changes any. Rows are dropped at commit, never before: a pass of many tokens sees all of them. Contracts are those
/// of Policy unless they are stated.
class GroupRegions : public GroupSequences<RegionSequence> {
 public:
  using Sequence = RegionSequence;

  /// Throws std::invalid_argument if a pool has 2^31 slots or more, std::bad_alloc.
  GroupRegions(const GroupRules& rules, const RegionOptions& options)
      : GroupSequences(rules),
        options_(options),
        state_pool_{BlockPool(state_slots())},
        states_(state_pool_, sizes_of_states(), true) {
    for (std::size_t g = 0; g < rules_.groups.size(); ++g) {
      pools_.emplace_back(rules_, g, options_);
      empty_.push_back({RetainedRows(rules_.groups[g].retained), {}, {}, {}, {}});
    }
    found_.resize(pools_.size());
    copies_.reserve(4 * pools_.size());  // of a fork: kept positions, and a ring into another one
  }
  GroupRegions(const GroupRegions&) = delete;  // pools_ refer to rules_ and options_
  GroupRegions& operator=(const GroupRegions&) = delete;

  /// Slots in the pool of a group, which is one block.
  [[nodiscard]] Pos block_tokens(Index group) const noexcept { return pools_[at_group(group)].slots(); }
  /// Free slots of all groups.
  [[nodiscard]] Index available() const noexcept {
    Index slots = 0;
    for (const RegionPool& pool : pools_) {
      slots += pool.available();
    }
    return slots;
  }

  /// A new sequence of at most `most` tokens. O(holes).
  std::optional<SeqId> try_open(Pos most) { return try_insert(most, nullptr, 0); }
  /// The limit that try_open would meet.
  [[nodiscard]] LimitMet why_not_open(Pos most) const { return why_not_insert(most, nullptr, 0); }

  /// Reserves rows in every group, and a block for the states of each length that is wanted. O(holes + states).
  std::optional<Extension> try_extend(SeqId seq, PosRange range, std::span<const Pos> states_at = {}) {
    Sequence& s = sequences_.at(seq);
    const std::span<const WantedState> wanted = states_.wanted(range, states_at);
    const Index lengths = std::ssize(s.states.lengths()) + std::ssize(wanted);
    require(lengths <= options_.states, "states_at.size()", states_at.size(),
            concat({"so many that the sequence has states of at most ", std::to_string(options_.states),
                    " lengths (config.states)"}));
    if (range.last > s.most) {
      return std::nullopt;
    }
    s.states.reserve(wanted.size());  // the last thing that can fail
    if (!find_all([&](const RegionPool& pool) { return pool.place_of(s, range.last); })) {
      return std::nullopt;
    }
    copies_.clear();
    for (std::size_t g = 0; g < pools_.size(); ++g) {
      pools_[g].extend(s, found_[g], copies_);
    }
    states_.add(s.states, wanted);
    s.adds_cross = wants_cross(s);
    s.lengths.reserve(range);
    return Extension{range, copies_.list()};
  }
  /// Reserves the rows and states of a sequence that was computed elsewhere: see RestoresSequences. It has room for one
  /// state more, so that it can go on. O(holes + states).
  std::optional<Extension> try_restore(SeqId seq, const RestoreOptions& options) {
    Sequence& s = *sequences_.find(seq);
    const Pos settled = std::max(options.length - rules_.rewind, 0);
    std::vector<Pos> states;
    for (const WantedState& state : states_.restored(options.states, settled, 0, options_.states - 1)) {
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
    for (const RegionPool& pool : pools_) {
      if (pool.place_of(s, range.last)) {
        continue;
      }
      const LimitMet met = pool.why_no_place(s, range);
      if (!options_.reserves) {
        return met;
      }
      least = least.limit == Limit::none || met.allowed < least.allowed ? met : least;
    }
    return least;
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
    for (RegionPool& pool : pools_) {
      pool.commit(s, next);
    }
    states_.drop(s.states, settled(s), 0, s, [](std::span<const BlockId>) {});
  }
  void rollback(SeqId seq) noexcept {
    Sequence* const s = sequences_.find(seq);
    if (s == nullptr || !s->lengths.uncommitted) {
      return;
    }
    for (RegionPool& pool : pools_) {
      pool.rollback(*s);
    }
    states_.cut(s->states, s->lengths.committed, *s);
    s->adds_cross = false;
    s->lengths.rollback();
    if (s->lengths.committed == 0) {
      forget_rows(*s);
    }
  }

  /// Throws std::invalid_argument unless a sequence that ends at `length` still finds all that it needs, in every
  /// group.
  void require_retained(const Sequence& s, Pos length, std::string_view argument) const {
    for (std::size_t g = 0; g < s.groups.size(); ++g) {
      s.groups[g].retained.require_end_at(length, g, argument);
    }
    s.states.require_end_at(length, argument);
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
    states_.share(p.states, at, s.states);
    for (RegionPool& pool : pools_) {
      pool.fork(p, at, s, copies_);
    }
    s.lengths.set(at);
    return Forked{*seq, copies_.list()};
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
    states_.cut(s.states, length, s);
    s.lengths.set(length);
    for (RegionPool& pool : pools_) {
      pool.truncate(s);
    }
  }

  /// Forgets the sequence, and what it has reserved. O(holes).
  void close(SeqId seq) {
    require(sequences_.contains(seq), "seq", seq, "an open sequence");
    rollback(seq);
    Sequence& s = sequences_.at(seq);
    states_.cut(s.states, 0, s);
    for (RegionPool& pool : pools_) {
      pool.close(s);
    }
    sequences_.erase(seq);
  }

  // --- what a sequence has: see GroupMembers -------------------------------------------------------------------------

  [[nodiscard]] Pos retained_from(const Sequence& s, Index group) const noexcept {
    return s.groups[at_group(group)].retained.retained_from();
  }
  template <class F>
  void for_each_run(const Sequence& s, Index group, PosRange range, F&& f) const {
    check_range(s, group, range);
    if (!pools_.empty()) {  // otherwise there are states alone
      pools_[at_group(group)].for_each_run(s, range, f);
    }
  }
  [[nodiscard]] StateSizes state_sizes(Index kind) const { return states_.sizes(kind); }
  [[nodiscard]] std::span<const BlockId> state_blocks(const Sequence& s, Index kind, Pos length) const {
    return states_.of(s.states, kind, length);
  }

  // --- counts --------------------------------------------------------------------------------------------------------

  [[nodiscard]] Index copied_tokens() const noexcept { return copies_.tokens(); }
  /// The slots of one group, and the rows in them. O(sequences + holes).
  void add_to(Stats& stats, Index group) const {
    const RegionPool& pool = pools_[at_group(group)];
    pool.add_to(stats);
    for_each([&](const Sequence& s) { stats.tokens_stored += pool.stored(s); });
  }
  /// The same of all groups together.
  void add_to(Stats& stats) const {
    for (Index group = 0; group < groups(); ++group) {
      add_to(stats, group);
    }
    stats.sequences = size();
    stats.copies = copies_.count();
    stats.copied_tokens = copies_.tokens();
  }

  /// Regions and holes tile the pool of each group, and regions have room for what they hold. Throws InvariantError.
  void verify() const {
    BlockArray<std::int32_t> references(state_pool_.blocks.size(), 0);
    for_each([&](const Sequence& s) {
      if (s.lengths.committed > s.lengths.reserved || s.lengths.reserved > s.most ||
          (!s.lengths.uncommitted && (s.lengths.committed != s.lengths.reserved || s.adds_cross))) {
        throw_error(InvariantError("kvc: the lengths of a sequence contradict each other"));
      }
      if (!s.states.can_end_at(s.lengths.committed) || std::ssize(s.states.lengths()) > options_.states) {
        throw_error(InvariantError("kvc: a sequence lacks a recurrent state, or has too many"));
      }
      for (const BlockId block : s.states.blocks()) {
        ++references[block];
      }
    });
    state_pool_.blocks.verify(references);
    for (std::size_t g = 0; g < pools_.size(); ++g) {
      std::vector<Region> taken;
      for_each([&](const Sequence& s) { pools_[g].verify(s, positions(s, static_cast<Index>(g)), taken); });
      pools_[g].verify(std::move(taken));
    }
  }

 private:
  /// A block has the states of all layers after one length: block i of each kind's pool.
  struct StatePool {
    BlockPool blocks;
    [[nodiscard]] BlockId allocate() noexcept { return blocks.allocate(); }
    void ref_referenced(BlockId block) noexcept { blocks.ref(block); }
    void release(BlockId block, const Sequence&) noexcept {
      if (blocks.unref(block) == 0) {
        blocks.free(block);
      }
    }
  };

  [[nodiscard]] static constexpr std::size_t at_group(Index group) noexcept { return static_cast<std::size_t>(group); }
  /// Blocks for states. Throws std::invalid_argument if they are too many.
  [[nodiscard]] Index state_slots() const {
    if (!has_states()) {
      return 1;
    }
    require(options_.states <= max_pos / options_.sequences, "config.states", options_.states,
            "less than 2^31 / config.sequences");
    return options_.sequences * options_.states;
  }
  [[nodiscard]] std::vector<StateSizes> sizes_of_states() const {
    std::vector<StateSizes> sizes;
    for (const StateRule& rule : rules_.states) {
      sizes.push_back({rule.layers, 1, state_pool_.blocks.size()});
    }
    return sizes;
  }
  /// Of a sequence of no positions.
  static void forget_rows(Sequence& s) noexcept {
    for (RegionRows& rows : s.groups) {
      rows.retained.clear();
    }
  }

  /// Whether find(pool) finds a place in the pools of all groups; they are in found_ then.
  template <class F>
  [[nodiscard]] bool find_all(F&& find) noexcept {
    for (std::size_t g = 0; g < pools_.size(); ++g) {
      const std::optional<RegionPlace> place = find(std::as_const(pools_[g]));
      if (!place) {
        return false;
      }
      found_[g] = *place;
    }
    return true;
  }

  [[nodiscard]] const Sequence& checked_fork(SeqId parent, Pos at) const {
    const Sequence& p = sequences_.at(parent);
    p.lengths.check_fork(at);
    require_retained(p, at, "at");
    return p;
  }
  /// A new sequence with its first regions. `parent` may move.
  std::optional<SeqId> try_insert(Pos most, const Sequence* parent, Pos at) {
    if (size() >= options_.sequences ||
        !find_all([&](const RegionPool& pool) { return pool.place_of_new(most, parent, at); })) {
      return std::nullopt;
    }
    const SeqId seq = sequences_.insert();
    Sequence& s = sequences_.at(seq);
    if (s.most == 0) {  // its first use
      ScopeGuard undo([&] { sequences_.erase(seq); });
      s.groups = empty_;
      s.states = states_.table();
      s.states.reserve(2);
      undo.dismiss();
    }
    s.most = most;
    for (std::size_t g = 0; g < pools_.size(); ++g) {
      pools_[g].open(s, found_[g]);
    }
    return seq;
  }
  [[nodiscard]] LimitMet why_not_insert(Pos most, const Sequence* parent, Pos at) const noexcept {
    if (size() >= options_.sequences) {
      return {Limit::sequences, options_.sequences, size() + 1};
    }
    for (const RegionPool& pool : pools_) {
      if (const LimitMet met = pool.why_no_place_of_new(most, parent, at); met.limit != Limit::none) {
        return met;
      }
    }
    return {};
  }

  RegionOptions options_;
  StatePool state_pool_;
  StateBlocks<StatePool> states_;
  std::vector<RegionPool> pools_;   // [groups]
  std::vector<RegionRows> empty_;   // [groups]
  std::vector<RegionPlace> found_;  // [groups], of the operation in hand
  RowCopies copies_;
};

}  // namespace detail
}  // namespace v0
}  // namespace kvc
