// ByteTile: 64 positions of one head of Int8 where the processor multiplies bytes (simd::has_byte_dot).
//
// Queries and weights are rounded to integers of 15 and 16 bits, each an upper and a lower byte: the two planes of a
// row. Keys are transposed, so that word c of 16 keys is one vector and no sum goes across a vector. All sums of a tile
// are exact integers, so that their order does not matter:
//
//   score    (128 * sum of upper * code + sum of lower * code) * scale of the query * scale of the key
//   value    (256 * sum of upper * code + sum of lower * code) * scale of the weights, where the
//            weights hold the scales of the values
//
// Rounding moves an element of a query by at most 2^-15 of the largest of its row, and a weight by at most 2^-17 of the
// largest of its tile. Bounds on the output: kvc/attention/prefill.hpp.
#pragma once

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <limits>

#include "kvc/attention/kernel/kv_tile_rows.hpp"
#include "kvc/attention/kernel/scratch.hpp"
#include "kvc/attention/kernel/tile_base.hpp"
#include "kvc/core/types.hpp"
#include "kvc/element/element.hpp"
#include "kvc/element/quantized.hpp"
#include "kvc/simd/narrow.hpp"
#include "kvc/simd/transpose.hpp"
#include "kvc/simd/vec.hpp"

#if KVC_SIMD_BYTE_DOT

