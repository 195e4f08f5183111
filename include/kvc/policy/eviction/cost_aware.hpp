// CostAware: evicts the block that is cheapest to recompute, weighted by its uses and its age.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <span>
#include <string_view>

#include "kvc/config.hpp"
#include "kvc/core/error.hpp"
#include "kvc/core/types.hpp"
#include "kvc/policy/block_array.hpp"
#include "kvc/policy/eviction/block_heap.hpp"
#include "kvc/policy/eviction/block_value.hpp"
#include "kvc/policy/eviction/concept.hpp"
#include "kvc/policy/retention.hpp"

namespace kvc {
inline namespace v0 {

/// Evicts the block that is cheapest to recompute, weighted by how often it was used and how long ago. For long
/// prompts, whose last blocks attend to all blocks before them.
///
/// Greedy-Dual-Size-Frequency: L. Cherkasova, "Improving WWW proxies performance with Greedy-Dual-Size-Frequency
/// caching policy", HP Laboratories, 1998, after P. Cao, S. Irani, "Cost-aware WWW proxy caching algorithms", 1997. The
/// victim is the block with the lowest
///
///   priority = clock + uses * cost,    cost = compute_cost(depth, config.slope),
///
/// where `clock` is the priority of the last victim at the time of the block's release, so that unused blocks fall
/// behind. A use is the storing of the block, and each opening of a sequence that finds it. Of blocks of equal priority
/// the one that was released first goes first.
///
/// A block cannot go before the cached blocks behind it, which cost more: it gets at least the priority of the blocks
/// that are released with it. Otherwise a prefix would have the priority of its first and cheapest block.
///
/// on_evictable and on_acquired are O(log blocks), all else is O(1). 36 bytes per block.
class CostAware : public EvictionDefaults {
 public:
  static constexpr std::string_view name = "cost-aware";

  static constexpr double default_slope = default_cost_slope;

  struct Config {
    /// Additional cost of a block for each block before it, in units of the cost of the first block; not negative.
    double slope = default_slope;
  };

  /// No block is cached; the default config. Throws std::bad_alloc. O(blocks).
  explicit CostAware(Index blocks) : CostAware(blocks, Config{}) {}
  /// No block is cached. Throws std::invalid_argument if config.slope is negative or infinite, and std::bad_alloc.
  /// O(blocks).
  CostAware(Index blocks, const Config& config) : slope_(config.slope), heap_(blocks), entries_(blocks) {
    require(config.slope >= 0 && std::isfinite(config.slope), "config.eviction.slope", config.slope,
            "finite and at least 0");
  }

  /// Counts a use of each block found. O(found).
  void on_open(const SequenceContext&, std::span<const BlockId> found, const Retention&,
               std::uint64_t /*now*/) noexcept {
    for (const BlockId block : found) {
      ++entries_[block].uses;
    }
  }
  /// Counts the first use, and keeps the depth. O(1).
  void on_cached(const SequenceContext&, const StoredBlock& stored, std::uint64_t /*now*/) noexcept {
    entries_[stored.block] = {.uses = 1, .depth = stored.depth};
  }

  /// Gives the block its priority. O(log blocks).
  void on_evictable(const SequenceContext&, BlockId block, std::uint64_t now) noexcept {
    const double own = clock_ + entries_[block].uses * compute_cost(entries_[block].depth, slope_);
    released_priority_ = now == now_ ? std::max(released_priority_, own) : own;
    now_ = now;
    heap_.push(block, {released_priority_, inserted_++});
  }
  /// The block has no priority. O(log blocks).
  void on_acquired(BlockId block) noexcept { heap_.erase(block); }

  /// The block of the lowest priority, which becomes the clock. Requires size() > 0. O(1).
  [[nodiscard]] BlockId victim(std::uint64_t /*now*/) noexcept {
    KVC_ASSERT(size() > 0);
    clock_ = heap_.top_key().priority;
    return heap_.top();
  }
  /// Evictable blocks. O(1).
  [[nodiscard]] Index size() const noexcept { return heap_.size(); }

 private:
  struct Key {
    double priority;
    std::uint64_t inserted;  // how many were before
    friend bool operator<(const Key& a, const Key& b) noexcept {
      return a.priority < b.priority || (a.priority == b.priority && a.inserted < b.inserted);
    }
  };
  struct Entry {
    std::uint32_t uses = 0;
    Pos depth = 0;
  };

  double slope_;
  double clock_ = 0;
  double released_priority_ = 0;  // the highest priority of the blocks released at now_
  std::uint64_t now_ = 0;
  std::uint64_t inserted_ = 0;
  BlockHeap<Key> heap_;
  BlockArray<Entry> entries_;
};
static_assert(EvictionPolicy<CostAware>);

}  // namespace v0
}  // namespace kvc
