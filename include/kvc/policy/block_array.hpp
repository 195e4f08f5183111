// BlockArray: one value for each block of a pool, indexed by BlockId.
#pragma once

#include <cstddef>
#include <span>

#include "kvc/core/types.hpp"
#include "kvc/memory/large_vector.hpp"

namespace kvc {
inline namespace v0 {

/// An array of `blocks` values of T (not bool). Allocates at construction only; access is O(1) and unchecked.
template <class T>
class BlockArray {
 public:
  /// An array for no block.
  BlockArray() = default;
  /// An array for blocks 0 .. blocks-1, all with one value. Throws std::bad_alloc. O(blocks).
  explicit BlockArray(Index blocks, const T& value = T{}) : values_(static_cast<std::size_t>(blocks), value) {}

  /// The value of a block. Not checked.
  [[nodiscard]] T& operator[](BlockId block) noexcept { return values_[static_cast<std::size_t>(block)]; }
  /// The value of a block. Not checked.
  [[nodiscard]] const T& operator[](BlockId block) const noexcept { return values_[static_cast<std::size_t>(block)]; }

  /// Number of blocks.
  [[nodiscard]] Index size() const noexcept { return static_cast<Index>(values_.size()); }
  /// The values in the order of block ids.
  [[nodiscard]] std::span<T> values() noexcept { return values_; }
  /// The values in the order of block ids.
  [[nodiscard]] std::span<const T> values() const noexcept { return values_; }

  /// f(BlockId, value) for every block, in ascending order.
  template <class F>
  void for_each(F&& f) const {
    for (std::size_t i = 0; i < values_.size(); ++i) {
      f(static_cast<BlockId>(i), values_[i]);
    }
  }

 private:
  detail::LargeVector<T> values_;
};

}  // namespace v0
}  // namespace kvc
