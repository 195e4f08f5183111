// Fifo: gives up what became cached first, whether it was used since or not. A base line, and a policy that nobody can
// keep a block cached with by asking for it.
//
// A block cannot go before what is cached behind it, so it counts as old as the last block that was: a sequence that
// stores blocks renews its prefix, one that only finds blocks renews nothing.
//
// Held blocks stay in the queue, where they keep their place at no cost. When the oldest one is held and a victim is
// wanted, it is taken out, and comes back at the oldest end when it is let go of. Such blocks come back in the order in
// which they are let go of, the last one oldest.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string_view>
#include <vector>

#include "kvc/config.hpp"
#include "kvc/core/types.hpp"
#include "kvc/policy/eviction/block_lists.hpp"
#include "kvc/policy/eviction/concept.hpp"

namespace kvc::inline v0 {

/// O(1), `victim` amortised: each block that is held costs it one step. 10 bytes per block.
class Fifo {
 public:
  static constexpr std::string_view name = "fifo";

  struct Visit {
    bool stored = false;  // it has stored a block
  };

  explicit Fifo(Index blocks) : queue_(blocks), states_(static_cast<std::size_t>(blocks)) {}

  void open(Visit&, std::span<const BlockId>, const Retention&, std::uint64_t /*now*/) noexcept {}

  void store(Visit& visit, const StoredBlock& stored, std::uint64_t /*now*/) noexcept {
    visit.stored = true;
    queue_.push_newest(0, stored.block);
    state(stored.block) = {.queued = true, .held = true};
  }

  void close(const Visit& visit, std::span<const BlockId> held, std::uint64_t /*now*/) noexcept {
    if (!visit.stored) {
      return;
    }
    for (std::size_t i = held.size(); i-- > 0;) {
      unqueue(held[i]);
      queue_.push_newest(0, held[i]);
      state(held[i]).queued = true;
    }
  }

  void insert(const Visit&, BlockId block, std::uint64_t /*now*/) noexcept {
    if (!state(block).queued) {
      queue_.push_oldest(0, block);
    }
    state(block) = {.queued = true, .held = false};
    ++size_;
  }
  void erase(BlockId block) noexcept {
    state(block).held = true;
    --size_;
  }
  void remove(BlockId block) noexcept { unqueue(block); }

  [[nodiscard]] BlockId victim(std::uint64_t /*now*/) noexcept {
    KVC_ASSERT(size_ > 0);
    BlockId oldest = queue_.oldest(0);
    for (; state(oldest).held; oldest = queue_.oldest(0)) {
      unqueue(oldest);
    }
    return oldest;
  }
  [[nodiscard]] Index size() const noexcept { return size_; }

 private:
  struct State {
    bool queued = false;
    bool held = false;
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

}  // namespace kvc::inline v0
