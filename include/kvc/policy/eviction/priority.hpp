// Priority: gives up what the caller wants least. Each sequence says by `Retention` how much its blocks are to stay:
// the lowest priority goes first, and within one what was let go of first. For system prompts that must stay, and
// requests that are known not to come again.
//
// The last sequence that lets go of a block decides. When its duration has passed since, a block has the default
// priority, whether it had a higher or a lower one, and is the last of those to go: the priorities of TensorRT-LLM's
// KvCacheRetentionConfig. A block goes before those behind it only if nothing is cached there, whatever its priority.
#pragma once

#include <array>
#include <bit>
#include <cstdint>
#include <span>
#include <string_view>
#include <vector>

#include "kvc/config.hpp"
#include "kvc/core/types.hpp"
#include "kvc/policy/detail/block_heap.hpp"
#include "kvc/policy/detail/block_lists.hpp"
#include "kvc/policy/eviction/concept.hpp"

namespace kvc {
inline namespace v0 {

/// O(1), and O(log blocks) once for each block with a duration: insert, erase, and `victim` amortised. 37 bytes per
/// block.
class Priority : public EvictionDefaults {
 public:
  static constexpr std::string_view name = "priority";

  struct SequenceContext {
    Retention retention{};
  };

  explicit Priority(Index blocks)
      : lists_(blocks, priorities), expiries_(blocks), priorities_(static_cast<std::size_t>(blocks)) {}

  void on_open(SequenceContext& context, std::span<const BlockId>, const Retention& retention,
               std::uint64_t /*now*/) noexcept {
    KVC_ASSERT(retention.priority >= 0 && retention.priority < priorities);
    context.retention = retention;
  }

  void on_evictable(const SequenceContext& context, BlockId block, std::uint64_t now) noexcept {
    const auto& [priority, duration] = context.retention;
    push(priority, block);
    if (priority != Retention::default_priority && duration < Retention::forever - now) {
      expiries_.push(block, {now + duration, inserted_++});
    }
    ++size_;
  }
  void on_acquired(BlockId block) noexcept {
    take_out(block);
    if (expiries_.contains(block)) {
      expiries_.erase(block);
    }
    --size_;
  }

  [[nodiscard]] BlockId victim(std::uint64_t now) noexcept {
    KVC_ASSERT(size_ > 0);
    while (!expiries_.empty() && expiries_.top_key().time <= now) {
      const BlockId block = expiries_.top();
      expiries_.erase(block);
      take_out(block);
      push(Retention::default_priority, block);
    }
    const std::size_t half = used_[0] != 0 ? 0 : 1;
    return lists_.oldest(static_cast<int>(64 * half) + std::countr_zero(used_[half]));
  }
  [[nodiscard]] Index size() const noexcept { return size_; }

 private:
  static constexpr int priorities = 101;

  struct Expiry {
    std::uint64_t time;
    std::uint64_t inserted;  // how many were before: of what expires together, the end of a prefix is to go first
    friend bool operator<(const Expiry& a, const Expiry& b) noexcept {
      return a.time < b.time || (a.time == b.time && a.inserted < b.inserted);
    }
  };

  [[nodiscard]] std::uint64_t& used(int priority) noexcept { return used_[static_cast<std::size_t>(priority / 64)]; }
  [[nodiscard]] static std::uint64_t bit(int priority) noexcept { return std::uint64_t{1} << priority % 64; }

  void push(int priority, BlockId block) noexcept {
    lists_.push_newest(priority, block);
    used(priority) |= bit(priority);
    priorities_[static_cast<std::size_t>(block)] = static_cast<std::uint8_t>(priority);
  }
  void take_out(BlockId block) noexcept {
    const int priority = priorities_[static_cast<std::size_t>(block)];
    lists_.erase(block);
    if (lists_.empty(priority)) {
      used(priority) &= ~bit(priority);
    }
  }

  detail::BlockLists lists_;  // one per priority
  detail::BlockHeap<Expiry> expiries_;
  std::vector<std::uint8_t> priorities_;
  std::array<std::uint64_t, 2> used_{};  // bit p: list p holds a block
  std::uint64_t inserted_ = 0;
  Index size_ = 0;
};
static_assert(EvictionPolicy<Priority>);

}  // namespace v0
}  // namespace kvc
