// Lru: gives up the block that was let go of the longest time ago; of a prefix, the end before the beginning.
#pragma once

#include <cstdint>
#include <string_view>
#include <vector>

#include "kvc/config.hpp"
#include "kvc/core/types.hpp"
#include "kvc/policy/eviction/concept.hpp"

namespace kvc::inline v0 {

/// A list through an array: O(1) for everything, 8 bytes per block.
class Lru {
 public:
  static constexpr std::string_view name = "lru";

  explicit Lru(Index blocks) : links_(static_cast<std::size_t>(blocks) + 1), ring_(static_cast<std::int32_t>(blocks)) {
    links_.back() = {ring_, ring_};
  }

  void insert(BlockId block, std::uint64_t /*now*/) noexcept {
    const auto b = static_cast<std::int32_t>(block);
    const std::int32_t newest = at(ring_).older;
    at(b) = {newest, ring_};
    at(newest).newer = b;
    at(ring_).older = b;
    ++size_;
  }

  void erase(BlockId block) noexcept {
    const Link link = at(static_cast<std::int32_t>(block));
    at(link.older).newer = link.newer;
    at(link.newer).older = link.older;
    --size_;
  }

  /// A match holds what it finds, and inserts it anew when it lets go: nothing is left to do.
  void touch(BlockId, std::uint64_t) noexcept {}

  [[nodiscard]] BlockId victim() const noexcept {
    KVC_ASSERT(size_ > 0);
    return static_cast<BlockId>(links_[static_cast<std::size_t>(ring_)].newer);
  }
  [[nodiscard]] Index size() const noexcept { return size_; }

 private:
  // The list is closed by one link more than there are blocks: its `newer` is the oldest block, its `older` the newest.
  struct Link {
    std::int32_t older;
    std::int32_t newer;
  };
  [[nodiscard]] Link& at(std::int32_t i) noexcept { return links_[static_cast<std::size_t>(i)]; }

  std::vector<Link> links_;
  std::int32_t ring_;
  Index size_ = 0;
};
static_assert(EvictionPolicy<Lru>);

}  // namespace kvc::inline v0
