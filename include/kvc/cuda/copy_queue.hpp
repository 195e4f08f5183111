// CopyQueue: copies that wait to be launched together.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <vector>

#include "kvc/core/types.hpp"
#include "kvc/memory/space.hpp"

namespace kvc {
inline namespace v0 {
namespace cuda {
namespace detail {

/// Copies in waiting: none of them writes what another reads or writes, so that they may run side by side.
class CopyQueue {
 public:
  [[nodiscard]] bool empty() const noexcept { return waiting_.empty(); }
  [[nodiscard]] const std::vector<GridCopy>& waiting() const noexcept { return waiting_; }
  void clear() noexcept { waiting_.clear(); }
  void push(const GridCopy& copy) { waiting_.push_back(copy); }

  /// Whether `copy` touches what one in waiting writes, or writes what it reads. By the ranges of memory that a
  /// layer of each spans, so copies of distinct blocks never conflict, and those of keys and values never do. O(copies
  /// in waiting).
  [[nodiscard]] bool conflicts(const GridCopy& copy) const noexcept {
    return std::any_of(waiting_.begin(), waiting_.end(), [&](const GridCopy& other) {
      return touch(copy.to, copy, other.to, other) || touch(copy.to, copy, other.from, other) ||
             touch(copy.from, copy, other.to, other);
    });
  }

 private:
  [[nodiscard]] static Index inner_extent(const GridCopy& copy) noexcept {
    return (copy.extents[1] - 1) * copy.strides[1] + (copy.extents[2] - 1) * copy.strides[2] + copy.bytes;
  }
  [[nodiscard]] static Index extent(const GridCopy& copy) noexcept {
    return (copy.extents[0] - 1) * copy.strides[0] + inner_extent(copy);
  }
  /// Whether the spans of grid `a` at x and those of grid `b` at y may overlap.
  [[nodiscard]] static bool touch(const std::byte* x, const GridCopy& a, const std::byte* y,
                                  const GridCopy& b) noexcept {
    const auto at = [](const std::byte* p) { return static_cast<Index>(reinterpret_cast<std::uintptr_t>(p)); };
    if (at(x) >= at(y) + extent(b) || at(y) >= at(x) + extent(a)) {
      return false;
    }
    const Index period = a.strides[0];
    if (a.extents[0] == 1 || b.extents[0] == 1 || period != b.strides[0] || inner_extent(a) > period ||
        inner_extent(b) > period) {
      return true;
    }
    const Index distance = ((at(y) - at(x)) % period + period) % period;  // both repeat from layer to layer
    return distance < inner_extent(a) || distance + inner_extent(b) > period;
  }

  std::vector<GridCopy> waiting_;
};

}  // namespace detail
}  // namespace cuda
}  // namespace v0
}  // namespace kvc
