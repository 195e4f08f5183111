// PoolKeys: the names under which slower tiers know the cached blocks of a pool.
#pragma once

#include <algorithm>
#include <cstddef>
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
#include "kvc/tier/key_chain.hpp"
#include "kvc/tier/record_info.hpp"

namespace kvc {
inline namespace v0 {
namespace tier {

/// Follows the events of a prefix cache, and keeps for each cached block what its record says: key, parent, salt, tokens.
/// Allocates an entry of a table for each cached block, and a chain for each salt of late.
class PoolKeys {
 public:
  /// Most salts whose chains are kept.
  static constexpr std::size_t max_chains = 1024;

  /// For blocks 0 .. blocks-1 of block_tokens tokens. `format` as of KeyChain. Throws std::bad_alloc.
  PoolKeys(Index blocks, Pos block_tokens, std::string format)
      : block_tokens_(static_cast<std::size_t>(block_tokens)),
        format_(std::move(format)),
        blocks_(static_cast<std::size_t>(blocks)),
        tokens_(static_cast<std::size_t>(blocks) * block_tokens_) {}

  /// A chain for prompts of a salt, before their first block. Valid until the next call. Throws std::bad_alloc.
  [[nodiscard]] KeyChain& chain(std::string_view salt_bytes) {
    std::string salt(salt_bytes);
    auto found = chains_.find(salt);
    if (found == chains_.end()) {
      if (chains_.size() >= max_chains) {
        chains_.clear();
      }
      const KeyChain fresh(format_, Salt::from_bytes(salt).value());
      found = chains_.emplace(std::move(salt), fresh).first;
    }
    found->second.restart();
    return found->second;
  }

  /// A block became cached. False if the block before it is not known: this one cannot be either. Throws std::bad_alloc;
  /// the block is not known then.
  bool store(const BlockStored& event) {
    if (event.parent != no_block && find(event.parent) == nullptr) {
      return false;
    }
    KeyChain& keys = chain(event.salt);
    if (event.parent != no_block) {
      keys.resume(find(event.parent)->key);
    }
    const std::span<Token> own = std::span(tokens_).subspan(index(event.block) * block_tokens_, block_tokens_);
    std::ranges::copy(event.tokens, own.begin());
    const RecordInfo info = keys.next(own);
    block_of_.insert_or_assign(info.key, event.block);
    const Pos depth = event.parent == no_block ? 0 : this->depth(event.parent) + 1;
    blocks_[index(event.block)] = {info, event.parent, depth, true};
    return true;
  }
  /// A block is not cached any more.
  void remove(BlockId block) noexcept {
    Entry& entry = blocks_[index(block)];
    if (std::exchange(entry.known, false)) {
      block_of_.erase(entry.info.key);
    }
  }
  /// Nothing is cached any more.
  void clear() noexcept {
    for (Entry& entry : blocks_) {
      entry.known = false;
    }
    block_of_.clear();
  }

  /// What the record of a cached block says, or nullptr if the block is not known. Valid until the block is removed. O(1).
  [[nodiscard]] const RecordInfo* find(BlockId block) const noexcept {
    const Entry& entry = blocks_[index(block)];
    return entry.known ? &entry.info : nullptr;
  }
  /// The block before a known block; no_block if that is the first of its prefix.
  [[nodiscard]] BlockId parent(BlockId block) const noexcept { return blocks_[index(block)].parent; }
  /// Blocks before a known block in its prefix.
  [[nodiscard]] Pos depth(BlockId block) const noexcept { return blocks_[index(block)].depth; }
  /// The cached block of this key, or no_block. Expected O(1).
  [[nodiscard]] BlockId find(const BlockKey& key) const noexcept {
    const auto found = block_of_.find(key);
    return found == block_of_.end() ? no_block : found->second;
  }
  /// Blocks that are known.
  [[nodiscard]] std::size_t size() const noexcept { return block_of_.size(); }

 private:
  struct Entry {
    RecordInfo info{};
    BlockId parent = no_block;
    Pos depth = 0;
    bool known = false;
  };
  [[nodiscard]] static std::size_t index(BlockId block) noexcept { return static_cast<std::size_t>(block); }

  std::size_t block_tokens_;
  std::string format_;
  std::vector<Entry> blocks_;
  std::vector<Token> tokens_;  // [blocks, block_tokens]
  std::unordered_map<BlockKey, BlockId, BlockKeyHash> block_of_;
  std::unordered_map<std::string, KeyChain> chains_;  // by Salt::bytes()
};

}  // namespace tier
}  // namespace v0
}  // namespace kvc
