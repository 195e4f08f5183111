// GroupTables: sequences with a table of blocks in each layer group, with sharing, copy-on-write, and release of what a
// group does not keep. What Paged and PrefixShared have in common when they hold several groups.
//
// Every operation is one of all groups: it counts what all of them need before it changes any. Rows are dropped at
// commit, never before: a pass of many tokens sees all of them.
#pragma once

#include <algorithm>
#include <cstddef>
#include <optional>
#include <span>
#include <string>
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
#include "kvc/policy/detail/state_table.hpp"
#include "kvc/policy/group_table.hpp"
#include "kvc/policy/restore_options.hpp"
#include "kvc/policy/sequence_table.hpp"

namespace kvc {
inline namespace v0 {
namespace detail {

/// Where blocks come from. All noexcept.
///
///   expression             meaning
///   size()                 blocks in all
///   available()            blocks that `allocate` could give, one after the other
///   allocate(group)        a free or evicted block, with one reference; requires available() > 0
///   ref(b)                 one reference more
///   release(b, state)      one reference less, of the sequence with this state
///   ref_referenced(b)      as ref, for a block that has a reference
///   unshared(b)            whether b has one reference
///   is_private(b)          whether it has one reference, and no prefix that is found can give it another
///   writable(b, rows)      whether a sequence that has the first `rows` rows of b may write those behind them
///   reclaimable(b, rows)   whether it may after reclaim(b)
///   reclaim(b)             makes b, which has one reference, writable; takes no block, available() stays
template <class B, class State>
concept GroupBlockSource = requires(B blocks, const B c, BlockId block, Index group, Pos rows, const State& state) {
  { c.size() } noexcept -> std::same_as<Index>;
  { c.available() } noexcept -> std::same_as<Index>;
  { blocks.allocate(group) } noexcept -> std::same_as<BlockId>;
  { blocks.ref(block) } noexcept;
  { blocks.ref_referenced(block) } noexcept;
  { c.unshared(block) } noexcept -> std::same_as<bool>;
  { c.is_private(block) } noexcept -> std::same_as<bool>;
  { blocks.release(block, state) } noexcept;
  { c.writable(block, rows) } noexcept -> std::same_as<bool>;
  { c.reclaimable(block, rows) } noexcept -> std::same_as<bool>;
  { blocks.reclaim(block) } noexcept;
};

/// `State` is what a policy keeps per sequence beside its tables.
template <class Blocks, class State>
  requires GroupBlockSource<Blocks, State>
class GroupTables {
 public:
  struct Sequence {
    SequenceLengths lengths;
    std::vector<GroupTable> tables;  // [groups]
    std::vector<BlockId> replaced;   // [groups] shared tails that the uncommitted extension has copied
    StateTable states;               // of recurrent layers
    Pos fits_until = 0;         // length that all tails have room for; 0: it is not known whether they are writable
    Pos drops_at = 0;           // committed length, less the reserve, with which a group can drop a block
    bool owns_tails = false;    // nothing else references a tail of these, or can come to do so but by a fork
    bool has_cross = false;     // rows of other inputs are committed
    bool has_replaced = false;  // one of them at least
    bool adds_cross = false;    // the uncommitted extension reserves them
    State state{};
    void reset() noexcept {
      lengths = {};
      fits_until = 0;
      drops_at = 0;
      owns_tails = false;
      for (GroupTable& table : tables) {
        table.clear();
      }
      std::ranges::fill(replaced, no_block);
      states.clear();
      has_replaced = false;
      has_cross = false;
      adds_cross = false;
      if constexpr (requires { state.reset(); }) {
        state.reset();
      } else {
        state = {};
      }
    }
  };

  /// `keeps_slack`: a group holds a block more than it retains, see GroupTable.
  GroupTables(Blocks& blocks, const GroupRules& rules, const BlockSizes& sizes, bool keeps_slack)
      : blocks_(blocks),
        rules_(rules),
        keeps_slack_(keeps_slack),
        states_(sizes.states),
        state_blocks_(sizes.state_blocks()) {
    for (std::size_t g = 0; g < rules_.groups.size(); ++g) {
      empty_.emplace_back(rules_.groups[g].retained, sizes.tokens[g], slack_of(sizes.tokens[g]),
                          rules_.groups[g].cross_rows == 0);
      has_cross_groups_ = has_cross_groups_ || rules_.groups[g].cross_rows > 0;
    }
    copies_.reserve(empty_.size());
    needs_.resize(empty_.size());
  }

  [[nodiscard]] const GroupRules& rules() const noexcept { return rules_; }
  [[nodiscard]] Index groups() const noexcept { return static_cast<Index>(empty_.size()); }
  [[nodiscard]] const GroupRule& rule(Index group) const noexcept { return rules_.groups[at_group(group)]; }
  [[nodiscard]] bool is_cross(Index group) const noexcept { return rule(group).cross_rows > 0; }
  [[nodiscard]] Pos block_tokens(Index group) const noexcept { return empty_[at_group(group)].block_tokens(); }

  [[nodiscard]] SeqId insert() {
    const SeqId seq = sequences_.insert();
    Sequence& s = sequences_.at(seq);
    if (s.tables.empty()) {
      ScopeGuard undo([&] { sequences_.erase(seq); });
      s.replaced.assign(empty_.size(), no_block);
      s.tables = empty_;
      s.states = StateTable(state_blocks_);
      undo.dismiss();
    }
    return seq;
  }
  [[nodiscard]] Sequence& at(SeqId seq) { return sequences_.at(seq); }
  [[nodiscard]] const Sequence& at(SeqId seq) const { return sequences_.at(seq); }
  [[nodiscard]] bool contains(SeqId seq) const noexcept { return sequences_.contains(seq); }
  [[nodiscard]] Index size() const noexcept { return sequences_.size(); }

  /// Reserves rows in every group, and blocks for states: of lengths within the range, ascending, the last one its end.
  /// O(groups + blocks taken).
  std::optional<Extension> try_extend(Sequence& s, PosRange range, std::span<const WantedState> states = {}) {
    if (fits(s, range)) [[likely]] {
      s.lengths.reserve(range);
      return Extension{range, {}};
    }
    return extend_by_blocks(s, range, states);
  }
  /// Whether the last blocks have room for a range, and can be written. Nearly always for one token.
  [[nodiscard]] bool fits(const Sequence& s, PosRange range) const noexcept {
    return range.last <= s.fits_until && !range.empty() && (s.owns_tails || has_unshared_tails(s));
  }
  KVC_OUT_OF_LINE std::optional<Extension> extend_by_blocks(Sequence& s, PosRange range,
                                                            std::span<const WantedState> states) {
    if (extend_by_one_block(s, range)) [[likely]] {
      return Extension{range, {}};
    }
    Needs sum{static_cast<Index>(states.size()) * state_blocks_, 0, 0};
    for (std::size_t g = 0; g < s.tables.size(); ++g) {
      needs_[g] = needs_of(s, g, range);
      sum.add(needs_[g]);
    }
    bool reclaims = false;
    if (sum.blocks + sum.copies > blocks_.available()) {
      // A tail that nothing else references need not be copied to be written: where there is no room, none is.
      if (sum.blocks + sum.copies - sum.reclaimable > blocks_.available()) {
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
      const auto group = static_cast<Index>(g);
      if (needs.copies > 0) [[unlikely]] {
        write_tail(s, g, table.tail_rows(range.first), reclaims && needs.reclaimable > 0);
      }
      for (Index i = 0; i < needs.blocks; ++i) {
        table.push(blocks_.allocate(group));
      }
      if (table.grows() && !range.empty()) {
        // Nothing else references a block that was allocated now.
        s.owns_tails = s.owns_tails && (needs.blocks > 0 || blocks_.is_private(table.blocks().back()));
        s.fits_until = static_cast<Pos>(std::min(Index{s.fits_until}, Index{table.end()} * table.block_tokens()));
      }
    }
    for (const WantedState& state : states) {
      s.states.push(state, [&] { return blocks_.allocate(groups()); });
    }
    if (has_states()) {  // each extension takes blocks for them
      s.fits_until = 0;
    }
    s.adds_cross = has_cross_groups_ && !s.has_cross;
    s.lengths.reserve(range);
    return Extension{range, copies_};
  }

  /// The reason for which try_extend has no room for this range, if it has none.
  [[nodiscard]] LimitMet why_not_extend(const Sequence& s, PosRange range, Pos unit) const noexcept {
    Needs needs{range.empty() ? 0 : state_blocks_, 0, 0};
    for (std::size_t g = 0; g < s.tables.size(); ++g) {
      needs.add(needs_of(s, g, range));
    }
    const Index least = needs.blocks + needs.copies - needs.reclaimable;
    return least <= blocks_.available() ? LimitMet{} : LimitMet{Limit::pool, blocks_.available() * unit, least * unit};
  }

  /// Reserves the rows and states of a sequence that was computed elsewhere: see RestoresSequences. O(groups + blocks).
  ///   grain   the states of its last multiple are for later prompts: see KeptStates
  std::optional<Extension> try_restore(SeqId seq, const RestoreOptions& options, Pos grain = 0) {
    require_valid(options, rules_);
    sequences_.at(seq).lengths.check_restore(seq);
    Sequence* const like = options.like ? &sequences_.at(*options.like) : nullptr;
    Sequence& s = sequences_.at(seq);
    ScopeGuard undo([&] { forget_rows(s); });
    const bool adds_cross = has_cross_groups_ && !s.has_cross;
    const auto shares = [&](std::size_t g, Pos number) {
      if (like == nullptr) {
        return false;
      }
      const GroupTable& table = like->tables[g];
      if (!table.grows()) {
        return options.shares_cross && like->has_cross;
      }
      const Index last = std::min((Index{number} + 1) * table.block_tokens(), Index{options.length});
      return last <= std::min(options.shared, like->lengths.committed) && table.has(number) &&
             table.is_complete(number);
    };
    const Pos settled = std::max(options.length - rules_.rewind, 0);
    const std::span<const WantedState> states = wanted_.restored(options.states, settled, grain);
    const auto shared_state = [&](const WantedState& state) {
      return like != nullptr && state.is_shared ? like->states.blocks(state.length) : std::span<const BlockId>();
    };
    s.states.reserve(states.size());
    Index taken = 0;
    for (const WantedState& state : states) {
      taken += shared_state(state).empty() ? state_blocks_ : 0;
    }
    for (std::size_t g = 0; g < s.tables.size(); ++g) {
      GroupTable& table = s.tables[g];
      if (!table.grows() && !adds_cross) {
        continue;
      }
      const Pos length = table.grows() ? options.length : rules_.groups[g].cross_rows;
      Index blocks = 0;
      if (table.grows()) {
        table.restore(length, settled, missing_of(rules_, g, options));
      } else {
        table.restore(length, 0, {0, 0});
      }
      table.for_each_number([&](Pos number) { blocks += shares(g, number) ? 0 : 1; });
      taken += blocks;
    }
    if (taken > blocks_.available()) {
      return std::nullopt;
    }
    undo.dismiss();
    for (std::size_t g = 0; g < s.tables.size(); ++g) {
      GroupTable& table = s.tables[g];
      if (!table.grows() && !adds_cross) {
        continue;
      }
      table.for_each_number([&](Pos number) {
        if (shares(g, number)) {
          table[number] = like->tables[g][number];
          blocks_.ref_referenced(table[number]);
          like->owns_tails = false;
        } else {
          table[number] = blocks_.allocate(static_cast<Index>(g));
        }
      });
    }
    for (const WantedState& state : states) {
      const std::span<const BlockId> theirs = shared_state(state);
      auto next = theirs.begin();
      s.states.push(state, [&] {
        if (theirs.empty()) {
          return blocks_.allocate(groups());
        }
        blocks_.ref_referenced(*next);
        return *next++;
      });
    }
    s.adds_cross = adds_cross;
    s.lengths.reserve({0, options.length});
    return Extension{{0, options.length}, {}};
  }

  /// The positions of a group that the uncommitted extension reserves: those of the sequence, or all rows of another
  /// input where the extension is the first.
  [[nodiscard]] PosRange extension(const Sequence& s, Index group) const noexcept {
    if (is_cross(group)) {
      return {0, s.adds_cross ? rule(group).cross_rows : 0};
    }
    return {s.lengths.committed, s.lengths.reserved};
  }
  /// Positions of a group that can be read: committed and reserved ones.
  [[nodiscard]] Pos positions(const Sequence& s, Index group) const noexcept {
    if (is_cross(group)) {
      return s.has_cross || s.adds_cross ? rule(group).cross_rows : 0;
    }
    return s.lengths.reserved;
  }

  /// The lengths count; shared tails that were copied are released. `drop` follows.
  void commit(Sequence& s) noexcept {
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
  /// Releases the states that no query begins from any more: see StateTable::drop. f(blocks of a length) before they are
  /// released. O(states of the sequence).
  template <class F>
  void drop_states(Sequence& s, Pos grain, F&& f) noexcept {
    s.states.drop(settled(s), grain, [&](std::span<const BlockId> blocks) {
      f(blocks);
      release_state(s, blocks);
    });
  }
  /// Releases what no group keeps. O(groups), and of a group that drops blocks O(blocks that it holds).
  void drop(Sequence& s) noexcept {
    drop(s, [](std::size_t, Pos, BlockId) {});
  }
  /// The same, with f(group, number, block) before each block is released.
  template <class F>
  void drop(Sequence& s, F&& f) noexcept {
    if (settled(s) >= s.drops_at) [[unlikely]] {
      drop_blocks(s, f);
    }
  }
  /// The length by which the groups of a sequence know what they retain.
  [[nodiscard]] Pos settled(const Sequence& s) const noexcept {
    return std::max(s.lengths.committed - rules_.rewind, 0);
  }

  void rollback(SeqId seq) noexcept {
    if (!sequences_.contains(seq) || !sequences_.at(seq).lengths.uncommitted) {
      return;
    }
    Sequence& s = sequences_.at(seq);
    for (std::size_t g = 0; g < s.tables.size(); ++g) {
      GroupTable& table = s.tables[g];
      if (is_cross(static_cast<Index>(g))) {
        release_to(s, table, s.has_cross ? table.blocks().size() : 0);
        continue;
      }
      release_to(s, table, table.size_at(s.lengths.committed));
      if (s.replaced[g] != no_block) {
        blocks_.release(std::exchange(table[table.end() - 1], s.replaced[g]), s.state);
        s.replaced[g] = no_block;
      }
    }
    s.states.cut(s.lengths.committed, [&](std::span<const BlockId> blocks) { release_state(s, blocks); });
    s.adds_cross = false;
    s.has_replaced = false;
    s.fits_until = 0;
    s.lengths.rollback();
    if (s.lengths.committed == 0) {
      forget_rows(s);
    }
  }

  /// Throws unless a sequence that ends at `length` still finds all that it needs, in every group.
  void require_retained(const Sequence& s, Pos length, std::string_view argument) const {
    for (std::size_t g = 0; g < s.tables.size(); ++g) {
      s.tables[g].rows(settled(s)).require_end_at(length, g, argument);
    }
    s.states.require_end_at(length, argument);
  }

  [[nodiscard]] bool has_states() const noexcept { return state_blocks_ > 0; }
  /// See WantedStates::list.
  [[nodiscard]] std::span<const WantedState> wanted_states(PosRange range, std::span<const Pos> asked,
                                                           std::span<const Pos> more = {}) {
    return wanted_.list(has_states(), range, asked, more);
  }
  /// Lengths of which a sequence has states, those of the uncommitted extension last.
  [[nodiscard]] std::span<const Pos> state_lengths(const Sequence& s) const noexcept { return s.states.lengths(); }
  /// Whether a sequence has states after `length` tokens when all that is reserved is committed. O(states).
  [[nodiscard]] bool keeps_state(const Sequence& s, Pos length, Pos grain) const noexcept {
    return s.states.keeps(length, std::max(s.lengths.reserved - rules_.rewind, 0), grain);
  }
  /// How the states of one kind lie in blocks.
  [[nodiscard]] StateSizes state_sizes(Index kind) const {
    require_between(kind, Index{0}, static_cast<Index>(states_.size()) - 1, "kind");
    return states_[at_group(kind)];
  }
  /// The blocks of one kind of states after `length` tokens. Throws std::invalid_argument if there are none.
  [[nodiscard]] std::span<const BlockId> state_blocks(const Sequence& s, Index kind, Pos length) const {
    const StateSizes sizes = state_sizes(kind);
    const std::span<const BlockId> all = s.states.blocks(length);
    require(!all.empty(), "length", length, "one of which the sequence has recurrent states: see state_lengths");
    std::size_t first = 0;
    for (std::size_t k = 0; k < at_group(kind); ++k) {
      first += static_cast<std::size_t>(states_[k].blocks);
    }
    return all.subspan(first, static_cast<std::size_t>(sizes.blocks));
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
      if (!is_cross(static_cast<Index>(g))) {
        s.tables[g].assign(p.tables[g], at, settled(p));
      } else if (p.has_cross) {
        s.tables[g].assign(p.tables[g], rules_.groups[g].cross_rows, 0);
      }
    }
    s.states.reserve(1);
    undo.dismiss();
    if (const std::span<const BlockId> blocks = p.states.blocks(at); !blocks.empty()) {
      auto next = blocks.begin();
      s.states.push({at}, [&] {
        blocks_.ref_referenced(*next);
        return *next++;
      });
    }
    sequences_.at(parent).owns_tails = false;
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
    for (std::size_t g = 0; g < s.tables.size(); ++g) {
      if (!is_cross(static_cast<Index>(g))) {
        s.tables[g].settle(settled(s));
        release_to(s, s.tables[g], s.tables[g].size_at(length));
        s.tables[g].cut(length);
      }
    }
    s.states.cut(length, [&](std::span<const BlockId> blocks) { release_state(s, blocks); });
    s.fits_until = 0;
    s.drops_at = 0;
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
    s.states.cut(0, [&](std::span<const BlockId> blocks) { release_state(s, blocks); });
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

  [[nodiscard]] Pos retained_from(const Sequence& s, Index group) const noexcept {
    return s.tables[at_group(group)].rows(settled(s)).retained_from();
  }
  [[nodiscard]] GroupBlocks group_blocks(const Sequence& s, Index group) const noexcept {
    return s.tables[at_group(group)].group_blocks();
  }
  /// f(SlotRun) for the retained positions of a range of a group.
  template <class F>
  void for_each_run(SeqId seq, Index group, PosRange range, F&& f) const {
    const Sequence& s = sequences_.at(seq);
    const Pos end = s.tables.empty() ? s.lengths.reserved : positions(s, group);
    require(0 <= range.first && range.first <= range.last && range.last <= end, "range", range,
            "within the positions of the sequence");
    if (s.tables.empty()) {
      return;  // states alone
    }
    s.tables[at_group(group)].for_each_run(range, settled(s), f);
  }

  [[nodiscard]] Index copied_tokens() const noexcept { return copied_tokens_; }

  /// Fills in what sequences and their blocks say of one group; `stats.block_tokens` stays. O(blocks + table entries).
  void add_to(Stats& stats, Index group) const {
    BlockArray<Pos> filled(blocks_.size(), -1);
    sequences_.for_each([&](const Sequence& s) { fill(filled, s, at_group(group)); });
    for (const Pos rows : filled.values()) {
      if (rows >= 0) {
        ++stats.blocks_referenced;
        stats.tokens_stored += rows;
        stats.tokens_reserved += block_tokens(group);
      }
    }
  }
  /// The same of all groups together.
  void add_to(Stats& stats) const {
    for (Index group = 0; group < groups(); ++group) {
      add_to(stats, group);
    }
    BlockArray<char> is_state(has_states() ? blocks_.size() : 0, 0);
    sequences_.for_each([&](const Sequence& s) {
      for (const BlockId block : s.states.blocks()) {
        stats.blocks_referenced += is_state[block] == 0 ? 1 : 0;
        is_state[block] = 1;
      }
    });
    stats.blocks_total = blocks_.size();
    stats.sequences = sequences_.size();
    stats.copies = copy_count_;
    stats.copied_tokens = copied_tokens_;
  }

  /// Checks each sequence against its own counts; returns the references to each block. Throws InvariantError.
  [[nodiscard]] BlockArray<std::int32_t> verify() const {
    BlockArray<std::int32_t> references(blocks_.size(), 0);
    sequences_.for_each([&](const Sequence& s) {
      if (s.lengths.committed > s.lengths.reserved ||
          (!s.lengths.uncommitted && (s.lengths.committed != s.lengths.reserved || s.adds_cross))) {
        throw_error(InvariantError("kvc: the lengths of a sequence contradict each other"));
      }
      const std::span<const Pos> states = s.states.lengths();
      if (!s.states.can_end_at(s.lengths.committed) || !s.states.can_end_at(s.lengths.reserved) ||
          (!states.empty() && (states.front() <= 0 || states.back() > s.lengths.reserved))) {
        throw_error(InvariantError("kvc: a sequence lacks a recurrent state, or has one of another length"));
      }
      for (const BlockId block : s.states.blocks()) {
        ++references[block];
      }
      for (std::size_t g = 0; g < s.tables.size(); ++g) {
        const GroupTable& table = s.tables[g];
        const Pos length = positions(s, static_cast<Index>(g));
        if (table.end() != ceil_div(length, table.block_tokens()) ||
            (table.grows() && Index{s.fits_until} > Index{table.end()} * table.block_tokens()) ||
            (!s.lengths.uncommitted && s.replaced[g] != no_block) ||
            !table.rows(settled(s)).can_end_at(s.lengths.committed)) {
          throw_error(InvariantError("kvc: group " + std::to_string(g) + " has blocks up to number " +
                                     std::to_string(table.end()) + " for " + std::to_string(length) + " positions"));
        }
        for (const BlockId block : table.blocks()) {
          ++references[block];
        }
        if (s.replaced[g] != no_block) {
          ++references[s.replaced[g]];
        }
      }
    });
    return references;
  }

  template <class F>
  void for_each(F&& f) const {
    sequences_.for_each(f);
  }
  template <class F>
  void for_each(F&& f) {
    sequences_.for_each(f);
  }
  template <class F>
  void for_each_handle(F&& f) const {
    sequences_.for_each_handle(f);
  }

  /// Positions that a dropped block must lie before those that are kept.
  [[nodiscard]] Pos slack(std::size_t group) const noexcept { return slack_of(empty_[group].block_tokens()); }

 private:
  [[nodiscard]] Pos slack_of(Pos block_tokens) const noexcept { return keeps_slack_ ? block_tokens : 0; }

  /// Whether nothing else references the last blocks, which are writable otherwise. O(groups).
  [[nodiscard]] bool has_unshared_tails(const Sequence& s) const noexcept {
    for (const GroupTable& table : s.tables) {
      if (table.grows() && !blocks_.unshared(table.blocks().back())) [[unlikely]] {
        return false;
      }
    }
    return true;
  }
  /// Of a sequence of no positions, which references no blocks but those of other inputs.
  void forget_rows(Sequence& s) noexcept {
    for (GroupTable& table : s.tables) {
      if (table.grows() || !s.has_cross) {
        table.clear();
      }
    }
  }

  template <class F>
  KVC_OUT_OF_LINE void drop_blocks(Sequence& s, F&& f) noexcept {
    s.drops_at = max_pos;
    for (std::size_t g = 0; g < s.tables.size(); ++g) {
      GroupTable& table = s.tables[g];
      if (table.grows()) {
        table.drop(settled(s), [&](Pos number, BlockId block) {
          f(g, number, block);
          blocks_.release(block, s.state);
        });
        s.drops_at = std::min(s.drops_at, table.drops_at());
      }
    }
  }

  /// The extension of one more token, nearly always: each group takes one block, or none, and copies no tail. False,
  /// and nothing has changed, where it is another one. O(groups).
  [[nodiscard]] bool extend_by_one_block(Sequence& s, PosRange range) noexcept {
    if (range.empty() || has_cross_groups_ || has_states()) {
      return false;
    }
    Index taken = 0;
    for (const GroupTable& table : s.tables) {
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
    for (std::size_t g = 0; g < s.tables.size(); ++g) {
      GroupTable& table = s.tables[g];
      if (range.last > table.room()) {
        table.push(blocks_.allocate(static_cast<Index>(g)));
      }
      fits_until = std::min(fits_until, table.room());
    }
    s.fits_until = static_cast<Pos>(fits_until);
    s.owns_tails = true;
    s.lengths.reserve(range);
    return true;
  }

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
  };

  [[nodiscard]] static constexpr std::size_t at_group(Index group) noexcept { return static_cast<std::size_t>(group); }

  /// Blocks that a group has after an extension to `length`.
  [[nodiscard]] Pos end_of(const Sequence& s, std::size_t g, Pos length) const noexcept {
    return s.tables[g].end_for(s.tables[g].grows() ? length : rules_.groups[g].cross_rows);
  }
  /// Rows of the last block that must be copied before the next one is written; 0: none.
  [[nodiscard]] Pos shared_rows(const Sequence& s, std::size_t g, PosRange range) const noexcept {
    const GroupTable& table = s.tables[g];
    if (range.empty() || !table.grows()) {
      return 0;
    }
    const Pos rows = table.tail_rows(range.first);
    return rows > 0 && !blocks_.writable(table.blocks().back(), rows) ? rows : 0;
  }
  [[nodiscard]] Needs needs_of(const Sequence& s, std::size_t g, PosRange range) const noexcept {
    const GroupTable& table = s.tables[g];
    Needs needs{end_of(s, g, range.last) - table.end(), 0, 0};
    if (const Pos rows = shared_rows(s, g, range); rows > 0) [[unlikely]] {
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
    s.replaced[g] = std::exchange(tail, blocks_.allocate(static_cast<Index>(g)));
    s.has_replaced = true;
    copies_.push_back({s.replaced[g], tail, 0, 0, rows, static_cast<std::int32_t>(g)});  // within its capacity
    ++copy_count_;
    copied_tokens_ += rows;
  }

  /// The first block of a state last: an index has the state by that one.
  void release_state(Sequence& s, std::span<const BlockId> blocks) noexcept {
    for (std::size_t i = blocks.size(); i-- > 0;) {
      blocks_.release(blocks[i], s.state);
    }
  }
  /// Last block first: of a prefix that is kept for later, the end goes before the beginning.
  void release_to(Sequence& s, GroupTable& table, std::size_t size) noexcept {
    while (table.blocks().size() > size) {
      blocks_.release(table.pop(), s.state);
    }
  }

  void fill(BlockArray<Pos>& filled, const Sequence& s, std::size_t g) const {
    const GroupTable& table = s.tables[g];
    const Pos committed =
        is_cross(static_cast<Index>(g)) ? (s.has_cross ? rules_.groups[g].cross_rows : 0) : s.lengths.committed;
    const auto put = [&](BlockId block, Pos number) {
      Pos& most = filled[block];
      const Index rows = Index{committed} - Index{number} * table.block_tokens();
      most = std::max(most, static_cast<Pos>(std::clamp<Index>(rows, 0, table.block_tokens())));
    };
    const GroupBlocks blocks = table.group_blocks();
    for (std::size_t i = 0; i < blocks.kept.size(); ++i) {
      put(blocks.kept[i], static_cast<Pos>(i));
    }
    for (std::size_t i = 0; i < blocks.rest.size(); ++i) {
      put(blocks.rest[i], blocks.first + static_cast<Pos>(i));
    }
    if (s.replaced[g] != no_block) {
      put(s.replaced[g], committed / table.block_tokens());
    }
  }

  Blocks& blocks_;
  GroupRules rules_;
  bool keeps_slack_;
  bool has_cross_groups_ = false;
  std::vector<StateSizes> states_;  // [kinds of states]
  Index state_blocks_;              // of the states of one length; 0: there are none
  std::vector<GroupTable> empty_;   // [groups]
  SequenceTable<Sequence> sequences_;
  std::vector<RowCopy> copies_;  // of the last extension
  std::vector<Needs> needs_;     // [groups] of the last extension
  WantedStates wanted_;          // of the last extension
  Index copy_count_ = 0;
  Index copied_tokens_ = 0;
};

}  // namespace detail
}  // namespace v0
}  // namespace kvc
