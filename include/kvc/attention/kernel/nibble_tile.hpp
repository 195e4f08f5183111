// NibbleTile: 64 positions of one head of Int4 where the processor multiplies bytes (simd::has_byte_dot).
//
// Queries and weights become integers of 8 bits. Sums within a group of 32 numbers, and within a tile, are exact:
//
//   score    sum over groups g of   scale of the key's g * sum of query code * code  +  minimum of g * sum of the
//            query's g,   times the scale of the query; groups ascending, the two terms of each in this order
//   value    for each number of group g:   largest / 255 * sum of weight code * code  +  sum of p * minimum of g
//            where weights are p times the scales of g, and `largest` is the largest p of a tile times the largest scale
//
// Error against exact arithmetic on the stored numbers: about 2^-8 of the largest number of a query, and 2^-9 of
// `largest`.
#pragma once

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>
#include <limits>

#include "kvc/attention/kernel/byte_tile.hpp"
#include "kvc/simd/transpose.hpp"

#if KVC_SIMD_BYTE_DOT

namespace kvc {
inline namespace v0 {
namespace detail {

/// Weights of four groups, of four positions each: sixteen bytes; a vector of values has a group in each quarter.
struct NibbleValueDotTraits {
  using Number = simd::U32x16;
  using Sum = simd::U32x16;
  static constexpr int planes = 1;
  KVC_ALWAYS_INLINE static Number weight(const float* p) noexcept { return simd::spread_four(p); }
  KVC_ALWAYS_INLINE static Sum madd(const Number& w, const Number& x, const Sum& sum) noexcept {
    return simd::dot_bytes(sum, w, x);
  }
};

class NibbleTile {
  using Storage = StorageOf<Int4>;
  static constexpr Index quads = tile_keys / 4;
  static constexpr Index chunk_numbers = 128;  // four groups, whose codes are 64 bytes

 public:
  using Element = Int4;
  static constexpr bool exact_sums = true;
  static constexpr bool in_order = false;
  static constexpr Index key_pass = tile_keys;
  static constexpr int most_rows = kernel_rows;

  [[nodiscard]] static constexpr Index groups(Index dim) noexcept { return kvc::Element<Int4>::groups(dim); }
  [[nodiscard]] static constexpr Index chunks(Index dim) noexcept { return ceil_div(dim, chunk_numbers); }
  /// For each group: four words of its first 16 numbers, four of the others, and its sum over the scale; then the
  /// scale.
  [[nodiscard]] static constexpr Index query_floats(Index key_dim) noexcept { return padded(9 * groups(key_dim) + 1); }
  /// For each chunk: weights [quads][4], scales [4], minima [4].
  [[nodiscard]] static constexpr Index weight_floats(Index value_dim) noexcept {
    return padded(chunks(value_dim) * chunk_weights);
  }
  [[nodiscard]] static constexpr Index state_floats(Index value_dim) noexcept {
    return chunks(value_dim) * chunk_numbers;
  }
  [[nodiscard]] static constexpr Index output_index(Index d) noexcept {
    const Index in_group = d % 32;
    return d / chunk_numbers * chunk_numbers + in_group / 4 * simd::lanes + d % chunk_numbers / 32 * 4 + d % 4;
  }
  [[nodiscard]] static constexpr Index scratch_floats(Index key_dim, Index value_dim) noexcept {
    return tile_groups * group_floats(key_dim) + quads * state_floats(value_dim) + chunks(value_dim) * 8 * tile_keys +
           padded(4 * chunks(value_dim));
  }

  static void prepare_query(const float* q, Index key_dim, float* to) noexcept {
    const float largest = largest_magnitude(q, key_dim);
    const bool finite = largest <= std::numeric_limits<float>::max();
    const float scale = std::max(largest / 127, std::numeric_limits<float>::min());
    std::memset(to, 0, static_cast<std::size_t>(query_floats(key_dim)) * sizeof(float));
    for (Index d = 0; d < key_dim && finite; d += 32) {
      float* const group = to + d / 32 * 9;
      simd::F32x16 x[2];
      simd::detail::unroll<2>([&](auto i) __attribute__((always_inline)) {
        const Index from = d + i * simd::lanes;
        x[i] = simd::load_partial(q + from, std::clamp(key_dim - from, Index{0}, Index{simd::lanes})) /
               simd::broadcast(scale);
        simd::store_low_bytes(group + 4 * i, simd::to_integers(x[i]));
      });
      group[8] = simd::sum(x[0] + x[1]);
    }
    to[9 * groups(key_dim)] = finite ? scale : std::numeric_limits<float>::quiet_NaN();
  }

  NibbleTile(Index key_dim, Index value_dim, Scratch& scratch)
      : key_dim_(key_dim),
        value_dim_(value_dim),
        keys_(scratch.take(tile_groups * group_floats(key_dim))),
        values_(scratch.take(quads * state_floats(value_dim))),
        ranges_(scratch.take(chunks(value_dim) * 8 * tile_keys)),
        tops_(scratch.take(padded(4 * chunks(value_dim)))) {}

  void set(const KvTileRows<Int4>& rows, const KvTileRows<Int4>* next, Index count) noexcept {
    rows_ = &rows;
    once_ = count <= few_rows;
    if (once_ || next != nullptr) {
      const Index bytes = (rows.last - rows.first) * 16 * (groups(key_dim_) + groups(value_dim_));
      prefetcher_.begin_tile(rows, next, rows.lines(), once_ ? bytes / ByteSpan::line : 0, count);
    }
  }

  [[nodiscard]] Prefetcher& prefetcher() noexcept { return prefetcher_; }

  KVC_OUT_OF_LINE void load_keys() noexcept {
    const Index count = groups(key_dim_);
    for (Index g = rows_->first / simd::lanes; g < ceil_div(rows_->last, Index{simd::lanes}); ++g) {
      const Storage* const* const rows = rows_->k + g * simd::lanes;
      float* const to = keys_ + g * group_floats(key_dim_);
      simd::for_each_four_columns(
          rows, 0, 4 * count, [&](Index c, const simd::F32x16(&x)[4]) __attribute__((always_inline)) {
            prefetcher_.prefetch(2);  // half of 16 keys times 16 bytes; the other half is for scores
            simd::detail::unroll<4>([&](auto i) __attribute__((always_inline)) {
              float* const at = to + (c / 4 * 10 + i) * simd::lanes;
              simd::store_words(at, as_words(x[i]) & 0x0f0f0f0fU);
              simd::store_words(at + 4 * simd::lanes, (as_words(x[i]) >> 4) & 0x0f0f0f0fU);
            });
          });
      simd::for_each_column(rows, 4 * count, 5 * count,
                            [&](Index c, const simd::U32x16& x) __attribute__((always_inline)) {
                              float* const at = to + ((c - 4 * count) * 10 + 8) * simd::lanes;
                              simd::store(at, as_floats(x << 16));
                              simd::store(at + simd::lanes, as_floats(x & 0xffff0000U));
                            });
    }
  }

  template <int R>
  void scores_of_many(Index first, Index last, const float* q, Index q_stride, float* s) noexcept {
    scores<R>(first, last, q, q_stride, s);
  }
  template <int R>
  KVC_OUT_OF_LINE void scores(Index first, Index last, const float* q, Index q_stride, float* s) noexcept {
    const Index end = ceil_div(last, Index{simd::lanes});
    Index g = first / simd::lanes;
    for (; end - g >= 2; g += 2) {
      score_groups<R, 2>(g, q, q_stride, s);
    }
    if (g < end) {
      score_groups<R, 1>(g, q, q_stride, s);
    }
  }

  void load_values() noexcept {
    const Index count = groups(value_dim_);
    for (Index g = 0; g < tile_groups; ++g) {
      simd::for_each_column(rows_->v + g * simd::lanes, 4 * count, 5 * count,
                            [&](Index c, const simd::U32x16& x) __attribute__((always_inline)) {
                              float* const to = ranges_ + (c - 4 * count) * 2 * tile_keys + g * simd::lanes;
                              simd::store(to, as_floats(x << 16));
                              simd::store(to + tile_keys, as_floats(x & 0xffff0000U));
                            });
    }
    for (Index chunk = 0; chunk < chunks(value_dim_); ++chunk) {
      simd::store_four(tops_ + 4 * chunk, largest_scales(chunk, ~std::uint64_t{0}));
    }
    if (!once_) {
      for (Index u = rows_->first / 4; u < ceil_div(rows_->last, Index{4}); ++u) {
        for (Index d = 0; d < value_dim_; d += chunk_numbers) {
          simd::U32x16 x[4];
          load_four(u, d, x);
          float* const to = values_ + u * state_floats(value_dim_) + d;
          simd::detail::unroll<4>([&](auto k) __attribute__((always_inline)) {
            simd::store_words(to + k * simd::lanes, x[k] & 0x0f0f0f0fU);
            simd::store_words(to + (4 + k) * simd::lanes, (x[k] >> 4) & 0x0f0f0f0fU);
          });
        }
      }
    }
  }

  /// w = p times the scales of the groups, as integers; 0 where a position is not visible, whatever its scales.
  void encode_weights(const float* p, std::uint64_t visible, float* w) noexcept {
    prefetcher_.prefetch_with_row();
    simd::F32x16 weight[tile_groups];
    simd::detail::unroll<int{tile_groups}>(
        [&](auto g) __attribute__((always_inline)) { weight[g] = simd::load(p + g * simd::lanes); });
    const simd::F32x4 largest_weight =
        simd::max(simd::max(simd::max(weight[0], weight[1]), simd::max(weight[2], weight[3]))) - simd::F32x4{};
    const Index count = groups(value_dim_);
    for (Index chunk = 0; chunk < chunks(value_dim_); ++chunk, w += chunk_weights) {
      // An upper bound of the products: that of a tile that is seen as a whole is known.
      const simd::F32x4 top = visible == ~std::uint64_t{0} ? load_tops(chunk) : largest_scales(chunk, visible);
      const simd::F32x4 largest = largest_weight * top;
      const simd::F32x4 factor = largest < 0x1p-100F ? simd::F32x4{} : 255.0F / largest;
      simd::F32x16 minima[4];
      simd::U32x16 codes[4][tile_groups];
      simd::detail::unroll<4>([&](auto i) __attribute__((always_inline)) {
        const bool present = 4 * chunk + i < count;
        const float* const scales = ranges_ + (4 * chunk + i) * 2 * tile_keys;
        const simd::F32x16 of_group = simd::broadcast(factor[int{i}]);
        minima[i] = simd::zero();
        simd::detail::unroll<int{tile_groups}>([&](auto g) __attribute__((always_inline)) {
          const auto mask = static_cast<__mmask16>(present ? visible >> (g * simd::lanes) : 0);
          const simd::F32x16 product = {
              {_mm512_maskz_mul_ps(mask, weight[g].part[0], simd::load(scales + g * simd::lanes).part[0])}};
          minima[i] = {{_mm512_mask3_fmadd_ps(
              weight[g].part[0], simd::load(scales + tile_keys + g * simd::lanes).part[0], minima[i].part[0], mask)}};
          codes[i][g] = simd::to_integers(product * of_group);
        });
      });
      simd::store_four(w + 4 * quads, largest / 255.0F);
      simd::store_four(w + 4 * quads + 4, simd::sum_each(minima[0], minima[1], minima[2], minima[3]));
      simd::detail::unroll<int{tile_groups}>([&](auto g) __attribute__((always_inline)) {
        simd::store_words(w + g * simd::lanes, simd::join_bytes(codes[0][g], codes[1][g], codes[2][g], codes[3][g]));
      });
    }
  }

  /// to = to * rescale + what all visible positions add.
  template <int R>
  KVC_OUT_OF_LINE void add_values(const float* w, Index first, Index last, float* to, const float* rescale) noexcept {
    const Index pad = state_floats(value_dim_);
    for (Index d = 0; d < pad; d += chunk_numbers, w += chunk_weights) {
      if (once_) {
        add_half<R, 0, true>(w, first, last, d, to + d, rescale);
        add_half<R, 1, true>(w, first, last, d, to + d + 4 * simd::lanes, rescale);
      } else {
        add_half<R, 0, false>(w, first, last, d, to + d, rescale);
        add_half<R, 1, false>(w, first, last, d, to + d + 4 * simd::lanes, rescale);
      }
    }
  }

 private:
  static constexpr Index chunk_weights = 4 * quads + 8;
  /// For each group of 32 numbers: eight columns of codes, scales, minima.
  [[nodiscard]] static constexpr Index group_floats(Index dim) noexcept { return groups(dim) * 10 * simd::lanes; }

  /// The largest scales of the four groups of a chunk, over the positions that are visible.
  [[nodiscard]] KVC_ALWAYS_INLINE simd::F32x4 largest_scales(Index chunk, std::uint64_t visible) const noexcept {
    simd::F32x16 top[4];
    simd::detail::unroll<4>([&](auto i) __attribute__((always_inline)) {
      const bool present = 4 * chunk + i < groups(value_dim_);
      simd::F32x16 x[tile_groups];
      simd::detail::unroll<int{tile_groups}>([&](auto g) __attribute__((always_inline)) {
        const auto mask = static_cast<__mmask16>(present ? visible >> (g * simd::lanes) : 0);
        x[g] = {{_mm512_maskz_loadu_ps(mask, ranges_ + (4 * chunk + i) * 2 * tile_keys + g * simd::lanes)}};
      });
      top[i] = simd::max(simd::max(x[0], x[1]), simd::max(x[2], x[3]));
    });
    return simd::max_each(top[0], top[1], top[2], top[3]);
  }
  [[nodiscard]] KVC_ALWAYS_INLINE simd::F32x4 load_tops(Index chunk) const noexcept {
    simd::F32x4 top;
    std::memcpy(&top, tops_ + 4 * chunk, sizeof top);
    return top;
  }

  template <int R, int C>
  KVC_ALWAYS_INLINE void score_groups(Index g, const float* q, Index q_stride, float* s) noexcept {
    const Index size = group_floats(key_dim_), count = groups(key_dim_);
    simd::F32x16 total[R][C] = {};
    const float* keys = keys_ + g * size;
    const float* query = q;
    for (Index i = 0; i < count; ++i, keys += 10 * simd::lanes, query += 9) {
      prefetcher_.prefetch(2 * C);
      simd::U32x16 sum[R][C] = {};
      simd::detail::unroll<8>([&](auto c) __attribute__((always_inline)) {
        add_byte_column<R, 1>(query + c, q_stride, 0, keys + c * simd::lanes, size, sum);
      });
      simd::detail::unroll<R * C>([&](auto n) __attribute__((always_inline)) {
        constexpr int r = n / C, k = n % C;
        const float* const range = keys + k * size + 8 * simd::lanes;
        total[r][k] = simd::madd(to_floats(sum[r][k]), simd::load(range), total[r][k]);
        total[r][k] =
            simd::madd(simd::load(range + simd::lanes), simd::broadcast(query[r * q_stride + 8]), total[r][k]);
      });
    }
    simd::detail::unroll<R * C>([&](auto n) __attribute__((always_inline)) {
      constexpr int r = n / C, k = n % C;
      simd::store(s + r * tile_keys + (g + k) * simd::lanes,
                  total[r][k] * simd::broadcast(q[r * q_stride + 9 * count]));
    });
  }

  /// Codes of four groups of the values of positions [4 u, 4 u + 4): vector k has numbers 4 k + [0, 4) of each group
  /// in its lower halves of bytes, and 16 + 4 k + [0, 4) in its upper.
  KVC_ALWAYS_INLINE void load_four(Index u, Index d, simd::U32x16 (&x)[4]) const noexcept {
    const Index bytes = 16 * groups(value_dim_) - d / 2;
    simd::U32x16 row[4];
    simd::detail::unroll<4>([&](auto i) __attribute__((always_inline)) {
      const Storage* const at = rows_->v[4 * u + i] + d / 2;
      row[i] = simd::load_bytes(at, bytes);
    });
    simd::U32x16 half[2];
    interleave_four<0>(row, half);
    x[0] = half[0];
    x[1] = half[1];
    interleave_four<1>(row, half);
    x[2] = half[0];
    x[3] = half[1];
  }

  template <int R, int half, bool from_rows>
  KVC_ALWAYS_INLINE void add_half(const float* w, Index first, Index last, Index d, float* to,
                                  const float* rescale) noexcept {
    const Index pad = state_floats(value_dim_), stride = weight_floats(value_dim_);
    simd::U32x16 sum[R][4] = {};
    const Index end = ceil_div(last, Index{4});
    for (Index u = first / 4; u < end; ++u) {
      simd::U32x16 x[4];
      if constexpr (from_rows) {
        prefetcher_.prefetch(2);  // half of 4 rows of 64 bytes
        load_four(u, d, x);
        simd::detail::unroll<4>(
            [&](auto k) __attribute__((always_inline)) { x[k] = (half == 0 ? x[k] : x[k] >> 4) & 0x0f0f0f0fU; });
      } else {
        simd::detail::unroll<4>([&](auto k) __attribute__((always_inline)) {
          x[k] = simd::load_words(values_ + u * pad + d + (4 * half + k) * simd::lanes);
        });
      }
      add_weighted<NibbleValueDotTraits, R>(w + 4 * u, stride, 0, x, sum);
    }
    simd::F32x16 total[R][4];
    simd::detail::unroll<R>([&](auto i) __attribute__((always_inline)) {
      const simd::F32x16 scale = as_floats(simd::spread_four(w + i * stride + 4 * quads));
      const simd::F32x16 minimum = as_floats(simd::spread_four(w + i * stride + 4 * quads + 4));
      simd::detail::unroll<4>([&](auto k) __attribute__((always_inline)) {
        total[i][k] = simd::madd(to_floats(sum[i][k]), scale, minimum);
      });
    });
    store_sums<R, 4>(total, to, pad, rescale);
  }

  Index key_dim_;
  Index value_dim_;
  const KvTileRows<Int4>* rows_ = nullptr;
  bool once_ = false;
  Prefetcher prefetcher_;
  float* keys_;    // [groups of 16 keys][groups][10][16]
  float* values_;  // [quads][state_floats] words
  float* ranges_;  // [groups][scale, minimum][64]
  float* tops_;    // [groups] largest scale
};

}  // namespace detail
}  // namespace v0
}  // namespace kvc

#endif  // KVC_SIMD_BYTE_DOT
