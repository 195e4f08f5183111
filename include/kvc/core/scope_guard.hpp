// OnExit: undoes a step unless the steps after it succeeded.
#pragma once

#include <utility>

namespace kvc {
inline namespace v0 {
namespace detail {

/// Runs `undo` when it goes out of scope, unless `dismiss` was called. `undo` must not throw.
template <class F>
class OnExit {
 public:
  explicit OnExit(F undo) : undo_(std::move(undo)) {}
  ~OnExit() {
    if (armed_) {
      undo_();
    }
  }
  OnExit(const OnExit&) = delete;
  OnExit& operator=(const OnExit&) = delete;
  void dismiss() noexcept { armed_ = false; }

 private:
  F undo_;
  bool armed_ = true;
};

}  // namespace detail
}  // namespace v0
}  // namespace kvc
