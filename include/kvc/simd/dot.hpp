// Dot products with one fixed order of additions.
//
// The dot product of two rows is: sixteen running sums, lane l taking elements l, l + 16, l + 32, ... in ascending
// order by madd, the last few elements filled up with zeros; then simd::sum of the lanes. Every function here gives
// exactly these bits for every pair of rows, whatever their addresses and whichever other pairs are computed beside it.
// That is what makes a row's attention, or a token's row of a linear layer, independent of the batch it was computed
// in.
#pragma once

#include <algorithm>
#include <cstring>

#include "kvc/core/types.hpp"
#include "kvc/simd/vec.hpp"

namespace kvc {
inline namespace v0 {
namespace simd {

/// Pairs that are computed together: `dot_block_rows` rows of one side against `dot_block_cols` of the other, as many
/// running sums as the registers of the target hold beside the operands.
#if defined(__AVX512F__)
inline constexpr Index dot_block_rows = 4;
inline constexpr Index dot_block_cols = 4;
#elif defined(__AVX__) || defined(__aarch64__)
inline constexpr Index dot_block_rows = 1;
inline constexpr Index dot_block_cols = 4;
#else
inline constexpr Index dot_block_rows = 1;
inline constexpr Index dot_block_cols = 2;
#endif
inline constexpr Index dot_tile = 16;  ///< rows of the second operand that stay in the first-level cache

namespace detail {

/// out[i * stride + j] = a[i] . b[j]  for i < R, j < C. C is 1, 2 or 4.
template <int R, int C>
KVC_ALWAYS_INLINE void dot_block(const float* const (&a)[R], const float* const (&b)[C], Index n, float* out,
                                 Index stride) noexcept {
  F32x16 acc[R][C] = {};
  const auto step = [&](auto load_at) __attribute__((always_inline)) {
    F32x16 y[C];
    unroll<C>([&](auto j) __attribute__((always_inline)) { y[j] = load_at(b[j]); });
    unroll<R>([&](auto i) __attribute__((always_inline)) {
      const F32x16 x = load_at(a[i]);
      unroll<C>([&](auto j) __attribute__((always_inline)) { acc[i][j] = madd(x, y[j], acc[i][j]); });
    });
  };
  const Index whole = n - n % lanes;
  for (Index d = 0; d < whole; d += lanes) {
    step([d](const float* p) __attribute__((always_inline)) { return load(p + d); });
  }
  if (whole < n) {
    step([whole, n](const float* p) __attribute__((always_inline)) { return load_partial(p + whole, n - whole); });
  }
  unroll<R>([&](auto i) __attribute__((always_inline)) {
    if constexpr (C == 4) {
      const F32x4 sums = sum_each(acc[i][0], acc[i][1], acc[i][2], acc[i][3]);
      std::memcpy(out + i * stride, &sums, sizeof sums);
    } else {
      unroll<C>([&](auto j) __attribute__((always_inline)) { out[i * stride + j] = sum(acc[i][j]); });
    }
  });
}

/// R rows of a from row i on, against rows [j, last) of b.
template <int R, class A, class B>
KVC_ALWAYS_INLINE void dot_stripe(Index i, A a, Index j, Index last, B b, Index n, float* out, Index stride) noexcept {
  constexpr int width = static_cast<int>(dot_block_cols);
  const float* x[R];
  unroll<R>([&](auto r) __attribute__((always_inline)) { x[r] = a(i + r); });
  const Index whole = last - (last - j) % width;
  for (; j < whole; j += width) {
    const float* y[width];
    unroll<width>([&](auto c) __attribute__((always_inline)) { y[c] = b(j + c); });
    dot_block<R, width>(x, y, n, out + i * stride + j, stride);
  }
  for (j = whole; j < last; ++j) {
    const float* const y[1] = {b(j)};
    dot_block<R, 1>(x, y, n, out + i * stride + j, stride);
  }
}

}  // namespace detail

/// a . b over n elements, in the order given at the top of this file. O(n).
[[nodiscard]] inline float dot(const float* a, const float* b, Index n) noexcept {
  const float* const x[1] = {a};
  const float* const y[1] = {b};
  float result = 0;
  detail::dot_block<1, 1>(x, y, n, &result, 1);
  return result;
}

/// All pairs of rows:  out[i * stride + j] = dot(a(i), b(j), n)  for i < rows, j < cols, bit for bit.
///
///   a, b     called with a row number, return a pointer to n floats
///   out      [rows, cols], `stride` floats from row to row; must not overlap the operands
///
/// Takes `dot_tile` rows of b at a time past all of a, so b may be large and is read from memory once. O(rows * cols *
/// n).
template <class A, class B>
void dot_rows(Index rows, A a, Index cols, B b, Index n, float* out, Index stride) noexcept {
  constexpr int height = static_cast<int>(dot_block_rows);
  const Index whole = rows - rows % height;
  for (Index j = 0; j < cols; j += dot_tile) {
    const Index last = std::min(j + dot_tile, cols);
    for (Index i = 0; i < whole; i += height) {
      detail::dot_stripe<height>(i, a, j, last, b, n, out, stride);
    }
    for (Index i = whole; i < rows; ++i) {
      detail::dot_stripe<1>(i, a, j, last, b, n, out, stride);
    }
  }
}

}  // namespace simd
}  // namespace v0
}  // namespace kvc
