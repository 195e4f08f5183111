// Columns of sixteen rows: how rows of the cache, each contiguous in memory, become vectors across positions.
#pragma once

#include <cstddef>
#include <cstring>

#include "kvc/core/types.hpp"
#include "kvc/simd/fold.hpp"
#include "kvc/simd/vec.hpp"

namespace kvc {
inline namespace v0 {
namespace simd {

namespace detail {

/// Words [0, 4) at byte `offset` of 16 rows: column c of the result has word c of row l in lane l.
///
/// Lane by lane of 128 bits this is the transpose of a 4 x 4 matrix. Rows l, l + 4, l + 8 and l + 12 share a vector,
/// so that only that step needs shuffles, and joining the rows is done by loads.
template <class Row>
KVC_ALWAYS_INLINE void transpose_four(const Row* const* rows, std::ptrdiff_t offset, F32x16 (&column)[4]) noexcept {
  using Loose [[gnu::vector_size(16), gnu::aligned(1), gnu::may_alias]] = float;
  const auto quarter = [rows, offset](int row) __attribute__((always_inline)) -> F32x4 {
    return *reinterpret_cast<const Loose*>(reinterpret_cast<const std::byte*>(rows[row]) + offset);
  };
#if defined(__AVX512F__)
  WideF32x16 a[4];
  unroll<4>([&](auto i) __attribute__((always_inline)) {
    // A load that repeats its quarter, under a mask, needs no shuffle.
    a[i] = _mm512_zextps128_ps512(quarter(i));
    a[i] = _mm512_mask_broadcast_f32x4(a[i], 0x00f0, quarter(i + 4));
    a[i] = _mm512_mask_broadcast_f32x4(a[i], 0x0f00, quarter(i + 8));
    a[i] = _mm512_mask_broadcast_f32x4(a[i], 0xf000, quarter(i + 12));
  });
  WideF32x16 columns[4];
  transpose_in_quarters(a, columns);
  unroll<4>([&](auto i) __attribute__((always_inline)) { column[i].part[0] = columns[i]; });
#else
  unroll<4>([&](auto lane) __attribute__((always_inline)) {
    constexpr int first = 4 * decltype(lane)::value;
    const F32x4 a = quarter(first), b = quarter(first + 1), c = quarter(first + 2), d = quarter(first + 3);
    const F32x4 low_ab = __builtin_shufflevector(a, b, 0, 4, 1, 5), high_ab = __builtin_shufflevector(a, b, 2, 6, 3, 7);
    const F32x4 low_cd = __builtin_shufflevector(c, d, 0, 4, 1, 5), high_cd = __builtin_shufflevector(c, d, 2, 6, 3, 7);
    const F32x4 x[4] = {
        __builtin_shufflevector(low_ab, low_cd, 0, 1, 4, 5), __builtin_shufflevector(low_ab, low_cd, 2, 3, 6, 7),
        __builtin_shufflevector(high_ab, high_cd, 0, 1, 4, 5), __builtin_shufflevector(high_ab, high_cd, 2, 3, 6, 7)};
    unroll<4>([&](auto i) __attribute__((always_inline)) {
      std::memcpy(reinterpret_cast<std::byte*>(&column[i]) + lane * sizeof(F32x4), &x[i], sizeof(F32x4));
    });
  });
#endif
}

}  // namespace detail

/// f(c, v) for every fourth column c in [first, last): v holds columns c to c + 3, as below. last - first is a
/// multiple of 4.
template <class Row, class F>
KVC_ALWAYS_INLINE void for_each_four_columns(const Row* const* rows, Index first, Index last, F f) noexcept {
  for (Index c = first; c < last; c += 4) {
    F32x16 column[4];
    detail::transpose_four(rows, c * 4, column);
    f(c, column);
  }
}

/// The floats at `offset` bytes of 16 rows, at any address.
template <class Row>
KVC_ALWAYS_INLINE F32x16 load_column(const Row* const* rows, Index offset) noexcept {
  F32x4 four[4];
  detail::unroll<4>([&](auto i) __attribute__((always_inline)) {
    float x[4];
    detail::unroll<4>([&](auto l) __attribute__((always_inline)) {
      std::memcpy(&x[l], reinterpret_cast<const std::byte*>(rows[4 * i + l]) + offset, sizeof(float));
    });
    four[i] = F32x4{x[0], x[1], x[2], x[3]};
  });
#if defined(__AVX512F__)
  return {{__builtin_shufflevector(__builtin_shufflevector(four[0], four[1], 0, 1, 2, 3, 4, 5, 6, 7),
                                   __builtin_shufflevector(four[2], four[3], 0, 1, 2, 3, 4, 5, 6, 7), 0, 1, 2, 3, 4, 5,
                                   6, 7, 8, 9, 10, 11, 12, 13, 14, 15)}};
#else
  F32x16 all;
  static_assert(sizeof four == sizeof all);
  std::memcpy(&all, four, sizeof all);
  return all;
#endif
}

/// f(c, v) for each column c in [first, last), in ascending order: v is a U32x16 with word c of row l in lane l.
///
///   rows   16 pointers to rows of at least `last` words of four bytes, at any address
///
/// Reads nothing past column `last`. O(16 * (last - first)).
template <class Row, class F>
KVC_ALWAYS_INLINE void for_each_column(const Row* const* rows, Index first, Index last, F f) noexcept {
  const Index whole = last - (last - first) % 4;
  for_each_four_columns(rows, first, whole, [&](Index c, const F32x16(&column)[4]) __attribute__((always_inline)) {
    detail::unroll<4>([&](auto i) __attribute__((always_inline)) { f(c + i, as_words(column[i])); });
  });
  for (Index c = whole; c < last; ++c) {
    f(c, as_words(load_column(rows, c * 4)));
  }
}

}  // namespace simd
}  // namespace v0
}  // namespace kvc
