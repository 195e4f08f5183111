// The two loops in which attention spends its time: scores of a few rows against a tile of keys, and the sum of its values.
//
// Both hold a block of running sums in registers, several query rows by several vectors. Each sum is one chain of madd in a
// fixed order, so its bits do not depend on the shape of the block that it happens to be computed in.
#pragma once

#include <algorithm>
#include <utility>

#include "kvc/attention/prefetch.hpp"
#include "kvc/simd/vec.hpp"

namespace kvc::inline v0 {
namespace detail {

inline constexpr Index tile_keys = 64;  // positions of a tile; one bit each in a word

/// Sums of 16 floats that the registers of the target hold beside the operands of a step.
#if defined(__AVX512F__)
inline constexpr int kernel_sums = 24;
#elif defined(__AVX__) || defined(__aarch64__)
inline constexpr int kernel_sums = 6;
#else
inline constexpr int kernel_sums = 2;
#endif
inline constexpr int kernel_rows = std::min(kernel_sums, 6);

/// How long a step takes, in units of one madd of the scores: of one madd of the values, in halves, which waits for its operand,
/// and of one word of 16 keys to be loaded.
inline constexpr std::uint32_t value_time = 3;
inline constexpr std::uint32_t key_time = 14;

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

/// f(integral constant R) if `rows` rows are one block of for_row_blocks, otherwise g().
template <class F, class G>
KVC_ALWAYS_INLINE void for_one_block(Index rows, F f, G g) {
  if (rows == kernel_rows) {
    f(std::integral_constant<int, kernel_rows>{});
  } else if (rows == 1) {
    f(std::integral_constant<int, 1>{});
  } else if (kernel_rows > 4 && rows == 4) {
    f(std::integral_constant<int, 4>{});
  } else if (kernel_rows > 2 && rows == 2) {
    f(std::integral_constant<int, 2>{});
  } else {
    g();
  }
}

/// s[i * 64 + 16 c + j] = sum over d of q[i * q_stride + d] * keys[c * group + 16 d + j], ascending d, for i < R, c < C, j < 16.
///
///   keys   number d of 16 keys together, `group` floats from one group of 16 keys to the next
template <int R, int C>
KVC_ALWAYS_INLINE void score_block(const float* q, Index q_stride, const float* keys, Index group, Index dim, float* s, Prefetch& ahead) {
  using simd::F32x16;
  F32x16 sum[R][C] = {};
  Prefetch lines = ahead;  // in registers
  for (Index d = 0; d < dim; ++d) {
    F32x16 k[C];
    simd::detail::unroll<C>([&](auto c) __attribute__((always_inline)) { k[c] = simd::load(keys + c * group + d * simd::lanes); });
    simd::detail::unroll<R>([&](auto i) __attribute__((always_inline)) {
      const F32x16 x = simd::broadcast(q[i * q_stride + d]);
      simd::detail::unroll<C>([&](auto c) __attribute__((always_inline)) { sum[i][c] = simd::madd(x, k[c], sum[i][c]); });
    });
    lines.step(R * C);
  }
  ahead = lines;
  simd::detail::unroll<R>([&](auto i) __attribute__((always_inline)) {
    simd::detail::unroll<C>([&](auto c) __attribute__((always_inline)) { simd::store(s + i * tile_keys + c * simd::lanes, sum[i][c]); });
  });
}

/// Scores of R rows against `groups` groups of 16 keys each; as above.
template <int R>
KVC_ALWAYS_INLINE void score_rows(const float* q, Index q_stride, const float* keys, Index group, Index groups, Index dim, float* s,
                                  Prefetch& ahead) {
  constexpr int C = std::clamp(kernel_sums / R, 1, 4);
  const auto blocks = [&](auto count) __attribute__((always_inline)) {
    constexpr int c = decltype(count)::value;
    for (; groups >= c; groups -= c, keys += c * group, s += c * simd::lanes) {
      score_block<R, c>(q, q_stride, keys, group, dim, s, ahead);
    }
  };
  blocks(std::integral_constant<int, C>{});
  if constexpr (C > 2) {
    blocks(std::integral_constant<int, 2>{});
  }
  if constexpr (C > 1) {
    blocks(std::integral_constant<int, 1>{});
  }
}

/// Sums of weighted values, R rows by `columns` numbers.
///
///   sum[i][d] = start[i][d] + sum over j of p[i * 64 + j] * v[j][d],  ascending j in [first, last)
///
/// `start` null means 0. The sums go to `to`; with `shrink`, as  to[i][d] = to[i][d] * shrink[i] + sum[i][d].
///   v         v.template load<n>(j, d, x): x[k] = numbers d + 16 k .. of value j, for k < n; d is a multiple of 16, and of
///             16 n for n <= 4
///   start, to [R, columns], columns a multiple of 16
template <int R, class Values>
KVC_ALWAYS_INLINE void add_values(const float* p, const Values& v, Index first, Index last, const float* start, float* to,
                                  const float* shrink, Index columns, Prefetch& ahead) {
  using simd::F32x16;
  constexpr int C = std::clamp(kernel_sums / R, 1, R == 1 ? 8 : 4);
  const auto block = [&](Index d, auto count) __attribute__((always_inline)) {
    constexpr int c = decltype(count)::value;
    F32x16 sum[R][c] = {};
    if (start != nullptr) {
      simd::detail::unroll<R>([&](auto i) __attribute__((always_inline)) {
        simd::detail::unroll<c>([&](auto k) __attribute__((always_inline)) { sum[i][k] = simd::load(start + i * columns + d + k * simd::lanes); });
      });
    }
    Prefetch lines = ahead;  // in registers
    for (Index j = first; j < last; ++j) {
      F32x16 x[c];
      v.template approach<c>(std::min(j + 8, last - 1), d);
      v.template load<c>(j, d, x);
      simd::detail::unroll<R>([&](auto i) __attribute__((always_inline)) {
        const F32x16 weight = simd::broadcast(p[i * tile_keys + j]);
        simd::detail::unroll<c>([&](auto k) __attribute__((always_inline)) { sum[i][k] = simd::madd(weight, x[k], sum[i][k]); });
      });
      lines.step(R * c * value_time / 2);
    }
    ahead = lines;
    simd::detail::unroll<R>([&](auto i) __attribute__((always_inline)) {
      simd::detail::unroll<c>([&](auto k) __attribute__((always_inline)) {
        float* const at = to + i * columns + d + k * simd::lanes;
        if (shrink != nullptr) {
          sum[i][k] = simd::madd(simd::load(at), simd::broadcast(shrink[i]), sum[i][k]);
        }
        simd::store(at, sum[i][k]);
      });
    });
  };
  Index d = 0;
  for (; columns - d >= C * simd::lanes; d += C * simd::lanes) {
    block(d, std::integral_constant<int, C>{});
  }
  if constexpr (C > 1) {
    for (; d < columns; d += simd::lanes) {
      block(d, std::integral_constant<int, 1>{});
    }
  }
}

}  // namespace detail
}  // namespace kvc::inline v0
