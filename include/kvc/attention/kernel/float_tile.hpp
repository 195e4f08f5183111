// FloatTile: 64 positions of one head in float arithmetic, for every element type and every target.
//
//   keys     lane l of a sum is a chain of multiply-adds over elements l, l + 16, l + 32 ... of a row; a score is
//            their fold
//   values   a sum is a chain of multiply-adds over ascending positions
//
// Rows are read as exactly the elements that kvc::Element<T>::decode gives.
#pragma once

#include <algorithm>
#include <bit>
#include <cstring>
#include <type_traits>

#include "kvc/attention/kernel/scratch.hpp"
#include "kvc/attention/kernel/tile_base.hpp"
#include "kvc/element/float16.hpp"
#include "kvc/simd/convert.hpp"

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

/// Sums of weighted values, R rows by `columns` elements.
///
///   sum[i][d] = start[i][d] + sum over j of p[i * 64 + j] * v[j][d],  ascending j in [first, last)
///
/// `start` null means 0. The sums go to `to` as in store_sums.
///   v         v.load(j, c): elements 16 c .. of value j
///   start, to [R, columns], columns a multiple of 16
template <int R, class Values>
KVC_ALWAYS_INLINE void add_float_values(const float* p, const Values& v, Index first, Index last, const float* start,
                                        float* to, const float* rescale, Index columns,
                                        Prefetcher& shared_prefetcher) noexcept {
  using simd::F32x16;
  constexpr int most = std::clamp(kernel_sums / R, 1, R == 1 ? 8 : 4);
  Prefetcher prefetcher = shared_prefetcher;  // in registers
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
    for (Index j = first; j < last; ++j) {
      F32x16 x[C];
      prefetcher.prefetch(ceil_div(Index{C} * Values::bytes, Index{64}));
      simd::detail::unroll<C>([&](auto k) __attribute__((always_inline)) { x[k] = v.load(j, d / simd::lanes + k); });
      add_weighted<FloatDotTraits, R>(p + j, tile_keys, 0, x, sum);
    }
    store_sums<R, C>(sum, to + d, columns, rescale);
  };
  Index d = 0;
  for (; columns - d >= most * simd::lanes; d += most * simd::lanes) {
    block(d, std::integral_constant<int, most>{});
  }
  if constexpr (most > 1) {
    for (; d < columns; d += simd::lanes) {
      block(d, std::integral_constant<int, 1>{});
    }
  }
  shared_prefetcher = prefetcher;
}

/// The tile of every element type without narrower arithmetic: see the head of this file.
template <class T>
class FloatTile : public FloatSumTile<T> {
  using Base = FloatSumTile<T>;
  using Base::key_dim_;
  using Base::once_;
  using Base::prefetcher_;
  using Base::rows_;
  using Base::value_dim_;

 public:
  static constexpr bool in_order = true;
  static constexpr Index key_pass = 32;
  [[nodiscard]] static constexpr Index query_floats(Index key_dim) noexcept { return padded(key_dim); }
  [[nodiscard]] static constexpr Index weight_floats(Index) noexcept { return 0; }
  [[nodiscard]] static constexpr Index state_floats(Index value_dim) noexcept { return padded(value_dim); }
  [[nodiscard]] static constexpr Index output_index(Index d) noexcept { return d; }
  [[nodiscard]] static constexpr Index scratch_floats(Index key_dim, Index value_dim) noexcept {
    return tile_keys * (2 * padded(key_dim) + padded(value_dim));
  }
  [[nodiscard]] static ScaleParts scale_parts(float scale) noexcept { return ScaleParts::in_queries(scale); }
  static void prepare_query(const float* q, Index key_dim, float* to) noexcept {
    std::copy_n(q, key_dim, to);
    std::fill(to + key_dim, to + padded(key_dim), 0.0F);
  }

