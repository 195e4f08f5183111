// The two inner loops of attention: scores of a few rows against the keys of a tile, and sums of weighted values.
//
// Both hold a block of running sums in registers: several query rows by several keys, or by several vectors of values.
// Each sum is one chain in a fixed order, so its bits do not depend on the block in which it is computed. A DotTraits
// type defines one accumulation step:
//
//   expression                   meaning
//   DotTraits::Operand           a vector of 16 factors
//   DotTraits::Accumulator       a vector of 16 sums of products
//   DotTraits::planes            words per weight: 1, or 2 for an upper and a lower part
//   DotTraits::madd(w, x, sum)   sum + w * x, lane by lane
//   DotTraits::load(p)           16 lanes of a query row at p
//   DotTraits::weight(p)         the weight at p as an operand
//   DotTraits::splits_long_keys  whether the products of a long key are several chains: see longest_chain
#pragma once

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstdint>
#include <type_traits>
#include <utility>

#include "kvc/core/types.hpp"
#include "kvc/simd/fold.hpp"
#include "kvc/simd/narrow.hpp"
#include "kvc/simd/vec.hpp"

namespace kvc {
inline namespace v0 {
namespace detail {

inline constexpr Index tile_keys = 64;  // positions of a tile; one bit each in a word
inline constexpr Index tile_groups = tile_keys / simd::lanes;

/// Vectors of sums that the registers of the target hold beside the operands of a step.
#if defined(__AVX512F__)
inline constexpr int kernel_sums = 24;
#elif defined(__AVX__) || defined(__aarch64__)
inline constexpr int kernel_sums = 6;
#else
inline constexpr int kernel_sums = 2;
#endif

/// Whether part_kernels.hpp has the inner loops: where a register holds eight floats and there are sixteen of them.
#if defined(__AVX2__) && !defined(__AVX512F__)
#define KVC_PART_KERNELS 1
#else
#define KVC_PART_KERNELS 0
#endif
inline constexpr bool has_part_kernels = KVC_PART_KERNELS != 0;
inline constexpr int kernel_rows = kernel_sums >= 24 ? 6 : has_part_kernels ? 4 : kernel_sums >= 6 ? 2 : 1;

/// Up to so many query rows it is faster to convert keys and values again for each block of rows than to keep them.
inline constexpr Index few_rows = 16;

/// The scale of the scores as a product of two factors: one for the queries, before they are rounded to narrower
/// numbers, and one for the scores.
struct ScaleParts {
  float of_queries;
  float of_scores;

  /// All of it in the queries, which are floats or get a scale of their own.
  [[nodiscard]] static ScaleParts in_queries(float scale) noexcept { return {scale, 1.0F}; }
  /// The largest power of two not above |scale| in the queries: multiplying by it rounds nothing. (2^-126 if that would
  /// be no normal number, and 1 for the scale 0.) The rest is at least 1 and below 2 in magnitude, but for these.
  [[nodiscard]] static ScaleParts power_of_two_in_queries(float scale) noexcept {
    const float power = scale == 0 ? 1.0F : std::ldexp(1.0F, std::max(std::ilogb(scale), -126));
    return {power, scale / power};
  }
};

/// Vectors of a key whose products are one chain in each lane. Each addition rounds the sum so far: the products of
/// longer keys are chains of `chain_of_long`, added in ascending order, so that the error of a score hardly grows.
inline constexpr Index longest_chain = 16, chain_of_long = 8;

struct FloatDotTraits {
  using Operand = simd::F32x16;
  using Accumulator = simd::F32x16;
  static constexpr int planes = 1;
  static constexpr bool splits_long_keys = true;
  KVC_ALWAYS_INLINE static Operand load(const float* p) noexcept { return simd::load(p); }
  KVC_ALWAYS_INLINE static Operand weight(const float* p) noexcept { return simd::broadcast(*p); }
  KVC_ALWAYS_INLINE static Accumulator madd(const Operand& w, const Operand& x, const Accumulator& sum) noexcept {
    return simd::madd(w, x, sum);
  }
};

/// Calls f(first row, integral constant R) for blocks of R <= `most` rows that cover [first, last).
template <int most = kernel_rows, class F>
KVC_ALWAYS_INLINE void for_row_blocks(Index first, Index last, F f) {
  for (; last - first >= most; first += most) {
    f(first, std::integral_constant<int, most>{});
  }
  if constexpr (most > 4) {
    if (last - first >= 4) {
      f(first, std::integral_constant<int, 4>{});
      first += 4;
    }
  }
  if constexpr (most > 2) {
    if (last - first >= 2) {
      f(first, std::integral_constant<int, 2>{});
      first += 2;
    }
  }
  if constexpr (most > 1) {
    if (first < last) {
      f(first, std::integral_constant<int, 1>{});
    }
  }
}

/// The same blocks from the last to the first.
template <int most = kernel_rows, class F>
KVC_ALWAYS_INLINE void for_row_blocks_backwards(Index first, Index last, F f) {
  if constexpr (most > 1) {
    if ((last - first) % most % 2 != 0) {
      f(--last, std::integral_constant<int, 1>{});
    }
  }
  if constexpr (most > 2) {
    if ((last - first) % most % 4 != 0) {
      f(last -= 2, std::integral_constant<int, 2>{});
    }
  }
  if constexpr (most > 4) {
    if ((last - first) % most != 0) {
      f(last -= 4, std::integral_constant<int, 4>{});
    }
  }
  while (last > first) {
    f(last -= most, std::integral_constant<int, most>{});
  }
}

/// to[i][0, 16 C) = to[i] * rescale[i] + sum[i], or = sum[i] where rescale is null.
template <int R, int C>
KVC_ALWAYS_INLINE void store_sums(const simd::F32x16 (&sum)[R][C], float* to, Index stride,
                                  const float* rescale) noexcept {
  simd::detail::unroll<R>([&](auto i) __attribute__((always_inline)) {
    simd::detail::unroll<C>([&](auto k) __attribute__((always_inline)) {
      float* const at = to + i * stride + k * simd::lanes;
      simd::store(at,
                  rescale == nullptr ? sum[i][k] : simd::madd(simd::load(at), simd::broadcast(rescale[i]), sum[i][k]));
    });
  });
}

/// Keys of a block beside R query rows: R * block_keys is a multiple of 4.
template <int R>
inline constexpr int block_keys = 4 * R <= std::max(kernel_sums, 4) ? 4 : 2;

/// Products of R query rows and K keys from j on, lane by lane: those of vectors [first, last), which begin at a
/// multiple of Keys::step.
///
///   q      [R, q_stride] query rows
///   keys   keys.load(j, c, x): vectors c, c + 1 ... of key j, `Keys::step` of them, with zeros past the end of the
///          row, from `Keys::bytes` of it
///   prefetcher  prefetches as many lines as are read
template <class DotTraits, int R, int K, class Keys, class Prefetcher>
KVC_ALWAYS_INLINE void add_keys(const float* q, Index q_stride, const Keys& keys, Index j, Index first, Index last,
                                typename DotTraits::Accumulator (&sum)[R][K], Prefetcher& prefetcher) noexcept {
  if constexpr (K * Keys::step > 8) {  // registers do not hold so many vectors of keys beside the sums: key by key
    static_assert(Keys::bytes == 64);
    for (Index c = first; c < last; c += Keys::step) {
      simd::detail::unroll<K>([&](auto k) __attribute__((always_inline)) {
        typename DotTraits::Operand x[Keys::step];
        prefetcher.prefetch(1);
        keys.load(j + k, c, x);
        simd::detail::unroll<Keys::step>([&](auto v) __attribute__((always_inline)) {
          if (c + v < last) {
            simd::detail::unroll<R>([&](auto i) __attribute__((always_inline)) {
              sum[i][k] = DotTraits::madd(DotTraits::load(q + i * q_stride + (c + v) * simd::lanes), x[v], sum[i][k]);
            });
          }
        });
      });
    }
    return;
  }
  for (Index c = first; c < last; c += Keys::step) {
    constexpr Index lines = ceil_div(Index{K} * Keys::bytes, Index{64});
    typename DotTraits::Operand x[K][Keys::step];
    prefetcher.prefetch(lines);
    simd::detail::unroll<K>([&](auto k) __attribute__((always_inline)) { keys.load(j + k, c, x[k]); });
    simd::detail::unroll<Keys::step>([&](auto v) __attribute__((always_inline)) {
      simd::detail::unroll<K>([&](auto k) __attribute__((always_inline)) { simd::pin(x[k][v]); });
      simd::detail::unroll<R>([&](auto i) __attribute__((always_inline)) {
        typename DotTraits::Operand w = DotTraits::load(q + i * q_stride + (c + v) * simd::lanes);
        simd::pin(w);
        simd::detail::unroll<K>(
            [&](auto k) __attribute__((always_inline)) { sum[i][k] = DotTraits::madd(w, x[k][v], sum[i][k]); });
      });
    });
  }
}

/// add(c, end, x) adds the products of vectors [c, end) to x: all of `vectors` as one chain to `sum`, or, of a long
/// row, each chain by itself and then to `sum`.
template <bool is_long, int R, int K, class Vector, class F>
KVC_ALWAYS_INLINE void add_chains(Index vectors, Vector (&sum)[R][K], F add) noexcept {
  if constexpr (is_long) {
    for (Index c = 0; c < vectors; c += chain_of_long) {
      Vector chain[R][K] = {};
      add(c, std::min(c + chain_of_long, vectors), chain);
      simd::detail::unroll<R * K>(
          [&](auto n) __attribute__((always_inline)) { sum[n / K][n % K] = sum[n / K][n % K] + chain[n / K][n % K]; });
    }
  } else {
    add(Index{0}, vectors, sum);
  }
}

/// Scores that need no factor, because the queries hold the whole scale.
struct UnscaledScores {
  KVC_ALWAYS_INLINE simd::F32x16 operator()(const simd::F32x16& s) const noexcept { return s; }
};

/// Scores that are multiplied by the part of the scale that the queries do not hold.
struct ScaledScores {
  simd::F32x16 factor;
  KVC_ALWAYS_INLINE simd::F32x16 operator()(const simd::F32x16& s) const noexcept { return s * factor; }
};

/// s[r * 64 + k] = scale(fold of x[r][k])
template <int R, int K, class Scale = UnscaledScores>
KVC_ALWAYS_INLINE void store_scores(const simd::F32x16 (&x)[R][K], float* s, const Scale& scale = {}) noexcept {
  static_assert(K == 4 || (K == 2 && R == 2));
  if constexpr (K == 4) {
    const auto rows = [&](auto first, auto count) __attribute__((always_inline)) {
      simd::F32x16 some[count][4];
      simd::detail::unroll<4 * count>(
          [&](auto i) __attribute__((always_inline)) { some[i / 4][i % 4] = x[first + i / 4][i % 4]; });
      const simd::F32x16 sums = scale(simd::fold_rows<count>(some));
      simd::detail::unroll<count>([&](auto i) __attribute__((always_inline)) {
        simd::store_four(s + (first + i) * tile_keys, simd::quarter<i>(sums));
      });
    };
    simd::detail::unroll<R / 4>([&](auto n) __attribute__((always_inline)) {
      rows(std::integral_constant<int, 4 * n>{}, std::integral_constant<int, 4>{});
    });
    if constexpr (R % 4 != 0) {
      static_assert(R % 4 != 3);
      rows(std::integral_constant<int, R / 4 * 4>{}, std::integral_constant<int, R % 4>{});
    }
  } else {
    const simd::F32x16 all[1][4] = {{x[0][0], x[0][1], x[1][0], x[1][1]}};
    const simd::F32x4 sums = simd::quarter<0>(scale(simd::fold_rows<1>(all)));
    simd::store_two(s, __builtin_shufflevector(sums, sums, 0, 1));
    simd::store_two(s + tile_keys, __builtin_shufflevector(sums, sums, 2, 3));
  }
}

/// Rows of a block in score_packed. Each pair of a row and 16 keys takes three sums, one of which may be spilled while
/// chains grow.
inline constexpr int packed_rows = kernel_sums >= 24 ? 4 : has_part_kernels ? 6 : kernel_sums >= 6 ? 2 : 1;

/// Lanes that are computed together: twice as many chains hide the latency of multiply-adds.
inline constexpr int packed_lanes = kernel_sums >= 24 ? 2 : 1;

/// Transposes groups [first, last) of 16 keys: word w of the keys of group g begins at to[(16 * vectors * g + w) * 16].
template <class Keys, class Prefetcher>
KVC_ALWAYS_INLINE void pack_keys(const Keys& keys, Index first, Index last, Index vectors, float* to,
                                 Prefetcher& prefetcher) noexcept {
  for (Index g = first; g < last; ++g) {
    for (Index c = 0; c < vectors; c += Keys::step) {
      prefetcher.prefetch(simd::lanes * Keys::bytes / 64);
      simd::F32x16 row[Keys::step][simd::lanes];
      simd::detail::unroll<simd::lanes>([&](auto l) __attribute__((always_inline)) {
        typename Keys::Operand x[Keys::step];
        keys.load(g * simd::lanes + l, c, x);
        simd::detail::unroll<Keys::step>(
            [&](auto v) __attribute__((always_inline)) { row[v][l] = std::bit_cast<simd::F32x16>(x[v]); });
      });
      simd::detail::unroll<Keys::step>([&](auto v) __attribute__((always_inline)) {
        simd::store_columns(row[v], to + (vectors * g + c + v) * simd::lanes * simd::lanes);
      });
    }
  }
}

/// The bits of add_keys and store_scores, from packed keys of groups [first, last).
template <class DotTraits, int R, class Scale = UnscaledScores>
KVC_ALWAYS_INLINE void score_packed(const float* q, Index q_stride, const float* keys, Index first, Index last,
                                    Index vectors, float* s, const Scale& scale = {}) noexcept {
  using Operand = typename DotTraits::Operand;
  using simd::F32x16;
  constexpr int most = std::clamp(kernel_sums / (3 * R), 1, 4);
  const Index group = vectors * simd::lanes * simd::lanes;
  const auto block = [&](auto count) __attribute__((always_inline)) {
    constexpr int C = decltype(count)::value;
    const float* const from = keys + first * group;
    F32x16 total[R][C], part[R][C];
    // Each lane of add_keys is a chain of its own; the chains are added up in the order of simd::fold_rows.
    simd::detail::unroll<4>([&](auto t) __attribute__((always_inline)) {
      simd::detail::unroll<4 / packed_lanes>([&](auto step) __attribute__((always_inline)) {
        F32x16 chain[packed_lanes][R][C] = {};
        for (Index c = 0; c < vectors; ++c) {
          simd::detail::unroll<packed_lanes>([&](auto u) __attribute__((always_inline)) {
            constexpr int lane = t + 4 * (step * packed_lanes + u);
            Operand x[C];
            simd::detail::unroll<C>([&](auto k) __attribute__((always_inline)) {
              x[k] = std::bit_cast<Operand>(simd::load(from + k * group + (c * simd::lanes + lane) * simd::lanes));
              simd::pin(x[k]);
            });
            simd::detail::unroll<R>([&](auto i) __attribute__((always_inline)) {
              Operand w = DotTraits::weight(q + i * q_stride + c * simd::lanes + lane);
              simd::pin(w);
              simd::detail::unroll<C>([&](auto k) __attribute__((always_inline)) {
                chain[u][i][k] = DotTraits::madd(w, x[k], chain[u][i][k]);
              });
            });
          });
        }
        simd::detail::unroll<packed_lanes>([&](auto u) __attribute__((always_inline)) {
          simd::detail::unroll<R * C>([&](auto n) __attribute__((always_inline)) {
            constexpr int i = n / C, k = n % C;
            part[i][k] = step + u == 0 ? chain[u][i][k] : part[i][k] + chain[u][i][k];
          });
        });
      });
      simd::detail::unroll<R * C>([&](auto n) __attribute__((always_inline)) {
        constexpr int i = n / C, k = n % C;
        total[i][k] = t == 0 ? part[i][k] : total[i][k] + part[i][k];
      });
    });
    simd::detail::unroll<R * C>(
        [&](auto n) __attribute__((always_inline)) { total[n / C][n % C] = scale(total[n / C][n % C]); });
    store_sums<R, C>(total, s + first * simd::lanes, tile_keys, nullptr);
  };
  for (; last - first >= most; first += most) {
    block(std::integral_constant<int, most>{});
  }
  if constexpr (most > 2) {
    for (; last - first >= 2; first += 2) {
      block(std::integral_constant<int, 2>{});
    }
  }
  if constexpr (most > 1) {
    for (; first < last; ++first) {
      block(std::integral_constant<int, 1>{});
    }
  }
}

/// One step of a sum of weighted values: R rows by C vectors.
///
///   w   weights of R rows, `stride` from one to the next, their planes `plane` apart
template <class DotTraits, int R, int C>
KVC_ALWAYS_INLINE void add_weighted(const float* w, Index stride, Index plane,
                                    const typename DotTraits::Operand (&x)[C],
                                    typename DotTraits::Accumulator (&sum)[R * DotTraits::planes][C]) noexcept {
  simd::detail::unroll<R>([&](auto i) __attribute__((always_inline)) {
    simd::detail::unroll<DotTraits::planes>([&](auto p) __attribute__((always_inline)) {
      const typename DotTraits::Operand weight = DotTraits::weight(w + i * stride + p * plane);
      simd::detail::unroll<C>([&](auto k) __attribute__((always_inline)) {
        auto& to = sum[i * DotTraits::planes + p][k];
        to = DotTraits::madd(weight, x[k], to);
      });
    });
  });
}

}  // namespace detail
}  // namespace v0
}  // namespace kvc
