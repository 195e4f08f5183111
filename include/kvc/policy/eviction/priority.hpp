// Priority: evicts the block that the caller wants least.
#pragma once

#include <array>
#include <bit>
#include <cstddef>
#include <cstdint>
#include <span>
#include <string_view>

#include "kvc/config.hpp"
#include "kvc/core/types.hpp"
#include "kvc/policy/block_array.hpp"
#include "kvc/policy/eviction/block_heap.hpp"
#include "kvc/policy/eviction/block_lists.hpp"
#include "kvc/policy/eviction/concept.hpp"
#include "kvc/policy/retention.hpp"

namespace kvc {
inline namespace v0 {

/// Evicts the block that the caller wants least. `Retention` says for each sequence how much its blocks should stay:
/// the lowest priority goes first, and within one priority the block that was released first. For system prompts that
/// must stay, and for requests that are known not to come again.
///
/// The last sequence that releases a block decides. When its duration has passed since, the block has the default
/// priority, whether it had a higher or a lower one, and is the last of those to go: the priorities of TensorRT-LLM's
/// KvCacheRetentionConfig. Blocks with cached descendants go after these, whatever their priority.
///
/// Every operation is O(1), and O(log blocks) for a block with a duration; `victim` amortised. 37 bytes per block.
class Priority : public EvictionDefaults {
 public:
  static constexpr std::string_view name = "priority";

  struct SequenceContext {
    Retention retention{};
  };

  /// No block is cached. Throws std::bad_alloc. O(blocks).
  explicit Priority(Index blocks, const Config& = {})
      : lists_(blocks, priorities), expiries_(blocks), priorities_(blocks) {}

  /// The sequence keeps its retention: a priority of 0 to 100, and a duration. O(1).
  void on_open(SequenceContext& context, std::span<const BlockId>, const Retention& retention,
               std::uint64_t /*now*/) noexcept {
    KVC_ASSERT(retention.priority >= 0 && retention.priority < priorities);
    context.retention = retention;
  }

  /// The block has the priority of this sequence, until its duration has passed. O(1), O(log blocks) with a duration.
  void on_evictable(const SequenceContext& context, BlockId block, std::uint64_t now) noexcept {
    const auto& [priority, duration] = context.retention;
    push(priority, block);
    if (priority != Retention::default_priority && duration < Retention::forever - now) {
      expiries_.push(block, {now + duration, inserted_++});
    }
    ++size_;
  }
  /// The block has no priority. O(1), O(log blocks) if it had a duration.
  void on_acquired(BlockId block) noexcept {
    take_out(block);
    if (expiries_.contains(block)) {
      expiries_.erase(block);
    }
    --size_;
  }

  /// The block of the lowest priority, of these the one that was released first; ends durations that have passed.
  /// Requires size() > 0. O(1) amortised, O(log blocks) for each duration that ends.
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
  /// Evictable blocks. O(1).
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
    priorities_[block] = static_cast<std::uint8_t>(priority);
  }
  void take_out(BlockId block) noexcept {
    const int priority = priorities_[block];
    lists_.erase(block);
    if (lists_.empty(priority)) {
      used(priority) &= ~bit(priority);
    }
  }

  BlockLists lists_;  // one per priority
  BlockHeap<Expiry> expiries_;
  BlockArray<std::uint8_t> priorities_;
  std::array<std::uint64_t, 2> used_{};  // bit p: list p holds a block
  std::uint64_t inserted_ = 0;
  Index size_ = 0;
};
static_assert(EvictionPolicy<Priority>);

}  // namespace v0
}  // namespace kvc