  FloatTile(Index key_dim, Index value_dim, float /*scale*/, Scratch& scratch)
      : Base(key_dim, value_dim),
        decoded_keys_(scratch.take(tile_keys * padded(key_dim))),
        packed_keys_(scratch.take(tile_keys * padded(key_dim))),
        decoded_values_(scratch.take(tile_keys * padded(value_dim))) {}

  KVC_OUT_OF_LINE void load_keys() noexcept {
    if constexpr (!is_plain<T>) {
      decode(rows_->k, key_dim_, decoded_keys_);
    }
    if (!once_) {
      const Index first = rows_->first / simd::lanes, last = ceil_div(rows_->last, Index{simd::lanes});
      if constexpr (is_plain<T>) {
        pack_keys(PlainRows<T>{rows_->k, key_dim_}, first, last, padded(key_dim_) / simd::lanes, packed_keys_,
                  prefetcher_);
      } else {
        pack_keys(DecodedRows<T>{decoded_keys_, padded(key_dim_)}, first, last, padded(key_dim_) / simd::lanes,
                  packed_keys_, prefetcher_);
      }
    }
  }
  template <int R>
  KVC_OUT_OF_LINE void scores_of_many(Index first, Index last, const float* q, Index q_stride, float* s) noexcept {
    score_packed<FloatDotTraits, R>(q, q_stride, packed_keys_, first / simd::lanes, ceil_div(last, Index{simd::lanes}),
                                    padded(key_dim_) / simd::lanes, s);
  }
  template <int R>
  KVC_OUT_OF_LINE void scores(Index first, Index last, const float* q, Index q_stride, float* s) noexcept {
    const Index vectors = padded(key_dim_) / simd::lanes;
    if constexpr (is_plain<T>) {
      this->template score_blocks<FloatDotTraits, R>(PlainRows<T>{rows_->k, key_dim_}, first, last, vectors, q,
                                                     q_stride, s);
    } else {
      this->template score_blocks<FloatDotTraits, R>(DecodedRows<T>{decoded_keys_, padded(key_dim_)}, first, last,
                                                     vectors, q, q_stride, s);
    }
  }

  void load_values() noexcept {
    if (!values_in_place()) {
      decode(rows_->v, value_dim_, decoded_values_);
    }
  }
  void encode_weights(const float*, float, std::uint64_t, float*) noexcept { prefetcher_.prefetch_with_row(); }

  template <int R>
  KVC_OUT_OF_LINE void add_values(const float* p, Index first, Index last, const float* start, float* to,
                                  const float* rescale) noexcept {
    if constexpr (is_plain<T>) {
      if (values_in_place()) {
        add_float_values<R>(p, PlainRows<T>{rows_->v, value_dim_}, first, last, start, to, rescale, value_dim_,
                            prefetcher_);
        return;
      }
    }
    add_float_values<R>(p, DecodedRows<T>{decoded_values_, padded(value_dim_)}, first, last, start, to, rescale,
                        padded(value_dim_), prefetcher_);
  }

 private:
  /// Conversions pay off for many rows.
  [[nodiscard]] bool values_in_place() const noexcept {
    return (std::is_same_v<T, float> || (is_plain<T> && once_)) && value_dim_ % simd::lanes == 0;
  }

  void decode(const StorageOf<T>* const* rows, Index dim, float* to) const noexcept {
    // In whole groups of 16: the other pointers lead to some row.
    for (Index j = rows_->first / simd::lanes * simd::lanes;
         j < ceil_div(rows_->last, Index{simd::lanes}) * simd::lanes; ++j) {
      kvc::Element<T>::decode(rows[j], dim, to + j * padded(dim));
      std::fill(to + j * padded(dim) + dim, to + (j + 1) * padded(dim), 0.0F);
    }
  }

  float* decoded_keys_;    // [64, padded(key_dim)]
  float* packed_keys_;     // [groups][padded(key_dim)][16], for many rows
  float* decoded_values_;  // [64, padded(value_dim)]
};

}  // namespace detail
}  // namespace v0
}  // namespace kvc
