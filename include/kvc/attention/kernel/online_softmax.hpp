// online_softmax: turns the scores of a tile into weights, for several rows at a time.
#pragma once

#include <algorithm>
#include <bit>
#include <cstdint>
#include <limits>

#include "kvc/attention/kernel/kernels.hpp"
#include "kvc/core/types.hpp"
#include "kvc/simd/exp.hpp"
#include "kvc/simd/vec.hpp"

namespace kvc {
inline namespace v0 {
namespace detail {

/// Scores of `count` <= 16 rows become weights exp(s - m), 0 where a key is not visible; m and l are carried on.
///
///   s        [count, 64]
///   visible  [count] one bit per key, set if it counts; set to 0 if the largest score is -infinity
///   m, l     [count] largest score and sum of weights so far
///   rescale   [count] what sums over earlier weights must be multiplied with
///   largest_weight  [count] of the tile, of each row in which a key counts
///
/// Of each row: the largest lane of max(max(x0, x1), max(x2, x3)), and l = madd(l, rescale, simd::sum((x0 + x1) + (x2 +
/// x3))).
inline void online_softmax(float* s, std::uint64_t* visible, Index count, float* m, float* l, float* rescale,
                           float* largest_weight) noexcept {
  using simd::F32x16;
  constexpr float infinity = std::numeric_limits<float>::infinity();
  const auto at = [s, count](Index r, Index g) { return s + std::min(r, count - 1) * tile_keys + g * simd::lanes; };

  alignas(64) float largest[simd::lanes] = {};  // 0 for groups of rows that do not exist: arithmetic on 0 is fast
  alignas(64) float top_weight[simd::lanes], offset[simd::lanes], sums[simd::lanes];
  for (Index first = 0; first < count; first += 4) {
    F32x16 top[4];
    simd::detail::unroll<4>([&](auto i) __attribute__((always_inline)) {
      F32x16 x[tile_groups];
      const Index r = std::min(first + i, count - 1);
      simd::detail::unroll<int{tile_groups}>([&](auto g)
                                                 __attribute__((always_inline)) { x[g] = simd::load(at(r, g)); });
      if (visible[r] != ~std::uint64_t{0}) {
        simd::detail::unroll<int{tile_groups}>([&](auto g) __attribute__((always_inline)) {
          x[g] = simd::keep(static_cast<std::uint32_t>(visible[r] >> (g * simd::lanes)) & 0xffffU, x[g], -infinity);
          simd::store(at(r, g), x[g]);
        });
      }
      top[i] = simd::max(simd::max(x[0], x[1]), simd::max(x[2], x[3]));
    });
    simd::store_four(largest + first, simd::max_each(top[0], top[1], top[2], top[3]));
  }

  const F32x16 before = simd::load_partial(m, count), now = simd::max(before, simd::load(largest));
  simd::store(offset, now);
  simd::store(top_weight, simd::exp_up_to_zero(simd::load(largest) - now));
  simd::store(largest, simd::exp_up_to_zero(before - now));
  for (Index r = 0; r < count; ++r) {
    m[r] = offset[r];
    rescale[r] = largest[r];
    largest_weight[r] = top_weight[r];
    if (offset[r] == -infinity) {
      offset[r] = 0;  // the scores stay -infinity, the weights are 0
      rescale[r] = 1;
      visible[r] = 0;
    }
  }
  for (Index first = 0; first < count; first += 4) {
    F32x16 sum[4];
    simd::detail::unroll<4>([&](auto i) __attribute__((always_inline)) {
      F32x16 x[tile_groups];
      const Index r = std::min(first + i, count - 1);
      const F32x16 of_row = simd::broadcast(offset[r]);
      if (first + i < count) {
        simd::detail::unroll<int{tile_groups}>([&](auto g) __attribute__((always_inline)) {
          x[g] = simd::exp_up_to_zero(simd::load(at(r, g)) - of_row);
          simd::store(at(r, g), x[g]);
        });
        sum[i] = (x[0] + x[1]) + (x[2] + x[3]);
      } else {
        sum[i] = simd::zero();
      }
    });
    simd::store_four(sums + first, simd::sum_each(sum[0], sum[1], sum[2], sum[3]));
  }
  for (Index r = 0; r < count; ++r) {
    l[r] = simd::madd(l[r], rescale[r], sums[r]);
  }
}

}  // namespace detail
}  // namespace v0
}  // namespace kvc
