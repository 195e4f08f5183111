// Lru: gives up the block that was let go of the longest time ago; of a prefix, the end before the beginning.
#pragma once

#include <cstdint>
#include <string_view>

#include "kvc/config.hpp"
#include "kvc/core/types.hpp"
#include "kvc/policy/detail/block_lists.hpp"
#include "kvc/policy/eviction/concept.hpp"

namespace kvc {
inline namespace v0 {

/// One list: O(1) for everything, 8 bytes per block. A match holds what it finds, and inserts it anew when it lets go.
class Lru : public EvictionDefaults {
 public:
  static constexpr std::string_view name = "lru";

  explicit Lru(Index blocks) : list_(blocks) {}

  void on_evictable(const SequenceContext&, BlockId block, std::uint64_t /*now*/) noexcept {
    list_.push_newest(0, block);
    ++size_;
  }
  void on_acquired(BlockId block) noexcept {
    list_.erase(block);
    --size_;
  }
  [[nodiscard]] BlockId victim(std::uint64_t /*now*/) const noexcept {
    KVC_ASSERT(size_ > 0);
    return list_.oldest(0);
  }
  [[nodiscard]] Index size() const noexcept { return size_; }

 private:
  detail::BlockLists list_;
  Index size_ = 0;
};
static_assert(EvictionPolicy<Lru>);

}  // namespace v0
}  // namespace kvc
