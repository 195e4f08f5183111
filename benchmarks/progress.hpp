// A progress bar on the terminal, for runs that take longer than a moment.
#pragma once

#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cstddef>
#include <iostream>
#include <string>
#include <string_view>
#include <utility>

namespace kvc_bench {

/// Writes to stderr, if that is a terminal. The destructor removes the bar.
class Progress {
 public:
  /// For a run of `steps` calls of `step`.
  explicit Progress(std::size_t steps) : steps_(steps), on_(isatty(STDERR_FILENO) == 1) {}
  ~Progress() { clear(); }
  Progress(const Progress&) = delete;
  Progress& operator=(const Progress&) = delete;

  void step(std::string_view what) {
    what_ = what;
    ++begun_;
    show(0);
  }

  /// Removes the bar, before other output.
  void clear() {
    if (std::exchange(shown_, false)) {
      std::cerr << "\r\033[K" << std::flush;
    }
  }

  /// Shows the completed share of this step.
  void show(double share) {
    const auto now = Clock::now();
    if (!on_ || now < next_) {
      return;
    }
    next_ = now + std::chrono::milliseconds(100);
    shown_ = true;
    constexpr std::size_t width = 30;
    const double done = (static_cast<double>(begun_) - 1 + share) / static_cast<double>(steps_);
    const auto full = std::min(width, static_cast<std::size_t>(done * static_cast<double>(width)));
    std::cerr << "\r\033[K[" << std::string(full, '#') << std::string(width - full, '.') << "] " << what_ << std::flush;
  }

 private:
  using Clock = std::chrono::steady_clock;
  std::size_t steps_;
  bool on_;
  std::size_t begun_ = 0;
  std::string what_;
  bool shown_ = false;
  Clock::time_point next_ = Clock::now() + std::chrono::milliseconds(300);
};

}  // namespace kvc_bench
