// BlockHeap: for eviction policies whose order lists cannot express.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "kvc/config.hpp"
#include "kvc/core/types.hpp"
#include "kvc/policy/block_array.hpp"

namespace kvc {
inline namespace v0 {

/// A binary heap of blocks by a key, with the lowest key on top. It knows where each block is, so that any block can be
/// taken out. push and erase are O(log blocks), all else is O(1); nothing is allocated after construction. 8 bytes per
/// block, and those of a key. Key is copyable and has operator<.
template <class Key>
class BlockHeap {
 public:
  /// For blocks 0 .. blocks-1, empty. Throws std::bad_alloc. O(blocks).
  explicit BlockHeap(Index blocks) : places_(blocks, nowhere) { heap_.reserve(static_cast<std::size_t>(blocks)); }

  /// Whether there is no block.
  [[nodiscard]] bool empty() const noexcept { return heap_.empty(); }
  /// Number of blocks.
  [[nodiscard]] Index size() const noexcept { return std::ssize(heap_); }
  /// Whether a block is in the heap.
  [[nodiscard]] bool contains(BlockId block) const noexcept { return places_[block] != nowhere; }
  /// The block with the lowest key, and that key. The heap must not be empty.
  [[nodiscard]] BlockId top() const noexcept { return heap_.front().block; }
  /// The lowest key. The heap must not be empty.
  [[nodiscard]] const Key& top_key() const noexcept { return heap_.front().key; }

  /// Puts in a block that is not there.
  void push(BlockId block, const Key& key) noexcept {
    KVC_ASSERT(!contains(block));
    heap_.push_back({key, block});  // within what is reserved
    rise(heap_.size() - 1, {key, block});
  }
  /// Takes out a block that is there.
  void erase(BlockId block) noexcept {
    KVC_ASSERT(contains(block));
    const std::size_t hole = places_[block];
    const Entry last = heap_.back();
    heap_.pop_back();
    places_[block] = nowhere;
    if (hole == heap_.size()) {
      return;
    }
    if (hole > 0 && last.key < heap_[above(hole)].key) {
      rise(hole, last);
    } else {
      sink(hole, last);
    }
  }

 private:
  struct Entry {
    Key key;
    BlockId block;
  };
  static constexpr std::uint32_t nowhere = ~std::uint32_t{0};

  [[nodiscard]] static std::size_t above(std::size_t i) noexcept { return (i - 1) / 2; }

  void put(std::size_t i, const Entry& entry) noexcept {
    heap_[i] = entry;
    places_[entry.block] = static_cast<std::uint32_t>(i);
  }
  void rise(std::size_t hole, const Entry& entry) noexcept {
    for (; hole > 0 && entry.key < heap_[above(hole)].key; hole = above(hole)) {
      put(hole, heap_[above(hole)]);
    }
    put(hole, entry);
  }
  void sink(std::size_t hole, const Entry& entry) noexcept {
    for (std::size_t child = 2 * hole + 1; child < heap_.size(); child = 2 * hole + 1) {
      if (child + 1 < heap_.size() && heap_[child + 1].key < heap_[child].key) {
        ++child;
      }
      if (!(heap_[child].key < entry.key)) {
        break;
      }
      put(hole, heap_[child]);
      hole = child;
    }
    put(hole, entry);
  }

  std::vector<Entry> heap_;
  BlockArray<std::uint32_t> places_;  // of each block in heap_
};

}  // namespace v0
}  // namespace kvc
