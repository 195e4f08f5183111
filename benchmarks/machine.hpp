// Measures the limits of this machine, with which benchmarks compare their figures.
//
//   read       bytes per second from memory: a buffer far larger than the caches, in large pages, read in the fastest
//              of several ways (number of streams, distance and level of the software prefetch). A limit that was
//              measured too low would flatter whatever is compared with it.
//   fp32       operations per second of fused multiply-adds on registers; a multiply-add is two
//   bf16       the same for vdpbf16ps (AVX-512 BF16); where there is none, fp32
//   int8       the same for vpdpbusd (AVX-512 VNNI, AVX-VNNI); where there is none, fp32
//
// With several threads, these start together, and the limit is what all have done over the time from the first start to
// the last end. Machines are shared and their speed varies, so a limit is only good for the minute that measured it.
#pragma once

#include <algorithm>
#include <barrier>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <fstream>
#include <map>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#if defined(__AVX__)
#include <immintrin.h>
#endif

#include "kvc/memory/space.hpp"
#include "kvc/simd/vec.hpp"

namespace kvc_bench {

using Clock = std::chrono::steady_clock;
inline double seconds_between(Clock::time_point a, Clock::time_point b) {
  return std::chrono::duration<double>(b - a).count();
}

/// Keeps a value from being optimised away.
template <class V>
inline void keep(const V& value) {
  asm volatile("" : : "m"(value) : "memory");
}

/// Makes a value one that the compiler knows nothing of: neither that it is constant nor that it equals another.
template <class V>
inline V opaque(V value) {
  asm volatile("" : "+m"(value));
  return value;
}

/// Runs f(0), ... f(threads - 1) on as many threads, which start together. Seconds from the first start to the last
/// end.
template <class F>
double together(int threads, F&& f) {
  std::vector<std::pair<Clock::time_point, Clock::time_point>> times(static_cast<std::size_t>(threads));
  std::barrier<> start(threads);
  const auto part = [&](int i) {
    auto& [from, to] = times[static_cast<std::size_t>(i)];
    start.arrive_and_wait();
    from = Clock::now();
    f(i);
    to = Clock::now();
  };
  {
    std::vector<std::jthread> others;
    for (int i = 1; i < threads; ++i) {
      others.emplace_back(part, i);
    }
    part(0);
  }
  Clock::time_point first = times.front().first, last = times.front().second;
  for (const auto& [from, to] : times) {
    first = std::min(first, from);
    last = std::max(last, to);
  }
  return seconds_between(first, last);
}

/// Bytes of the last-level cache as the system gives them, or of a guess.
inline std::size_t last_level_cache() {
  std::size_t largest = 0;
  for (int index = 0; index < 8; ++index) {
    std::ifstream file("/sys/devices/system/cpu/cpu0/cache/index" + std::to_string(index) + "/size");
    std::size_t size = 0;
    char unit = ' ';
    if (file >> size) {
      file >> unit;
      largest = std::max(largest, size << (unit == 'K' ? 10 : unit == 'M' ? 20 : 0));
    }
  }
  return largest > 0 ? largest : std::size_t{64} << 20;
}

/// Bytes that are read in turn by whatever is to come from memory, the limit and what is compared with it alike: at
/// least twice the last-level cache, and at least 1 GiB.
inline std::size_t working_set() { return std::max(2 * last_level_cache(), std::size_t{1} << 30); }

// --- read ------------------------------------------------------------------------------------------------------------

/// How to read memory.
struct ReadWay {
  int streams;  // 1, 2, 4 or 8 places that are read in turn
  int level;    // cache that the software prefetch brings lines to: 0 none, 1, 2
  int ahead;    // bytes from what is read to what is prefetched
};

namespace detail {
template <int streams, int level>
inline void read_streams(const float* data, std::ptrdiff_t floats, std::ptrdiff_t ahead) {
  constexpr std::ptrdiff_t step = 64, line = 16;
  namespace simd = kvc::simd;
  const std::ptrdiff_t each = floats / streams / step * step;
  simd::F32x16 a = simd::zero(), b = a, c = a, d = a;
  for (std::ptrdiff_t i = 0; i < each; i += step) {
    for (int s = 0; s < streams; ++s) {
      const float* const p = data + s * each + i;
      if constexpr (level > 0) {
        for (std::ptrdiff_t l = 0; l < step; l += line) {
          __builtin_prefetch(reinterpret_cast<const char*>(p + l) + ahead, 0, level == 1 ? 3 : 2);
        }
      }
      a = a + simd::load(p);
      b = b + simd::load(p + 16);
      c = c + simd::load(p + 32);
      d = d + simd::load(p + 48);
    }
  }
  keep(simd::sum((a + b) + (c + d)));
}

template <int streams>
inline void read_level(const float* data, std::ptrdiff_t floats, ReadWay way) {
  if (way.level == 0) {
    read_streams<streams, 0>(data, floats, 0);
  } else if (way.level == 1) {
    read_streams<streams, 1>(data, floats, way.ahead);
  } else {
    read_streams<streams, 2>(data, floats, way.ahead);
  }
}
}  // namespace detail

/// Reads a large buffer again and again.
class MemoryReader {
 public:
  explicit MemoryReader(std::size_t bytes) : buffer_(kvc::HostSpace{}, bytes) {
    std::fill_n(reinterpret_cast<float*>(buffer_.data()), bytes / sizeof(float), 1.0F);
  }

