// fold: the sum of the lanes of several vectors at once, and the transpose of sixteen vectors.
//
// The order is not that of simd::sum, but one that is also the order of a chain over words: for lanes l,
//
//   part[t] = ((x[t] + x[t + 4]) + x[t + 8]) + x[t + 12]          t < 4
//   fold    = ((part[0] + part[1]) + part[2]) + part[3]
//
// so that a kernel which has one vector per lane, across sixteen rows, gets the same bits from sums in this order.
#pragma once

#include <cstddef>
#include <cstring>

#include "kvc/simd/vec.hpp"

namespace kvc {
inline namespace v0 {
namespace simd {

namespace detail {
#if defined(__AVX512F__)
/// Quarter j of column i: quarter i of row j.
KVC_ALWAYS_INLINE void transpose_of_quarters(const WideF32x16 (&row)[4], WideF32x16 (&column)[4]) noexcept {
  const auto lower = [](const WideF32x16& x, const WideF32x16& y) __attribute__((always_inline)) {
    return __builtin_shufflevector(x, y, 0, 1, 2, 3, 4, 5, 6, 7, 16, 17, 18, 19, 20, 21, 22, 23);
  };
  const auto upper = [](const WideF32x16& x, const WideF32x16& y) __attribute__((always_inline)) {
    return __builtin_shufflevector(x, y, 8, 9, 10, 11, 12, 13, 14, 15, 24, 25, 26, 27, 28, 29, 30, 31);
  };
  const auto even = [](const WideF32x16& x, const WideF32x16& y) __attribute__((always_inline)) {
    return __builtin_shufflevector(x, y, 0, 1, 2, 3, 8, 9, 10, 11, 16, 17, 18, 19, 24, 25, 26, 27);
  };
  const auto odd = [](const WideF32x16& x, const WideF32x16& y) __attribute__((always_inline)) {
    return __builtin_shufflevector(x, y, 4, 5, 6, 7, 12, 13, 14, 15, 20, 21, 22, 23, 28, 29, 30, 31);
  };
  const WideF32x16 a = lower(row[0], row[1]), b = lower(row[2], row[3]), c = upper(row[0], row[1]),
                   d = upper(row[2], row[3]);
  column[0] = even(a, b);
  column[1] = odd(a, b);
  column[2] = even(c, d);
  column[3] = odd(c, d);
}

/// In each quarter, the transpose of four words by four.
KVC_ALWAYS_INLINE void transpose_in_quarters(const WideF32x16 (&a)[4], WideF32x16 (&column)[4]) noexcept {
  const auto low = [](const WideF32x16& x, const WideF32x16& y) __attribute__((always_inline)) {
    return __builtin_shufflevector(x, y, 0, 16, 1, 17, 4, 20, 5, 21, 8, 24, 9, 25, 12, 28, 13, 29);
  };
  const auto high = [](const WideF32x16& x, const WideF32x16& y) __attribute__((always_inline)) {
    return __builtin_shufflevector(x, y, 2, 18, 3, 19, 6, 22, 7, 23, 10, 26, 11, 27, 14, 30, 15, 31);
  };
  const auto first = [](const WideF32x16& x, const WideF32x16& y) __attribute__((always_inline)) {
    return __builtin_shufflevector(x, y, 0, 1, 16, 17, 4, 5, 20, 21, 8, 9, 24, 25, 12, 13, 28, 29);
  };
  const auto second = [](const WideF32x16& x, const WideF32x16& y) __attribute__((always_inline)) {
    return __builtin_shufflevector(x, y, 2, 3, 18, 19, 6, 7, 22, 23, 10, 11, 26, 27, 14, 15, 30, 31);
  };
  const WideF32x16 low_ab = low(a[0], a[1]), low_cd = low(a[2], a[3]), high_ab = high(a[0], a[1]),
                   high_cd = high(a[2], a[3]);
  column[0] = first(low_ab, low_cd);
  column[1] = second(low_ab, low_cd);
  column[2] = first(high_ab, high_cd);
  column[3] = second(high_ab, high_cd);
}
#endif
KVC_ALWAYS_INLINE F32x4 fold_parts(const F32x16& x) noexcept {
  return ((quarter<0>(x) + quarter<1>(x)) + quarter<2>(x)) + quarter<3>(x);
}
}  // namespace detail

/// Lane 4 i + n: fold of x[i][n], for `rows` rows of four; the other lanes are arbitrary.
template <int rows>
KVC_ALWAYS_INLINE F32x16 fold_rows(const F32x16 (&x)[rows][4]) noexcept {
  static_assert(rows == 1 || rows == 2 || rows == 4);
#if defined(__AVX512F__)
  WideF32x16 of_key[4];  // in quarter i, the parts of x[i][n]
  detail::unroll<4>([&](auto n) __attribute__((always_inline)) {
    const WideF32x16 in[4] = {x[0][n].part[0], x[rows > 1 ? 1 : 0][n].part[0], x[rows > 2 ? 2 : 0][n].part[0],
                              x[rows > 2 ? 3 : 0][n].part[0]};
    WideF32x16 quarters[4];
    detail::transpose_of_quarters(in, quarters);
    of_key[n] = ((quarters[0] + quarters[1]) + quarters[2]) + quarters[3];
  });
  WideF32x16 of_row[4];
  detail::transpose_in_quarters(of_key, of_row);
  return {{((of_row[0] + of_row[1]) + of_row[2]) + of_row[3]}};
#else
  F32x16 result{};
  detail::unroll<rows>([&](auto i) __attribute__((always_inline)) {
    const F32x4 a = detail::fold_parts(x[i][0]), b = detail::fold_parts(x[i][1]), c = detail::fold_parts(x[i][2]),
                d = detail::fold_parts(x[i][3]);
    const F32x4 low_ab = __builtin_shufflevector(a, b, 0, 4, 1, 5), high_ab = __builtin_shufflevector(a, b, 2, 6, 3, 7);
    const F32x4 low_cd = __builtin_shufflevector(c, d, 0, 4, 1, 5), high_cd = __builtin_shufflevector(c, d, 2, 6, 3, 7);
    const F32x4 four =
        ((__builtin_shufflevector(low_ab, low_cd, 0, 1, 4, 5) + __builtin_shufflevector(low_ab, low_cd, 2, 3, 6, 7)) +
         __builtin_shufflevector(high_ab, high_cd, 0, 1, 4, 5)) +
        __builtin_shufflevector(high_ab, high_cd, 2, 3, 6, 7);
    std::memcpy(reinterpret_cast<std::byte*>(&result) + i * sizeof four, &four, sizeof four);
  });
  return result;
#endif
}

/// to[16 c + l] = lane c of row l: sixteen columns of sixteen rows.
KVC_ALWAYS_INLINE void store_columns(const F32x16 (&row)[lanes], float* to) noexcept {
#if defined(__AVX512F__)
  WideF32x16 of_rows[4][4];  // [n][g]: in quarter j, word 4 j + n of rows 4 g to 4 g + 3
  detail::unroll<4>([&](auto g) __attribute__((always_inline)) {
    const WideF32x16 in[4] = {row[4 * g].part[0], row[4 * g + 1].part[0], row[4 * g + 2].part[0],
                              row[4 * g + 3].part[0]};
    WideF32x16 out[4];
    detail::transpose_in_quarters(in, out);
    detail::unroll<4>([&](auto n) __attribute__((always_inline)) { of_rows[n][g] = out[n]; });
  });
  detail::unroll<4>([&](auto n) __attribute__((always_inline)) {
    WideF32x16 column[4];
    detail::transpose_of_quarters(of_rows[n], column);
    detail::unroll<4>([&](auto j)
                          __attribute__((always_inline)) { store(to + (4 * j + n) * lanes, F32x16{{column[j]}}); });
  });
#elif defined(__AVX__)
  // Eight rows by eight columns: neighbours are joined by one, by two and by four words.
  detail::unroll<4>([&](auto block) __attribute__((always_inline)) {
    constexpr int first_row = block / 2 * 8, half = block % 2;
    F32x8 one[8], two[8];
    detail::unroll<4>([&](auto i) __attribute__((always_inline)) {
      const F32x8 a = row[first_row + 2 * i].part[half], b = row[first_row + 2 * i + 1].part[half];
      one[2 * i] = __builtin_shufflevector(a, b, 0, 8, 1, 9, 4, 12, 5, 13);
      one[2 * i + 1] = __builtin_shufflevector(a, b, 2, 10, 3, 11, 6, 14, 7, 15);
    });
    detail::unroll<4>([&](auto i) __attribute__((always_inline)) {  // words 2 n, 2 n + 1 and those 4 on, of 4 rows
      constexpr int rows = i / 2 * 4, n = i % 2;
      two[rows + 2 * n] = __builtin_shufflevector(one[rows + n], one[rows + n + 2], 0, 1, 8, 9, 4, 5, 12, 13);
      two[rows + 2 * n + 1] = __builtin_shufflevector(one[rows + n], one[rows + n + 2], 2, 3, 10, 11, 6, 7, 14, 15);
    });
    detail::unroll<4>([&](auto n) __attribute__((always_inline)) {
      float* const at = to + (half * 8 + n) * lanes + first_row;
      const F32x8 low = __builtin_shufflevector(two[n], two[n + 4], 0, 1, 2, 3, 8, 9, 10, 11);
      const F32x8 high = __builtin_shufflevector(two[n], two[n + 4], 4, 5, 6, 7, 12, 13, 14, 15);
      *reinterpret_cast<LoosePart*>(at) = low;
      *reinterpret_cast<LoosePart*>(at + 4 * lanes) = high;
    });
  });
#else
  float rows[lanes][lanes];
  for (int l = 0; l < lanes; ++l) {
    store(rows[l], row[l]);
  }
  for (int c = 0; c < lanes; ++c) {
    for (int l = 0; l < lanes; ++l) {
      to[c * lanes + l] = rows[l][c];
    }
  }
#endif
}

}  // namespace simd
}  // namespace v0
}  // namespace kvc
