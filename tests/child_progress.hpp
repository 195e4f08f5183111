// A child process tells its parent that it is under way, so that a test that kills it does not depend on how fast the
// machine starts one.
#pragma once

#include <unistd.h>

#include "catch.hpp"

namespace kvc_test {

class ChildProgress {
 public:
  ChildProgress() { REQUIRE(::pipe(ends_) == 0); }
  ChildProgress(const ChildProgress&) = delete;
  ChildProgress& operator=(const ChildProgress&) = delete;
  ~ChildProgress() {
    ::close(ends_[0]);
    ::close(ends_[1]);
  }

  /// In the child, once: it has done its first piece of work.
  void tell() {
    if (!told_) {
      told_ = ::write(ends_[1], "", 1) == 1;
    }
  }
  /// In the parent: returns when the child has told, and fails if it ends without that.
  void await() {
    ::close(ends_[1]);
    ends_[1] = -1;
    char byte = 0;
    REQUIRE(::read(ends_[0], &byte, 1) == 1);
  }

 private:
  int ends_[2] = {-1, -1};
  bool told_ = false;
};

}  // namespace kvc_test
