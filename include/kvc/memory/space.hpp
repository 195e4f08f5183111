// Spaces: the memory that a pool lies in. A space allocates and copies bytes and does not know what they mean.
#pragma once

#include <concepts>
#include <cstddef>
#include <cstring>
#include <new>
#include <utility>

#if defined(__linux__)
#include <sys/mman.h>
#endif

#include "kvc/config.hpp"
#include "kvc/core/error.hpp"
#include "kvc/core/types.hpp"

namespace kvc {
inline namespace v0 {

/// Allocates and copies bytes.
///
///   expression              | requires               | returns, does                  | throws           | complexity
///   ------------------------+------------------------+--------------------------------+------------------+------------
///   S::host_accessible      |                        | bool, constant: whether the    |                  |
///                           |                        | CPU may read and write through |                  |
///                           |                        | the pointers                   |                  |
///   s.allocate(bytes)       |                        | std::byte*: uninitialised      | bad_alloc        | O(1), or
///                           |                        | memory, 64-byte aligned, apart |                  | O(bytes)
///                           |                        | from all other allocations     |                  |
///   s.deallocate(p, bytes)  | p is from              | frees the memory               | nothing          | O(1), or
///                           | allocate(bytes) of s   |                                |                  | O(bytes)
///   s.copy(to, from, bytes) | both ranges in memory  | copies; later copies, and the  | anything: the    | O(bytes)
///                           | of s, no overlap       | caller if host_accessible, see | cache undoes the |
///                           |                        | the result                     | operation        |
///   s.copy(grid)            | as copy, for each      | optional: one call for many    | as copy          | O(bytes)
///                           | range of a GridCopy    | small ranges, as a device      |                  |
///                           |                        | needs it; see copy_ranges      |                  |
///
/// A space is movable, and memory that it allocated stays valid when it moves. KvCache calls a space from one
/// thread at a time. testing/space_conformance.hpp checks the contract; a minimal space is in
/// tests/conformance/spaces.cpp.
template <class S>
concept Space = std::movable<S> && requires(S space, std::byte* to, const std::byte* from, std::size_t bytes) {
  { S::host_accessible } -> std::convertible_to<bool>;
  { space.allocate(bytes) } -> std::same_as<std::byte*>;
  space.deallocate(to, bytes);
  space.copy(to, from, bytes);
};

/// Ranges of `bytes` bytes at even distances in three directions. Range (i, j, k) < extents starts
/// i * strides[0] + j * strides[1] + k * strides[2] bytes behind `from`, and goes as far behind `to`. No two overlap.
struct GridCopy {
  std::byte* to;
  const std::byte* from;
  Index bytes;
  Index extents[3];
  Index strides[3];
};

/// The same copy, in which adjacent ranges are one. O(1).
[[nodiscard]] constexpr GridCopy coalesced(GridCopy copy) noexcept {
  if (copy.strides[1] < copy.strides[2]) {
    std::swap(copy.strides[1], copy.strides[2]);
    std::swap(copy.extents[1], copy.extents[2]);
  }
  for (int i = 2; i >= 0 && (copy.strides[i] == copy.bytes || copy.extents[i] == 1); --i) {
    copy.bytes *= copy.extents[i];
    copy.extents[i] = 1;
  }
  return copy;
}

/// Copies all ranges of a grid: in one call where the space has copy(grid), else range by range.
template <Space S>
void copy_ranges(S& space, const GridCopy& grid) {
  if constexpr (requires { space.copy(grid); }) {
    space.copy(grid);
  } else {
    for (Index i = 0; i < grid.extents[0]; ++i) {
      for (Index j = 0; j < grid.extents[1]; ++j) {
        for (Index k = 0; k < grid.extents[2]; ++k) {
          const Index at = i * grid.strides[0] + j * grid.strides[1] + k * grid.strides[2];
          space.copy(grid.to + at, grid.from + at, static_cast<std::size_t>(grid.bytes));
        }
      }
    }
  }
}

/// The memory of the CPU. The system gives it pages when they are first written, so that a pool costs only the memory
/// that was ever used of it. Allocations of at least `large_page` bytes ask for large pages, which makes reading them
/// faster by a tenth to a third; if the system has none, it gives small ones.
struct HostSpace {
  static constexpr bool host_accessible = true;
  static constexpr std::size_t alignment = 64;                     ///< of every allocation: a cache line
  static constexpr std::size_t large_page = std::size_t{1} << 21;  ///< alignment of allocations at least as large

  /// Throws std::bad_alloc.
  [[nodiscard]] std::byte* allocate(std::size_t bytes) {
    const std::size_t align = alignment_of(bytes);
    auto* p = static_cast<std::byte*>(::operator new(bytes, std::align_val_t{align}));
#if defined(__linux__) && defined(MADV_HUGEPAGE)
    if (align == large_page) {
      (void)::madvise(p, bytes - bytes % large_page, MADV_HUGEPAGE);  // advice: refusal costs speed only
    }
#endif
    return p;
  }
  /// Frees memory that `allocate` returned for so many bytes.
  void deallocate(std::byte* p, std::size_t bytes) noexcept {
    ::operator delete(p, std::align_val_t{alignment_of(bytes)});
  }
  /// Copies bytes between ranges that do not overlap. O(bytes).
  void copy(std::byte* to, const std::byte* from, std::size_t bytes) noexcept { std::memcpy(to, from, bytes); }

 private:
  static constexpr std::size_t alignment_of(std::size_t bytes) noexcept {
    return bytes >= large_page ? large_page : alignment;
  }
};
static_assert(Space<HostSpace>);

/// Owns one allocation of a space, and the space. Neither copies nor moves.
template <Space S>
class Buffer {
 public:
  /// Throws std::bad_alloc.
  Buffer(S space, std::size_t bytes) : space_(std::move(space)), bytes_(bytes), data_(space_.allocate(bytes)) {}
  ~Buffer() { space_.deallocate(data_, bytes_); }
  Buffer(const Buffer&) = delete;
  Buffer& operator=(const Buffer&) = delete;

  /// The first byte.
  [[nodiscard]] std::byte* data() noexcept { return data_; }
  /// The first byte.
  [[nodiscard]] const std::byte* data() const noexcept { return data_; }
  /// Bytes.
  [[nodiscard]] std::size_t size() const noexcept { return bytes_; }
  /// The space that the bytes are of.
  [[nodiscard]] S& space() noexcept { return space_; }

 private:
  S space_;
  std::size_t bytes_;
  std::byte* data_;
};

}  // namespace v0
}  // namespace kvc
