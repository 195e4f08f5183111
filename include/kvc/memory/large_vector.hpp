// LargeVector: a std::vector on large pages, for tables that are looked up at random.
#pragma once

#include <cstddef>
#include <vector>

#include "kvc/memory/space.hpp"

namespace kvc {
inline namespace v0 {
namespace detail {

/// An allocator on HostSpace, which gives large pages to large requests.
template <class T>
struct HostAllocator {
  using value_type = T;
  HostAllocator() = default;
  template <class U>
  HostAllocator(const HostAllocator<U>&) noexcept {}
  [[nodiscard]] T* allocate(std::size_t count) { return reinterpret_cast<T*>(HostSpace{}.allocate(count * sizeof(T))); }
  void deallocate(T* p, std::size_t count) noexcept {
    HostSpace{}.deallocate(reinterpret_cast<std::byte*>(p), count * sizeof(T));
  }
  friend bool operator==(const HostAllocator&, const HostAllocator&) = default;
};

/// A std::vector that lies in large pages if it is large: random accesses then miss the TLB less often.
template <class T>
using LargeVector = std::vector<T, HostAllocator<T>>;

}  // namespace detail
}  // namespace v0
}  // namespace kvc
