// TinyLfu: keeps the blocks whose keys came often, also before they were cached.
#pragma once

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <span>
#include <string_view>

#include "kvc/config.hpp"
#include "kvc/core/types.hpp"
#include "kvc/policy/block_array.hpp"
#include "kvc/policy/detail/frequency_sketch.hpp"
#include "kvc/policy/eviction/block_lists.hpp"
#include "kvc/policy/eviction/concept.hpp"
#include "kvc/policy/retention.hpp"

namespace kvc {
inline namespace v0 {

/// Keeps the blocks whose keys came often, also while they were not cached, and lets a new block stay only if it beats
/// an old one. For popular prompts among many that come once.
///
/// W-TinyLFU: G. Einziger, R. Friedman, B. Manes, "TinyLFU: a highly efficient cache admission policy", ACM
/// Transactions on Storage 13(4), 2017. A new block enters a small window, an LRU list of a hundredth of the pool. The
/// rest, main, is an LRU list in two segments: a block that is found while it is on probation becomes protected, and
/// when more than four fifths are protected, the oldest of these returns to probation. While the window is too large,
/// its oldest block and the oldest one on probation compete: the block whose key was seen less often is evicted, at a
/// tie the one from the window. If that one wins, it is put on probation, and evicts nobody while main is smaller than
/// its share. Frequencies are estimates of a FrequencySketch; a key is seen when its block is stored, and at each
/// opening of a sequence that finds it.
///
/// A cache has to take each computed block, so a block is rejected after it was cached, not before. Referenced blocks
/// are in no list. Until the first victim is wanted there is room for all blocks, and the window passes on those that
/// it cannot hold.
///
/// Every operation is O(1) amortised: see FrequencySketch. 32 to 40 bytes per block.
class TinyLfu : public EvictionDefaults {
 public:
  static constexpr std::string_view name = "tiny-lfu";

  /// No block is cached. Throws std::bad_alloc. O(blocks).
  explicit TinyLfu(Index blocks, const Config& = {})
      : window_share_(std::max<Index>(1, blocks / 100)),
        main_share_(blocks - window_share_),
        protected_share_(main_share_ * 4 / 5),
        lists_(blocks, 3),
        entries_(blocks),
        frequencies_(static_cast<std::size_t>(blocks)) {}

  /// Counts the keys of the blocks found. O(found).
  void on_open(const SequenceContext&, std::span<const BlockId> found, const Retention&,
               std::uint64_t /*now*/) noexcept {
    for (const BlockId block : found) {
      frequencies_.add(entries_[block].key);
      entries_[block].found = true;
    }
  }
  /// Counts the key of the block, which belongs to the window. O(1) amortised.
  void on_cached(const SequenceContext&, const StoredBlock& stored, std::uint64_t /*now*/) noexcept {
    frequencies_.add(stored.key);
    entries_[stored.block] = {.key = stored.key, .list = window, .found = false};
  }

  /// The block enters its list: of those on probation, the protected one if it was found since. O(1).
  void on_evictable(const SequenceContext&, BlockId block, std::uint64_t /*now*/) noexcept {
    Entry& e = entries_[block];
    push(e.list == probation && e.found ? protected_ : e.list, block);
    e.found = false;
    if (sizes_[protected_] > protected_share_) {
      move_oldest(protected_, probation);
    }
    if (!was_full_ && sizes_[window] > window_share_) {
      move_oldest(window, probation);
    }
  }
  /// The block leaves its list. O(1).
  void on_acquired(BlockId block) noexcept {
    lists_.erase(block);
    --sizes_[entries_[block].list];
    if (block == victim_) {
      victim_ = no_block;
    }
  }

  /// The block counts for no list. O(1).
  void on_uncached(BlockId block) noexcept { main_ -= entries_[block].list == window ? 0 : 1; }

  /// The block that loses the comparison of frequencies. Requires size() > 0. O(1) amortised.
  [[nodiscard]] BlockId victim(std::uint64_t /*now*/) noexcept {
    KVC_ASSERT(size() > 0);
    was_full_ = true;
    if (victim_ == no_block) {
      victim_ = choose();
    }
    return victim_;
  }
  /// Evictable blocks. O(1).
  [[nodiscard]] Index size() const noexcept { return sizes_[window] + sizes_[probation] + sizes_[protected_]; }

 private:
  enum List : std::uint8_t { window, probation, protected_ };  // "protected" is a keyword

  struct Entry {
    std::uint64_t key = 0;
    List list = window;
    bool found = false;  // since it was last put in a list
  };
  void push(List list, BlockId block) noexcept {
    lists_.push_newest(list, block);
    entries_[block].list = list;
    ++sizes_[list];
  }
  void move_oldest(List from, List to) noexcept {
    const BlockId block = lists_.oldest(from);
    lists_.erase(block);
    --sizes_[from];
    main_ += from == window ? 1 : 0;
    push(to, block);
  }

  [[nodiscard]] BlockId choose() noexcept {
    for (;;) {
      const BlockId oldest = lists_.oldest(sizes_[probation] > 0 ? probation : protected_);
      const BlockId newcomer = lists_.oldest(window);
      if (oldest == no_block) {
        return newcomer;
      }
      if (sizes_[window] <= window_share_) {
        return oldest;
      }
      if (frequencies_.estimate(entries_[newcomer].key) <= frequencies_.estimate(entries_[oldest].key)) {
        return newcomer;
      }
      move_oldest(window, probation);
      if (main_ > main_share_) {
        return oldest;
      }
    }
  }

  Index window_share_;
  Index main_share_;
  Index protected_share_;
  BlockLists lists_;
  BlockArray<Entry> entries_;
  std::array<Index, 3> sizes_{};
  Index main_ = 0;             // cached blocks of main, referenced or not
  BlockId victim_ = no_block;  // kept until it is evicted: its descendants, evicted first, do not change the choice
  bool was_full_ = false;
  detail::FrequencySketch frequencies_;
};
static_assert(EvictionPolicy<TinyLfu>);

}  // namespace v0
}  // namespace kvc
