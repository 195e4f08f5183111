// GroupIndexer: gives the nodes of the prefix index the blocks that sequences have computed.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <span>
#include <utility>

#include "kvc/config.hpp"
#include "kvc/core/group_rule.hpp"
#include "kvc/core/types.hpp"
#include "kvc/policy/detail/prefix_ends.hpp"
#include "kvc/policy/group_table.hpp"

namespace kvc {
inline namespace v0 {
namespace detail {

/// Adds nodes for tokens that have become known, and attaches the blocks that a sequence still holds. Where a node has
/// a block already, the sequence takes that one. `Blocks` is a GroupCachedBlocks, and a sequence that of a
/// GroupTokenTables, with its lengths committed. References what it is made of. No member throws but the constructor.
template <class Blocks, class Sequence>
class GroupIndexer {
  using Parent = typename Blocks::Parent;

 public:
  GroupIndexer(Blocks& blocks, const GroupRules& rules)
      : blocks_(blocks), rules_(rules), ends_(blocks, rules), node_tokens_(blocks.nodes.node_tokens()) {
    const bool keeps = std::ranges::any_of(
        rules.groups, [](const GroupRule& rule) { return rule.retained.everything() && rule.cross_rows == 0; });
    const Index nodes = keeps ? blocks.nodes.nodes() * 4 / 5 : blocks.nodes.nodes() / 2;
    most_of_full_index_ = static_cast<Pos>(std::min(nodes * node_tokens_, Index{max_pos}));
  }

  [[nodiscard]] PrefixEnds<Blocks, Sequence>& ends() noexcept { return ends_; }
  /// Blocks of sequences that were released for an equal one that was cached.
  [[nodiscard]] Index merges() const noexcept { return merges_; }

  /// Adds nodes for the tokens of the first `known` positions, and gives them, and those that were there without, the
  /// blocks of the sequence. Expected O(tokens + nodes * groups).
  ///   ends_prompt   whether the end of the prompt was committed now
  KVC_OUT_OF_LINE void index_tokens(Sequence& s, Pos known, bool ends_prompt) noexcept {
    auto& nodes = blocks_.nodes;
    const auto n = static_cast<std::size_t>(node_tokens_);
    const Parent old_last = s.state.last;
    Parent last = old_last;
    const Pos old_end = nodes.end(last);
    Pos end = old_end;
    std::size_t used = 0;
    PosRange parting{0, 0};  // where prefixes part
    while (end + node_tokens_ <= known) {
      const auto tokens = s.state.tokens.all().subspan(used, n);
      const std::uint64_t hash = nodes.index.chain_hash(last, tokens);
      BlockId node = nodes.index.find(last, tokens, hash);
      if (node == no_block) {
        if (!nodes.has_free_node() && (end >= most_of_full_index_ || !blocks_.make_free_node())) {
          break;
        }
        if (nodes.index.has_children(last)) {
          parting = {end, end + node_tokens_};
        }
        node = nodes.insert(last, tokens, hash);
        blocks_.report_node(s.state.root, node);
      }
      nodes.ref(Parent(node));  // so that making room for the next node cannot remove it
      if (end > old_end) {      // the sequence still counts at its old node
        nodes.unref(last);
      }
      last = Parent(node);
      end += node_tokens_;
      used += n;
    }
    const Pos prompt_end = s.state.prompt_end;
    if (end > old_end) {
      ends_prompt = ends_prompt || (old_end <= prompt_end && prompt_end < end);  // its node is full now
      s.state.last = last;
      s.state.tokens.drop_front(used);
      attach_blocks(s, old_last, parting);
      if (parting.last > 0) [[unlikely]] {
        ends_.mark(s, parting);
      }
      nodes.unref(old_last);
    }
    if (ends_prompt) {
      ends_.mark(s, {prompt_end, prompt_end});
    }
  }

  /// The rows of another input, which are committed, serve later prompts with the same salt; or those that are there
  /// serve this sequence, too. O(blocks).
  void attach_cross(Sequence& s) noexcept {
    if (blocks_.nodes.index.roots().salt(s.state.root).empty()) {
      return;
    }
    const std::span<const BlockId> there = blocks_.cross(s.state.root);
    const bool is_first = there.empty();
    std::size_t next = 0;
    for (std::size_t g = 0; g < s.tables.size(); ++g) {
      if (s.tables[g].grows()) {
        continue;
      }
      for (Pos number = 0; number < s.tables[g].end(); ++number) {
        BlockId& own = s.tables[g][number];
        if (is_first) {
          blocks_.attach_cross(s.state.context, s.state.tenant, s.state.root, g, own);
          continue;
        }
        if (own != there[next]) {
          const BlockId before = std::exchange(own, there[next]);
          blocks_.merge(before, there[next], s.state);
          ++merges_;
        }
        ++next;
      }
    }
  }

  /// Gives nodes the states of lengths above `before` that end with them. O(states + nodes).
  void attach_states(Sequence& s, Pos before) noexcept {
    auto& nodes = blocks_.nodes;
    Parent at = s.state.last;
    const std::span<const Pos> lengths = s.states.lengths();
    for (std::size_t i = s.states.count_to(s.lengths.committed); i-- > 0 && lengths[i] > before;) {
      if (lengths[i] % node_tokens_ != 0 || lengths[i] > nodes.end(s.state.last)) {
        continue;
      }
      while (nodes.end(at) > lengths[i]) {
        at = nodes.index.parent(at.block());
      }
      std::span<BlockId> blocks = s.states.of(i);
      for (std::size_t kind = 0; kind < rules_.states.size(); ++kind) {
        const std::size_t column = nodes.groups() + kind;
        const auto count = static_cast<std::size_t>(1 + blocks_.others(column));
        const BlockId there = nodes.block(at.block(), column);
        if (!nodes.is_cached(blocks[0]) && there == no_block) {
          blocks_.attach_state(s.state.context, s.state.tenant, s.state.root, at.block(), kind, blocks.first(count));
        } else if (s.state.is_pin && there != no_block && there != blocks[0]) {
          take_states(s, blocks.first(count), there);
        }
        if (s.states.is_kept(i) && nodes.is_cached(blocks[0])) {
          nodes.mark(blocks[0]);
        }
        blocks = blocks.subspan(count);
      }
    }
  }

 private:
  /// Gives a pin the states of a node, in place of equal ones of its own: it protects what prompts find.
  KVC_OUT_OF_LINE void take_states(Sequence& s, std::span<BlockId> own, BlockId there) noexcept {
    for (BlockId& block : own) {
      const BlockId next = blocks_.next_of_state(there);
      blocks_.ref(there);
      blocks_.release(std::exchange(block, there), s.state);
      there = next;
    }
    ++merges_;
  }
  /// Gives the nodes from the sequence's node up to the old one, which has its blocks already, those of the sequence.
  KVC_ALWAYS_INLINE void attach_blocks(Sequence& s, Parent old_last, PosRange parting) noexcept {
    auto& nodes = blocks_.nodes;
    const auto last = s.state.last.block();
    const Pos last_end = nodes.end(s.state.last);
    const bool is_one_node = nodes.index.parent(last) == old_last;  // it is in blocks that stay
    std::size_t g = 0;
    for (GroupTable& table : s.tables) {
      if (table.grows()) {
        BlockId* const own = is_one_node ? table.find_last(last_end) : nullptr;
        if (own != nullptr) [[likely]] {
          attach_block(s, g, table.end() - 1, *own, last, table.room() == last_end || is_whole_pin(s));
        } else {
          attach_blocks(s, g, old_last, parting, is_one_node);
        }
      }
      ++g;
    }
  }
  /// The same in one group.
  KVC_OUT_OF_LINE void attach_blocks(Sequence& s, std::size_t g, Parent old_last, PosRange parting,
                                     bool is_one_node) noexcept {
    auto& nodes = blocks_.nodes;
    GroupTable& table = s.tables[g];
    Pos end = nodes.end(s.state.last);
    Pos number = table.number_of(end - 1);
    const Pos length = std::max(s.lengths.committed - rules_.rewind, 0);
    const PosRange prompt{s.state.prompt_end, s.state.prompt_end};
    const PosRange now{length, s.lengths.committed};  // it may be closed here
    for (Parent at = s.state.last; !(at == old_last); at = nodes.index.parent(at.block()), end -= node_tokens_) {
      number -= end <= Index{number} * table.block_tokens() ? 1 : 0;
      if (is_one_node || ends_.needs(g, table, number, now) || number < table.first() ||
          ends_.needs(g, table, number, parting) || ends_.needs(g, table, number, prompt)) {
        if (BlockId* const own = table.find_complete(number)) {
          const bool fills = end == Index{number + 1} * table.block_tokens() || (at == s.state.last && is_whole_pin(s));
          attach_block(s, g, number, *own, at.block(), fills);
        }
      }
    }
  }
  /// Whether a sequence is a pin that has no rows behind its last node. None will come.
  [[nodiscard]] bool is_whole_pin(const Sequence& s) const noexcept {
    return s.state.is_pin && blocks_.nodes.end(s.state.last) == s.lengths.committed;
  }
  /// Gives a node the block of a sequence, or the sequence that of the node.
  ///   fills   whether the rows of the sequence in the block end where the node does, for ever
  KVC_ALWAYS_INLINE void attach_block(Sequence& s, std::size_t g, Pos number, BlockId& own, BlockId node,
                                      bool fills) noexcept {
    const BlockId there = blocks_.nodes.block(node, g);
    if (there == no_block) {
      s.share_tails();
      blocks_.attach(s.state.context, s.state.tenant, s.state.root, node, g, number, own);
    } else if (there != own && fills) {
      blocks_.merge(std::exchange(own, there), there, s.state);
      ++merges_;
    }
  }

  Blocks& blocks_;
  const GroupRules& rules_;
  PrefixEnds<Blocks, Sequence> ends_;
  Pos node_tokens_;
  /// A sequence of so many tokens takes no more of a full index: others' prefixes are worth as much. Half of it, or, if
  /// its rows would fill the pool as well, as many as the pool has rows for by default.
  Pos most_of_full_index_ = 0;
  Index merges_ = 0;
};

}  // namespace detail
}  // namespace v0
}  // namespace kvc
