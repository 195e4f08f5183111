// Lfu: gives up the least frequently used block, of equally used ones the one that was let go of first. For prompts of
// which some are popular for long; conversations are not.
//
// A block is used when it is stored and whenever a sequence is opened that finds it. Without aging, what was popular
// once would stay for ever. Here a block ranks by its uses plus the rank that the last victim had when the block was
// let go of ("dynamic aging": LFU-DA in M. Arlitt, L. Cherkasova, J. Dilley, R. Friedrich, T. Jin, "Evaluating content
// management techniques for web proxy caches", 2000). Each time that all blocks of the lowest rank have gone, every
// other block is one use closer to going.
//
// Uses count up to 63, so all ranks at a time are among 64 that follow each other, and each has a list.
#pragma once

#include <algorithm>
#include <cstdint>
#include <span>
#include <string_view>
#include <vector>

#include "kvc/config.hpp"
#include "kvc/core/types.hpp"
#include "kvc/policy/detail/block_lists.hpp"
#include "kvc/policy/eviction/concept.hpp"

namespace kvc {
inline namespace v0 {

/// O(1) for everything; `victim` looks at 64 lists at most. 9 bytes per block.
class Lfu : public EvictionDefaults {
 public:
  static constexpr std::string_view name = "lfu";

  explicit Lfu(Index blocks) : lists_(blocks, ranks), uses_(static_cast<std::size_t>(blocks)) {}

  void on_open(const SequenceContext&, std::span<const BlockId> found, const Retention&,
               std::uint64_t /*now*/) noexcept {
    for (const BlockId block : found) {
      uses(block) = std::min<std::uint8_t>(ranks - 2, uses(block)) + 1;
    }
  }
  void on_cached(const SequenceContext&, const StoredBlock& stored, std::uint64_t /*now*/) noexcept {
    uses(stored.block) = 1;
  }

  void on_evictable(const SequenceContext&, BlockId block, std::uint64_t /*now*/) noexcept {
    lists_.push_newest(list(lowest_ + uses(block)), block);
    ++size_;
  }
  void on_acquired(BlockId block) noexcept {
    lists_.erase(block);
    --size_;
  }
  [[nodiscard]] BlockId victim(std::uint64_t /*now*/) noexcept {
    KVC_ASSERT(size_ > 0);
    while (lists_.empty(list(lowest_))) {
      ++lowest_;
    }
    return lists_.oldest(list(lowest_));
  }
  [[nodiscard]] Index size() const noexcept { return size_; }

 private:
  static constexpr int ranks = 64;
  [[nodiscard]] static int list(std::uint64_t rank) noexcept { return static_cast<int>(rank % ranks); }
  [[nodiscard]] std::uint8_t& uses(BlockId block) noexcept { return uses_[static_cast<std::size_t>(block)]; }

  detail::BlockLists lists_;  // of rank r: list r % ranks
  std::vector<std::uint8_t> uses_;
  std::uint64_t lowest_ = 0;  // rank of the last victim: there is no lower one
  Index size_ = 0;
};
static_assert(EvictionPolicy<Lfu>);

}  // namespace v0
}  // namespace kvc