namespace kvc {
inline namespace v0 {
namespace detail {

/// Adds the products of one column, a word of four unsigned bytes of each of 16 keys, in C groups of keys, to the sums
/// of R rows of `planes` planes.
///
///   q  words of four signed bytes; rows lie `stride` apart, their planes `plane`
///   x  the column of each group
template <int R, int planes, int C>
KVC_ALWAYS_INLINE void add_bytes(const float* q, Index stride, Index plane, simd::U32x16 (&x)[C],
                                 simd::U32x16 (&sum)[R * planes][C]) noexcept {
  simd::detail::unroll<C>([&](auto k) __attribute__((always_inline)) { simd::pin(x[k]); });
  simd::detail::unroll<R * planes>([&](auto i) __attribute__((always_inline)) {
    simd::U32x16 w = simd::broadcast_word(q + i / planes * stride + i % planes * plane);
    simd::pin(w);
    simd::detail::unroll<C>([&](auto k)
                                __attribute__((always_inline)) { sum[i][k] = simd::dot_bytes(sum[i][k], x[k], w); });
  });
}

/// The same for a column in memory.
///
///   keys  column of the first group; those of the next begin `group` floats on
template <int R, int planes, int C>
KVC_ALWAYS_INLINE void add_byte_column(const float* q, Index stride, Index plane, const float* keys, Index group,
                                       simd::U32x16 (&sum)[R * planes][C]) noexcept {
  simd::U32x16 x[C];
  simd::detail::unroll<C>([&](auto k) __attribute__((always_inline)) { x[k] = simd::load_words(keys + k * group); });
  add_bytes<R, planes>(q, stride, plane, x, sum);
}

/// Weights are four unsigned bytes, of four positions; values are codes.
struct ByteValueDotTraits {
  using Operand = simd::U32x16;
  using Accumulator = simd::U32x16;
  static constexpr int planes = 2;
  KVC_ALWAYS_INLINE static Operand weight(const float* p) noexcept { return simd::broadcast_word(p); }
  KVC_ALWAYS_INLINE static Accumulator madd(const Operand& w, const Operand& x, const Accumulator& sum) noexcept {
    return simd::dot_bytes(sum, w, x);
  }
};

/// Words of four values of one element, from four rows of 64 bytes: two of the four vectors, which hold elements
/// 16 l + 8 half + [0, 4) and + [4, 8) in quarter l.
template <int half>
KVC_ALWAYS_INLINE void interleave_four(const simd::U32x16 (&row)[4], simd::U32x16 (&x)[2]) noexcept {
  const auto pairs = [](const simd::U32x16& a, const simd::U32x16& b) __attribute__((always_inline)) {
    return half == 0 ? interleave_low8(a, b) : interleave_high8(a, b);
  };
  const simd::U32x16 first = pairs(row[0], row[1]), second = pairs(row[2], row[3]);
  x[0] = interleave_low16(first, second);
  x[1] = interleave_high16(first, second);
}

/// The largest magnitude of n elements; NaN if any is.
inline float largest_magnitude(const float* x, Index n) noexcept {
  simd::F32x16 top = simd::zero();
  for (Index i = 0; i < n; i += simd::lanes) {
    const simd::F32x16 some = simd::load_partial(x + i, std::min(Index{simd::lanes}, n - i));
    top = simd::max(top, as_floats(as_words(some) & 0x7fffffffU));
  }
  return simd::max(top);
}

/// The tile of Int8: see the head of this file.
class ByteTile : public IntegerSumTile<ByteTile, Int8> {
  using Base = IntegerSumTile<ByteTile, Int8>;
  using Storage = StorageOf<Int8>;
  static constexpr Index quads = tile_keys / 4;

 public:
  [[nodiscard]] static constexpr Index columns(Index key_dim) noexcept { return ceil_div(key_dim, Index{4}); }
  /// Two planes, then what their sums begin with, then the scale.
  [[nodiscard]] static constexpr Index query_floats(Index key_dim) noexcept { return padded(2 * columns(key_dim) + 3); }
  /// Two planes, then the scale.
  [[nodiscard]] static constexpr Index weight_floats(Index) noexcept { return padded(2 * quads + 1); }
  [[nodiscard]] static constexpr Index state_floats(Index value_dim) noexcept {
    return ceil_div(value_dim, Index{64}) * 64;
  }
  [[nodiscard]] static constexpr Index output_index(Index d) noexcept {
    return d / 64 * 64 + d % 16 / 4 * simd::lanes + d % 64 / 16 * 4 + d % 4;
  }
  [[nodiscard]] static constexpr Index scratch_floats(Index key_dim, Index value_dim) noexcept {
    return tile_groups * group_floats(key_dim) + quads * state_floats(value_dim) + 2 * tile_keys;
  }

  static void prepare_query(const float* q, Index key_dim, float* to) noexcept {
    const float largest = largest_magnitude(q, key_dim);
    const bool finite = largest <= std::numeric_limits<float>::max();
    const float scale = std::max(largest / (127 * 128), std::numeric_limits<float>::min());
    std::memset(to, 0, static_cast<std::size_t>(query_floats(key_dim)) * sizeof(float));
    auto* const upper = reinterpret_cast<std::int8_t*>(to);
    auto* const lower = upper + 4 * columns(key_dim);
    simd::U32x16 upper_sum{}, lower_sum{};
    for (Index d = 0; d < key_dim && finite; d += simd::lanes) {
      const Index count = std::min(Index{simd::lanes}, key_dim - d);
      const simd::U32x16 code = simd::to_integers(simd::load_partial(q + d, count) / simd::broadcast(scale));
      const simd::U32x16 high = simd::shift_signed(code + simd::words(_mm512_set1_epi32(64)), 7);
      const simd::U32x16 low = code - (high << 7);
      simd::store_low_bytes(upper + d, high, count);
      simd::store_low_bytes(lower + d, low, count);
      upper_sum = upper_sum + high;
      lower_sum = lower_sum + low;
    }
    // Keys are codes + 128. (These sums are exact as floats.)
    const float of_codes[2] = {simd::sum(to_floats(upper_sum)), simd::sum(to_floats(lower_sum))};
    const std::int32_t sums[2] = {-128 * static_cast<std::int32_t>(of_codes[0]),
                                  -128 * static_cast<std::int32_t>(of_codes[1])};
    float* const rest = to + 2 * columns(key_dim);
    std::memcpy(rest, sums, sizeof sums);
    rest[2] = finite ? scale : std::numeric_limits<float>::quiet_NaN();
  }

  ByteTile(Index key_dim, Index value_dim, float /*scale*/, Scratch& scratch)
      : Base(key_dim, value_dim),
        keys_(scratch.take(tile_groups * group_floats(key_dim))),
        values_(scratch.take(quads * state_floats(value_dim))),
        key_scales_(scratch.take(tile_keys)),
        value_scales_(scratch.take(tile_keys)) {}

  void set(const KvTileRows<Int8>& rows, const KvTileRows<Int8>* next, Index count) noexcept {
    begin_tile(rows, next, count, key_dim_ + value_dim_);
  }

  KVC_OUT_OF_LINE void load_keys() noexcept {
    const Index count = columns(key_dim_);
    const ScaleRows<Int8> scales = rows_->key_scales(key_dim_);
    Prefetcher prefetcher = prefetcher_;  // in registers
    for (Index g = rows_->first / simd::lanes; g < ceil_div(rows_->last, Index{simd::lanes}); ++g) {
      const Storage* const* const rows = rows_->k + g * simd::lanes;
      float* const to = keys_ + g * group_floats(key_dim_);
      simd::for_each_column(rows, 0, count, [&](Index c, const simd::U32x16& x) __attribute__((always_inline)) {
        if (c % 8 == 0) {
          prefetcher.prefetch(4);  // half of 16 keys times 32 bytes; the other half is for scores
        }
        simd::store_words(to + c * simd::lanes, simd::words(_mm512_xor_si512(simd::raw(x), _mm512_set1_epi8(-128))));
      });
      simd::store(key_scales_ + g * simd::lanes, simd::load_column(scales.rows + g * simd::lanes, scales.offset));
    }
    prefetcher_ = prefetcher;
  }

  void load_values() noexcept {
    const ScaleRows<Int8> scales = rows_->value_scales(value_row_dim());
    for (Index j = 0; j < tile_keys; j += simd::lanes) {
      simd::store(value_scales_ + j, simd::load_column(scales.rows + j, scales.offset));
    }
    if (!once_) {
      for (Index u = rows_->first / 4; u < ceil_div(rows_->last, Index{4}); ++u) {
        for (Index d = 0; d < value_dim_; d += 64) {
          simd::U32x16 row[4], x[2];
          load_four(u, d, row);
          float* const to = values_ + u * state_floats(value_dim_) + d;
          interleave_four<0>(row, x);
          simd::store_words(to, x[0]);
          simd::store_words(to + simd::lanes, x[1]);
          interleave_four<1>(row, x);
          simd::store_words(to + 2 * simd::lanes, x[0]);
          simd::store_words(to + 3 * simd::lanes, x[1]);
        }
      }
    }
  }

  /// w = p times the scales of the values, as integers; 0 where a position is not visible, whatever its scale.
  void encode_weights(const float* p, float, std::uint64_t visible, float* w) noexcept {
    constexpr float most = 65535;  // of 16 bits
    prefetcher_.prefetch_with_row();
    simd::F32x16 x[tile_groups];
    for (int g = 0; g < tile_groups; ++g) {
      const auto mask = static_cast<__mmask16>(visible >> (g * simd::lanes));
      x[g] = {{_mm512_maskz_mul_ps(mask, simd::load(p + g * simd::lanes).part[0],
                                   simd::load(value_scales_ + g * simd::lanes).part[0])}};
    }
    const float largest = simd::max(simd::max(simd::max(x[0], x[1]), simd::max(x[2], x[3])));
    float step = largest / most, factor = most * (1.0F / largest);
    if (largest < 0x1p-100F) [[unlikely]] {  // neither may leave the normal numbers
      step = std::max(step, std::numeric_limits<float>::min());
      factor = 0x1p-100F / step;
      simd::detail::unroll<int{tile_groups}>(
          [&](auto g) __attribute__((always_inline)) { x[g] = x[g] * simd::broadcast(0x1p100F); });
    }
    const simd::F32x16 to_codes = simd::broadcast(factor);
    simd::U32x16 upper[tile_groups], lower[tile_groups];
    simd::detail::unroll<int{tile_groups}>([&](auto g) __attribute__((always_inline)) {
      const simd::U32x16 code = simd::to_integers(x[g] * to_codes);
      upper[g] = code >> 8;
      lower[g] = code & 0xffU;
    });
    simd::store_words(w, simd::transpose_lanes(simd::join_bytes(upper[0], upper[1], upper[2], upper[3])));
    simd::store_words(w + quads, simd::transpose_lanes(simd::join_bytes(lower[0], lower[1], lower[2], lower[3])));
    w[2 * quads] = step;
  }

  /// to = to * rescale + what all visible positions add.
  template <int R>
  KVC_OUT_OF_LINE void add_values(const float* w, Index first, Index last, float* to, const float* rescale) noexcept {
    const Index pad = state_floats(value_dim_);
    for (Index d = 0; d < pad; d += 64) {
      if (once_) {
        add_half<R, 0, true>(w, first, last, d, to + d, rescale);
        add_half<R, 1, true>(w, first, last, d, to + d + 2 * simd::lanes, rescale);
      } else {
        add_half<R, 0, false>(w, first, last, d, to + d, rescale);
        add_half<R, 1, false>(w, first, last, d, to + d + 2 * simd::lanes, rescale);
      }
    }
  }

  /// Scores of R rows and C groups of 16 keys from g on: for IntegerSumTile.
  template <int R, int C>
  KVC_ALWAYS_INLINE void score_groups(Index g, const float* q, Index q_stride, float* s) noexcept {
    const Index count = columns(key_dim_), group = group_floats(key_dim_);
    const float* const rest = q + 2 * count;
    simd::U32x16 sum[2 * R][C];
    simd::detail::unroll<2 * R * C>([&](auto n) __attribute__((always_inline)) {
      sum[n / C][n % C] = simd::broadcast_word(rest + n / C / 2 * q_stride + n / C % 2);
    });
    Prefetcher prefetcher = prefetcher_;  // in registers
    for (Index c = 0; c < count; ++c) {
      if (c % 8 == 0) {
        prefetcher.prefetch(4 * C);
      }
      add_byte_column<R, 2>(q + c, q_stride, count, keys_ + g * group + c * simd::lanes, group, sum);
    }
    prefetcher_ = prefetcher;
    simd::detail::unroll<R * C>([&](auto n) __attribute__((always_inline)) {
      constexpr int i = n / C, k = n % C;
      const simd::F32x16 x =
          simd::madd(to_floats(sum[2 * i][k]), simd::broadcast(128.0F), to_floats(sum[2 * i + 1][k]));
      simd::store(s + i * tile_keys + (g + k) * simd::lanes,
                  x * simd::broadcast(rest[i * q_stride + 2]) * simd::load(key_scales_ + (g + k) * simd::lanes));
    });
  }

 private:
  [[nodiscard]] static constexpr Index group_floats(Index dim) noexcept { return columns(dim) * simd::lanes; }

  /// Elements [d, d + 64) of the values of positions [4 u, 4 u + 4).
  KVC_ALWAYS_INLINE void load_four(Index u, Index d, simd::U32x16 (&row)[4]) const noexcept {
    const Index bytes = value_dim_ - d;
    simd::detail::unroll<4>([&](auto i) __attribute__((always_inline)) {
      const Storage* const at = rows_->v[4 * u + i] + d;
      row[i] = simd::load_bytes(at, bytes);
    });
  }

  template <int R, int half, bool from_rows>
  KVC_ALWAYS_INLINE void add_half(const float* w, Index first, Index last, Index d, float* to,
                                  const float* rescale) noexcept {
    const Index pad = state_floats(value_dim_), stride = weight_floats(value_dim_);
    simd::U32x16 sum[2 * R][2] = {};
    const Index end = ceil_div(last, Index{4});
    Prefetcher prefetcher = prefetcher_;  // in registers
    for (Index u = first / 4; u < end; ++u) {
      simd::U32x16 x[2];
      if constexpr (from_rows) {
        prefetcher.prefetch(2);  // half of 4 rows of 64 bytes
        simd::U32x16 row[4];
        load_four(u, d, row);
        interleave_four<half>(row, x);
      } else {
        simd::detail::unroll<2>([&](auto k) __attribute__((always_inline)) {
          x[k] = simd::load_words(values_ + u * pad + d + (2 * half + k) * simd::lanes);
        });
      }
      add_weighted<ByteValueDotTraits, R>(w + u, stride, quads, x, sum);
    }
    prefetcher_ = prefetcher;
    simd::F32x16 total[R][2];
    simd::detail::unroll<R * 2>([&](auto n) __attribute__((always_inline)) {
      constexpr int i = n / 2, k = n % 2;
      total[i][k] = simd::madd(to_floats(sum[2 * i][k]), simd::broadcast(256.0F), to_floats(sum[2 * i + 1][k])) *
                    simd::broadcast(w[i * stride + 2 * quads]);
    });
    store_sums<R, 2>(total, to, pad, rescale);
  }

  float* keys_;    // [groups of 16 keys][columns][16] words
  float* values_;  // [quads][state_floats] words
  float* key_scales_;
  float* value_scales_;
};

}  // namespace detail
}  // namespace v0
}  // namespace kvc

#endif  // KVC_SIMD_BYTE_DOT
