// SharedAdaptiveMutex: a mutex for critical sections of microseconds that any number of readers share.
#pragma once

#include <array>
#include <atomic>
#include <cstdint>

#include "kvc/policy/adaptive_mutex.hpp"

namespace kvc {
inline namespace v0 {

/// Spins briefly, then blocks. SharedLockable; not recursive, neither in one mode nor across both. Readers that come
/// while a writer waits are let in after it.
///
/// A reader counts itself in a cache line that no other core writes, so readers do not slow one another down. There are
/// 32 lines, for threads by the numbers in which they first lock any such mutex. A writer looks at those up to the last
/// one that readers of this mutex have used: none if there were no readers. Uncontended, either takes two atomic
/// operations to lock and unlock.
class SharedAdaptiveMutex {
 public:
  /// Locks for one thread, if nobody has a lock; says whether it did.
  [[nodiscard]] bool try_lock() noexcept {
    if (!writer_.try_lock()) {
      return false;
    }
    for (std::uint32_t counter = 0; counter < used_.load(std::memory_order_seq_cst); ++counter) {
      if (counters_[counter].readers.load(std::memory_order_seq_cst) != 0) {
        writer_.unlock();
        return false;
      }
    }
    return true;
  }
  /// Locks for one thread; waits until nobody has a lock.
  void lock() noexcept {
    writer_.lock();
    for (std::uint32_t counter = 0; counter < used_.load(std::memory_order_seq_cst); ++counter) {
      wait_for_none(counters_[counter].readers);
    }
  }
  /// Unlocks; the calling thread has locked.
  void unlock() noexcept { writer_.unlock(); }

  /// Locks for readers, unless a writer has or waits for the lock; says whether it did.
  [[nodiscard]] bool try_lock_shared() noexcept {
    std::atomic<std::int32_t>& readers = own_counter();
    // Either this thread sees the writer, or the writer sees this thread: both first write, then read.
    readers.fetch_add(1, std::memory_order_seq_cst);
    if (!writer_.is_locked()) [[likely]] {
      return true;
    }
    leave(readers);
    return false;
  }
  /// Locks for readers; waits for writers.
  void lock_shared() noexcept {
    if (!try_lock_shared()) [[unlikely]] {
      writer_.lock();  // so no writer has it, and the next one will see this thread
      own_counter().fetch_add(1, std::memory_order_seq_cst);
      writer_.unlock();
    }
  }
  /// Unlocks; the calling thread has locked for readers.
  void unlock_shared() noexcept { leave(own_counter()); }

 private:
  static constexpr std::uint32_t most_counters = 32;
  static constexpr int spins = 2000;
  struct alignas(64) Counter {
    std::atomic<std::int32_t> readers = 0;
  };

  /// The number of the calling thread, from 0 on. Threads whose numbers are most_counters apart share a counter.
  [[nodiscard]] static std::uint32_t thread_number() noexcept {
    static std::atomic<std::uint32_t> threads = 0;
    thread_local const std::uint32_t number = threads.fetch_add(1, std::memory_order_relaxed);
    return number;
  }
  [[nodiscard]] std::atomic<std::int32_t>& own_counter() noexcept {
    const std::uint32_t counter = thread_number() % most_counters;
    for (std::uint32_t used = used_.load(std::memory_order_acquire); used <= counter;) {
      used_.compare_exchange_weak(used, counter + 1, std::memory_order_seq_cst, std::memory_order_acquire);
    }
    return counters_[counter].readers;
  }
  static void wait_for_none(const std::atomic<std::int32_t>& readers) noexcept {
    for (int i = 0; i < spins; ++i) {
      if (readers.load(std::memory_order_seq_cst) == 0) {
        return;
      }
      detail::spin_pause();
    }
    while (const std::int32_t some = readers.load(std::memory_order_seq_cst)) {
      readers.wait(some, std::memory_order_seq_cst);
    }
  }
  void leave(std::atomic<std::int32_t>& readers) noexcept {
    readers.fetch_sub(1, std::memory_order_seq_cst);
    if (writer_.is_locked()) [[unlikely]] {
      readers.notify_all();  // it may be blocked
    }
  }

  std::array<Counter, most_counters> counters_;
  alignas(64) std::atomic<std::uint32_t> used_ = 0;  // counters, from the first on, that readers have used
  AdaptiveMutex writer_;
};

}  // namespace v0
}  // namespace kvc
