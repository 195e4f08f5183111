// spin_pause: tells the processor that a thread waits in a loop.
#pragma once

namespace kvc {
inline namespace v0 {
namespace detail {

/// Tells the processor that a thread waits in a loop.
inline void spin_pause() noexcept {
#if defined(__x86_64__) || defined(__i386__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

}  // namespace detail
}  // namespace v0
}  // namespace kvc
