// GroupedPrefixes: PrefixShared with several layer groups.
//
// A sequence knows the last node of the index that its tokens lead to, and its tokens behind that node. Commit adds
// nodes for what has become known, gives them the blocks that the sequence still holds, and then drops what no group
// keeps. A dropped block leaves the index, too, unless a later prompt could end there: nobody could ever hit the middle
// of a long prompt. The places where prompts end are the end of a prompt, of a sequence, of a fork, and positions where
// prefixes part.
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
#include "kvc/core/scope_guard.hpp"
#include "kvc/core/stats.hpp"
#include "kvc/core/types.hpp"
#include "kvc/policy/concept.hpp"
#include "kvc/policy/detail/group_blocks.hpp"
#include "kvc/policy/detail/group_hit.hpp"
#include "kvc/policy/detail/group_sequence_state.hpp"
#include "kvc/policy/detail/group_tables.hpp"
#include "kvc/policy/salt.hpp"

namespace kvc {
inline namespace v0 {
namespace detail {

/// Sequences and pins over a GroupCachedBlocks.
template <class Blocks>
class GroupedPrefixes
    : public GroupTables<Blocks, GroupSequenceState<typename Blocks::Parent, typename Blocks::SequenceContext>> {
 public:
  using Parent = typename Blocks::Parent;
  using State = GroupSequenceState<Parent, typename Blocks::SequenceContext>;
  using Base = GroupTables<Blocks, State>;
  using Sequence = typename Base::Sequence;
  static constexpr Pos nowhere = State::nowhere;

  GroupedPrefixes(Blocks& blocks, const GroupRules& rules, const BlockSizes& sizes)
      : Base(blocks, rules, sizes, true), blocks_(blocks), node_tokens_(sizes.node_tokens) {
    for (std::size_t g = 0; g < rules.groups.size(); ++g) {
      const Retained& retained = rules.groups[g].retained;
      reach_ += retained.everything()
                    ? 0
                    : (Index{std::max(retained.window, retained.chunk)} + rules.rewind) / sizes.tokens[g] + 4;
    }
    reach_ = std::min(reach_, blocks.size());
    reach_ += rules.states.empty() ? 0 : 4 * static_cast<Index>(rules.states.size());
    lost_.assign(rules.groups.size() + (rules.states.empty() ? 0 : 1), 0);
    for (std::size_t g = 0; g < rules.groups.size(); ++g) {
      cross_blocks_ += this->is_cross(static_cast<Index>(g)) ? cross_blocks(g) : 0;
    }
  }

  [[nodiscard]] Index merges() const noexcept { return merges_; }
  /// Tokens of hits that were lost because of a group; of number groups(): because of recurrent states.
  [[nodiscard]] Index lost(Index group) const noexcept { return lost_[static_cast<std::size_t>(group)]; }

  // --- finding -------------------------------------------------------------------------------------------------------

  using Hit = GroupHit<typename Blocks::Nodes::HashType>;

  /// The longest valid hit of `tokens`: see find_hit. `reserve_path` has made room in `path`.
  [[nodiscard]] Hit match(Parent root, std::span<const Token> tokens, std::vector<BlockId>& path) const noexcept {
    return find_hit(blocks_.nodes, this->rules(), !blocks_.cross(root).empty(), root, tokens, path);
  }
  void reserve_path(std::vector<BlockId>& path, std::span<const Token> tokens) const {
    path.reserve(tokens.size() / static_cast<std::size_t>(node_tokens_));
  }
  /// f(group, number, block) for the blocks of a hit: see for_each_found_block.
  template <class F>
  void for_each_found(const Hit& hit, std::span<const BlockId> path, F&& f) const noexcept {
    for_each_found_block(blocks_.nodes, this->rules(), hit, path, f);
  }

  /// A new sequence with the tables of what is found of `tokens`, which begin the prompt. References nothing yet.
  Opened open_on(std::span<const Token> prompt, std::span<const Token> tokens, const Salt& salt) {
    const Pos size = checked_count(prompt.size(), "prompt.size()");
    const SeqId seq = this->insert();
    ScopeGuard undo([&] { this->erase_empty(seq); });
    const int tenant = blocks_.quota.limited() ? blocks_.quota.acquire(salt.tenant()) : TenantQuota::none;
    ScopeGuard undo_tenant([&] { blocks_.quota.release(tenant); });
    const Parent root = blocks_.nodes.index.roots().acquire(salt);
    ScopeGuard undo_root([&] { blocks_.nodes.index.roots().release(root); });
    Sequence& s = this->at(seq);
    s.state.tokens.reserve(2 * static_cast<std::size_t>(node_tokens_));  // so that truncate cannot fail
    s.state.ends.reserve(static_cast<std::size_t>(2 * reach_));
    path_.clear();
    reserve_path(path_, tokens);
    const Hit hit = match(root, tokens, path_);
    std::span<const BlockId> cross = blocks_.cross(root);
    s.has_cross = !cross.empty();
    for (std::size_t g = 0; g < s.tables.size(); ++g) {
      if (!this->is_cross(static_cast<Index>(g))) {
        s.tables[g].begin_at(hit.length());
      } else if (s.has_cross) {
        s.tables[g].assign(cross.first(cross_blocks(g)));
        cross = cross.subspan(cross_blocks(g));
      }
    }
    s.states.reserve(1);
    if (cross_blocks_ > 0 && !salt.bytes().empty()) {
      blocks_.reserve_cross(root, cross_blocks_);
    }
    undo_root.dismiss();
    undo_tenant.dismiss();
    undo.dismiss();

    ++blocks_.now;
    for_each_found(hit, path_, [&](std::size_t g, Pos number, BlockId block) {
      if (s.tables[g].has(number)) {
        s.tables[g][number] = block;
      }
    });
    s.state.root = root;
    s.state.last = hit.node() == Blocks::Nodes::no_node ? root : Parent(hit.node());
    if (this->has_states() && hit.length() > 0) {
      add_found_states(s, hit.node());
    }
    blocks_.nodes.ref(s.state.last);
    const Pos indexed = blocks_.nodes.end(s.state.last);
    s.state.tokens.assign(tokens.begin() + indexed, tokens.begin() + hit.length());
    s.state.tenant = tenant;
    s.state.found = hit.length();
    s.state.prompt_end = size;
    s.lengths.set(hit.length());
    for (std::size_t g = 0; g < lost_.size(); ++g) {
      last_lost_[g] = hit.lost(g);
    }
    if (this->has_states()) {
      const Pos rows = hit.length() + hit.lost(lost_.size() - 1);  // a multiple of node_tokens
      s.state.branch = rows > hit.length() ? rows : 0;
    }
    return {seq, hit.length()};
  }
  /// References what open_on has found. A prompt has ended or gone on there, and another may.
  void take_found(const Sequence& s) noexcept {
    this->ref_blocks(s);
    for (std::size_t g = 0; g < s.tables.size(); ++g) {
      if (!this->rules().groups[g].retained.everything()) {
        for (const BlockId block : s.tables[g].blocks()) {
          blocks_.nodes.mark(block);
        }
      }
    }
    mark_states(s);
  }
  /// Counts the hit of the last open_on.
  void count_lost() noexcept {
    for (std::size_t g = 0; g < lost_.size(); ++g) {
      lost_[g] += last_lost_[g];
    }
  }
  /// Erases a sequence, or a pin.
  void release_sequence(SeqId seq) {
    Sequence& s = this->at(seq);
    const Parent root = s.state.root;
    const int tenant = s.state.tenant;
    for (const auto& [block, prefix] : s.state.ends) {  // as new as those that are released now
      if (blocks_.nodes.prefix(block) == prefix) {      // another block may have its number now
        blocks_.refresh(block, s.state);
      }
    }
    const Parent last = std::exchange(s.state.last, root);
    this->close(seq);
    blocks_.nodes.unref(last);
    blocks_.nodes.index.roots().release(root);
    blocks_.quota.release(tenant);
  }

  // --- tokens --------------------------------------------------------------------------------------------------------

  /// Of the committed positions, how many from the first on have known tokens.
  [[nodiscard]] static Pos known(const Sequence& s) noexcept {
    return std::min(s.lengths.committed, s.state.unknown_from);
  }
  [[nodiscard]] static Index unknown(const Sequence& s) noexcept { return s.lengths.committed - known(s); }
  /// Positions whose tokens lead to the sequence's node.
  [[nodiscard]] Pos indexed(const Sequence& s) const noexcept { return blocks_.nodes.end(s.state.last); }
  /// The tokens of the first reserved positions, as far as they are known.
  [[nodiscard]] std::vector<Token> known_tokens(const Sequence& s) const {
    std::vector<Token> tokens(static_cast<std::size_t>(indexed(s)));
    for (Parent at = s.state.last; !at.is_root(); at = blocks_.nodes.index.parent(at.block())) {
      std::ranges::copy(std::as_const(blocks_.nodes.index).tokens(at.block()),
                        tokens.begin() + (blocks_.nodes.end(at) - node_tokens_));
    }
    tokens.insert(tokens.end(), s.state.tokens.begin(), s.state.tokens.end());
    return tokens;
  }

  /// As that of GroupTables; remembers the tokens.
  std::optional<Extension> try_extend(SeqId seq, Pos count, std::span<const Token> tokens,
                                      std::span<const Pos> states_at = {}) {
    Sequence& s = this->at(seq);
    const PosRange range = s.lengths.checked_extension(seq, count, tokens.size());
    if (this->has_states() || !states_at.empty()) [[unlikely]] {
      // For a prompt that goes on from this one, for the same prompt again, and where prompts have parted.
      const std::array<Pos, 2> more{static_cast<Pos>(std::max(s.state.prompt_end - 1, 0) / node_tokens_ * node_tokens_),
                                    s.state.branch};
      return extend_by_tokens(s, range, tokens, this->wanted_states(range, states_at, more));
    }
    if (tokens.size() == 1 && s.state.can_add_token() && this->fits(s, range)) [[likely]] {
      s.state.tokens.push_back(tokens[0]);
      s.lengths.reserve(range);
      return Extension{range, {}};
    }
    return extend_by_tokens(s, range, tokens, {});
  }
  KVC_OUT_OF_LINE std::optional<Extension> extend_by_tokens(Sequence& s, PosRange range, std::span<const Token> tokens,
                                                            std::span<const WantedState> states) {
    const bool are_known = s.state.unknown_from > range.first && !range.empty() && !tokens.empty();
    if (are_known && s.state.tokens.size() + tokens.size() > s.state.tokens.capacity()) {
      s.state.tokens.reserve(std::max(s.state.tokens.size() + tokens.size(), 2 * s.state.tokens.capacity()));
    }
    std::optional<Extension> extension = Base::try_extend(s, range, states);
    if (extension && are_known) {
      s.state.tokens.insert(s.state.tokens.end(), tokens.begin(), tokens.end());
    } else if (extension && !range.empty()) {
      s.state.unknown_from = std::min(s.state.unknown_from, range.first);
    }
    return extension;
  }
  /// As that of GroupTables. Tokens become known by publish_tokens.
  std::optional<Extension> try_restore(SeqId seq, const RestoreOptions& options) {
    std::optional<Extension> extension = Base::try_restore(seq, options, node_tokens_);
    if (extension && options.length > 0) {
      this->at(seq).state.unknown_from = 0;
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
    ++blocks_.now;
    const Pos before = s.lengths.committed;
    const bool adds_cross = s.adds_cross;
    Base::commit(s);
    if (adds_cross) [[unlikely]] {
      keep_cross(s);
    }
    const bool ends_prompt = before < s.state.prompt_end && s.state.prompt_end <= s.lengths.committed;
    if (s.state.tokens.size() >= static_cast<std::size_t>(node_tokens_) || ends_prompt) [[unlikely]] {
      index_tokens(s, ends_prompt);
    }
    if (this->has_states()) {
      index_states(s, before);
      drop_states(s);
    }
    drop(s);
  }
  void truncate(SeqId seq, Pos length) {
    ++blocks_.now;
    Base::truncate(seq, length);
    Sequence& s = this->at(seq);
    if (length < indexed(s)) {
      Parent last = s.state.last;
      Parent cut = last;
      while (blocks_.nodes.end(last) > length) {
        cut = std::exchange(last, blocks_.nodes.index.parent(last.block()));
      }
      const auto kept = std::as_const(blocks_.nodes.index)
                            .tokens(cut.block())
                            .first(static_cast<std::size_t>(length - blocks_.nodes.end(last)));
      s.state.tokens.assign(kept.begin(), kept.end());
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
        cut == last ? std::span<const Token>(p.state.tokens) : std::as_const(blocks_.nodes.index).tokens(cut.block());
    s.state.tokens.assign(tokens.begin(), tokens.begin() + std::min(behind, static_cast<Pos>(tokens.size())));
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
    mark_end(s, {at, at});
    mark_states(s);
    return seq;
  }

  /// As that of TokenTables: at least one token, and none is known.
  void publish_tokens(Sequence& s, std::span<const Token> tokens) {
    for (const GroupTable& table : s.tables) {
      Parent same = s.state.root;
      for (const BlockId block : table.blocks()) {
        if (blocks_.nodes.last_node(block) != Blocks::Nodes::no_node) {
          same = require_same_tokens(block, tokens, same);
        }
      }
    }
    s.state.tokens.assign(tokens.begin(), tokens.end());
    const auto count = static_cast<Pos>(tokens.size());
    s.state.unknown_from = count == s.lengths.committed ? nowhere : count;
    if (s.state.prompt_end == 0) {  // it was opened without a prompt: a later one may go on here
      s.state.prompt_end = count;
    }
    ++blocks_.now;
    index_tokens(s, s.state.prompt_end <= s.lengths.committed);
    if (this->has_states()) {
      index_states(s, 0);
    }
    drop(s);
  }

  /// After everything cached was dropped.
  void forget_index(Sequence& s) noexcept {
    s.state.last = s.state.root;
    s.state.tokens.clear();
    s.state.ends.clear();
    s.state.unknown_from = s.lengths.reserved > 0 ? 0 : nowhere;
  }

  /// The blocks that show an eviction policy where a sequence is: those of the first group that keeps everything, or of
  /// the first group with rows of its own tokens. As many as lead to its node.
  [[nodiscard]] std::span<const BlockId> leading_blocks(const Sequence& s) const noexcept {
    const auto& groups = this->rules().groups;
    std::size_t leader = groups.size();
    for (std::size_t g = groups.size(); g-- > 0;) {
      const bool is_better =
          leader == groups.size() || groups[g].retained.everything() || !groups[leader].retained.everything();
      leader = groups[g].cross_rows == 0 && is_better ? g : leader;
    }
    if (leader == groups.size()) {
      return {};  // states alone
    }
    const std::span<const BlockId> blocks = s.tables[leader].group_blocks().rest;
    if (this->rules().groups[leader].retained.everything()) {
      return blocks.first(static_cast<std::size_t>(indexed(s) / this->block_tokens(static_cast<Index>(leader))));
    }
    const auto end = std::ranges::find_if(blocks, [&](BlockId block) { return !blocks_.nodes.is_cached(block); });
    return blocks.first(static_cast<std::size_t>(end - blocks.begin()));
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

 private:
  /// Blocks of the rows of another input in a group.
  [[nodiscard]] std::size_t cross_blocks(std::size_t group) const noexcept {
    return static_cast<std::size_t>(
        ceil_div(this->rules().groups[group].cross_rows, this->block_tokens(static_cast<Index>(group))));
  }
  /// The rows of another input, which are committed, serve later prompts with the same salt; or those that are there
  /// serve this sequence, too.
  void keep_cross(Sequence& s) noexcept {
    if (blocks_.nodes.index.roots().salt(s.state.root).empty()) {
      return;
    }
    const std::span<const BlockId> there = blocks_.cross(s.state.root);
    const bool is_first = there.empty();
    std::size_t next = 0;
    for (std::size_t g = 0; g < s.tables.size(); ++g) {
      if (!this->is_cross(static_cast<Index>(g))) {
        continue;
      }
      for (Pos number = 0; number < s.tables[g].end(); ++number) {
        BlockId& own = s.tables[g][number];
        if (is_first) {
          blocks_.attach_cross(s.state.context, s.state.tenant, s.state.root, g, own);
        } else {
          const BlockId before = std::exchange(own, there[next]);
          blocks_.merge(before, there[next], s.state);
          ++next;
          ++merges_;
        }
      }
    }
  }

  /// After positions were dropped from the end.
  void forget_tokens(Sequence& s) const noexcept {
    if (s.state.unknown_from >= s.lengths.reserved) {
      s.state.unknown_from = nowhere;
    }
    const auto behind = static_cast<std::size_t>(std::max(s.lengths.reserved - indexed(s), 0));
    if (s.state.tokens.size() > behind) {
      s.state.tokens.resize(behind);
    }
  }

  /// Adds nodes for what is known, and gives them, and those that were there without, the blocks of the sequence.
  ///   ends_prompt   whether the end of the prompt was committed now
  KVC_OUT_OF_LINE void index_tokens(Sequence& s, bool ends_prompt) noexcept {
    auto& nodes = blocks_.nodes;
    const Pos known_end = known(s);
    const auto n = static_cast<std::size_t>(node_tokens_);
    const Parent old_last = s.state.last;
    Parent last = old_last;
    Pos end = nodes.end(last);
    std::size_t used = 0;
    PosRange parting{0, 0};  // where prefixes part
    nodes.ref(last);         // so that making room for the next node cannot remove it
    while (end + node_tokens_ <= known_end) {
      const auto tokens = std::span<const Token>(s.state.tokens).subspan(used, n);
      const std::uint64_t hash = nodes.index.chain_hash(last, tokens);
      BlockId node = nodes.index.find(last, tokens, hash);
      if (node == no_block) {
        // A sequence that has half of a full index for itself takes no more: others' prefixes are worth as much.
        if (!nodes.has_free_node() && (Index{end} / node_tokens_ >= nodes.nodes() / 2 || !blocks_.make_free_node())) {
          break;
        }
        if (nodes.index.has_children(last)) {
          parting = {end, end + node_tokens_};
        }
        node = nodes.insert(last, tokens, hash);
      }
      nodes.ref(Parent(node));
      nodes.unref(std::exchange(last, Parent(node)));
      end += node_tokens_;
      used += n;
    }
    const Pos prompt_end = s.state.prompt_end;
    if (!(last == old_last)) {
      ends_prompt = ends_prompt || (nodes.end(old_last) <= prompt_end && prompt_end < end);  // its node is full now
      s.state.last = last;
      s.state.tokens.erase(s.state.tokens.begin(), s.state.tokens.begin() + static_cast<std::ptrdiff_t>(used));
      attach_blocks(s, old_last, parting);
      mark_end(s, parting);
    }
    nodes.unref(old_last);
    if (ends_prompt) {
      mark_end(s, {prompt_end, prompt_end});
    }
  }
  /// From the sequence's node up to the old one, which has its blocks already.
  void attach_blocks(Sequence& s, Parent old_last, PosRange parting) noexcept {
    auto& nodes = blocks_.nodes;
    const Pos length = std::max(s.lengths.committed - this->rules().rewind, 0);
    const PosRange prompt{s.state.prompt_end, s.state.prompt_end};
    for (std::size_t g = 0; g < s.tables.size(); ++g) {
      const Retained& retained = this->rules().groups[g].retained;
      if (this->rules().groups[g].cross_rows > 0) {
        continue;
      }
      GroupTable& table = s.tables[g];
      const bool is_one_node = nodes.index.parent(s.state.last.block()) == old_last;  // it is in a block that stays
      const Pos stays_from = is_one_node ? 0 : (retained.first_seen(length) - this->slack(g)) / table.block_tokens();
      Pos end = nodes.end(s.state.last);
      Pos number = (end - 1) / table.block_tokens();
      for (Parent at = s.state.last; !(at == old_last); at = nodes.index.parent(at.block()), end -= node_tokens_) {
        number -= end <= Index{number} * table.block_tokens() ? 1 : 0;
        if (!table.has(number) || !table.is_complete(number) ||
            (number < stays_from && !is_for_end(g, number, parting) && !is_for_end(g, number, prompt) &&
             number >= table.first())) {
          continue;
        }
        const BlockId own = table[number];
        const BlockId there = nodes.block(at.block(), g);
        if (there == no_block) {
          s.owns_tails = false;
          blocks_.attach(s.state.context, s.state.tenant, s.state.root, at.block(), g, number, own);
        } else if (there != own && end == Index{number + 1} * table.block_tokens()) {
          table[number] = there;
          blocks_.merge(own, there, s.state);
          ++merges_;
        }
      }
    }
  }

  /// Whether a hit that ends in `ends`, or up to a block before it, needs a block.
  [[nodiscard]] bool is_for_end(std::size_t group, Pos number, PosRange ends) const noexcept {
    const Retained& retained = this->rules().groups[group].retained;
    const Pos tokens = this->block_tokens(static_cast<Index>(group));
    const Index first = Index{retained.first_seen(std::max(ends.first - tokens, 0))};
    return (Index{number} + 1) * tokens > first && Index{number} * tokens < ends.last;
  }
  /// Keeps what a hit that ends there needs from being forgotten when the sequence drops it.
  void mark_end(Sequence& s, PosRange ends) noexcept {
    if (ends.last == 0) {
      return;
    }
    for (std::size_t g = 0; g < s.tables.size(); ++g) {
      const GroupTable& table = s.tables[g];
      const Retained& retained = this->rules().groups[g].retained;
      if (retained.everything()) {
        continue;
      }
      const Pos first = retained.first_seen(std::max(ends.first - table.block_tokens(), 0)) / table.block_tokens();
      for (Pos number = std::max(first, table.first()); number < table.end() && is_for_end(g, number, ends); ++number) {
        if (blocks_.nodes.is_cached(table[number])) {
          blocks_.nodes.mark(table[number]);
        }
      }
    }
  }
  void drop(Sequence& s) noexcept {
    Base::drop(s, [&](std::size_t, Pos, BlockId block) { forget_unless_end(s, block); });
  }
  /// The states that a sequence begins from stay for later prompts: one has ended or gone on there, and another may.
  void mark_states(const Sequence& s) noexcept {
    for (const BlockId block : s.states.blocks()) {
      if (blocks_.nodes.is_cached(block)) {
        blocks_.nodes.mark(block);
      }
    }
  }
  /// Of the states, those of whole nodes stay as long as windows do: a later prompt may begin with all that there is.
  void drop_states(Sequence& s) noexcept {
    Base::drop_states(s, node_tokens_, [&](std::span<const BlockId> blocks) {
      for (const BlockId block : blocks) {  // the first ones of each kind are known to the index
        forget_unless_end(s, block);
      }
    });
  }
  /// A block that a sequence is about to drop leaves the index unless a prompt could end there.
  void forget_unless_end(Sequence& s, BlockId block) noexcept {
    if (!blocks_.nodes.is_cached(block)) {
      return;
    }
    if (blocks_.nodes.is_marked(block)) {
      if (s.state.ends.size() < s.state.ends.capacity()) {
        s.state.ends.push_back({block, blocks_.nodes.prefix(block)});
      }
    } else if (blocks_.pool.ref_count(block) == 1) {
      blocks_.uncache(block);
    }
  }

  /// The states behind a node that a hit ends with, which has all of them.
  void add_found_states(Sequence& s, typename Blocks::Node node) noexcept {
    std::size_t kind = 0;
    BlockId next = no_block;
    s.states.push({blocks_.nodes.end(Parent(node)), true}, [&] {
      const BlockId block = next != no_block ? next : blocks_.nodes.block(node, this->rules().groups.size() + kind++);
      next = blocks_.next_of_state(block);
      return block;
    });
  }
  /// Gives nodes the states of lengths above `before` that end with them.
  void index_states(Sequence& s, Pos before) noexcept {
    auto& nodes = blocks_.nodes;
    Parent at = s.state.last;
    const std::span<const Pos> lengths = s.states.lengths();
    for (std::size_t i = s.states.count_to(s.lengths.committed); i-- > 0 && lengths[i] > before;) {
      if (lengths[i] % node_tokens_ != 0 || lengths[i] > indexed(s)) {
        continue;
      }
      while (nodes.end(at) > lengths[i]) {
        at = nodes.index.parent(at.block());
      }
      std::span<const BlockId> blocks = s.states.of(i);
      for (Index kind = 0; kind < static_cast<Index>(this->rules().states.size()); ++kind) {
        const auto count = static_cast<std::size_t>(this->state_sizes(kind).blocks);
        const BlockId first = blocks[0];
        if (!nodes.is_cached(first) &&
            nodes.block(at.block(), nodes.groups() + static_cast<std::size_t>(kind)) == no_block) {
          blocks_.attach_state(s.state.context, s.state.tenant, s.state.root, at.block(),
                               static_cast<std::size_t>(kind), blocks.first(count));
        }
        if (s.states.is_kept(i) && nodes.is_cached(first)) {
          nodes.mark(first);
        }
        blocks = blocks.subspan(count);
      }
    }
  }

  /// Throws unless the first tokens are those of the prefix that a block is cached with. Returns its last node.
  ///   same   a node for which that is known: mostly one shortly before, so that a prefix is walked once
  Parent require_same_tokens(BlockId block, std::span<const Token> tokens, Parent same) const {
    const Parent last(blocks_.nodes.last_node(block));
    for (Parent at = last; !at.is_root() && !(at == same); at = blocks_.nodes.index.parent(at.block())) {
      const auto theirs = std::as_const(blocks_.nodes.index).tokens(at.block());
      const auto first = static_cast<std::size_t>(blocks_.nodes.end(at) - node_tokens_);
      const auto count = std::min(theirs.size(), tokens.size() - std::min(first, tokens.size()));
      require(std::ranges::equal(theirs.first(count), tokens.subspan(std::min(first, tokens.size()), count)), "tokens",
              first, "those that a shared block is cached with");
    }
    return last;
  }

  Blocks& blocks_;
  Pos node_tokens_;
  Index reach_ = 0;          // blocks that a hit needs in groups that drop rows
  std::vector<Index> lost_;  // [groups], and because of states
  std::array<Pos, max_groups + 1> last_lost_{};
  std::size_t cross_blocks_ = 0;  // of all groups
  std::vector<BlockId> path_;     // of the last prompt
  Index merges_ = 0;
};

}  // namespace detail
}  // namespace v0
}  // namespace kvc
