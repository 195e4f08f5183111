// BorrowedSpace: memory that an engine owns, for the pool of a cache.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <new>
#include <span>
#include <utility>

#include "kvc/core/error.hpp"
#include "kvc/core/types.hpp"
#include "kvc/memory/space.hpp"

namespace kvc {
inline namespace v0 {

/// The memory that was lent is too small. The message names the bytes that were asked for, and those that are left.
class OutOfBorrowedMemory : public std::bad_alloc {
 public:
  /// Of memory of `lent` bytes, `requested` are wanted and `available` are left.
  OutOfBorrowedMemory(std::size_t requested, std::size_t available, std::size_t lent) noexcept
      : requested_(requested), available_(available) {
    std::snprintf(message_, sizeof message_,
                  "kvc: %zu bytes are wanted of borrowed memory, of whose %zu bytes %zu are left", requested, lent,
                  available);
  }
  [[nodiscard]] const char* what() const noexcept override { return message_; }
  /// Bytes that were asked for.
  [[nodiscard]] std::size_t requested() const noexcept { return requested_; }
  /// Bytes that were left.
  [[nodiscard]] std::size_t available() const noexcept { return available_; }

 private:
  std::size_t requested_;
  std::size_t available_;
  char message_[128];
};

/// Memory of the CPU that somebody else owns, and frees: an arena, shared memory, huge pages, a buffer of an engine.
///
///   using Cache = KvCache<float, Paged, HeadMajor, BorrowedSpace>;
///   const Index bytes = Cache::pool_bytes(shape, config);        // how much a cache needs
///   Cache cache(shape, config, BorrowedSpace(memory, bytes));    // memory outlives the cache
///
/// Hands the memory out from the front, and never writes to it by itself. Only the latest allocation can be given back
/// to be used again; a cache makes one. It moves and does not copy, so that no two caches get the same memory.
class BorrowedSpace {
 public:
  static constexpr bool host_accessible = true;
  static constexpr std::size_t alignment = 64;  ///< of the memory, and of every allocation: a cache line

  /// Borrows `bytes` bytes at `memory`, which must outlive what is allocated in them.
  /// Throws std::invalid_argument if `memory` is not a multiple of `alignment`, or null though `bytes` are not 0.
  BorrowedSpace(void* memory, std::size_t bytes) : memory_(static_cast<std::byte*>(memory)), bytes_(bytes) {
    const auto address = reinterpret_cast<std::uintptr_t>(memory);
    require(address % alignment == 0, "memory", address, "aligned to 64 bytes");
    require(memory != nullptr || bytes == 0, "memory", "null", "the memory of a borrowed space");
  }
  /// The same of a range of bytes.
  explicit BorrowedSpace(std::span<std::byte> memory) : BorrowedSpace(memory.data(), memory.size()) {}

  /// Takes over what the other had; nothing is left there.
  BorrowedSpace(BorrowedSpace&& other) noexcept
      : memory_(std::exchange(other.memory_, nullptr)),
        bytes_(std::exchange(other.bytes_, 0)),
        used_(std::exchange(other.used_, 0)),
        last_(std::exchange(other.last_, 0)) {}
  /// The same; what this one had is no longer handed out.
  BorrowedSpace& operator=(BorrowedSpace&& other) noexcept {
    memory_ = std::exchange(other.memory_, nullptr);
    bytes_ = std::exchange(other.bytes_, 0);
    used_ = std::exchange(other.used_, 0);
    last_ = std::exchange(other.last_, 0);
    return *this;
  }

  /// The next `bytes` bytes. O(1). Throws OutOfBorrowedMemory, which is a std::bad_alloc.
  [[nodiscard]] std::byte* allocate(std::size_t bytes) {
    if (bytes > available()) {
      throw_error(OutOfBorrowedMemory(bytes, available(), bytes_));
    }
    last_ = used_;
    used_ += std::min(ceil_div(bytes, alignment) * alignment, available());  // the memory may end within a line
    return memory_ + last_;
  }
  /// Makes the latest allocation available again, and does nothing with another one. O(1).
  void deallocate(std::byte* p, std::size_t bytes) noexcept {
    if (p == memory_ + last_ && bytes > 0) {  // one of no bytes has the address of the next one
      used_ = last_;
    }
  }
  /// Copies bytes between ranges that do not overlap. O(bytes).
  void copy(std::byte* to, const std::byte* from, std::size_t bytes) noexcept { std::memcpy(to, from, bytes); }

  /// Bytes that are lent, those in use included.
  [[nodiscard]] std::size_t size() const noexcept { return bytes_; }
  /// Bytes that the next allocation can have.
  [[nodiscard]] std::size_t available() const noexcept { return bytes_ - used_; }

 private:
  std::byte* memory_;
  std::size_t bytes_;
  std::size_t used_ = 0;
  std::size_t last_ = 0;  // where the latest allocation begins
};
static_assert(Space<BorrowedSpace>);

}  // namespace v0
}  // namespace kvc
