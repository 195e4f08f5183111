// AdaptiveMutex: a mutex for critical sections of microseconds.
#pragma once

#include <atomic>

#include "kvc/core/spin_pause.hpp"

namespace kvc {
inline namespace v0 {
/// Spins briefly, then blocks. Lockable; not recursive. Uncontended, lock and unlock are one atomic operation each.
class AdaptiveMutex {
 public:
  /// Locks the mutex if it is unlocked; says whether it did.
  [[nodiscard]] bool try_lock() noexcept {
    // Not an exchange: it would overwrite `contended` when it fails, and nobody would wake the blocked threads.
    int expected = unlocked;
    return state_.load(std::memory_order_relaxed) == unlocked &&
           state_.compare_exchange_strong(expected, locked, std::memory_order_seq_cst, std::memory_order_relaxed);
  }
  /// Locks the mutex; waits until it is unlocked.
  void lock() noexcept {
    for (int i = 0; i < spins; ++i) {
      if (try_lock()) {
        return;
      }
      detail::spin_pause();
    }
    while (state_.exchange(contended, std::memory_order_seq_cst) != unlocked) {
      state_.wait(contended, std::memory_order_relaxed);
    }
  }
  /// Unlocks the mutex, which the calling thread has locked.
  void unlock() noexcept {
    if (state_.exchange(unlocked, std::memory_order_release) == contended) {
      state_.notify_one();
    }
  }

  /// Whether a thread has it. With what the caller stored before, in the one order of sequentially consistent
  /// operations.
  [[nodiscard]] bool is_locked() const noexcept { return state_.load(std::memory_order_seq_cst) != unlocked; }

 private:
  static constexpr int unlocked = 0;
  static constexpr int locked = 1;
  static constexpr int contended = 2;  // locked, and a thread may be blocked
  static constexpr int spins = 2000;

  std::atomic<int> state_ = unlocked;
};

}  // namespace v0
}  // namespace kvc
