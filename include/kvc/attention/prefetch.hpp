// Prefetch: memory that will be read soon is asked for while something else is computed.
#pragma once

#include <cstddef>

#include "kvc/config.hpp"
#include "kvc/core/types.hpp"

namespace kvc::inline v0 {
namespace detail {

/// A piece of memory.
struct Stretch {
  const std::byte* begin;
  const std::byte* end;
};

/// Walks over a list of stretches, a few cache lines with each step. The kernels take a step with each turn of their inner
/// loops, so that requests keep the memory busy from the first to the last moment of a tile.
class Prefetch {
 public:
  Prefetch() = default;
  /// The list must outlive this.
  Prefetch(const Stretch* first, const Stretch* last) noexcept : next_(first), last_(last) {}

  template <int lines = 1>
  KVC_ALWAYS_INLINE void step() noexcept {
    for (int i = 0; i < lines; ++i) {
      if (at_ >= end_) [[unlikely]] {
        if (next_ == last_) {
          return;
        }
        at_ = next_->begin;
        end_ = next_->end;
        ++next_;
      }
      __builtin_prefetch(at_, 0, 2);  // into the second-level cache
      at_ += line;
    }
  }

 private:
  static constexpr std::ptrdiff_t line = 64;
  const std::byte* at_ = nullptr;
  const std::byte* end_ = nullptr;
  const Stretch* next_ = nullptr;
  const Stretch* last_ = nullptr;
};

}  // namespace detail
}  // namespace kvc::inline v0
