// Lru: evicts the least recently used block.
#pragma once

#include <cstdint>
#include <string_view>

#include "kvc/config.hpp"
#include "kvc/core/types.hpp"
#include "kvc/policy/eviction/block_lists.hpp"
#include "kvc/policy/eviction/concept.hpp"

namespace kvc {
inline namespace v0 {

/// Evicts the block that was released the longest time ago; of one prefix, the end before the beginning. A match
/// references the blocks that it finds, and so makes them the most recent ones when it releases them.
///
/// One list: every operation is O(1); 8 bytes per block.
class Lru : public EvictionDefaults {
 public:
  static constexpr std::string_view name = "lru";

  /// No block is cached. Throws std::bad_alloc. O(blocks).
  explicit Lru(Index blocks, const Config& = {}) : list_(blocks) {}

  /// The block becomes the most recent one. O(1).
  void on_evictable(const SequenceContext&, BlockId block, std::uint64_t /*now*/) noexcept {
    list_.push_newest(0, block);
    ++size_;
  }
  /// The block leaves the list. O(1).
  void on_acquired(BlockId block) noexcept {
    list_.erase(block);
    --size_;
  }
  /// The least recent block. Requires size() > 0. O(1).
  [[nodiscard]] BlockId victim(std::uint64_t /*now*/) const noexcept {
    KVC_ASSERT(size_ > 0);
    return list_.oldest(0);
  }
  /// Evictable blocks. O(1).
  [[nodiscard]] Index size() const noexcept { return size_; }

 private:
  BlockLists list_;
  Index size_ = 0;
};
static_assert(EvictionPolicy<Lru>);

}  // namespace v0
}  // namespace kvc
