// Bf16Tile: 64 positions of one head where the processor multiplies bfloat16 (simd::has_bf16_dot), at twice the rate
// of floats.
//
// For types whose elements are bfloat16 numbers, which includes Fp8E4M3. Queries and weights are rounded to
// bfloat16; all sums are floats. One instruction multiplies and adds a pair of elements:
//
//   keys     lane l of a sum is a chain over words l, l + 16, l + 32 ... of two elements each; a score is their fold,
//            times the part of the scale that is no power of two: a query that was exact in bfloat16 stays exact
//   values   words of the same number of positions 2 u and 2 u + 1; a sum is a chain over u, ascending
//
// A position of a pair that a row must not see is read as zeros.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <type_traits>

#include "kvc/attention/kernel/kernels.hpp"
#include "kvc/attention/kernel/scratch.hpp"
#include "kvc/attention/kernel/tile_base.hpp"
#include "kvc/core/types.hpp"
#include "kvc/element/element.hpp"
#include "kvc/element/float16.hpp"
#include "kvc/element/quantized.hpp"
#include "kvc/simd/convert.hpp"
#include "kvc/simd/narrow.hpp"
#include "kvc/simd/vec.hpp"

#if KVC_SIMD_BF16_DOT

namespace kvc {
inline namespace v0 {
namespace detail {

/// Pairs of bfloat16 numbers.
struct Bf16DotTraits {
  using Operand = simd::U32x16;
  using Accumulator = simd::F32x16;
  static constexpr int planes = 1;
  static constexpr bool splits_long_keys = false;  // rounding to bfloat16 is a thousand times that of a sum
  KVC_ALWAYS_INLINE static Operand load(const float* p) noexcept { return simd::load_words(p); }
  KVC_ALWAYS_INLINE static Operand weight(const float* p) noexcept { return simd::broadcast_word(p); }
  KVC_ALWAYS_INLINE static Accumulator madd(const Operand& w, const Operand& x, const Accumulator& sum) noexcept {
    return simd::dot_bf16(sum, w, x);
  }
};

/// The tile of bfloat16 and Fp8E4M3: see the head of this file.
template <class T>
class Bf16Tile : public FloatSumTile<T> {
  using Base = FloatSumTile<T>;
  using Base::key_dim_;
  using Base::once_;
  using Base::prefetcher_;
  using Base::rows_;
  using Base::value_dim_;
  static_assert(std::is_same_v<T, Eigen::bfloat16> || std::is_same_v<T, Fp8E4M3>);
  using Storage = StorageOf<T>;
  static constexpr bool is_fp8 = std::is_same_v<T, Fp8E4M3>;
  static constexpr Index chunk_elements = 64 / Index{sizeof(Storage)};  // that are loaded together
  static constexpr int chunk_vectors = int{chunk_elements / simd::lanes};

 public:
  static constexpr bool in_order = false;
  static constexpr Index key_pass = 64;

  /// Words of two elements, in whole chunks.
  [[nodiscard]] static constexpr Index query_floats(Index key_dim) noexcept {
    return ceil_div(key_dim, chunk_elements) * chunk_elements / 2;
  }
  [[nodiscard]] static constexpr Index weight_floats(Index) noexcept { return tile_keys / 2; }
  [[nodiscard]] static constexpr Index state_floats(Index value_dim) noexcept {
    return ceil_div(value_dim, chunk_elements) * chunk_elements;
  }
  /// Element d of an output in a state: interleaving pairs leaves elements in this order.
  [[nodiscard]] static constexpr Index output_index(Index d) noexcept {
    const Index chunk = d / chunk_elements, i = d % chunk_elements;
    const Index quarter = chunk_elements / 4, in_quarter = i % quarter;
    return chunk * chunk_elements + in_quarter / 4 * simd::lanes + i / quarter * 4 + in_quarter % 4;
  }
  [[nodiscard]] static constexpr Index scratch_floats(Index key_dim, Index value_dim) noexcept {
    return tile_keys * query_floats(key_dim) + tile_keys / 2 * state_floats(value_dim) + state_floats(value_dim);
  }
  [[nodiscard]] static ScaleParts scale_parts(float scale) noexcept {
    return ScaleParts::power_of_two_in_queries(scale);
  }
  static void prepare_query(const float* q, Index key_dim, float* to) noexcept {
    // Of 16 neighbours, those of each half stay together.
    for (Index d = 0; d < 2 * query_floats(key_dim); d += simd::lanes) {
      const simd::F32x16 x = simd::load_partial(q + d, std::clamp(key_dim - d, Index{0}, Index{simd::lanes}));
      std::uint16_t halves[simd::lanes];
      simd::store_bf16(halves, x);
      for (Index half = 0; half < 2; ++half) {
        std::memcpy(reinterpret_cast<std::byte*>(to) + 2 * query_index(d + 8 * half), halves + 8 * half, 16);
      }
    }
  }

  Bf16Tile(Index key_dim, Index value_dim, float scale, Scratch& scratch)
      : Base(key_dim, value_dim),
        score_factor_(scale_parts(scale).of_scores),
        keys_(scratch.take(tile_keys * query_floats(key_dim))),
        values_(scratch.take(tile_keys / 2 * state_floats(value_dim))),
        zeros_(scratch.take(state_floats(value_dim))) {
    std::fill_n(zeros_, state_floats(value_dim), 0.0F);
  }

  KVC_OUT_OF_LINE void load_keys() noexcept {
    if (!once_) {
      detail::pack_keys(StoredKeys{rows_->k, key_dim_}, rows_->first / simd::lanes,
                        ceil_div(rows_->last, Index{simd::lanes}), query_floats(key_dim_) / simd::lanes, keys_,
                        prefetcher_);
    }
  }
  template <int R>
  KVC_OUT_OF_LINE void scores_of_many(Index first, Index last, const float* q, Index q_stride, float* s) noexcept {
    score_packed<Bf16DotTraits, R>(q, q_stride, keys_, first / simd::lanes, ceil_div(last, Index{simd::lanes}),
                                   query_floats(key_dim_) / simd::lanes, s,
                                   ScaledScores{simd::broadcast(score_factor_)});
  }
  template <int R>
  KVC_OUT_OF_LINE void scores(Index first, Index last, const float* q, Index q_stride, float* s) noexcept {
    this->template score_blocks<Bf16DotTraits, R>(StoredKeys{rows_->k, key_dim_}, first, last,
                                                  query_floats(key_dim_) / simd::lanes, q, q_stride, s,
                                                  ScaledScores{simd::broadcast(score_factor_)});
  }

  /// Pairs are made once for all rows, unless these are few.
  void load_values() noexcept {
    if (!once_) {
      const Index pad = state_floats(value_dim_);
      for (Index u = rows_->first / 2; u < ceil_div(rows_->last, Index{2}); ++u) {
        const Storage* const pair[2] = {rows_->v[2 * u], rows_->v[2 * u + 1]};
        for (Index d = 0; d < pad; d += chunk_elements) {
          simd::U32x16 x[chunk_vectors];
          load_pairs(pair, d, x);
          simd::detail::unroll<chunk_vectors>([&](auto k) __attribute__((always_inline)) {
            simd::store_words(values_ + u * pad + d + k * simd::lanes, x[k]);
          });
        }
      }
    }
  }

  /// w = the weights as bfloat16; positions that are not visible have weight 0 in p.
  void encode_weights(const float* p, float, std::uint64_t, float* w) noexcept {
    prefetcher_.prefetch_with_row();
    for (Index j = 0; j < tile_keys; j += 2 * simd::lanes) {
      const __m512bh pairs = _mm512_cvtne2ps_pbh(simd::load(p + j + simd::lanes).part[0], simd::load(p + j).part[0]);
      simd::store_words(w + j / 2, simd::words(reinterpret_cast<__m512i>(pairs)));
    }
  }

  template <int R>
  KVC_OUT_OF_LINE void add_values(const float* w, Index first, Index last, const float* start, float* to,
                                  const float* rescale) noexcept {
    if (once_) {
      add_all<R, true>(w, first, last, start, to, rescale);
    } else {
      add_all<R, false>(w, first, last, start, to, rescale);
    }
  }

 private:
  /// Where element d of a query is, in halves of words: in the order in which load gives those of a key.
  [[nodiscard]] static constexpr Index query_index(Index d) noexcept {
    const Index in_quarter = d % 16;
    return is_fp8 ? d / 64 * 64 + in_quarter / 8 * 32 + d % 64 / 16 * 8 + in_quarter % 8 : d;
  }

  /// Keys as they are stored. Of Fp8E4M3, vectors 2 i and 2 i + 1 are the lower and the upper halves of the quarters
  /// of 64 codes.
  struct StoredKeys {
    const Storage* const* rows;
    Index dim;
    static constexpr int step = is_fp8 ? 2 : 1, bytes = 64;
    using Operand = simd::U32x16;
    KVC_ALWAYS_INLINE void load(Index j, Index c, simd::U32x16 (&x)[step]) const noexcept {
      const Index from = c / step * chunk_elements;
      const simd::U32x16 stored = simd::load_bytes(rows[j] + from, (dim - from) * Index{sizeof(Storage)});
      if constexpr (is_fp8) {
        __m512i low, high;
        simd::detail::look_up_e4m3(simd::raw(stored), low, high);
        x[0] = interleave_low8(simd::words(low), simd::words(high));
        x[1] = interleave_high8(simd::words(low), simd::words(high));
      } else {
        x[0] = stored;
      }
    }
  };
  /// Elements [d, d + chunk_elements) of two rows as pairs.
  KVC_ALWAYS_INLINE void load_pairs(const Storage* const (&rows)[2], Index d,
                                    simd::U32x16 (&x)[chunk_vectors]) const noexcept {
    const Index bytes = (value_dim_ - d) * Index{sizeof(Storage)};
    const auto load = [&](const Storage* row)
                          __attribute__((always_inline)) { return simd::load_bytes(row + d, bytes); };
    const simd::U32x16 a = load(rows[0]), b = load(rows[1]);
    if constexpr (is_fp8) {
      __m512i low[2], high[2];
      simd::detail::look_up_e4m3(simd::raw(a), low[0], high[0]);
      simd::detail::look_up_e4m3(simd::raw(b), low[1], high[1]);
      using simd::words;
      const simd::U32x16 a0 = interleave_low8(words(low[0]), words(high[0])),
                         a1 = interleave_high8(words(low[0]), words(high[0]));
      const simd::U32x16 b0 = interleave_low8(words(low[1]), words(high[1])),
                         b1 = interleave_high8(words(low[1]), words(high[1]));
      x[0] = interleave_low16(a0, b0);
      x[1] = interleave_high16(a0, b0);
      x[2] = interleave_low16(a1, b1);
      x[3] = interleave_high16(a1, b1);
    } else {
      x[0] = interleave_low16(a, b);
      x[1] = interleave_high16(a, b);
    }
  }

  /// to += sums over positions [first, last) of R rows.
  template <int R, bool from_rows>
  KVC_ALWAYS_INLINE void add_all(const float* w, Index first, Index last, const float* start, float* to,
                                 const float* rescale) noexcept {
    const Index pad = state_floats(value_dim_);
    Index d = 0;
    for (; pad - d >= 64; d += 64) {
      add_block<R, 4, from_rows>(w, first, last, d, start, to, rescale);
    }
    if constexpr (chunk_vectors < 4) {
      if (d < pad) {
        add_block<R, 2, from_rows>(w, first, last, d, start, to, rescale);
      }
    }
  }

  template <int R, int C, bool from_rows>
  KVC_ALWAYS_INLINE void add_block(const float* w, Index first, Index last, Index d, const float* start, float* to,
                                   const float* rescale) noexcept {
    const Index pad = state_floats(value_dim_);
    simd::F32x16 sum[R][C] = {};
    if (start != nullptr) {
      simd::detail::unroll<R * C>([&](auto i) __attribute__((always_inline)) {
        sum[i / C][i % C] = simd::load(start + i / C * pad + d + i % C * simd::lanes);
      });
    }
    const auto* const zeros = reinterpret_cast<const Storage*>(zeros_);
    const Index end = ceil_div(last, Index{2});
    Prefetcher prefetcher = prefetcher_;  // in registers
    for (Index u = first / 2; u < end; ++u) {
      prefetcher.prefetch(2 * C * simd::lanes * Index{sizeof(Storage)} / 64);
      simd::U32x16 x[C];
      const bool has_low = 2 * u >= first, has_high = 2 * u + 1 < last;
      if (from_rows || !has_low || !has_high) {
        const Storage* const pair[2] = {has_low ? rows_->v[2 * u] : zeros, has_high ? rows_->v[2 * u + 1] : zeros};
        simd::detail::unroll<C / chunk_vectors>([&](auto k) __attribute__((always_inline)) {
          simd::U32x16 part[chunk_vectors];
          load_pairs(pair, d + k * chunk_elements, part);
          simd::detail::unroll<chunk_vectors>(
              [&](auto i) __attribute__((always_inline)) { x[k * chunk_vectors + i] = part[i]; });
        });
      } else {
        simd::detail::unroll<C>([&](auto k) __attribute__((always_inline)) {
          x[k] = simd::load_words(values_ + u * pad + d + k * simd::lanes);
        });
      }
      add_weighted<Bf16DotTraits, R>(w + u, tile_keys / 2, 0, x, sum);
    }
    prefetcher_ = prefetcher;
    store_sums<R, C>(sum, to + d, pad, rescale);
  }

  float score_factor_;
  float* keys_;    // [groups][query_floats][16] words, for many rows
  float* values_;  // [32][state_floats] words
  float* zeros_;   // a row of zeros
};

}  // namespace detail
}  // namespace v0
}  // namespace kvc

#endif  // KVC_SIMD_BF16_DOT