  /// Bytes per second of reading the next 1/`share` of the buffer; each thread reads one part of it.
  double read(int threads, ReadWay way, std::size_t share = 1) {
    const std::size_t bytes = buffer_.size() / share;
    if (at_ + bytes > buffer_.size()) {
      at_ = 0;
    }
    const auto each = static_cast<std::ptrdiff_t>(bytes / sizeof(float)) / threads / 1024 * 1024;
    const auto* const data = reinterpret_cast<const float*>(buffer_.data() + at_);
    at_ += bytes;
    const double seconds = together(threads, [&](int i) {
      const float* const part = data + i * each;
      switch (way.streams) {
        case 1:
          return detail::read_level<1>(part, each, way);
        case 2:
          return detail::read_level<2>(part, each, way);
        case 4:
          return detail::read_level<4>(part, each, way);
        default:
          return detail::read_level<8>(part, each, way);
      }
    });
    return static_cast<double>(each) * threads * sizeof(float) / seconds;
  }

  /// The fastest way on this machine, found by trying.
  ReadWay fastest_way(int threads) {
    std::vector<std::pair<ReadWay, double>> ways;
    for (const int streams : {1, 2, 4, 8}) {
      ways.push_back({{streams, 0, 0}, 0.0});
      for (const int ahead : {512, 1024, 2048, 4096, 8192}) {
        ways.push_back({{streams, 1, ahead}, 0.0});
        ways.push_back({{streams, 2, ahead}, 0.0});
      }
    }
    const auto try_first = [&](std::size_t count, int rounds, std::size_t share) {
      for (int round = 0; round < rounds; ++round) {
        for (std::size_t i = 0; i < count; ++i) {
          ways[i].second = std::max(ways[i].second, read(threads, ways[i].first, share));
        }
      }
      std::ranges::sort(ways, [](const auto& x, const auto& y) { return x.second > y.second; });
    };
    try_first(ways.size(), 1, 8);
    try_first(6, 2, 4);
    return ways.front().first;
  }

