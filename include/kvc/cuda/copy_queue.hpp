// CopyQueue: copies that are collected to be launched together.
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

/// Copies that are not launched yet. None of them writes what another one reads or writes, so they may run
/// concurrently.
class CopyQueue {
 public:
  [[nodiscard]] bool empty() const noexcept { return queued_.empty(); }
  [[nodiscard]] const std::vector<GridCopy>& queued() const noexcept { return queued_; }
  void clear() noexcept { queued_.clear(); }
  void push(const GridCopy& copy) { queued_.push_back(copy); }

  /// Whether `copy` reads or writes what a queued copy writes, or writes what one reads. The test compares the memory
  /// ranges that each layer of a copy covers: copies of distinct blocks never conflict, nor do keys with values.
  /// O(queued copies).
  [[nodiscard]] bool conflicts(const GridCopy& copy) const noexcept {
    return std::any_of(queued_.begin(), queued_.end(), [&](const GridCopy& other) {
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
  /// Whether a span of grid `a` at x and one of grid `b` at y may overlap.
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
    const Index distance = ((at(y) - at(x)) % period + period) % period;  // both repeat once per layer
    return distance < inner_extent(a) || distance + inner_extent(b) > period;
  }

  std::vector<GridCopy> queued_;
};

}  // namespace detail
}  // namespace cuda
}  // namespace v0
}  // namespace kvc
