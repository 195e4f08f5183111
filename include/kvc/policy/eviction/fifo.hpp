// Fifo: gives up what became cached first, whether it was used since or not. A base line, and a policy that nobody can
// keep a block cached with by asking for it. An old prefix goes together with what was cached behind it later, from the
// end on.
//
// Held blocks stay in the queue, where they keep their place at no cost. When the oldest one is held and a victim is
// wanted, it is taken out, and comes back at the oldest end when it is let go of. Such blocks come back in the order in
// which they are let go of, the last one oldest.
#pragma once

#include <cstdint>
#include <string_view>
#include <vector>

#include "kvc/config.hpp"
#include "kvc/core/types.hpp"
#include "kvc/policy/detail/block_lists.hpp"
#include "kvc/policy/eviction/concept.hpp"

namespace kvc {
inline namespace v0 {

/// O(1), `victim` amortised: each block that is held costs it one step. 10 bytes per block.
class Fifo : public EvictionDefaults {
 public:
  static constexpr std::string_view name = "fifo";

  explicit Fifo(Index blocks) : queue_(blocks), states_(static_cast<std::size_t>(blocks)) {}

  void on_cached(const SequenceContext&, const StoredBlock& stored, std::uint64_t /*now*/) noexcept {
    queue_.push_newest(0, stored.block);
    state(stored.block) = {.queued = true, .referenced = true};
  }
  void on_evictable(const SequenceContext&, BlockId block, std::uint64_t /*now*/) noexcept {
    if (!state(block).queued) {
      queue_.push_oldest(0, block);
    }
    state(block) = {.queued = true, .referenced = false};
    ++size_;
  }
  void on_acquired(BlockId block) noexcept {
    state(block).referenced = true;
    --size_;
  }
  void on_uncached(BlockId block) noexcept { unqueue(block); }

  [[nodiscard]] BlockId victim(std::uint64_t /*now*/) noexcept {
    KVC_ASSERT(size_ > 0);
    BlockId oldest = queue_.oldest(0);
    for (; state(oldest).referenced; oldest = queue_.oldest(0)) {
      unqueue(oldest);
    }
    return oldest;
  }
  [[nodiscard]] Index size() const noexcept { return size_; }

 private:
  struct State {
    bool queued = false;
    bool referenced = false;
  };
  [[nodiscard]] State& state(BlockId block) noexcept { return states_[static_cast<std::size_t>(block)]; }
  void unqueue(BlockId block) noexcept {
    if (state(block).queued) {
      queue_.erase(block);
      state(block).queued = false;
    }
  }

  detail::BlockLists queue_;
  std::vector<State> states_;
  Index size_ = 0;
};
static_assert(EvictionPolicy<Fifo>);

}  // namespace v0
}  // namespace kvc
