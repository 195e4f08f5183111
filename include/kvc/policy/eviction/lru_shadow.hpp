// LruShadow: the cache that leaf-first LRU would have, known by its differences from the cache that there is.
#pragma once

#include <bit>
#include <cstddef>
#include <cstdint>
#include <vector>

#include "kvc/config.hpp"
#include "kvc/core/types.hpp"
#include "kvc/policy/block_array.hpp"
#include "kvc/policy/eviction/block_lists.hpp"

namespace kvc {
inline namespace v0 {

/// Follows the cache that leaf-first LRU would have under the same requests, beside a cache that evicts otherwise, and
/// counts the hits that only one of the two has.
///
/// Leaf-first LRU is a stack algorithm (Mattson et al., "Evaluation techniques for storage hierarchies", 1970): it
/// caches the newest part of one list in the order of release. One boundary in a list of the blocks that are cached in
/// either cache describes it:
///
///     newest | in both; and ghosts, which only LRU caches | boundary | extras, which only the cache here has | oldest
///
/// Ghosts are known by their keys. Where they are more than there is room for, LRU loses the newest one; `at_risk()`
/// lets a policy prevent that.
///
/// The counts are exact where requests come one after another and no prompt needs more blocks than there is room for
/// ghosts. Where sequences overlap, LRU evicts at the moments at which the cache here does.
///
/// All members but the constructor are O(1) amortised and allocate nothing. 9 bytes per block, 25 to 33 per ghost.
class LruShadow {
 public:
  /// For blocks 0 .. blocks-1, none of them cached, and at most `ghosts` ghosts. Throws std::bad_alloc. O(blocks).
  LruShadow(Index blocks, Index ghosts)
      : blocks_(static_cast<std::int32_t>(blocks)),
        order_(blocks + ghosts),
        state_(blocks + ghosts, State::shadowed),
        ghosts_(static_cast<std::size_t>(ghosts)),
        buckets_(std::bit_ceil(static_cast<std::size_t>(2 * ghosts + 2)), none) {
    for (std::size_t i = ghosts_.size(); i-- > 0;) {
      ghosts_[i] = static_cast<std::uint64_t>(std::int64_t{first_free_});
      first_free_ = static_cast<std::int32_t>(i);
    }
  }

  /// Hits that LRU does not have.
  [[nodiscard]] std::uint64_t gains() const noexcept { return gains_; }
  /// Hits that only LRU has.
  [[nodiscard]] std::uint64_t losses() const noexcept { return losses_; }
  /// Hits of LRU on blocks that were evictable, or that only LRU caches.
  [[nodiscard]] std::uint64_t lru_hits() const noexcept { return common_ + losses_; }
  /// Ghosts that LRU still caches.
  [[nodiscard]] Index at_risk() const noexcept { return at_risk_; }
  /// Whether LRU caches a block that is cached here.
  [[nodiscard]] bool contains(BlockId block) const noexcept { return state_[block] == State::shadowed; }
  /// The block that LRU evicts when the cache here evicts one, if it is cached here too; else no_block.
  [[nodiscard]] BlockId next() const noexcept {
    return boundary_ == no_block || is_ghost(boundary_) || shadow_evictable_ < evictable_ ? no_block : boundary_;
  }

  /// A block became evictable.
  void release(BlockId block) noexcept {
    order_.push_newest(0, block);
    if (boundary_ == no_block) {
      boundary_ = block;
    }
    ++shadow_evictable_;
    ++evictable_;
  }
  /// A sequence references an evictable block: a hit.
  void acquire(BlockId block) noexcept {
    gained_ = !contains(block);
    ++(gained_ ? gains_ : common_);
    take(block);
  }
  /// The last call of acquire was no hit: LRU and the cache here both lose the block, not for want of room.
  void withdraw_hit() noexcept { --(gained_ ? gains_ : common_); }
  /// The cache here evicts an evictable block with this key, since it needs room.
  void evict(BlockId block, std::uint64_t key) noexcept {
    if (state_[block] != State::extra) {
      make_ghost(block, key);
    }
    take(block);
    while (shadow_evictable_ > evictable_) {
      drop_next();
    }
  }
  /// A block with this key became cached, since it was not found.
  void compute(std::uint64_t key) noexcept {
    const BlockId ghost = find(key);
    if (ghost == no_block) {
      return;
    }
    ++losses_;
    forget(ghost);
    if (shadow_evictable_ < evictable_) {
      undrop();  // LRU found the block, and needed no room for it
    }
  }
  /// A request is over.
  void settle() noexcept {
    while (shadow_evictable_ > evictable_) {  // LRU needed room for blocks that were found here only
      drop_next();
    }
    forget_dropped();
  }

 private:
  enum class State : std::uint8_t {
    extra,    ///< LRU evicted it
    dropped,  ///< LRU evicted it since the last call of settle
    shadowed  ///< LRU caches it, or a sequence references it
  };
  static constexpr std::int32_t none = -1;

  [[nodiscard]] bool is_ghost(BlockId block) const noexcept { return static_cast<std::int32_t>(block) >= blocks_; }
  [[nodiscard]] std::size_t slot(BlockId ghost) const noexcept {
    return static_cast<std::size_t>(static_cast<std::int32_t>(ghost) - blocks_);
  }
  /// The newest block that LRU has evicted, or no_block.
  [[nodiscard]] BlockId below() const noexcept {
    return boundary_ == no_block ? order_.newest(0) : order_.older(boundary_);
  }

  /// Takes an evictable block out of the order.
  void take(BlockId block) noexcept {
    --evictable_;
    unlink(block);
  }
  void unlink(BlockId block) noexcept {
    if (contains(block)) {
      if (block == boundary_) {
        boundary_ = order_.newer(block);
      }
      --shadow_evictable_;
      at_risk_ -= is_ghost(block) ? 1 : 0;
    }
    order_.erase(block);
    state_[block] = State::shadowed;
  }
  /// LRU evicts.
  void drop_next() noexcept {
    state_[boundary_] = State::dropped;
    at_risk_ -= is_ghost(boundary_) ? 1 : 0;
    --shadow_evictable_;
    boundary_ = order_.newer(boundary_);
  }
  /// LRU has not evicted the block that it evicted last.
  void undrop() noexcept {
    const BlockId block = below();
    if (block == no_block || state_[block] != State::dropped) {
      return;
    }
    state_[block] = State::shadowed;
    at_risk_ += is_ghost(block) ? 1 : 0;
    ++shadow_evictable_;
    boundary_ = block;
  }
  /// The evictions of LRU are final.
  void forget_dropped() noexcept {
    for (BlockId block = below(); block != no_block && state_[block] == State::dropped;) {
      const BlockId older = order_.older(block);
      if (is_ghost(block)) {
        forget(block);
      } else {
        state_[block] = State::extra;
      }
      block = older;
    }
  }

  /// A ghost takes the place of a block that is about to leave the order.
  void make_ghost(BlockId block, std::uint64_t key) noexcept {
    if (const BlockId equal = find(key); equal != no_block) {
      forget(equal);
    }
    if (first_free_ == none) {
      forget_dropped();
    }
    if (first_free_ == none || state_[block] == State::extra) {
      return;
    }
    const std::int32_t i = first_free_;
    first_free_ = static_cast<std::int32_t>(static_cast<std::int64_t>(ghosts_[static_cast<std::size_t>(i)]));
    const BlockId ghost{blocks_ + i};
    order_.push_before(block, ghost);
    state_[ghost] = state_[block];
    if (contains(block)) {
      boundary_ = boundary_ == block ? ghost : boundary_;
      ++shadow_evictable_;
      ++at_risk_;
    }
    const std::size_t bucket = bucket_of(key);
    ghosts_[slot(ghost)] = key;
    buckets_[bucket] = i;
  }

  [[nodiscard]] std::size_t home(std::int32_t i) const noexcept {
    return static_cast<std::size_t>(ghosts_[static_cast<std::size_t>(i)]) & (buckets_.size() - 1);
  }
  /// The bucket that holds the key, or the free one where it belongs.
  [[nodiscard]] std::size_t bucket_of(std::uint64_t key) const noexcept {
    const std::size_t mask = buckets_.size() - 1;
    std::size_t i = static_cast<std::size_t>(key) & mask;
    while (buckets_[i] != none && ghosts_[static_cast<std::size_t>(buckets_[i])] != key) {
      i = (i + 1) & mask;
    }
    return i;
  }
  [[nodiscard]] BlockId find(std::uint64_t key) const noexcept {
    const std::int32_t found = buckets_[bucket_of(key)];
    return found == none ? no_block : BlockId{blocks_ + found};
  }
  /// Takes a ghost out of everything. Linear probing without tombstones (Knuth, TAOCP 3, 6.4, algorithm R).
  void forget(BlockId ghost) noexcept {
    unlink(ghost);
    const std::size_t mask = buckets_.size() - 1;
    std::size_t hole = bucket_of(ghosts_[slot(ghost)]);
    for (std::size_t i = (hole + 1) & mask; buckets_[i] != none; i = (i + 1) & mask) {
      if (((i - home(buckets_[i])) & mask) >= ((i - hole) & mask)) {
        buckets_[hole] = buckets_[i];
        hole = i;
      }
    }
    buckets_[hole] = none;
    ghosts_[slot(ghost)] = static_cast<std::uint64_t>(std::int64_t{first_free_});
    first_free_ = static_cast<std::int32_t>(slot(ghost));
  }

  std::int32_t blocks_;
  BlockLists order_;  // by release: evictable blocks, and ghosts, which are numbered from blocks_
  BlockArray<State> state_;
  BlockId boundary_ = no_block;  // the oldest block that LRU caches
  Index evictable_ = 0;          // here
  Index shadow_evictable_ = 0;   // there
  Index at_risk_ = 0;
  std::uint64_t gains_ = 0, losses_ = 0, common_ = 0;
  bool gained_ = false;  // by the last call of acquire

  std::vector<std::uint64_t> ghosts_;  // the key; of one that is not in use, the next such, or none
  std::vector<std::int32_t> buckets_;  // ghosts by key, at most half full
  std::int32_t first_free_ = none;     // the first ghost that is not in use
};

}  // namespace v0
}  // namespace kvc
