// Backoff: pauses between two polls of something that cannot wake its reader, MPI for example.
#pragma once

#include <algorithm>
#include <chrono>
#include <thread>

#include "kvc/transport/concept.hpp"

namespace kvc {
inline namespace v0 {
namespace transport {
namespace detail {

/// Yields at first, then sleeps for a quarter of the time since the wait began, at most `longest`. So a wait takes at
/// most a quarter or `longest` more than needed, and an idle thread leaves the processor to others.
class Backoff {
 public:
  explicit Backoff(TimePoint begin) noexcept : begin_(begin) {}

  /// Pauses once, at most until `until`. `now` is the current time.
  void pause(TimePoint now, TimePoint until, std::chrono::nanoseconds longest) const {
    constexpr std::chrono::microseconds shortest(50);  // the timer slack of Linux: no sleep is shorter
    if (now - begin_ < shortest) {
      std::this_thread::yield();
    } else {
      std::this_thread::sleep_for(
          std::min({TimePoint::duration((now - begin_) / 4), TimePoint::duration(longest), until - now}));
    }
  }

 private:
  TimePoint begin_;
};

}  // namespace detail
}  // namespace transport
}  // namespace v0
}  // namespace kvc
