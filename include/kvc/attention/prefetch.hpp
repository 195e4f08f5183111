// Prefetch: memory that will be read soon is asked for while something else is computed.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>

#include "kvc/config.hpp"
#include "kvc/core/types.hpp"

namespace kvc::inline v0 {
namespace detail {

/// A piece of memory.
struct Stretch {
  const std::byte* begin;
  const std::byte* end;
};

/// Walks over a list of stretches line by line. The kernels take a step with each turn of their inner loops and say about how
/// long the turn takes, so that requests are spread evenly over the time of a tile: memory then is busy from its first to its
/// last moment, and never has more requests waiting than the processor can keep track of.
class Prefetch {
 public:
  Prefetch() = default;
  /// The list must outlive this. `time` is what the steps to come will add up to.
  Prefetch(const Stretch* first, const Stretch* last, Index time) noexcept : next_(first), last_(last) {
    Index lines = 0;
    for (const Stretch* s = first; s != last; ++s) {
      lines += (s->end - s->begin) / line + 1;
    }
    rate_ = static_cast<std::uint32_t>(lines * one / std::max(time, Index{1})) + 1;
  }

  KVC_ALWAYS_INLINE void step(std::uint32_t time) noexcept {
    for (credit_ += time * rate_; credit_ >= one; credit_ -= one) {
      if (at_ >= end_) [[unlikely]] {
        if (next_ == last_) {
          rate_ = 0;
          credit_ = 0;
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
  static constexpr std::uint32_t one = 1U << 16;
  const std::byte* at_ = nullptr;
  const std::byte* end_ = nullptr;
  const Stretch* next_ = nullptr;
  const Stretch* last_ = nullptr;
  std::uint32_t rate_ = 0;  // lines in a unit of time, times 2^16
  std::uint32_t credit_ = 0;
};

}  // namespace detail
}  // namespace kvc::inline v0
