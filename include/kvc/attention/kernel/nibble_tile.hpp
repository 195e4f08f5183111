// NibbleTile: 64 positions of one head of Int4, where the processor multiplies bytes (simd::has_byte_dot).
//
// Sums within a group of 32 elements, and within a tile, are exact integers:
//
//   score    scale of the query * sum over groups g of  (key scale of g * sum of query code * key code
//                                                        + key minimum of g * sum of the query's elements in g),
//            groups in ascending order, the two terms of each in this order
//   value    for each element of group g:  step of g * sum of weight code * (value code - 8)  +  sum of p * middle of g
//            with middle = minimum + 8 * scale, so that the rounding of a weight is multiplied by at most 8
//
// Query codes have 12 bits: attention/kernel/nibble_query.hpp.
//
// Rounding moves an element of a query by about 2^-12 of the largest of its row, and a weight by at most 2^-9 of the
// largest of its tile. Bounds on the output: kvc/attention/prefill.hpp.
#pragma once

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <limits>
#include <type_traits>

#include "kvc/attention/kernel/byte_tile.hpp"
#include "kvc/attention/kernel/kv_tile_rows.hpp"
#include "kvc/attention/kernel/nibble_query.hpp"
#include "kvc/core/types.hpp"
#include "kvc/element/element.hpp"
#include "kvc/simd/transpose.hpp"
#include "kvc/simd/vec.hpp"

#if KVC_SIMD_BYTE_DOT

