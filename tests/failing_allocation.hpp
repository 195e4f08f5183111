// Makes the n-th allocation from now on fail, to see that an operation that cannot allocate changes nothing.
//
// The program must link failing_allocation.cpp, which replaces the global operator new.
#pragma once

#include <cstddef>

namespace kvc_test {

/// While one lives, allocation number `n` (0: the next) of this thread throws std::bad_alloc, once.
class FailAllocation {
 public:
  explicit FailAllocation(int n);
  ~FailAllocation();
  FailAllocation(const FailAllocation&) = delete;
  FailAllocation& operator=(const FailAllocation&) = delete;
  /// Whether it has come to that.
  [[nodiscard]] bool failed() const;
};

/// Bytes that this thread has allocated since it began, whatever became of them.
[[nodiscard]] std::size_t allocated_bytes();

}  // namespace kvc_test
