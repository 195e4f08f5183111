// What this machine can do, measured now: the limits that benchmarks compare themselves with.
//
// Machines are shared and their speed varies, so a limit is only good for the run that measured it.
#pragma once

#include <algorithm>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <vector>

#include "kvc/core/space.hpp"
#include "kvc/simd/vec.hpp"

namespace kvc_bench {

/// Keeps a value from being optimised away.
template <class V>
inline void keep(const V& value) {
  asm volatile("" : : "m"(value) : "memory");
}

/// The shortest of `repeats` runs of f, in seconds: what the machine can do when nobody disturbs it.
template <class F>
double best_seconds(int repeats, F&& f) {
  double best = 1e30;
  for (int i = 0; i < repeats; ++i) {
    const auto start = std::chrono::steady_clock::now();
    f();
    best = std::min(best, std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count());
  }
  return best;
}

/// Bytes per second that one thread reads from memory, over a buffer of `bytes`.
inline double read_bandwidth(std::size_t bytes) {
  kvc::Buffer<kvc::HostSpace> buffer(kvc::HostSpace{}, bytes);
  const auto floats = static_cast<std::ptrdiff_t>(bytes / sizeof(float));
  auto* data = reinterpret_cast<float*>(buffer.data());
  std::fill_n(data, floats, 1.0F);
  const double seconds = best_seconds(5, [&] {
    kvc::simd::F32x16 a = kvc::simd::zero(), b = a, c = a, d = a;
    for (std::ptrdiff_t i = 0; i + 64 <= floats; i += 64) {
      a = a + kvc::simd::load(data + i);
      b = b + kvc::simd::load(data + i + 16);
      c = c + kvc::simd::load(data + i + 32);
      d = d + kvc::simd::load(data + i + 48);
    }
    keep(kvc::simd::sum((a + b) + (c + d)));
  });
  return static_cast<double>(bytes) / seconds;
}

/// Multiplications and additions per second of one thread's fused (or paired) multiply-adds on floats in registers.
inline double fp32_peak() {
  constexpr int chains = 10;  // enough to cover the latency of one with the throughput of the others
  constexpr std::int64_t steps = 2'000'000;
  const double seconds = best_seconds(5, [&] {
    kvc::simd::F32x16 x[chains];
    kvc::simd::detail::unroll<chains>([&](auto i)
                                          __attribute__((always_inline)) { x[i] = kvc::simd::broadcast(1.0F); });
    kvc::simd::F32x16 factor = kvc::simd::broadcast(0.999F), term = kvc::simd::broadcast(0.001F);
    keep(factor);
    for (std::int64_t s = 0; s < steps; ++s) {
      kvc::simd::detail::unroll<chains>([&](auto i) __attribute__((always_inline)) {
        x[i] = kvc::simd::madd(x[i], factor, term);
      });
    }
    for (const auto& v : x) {
      keep(v);
    }
  });
  return static_cast<double>(steps) * chains * kvc::simd::lanes * 2 / seconds;
}

}  // namespace kvc_bench
