// The common parts of all cases of benchmarks/attention: names, timing, and the limits to compare with.
#pragma once

#include <benchmark/benchmark.h>

#include <algorithm>
#include <cstddef>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "kvc/core/types.hpp"
#include "machine.hpp"

namespace kvc_bench {

/// The unit whose peak bounds the arithmetic of an element type: what the machine has for it, not what a kernel uses.
enum class Unit { fp32, bf16, int8 };
inline double peak(const Limits& limits, Unit unit) {
  return unit == Unit::fp32 ? limits.fp32 : unit == Unit::bf16 ? limits.bf16 : limits.int8;
}
inline Unit unit_of(const std::string& element) {
  if (element == "bf16" || element == "fp8") {
    return Unit::bf16;
  }
  return element == "f32" || element == "f16" ? Unit::fp32 : Unit::int8;
}

/// The least work of one call.
struct Work {
  double bytes;       // of keys and values that it reads from memory
  double operations;  // a multiplication and an addition for each number of each pair of a row and a key it may see
  Unit unit;
  [[nodiscard]] double seconds(const Limits& limits) const {
    return std::max(bytes / limits.read, operations / peak(limits, unit));
  }
};

/// Heads and dimensions.
struct Heads {
  kvc::Index query = 32;
  kvc::Index kv = 8;
  kvc::Index key_dim = 128;
  kvc::Index value_dim = 128;
  bool latent = false;  // the value is the beginning of the key, and takes no memory of its own
  [[nodiscard]] double operations(double pairs) const {
    return 2.0 * pairs * static_cast<double>(query) * static_cast<double>(key_dim + value_dim);
  }
};

/// Thread counts that are measured.
inline std::vector<int> thread_counts() {
#if defined(_OPENMP)
  return {1, 2};
#else
  return {1};
#endif
}

namespace detail {
inline std::string kept_key;
inline std::shared_ptr<void> kept_object;
}  // namespace detail

/// The object of that key. Only the last one is kept: cases that follow one another share it, and two never take memory
/// at the same time.
template <class Object, class... Args>
std::shared_ptr<Object> kept(const std::string& key, Args&&... args) {
  if (key != detail::kept_key || detail::kept_object == nullptr) {
    detail::kept_object.reset();
    detail::kept_object = std::make_shared<Object>(std::forward<Args>(args)...);
    detail::kept_key = key;
  }
  return std::static_pointer_cast<Object>(detail::kept_object);
}

/// Times call(i), i = 0, 1, ... for as long as Google Benchmark wants, and the limits by turns with it. Returns the
/// seconds of the median call.
template <class F>
double measure(benchmark::State& state, int threads, const Work& work, F&& call) {
  const auto around = Clock::now() - std::chrono::milliseconds(500);
  machine().measure(threads);
  std::size_t i = 0;
  call(i);
  std::vector<double> seconds;
  for (auto _ : state) {
    const auto start = Clock::now();
    call(++i);
    benchmark::ClobberMemory();
    seconds.push_back(seconds_between(start, Clock::now()));
    state.PauseTiming();
    machine().keep_up(threads, 0.06);
    state.ResumeTiming();
  }
  machine().measure(threads);
  const auto middle = seconds.begin() + static_cast<std::ptrdiff_t>(seconds.size() / 2);
  std::ranges::nth_element(seconds, middle);
  const double limit = work.seconds(machine().median(threads, around));
  state.counters["GFLOP/s"] = work.operations / *middle / 1e9;
  state.counters["KV_GB/s"] = work.bytes / *middle / 1e9;
  state.counters["limit_ms"] = limit * 1e3;
  state.counters["of_best"] = work.seconds(machine().best(threads)) / *middle;
  state.counters["roofline"] = limit / *middle;
  return *middle;
}

/// Registers one case.
template <class F>
void add(const std::string& name, F&& run) {
  benchmark::RegisterBenchmark(name.c_str(), std::forward<F>(run))->Unit(benchmark::kMillisecond);
}

/// Cases of one source file: it defines an object of this at namespace scope, and main runs them all.
class Cases {
 public:
  explicit Cases(int order, void (*register_all)()) { all().emplace_back(order, register_all); }
  static std::vector<std::pair<int, void (*)()>>& all() {
    static std::vector<std::pair<int, void (*)()>> cases;
    return cases;
  }
};

}  // namespace kvc_bench
