// Random numbers that do not depend on the compiler or the standard library: all follow from `next` by arithmetic. The
// generator is SplitMix64 (Steele, Lea, Flood, OOPSLA 2014).
#pragma once

#include <cmath>
#include <cstdint>

namespace serving {

/// A 64-bit number that looks unrelated to `x`: the finaliser of SplitMix64.
[[nodiscard]] constexpr std::uint64_t scramble(std::uint64_t x) noexcept {
  x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9ULL;
  x = (x ^ (x >> 27)) * 0x94d049bb133111ebULL;
  return x ^ (x >> 31);
}

/// SplitMix64. Equal seeds give equal numbers.
class Random {
 public:
  explicit Random(std::uint64_t seed) noexcept : state_(seed) {}

  std::uint64_t next() noexcept { return scramble(state_ += 0x9e3779b97f4a7c15ULL); }
  /// In [0, 1), 53 random bits.
  double unit() noexcept { return static_cast<double>(next() >> 11) * 0x1.0p-53; }
  /// In [low, high]; low <= high.
  template <class I>
  I between(I low, I high) noexcept {
    const auto values = static_cast<std::uint64_t>(high - low) + 1;
    return static_cast<I>(low + static_cast<I>(next() % values));  // the bias is below values / 2^64
  }
  /// Exponentially distributed with mean `mean`: the time between two arrivals of a Poisson process.
  double exponential(double mean) noexcept { return -mean * std::log1p(-unit()); }

 private:
  std::uint64_t state_;
};

}  // namespace serving
