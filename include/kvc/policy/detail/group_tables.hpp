// GroupTables: sequences with a table of blocks in each layer group, with sharing, copy-on-write, and release of what a
// group does not keep. Paged and PrefixShared both use it when they hold several groups.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <string_view>
#include <utility>
#include <vector>

#include "kvc/config.hpp"
#include "kvc/core/error.hpp"
#include "kvc/core/group_rule.hpp"
#include "kvc/core/limit.hpp"
#include "kvc/core/scope_guard.hpp"
#include "kvc/core/stats.hpp"
#include "kvc/core/types.hpp"
#include "kvc/policy/block_array.hpp"
#include "kvc/policy/concept.hpp"
#include "kvc/policy/detail/block_sizes.hpp"
#include "kvc/policy/detail/group_block_source.hpp"
#include "kvc/policy/detail/group_extender.hpp"
#include "kvc/policy/detail/group_sequences.hpp"
#include "kvc/policy/detail/restore_tables.hpp"
#include "kvc/policy/detail/state_blocks.hpp"
#include "kvc/policy/detail/state_table.hpp"
#include "kvc/policy/detail/table_audit.hpp"
#include "kvc/policy/detail/table_sequence.hpp"
#include "kvc/policy/group_table.hpp"
#include "kvc/policy/restore_options.hpp"

