// The two vector kernels of attention in kvc's vector type, in Google Highway, and in std::experimental::simd.
//
//   exp/...     64 exponentials, as the weights of a tile are made
//   score/...   4 query rows by 4 keys of dimension 128, in 16 running sums
//
//   pinned      operands are kept in registers, where g++ 12 would otherwise load them again for each use (simd::pin)
//
// Built where Highway's CMake package is found (Debian: libhwy-dev):  build/release/benchmarks/simd
#include <benchmark/benchmark.h>
#include <hwy/contrib/math/math-inl.h>
#include <hwy/highway.h>

#include <experimental/simd>
#include <random>

#include "kvc/simd/exp.hpp"
#include "kvc/simd/fold.hpp"
#include "kvc/simd/vec.hpp"

namespace {
constexpr int rows = 4, keys = 4, dim = 128, count = 64;
using kvc::simd::detail::unroll;

/// 16 running sums over `lanes` numbers at a time, in any vector type that madd, load and store_sums are given for.
template <class V, int lanes, class Load, class Madd, class Pin, class Store>
[[gnu::always_inline]] inline void score(const float* q, const float* k, V (&sum)[rows][keys], Load load, Madd madd,
                                         Pin pin, Store store_sums) {
  for (int c = 0; c < dim; c += lanes) {
    V x[keys];
    unroll<keys>([&](auto j) __attribute__((always_inline)) {
      x[j] = load(k + j * dim + c);
      pin(x[j]);
    });
    unroll<rows>([&](auto i) __attribute__((always_inline)) {
      V w = load(q + i * dim + c);
      pin(w);
      unroll<keys>([&](auto j) __attribute__((always_inline)) { sum[i][j] = madd(w, x[j], sum[i][j]); });
    });
  }
  store_sums();
}

struct Kvc {
  using V = kvc::simd::F32x16;
  static void exp(const float* x, float* y) {
    for (int i = 0; i < count; i += kvc::simd::lanes) {
      kvc::simd::store(y + i, kvc::simd::exp(kvc::simd::load(x + i)));
    }
  }
  static void score(const float* q, const float* k, float* s) {
    V sum[rows][keys] = {};
    ::score<V, kvc::simd::lanes>(
        q, k, sum, [](const float* p) __attribute__((always_inline)) { return kvc::simd::load(p); },
        [](const V& a, const V& b, const V& c) __attribute__((always_inline)) { return kvc::simd::madd(a, b, c); },
        [](V& x) __attribute__((always_inline)) { kvc::simd::pin(x); },
        [&]() __attribute__((always_inline)) { kvc::simd::store(s, kvc::simd::fold_rows<rows>(sum)); });
  }
};

template <bool pinned>
struct Highway {
  using Tag = hwy::HWY_NAMESPACE::ScalableTag<float>;
  using V = hwy::HWY_NAMESPACE::Vec<Tag>;
  static constexpr int lanes = HWY_MAX_BYTES / 4;
  static void exp(const float* x, float* y) {
    namespace hn = hwy::HWY_NAMESPACE;
    const Tag d;
    for (int i = 0; i < count; i += lanes) {
      hn::StoreU(hn::Exp(d, hn::LoadU(d, x + i)), d, y + i);
    }
  }
  static void score(const float* q, const float* k, float* s) {
    namespace hn = hwy::HWY_NAMESPACE;
    const Tag d;
    V sum[rows][keys];
    unroll<rows * keys>([&](auto i) __attribute__((always_inline)) { sum[i / keys][i % keys] = hn::Zero(d); });
    ::score<V, lanes>(
        q, k, sum, [d](const float* p) __attribute__((always_inline)) { return hn::LoadU(d, p); },
        [](V a, V b, V c) __attribute__((always_inline)) { return hn::MulAdd(a, b, c); },
        []([[maybe_unused]] V& x) __attribute__((always_inline)) {
#if defined(__AVX512F__)
          if constexpr (pinned) {
            asm("" : "+v"(x.raw));
          }
#endif
        },
        [&]() __attribute__((always_inline)) {
          unroll<rows * keys>([&](auto i) __attribute__((always_inline)) {
            s[i] = hn::GetLane(hn::SumOfLanes(d, sum[i / keys][i % keys]));
          });
        });
  }
};

struct StdSimd {
  using V = std::experimental::native_simd<float>;
  static constexpr int lanes = static_cast<int>(V::size());
  static V load(const float* p) { return V(p, std::experimental::element_aligned); }
  static void exp(const float* x, float* y) {
    for (int i = 0; i < count; i += lanes) {
      std::experimental::exp(load(x + i)).copy_to(y + i, std::experimental::element_aligned);
    }
  }
  static void score(const float* q, const float* k, float* s) {
    V sum[rows][keys];
    unroll<rows * keys>([&](auto i) __attribute__((always_inline)) { sum[i / keys][i % keys] = 0.0F; });
    ::score<V, lanes>(
        q, k, sum, [](const float* p) __attribute__((always_inline)) { return load(p); },
        // Contracted by the compiler: std::experimental::fma of libstdc++ 12 works lane by lane, and became one
        // instruction in some functions and not in others.
        [](const V& a, const V& b, const V& c) __attribute__((always_inline)) { return a * b + c; }, [](V&) {},
        [&]() __attribute__((always_inline)) {
          unroll<rows * keys>([&](auto i) __attribute__((always_inline)) {
            s[i] = std::experimental::reduce(sum[i / keys][i % keys]);
          });
        });
  }
};

struct Numbers {
  alignas(64) float x[count], y[count], q[rows * dim], k[keys * dim], s[rows * keys];
  Numbers() {
    std::mt19937 random(7);
    std::uniform_real_distribution<float> unit(-1, 1);
    for (float& each : x) {
      each = 10 * unit(random) - 10;
    }
    for (float& each : q) {
      each = unit(random);
    }
    for (float& each : k) {
      each = unit(random);
    }
  }
};

template <class Lib>
void exponentials(benchmark::State& state) {
  Numbers n;
  for (auto _ : state) {
    Lib::exp(n.x, n.y);
    benchmark::ClobberMemory();
  }
}
template <class Lib>
void scores(benchmark::State& state) {
  Numbers n;
  for (auto _ : state) {
    Lib::score(n.q, n.k, n.s);
    benchmark::ClobberMemory();
  }
}
BENCHMARK(exponentials<Kvc>)->Name("exp/kvc");
BENCHMARK(exponentials<Highway<false>>)->Name("exp/highway");
BENCHMARK(exponentials<StdSimd>)->Name("exp/std-simd");
BENCHMARK(scores<Kvc>)->Name("score/kvc");
BENCHMARK(scores<Highway<false>>)->Name("score/highway");
BENCHMARK(scores<Highway<true>>)->Name("score/highway-pinned");
BENCHMARK(scores<StdSimd>)->Name("score/std-simd");
}  // namespace

BENCHMARK_MAIN();
