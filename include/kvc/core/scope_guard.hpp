// ScopeGuard: undoes a step unless the steps after it succeed.
#pragma once

#include <utility>

namespace kvc {
inline namespace v0 {
namespace detail {

/// Runs `undo` when it goes out of scope, unless `dismiss` was called. `undo` must not throw.
template <class F>
class ScopeGuard {
 public:
  explicit ScopeGuard(F undo) : undo_(std::move(undo)) {}
  ~ScopeGuard() {
    if (armed_) {
      undo_();
    }
  }
  ScopeGuard(const ScopeGuard&) = delete;
  ScopeGuard& operator=(const ScopeGuard&) = delete;
  void dismiss() noexcept { armed_ = false; }

 private:
  F undo_;
  bool armed_ = true;
};

}  // namespace detail
}  // namespace v0
}  // namespace kvc
