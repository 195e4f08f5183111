// BlockPool: a fixed number of blocks, each free or held by some number of holders.
//
// Blocks are numbered 0 .. size-1. The block that was given back last is handed out first: it is the likeliest to be in
// a processor's cache. All operations are O(1) and allocate nothing.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "kvc/core/error.hpp"
#include "kvc/core/types.hpp"
#include "kvc/memory/large_vector.hpp"

namespace kvc {
inline namespace v0 {

class BlockPool {
 public:
  /// Throws std::invalid_argument unless 1 <= blocks < 2^31.
  explicit BlockPool(Index blocks) {
    require_between(blocks, Index{1}, Index{max_pos}, "config.blocks");
    ref_counts_.assign(static_cast<std::size_t>(blocks), 0);
    free_.resize(static_cast<std::size_t>(blocks));
    for (std::size_t i = 0; i < free_.size(); ++i) {
      free_[i] = static_cast<BlockId>(free_.size() - 1 - i);
    }
  }

  [[nodiscard]] Index size() const noexcept { return static_cast<Index>(ref_counts_.size()); }
  [[nodiscard]] Index available() const noexcept { return static_cast<Index>(free_.size()); }
  [[nodiscard]] std::int32_t ref_count(BlockId block) const noexcept { return ref_counts_[at(block)]; }

  /// A free block, with one holder. Needs available() > 0.
  [[nodiscard]] BlockId allocate() noexcept {
    KVC_ASSERT(!free_.empty());
    const BlockId block = free_.back();
    free_.pop_back();
    ref_counts_[at(block)] = 1;
    return block;
  }

  /// One holder more. The block must not be free.
  void ref(BlockId block) noexcept { ++ref_counts_[at(block)]; }

  /// One holder less; how many are left. With none left the block is still not free: see free.
  std::int32_t unref(BlockId block) noexcept {
    KVC_ASSERT(ref_count(block) > 0);
    return --ref_counts_[at(block)];
  }

  /// Makes a block without holders free.
  void free(BlockId block) noexcept {
    KVC_ASSERT(ref_count(block) == 0 && free_.size() < ref_counts_.size());
    free_.push_back(block);
  }

  /// Compares the counts of holders with `expected` (by block), and checks that the free list holds each block at most
  /// once and none that is held. Throws InvariantError.
  void verify(std::span<const std::int32_t> expected) const {
    std::vector<bool> is_free(ref_counts_.size(), false);
    for (const BlockId block : free_) {
      if (is_free[at(block)] || ref_count(block) != 0) {
        throw_error(
            InvariantError("kvc: block " + std::to_string(to_index(block)) + " is free twice, or free and held"));
      }
      is_free[at(block)] = true;
    }
    for (std::size_t i = 0; i < ref_counts_.size(); ++i) {
      if (ref_counts_[i] != expected[i]) {
        throw_error(InvariantError("kvc: block " + std::to_string(i) + " counts " + std::to_string(ref_counts_[i]) +
                                   " holders, and has " + std::to_string(expected[i])));
      }
    }
  }

 private:
  [[nodiscard]] static constexpr std::size_t at(BlockId block) noexcept { return static_cast<std::size_t>(block); }

  detail::LargeVector<std::int32_t> ref_counts_;
  std::vector<BlockId> free_;  // a stack; never grows beyond its first capacity
};

}  // namespace v0
}  // namespace kvc
