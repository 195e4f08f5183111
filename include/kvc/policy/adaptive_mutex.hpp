// AdaptiveMutex: a mutex for critical sections of microseconds.
#pragma once

#include <atomic>

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
           state_.compare_exchange_strong(expected, locked, std::memory_order_acquire, std::memory_order_relaxed);
  }
  /// Locks the mutex; waits until it is unlocked.
  void lock() noexcept {
    for (int i = 0; i < spins; ++i) {
      if (try_lock()) {
        return;
      }
      pause();
    }
    while (state_.exchange(contended, std::memory_order_acquire) != unlocked) {
      state_.wait(contended, std::memory_order_relaxed);
    }
  }
  /// Unlocks the mutex, which the calling thread has locked.
  void unlock() noexcept {
    if (state_.exchange(unlocked, std::memory_order_release) == contended) {
      state_.notify_one();
    }
  }

 private:
  static constexpr int unlocked = 0;
  static constexpr int locked = 1;
  static constexpr int contended = 2;  // locked, and a thread may be blocked
  static constexpr int spins = 2000;

  static void pause() noexcept {
#if defined(__x86_64__) || defined(__i386__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    asm volatile("yield");
#endif
  }

  std::atomic<int> state_ = unlocked;
};

}  // namespace v0
}  // namespace kvc
