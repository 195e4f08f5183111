// Fifo: evicts the block that became cached first.
#pragma once

#include <cstdint>
#include <string_view>

#include "kvc/config.hpp"
#include "kvc/core/types.hpp"
#include "kvc/policy/block_array.hpp"
#include "kvc/policy/eviction/block_lists.hpp"
#include "kvc/policy/eviction/concept.hpp"

namespace kvc {
inline namespace v0 {

/// Evicts the block that became cached first, whether it was used since or not. A baseline, and a policy under which
/// nobody can keep a block cached by asking for it. An old prefix goes together with all blocks that were cached behind
/// it later, from the end on.
///
/// Referenced blocks stay in the queue, where they keep their place at no cost. If a victim is wanted and the oldest
/// block is referenced, it leaves the queue, and returns at the oldest end when it is released. Such blocks return in
/// the order of their release, the last one as the oldest.
///
/// Every operation is O(1), `victim` amortised: each referenced block costs it one step. 10 bytes per block.
class Fifo : public EvictionDefaults {
 public:
  static constexpr std::string_view name = "fifo";

  /// No block is cached. Throws std::bad_alloc. O(blocks).
  explicit Fifo(Index blocks, const Config& = {}) : queue_(blocks), states_(blocks) {}

  /// The block enters the queue. O(1).
  void on_cached(const SequenceContext&, const StoredBlock& stored, std::uint64_t /*now*/) noexcept {
    queue_.push_newest(0, stored.block);
    states_[stored.block] = {.queued = true, .referenced = true};
  }
  /// The block returns to the oldest end of the queue, if `victim` has removed it. O(1).
  void on_evictable(const SequenceContext&, BlockId block, std::uint64_t /*now*/) noexcept {
    if (!states_[block].queued) {
      queue_.push_oldest(0, block);
    }
    states_[block] = {.queued = true, .referenced = false};
    ++size_;
  }
  /// The block keeps its place in the queue. O(1).
  void on_acquired(BlockId block) noexcept {
    states_[block].referenced = true;
    --size_;
  }
  /// The block leaves the queue. O(1).
  void on_uncached(BlockId block) noexcept { leave_queue(block); }

  /// The oldest block; removes referenced blocks that are older. Requires size() > 0. O(1) amortised.
  [[nodiscard]] BlockId victim(std::uint64_t /*now*/) noexcept {
    KVC_ASSERT(size_ > 0);
    BlockId oldest = queue_.oldest(0);
    for (; states_[oldest].referenced; oldest = queue_.oldest(0)) {
      leave_queue(oldest);
    }
    return oldest;
  }
  /// Evictable blocks. O(1).
  [[nodiscard]] Index size() const noexcept { return size_; }

 private:
  struct State {
    bool queued = false;
    bool referenced = false;
  };
  void leave_queue(BlockId block) noexcept {
    if (states_[block].queued) {
      queue_.erase(block);
      states_[block].queued = false;
    }
  }

  BlockLists queue_;
  BlockArray<State> states_;
  Index size_ = 0;
};
static_assert(EvictionPolicy<Fifo>);

}  // namespace v0
}  // namespace kvc
