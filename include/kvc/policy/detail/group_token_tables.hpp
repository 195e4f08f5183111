// GroupTokenTables: sequences of several layer groups that know their tokens, so that their blocks can be cached under
// them and found again.
#pragma once

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "kvc/config.hpp"
#include "kvc/core/error.hpp"
#include "kvc/core/group_rule.hpp"
#include "kvc/core/limit.hpp"
#include "kvc/core/retained.hpp"
#include "kvc/core/scope_guard.hpp"
#include "kvc/core/types.hpp"
#include "kvc/policy/concept.hpp"
#include "kvc/policy/detail/block_sizes.hpp"
#include "kvc/policy/detail/group_indexer.hpp"
#include "kvc/policy/detail/group_sequence_state.hpp"
#include "kvc/policy/detail/group_tables.hpp"
#include "kvc/policy/detail/state_table.hpp"
#include "kvc/policy/restore_options.hpp"

namespace kvc {
inline namespace v0 {
namespace detail {

/// A sequence knows the last node of the index that its tokens lead to, and its tokens behind that node. Commit adds
/// nodes for what has become known, gives them the blocks that the sequence still holds, and then drops what no group
/// keeps: see GroupIndexer and PrefixEnds. `Blocks` is a GroupCachedBlocks.
template <class Blocks>
class GroupTokenTables
    : public GroupTables<Blocks, GroupSequenceState<typename Blocks::Parent, typename Blocks::SequenceContext>> {
  using Base = GroupTables<Blocks, GroupSequenceState<typename Blocks::Parent, typename Blocks::SequenceContext>>;

 public:
  using Parent = typename Blocks::Parent;
  using State = GroupSequenceState<Parent, typename Blocks::SequenceContext>;
  using Sequence = typename Base::Sequence;
  static constexpr Pos nowhere = State::nowhere;

  GroupTokenTables(Blocks& blocks, const GroupRules& rules, const BlockSizes& sizes)
      : Base(blocks, rules, sizes, true),
        blocks_(blocks),
        node_tokens_(sizes.node_tokens),
        indexer_(blocks, Base::rules_) {
    for (std::size_t g = 0; g < rules.groups.size(); ++g) {
      const Retained& retained = rules.groups[g].retained;
      reach_ += retained.everything()
                    ? 0
                    : (Index{std::max(retained.window, retained.chunk)} + rules.rewind) / sizes.tokens[g] + 4;
    }
    reach_ = std::min(reach_, blocks.size());
    reach_ += rules.states.empty() ? 0 : 4 * static_cast<Index>(rules.states.size());
  }

  [[nodiscard]] Index merges() const noexcept { return indexer_.merges(); }

  /// Of the committed positions, how many from the first on have known tokens.
  [[nodiscard]] static Pos known(const Sequence& s) noexcept {
    return std::min(s.lengths.committed, s.state.unknown_from);
  }
  [[nodiscard]] static Index unknown(const Sequence& s) noexcept { return s.lengths.committed - known(s); }
  /// Positions whose tokens lead to the sequence's node.
  [[nodiscard]] Pos indexed(const Sequence& s) const noexcept { return blocks_.nodes.end(s.state.last); }
  /// The tokens of the first reserved positions, as far as they are known.
  [[nodiscard]] std::vector<Token> known_tokens(const Sequence& s) const {
    std::vector<Token> tokens = blocks_.nodes.tokens_to(s.state.last);
    const std::span<const Token> behind = s.state.tokens.all();
    tokens.insert(tokens.end(), behind.begin(), behind.end());
    return tokens;
  }

  /// As that of GroupTables; remembers the tokens.
  std::optional<Extension> try_extend(SeqId seq, Pos count, std::span<const Token> tokens) {
    Sequence& s = this->at(seq);
    if (s.appends(count, tokens.size()) && !tokens.empty()) [[likely]] {
      s.state.tokens.push(tokens[0]);
      return Extension{s.lengths.append(), {}};
    }
    return extend_by_tokens(s, s.lengths.checked_extension(seq, count, tokens.size()), tokens, {});
  }
  std::optional<Extension> try_extend(SeqId seq, Pos count, std::span<const Token> tokens,
                                      std::span<const Pos> states_at) {
    Sequence& s = this->at(seq);
    return extend_by_tokens(s, s.lengths.checked_extension(seq, count, tokens.size()), tokens, states_at);
  }
  /// As that of GroupTables, for an extension that asks for no states.
  [[nodiscard]] LimitMet why_not_extend(const Sequence& s, PosRange range, Pos unit) const noexcept {
    const auto [again, branch] = states_of_prompt(s);
    const auto is_within = [&](Pos length) { return range.first < length && length < range.last; };
    const Index more = (is_within(again) ? 1 : 0) + (is_within(branch) && branch != again ? 1 : 0);
    return Base::why_not_extend(s, range, unit, range.empty() ? 0 : 1 + more);
  }
  /// As that of GroupTables. Tokens become known by publish_tokens.
  std::optional<Extension> try_restore(SeqId seq, const RestoreOptions& options) {
    require_valid(options, Base::rules_);
    this->at(seq).state.tokens.reserve(static_cast<std::size_t>(options.tokens));
    std::optional<Extension> extension = Base::try_restore(seq, options, node_tokens_);
    if (extension) {
      auto& state = this->at(seq).state;
      state.unknown_from = options.length > 0 ? 0 : state.unknown_from;
      state.defers_cross = options.defers_cross;
    }
    return extension;
  }
  /// As that of GroupTables.
  [[nodiscard]] bool keeps_state(const Sequence& s, Pos length) const noexcept {
    return Base::keeps_state(s, length, node_tokens_);
  }
  void rollback(SeqId seq) noexcept {
    if (!this->contains(seq)) {
      return;
    }
    ++blocks_.now;
    Base::rollback(seq);
    forget_tokens(this->at(seq));
  }
  /// Commits, makes what is known matchable, and drops what no group keeps.
  void commit(SeqId seq) {
    Sequence& s = this->at(seq);
    s.lengths.check_uncommitted(seq);
    if (s.lengths.reserved < s.quiet_until) [[likely]] {
      s.lengths.commit();
      return;
    }
    commit_blocks(s);
  }
  void truncate(SeqId seq, Pos length) {
    Sequence& s = this->at(seq);
    s.lengths.check_truncate(seq, length);
    this->require_retained(s, length, "length");
    ++blocks_.now;
    Base::truncate(seq, length);
    if (length < indexed(s)) {
      Parent last = s.state.last;
      Parent cut = last;
      while (blocks_.nodes.end(last) > length) {
        cut = std::exchange(last, blocks_.nodes.index.parent(last.block()));
      }
      const auto kept = std::as_const(blocks_.nodes.index)
                            .tokens(cut.block())
                            .first(static_cast<std::size_t>(length - blocks_.nodes.end(last)));
      s.state.tokens.assign(kept);
      blocks_.nodes.ref(last);
      blocks_.nodes.unref(std::exchange(s.state.last, last));
    }
    forget_tokens(s);
  }

  /// A sequence that begins as another. References its blocks.
  SeqId fork(SeqId parent, Pos at) {
    const SeqId seq = Base::fork(parent, at);
    const Sequence& p = this->at(parent);
    Sequence& s = this->at(seq);
    Parent last = p.state.last;
    Parent cut = last;
    while (blocks_.nodes.end(last) > at) {
      cut = std::exchange(last, blocks_.nodes.index.parent(last.block()));
    }
    ScopeGuard undo([&] { Base::close(seq); });
    s.state.tokens.reserve(std::max(p.state.tokens.size(), 2 * static_cast<std::size_t>(node_tokens_)));
    s.state.ends.reserve(static_cast<std::size_t>(2 * reach_));
    undo.dismiss();
    s.state.branch = 0;
    const Pos behind = at - blocks_.nodes.end(last);
    const std::span<const Token> tokens =
        cut == last ? p.state.tokens.all() : std::as_const(blocks_.nodes.index).tokens(cut.block());
    s.state.tokens.assign(tokens.first(std::min(static_cast<std::size_t>(behind), tokens.size())));
    s.state.root = p.state.root;
    s.state.last = last;
    s.state.tenant = p.state.tenant;
    s.state.retention = p.state.retention;
    s.state.unknown_from = p.state.unknown_from < at ? p.state.unknown_from : nowhere;
    s.state.found = at;
    s.state.prompt_end = at;
    blocks_.nodes.ref(last);
    blocks_.nodes.index.roots().ref(s.state.root);
    blocks_.quota.ref(s.state.tenant);
    indexer_.ends().mark(s, {at, at});
    indexer_.ends().mark_states(s);
    return seq;
  }

  /// As that of TokenTables: at least one token, and none is known.
  void publish_tokens(Sequence& s, std::span<const Token> tokens) {
    for (const GroupTable& table : s.tables) {
      Parent same = s.state.root;
      for (const BlockId block : table.blocks()) {
        if (blocks_.nodes.last_node(block) != Blocks::Nodes::no_node) {
          same = blocks_.nodes.require_tokens(block, tokens, same);
        }
      }
    }
    s.state.tokens.reserve(tokens.size());
    s.state.tokens.assign(tokens);
    if (std::exchange(s.state.defers_cross, false) && s.has_cross) {
      indexer_.attach_cross(s);
    }
    const auto count = static_cast<Pos>(tokens.size());
    s.state.unknown_from = count == s.lengths.committed ? nowhere : count;
    if (s.state.prompt_end == 0) {  // it was opened without a prompt: a later one may go on here
      s.state.prompt_end = count;
    }
    ++blocks_.now;
    indexer_.index_tokens(s, known(s), s.state.prompt_end <= s.lengths.committed);
    if (this->has_states()) {
      indexer_.attach_states(s, 0);
    }
    drop(s);
    set_quiet_until(s);
  }

  /// After everything cached was dropped.
  void forget_index(Sequence& s) noexcept {
    s.state.last = s.state.root;
    s.state.expects = false;  // rows that arrive now were computed before
    s.state.tokens.clear();
    s.state.ends.clear();
    s.state.forgets_at = max_pos;
    s.state.unknown_from = s.lengths.reserved > 0 ? 0 : nowhere;
    s.quiet_until = 0;
    s.share_tails();  // so that no token is added in place
  }

  void verify_sequence(const Sequence& s) const {
    const bool knows_all = s.state.unknown_from == nowhere;
    const Pos known_end = indexed(s) + static_cast<Pos>(s.state.tokens.size());
    if (known_end != (knows_all ? s.lengths.reserved : s.state.unknown_from) ||
        (!knows_all && s.state.unknown_from >= std::max(1, s.lengths.reserved))) {
      throw_error(InvariantError("kvc: a sequence knows " + std::to_string(known_end) + " tokens of " +
                                 std::to_string(s.lengths.reserved)));
    }
  }

 protected:
  Blocks& blocks_;
  Pos node_tokens_;
  Index reach_ = 0;  // blocks that a hit needs in groups that drop rows
  GroupIndexer<Blocks, Sequence> indexer_;

 private:
  /// An extension that takes blocks, or has not just one token that is known.
  KVC_OUT_OF_LINE std::optional<Extension> extend_by_tokens(Sequence& s, PosRange range, std::span<const Token> tokens,
                                                            std::span<const Pos> states_at) {
    const bool are_known = s.state.unknown_from > range.first && !range.empty() && !tokens.empty();
    if (are_known && s.state.tokens.size() + tokens.size() > s.state.tokens.capacity()) {
      s.state.tokens.reserve(std::max(s.state.tokens.size() + tokens.size(), 2 * s.state.tokens.capacity()));
    }
    std::optional<Extension> extension = this->try_reserve(s, range, wanted_states(s, range, states_at));
    if (extension && are_known) {
      s.state.tokens.append(tokens);
    } else if (extension && !range.empty()) {
      s.state.unknown_from = std::min(s.state.unknown_from, range.first);
    }
    // The next tokens are added in place as long as all are known and there is memory for them.
    const Index room = Index{indexed(s)} + static_cast<Index>(s.state.tokens.capacity());
    s.appends_until = s.state.unknown_from == nowhere ? static_cast<Pos>(std::min(Index{s.appends_until}, room)) : 0;
    return extension;
  }
  /// The states that an extension is to write: see WantedStates::list.
  [[nodiscard]] std::span<const WantedState> wanted_states(const Sequence& s, PosRange range,
                                                           std::span<const Pos> states_at) {
    if (!this->has_states() && states_at.empty()) [[likely]] {
      return {};
    }
    return Base::wanted_states(range, states_at, states_of_prompt(s));
  }
  /// Lengths of which there will be states for the same prompt again, and where prompts have parted.
  [[nodiscard]] std::array<Pos, 2> states_of_prompt(const Sequence& s) const noexcept {
    return {static_cast<Pos>(std::max(s.state.prompt_end - 1, 0) / node_tokens_ * node_tokens_), s.state.branch};
  }
  /// A commit that does more than to count.
  KVC_OUT_OF_LINE void commit_blocks(Sequence& s) noexcept {
    ++blocks_.now;
    const Pos before = s.lengths.committed;
    const bool adds_cross = s.adds_cross;
    this->settle(s);
    if (adds_cross && !s.state.defers_cross) [[unlikely]] {
      indexer_.attach_cross(s);
    }
    const bool ends_prompt = before < s.state.prompt_end && s.state.prompt_end <= s.lengths.committed;
    if (s.state.tokens.size() >= static_cast<std::size_t>(node_tokens_) || ends_prompt) [[unlikely]] {
      indexer_.index_tokens(s, known(s), ends_prompt);
    }
    if (this->has_states()) {
      indexer_.attach_states(s, before);
      drop_states(s);
    }
    drop(s);
    set_quiet_until(s);
  }
  /// Says up to which length the next commits do nothing but count.
  void set_quiet_until(Sequence& s) const noexcept {
    Index until = this->quiet_until(s);
    if (s.state.unknown_from == nowhere) {
      until = std::min(until, Index{indexed(s)} + node_tokens_);
    } else if (s.state.tokens.size() >= static_cast<std::size_t>(node_tokens_)) {
      until = 0;  // there was no free node for them
    }
    if (s.lengths.committed < s.state.prompt_end) {
      until = std::min(until, Index{s.state.prompt_end});
    }
    s.quiet_until = static_cast<Pos>(until);
  }
  /// After positions were dropped from the end.
  void forget_tokens(Sequence& s) const noexcept {
    if (s.state.unknown_from >= s.lengths.reserved) {
      s.state.unknown_from = nowhere;
    }
    s.state.tokens.cut(static_cast<std::size_t>(std::max(s.lengths.reserved - indexed(s), 0)));
  }

  void drop(Sequence& s) noexcept {
    const Pos settled = this->settled(s);
    indexer_.ends().forget_passed(s, settled);
    Base::drop(s, [&](BlockId block) { indexer_.ends().release_dropped(s, block, settled); });
  }
  /// Of the states, those of whole nodes stay as long as windows do: a later prompt may begin with all that there is.
  void drop_states(Sequence& s) noexcept {
    Base::drop_states(s, node_tokens_, [&](std::span<const BlockId> blocks) {
      for (const BlockId block : blocks) {  // the first ones of each kind are known to the index
        indexer_.ends().forget_unless_end(s, block, this->settled(s));
      }
    });
  }
};

}  // namespace detail
}  // namespace v0
}  // namespace kvc
