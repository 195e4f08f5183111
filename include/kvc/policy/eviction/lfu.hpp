// Lfu: evicts the least frequently used block.
#pragma once

#include <algorithm>
#include <cstdint>
#include <span>
#include <string_view>

#include "kvc/config.hpp"
#include "kvc/core/types.hpp"
#include "kvc/policy/block_array.hpp"
#include "kvc/policy/eviction/block_lists.hpp"
#include "kvc/policy/eviction/concept.hpp"
#include "kvc/policy/retention.hpp"

namespace kvc {
inline namespace v0 {

/// Evicts the least frequently used block; of equally used ones the block that was released first. For workloads in
/// which some prompts stay popular; sessions do not.
///
/// A use is the storing of the block, and each opening of a sequence that finds it. Without aging, a block that was
/// popular once would stay for ever: a block ranks by its uses plus the rank of the last victim at the time of its
/// release ("dynamic aging": LFU-DA in M. Arlitt, L. Cherkasova, J. Dilley, R. Friedrich, T. Jin, "Evaluating content
/// management techniques for web proxy caches", 2000). Each time that all blocks of the lowest rank have gone, every
/// other block is one use closer to eviction.
///
/// Uses count up to 63, so all ranks at one time are among 64 consecutive ones, and each has a list. Every operation is
/// O(1); `victim` looks at no more than 64 lists. 9 bytes per block.
class Lfu : public EvictionDefaults {
 public:
  static constexpr std::string_view name = "lfu";

  /// No block is cached. Throws std::bad_alloc. O(blocks).
  explicit Lfu(Index blocks, const Config& = {}) : lists_(blocks, ranks), uses_(blocks) {}

  /// Counts a use of each block found. O(found).
  void on_open(const SequenceContext&, std::span<const BlockId> found, const Retention&,
               std::uint64_t /*now*/) noexcept {
    for (const BlockId block : found) {
      uses_[block] = std::min<std::uint8_t>(ranks - 2, uses_[block]) + 1;
    }
  }
  /// Counts the first use. O(1).
  void on_cached(const SequenceContext&, const StoredBlock& stored, std::uint64_t /*now*/) noexcept {
    uses_[stored.block] = 1;
  }

  /// Ranks the block by its uses and the rank of the last victim. O(1).
  void on_evictable(const SequenceContext&, BlockId block, std::uint64_t /*now*/) noexcept {
    lists_.push_newest(list(lowest_ + uses_[block]), block);
    ++size_;
  }
  /// The block leaves its list. O(1).
  void on_acquired(BlockId block) noexcept {
    lists_.erase(block);
    --size_;
  }
  /// The block of the lowest rank, of these the one that was released first. Requires size() > 0. O(1).
  [[nodiscard]] BlockId victim(std::uint64_t /*now*/) noexcept {
    KVC_ASSERT(size_ > 0);
    while (lists_.empty(list(lowest_))) {
      ++lowest_;
    }
    return lists_.oldest(list(lowest_));
  }
  /// Evictable blocks. O(1).
  [[nodiscard]] Index size() const noexcept { return size_; }

 private:
  static constexpr int ranks = 64;
  [[nodiscard]] static int list(std::uint64_t rank) noexcept { return static_cast<int>(rank % ranks); }

  BlockLists lists_;  // of rank r: list r % ranks
  BlockArray<std::uint8_t> uses_;
  std::uint64_t lowest_ = 0;  // rank of the last victim: there is no lower one
  Index size_ = 0;
};
static_assert(EvictionPolicy<Lfu>);

}  // namespace v0
}  // namespace kvc