 private:
  kvc::Buffer<kvc::HostSpace> buffer_;
  std::size_t at_ = 0;
};

// --- arithmetic ------------------------------------------------------------------------------------------------------

#if defined(__AVX512BF16__)
inline constexpr const char* bf16_unit = "vdpbf16ps";
#else
inline constexpr const char* bf16_unit = "none: fp32";
#endif
#if defined(__AVX512VNNI__) || defined(__AVXVNNI__)
inline constexpr const char* int8_unit = "vpdpbusd";
#else
inline constexpr const char* int8_unit = "none: fp32";
#endif

namespace detail {
/// Operations per second of `step` on independent accumulators, as many as the registers hold: enough to cover the
/// latency of one with the throughput of the others. `operations` are those of one step.
template <class V, class F>
double arithmetic_peak(int threads, double operations, F step) {
  constexpr int chains = kvc::simd::part_lanes == 16 ? 20 : 12;
  constexpr std::int64_t steps = 1'500'000;
  const double seconds = together(threads, [&](int) {
    const F own = step;
    V x[chains];
    kvc::simd::detail::unroll<chains>([&](auto i) __attribute__((always_inline)) { x[i] = opaque(V{}); });
    for (std::int64_t s = 0; s < steps; ++s) {
      kvc::simd::detail::unroll<chains>([&](auto i) __attribute__((always_inline)) { x[i] = own(x[i]); });
    }
    kvc::simd::detail::unroll<chains>([&](auto i) __attribute__((always_inline)) {
      const V last = x[i];  // a copy: an array whose address is taken would lie in memory during the loop
      keep(last);
    });
  });
  return static_cast<double>(steps) * chains * operations * threads / seconds;
}
}  // namespace detail

inline double fp32_peak(int threads) {
  using kvc::simd::Part;
  const Part factor = opaque(Part{} + 0.999F), term = opaque(Part{} + 0.001F);
  return detail::arithmetic_peak<Part>(threads, 2.0 * kvc::simd::part_lanes,
                                       [=](Part x)
                                           __attribute__((always_inline)) { return kvc::simd::madd(x, factor, term); });
}

// The dot products are spelt in assembly: from their intrinsics g++ 12 makes two moves and a store for each.

inline double bf16_peak([[maybe_unused]] int threads) {
#if defined(__AVX512BF16__)
  const __m512i one = opaque(_mm512_set1_epi16(0x3f80));
  return detail::arithmetic_peak<__m512>(threads, 64.0, [=](__m512 x) __attribute__((always_inline)) {
    asm("vdpbf16ps %1, %1, %0" : "+v"(x) : "v"(one));
    return x;
  });
#else
  return 0.0;
#endif
}

inline double int8_peak([[maybe_unused]] int threads) {
#if defined(__AVX512VNNI__)
  const __m512i one = opaque(_mm512_set1_epi8(1));
  return detail::arithmetic_peak<__m512i>(threads, 128.0, [=](__m512i x) __attribute__((always_inline)) {
    asm("vpdpbusd %1, %1, %0" : "+v"(x) : "v"(one));
    return x;
  });
#elif defined(__AVXVNNI__)
  const __m256i one = opaque(_mm256_set1_epi8(1));
  return detail::arithmetic_peak<__m256i>(threads, 64.0, [=](__m256i x) __attribute__((always_inline)) {
    asm("%{vex%} vpdpbusd %1, %1, %0" : "+x"(x) : "x"(one));
    return x;
  });
#else
  return 0.0;
#endif
}

// --- together --------------------------------------------------------------------------------------------------------

/// Per second: bytes, and operations of each unit.
struct Limits {
  double read = 0, fp32 = 0, bf16 = 0, int8 = 0;
};
inline constexpr double Limits::* all_limits[] = {&Limits::read, &Limits::fp32, &Limits::bf16, &Limits::int8};

/// The limits of this machine, by number of threads; measured again at each request.
class Machine {
 public:
  /// Measures all limits once, in less than 0.1 s.
  void measure(int threads) { measure(threads, state(threads)); }
  /// Measures them unless that was done less than `age` seconds ago.
  void keep_up(int threads, double age) {
    State& s = state(threads);
    if (seconds_between(s.history.back().first, Clock::now()) >= age) {
      measure(threads, s);
    }
  }

  /// The largest of those measured since then, or ever.
  Limits best(int threads, Clock::time_point since = {}) {
    return reduce(threads, since, [](double a, double b) { return std::max(a, b); });
  }
  /// The median of those measured since then.
  Limits median(int threads, Clock::time_point since) {
    const State& s = state(threads);
    Limits chosen = s.history.back().second;
    for (const auto limit : all_limits) {
      std::vector<double> measured;
      for (const auto& [when, limits] : s.history) {
        if (when >= since) {
          measured.push_back(limits.*limit);
        }
      }
      if (!measured.empty()) {
        const auto middle = measured.begin() + static_cast<std::ptrdiff_t>(measured.size() / 2);
        std::ranges::nth_element(measured, middle);
        chosen.*limit = *middle;
      }
    }
    return chosen;
  }
  Limits worst(int threads) {
    return reduce(threads, {}, [](double a, double b) { return std::min(a, b); });
  }
  ReadWay way(int threads) { return state(threads).way; }

 private:
  struct State {
    ReadWay way{};
    std::vector<std::pair<Clock::time_point, Limits>> history;
  };

  State& state(int threads) {
    const auto [at, added] = states_.try_emplace(threads);
    if (added) {
      at->second.way = reader_.fastest_way(threads);
      for (int i = 0; i < 6; ++i) {
        measure(threads, at->second);
      }
    }
    return at->second;
  }

  void measure(int threads, State& s) {
    const double fp32 = fp32_peak(threads), bf16 = bf16_peak(threads), int8 = int8_peak(threads);
    const Limits limits{reader_.read(threads, s.way, 2), fp32, bf16 > 0 ? bf16 : fp32, int8 > 0 ? int8 : fp32};
    s.history.emplace_back(Clock::now(), limits);
  }

  template <class F>
  Limits reduce(int threads, Clock::time_point since, F choose) {
    const State& s = state(threads);
    Limits chosen = s.history.back().second;
    for (const auto& [when, limits] : s.history) {
      for (const auto limit : all_limits) {
        chosen.*limit = when >= since ? choose(chosen.*limit, limits.*limit) : chosen.*limit;
      }
    }
    return chosen;
  }

  MemoryReader reader_{working_set()};
  std::map<int, State> states_;
};

/// The machine this program runs on.
inline Machine& machine() {
  static Machine measured;
  return measured;
}

}  // namespace kvc_bench