namespace kvc {
inline namespace v0 {
namespace detail {

/// Every operation is one of all groups: it counts what all of them need before it changes any. Rows are dropped at
/// commit, never before: a pass of many tokens sees all of them. `State` is what a policy keeps per sequence beside its
/// tables. Contracts are those of Policy unless they are stated.
template <class Blocks, class State>
  requires GroupBlockSource<Blocks, State>
class GroupTables : public GroupSequences<TableSequence<State>> {
  using Base = GroupSequences<TableSequence<State>>;

 public:
  using Sequence = TableSequence<State>;

  /// `keeps_slack`: a group holds a block more than it retains, see GroupTable.
  GroupTables(Blocks& blocks, const GroupRules& rules, const BlockSizes& sizes, bool keeps_slack)
      : Base(rules), blocks_(blocks), states_(blocks, sizes.states), extender_(blocks, states_, rules_) {
    for (std::size_t g = 0; g < rules_.groups.size(); ++g) {
      empty_.emplace_back(rules_.groups[g].retained, sizes.tokens[g], keeps_slack ? sizes.tokens[g] : 0,
                          !this->is_cross(g));
    }
  }
  GroupTables(const GroupTables&) = delete;  // extender_ refers to states_ and rules_
  GroupTables& operator=(const GroupTables&) = delete;

  [[nodiscard]] Pos block_tokens(Index group) const noexcept { return empty_[at_group(group)].block_tokens(); }

  [[nodiscard]] SeqId insert() {
    const SeqId seq = sequences_.insert();
    Sequence& s = sequences_.at(seq);
    if (s.tables.empty()) {  // its first use
      ScopeGuard undo([&] { sequences_.erase(seq); });
      s.replaced.assign(empty_.size(), no_block);
      s.tables = empty_;
      s.states = states_.table();
      undo.dismiss();
    }
    return seq;
  }

  /// Reserves rows in every group, and blocks for states. O(groups + blocks taken); O(1), nearly always, for one token.
  std::optional<Extension> try_extend(SeqId seq, Pos count, std::size_t tokens) {
    Sequence& s = sequences_.at(seq);
    if (s.appends(count, tokens)) [[likely]] {
      return Extension{s.lengths.append(), {}};
    }
    return try_extend(seq, count, tokens, {});
  }
  KVC_OUT_OF_LINE std::optional<Extension> try_extend(SeqId seq, Pos count, std::size_t tokens,
                                                      std::span<const Pos> states_at) {
    Sequence& s = sequences_.at(seq);
    const PosRange range = s.lengths.checked_extension(seq, count, tokens);
    return try_reserve(s, range, wanted_states(range, states_at));
  }
  /// The reason for which try_extend has no room for this range, if it has none.
  [[nodiscard]] LimitMet why_not_extend(const Sequence& s, PosRange range, Pos unit) const noexcept {
    return why_not_extend(s, range, unit, range.empty() ? 0 : 1);
  }
  /// Reserves the rows and states of a sequence that was computed elsewhere: see RestoresSequences. O(groups + blocks).
  ///   grain   the states of its last multiple are for later prompts: see KeptStates
  std::optional<Extension> try_restore(SeqId seq, const RestoreOptions& options, Pos grain = 0) {
    require_valid(options, rules_);
    sequences_.at(seq).lengths.check_restore(seq);
    Sequence* const like = options.like ? &sequences_.at(*options.like) : nullptr;
    Sequence& s = sequences_.at(seq);
    const std::span<const WantedState> states =
        states_.restored(options.states, std::max(options.length - rules_.rewind, 0), grain);
    const StateTable* const their_states = like == nullptr ? nullptr : &like->states;
    s.states.reserve(states.size());
    if (!detail::restore_tables(blocks_, rules_, s, like, options, states_.blocks_to_restore(states, their_states))) {
      return std::nullopt;
    }
    states_.restore(s.states, states, their_states);
    s.adds_cross = this->wants_cross(s);
    s.quiet_until = 0;
    s.lengths.reserve({0, options.length});
    return Extension{{0, options.length}, {}};
  }

  /// The reserved positions count, and what no group keeps is released. Throws std::invalid_argument if nothing is
  /// uncommitted. O(1) nearly always; otherwise O(groups), and of a group that drops blocks O(blocks that it holds).
  void commit(SeqId seq) {
    Sequence& s = sequences_.at(seq);
    s.lengths.check_uncommitted(seq);
    if (s.lengths.reserved < s.quiet_until) [[likely]] {
      s.lengths.commit();
      return;
    }
    commit_and_drop(s);
  }
  void rollback(SeqId seq) noexcept {
    Sequence* const found = sequences_.find(seq);
    if (found == nullptr || !found->lengths.uncommitted) {
      return;
    }
    Sequence& s = *found;
    for (std::size_t g = 0; g < s.tables.size(); ++g) {
      GroupTable& table = s.tables[g];
      if (!table.grows()) {
        release_to(s, table, s.has_cross ? table.blocks().size() : 0);
        continue;
      }
      release_to(s, table, table.size_at(s.lengths.committed));
      if (s.replaced[g] != no_block) {
        blocks_.release(std::exchange(table[table.end() - 1], s.replaced[g]), s.state);
        s.replaced[g] = no_block;
      }
    }
    states_.cut(s.states, s.lengths.committed, s.state);
    s.adds_cross = false;
    s.has_replaced = false;
    s.forget_tails();
    s.lengths.rollback();
    if (s.lengths.committed == 0) {
      s.forget_rows();
    }
  }

  /// Throws std::invalid_argument unless a sequence that ends at `length` still finds all that it needs, in every
  /// group.
  void require_retained(const Sequence& s, Pos length, std::string_view argument) const {
    for (std::size_t g = 0; g < s.tables.size(); ++g) {
      s.tables[g].rows(this->settled(s)).require_end_at(length, g, argument);
    }
    s.states.require_end_at(length, argument);
  }

  /// A new sequence that shares the blocks of the first `at` positions. O(blocks shared).
  SeqId fork(SeqId parent, Pos at) {
    sequences_.at(parent).lengths.check_fork(at);
    require_retained(sequences_.at(parent), at, "at");
    const SeqId seq = insert();
    ScopeGuard undo([&] { sequences_.erase(seq); });
    const Sequence& p = sequences_.at(parent);
    Sequence& s = sequences_.at(seq);
    for (std::size_t g = 0; g < s.tables.size(); ++g) {
      if (s.tables[g].grows()) {
        s.tables[g].assign(p.tables[g], at, this->settled(p));
      } else if (p.has_cross) {
        s.tables[g].assign(p.tables[g], rules_.groups[g].cross_rows, 0);
      }
    }
    s.states.reserve(1);
    undo.dismiss();
    states_.share(p.states, at, s.states);
    sequences_.at(parent).share_tails();
    s.has_cross = p.has_cross;
    for (const GroupTable& table : s.tables) {
      for (const BlockId block : table.blocks()) {
        blocks_.ref_referenced(block);
      }
    }
    s.lengths.set(at);
    return seq;
  }

  /// O(groups + blocks released).
  void truncate(SeqId seq, Pos length) {
    Sequence& s = sequences_.at(seq);
    s.lengths.check_truncate(seq, length);
    require_retained(s, length, "length");
    for (GroupTable& table : s.tables) {
      if (table.grows()) {
        table.settle(this->settled(s));
        release_to(s, table, table.size_at(length));
        table.cut(length);
      }
    }
    states_.cut(s.states, length, s.state);
    s.forget_tails();
    s.drops_at = 0;
    s.quiet_until = 0;
    s.lengths.set(length);
  }

  /// O(blocks).
  void close(SeqId seq) {
    require(sequences_.contains(seq), "seq", seq, "an open sequence");
    rollback(seq);
    Sequence& s = sequences_.at(seq);
    for (GroupTable& table : s.tables) {
      release_to(s, table, 0);
    }
    states_.cut(s.states, 0, s.state);
    sequences_.erase(seq);
  }
  /// Takes back an `insert`. The sequence must reference no block.
  void erase_empty(SeqId seq) noexcept { sequences_.erase(seq); }

  /// References the blocks of all tables.
  void ref_blocks(const Sequence& s) noexcept {
    for (const GroupTable& table : s.tables) {
      for (const BlockId block : table.blocks()) {
        blocks_.ref(block);
      }
    }
    for (const BlockId block : s.states.blocks()) {
      blocks_.ref(block);
    }
  }

  // --- what a sequence has: see GroupMembers -------------------------------------------------------------------------

  [[nodiscard]] Pos retained_from(const Sequence& s, Index group) const noexcept {
    return s.tables[at_group(group)].rows(this->settled(s)).retained_from();
  }
  [[nodiscard]] GroupBlocks group_blocks(const Sequence& s, Index group) const noexcept {
    return s.tables[at_group(group)].group_blocks();
  }
  template <class F>
  void for_each_run(const Sequence& s, Index group, PosRange range, F&& f) const {
    this->check_range(s, group, range);
    if (!s.tables.empty()) {  // otherwise there are states alone
      s.tables[at_group(group)].for_each_run(range, this->settled(s), f);
    }
  }
  [[nodiscard]] StateSizes state_sizes(Index kind) const { return states_.sizes(kind); }
  [[nodiscard]] std::span<const BlockId> state_blocks(const Sequence& s, Index kind, Pos length) const {
    return states_.of(s.states, kind, length);
  }

  // --- counts --------------------------------------------------------------------------------------------------------

  [[nodiscard]] Index copied_tokens() const noexcept { return extender_.copies().tokens(); }
  /// Fills in what sequences and their blocks say of one group; `stats.block_tokens` stays. O(blocks + table entries).
  void add_to(Stats& stats, Index group) const {
    detail::add_referenced_blocks(*this, blocks_.size(), at_group(group), stats);
  }
  /// The same of all groups together.
  void add_to(Stats& stats) const {
    for (Index group = 0; group < this->groups(); ++group) {
      add_to(stats, group);
    }
    detail::add_referenced_states(*this, blocks_.size(), stats);
    stats.blocks_total = blocks_.size();
    stats.sequences = sequences_.size();
    stats.copies = extender_.copies().count();
    stats.copied_tokens = copied_tokens();
  }
  /// Checks each sequence against its own counts; returns the references to each block. Throws InvariantError.
  [[nodiscard]] BlockArray<std::int32_t> verify() const { return detail::count_references(*this, blocks_.size()); }

 protected:
  // --- the steps of an extension, for a policy that does more between them -------------------------------------------

  ///   states   lengths of which the extension has states, if there are recurrent layers
  [[nodiscard]] LimitMet why_not_extend(const Sequence& s, PosRange range, Pos unit, Index states) const noexcept {
    return extender_.why_not_extend(s, range, unit, states);
  }

  /// See WantedStates::list. Valid until the next call.
  [[nodiscard]] std::span<const WantedState> wanted_states(PosRange range, std::span<const Pos> asked,
                                                           std::span<const Pos> more = {}) {
    return states_.empty() && asked.empty() ? std::span<const WantedState>() : states_.wanted(range, asked, more);
  }
  /// Any extension: see GroupExtender::extend_by_blocks.
  std::optional<Extension> try_reserve(Sequence& s, PosRange range, std::span<const WantedState> states) {
    if (extender_.fits(s, range)) {
      s.lengths.reserve(range);
      return Extension{range, {}};
    }
    const bool adds_cross = this->wants_cross(s);
    if (states.empty() && !adds_cross && extender_.extend_by_one_block(s, range)) [[likely]] {
      return Extension{range, {}};
    }
    return extender_.extend_by_blocks(s, range, states, adds_cross);
  }
  /// The lengths count; shared tails that were copied are released. `drop` follows.
  void settle(Sequence& s) noexcept {
    s.lengths.commit();
    if (!s.has_replaced && !s.adds_cross) [[likely]] {
      return;
    }
    s.has_replaced = false;
    s.has_cross = s.has_cross || s.adds_cross;
    s.adds_cross = false;
    for (BlockId& block : s.replaced) {
      if (block != no_block) {
        blocks_.release(std::exchange(block, no_block), s.state);
      }
    }
  }
  /// Releases the states that no query begins from any more: see StateTable::drop. f(blocks of a length) before they
  /// are released. O(states of the sequence).
  template <class F>
  void drop_states(Sequence& s, Pos grain, F&& f) noexcept {
    states_.drop(s.states, this->settled(s), grain, s.state, f);
  }
  /// Drops what no group keeps; f(block) releases each block. O(groups), and of a group that drops blocks O(blocks that
  /// it holds).
  template <class F>
  void drop(Sequence& s, F&& f) noexcept {
    const Pos settled = this->settled(s);
    if (settled < s.drops_at) {
      return;
    }
    Pos drops_at = max_pos;
    for (GroupTable& table : s.tables) {
      if (table.grows()) {
        table.drop(settled, f);
        drops_at = std::min(drops_at, table.drops_at());
      }
    }
    s.drops_at = drops_at;
  }
  /// The least committed length with which a settled sequence can drop something; 0 where there are states.
  [[nodiscard]] Pos quiet_until(const Sequence& s) const noexcept {
    return this->has_states() ? 0 : static_cast<Pos>(std::min(Index{s.drops_at} + rules_.rewind, Index{max_pos}));
  }

  using Base::rules_;
  using Base::sequences_;

 private:
  KVC_OUT_OF_LINE void commit_and_drop(Sequence& s) noexcept {
    settle(s);
    drop_states(s, 0, [](std::span<const BlockId>) {});
    drop(s, [&](BlockId block) { blocks_.release(block, s.state); });
    s.quiet_until = quiet_until(s);
  }
  [[nodiscard]] static constexpr std::size_t at_group(Index group) noexcept { return static_cast<std::size_t>(group); }

  /// Last block first: of a prefix that is kept for later, the end goes before the beginning.
  void release_to(Sequence& s, GroupTable& table, std::size_t size) noexcept {
    table.shrink(size, [&](BlockId block) { blocks_.release(block, s.state); });
  }

  Blocks& blocks_;
  StateBlocks<Blocks> states_;
  GroupExtender<Blocks, Sequence> extender_;
  std::vector<GroupTable> empty_;  // [groups]
};

}  // namespace detail
}  // namespace v0
}  // namespace kvc
