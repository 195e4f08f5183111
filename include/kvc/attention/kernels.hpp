// The two loops in which attention spends its time: scores of a few rows against the keys of a tile, and the sum of its values.
//
// Both hold a block of running sums in registers: several query rows by several keys, or by several vectors of values. Each
// sum is one chain in a fixed order, so its bits do not depend on the block that it happens to be computed in. What a step
// of the chain is says a Math:
//
//   expression                   meaning
//   Number, Sum                  vectors of 16 lanes: what is multiplied, what is added up
//   planes                       words that stand for one weight: 1, or 2 for its upper and lower part
//   Math::madd(w, x, sum)        sum + w * x, lane by lane
//   Math::load(p)                16 lanes of a query row at p
//   Math::weight(p)              the weight at p, in the form in which it is multiplied
#pragma once

#include <algorithm>
#include <bit>
#include <cstdint>
#include <utility>

#include "kvc/core/types.hpp"
#include "kvc/simd/narrow.hpp"
#include "kvc/simd/vec.hpp"

namespace kvc::inline v0 {
namespace detail {

inline constexpr Index tile_keys = 64;  // positions of a tile; one bit each in a word
inline constexpr Index tile_groups = tile_keys / simd::lanes;

/// Sums of 16 floats that the registers of the target hold beside the operands of a step.
#if defined(__AVX512F__)
inline constexpr int kernel_sums = 24;
#elif defined(__AVX__) || defined(__aarch64__)
inline constexpr int kernel_sums = 6;
#else
inline constexpr int kernel_sums = 2;
#endif
inline constexpr int kernel_rows = kernel_sums >= 24 ? 6 : kernel_sums >= 6 ? 2 : 1;

/// Rows up to which keys and values are better read again than kept.
inline constexpr Index few_rows = 16;

struct FloatMath {
  using Number = simd::F32x16;
  using Sum = simd::F32x16;
  static constexpr int planes = 1;
  KVC_ALWAYS_INLINE static Number load(const float* p) noexcept { return simd::load(p); }
  KVC_ALWAYS_INLINE static Number weight(const float* p) noexcept { return simd::broadcast(*p); }
  KVC_ALWAYS_INLINE static Sum madd(const Number& w, const Number& x, const Sum& sum) noexcept { return simd::madd(w, x, sum); }
};

/// f(first row, integral constant R) for blocks of R rows that cover [first, last).
template <class F>
KVC_ALWAYS_INLINE void for_row_blocks(Index first, Index last, F f) {
  for (; last - first >= kernel_rows; first += kernel_rows) {
    f(first, std::integral_constant<int, kernel_rows>{});
  }
  if constexpr (kernel_rows > 4) {
    if (last - first >= 4) {
      f(first, std::integral_constant<int, 4>{});
      first += 4;
    }
  }
  if constexpr (kernel_rows > 2) {
    if (last - first >= 2) {
      f(first, std::integral_constant<int, 2>{});
      first += 2;
    }
  }
  if (first < last) {
    f(first, std::integral_constant<int, 1>{});
  }
}

/// Keys of a block beside R query rows: R * block_keys is a multiple of 4.
template <int R>
inline constexpr int block_keys = 4 * R <= std::max(kernel_sums, 4) ? 4 : 2;

/// Products of R query rows and K keys from j on, lane by lane.
///
///   q      [R, q_stride] query rows
///   ahead  asked for some of what comes next with each step
///   keys   keys.load(j, c, x): vectors c, c + 1 ... of key j, `Keys::step` of them, with zeros past the end of the row
template <class Math, int R, int K, class Keys, class Ahead>
KVC_ALWAYS_INLINE void add_keys(const float* q, Index q_stride, const Keys& keys, Index j, Index vectors,
                                typename Math::Sum (&sum)[R][K], Ahead& ahead) noexcept {
  for (Index c = 0; c < vectors; c += Keys::step) {
    ahead.ask_with_keys(K * Keys::step);
    typename Math::Number x[K][Keys::step];
    simd::detail::unroll<K>([&](auto k) __attribute__((always_inline)) { keys.load(j + k, c, x[k]); });
    simd::detail::unroll<Keys::step>([&](auto v) __attribute__((always_inline)) {
      simd::detail::unroll<K>([&](auto k) __attribute__((always_inline)) { simd::pin(x[k][v]); });
      simd::detail::unroll<R>([&](auto i) __attribute__((always_inline)) {
        typename Math::Number w = Math::load(q + i * q_stride + (c + v) * simd::lanes);
        simd::pin(w);
        simd::detail::unroll<K>([&](auto k) __attribute__((always_inline)) { sum[i][k] = Math::madd(w, x[k][v], sum[i][k]); });
      });
    });
  }
}

/// s[r * 64 + k] = simd::sum(x[r][k])
template <int R, int K>
KVC_ALWAYS_INLINE void store_scores(const simd::F32x16 (&x)[R][K], float* s) noexcept {
  static_assert(R * K % 4 == 0);
  constexpr int sixteens = K == 4 ? R / 4 : 0;
  simd::detail::unroll<sixteens>([&](auto n) __attribute__((always_inline)) {
    simd::F32x16 of_keys[4][4];
    simd::detail::unroll<16>([&](auto i) __attribute__((always_inline)) { of_keys[i / 4][i % 4] = x[4 * n + i % 4][i / 4]; });
    const simd::F32x16 sums = simd::sum_sixteen(of_keys);
    simd::detail::unroll<4>([&](auto i) __attribute__((always_inline)) {
      simd::store_four(s + (4 * n + i) * tile_keys, simd::quarter<i>(sums));
    });
  });
  simd::detail::unroll<R * K / 4 - 4 * sixteens>([&](auto n) __attribute__((always_inline)) {
    constexpr int r = 4 * sixteens + n * 4 / K;
    if constexpr (K == 4) {
      simd::store_four(s + r * tile_keys, simd::sum_each(x[r][0], x[r][1], x[r][2], x[r][3]));
    } else {
      const simd::F32x4 sums = simd::sum_each(x[r][0], x[r][1], x[r + 1][0], x[r + 1][1]);
      simd::store_two(s + r * tile_keys, __builtin_shufflevector(sums, sums, 0, 1));
      simd::store_two(s + (r + 1) * tile_keys, __builtin_shufflevector(sums, sums, 2, 3));
    }
  });
}

/// One step of a sum of weighted values: R rows by C vectors.
///
///   w   weights of R rows, `stride` from one to the next, their planes `plane` apart
template <class Math, int R, int C>
KVC_ALWAYS_INLINE void add_weighted(const float* w, Index stride, Index plane, const typename Math::Number (&x)[C],
                                    typename Math::Sum (&sum)[R * Math::planes][C]) noexcept {
  simd::detail::unroll<R>([&](auto i) __attribute__((always_inline)) {
    simd::detail::unroll<Math::planes>([&](auto p) __attribute__((always_inline)) {
      const typename Math::Number weight = Math::weight(w + i * stride + p * plane);
      simd::detail::unroll<C>([&](auto k) __attribute__((always_inline)) {
        auto& to = sum[i * Math::planes + p][k];
        to = Math::madd(weight, x[k], to);
      });
    });
  });
}

/// to[i][0, 16 C) = to[i] * shrink[i] + sum[i], or = sum[i] where shrink is null.
template <int R, int C>
KVC_ALWAYS_INLINE void store_sums(const simd::F32x16 (&sum)[R][C], float* to, Index stride, const float* shrink) noexcept {
  simd::detail::unroll<R>([&](auto i) __attribute__((always_inline)) {
    simd::detail::unroll<C>([&](auto k) __attribute__((always_inline)) {
      float* const at = to + i * stride + k * simd::lanes;
      simd::store(at, shrink == nullptr ? sum[i][k] : simd::madd(simd::load(at), simd::broadcast(shrink[i]), sum[i][k]));
    });
  });
}

}  // namespace detail
}  // namespace kvc::inline v0
