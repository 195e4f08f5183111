// Divisor: division by a number that is known at run time only, as a multiplication and a shift.
//
// With l = ceil(log2 d) and m = floor(2^(31 + l) / d) + 1, floor(n / d) = floor(n m / 2^(31 + l)) for all n < 2^31: m
// exceeds 2^(31 + l) / d by at most 1, which adds at most n / 2^(31 + l) < 2^-l <= 1 / d to n / d. (Granlund and
// Montgomery, "Division by Invariant Integers using Multiplication", 1994.) An integer division takes tens of
// instructions on a GPU.
#pragma once

#include <cstdint>

#include "kvc/config.hpp"
#include "kvc/core/types.hpp"

namespace kvc {
inline namespace v0 {
namespace cuda {

/// Divides non-negative numbers below 2^31 by a fixed divisor. Exact.
class Divisor {
 public:
  /// Divides by 1.
  constexpr Divisor() = default;
  /// Requires 1 <= divisor <= max_pos. O(log divisor).
  constexpr explicit Divisor(std::int32_t divisor) noexcept : value_(divisor), shift_(31) {
    while ((std::uint64_t{1} << (shift_ - 31)) < static_cast<std::uint64_t>(divisor)) {
      ++shift_;
    }
    factor_ = (std::uint64_t{1} << shift_) / static_cast<std::uint64_t>(divisor) + 1;
  }
  /// The divisor.
  [[nodiscard]] KVC_HOST_DEVICE constexpr std::int32_t value() const noexcept { return value_; }
  /// n / value(). Requires n < 2^31.
  [[nodiscard]] KVC_HOST_DEVICE constexpr std::uint32_t quotient(std::uint32_t n) const noexcept {
    return static_cast<std::uint32_t>(n * factor_ >> shift_);
  }

 private:
  std::int32_t value_ = 1;
  std::uint32_t shift_ = 31;
  std::uint64_t factor_ = (std::uint64_t{1} << 31) + 1;
};

}  // namespace cuda
}  // namespace v0
}  // namespace kvc
