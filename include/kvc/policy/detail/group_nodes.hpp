// GroupNodes: the prefix index of several layer groups.
//
// A node of the index stands for (parent, node_tokens tokens), as a cached block does where there is one group. It may
// have a block in each group: one that holds the rows of its tokens, and all rows before them in that block. A block
// holds the tokens of one or several nodes, one after the other; its **last node** is the deepest of those that have
// it. So the deepest node of a prefix within the span of a block has a block with all rows of the prefix in that span.
//
// Beside the groups a node has a column for each kind of recurrent states: the first block of those after its last
// tokens.
//
// A node stays as long as it has a block, a child, or a sequence that ends there.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "kvc/config.hpp"
#include "kvc/core/error.hpp"
#include "kvc/core/group_rule.hpp"
#include "kvc/core/types.hpp"
#include "kvc/memory/large_vector.hpp"
#include "kvc/policy/block_array.hpp"
#include "kvc/policy/detail/block_sizes.hpp"
#include "kvc/policy/prefix_index.hpp"

namespace kvc {
inline namespace v0 {
namespace detail {

template <class Hash>
class GroupNodes {
 public:
  using HashType = Hash;
  using PrefixIndexType = PrefixIndex<Hash>;
  using Parent = typename PrefixIndexType::Parent;
  using Node = BlockId;  ///< the index counts nodes, not blocks
  static constexpr Node no_node = no_block;

  GroupNodes(Index blocks, Index nodes, const BlockSizes& sizes, Hash hash)
      : index(nodes, sizes.node_tokens, hash),
        sizes_(sizes),
        nodes_(nodes),
        columns_(sizes.tokens.size() + sizes.states.size()),
        blocks_of_(static_cast<std::size_t>(nodes) * columns_, no_block),
        holders_(blocks) {
    free_.resize(static_cast<std::size_t>(nodes));
    for (std::size_t i = 0; i < free_.size(); ++i) {
      free_[i] = static_cast<Node>(free_.size() - 1 - i);
    }
  }

  PrefixIndexType index;

  [[nodiscard]] Pos node_tokens() const noexcept { return sizes_.node_tokens; }
  [[nodiscard]] Pos block_tokens(std::size_t group) const noexcept { return sizes_.tokens[group]; }
  [[nodiscard]] std::size_t groups() const noexcept { return sizes_.tokens.size(); }
  /// Groups and kinds of states: column groups() + kind is that of a kind. Members that take a group take a column.
  [[nodiscard]] std::size_t columns() const noexcept { return columns_; }
  [[nodiscard]] bool has_free_node() const noexcept { return !free_.empty(); }

  /// The position behind the tokens of a node; 0 for a root.
  [[nodiscard]] Pos end(Parent node) const noexcept { return node.is_root() ? 0 : nodes_[node.block()].end; }
  /// Whether a node has all kinds of states. True where there are none.
  [[nodiscard]] bool has_states(Node node) const noexcept {
    return std::ranges::find(blocks_of(node).subspan(groups()), no_block) == blocks_of(node).end();
  }
  /// The block of a node in a group, or no_block.
  [[nodiscard]] BlockId block(Node node, std::size_t group) const noexcept { return blocks_of(node)[group]; }
  [[nodiscard]] std::span<const BlockId> blocks_of(Node node) const noexcept {
    return {blocks_of_.data() + static_cast<std::size_t>(node) * columns_, columns_};
  }
  /// The tokens that lead to a node. O(tokens). Throws std::bad_alloc.
  [[nodiscard]] std::vector<Token> tokens_to(Parent node) const {
    std::vector<Token> tokens(static_cast<std::size_t>(end(node)));
    for (Parent at = node; !at.is_root(); at = index.parent(at.block())) {
      std::ranges::copy(index.tokens(at.block()), tokens.begin() + (end(at) - node_tokens()));
    }
    return tokens;
  }
  /// Throws std::invalid_argument unless `tokens` begin as the prefix that a block is cached with, or the other way
  /// round. Returns the last node of the block.
  ///   same   a node for which that is known: mostly one shortly before, so that a prefix is walked once
  Parent require_tokens(BlockId block, std::span<const Token> tokens, Parent same) const {
    const Parent last(last_node(block));
    for (Parent at = last; !at.is_root() && !(at == same); at = index.parent(at.block())) {
      const auto theirs = index.tokens(at.block());
      const auto first = static_cast<std::size_t>(end(at) - node_tokens());
      const auto count = std::min(theirs.size(), tokens.size() - std::min(first, tokens.size()));
      require(std::ranges::equal(theirs.first(count), tokens.subspan(std::min(first, tokens.size()), count)), "tokens",
              first, "those that a shared block is cached with");
    }
    return last;
  }
  /// Prefetches the blocks of a node.
  void prefetch(Node node) const noexcept { __builtin_prefetch(blocks_of(node).data()); }

  // --- nodes ---------------------------------------------------------------------------------------------------------

  /// A new node, which has no block. Requires has_free_node().
  Node insert(Parent parent, std::span<const Token> tokens, std::uint64_t hash) noexcept {
    const Node node = free_.back();
    free_.pop_back();
    std::ranges::copy(tokens, index.tokens(node).begin());
    nodes_[node] = {end(parent) + node_tokens(), 0};
    const Node same = index.insert(node, parent, hash);
    KVC_ASSERT(same == no_node);
    (void)same;
    return node;
  }
  /// One more sequence ends at this node.
  void ref(Parent node) noexcept {
    if (!node.is_root()) {
      ++nodes_[node.block()].ref_count;
    }
  }
  /// One sequence less ends there. Removes the node, and ancestors, if nothing needs them any more.
  void unref(Parent node) noexcept {
    if (!node.is_root() && --nodes_[node.block()].ref_count == 0 && !index.has_children(node)) {
      prune(node.block());
    }
  }

  // --- blocks --------------------------------------------------------------------------------------------------------

  /// Whether a node has the block, or it holds rows of another input for the prompts of a root.
  [[nodiscard]] bool is_cached(BlockId block) const noexcept {
    return holders_[block].node != no_node || is_cross(block);
  }
  [[nodiscard]] bool is_cross(BlockId block) const noexcept { return holders_[block].root >= 0; }
  /// The root of a block that is_cross.
  [[nodiscard]] Parent cross_root(BlockId block) const noexcept { return Parent::root(holders_[block].root); }
  void attach_cross(Parent root, std::size_t group, BlockId block) noexcept {
    holders_[block] = {no_node, static_cast<std::int32_t>(group), 0, static_cast<std::int32_t>(root.root_index()),
                       false};
  }
  void detach_cross(BlockId block) noexcept { holders_[block] = {}; }
  [[nodiscard]] Node last_node(BlockId block) const noexcept { return holders_[block].node; }
  [[nodiscard]] std::size_t group(BlockId block) const noexcept {
    return static_cast<std::size_t>(holders_[block].group);
  }
  /// The position of the first row of a cached block.
  [[nodiscard]] Pos first(BlockId block) const noexcept { return holders_[block].first; }
  /// Rows of a cached block that its nodes stand for, from the first on.
  [[nodiscard]] Pos rows(BlockId block) const noexcept {
    return nodes_[holders_[block].node].end - holders_[block].first;
  }
  /// Whether the rows of its nodes fill the block.
  [[nodiscard]] bool is_full(BlockId block) const noexcept { return rows(block) == block_tokens(group(block)); }

  /// The hash of the prefix that ends with the last node of a block; 0 of a block that no node has.
  [[nodiscard]] std::uint64_t prefix(BlockId block) const noexcept {
    return last_node(block) == no_node ? 0 : index.hash(last_node(block));
  }

  /// Gives a block to a node that has none in this group: a new block, or that of an ancestor in its span.
  ///   first   the position of the block's first row
  void attach(Node node, std::size_t group, Pos first, BlockId block) noexcept {
    blocks_at(node)[group] = block;
    Holder& holder = holders_[block];
    if (holder.node == no_node || nodes_[holder.node].end < nodes_[node].end) {
      holder.node = node;
    }
    holder.group = static_cast<std::int32_t>(group);
    holder.first = first;
  }
  /// Gives a node the first block of its states of one kind.
  void attach_state(Node node, std::size_t kind, BlockId block) noexcept {
    attach(node, groups() + kind, nodes_[node].end - node_tokens(), block);
  }
  /// Gives its nodes another block, which holds the same rows and more; f(node) for each, ancestors first.
  template <class F>
  void replace(BlockId block, BlockId other, F&& f) noexcept {
    for (Node first = first_node(block); first != no_node; first = first_node(block)) {
      blocks_at(first)[group(block)] = other;
      f(first);
    }
    holders_[block] = {};
  }
  /// Takes a block from its nodes. Nodes that nothing needs any more are removed.
  void detach(BlockId block) noexcept {
    const Holder holder = holders_[block];
    if (nodes_[holder.node].end - node_tokens() > holder.first) {  // others may have it, too
      for_each_node(block, [&](Node node) { blocks_at(node)[group(block)] = no_block; });
    } else {
      blocks_at(holder.node)[static_cast<std::size_t>(holder.group)] = no_block;
    }
    holders_[block] = {};
    if (!is_in_use(holder.node)) {
      prune(holder.node);
    }
  }

  /// A mark of a block for its owner's use; false when it is attached.
  [[nodiscard]] bool is_marked(BlockId block) const noexcept { return holders_[block].marked; }
  void mark(BlockId block) noexcept { holders_[block].marked = true; }
  /// mark(block) if is_cached(block).
  void mark_if_cached(BlockId block) noexcept {
    Holder& holder = holders_[block];
    holder.marked = holder.marked || holder.node != no_node || holder.root >= 0;
  }

  /// Remembers one node: when it is removed, its parent takes its place.
  void watch(Node node) noexcept { watched_ = node; }
  [[nodiscard]] Node watched() const noexcept { return watched_; }

  /// Removes all nodes and takes all blocks from them. Nobody may end at a node any more.
  void clear() noexcept {
    index.clear();
    std::ranges::fill(blocks_of_, no_block);
    std::ranges::fill(holders_.values(), Holder{});
    free_.resize(static_cast<std::size_t>(nodes_.size()));  // within its capacity
    for (std::size_t i = 0; i < free_.size(); ++i) {
      free_[i] = static_cast<Node>(free_.size() - 1 - i);
    }
  }

  /// Compares sequences that end at nodes with `expected` [nodes]. O(nodes). Throws InvariantError.
  void verify(const BlockArray<std::int32_t>& expected) const {
    index.verify();
    Index cached = 0;
    nodes_.for_each([&](Node node, const NodeData& data) {
      if (!index.contains(node)) {
        return;
      }
      ++cached;
      const Parent parent = index.parent(node);
      bool has_block = false;
      for (std::size_t g = 0; g < groups(); ++g) {
        const BlockId block = this->block(node, g);
        has_block = has_block || block != no_block;
        check(block == no_block || (is_cached(block) && group(block) == g && is_ancestor(node, last_node(block), g)),
              node, "has a block that does not know it");
        check(block == no_block || holders_[block].first % block_tokens(g) == 0, node,
              "has a block that begins elsewhere");
      }
      for (std::size_t g = groups(); g < columns(); ++g) {
        const BlockId block = this->block(node, g);
        has_block = has_block || block != no_block;
        check(block == no_block || (is_cached(block) && group(block) == g && last_node(block) == node), node,
              "has a state that does not know it");
      }
      check(data.end == end(parent) + node_tokens(), node, "has another end than its parent says");
      check(data.ref_count == expected[node], node, "counts other sequences than end there");
      check(has_block || index.has_children(node) || data.ref_count > 0, node, "is of no use");
    });
    check(cached + static_cast<Index>(free_.size()) == nodes_.size(), no_node, "(none): nodes are lost");
    holders_.for_each([&](BlockId block, const Holder& holder) {
      check(holder.node == no_node || this->block(holder.node, group(block)) == block, holder.node,
            "does not have the block whose last node it is");
    });
  }
  [[nodiscard]] Index nodes() const noexcept { return nodes_.size(); }

 private:
  struct NodeData {
    Pos end = 0;
    std::int32_t ref_count = 0;
  };
  struct Holder {
    Node node = no_node;  // the last one
    std::int32_t group = 0;
    Pos first = 0;           // position of its first row
    std::int32_t root = -1;  // of a block with rows of another input
    bool marked = false;
  };

  [[nodiscard]] std::span<BlockId> blocks_at(Node node) noexcept {
    return {blocks_of_.data() + static_cast<std::size_t>(node) * columns_, columns_};
  }
  /// f(node) for all nodes that have a cached block, deepest first.
  template <class F>
  void for_each_node(BlockId block, F&& f) noexcept {
    const std::size_t g = group(block);
    const Pos first = holders_[block].first;
    for (Parent at(last_node(block)); end(at) > first; at = index.parent(at.block())) {
      if (this->block(at.block(), g) == block) {
        f(at.block());
      }
    }
  }
  /// Of the nodes that have a cached block, the first of the prefix; no_node if there is none any more.
  [[nodiscard]] Node first_node(BlockId block) noexcept {
    Node first = no_node;
    for_each_node(block, [&](Node node) { first = node; });
    return first;
  }
  /// Whether a node has a child, or a sequence ends there: nearly always, of one that lost a block.
  [[nodiscard]] bool is_in_use(Node node) const noexcept {
    return index.has_children(node) || nodes_[node].ref_count > 0;
  }
  KVC_OUT_OF_LINE void prune(Node node) noexcept {
    while (!is_in_use(node) && std::ranges::all_of(blocks_of(node), [](BlockId block) { return block == no_block; })) {
      const Parent parent = index.parent(node);
      index.erase(node);
      free_.push_back(node);
      if (node == watched_) {
        watched_ = parent.is_root() ? no_node : parent.block();
      }
      if (parent.is_root()) {
        return;
      }
      node = parent.block();
    }
  }
  /// Whether `node` is `last` or an ancestor of it in the span of one block.
  [[nodiscard]] bool is_ancestor(Node node, Node last, std::size_t group) const noexcept {
    const Pos first = (end(Parent(node)) - 1) / block_tokens(group) * block_tokens(group);
    for (Parent at(last); end(at) > first; at = index.parent(at.block())) {
      if (at.block() == node) {
        return true;
      }
    }
    return false;
  }
  static void check(bool ok, Node node, const char* what) {
    if (!ok) [[unlikely]] {
      throw_error(InvariantError("kvc: node " + std::to_string(to_index(node)) + " of the prefix index " + what));
    }
  }

  BlockSizes sizes_;
  BlockArray<NodeData> nodes_;
  std::size_t columns_;
  LargeVector<BlockId> blocks_of_;  // [nodes, columns]
  BlockArray<Holder> holders_;      // [blocks]
  Node watched_ = no_node;
  std::vector<Node> free_;  // a stack; never grows beyond its first capacity
};

}  // namespace detail
}  // namespace v0
}  // namespace kvc
