// PlainOrGrouped: what a policy consists of, one of two.
#pragma once

#include <memory>
#include <optional>
#include <utility>

#include "kvc/config.hpp"

namespace kvc {
inline namespace v0 {
namespace detail {

/// The sequences of one group that keeps everything, or those of other groups: a cache of the first kind does without
/// the parts that several groups need. A policy derives from it, and makes one of the two in its constructor.
template <class Plain, class Grouped>
class PlainOrGrouped {
 protected:
  /// f(it) with the one that is there.
  template <class F>
  KVC_ALWAYS_INLINE decltype(auto) access(F&& f) {
    if (grouped_) [[unlikely]] {
      return f(*grouped_);
    }
    return f(*plain_);
  }
  /// The same for a const policy.
  template <class F>
  KVC_ALWAYS_INLINE decltype(auto) access(F&& f) const {
    if (grouped_) [[unlikely]] {
      return f(std::as_const(*grouped_));
    }
    return f(*plain_);
  }

  std::optional<Plain> plain_;        // of one group that keeps everything
  std::unique_ptr<Grouped> grouped_;  // of other groups
};

}  // namespace detail
}  // namespace v0
}  // namespace kvc
