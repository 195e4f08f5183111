// Rows of a tile as vectors of floats, and sums of their weighted values: the parts of FloatTile that do not depend on
// how it keeps its rows.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstring>
#include <type_traits>

#include "kvc/attention/kernel/kernels.hpp"
#include "kvc/attention/kernel/kv_tile_rows.hpp"
#include "kvc/core/types.hpp"
#include "kvc/element/element.hpp"
#include "kvc/element/float16.hpp"
#include "kvc/simd/convert.hpp"
#include "kvc/simd/vec.hpp"

namespace kvc {
inline namespace v0 {
namespace detail {

/// Whether rows of T are read as floats where they lie.
template <class T>
inline constexpr bool is_plain =
    std::is_same_v<T, float> || std::is_same_v<T, Eigen::half> || std::is_same_v<T, Eigen::bfloat16>;

/// Stored elements [16 c, 16 c + 16) of rows of a tile, as floats.
template <class T>
struct PlainRows {
  const T* const* rows;
  Index dim;

  KVC_ALWAYS_INLINE static simd::F32x16 load_at(const T* p) noexcept {
    if constexpr (std::is_same_v<T, float>) {
      return simd::load(p);
    } else if constexpr (std::is_same_v<T, Eigen::half>) {
      return simd::load_f16(p);
    } else {
      return simd::load_bf16(p);
    }
  }
  static constexpr int step = 1, bytes = simd::lanes * sizeof(T);
  using Operand = simd::F32x16;
  KVC_ALWAYS_INLINE simd::F32x16 load(Index j, Index c) const noexcept { return load_at(rows[j] + c * simd::lanes); }
  KVC_ALWAYS_INLINE void load(Index j, Index c, simd::F32x16 (&x)[1]) const noexcept {
    if ((c + 1) * simd::lanes <= dim) [[likely]] {
      x[0] = load(j, c);
    } else {
      T last[simd::lanes] = {};
      std::memcpy(static_cast<void*>(last), rows[j] + c * simd::lanes,
                  static_cast<std::size_t>(dim % simd::lanes) * sizeof(T));
      x[0] = load_at(last);
    }
  }
};
/// The same of rows that have been decoded and filled up with zeros.
template <class T>
struct DecodedRows {
  const float* first;
  Index stride;
  KVC_ALWAYS_INLINE simd::F32x16 load(Index j, Index c) const noexcept {
    return simd::load(first + j * stride + c * simd::lanes);
  }
  static constexpr int step = 1, bytes = simd::lanes * sizeof(StorageOf<T>);
  using Operand = simd::F32x16;
  KVC_ALWAYS_INLINE void load(Index j, Index c, simd::F32x16 (&x)[1]) const noexcept { x[0] = load(j, c); }
};

/// Rows of floats wherever they lie, in whole vectors, for many query rows.
struct FloatRows {
  const float* const* rows;
  static constexpr bool has_many_readers = true;
  static constexpr int step = 1, bytes = simd::lanes * sizeof(float);
  using Operand = simd::F32x16;
  KVC_ALWAYS_INLINE simd::F32x16 load(Index j, Index c) const noexcept { return simd::load(rows[j] + c * simd::lanes); }
  KVC_ALWAYS_INLINE void load(Index j, Index c, simd::F32x16 (&x)[1]) const noexcept { x[0] = load(j, c); }
};

/// Vectors c, c + 1 ... of row j.
template <int C, class Rows>
KVC_ALWAYS_INLINE void load_vectors(const Rows& rows, Index j, Index c, simd::F32x16 (&x)[C]) noexcept {
  if constexpr (Rows::step == 1) {
    simd::detail::unroll<C>([&](auto k) __attribute__((always_inline)) { x[k] = rows.load(j, c + k); });
  } else {
    simd::F32x16 some[Rows::step];
    simd::detail::unroll<C>([&](auto k) __attribute__((always_inline)) {
      if constexpr (k % Rows::step == 0) {
        rows.load(j, c + k, some);
      }
      x[k] = some[k % Rows::step];
    });
  }
}

/// Vectors of values in a block of add_float_columns beside R rows of weights.
template <int R>
inline constexpr int block_columns = has_part_kernels && R == 1 ? 4 : std::clamp(kernel_sums / R, 1, R == 1 ? 8 : 4);

/// Sums of weighted values, R rows by `columns` elements.
///
///   sum[i][d] = start[i][d] + sum over j of p[i * 64 + j] * v[j][d],  ascending j in [first, last)
///
/// for columns d in [from, end) alone. `start` null means 0. The sums go to `to` as in store_sums.
///   v         load_vectors(v, j, c, x): elements 16 c .. of value j
///   start, to [R, columns], columns a multiple of 16, as are from and end
template <int R, class Values, class Prefetches>
KVC_ALWAYS_INLINE void add_float_columns(const float* p, const Values& v, Index first, Index last, const float* start,
                                         float* to, const float* rescale, Index columns, Index from, Index end,
                                         Prefetches& prefetcher) noexcept {
  using simd::F32x16;
  constexpr int most = block_columns<R>;
  // A block of one vector has too few chains to hide the latency of multiply-adds: 3 + 3 + 2 vectors, 2 + 2.
  constexpr bool ends_with_two = has_part_kernels && R < kernel_rows;
  const auto block = [&](Index d, auto count) __attribute__((always_inline)) {
    constexpr int C = decltype(count)::value;
    F32x16 sum[R][C] = {};
    if (start != nullptr) {
      simd::detail::unroll<R>([&](auto i) __attribute__((always_inline)) {
        simd::detail::unroll<C>([&](auto k) __attribute__((always_inline)) {
          sum[i][k] = simd::load(start + i * columns + d + k * simd::lanes);
        });
      });
    }
    Index lines = ceil_div(Index{C} * Values::bytes, Index{64} * Values::step);
    if constexpr (has_part_kernels) {  // blocks are narrow: those that begin a line
      lines = ceil_div((d / simd::lanes + C) * Values::bytes, Index{64}) -
              ceil_div(d / simd::lanes * Values::bytes, Index{64});
    }
    for (Index j = first; j < last; ++j) {
      F32x16 x[C];
      prefetcher.prefetch(lines);
      load_vectors(v, j, d / simd::lanes, x);
      add_weighted<FloatDotTraits, R>(p + j, tile_keys, 0, x, sum);
    }
    store_sums<R, C>(sum, to + d, columns, rescale);
  };
  Index d = from;
  for (; end - d >= most * simd::lanes && !(ends_with_two && end - d == (most + 1) * simd::lanes);
       d += most * simd::lanes) {
    block(d, std::integral_constant<int, most>{});
  }
  if constexpr ((Values::step > 1 || ends_with_two) && most > 2) {
    for (; end - d >= 2 * simd::lanes; d += 2 * simd::lanes) {
      block(d, std::integral_constant<int, 2>{});
    }
  }
  if constexpr (most > 1) {
    for (; d < end; d += simd::lanes) {
      block(d, std::integral_constant<int, 1>{});
    }
  }
}

/// The same of all columns.
template <int R, class Values>
KVC_ALWAYS_INLINE void add_float_values(const float* p, const Values& v, Index first, Index last, const float* start,
                                        float* to, const float* rescale, Index columns,
                                        Prefetcher& shared_prefetcher) noexcept {
  Prefetcher prefetcher = shared_prefetcher;  // in registers
  add_float_columns<R>(p, v, first, last, start, to, rescale, columns, 0, columns, prefetcher);
  shared_prefetcher = prefetcher;
}

}  // namespace detail
}  // namespace v0
}  // namespace kvc
