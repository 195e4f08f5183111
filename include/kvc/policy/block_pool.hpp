// BlockPool: a fixed number of blocks, each free or with a reference count.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "kvc/core/error.hpp"
#include "kvc/core/stats.hpp"
#include "kvc/core/types.hpp"
#include "kvc/policy/block_array.hpp"

namespace kvc {
inline namespace v0 {

/// Blocks 0 .. size()-1, each free, or with a reference count. The block that was freed last is allocated first: it is
/// the likeliest to be in a processor's cache. Operations are O(1) and allocate no memory unless they say otherwise.
class BlockPool {
 public:
  /// Throws std::invalid_argument unless 1 <= blocks < 2^31. O(blocks).
  explicit BlockPool(Index blocks) {
    require_between(blocks, Index{1}, Index{max_pos}, "config.blocks");
    ref_counts_ = BlockArray<std::int32_t>(blocks, 0);
    free_.resize(static_cast<std::size_t>(blocks));
    for (; free_count_ < free_.size(); ++free_count_) {
      free_[free_count_] = static_cast<BlockId>(free_.size() - 1 - free_count_);
    }
  }

  /// Blocks in the pool, free or not. O(1).
  [[nodiscard]] Index size() const noexcept { return ref_counts_.size(); }
  /// Free blocks.
  [[nodiscard]] Index available() const noexcept { return static_cast<Index>(free_count_); }
  /// References to a block; 0 if it is free. O(1).
  [[nodiscard]] std::int32_t ref_count(BlockId block) const noexcept { return ref_counts_[block]; }

  /// A free block, with a reference count of 1. Requires available() > 0.
  [[nodiscard]] BlockId allocate() noexcept {
    KVC_ASSERT(free_count_ > 0);
    const BlockId block = free_[--free_count_];
    ref_counts_[block] = 1;
    return block;
  }
  /// One reference more to a block that is not free.
  void ref(BlockId block) noexcept { ++ref_counts_[block]; }
  /// One reference less; returns the remaining count. A block with a count of 0 is not free before `free` is called.
  std::int32_t unref(BlockId block) noexcept {
    KVC_ASSERT(ref_count(block) > 0);
    return --ref_counts_[block];
  }
  /// Makes a block with a reference count of 0 free.
  void free(BlockId block) noexcept {
    KVC_ASSERT(ref_count(block) == 0 && free_count_ < free_.size());
    free_[free_count_++] = block;
  }

  /// Appends free blocks to a table until it has `count` of them, all or none. False if too few are free: nothing has
  /// changed then. O(blocks appended). Throws std::bad_alloc; nothing has changed then.
  [[nodiscard]] bool try_grow(std::vector<BlockId>& table, Index count) {
    if (count - static_cast<Index>(table.size()) > available()) {
      return false;
    }
    if (static_cast<std::size_t>(count) > table.capacity()) {  // by a factor: most tables grow a block at a time
      table.reserve(std::max(static_cast<std::size_t>(count), 2 * table.capacity()));
    }
    while (static_cast<Index>(table.size()) < count) {
      table.push_back(allocate());
    }
    return true;
  }
  /// Drops blocks from the end of a table until it has at most `count`; those that lose their last reference become
  /// free. O(blocks dropped).
  void shrink(std::vector<BlockId>& table, Index count) noexcept {
    while (static_cast<Index>(table.size()) > count) {
      if (unref(table.back()) == 0) {
        free(table.back());
      }
      table.pop_back();
    }
  }

  /// The counts of blocks, for a policy whose blocks are all either free or referenced.
  [[nodiscard]] Stats stats(Pos block_tokens) const noexcept {
    Stats stats;
    stats.block_tokens = block_tokens;
    stats.blocks_total = size();
    stats.blocks_free = available();
    stats.blocks_referenced = size() - available();
    stats.largest_free_run = available();
    stats.tokens_reserved = stats.blocks_referenced * block_tokens;
    return stats;
  }

  /// Compares the reference counts with `expected`, and checks that all blocks without a reference but `kept` of them
  /// are in the free list, each once. O(blocks). Throws InvariantError.
  void verify(const BlockArray<std::int32_t>& expected, Index kept = 0) const {
    BlockArray<char> is_free(size(), 0);
    for (const BlockId block : std::span(free_).first(free_count_)) {
      if (is_free[block] != 0 || ref_count(block) != 0) {
        throw_error(
            InvariantError("kvc: block " + std::to_string(to_index(block)) + " is free twice, or free and referenced"));
      }
      is_free[block] = 1;
    }
    Index unreferenced = 0;
    ref_counts_.for_each([&](BlockId block, std::int32_t count) {
      unreferenced += count == 0 ? 1 : 0;
      if (count != expected[block]) {
        throw_error(InvariantError("kvc: block " + std::to_string(to_index(block)) + " has a reference count of " +
                                   std::to_string(count) + ", and " + std::to_string(expected[block]) + " references"));
      }
    });
    if (unreferenced != available() + kept) {
      throw_error(InvariantError("kvc: of " + std::to_string(unreferenced) + " blocks without a reference, " +
                                 std::to_string(available()) + " are free and " + std::to_string(kept) + " kept"));
    }
  }

 private:
  BlockArray<std::int32_t> ref_counts_;
  std::vector<BlockId> free_;  // a stack of room for all blocks, of which the first free_count_ are on it
  std::size_t free_count_ = 0;
};

}  // namespace v0
}  // namespace kvc
