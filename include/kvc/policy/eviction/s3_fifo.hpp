// S3Fifo: evicts by three queues in which a use moves nothing.
#pragma once

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <span>
#include <string_view>
#include <variant>

#include "kvc/config.hpp"
#include "kvc/core/types.hpp"
#include "kvc/policy/block_array.hpp"
#include "kvc/policy/detail/recent_keys.hpp"
#include "kvc/policy/eviction/block_lists.hpp"
#include "kvc/policy/eviction/concept.hpp"
#include "kvc/policy/retention.hpp"

namespace kvc {
inline namespace v0 {

/// Evicts by three queues in which a use moves nothing. For many prompts that come once and few that come often. For
/// sessions, whose blocks come a few times each and then never again, Lru is better.
///
/// J. Yang, Y. Zhang, Z. Qiu, Y. Yue, R. Vinayak, "FIFO queues are all you need for cache eviction", SOSP 2023. A block
/// enters the small queue, a tenth of the pool. At its end the block moves to the main queue if it was used twice by
/// then, and is evicted otherwise; its key stays among the ghosts, of which there are as many as the main queue has
/// blocks. A block whose key is a ghost when it is stored enters the main queue. At the end of the main queue, a used
/// block starts again at the cost of one use; up to three uses count. A use is the opening of a sequence that finds the
/// block.
///
/// Referenced blocks stay in their queue. A referenced block that would be evicted leaves the queue, and returns at the
/// oldest end when it is released.
///
/// Every operation is O(1), `victim` amortised: each use and each referenced block costs it one step. 45 to 68 bytes
/// per block, by how far the number of ghosts is from a power of two.
class S3Fifo : public EvictionDefaults {
 public:
  static constexpr std::string_view name = "s3-fifo";

  /// No block is cached. Throws std::bad_alloc. O(blocks).
  explicit S3Fifo(Index blocks, const Config& = {})
      : small_share_(std::max<Index>(1, blocks / 10)),
        queues_(blocks, 2),
        entries_(blocks),
        ghost_share_(static_cast<std::size_t>(std::max<Index>(1, blocks - small_share_))),
        ghosts_(ghost_share_) {}

  /// Counts a use of each block found. O(found).
  void on_open(const SequenceContext&, std::span<const BlockId> found, const Retention&,
               std::uint64_t /*now*/) noexcept {
    for (const BlockId block : found) {
      entries_[block].uses = std::min<std::uint8_t>(most_uses - 1, entries_[block].uses) + 1;
    }
  }

  /// The block enters the main queue if its key is a ghost, otherwise the small queue. O(1).
  void on_cached(const SequenceContext&, const StoredBlock& stored, std::uint64_t /*now*/) noexcept {
    const bool is_ghost = ghosts_.find(stored.key) != Ghosts::none;
    if (is_ghost) {
      ghosts_.forget(stored.key);
    }
    const Queue queue = is_ghost ? main : small;
    entries_[stored.block] = {.key = stored.key, .queue = queue, .queued = true, .referenced = true};
    queues_.push_newest(queue, stored.block);
    ++cached_[queue];
  }

  /// The block returns to the oldest end of its queue, if `victim` has removed it. O(1).
  void on_evictable(const SequenceContext&, BlockId block, std::uint64_t /*now*/) noexcept {
    Entry& e = entries_[block];
    if (!e.queued) {
      queues_.push_oldest(e.queue, block);
    }
    e.queued = true;
    e.referenced = false;
    ++evictable_[e.queue];
  }
  /// The block keeps its place in the queue. O(1).
  void on_acquired(BlockId block) noexcept {
    entries_[block].referenced = true;
    --evictable_[entries_[block].queue];
    if (block == victim_) {
      victim_ = no_block;
    }
  }
  /// The block leaves its queue; if that is the small one, its key becomes a ghost. O(1).
  void on_uncached(BlockId block) noexcept {
    const Entry& e = entries_[block];
    if (e.queued) {
      queues_.erase(block);
    }
    --cached_[e.queue];
    if (e.queue == small) {
      if (ghosts_.end() - ghosts_.begin() >= ghost_share_) {
        ghosts_.pop();
      }
      ghosts_.push(e.key, {});
    }
  }

  /// The block that the queues evict next; moves the blocks before it. Requires size() > 0. O(1) amortised.
  [[nodiscard]] BlockId victim(std::uint64_t /*now*/) noexcept {
    KVC_ASSERT(size() > 0);
    while (victim_ == no_block) {
      const bool from_small = evictable_[small] > 0 && (cached_[small] >= small_share_ || evictable_[main] == 0);
      victim_ = from_small ? evict_from_small() : evict_from_main();
    }
    return victim_;
  }
  /// Evictable blocks. O(1).
  [[nodiscard]] Index size() const noexcept { return evictable_[small] + evictable_[main]; }

 private:
  static constexpr std::uint8_t most_uses = 3;
  static constexpr std::uint8_t uses_to_stay = 2;  // in the small queue
  enum Queue : std::uint8_t { small, main };

  struct Entry {
    std::uint64_t key = 0;
    std::uint8_t uses = 0;  // since it was stored or entered the main queue, less one per further round
    Queue queue = small;
    bool queued = false;  // has not left the queue
    bool referenced = false;
  };
  using Ghosts = detail::RecentKeys<std::monostate>;

  /// The oldest block of a queue if it is to be evicted; otherwise moves it and returns no_block.
  [[nodiscard]] BlockId evict_from_small() noexcept {
    const BlockId block = queues_.oldest(small);
    Entry& e = entries_[block];
    if (e.uses < uses_to_stay) {
      return leave_if_referenced(block);
    }
    queues_.erase(block);
    queues_.push_newest(main, block);
    e.uses = 0;
    e.queue = main;
    --cached_[small];
    ++cached_[main];
    if (!e.referenced) {
      --evictable_[small];
      ++evictable_[main];
    }
    return no_block;
  }
  [[nodiscard]] BlockId evict_from_main() noexcept {
    const BlockId block = queues_.oldest(main);
    Entry& e = entries_[block];
    if (e.uses == 0) {
      return leave_if_referenced(block);
    }
    queues_.erase(block);
    queues_.push_newest(main, block);
    --e.uses;
    return no_block;
  }
  [[nodiscard]] BlockId leave_if_referenced(BlockId block) noexcept {
    if (!entries_[block].referenced) {
      return block;
    }
    queues_.erase(block);
    entries_[block].queued = false;
    return no_block;
  }

  Index small_share_;
  BlockLists queues_;
  BlockArray<Entry> entries_;
  std::array<Index, 2> cached_{};  // cached blocks that belong to each queue, in it or not
  std::array<Index, 2> evictable_{};
  BlockId victim_ = no_block;  // kept until it is evicted: its descendants, evicted first, do not change the choice
  std::size_t ghost_share_;
  Ghosts ghosts_;
};
static_assert(EvictionPolicy<S3Fifo>);

}  // namespace v0
}  // namespace kvc
