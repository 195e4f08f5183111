// PoolKeys: the names under which slower tiers know what a pool has cached.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <unordered_map>
#include <utility>
#include <vector>

#include "kvc/core/error.hpp"
#include "kvc/core/types.hpp"
#include "kvc/policy/block_array.hpp"
#include "kvc/policy/events.hpp"
#include "kvc/policy/salt.hpp"
#include "kvc/tier/key.hpp"
#include "kvc/tier/key_chain.hpp"
#include "kvc/tier/record_info.hpp"

namespace kvc {
inline namespace v0 {
namespace tier {

/// The number of a tier block: what one node of the index has in one column, a layer group or a kind of recurrent
/// states. That of column c of node n is n * columns + c; with one group that keeps everything it is the number of the
/// pool's block.
using TierBlock = BlockId;

/// One column, for PoolKeys.
struct KeyColumn {
  std::uint32_t parts = 1;  ///< of its records
  bool is_chain = true;     ///< a block is of use only with all blocks before it: the group keeps everything
};

/// Follows the events of a prefix cache, and keeps for each tier block what its record says: key, parent, salt, tokens.
/// Allocates an entry of a table for each cached one, and chains for each salt of late. Members are O(1) unless stated
/// otherwise.
class PoolKeys {
 public:
  /// Most salts whose chains are kept.
  static constexpr std::size_t max_chains = 1024;

  /// For `blocks` blocks of a pool, and an index of `nodes` nodes of node_tokens tokens. `format` as of KeyChain.
  /// Throws std::bad_alloc.
  PoolKeys(Index blocks, Index nodes, Pos node_tokens, std::vector<KeyColumn> columns, std::string format)
      : node_tokens_(static_cast<std::size_t>(node_tokens)),
        format_(std::move(format)),
        columns_(std::move(columns)),
        nodes_(static_cast<std::size_t>(nodes)),
        entries_(nodes_.size() * columns_.size()),
        tokens_(nodes_.size() * node_tokens_),
        first_(blocks, no_block) {}

  [[nodiscard]] std::size_t columns() const noexcept { return columns_.size(); }
  /// Tier blocks that there can be.
  [[nodiscard]] Index blocks() const noexcept { return static_cast<Index>(entries_.size()); }
  /// Of a tier block.
  [[nodiscard]] std::size_t column(TierBlock block) const noexcept { return index(block) % columns_.size(); }

  /// A chain for prompts of a salt in one column, before their first block. Valid until the next call. Throws
  /// std::bad_alloc.
  [[nodiscard]] KeyChain& chain(std::string_view salt_bytes, std::size_t column) {
    KeyChain& chain = chains(salt_bytes)[column];
    chain.restart();
    return chain;
  }
  /// Steps a chain over the next block of a column.
  [[nodiscard]] RecordInfo next(KeyChain& chain, std::size_t column, std::span<const Token> tokens) const {
    return chain.next(tokens, columns_[column].parts);
  }

  /// The index has this node now. Throws std::bad_alloc; neither it nor what follows it has a name then.
  void add(const NodeAdded& node) {
    Node& added = nodes_[static_cast<std::size_t>(node.node)];
    added = {node.parent, 0, false};
    if (node.parent != BlockStored::no_node) {
      const Node& parent = nodes_[static_cast<std::size_t>(node.parent)];
      if (!parent.has_keys) {
        return;
      }
      added.depth = parent.depth + 1;
    }
    std::vector<KeyChain>& all = chains(node.salt);
    const std::span<Token> own =
        std::span(tokens_).subspan(static_cast<std::size_t>(node.node) * node_tokens_, node_tokens_);
    std::ranges::copy(node.tokens, own.begin());
    for (std::size_t s = 0; s < columns_.size(); ++s) {
      all[s].restart();
      if (node.parent != BlockStored::no_node) {
        all[s].resume(entries_[index(at(node.parent, s))].info.key);
      }
      entries_[index(at(node.node, s))] = {next(all[s], s, own)};
    }
    added.has_keys = true;
  }
  /// A block became cached. The tier block that it is, or no_block if that has no name. Throws std::bad_alloc; it is
  /// not known then.
  TierBlock store(const BlockStored& event) {
    std::int32_t node = event.node;
    if (node == BlockStored::no_node) {  // with one group, the block is the node
      node = static_cast<std::int32_t>(event.block);
      add({node, static_cast<std::int32_t>(event.parent), event.salt, event.tokens});
    }
    const TierBlock block = at(node, static_cast<std::size_t>(event.group));
    Entry& entry = entries_[index(block)];
    if (!nodes_[static_cast<std::size_t>(node)].has_keys || entry.block != no_block) {
      return no_block;
    }
    block_of_.insert_or_assign(entry.info.key, block);
    entry.block = event.block;
    entry.same = std::exchange(first_[event.block], block);
    return block;
  }
  /// A block of the pool is not cached any more.
  void remove(BlockId pool_block) noexcept {
    for (TierBlock block = std::exchange(first_[pool_block], no_block); block != no_block;) {
      Entry& entry = entries_[index(block)];
      block_of_.erase(entry.info.key);
      entry.block = no_block;
      block = std::exchange(entry.same, no_block);
    }
  }
  /// f(tier block) for those that lie in a block of the pool. O(those).
  template <class F>
  void for_each_in(BlockId pool_block, F&& f) const {
    for (TierBlock block = first_[pool_block]; block != no_block; block = entries_[index(block)].same) {
      f(block);
    }
  }
  /// Nothing is cached any more. O(blocks).
  void clear() noexcept {
    for (Entry& entry : entries_) {
      entry.block = entry.same = no_block;
    }
    for (Node& node : nodes_) {
      node.has_keys = false;
    }
    std::ranges::fill(first_.values(), no_block);
    block_of_.clear();
  }

  /// What the record of a cached tier block says, or nullptr if it is not cached. Valid until it is removed.
  [[nodiscard]] const RecordInfo* find(TierBlock block) const noexcept {
    const Entry& entry = entries_[index(block)];
    return entry.block != no_block ? &entry.info : nullptr;
  }
  /// The block of the pool that has a cached tier block; of states the first one.
  [[nodiscard]] BlockId pool_block(TierBlock block) const noexcept { return entries_[index(block)].block; }
  /// The tier block before a cached one, without which it is of no use; no_block if there is none.
  [[nodiscard]] TierBlock parent(TierBlock block) const noexcept {
    const Node& node = nodes_[index(block) / columns_.size()];
    if (node.parent == BlockStored::no_node || !columns_[column(block)].is_chain) {
      return no_block;
    }
    const TierBlock parent = at(node.parent, column(block));
    return find(parent) != nullptr ? parent : no_block;
  }
  /// Nodes before that of a cached tier block.
  [[nodiscard]] Pos depth(TierBlock block) const noexcept { return nodes_[index(block) / columns_.size()].depth; }
  /// The cached tier block of this key, or no_block. Expected O(1).
  [[nodiscard]] TierBlock find(const BlockKey& key) const noexcept {
    const auto found = block_of_.find(key);
    return found == block_of_.end() ? no_block : found->second;
  }
  /// Tier blocks that are cached.
  [[nodiscard]] std::size_t size() const noexcept { return block_of_.size(); }

 private:
  struct Node {
    std::int32_t parent = BlockStored::no_node;
    Pos depth = 0;
    bool has_keys = false;
  };
  struct Entry {
    RecordInfo info{};
    BlockId block = no_block;   // of the pool
    TierBlock same = no_block;  // another one in the same block of the pool
  };
  [[nodiscard]] static std::size_t index(TierBlock block) noexcept { return static_cast<std::size_t>(block); }
  [[nodiscard]] TierBlock at(std::int32_t node, std::size_t column) const noexcept {
    return static_cast<TierBlock>(static_cast<std::size_t>(node) * columns_.size() + column);
  }
  [[nodiscard]] std::vector<KeyChain>& chains(std::string_view salt_bytes) {
    std::string salt(salt_bytes);
    auto found = chains_.find(salt);
    if (found == chains_.end()) {
      if (chains_.size() >= max_chains) {
        chains_.clear();
      }
      std::vector<KeyChain> fresh;
      for (std::size_t s = 0; s < columns_.size(); ++s) {
        fresh.emplace_back(format_, Salt::from_bytes(salt).value(), static_cast<std::int32_t>(s));
      }
      found = chains_.emplace(std::move(salt), std::move(fresh)).first;
    }
    return found->second;
  }

  std::size_t node_tokens_;
  std::string format_;
  std::vector<KeyColumn> columns_;
  std::vector<Node> nodes_;
  std::vector<Entry> entries_;   // [nodes, columns]
  std::vector<Token> tokens_;    // [nodes, node_tokens]
  BlockArray<TierBlock> first_;  // [blocks of the pool] one that lies there
  std::unordered_map<BlockKey, TierBlock, BlockKeyHash> block_of_;
  std::unordered_map<std::string, std::vector<KeyChain>> chains_;  // by Salt::bytes(), then [columns]
};

}  // namespace tier
}  // namespace v0
}  // namespace kvc