namespace kvc {
inline namespace v0 {
namespace detail {

/// Weights of four groups, of four positions each: sixteen bytes. A vector of values has a group in each quarter, or,
/// if its lanes are transposed, in each fourth lane, where weights cost a load and no shuffle.
template <bool transposed>
struct NibbleValueDotTraits {
  using Operand = simd::U32x16;
  using Accumulator = simd::U32x16;
  static constexpr int planes = 1;
  KVC_ALWAYS_INLINE static Operand weight(const float* p) noexcept {
    return transposed ? simd::repeat_four(p) : simd::spread_four(p);
  }
  KVC_ALWAYS_INLINE static Accumulator madd(const Operand& w, const Operand& x, const Accumulator& sum) noexcept {
    return simd::dot_bytes(sum, w, x);
  }
};

/// The tile of Int4: see the head of this file.
class NibbleTile : public IntegerSumTile<NibbleTile, Int4> {
  using Base = IntegerSumTile<NibbleTile, Int4>;
  using Storage = StorageOf<Int4>;
  static constexpr Index quads = tile_keys / 4;
  static constexpr Index chunk_elements = 128;  // four groups, whose codes are 64 bytes
  static constexpr Index query_words = 13;      // of a group: x, y, z, and the sum of its elements
  static constexpr Index key_words = 14;        // of a group: bytes, codes of low and of high halves, scale, minimum

 public:
  [[nodiscard]] static constexpr Index groups(Index dim) noexcept { return kvc::Element<Int4>::groups(dim); }
  [[nodiscard]] static constexpr Index chunks(Index dim) noexcept { return ceil_div(dim, chunk_elements); }
  /// Groups, then the scale.
  [[nodiscard]] static constexpr Index query_floats(Index key_dim) noexcept {
    return padded(query_words * groups(key_dim) + 1);
  }
  /// For each chunk: weights [quads][4], steps [4], sums over the middles [4].
  [[nodiscard]] static constexpr Index weight_floats(Index value_dim) noexcept {
    return padded(chunks(value_dim) * chunk_weights);
  }
  [[nodiscard]] static constexpr Index state_floats(Index value_dim) noexcept {
    return chunks(value_dim) * chunk_elements;
  }
  [[nodiscard]] static constexpr Index output_index(Index d) noexcept {
    const Index in_group = d % 32;
    return d / chunk_elements * chunk_elements + in_group / 4 * simd::lanes + d % chunk_elements / 32 * 4 + d % 4;
  }
  [[nodiscard]] static constexpr Index scratch_floats(Index key_dim, Index value_dim) noexcept {
    return tile_groups * group_floats(key_dim) + quads * state_floats(value_dim) + range_floats(value_dim) +
           padded(4 * chunks(value_dim));
  }

  static void prepare_query(const float* q, Index key_dim, float* to) noexcept {
    constexpr float most = NibbleQueryGroup::largest_code;
    const float largest = largest_magnitude(q, key_dim);
    const bool finite = largest <= std::numeric_limits<float>::max();
    const float step = std::max(largest / most, std::numeric_limits<float>::min());
    std::memset(to, 0, static_cast<std::size_t>(query_floats(key_dim)) * sizeof(float));
    for (Index d = 0; d < key_dim && finite; d += 32, to += query_words) {
      simd::F32x16 x[2];
      simd::detail::unroll<2>([&](auto i) __attribute__((always_inline)) {
        const Index from = d + i * simd::lanes;
        x[i] = simd::load_partial(q + from, std::clamp(key_dim - from, Index{0}, Index{simd::lanes})) /
               simd::broadcast(step);
      });
      NibbleQueryGroup codes;
      static_assert(sizeof codes == 12 * sizeof(float));
      codes.encode(x[0], x[1], key_dim - d);
      std::memcpy(to, &codes, sizeof codes);
      to[12] = 16 * simd::sum(x[0] + x[1]);  // sums of products are in sixteenths of a step
    }
    if (!finite) {
      to += query_words * groups(key_dim);
    }
    *to = finite ? step / 16 / key_factor : std::numeric_limits<float>::quiet_NaN();
  }

  NibbleTile(Index key_dim, Index value_dim, float /*scale*/, Scratch& scratch)
      : Base(key_dim, value_dim),
        keys_(scratch.take(tile_groups * group_floats(key_dim))),
        values_(scratch.take(quads * state_floats(value_dim))),
        ranges_(scratch.take(range_floats(value_dim))),
        tops_(scratch.take(padded(4 * chunks(value_dim)))) {
    std::fill_n(ranges_, range_floats(value_dim), 0.0F);  // those of the last chunk that no group has stay 0
  }

  void set(const KvTileRows<Int4>& rows, const KvTileRows<Int4>* next, Index count) noexcept {
    begin_tile(rows, next, count, 16 * (groups(key_dim_) + groups(value_dim_)));
  }

  KVC_OUT_OF_LINE void load_keys() noexcept {
    const Index count = groups(key_dim_);
    const simd::F32x16 factor = simd::broadcast(key_factor);
    const ScaleRows<Int4> scales = rows_->key_scales(key_dim_);
    const Index first_scale = scales.offset / 4;
    for (Index g = rows_->first / simd::lanes; g < ceil_div(rows_->last, Index{simd::lanes}); ++g) {
      const Storage* const* const rows = rows_->k + g * simd::lanes;
      float* const to = keys_ + g * group_floats(key_dim_);
      simd::for_each_four_columns(
          rows, 0, 4 * count, [&](Index c, const simd::F32x16(&x)[4]) __attribute__((always_inline)) {
            prefetcher_.prefetch(2);  // half of 16 keys times 16 bytes; the other half is for scores
            simd::detail::unroll<4>([&](auto i) __attribute__((always_inline)) {
              float* const at = to + (c / 4 * key_words + i) * simd::lanes;
              simd::store(at, x[i]);
              if (!once_) {
                simd::store_words(at + 4 * simd::lanes, as_words(x[i]) & 0x0f0f0f0fU);
                simd::store_words(at + 8 * simd::lanes, (as_words(x[i]) >> 4) & 0x0f0f0f0fU);
              }
            });
          });
      simd::for_each_column(scales.rows + g * simd::lanes, first_scale, first_scale + count,
                            [&](Index c, const simd::U32x16& x) __attribute__((always_inline)) {
                              float* const at = to + ((c - first_scale) * key_words + 12) * simd::lanes;
                              simd::store(at, as_floats(x << 16) * factor);
                              simd::store(at + simd::lanes, as_floats(x & 0xffff0000U) * factor);
                            });
    }
  }

  void load_values() noexcept {
    const ScaleRows<Int4> scales = rows_->value_scales(value_row_dim());
    const Index first = scales.offset / 4;  // the word of the first group
    for (Index g = 0; g < tile_groups; ++g) {
      simd::for_each_column(scales.rows + g * simd::lanes, first, first + groups(value_dim_),
                            [&](Index c, const simd::U32x16& x) __attribute__((always_inline)) {
                              Ranges& to = ranges(c - first);
                              const simd::F32x16 scale = as_floats(x << 16);
                              simd::store(to.scale + g * simd::lanes, scale);
                              simd::store(to.middle + g * simd::lanes,
                                          simd::madd(scale, simd::broadcast(8.0F), as_floats(x & 0xffff0000U)));
                            });
    }
    for (Index chunk = 0; chunk < chunks(value_dim_); ++chunk) {
      const simd::F32x4 top = largest_scales(chunk, ~std::uint64_t{0});
      simd::store_four(tops_ + 4 * chunk, top);
      simd::detail::unroll<4>([&](auto i) __attribute__((always_inline)) {
        Ranges& of_group = ranges(4 * chunk + i);
        const simd::F32x16 factor = simd::broadcast(255.0F / top[int{i}]);
        simd::detail::unroll<int{tile_groups}>([&](auto g) __attribute__((always_inline)) {
          const simd::F32x16 scale = simd::load(of_group.scale + g * simd::lanes);
          simd::store(of_group.relative + g * simd::lanes, scale * factor);
        });
      });
    }
    if (!once_) {
      for (Index u = rows_->first / 4; u < ceil_div(rows_->last, Index{4}); ++u) {
        for (Index d = 0; d < value_dim_; d += chunk_elements) {
          simd::U32x16 x[4];
          load_four(u, d, x);
          float* const to = values_ + u * state_floats(value_dim_) + d;
          simd::detail::unroll<4>([&](auto k) __attribute__((always_inline)) {
            simd::store_words(to + k * simd::lanes, simd::transpose_lanes(simd::signed_nibbles<0>(x[k])));
            simd::store_words(to + (4 + k) * simd::lanes, simd::transpose_lanes(simd::signed_nibbles<1>(x[k])));
          });
        }
      }
    }
  }

  /// w = p times the scales of the groups, as integers; 0 where a position is not visible, whatever its scales.
  void encode_weights(const float* p, float largest, std::uint64_t visible, float* w) noexcept {
    prefetcher_.prefetch_with_row();
    if (visible == ~std::uint64_t{0}) {
      encode_weights<true>(p, largest, visible, w);
    } else {
      encode_weights<false>(p, largest, visible, w);
    }
  }

  /// to = to * rescale + what all visible positions add.
  template <int R>
  KVC_OUT_OF_LINE void add_values(const float* w, Index first, Index last, float* to, const float* rescale) noexcept {
    const Index pad = state_floats(value_dim_);
    for (Index d = 0; d < pad; d += chunk_elements, w += chunk_weights) {
      if (is_half(d)) {
        add_half_of_pairs<R, 0>(w, first, last, d, to + d, rescale);
        add_half_of_pairs<R, 1>(w, first, last, d, to + d + 4 * simd::lanes, rescale);
      } else if (once_) {
        add_half<R, 0, From::rows>(w, first, last, d, to + d, rescale);
        add_half<R, 1, From::bytes>(w, first, last, d, to + d + 4 * simd::lanes, rescale);
      } else {
        add_half<R, 0, From::kept_codes>(w, first, last, d, to + d, rescale);
        add_half<R, 1, From::kept_codes>(w, first, last, d, to + d + 4 * simd::lanes, rescale);
      }
    }
  }

  /// Scores of R rows and C groups of 16 keys from g on: for IntegerSumTile.
  template <int R, int C>
  KVC_ALWAYS_INLINE void score_groups(Index g, const float* q, Index q_stride, float* s) noexcept {
    if (once_) {
      score_groups<R, C, true>(g, q, q_stride, s);
    } else {
      score_groups<R, C, false>(g, q, q_stride, s);
    }
  }

 private:
  template <int R, int C, bool from_bytes>
  KVC_ALWAYS_INLINE void score_groups(Index g, const float* q, Index q_stride, float* s) noexcept {
    const Index size = group_floats(key_dim_), count = groups(key_dim_);
    simd::F32x16 total[R][C] = {};
    const float* keys = keys_ + g * size;
    const float* query = q;
    for (Index i = 0; i < count; ++i, keys += key_words * simd::lanes, query += query_words) {
      prefetcher_.prefetch(2 * C);
      simd::U32x16 sum[R][C] = {};
      simd::detail::unroll<8>([&](auto c) __attribute__((always_inline)) {
        if constexpr (from_bytes) {
          simd::U32x16 x[C];
          simd::detail::unroll<C>([&](auto k) __attribute__((always_inline)) {
            const simd::U32x16 bytes = simd::load_words(keys + k * size + c % 4 * simd::lanes);
            x[k] = (c < 4 ? bytes : bytes >> 4) & 0x0f0f0f0fU;
          });
          add_bytes<R, 1>(query + c, q_stride, 0, x, sum);
        } else {
          add_byte_column<R, 1>(query + c, q_stride, 0, keys + (4 + c) * simd::lanes, size, sum);
        }
      });
      simd::detail::unroll<R * C>([&](auto n)
                                      __attribute__((always_inline)) { sum[n / C][n % C] = sum[n / C][n % C] << 8; });
      simd::detail::unroll<4>([&](auto c) __attribute__((always_inline)) {
        add_byte_column<R, 1>(query + 8 + c, q_stride, 0, keys + c * simd::lanes, size, sum);
      });
      simd::detail::unroll<R * C>([&](auto n) __attribute__((always_inline)) {
        constexpr int r = n / C, k = n % C;
        const float* const range = keys + k * size + 12 * simd::lanes;
        total[r][k] = simd::madd(to_floats(sum[r][k]), simd::load(range), total[r][k]);
        total[r][k] =
            simd::madd(simd::load(range + simd::lanes), simd::broadcast(query[r * q_stride + 12]), total[r][k]);
      });
    }
    simd::detail::unroll<R * C>([&](auto n) __attribute__((always_inline)) {
      constexpr int r = n / C, k = n % C;
      simd::store(s + r * tile_keys + (g + k) * simd::lanes,
                  total[r][k] * simd::broadcast(q[r * q_stride + query_words * count]));
    });
  }

  static constexpr Index chunk_weights = 4 * quads + 8;
  /// Scales and minima of keys are multiplied by it, and scores divided: codes and their sums are below 2^24, so that
  /// no key overflows a sum.
  static constexpr float key_factor = 0x1p-24F;
  /// Scales below this are read as if the largest of a tile were this, so that 255 / largest is finite.
  static constexpr float least_top = 0x1p-118F;

  /// Scale and middle of one group of values, for each position of the tile.
  struct Ranges {
    float scale[tile_keys];
    float relative[tile_keys];  ///< 255 for the largest scale of the tile
    float middle[tile_keys];    ///< what code 8 stands for
  };
  static_assert(sizeof(Ranges) == 3 * tile_keys * sizeof(float));
  [[nodiscard]] static constexpr Index range_floats(Index value_dim) noexcept {
    return 4 * chunks(value_dim) * 3 * tile_keys;
  }
  [[nodiscard]] KVC_ALWAYS_INLINE Ranges& ranges(Index group) const noexcept {
    return reinterpret_cast<Ranges*>(ranges_)[group];
  }

  /// For each group of 16 keys.
  [[nodiscard]] static constexpr Index group_floats(Index dim) noexcept {
    return groups(dim) * key_words * simd::lanes;
  }

  /// The largest scales of the four groups of a chunk over the positions that are visible, at least `least_top`.
  [[nodiscard]] KVC_ALWAYS_INLINE simd::F32x4 largest_scales(Index chunk, std::uint64_t visible) const noexcept {
    simd::F32x16 top[4];
    simd::detail::unroll<4>([&](auto i) __attribute__((always_inline)) {
      simd::F32x16 x[tile_groups];
      simd::detail::unroll<int{tile_groups}>([&](auto g) __attribute__((always_inline)) {
        const auto mask = static_cast<__mmask16>(visible >> (g * simd::lanes));
        x[g] = {{_mm512_maskz_loadu_ps(mask, ranges(4 * chunk + i).scale + g * simd::lanes)}};
      });
      top[i] = simd::max(simd::max(x[0], x[1]), simd::max(x[2], x[3]));
    });
    const simd::F32x4 largest = simd::max_each(top[0], top[1], top[2], top[3]), least = least_top - simd::F32x4{};
    simd::F32x4 tops = largest < least ? least : largest;  // NaN stays NaN
    for (Index i = std::max(groups(value_dim_) - 4 * chunk, Index{1}); i < 4; ++i) {
      tops[i] =
          1;  // of a group that is not there: arithmetic on the least one would be slow, its products are subnormal
    }
    return tops;
  }
  [[nodiscard]] KVC_ALWAYS_INLINE simd::F32x4 load_tops(Index chunk) const noexcept {
    simd::F32x4 top;
    std::memcpy(&top, tops_ + 4 * chunk, sizeof top);
    return top;
  }

  /// Whether few query rows read a chunk of at most two groups, from element d on. Vectors then have two fours of
  /// positions: those of quad u in their lower half, those of quad u + 4 in the upper.
  [[nodiscard]] bool is_half(Index d) const noexcept { return once_ && value_dim_ - d <= chunk_elements / 2; }

  template <bool all>
  KVC_ALWAYS_INLINE void encode_weights(const float* p, float largest, std::uint64_t visible, float* w) const noexcept {
    simd::F32x16 weight[tile_groups], relative[tile_groups];
    simd::detail::unroll<int{tile_groups}>(
        [&](auto g) __attribute__((always_inline)) { weight[g] = simd::load(p + g * simd::lanes); });
    constexpr float least = std::numeric_limits<float>::min();
    largest = largest < least ? least : largest;  // NaN stays NaN
    const simd::F32x16 factor = simd::broadcast(1.0F / largest);
    simd::detail::unroll<int{tile_groups}>([&](auto g)
                                               __attribute__((always_inline)) { relative[g] = weight[g] * factor; });
    const auto encode = [&](Index chunk, auto count) __attribute__((always_inline)) {
      const simd::F32x4 top = all ? load_tops(chunk) : largest_scales(chunk, visible);
      simd::F32x16 middles[4] = {};
      simd::U32x16 codes[count][tile_groups];
      simd::detail::unroll<count>([&](auto i) __attribute__((always_inline)) {
        const Ranges& of_group = ranges(4 * chunk + i);
        const simd::F32x16 scale_factor = simd::broadcast(255.0F / top[int{i}]);
        simd::detail::unroll<int{tile_groups}>([&](auto g) __attribute__((always_inline)) {
          const auto mask = static_cast<__mmask16>(all ? 0xffff : visible >> (g * simd::lanes));
          simd::F32x16 scale;
          if constexpr (all) {
            scale = simd::load(of_group.relative + g * simd::lanes);
            middles[i] = simd::madd(weight[g], simd::load(of_group.middle + g * simd::lanes), middles[i]);
          } else {
            scale = {{_mm512_maskz_mul_ps(mask, simd::load(of_group.scale + g * simd::lanes).part[0],
                                          scale_factor.part[0])}};
            middles[i] = {{_mm512_mask3_fmadd_ps(
                weight[g].part[0], simd::load(of_group.middle + g * simd::lanes).part[0], middles[i].part[0], mask)}};
          }
          codes[i][g] = simd::to_integers(relative[g] * scale);
        });
      });
      simd::store_four(w + 4 * quads, top * (largest / (16 * 255.0F)));  // values are in sixteenths
      simd::store_four(w + 4 * quads + 4, simd::sum_each(middles[0], middles[1], middles[2], middles[3]));
      if constexpr (count == 4) {
        simd::detail::unroll<int{tile_groups}>([&](auto g) __attribute__((always_inline)) {
          simd::store_words(w + g * simd::lanes, simd::join_bytes(codes[0][g], codes[1][g], codes[2][g], codes[3][g]));
        });
      } else {
        simd::detail::unroll<int{tile_groups / 2}>([&](auto n) __attribute__((always_inline)) {
          constexpr int g = 2 * n;
          simd::store_words(w + n * simd::lanes,
                            simd::join_bytes(codes[0][g], codes[1][g], codes[0][g + 1], codes[1][g + 1]));
        });
      }
    };
    for (Index chunk = 0; chunk < chunks(value_dim_); ++chunk, w += chunk_weights) {
      if (is_half(chunk * chunk_elements)) {
        encode(chunk, std::integral_constant<int, 2>{});
      } else {
        encode(chunk, std::integral_constant<int, 4>{});
      }
    }
  }

  /// Codes of four groups of the values of positions [4 u, 4 u + 4): vector k has elements 4 k + [0, 4) of each group
  /// in its lower halves of bytes, and 16 + 4 k + [0, 4) in its upper.
  KVC_ALWAYS_INLINE void load_four(Index u, Index d, simd::U32x16 (&x)[4]) const noexcept {
    const Index bytes = 16 * groups(value_dim_) - d / 2;
    simd::U32x16 row[4];
    simd::detail::unroll<4>([&](auto i) __attribute__((always_inline)) {
      const Storage* const at = rows_->v[4 * u + i] + d / 2;
      row[i] = simd::load_bytes(at, bytes);
    });
    interleave_rows(row, x);
  }
  /// The same of two groups, of positions [4 u, 4 u + 4) in the lower half of each vector and of those 16 further on in
  /// the upper.
  KVC_ALWAYS_INLINE void load_pair_of_fours(Index u, Index d, simd::U32x16 (&x)[4]) const noexcept {
    const Index bytes = 16 * groups(value_dim_) - d / 2;
    const auto there = static_cast<__mmask32>(bytes >= 32 ? 0xffffffffU : (1U << bytes) - 1U);
    simd::U32x16 row[4];
    simd::detail::unroll<4>([&](auto i) __attribute__((always_inline)) {
      const __m256i low = _mm256_maskz_loadu_epi8(there, rows_->v[4 * u + i] + d / 2);
      const __m256i high = _mm256_maskz_loadu_epi8(there, rows_->v[4 * u + simd::lanes + i] + d / 2);
      row[i] = simd::words(_mm512_maskz_inserti64x4(0xff, _mm512_castsi256_si512(low), high, 1));
    });
    interleave_rows(row, x);
  }
  KVC_ALWAYS_INLINE static void interleave_rows(const simd::U32x16 (&row)[4], simd::U32x16 (&x)[4]) noexcept {
    simd::U32x16 half[2];
    interleave_four<0>(row, half);
    x[0] = half[0];
    x[1] = half[1];
    interleave_four<1>(row, half);
    x[2] = half[0];
    x[3] = half[1];
  }

  /// Where the elements of a half of bytes come from.
  enum class From {
    rows,        ///< the rows of the cache; their bytes are kept for the other half
    bytes,       ///< those bytes
    kept_codes,  ///< what load_values made, with transposed lanes
  };

  template <int R, int half, From from>
  KVC_ALWAYS_INLINE void add_half(const float* w, Index first, Index last, Index d, float* to,
                                  const float* rescale) noexcept {
    const Index pad = state_floats(value_dim_), stride = weight_floats(value_dim_);
    simd::U32x16 sum[R][4] = {};
    const Index end = ceil_div(last, Index{4});
    for (Index u = first / 4; u < end; ++u) {
      simd::U32x16 x[4];
      float* const kept = values_ + u * pad + d + (from == From::kept_codes ? 4 * half * simd::lanes : 0);
      if constexpr (from != From::kept_codes) {
        prefetcher_.prefetch(2);  // half of 4 rows of 64 bytes
      }
      if constexpr (from == From::rows) {
        load_four(u, d, x);
      }
      simd::detail::unroll<4>([&](auto k) __attribute__((always_inline)) {
        if constexpr (from == From::rows) {
          simd::store_words(kept + k * simd::lanes, x[k]);
        } else {
          x[k] = simd::load_words(kept + k * simd::lanes);
        }
        if constexpr (from != From::kept_codes) {
          x[k] = simd::signed_nibbles<half>(x[k]);
        }
      });
      add_weighted<NibbleValueDotTraits<from == From::kept_codes>, R>(w + 4 * u, stride, 0, x, sum);
    }
    finish<R, from == From::kept_codes>(sum, w, to, rescale);
  }

  /// The same of a chunk of at most two groups, from the rows of the cache (half 0) or from the bytes that were kept.
  template <int R, int half>
  KVC_ALWAYS_INLINE void add_half_of_pairs(const float* w, Index first, Index last, Index d, float* to,
                                           const float* rescale) noexcept {
    constexpr Index together = 2 * simd::lanes;  // positions of four vectors
    simd::U32x16 sum[R][4] = {};
    for (Index v = first / together * 4; v < ceil_div(last, together) * 4; ++v) {
      simd::U32x16 x[4];
      float* const kept = values_ + v * 4 * simd::lanes;
      prefetcher_.prefetch(2);  // half of 8 rows of 32 bytes
      if constexpr (half == 0) {
        load_pair_of_fours(v / 4 * 8 + v % 4, d, x);
      }
      simd::detail::unroll<4>([&](auto k) __attribute__((always_inline)) {
        if constexpr (half == 0) {
          simd::store_words(kept + k * simd::lanes, x[k]);
        } else {
          x[k] = simd::load_words(kept + k * simd::lanes);
        }
        x[k] = simd::signed_nibbles<half>(x[k]);
      });
      add_weighted<NibbleValueDotTraits<false>, R>(w + 4 * v, weight_floats(value_dim_), 0, x, sum);
    }
    simd::detail::unroll<R * 4>([&](auto n) __attribute__((always_inline)) {
      const __m512i all = simd::raw(sum[n / 4][n % 4]);
      const __m512i upper = _mm512_maskz_shuffle_i64x2(0xff, all, all, 0x4e);
      sum[n / 4][n % 4] = simd::words(_mm512_maskz_add_epi32(0xff, all, upper));
    });
    finish<R, false>(sum, w, to, rescale);
  }

  /// to = to * rescale + the weighted values of half of a chunk, from their integer sums.
  template <int R, bool transposed>
  KVC_ALWAYS_INLINE void finish(simd::U32x16 (&sum)[R][4], const float* w, float* to,
                                const float* rescale) const noexcept {
    const Index pad = state_floats(value_dim_), stride = weight_floats(value_dim_);
    // Otherwise g++ stores the sums in each turn of the loop.
    simd::detail::unroll<R * 4>([&](auto n) __attribute__((always_inline)) { simd::pin(sum[n / 4][n % 4]); });
    simd::F32x16 total[R][4];
    simd::detail::unroll<R>([&](auto i) __attribute__((always_inline)) {
      const simd::F32x16 step = as_floats(simd::spread_four(w + i * stride + 4 * quads));
      const simd::F32x16 middle = as_floats(simd::spread_four(w + i * stride + 4 * quads + 4));
      simd::detail::unroll<4>([&](auto k) __attribute__((always_inline)) {
        const simd::U32x16 of_group = transposed ? simd::transpose_lanes(sum[i][k]) : sum[i][k];
        total[i][k] = simd::madd(to_floats(of_group), step, middle);
      });
    });
    store_sums<R, 4>(total, to, pad, rescale);
  }

  float* keys_;    // [groups of 16 keys][groups][key_words][16]
  float* values_;  // [quads][state_floats] words, of codes or (few rows) of bytes
  float* ranges_;  // [groups] Ranges
  float* tops_;    // [groups] largest scale
};

}  // namespace detail
}  // namespace v0
}  // namespace kvc

#endif  // KVC_SIMD_BYTE_DOT
