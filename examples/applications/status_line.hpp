// StatusLine: a line for operations that take long. For the program generate.
#pragma once

#include <unistd.h>

#include <chrono>
#include <iostream>
#include <string_view>

#include "kvc/core/types.hpp"

/// A line on stderr that is written over and over. It is shown on a terminal only, and not before 0.3 s have passed.
class StatusLine {
 public:
  explicit StatusLine(bool wanted) : on_(wanted && isatty(STDERR_FILENO) == 1) {}
  ~StatusLine() { clear(); }
  StatusLine(const StatusLine&) = delete;
  StatusLine& operator=(const StatusLine&) = delete;

  void show(std::string_view what, kvc::Index done, kvc::Index all) {
    const auto now = Clock::now();
    if (on_ && now >= next_) {
      next_ = now + std::chrono::milliseconds(100);
      shown_ = true;
      std::cerr << "\r\033[K" << what << ' ' << done << " of " << all << " tokens" << std::flush;
    }
  }
  void clear() {
    if (shown_) {
      std::cerr << "\r\033[K" << std::flush;
      shown_ = false;
    }
  }

 private:
  using Clock = std::chrono::steady_clock;
  bool on_;
  bool shown_ = false;
  Clock::time_point next_ = Clock::now() + std::chrono::milliseconds(300);
};
