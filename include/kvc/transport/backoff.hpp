// Backoff: how to wait for something that one can only look for again and again, as what MPI brings.
#pragma once

#include <algorithm>
#include <chrono>
#include <thread>

#include "kvc/transport/concept.hpp"

namespace kvc {
inline namespace v0 {
namespace transport {
namespace detail {

/// Pauses between two looks: none at first but for what a yield gives to others, then a quarter of the time since the
/// wait began. So the wait is a quarter longer than it must be, or `longest`, and who is idle takes no processor from
/// those who work.
class Backoff {
 public:
  explicit Backoff(TimePoint begin) noexcept : begin_(begin) {}

  /// Returns at `until` at the latest. `now` is the time.
  void pause(TimePoint now, TimePoint until, std::chrono::nanoseconds longest) const {
    constexpr std::chrono::microseconds shortest(50);  // Linux lets no thread sleep for less: its timer slack
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
