// The work of a prefill warp on a tile of keys and values: scores, weights, and the state of its rows.
//
// With lane = 4 g + t, each lane holds its mma fragment of 16 rows and 8 columns: columns 2t and 2t + 1 of rows g
// and g + 8. Weights stay in registers: the result of one product has the layout that the next one takes as its
// operand.
#pragma once

#include <cmath>
#include <cstddef>
#include <cstdint>

#include "kvc/core/types.hpp"
#include "kvc/cuda/device.cuh"
#include "kvc/cuda/format.hpp"
#include "kvc/cuda/prefill_ptx.cuh"
#include "kvc/cuda/prefill_shared.cuh"
#include "kvc/cuda/prefill_tile.cuh"

namespace kvc {
inline namespace v0 {
namespace cuda {
namespace detail {

/// The factor that turns scores into exponents of two. With a softcap, scores become hyperbolic tangents first.
struct ScoreScale {
  float exponent;  ///< scale * log2(e), or softcap * log2(e)
  float tangent;   ///< 0 without a softcap; otherwise 2 * log2(e) * scale / softcap

  __device__ __forceinline__ ScoreScale(float scale, float softcap) {
    exponent = (softcap > 0 ? softcap : scale) * device::log2_e;
    tangent = softcap > 0 ? 2 * device::log2_e * scale / softcap : 0.0F;
  }
  /// tanh(scale * s / softcap) = 1 - 2 / (1 + exp(2 scale * s / softcap))
  [[nodiscard]] __device__ __forceinline__ float softcapped(float s) const {
    return device::multiply_add(
        -2.0F, device::fast_reciprocal(device::add(1.0F, device::fast_exp2(device::multiply(s, tangent)))), 1.0F);
  }
};

/// Applies the softcap, if there is one, to all scores of a thread.
template <int C, int T>
__device__ __forceinline__ void apply_softcap(float (&s)[T][C][4], const ScoreScale& scale) {
  if (scale.tangent != 0) {
#pragma unroll
    for (int tile = 0; tile < T; ++tile) {
#pragma unroll
      for (int n = 0; n < C; ++n) {
#pragma unroll
        for (int e = 0; e < 4; ++e) {
          s[tile][n][e] = scale.softcapped(s[tile][n][e]);
        }
      }
    }
  }
}

/// A thread's part of the state of its warp's rows: rows g and g + 8 of each tile of 16 rows, and of these columns 2t
/// and 2t + 1 of each tile of 8 columns.
template <int D, int T>
struct RowState {
  float o[T][D / 8][4];
  float m[T][2];  ///< largest score, before it is multiplied by `exponent`
  float l[T][2];  ///< sum of weights; over the thread's columns only, until row_sum

  __device__ __forceinline__ void reset() {
#pragma unroll
    for (int tile = 0; tile < T; ++tile) {
#pragma unroll
      for (int n = 0; n < D / 8; ++n) {
        o[tile][n][0] = o[tile][n][1] = o[tile][n][2] = o[tile][n][3] = 0.0F;
      }
      m[tile][0] = m[tile][1] = device::minus_infinity;
      l[tile][0] = l[tile][1] = 0.0F;
    }
  }
};

/// The weights of keys 16 i .. 16 i + 15 as the first operand of a product.
template <Format F, int C>
__device__ __forceinline__ void pack_weights(const float (&s)[C][4], int i, std::uint32_t (&a)[4]) {
#pragma unroll
  for (int h = 0; h < 2; ++h) {
    a[2 * h] = device::pack<F>(s[2 * i + h][0], s[2 * i + h][1]);
    a[2 * h + 1] = device::pack<F>(s[2 * i + h][2], s[2 * i + h][3]);
  }
}

/// Whether an element of a pair is infinite or NaN.
template <Format F>
[[nodiscard]] __device__ __forceinline__ bool has_nonfinite(std::uint32_t pair) {
  constexpr std::uint32_t exponent = F == Format::f16 ? 0x7c00U : 0x7f80U;
  return (pair & exponent) == exponent || (pair & exponent << 16) == exponent << 16;
}
/// The pair with such elements replaced by zeros.
template <Format F>
[[nodiscard]] __device__ __forceinline__ std::uint32_t zero_nonfinite(std::uint32_t pair) {
  constexpr std::uint32_t exponent = F == Format::f16 ? 0x7c00U : 0x7f80U;
  return ((pair & exponent) == exponent ? 0U : pair & 0xffffU) |
         ((pair & exponent << 16) == exponent << 16 ? 0U : pair & 0xffff0000U);
}

/// S = Q K^T for the warp's rows and a tile of keys.
template <Format F, int D, int T>
__device__ __forceinline__ void multiply_keys(const Fragments<prefill_rows>& q, const Fragments<prefill_keys>& k,
                                              float (&s)[T][prefill_keys / 8][4]) {
#pragma unroll
  for (int tile = 0; tile < T; ++tile) {
#pragma unroll
    for (int n = 0; n < prefill_keys / 8; ++n) {
      s[tile][n][0] = s[tile][n][1] = s[tile][n][2] = s[tile][n][3] = 0.0F;
    }
  }
#pragma unroll
  for (int j = 0; j < D / 16; ++j) {
    std::uint32_t a[T][4];
#pragma unroll
    for (int tile = 0; tile < T; ++tile) {
      device::ldmatrix(q.at(tile, j), a[tile]);
    }
#pragma unroll
    for (int i = 0; i < prefill_keys / 16; ++i) {
      std::uint32_t both[4];
      device::ldmatrix(k.at(i, j), both);
      const std::uint32_t b[2][2] = {{both[0], both[1]}, {both[2], both[3]}};
#pragma unroll
      for (int tile = 0; tile < T; ++tile) {
        device::mma<F>(s[tile][2 * i], a[tile], b[0]);
        device::mma<F>(s[tile][2 * i + 1], a[tile], b[1]);
      }
    }
  }
}

/// Factors for the outputs of a thread's rows, since the maximum has grown.
template <int T>
struct RescaleFactors {
  float of[T][2];
};

/// Online softmax: turns the scores of 8 C keys into weights and updates the state, but for the outputs: see rescale().
///
///   Masked   some rows do not see some of the keys
///   base     position of the first key
///   visible  visible(i, half) -> VisibleKeys, what row half of tile i of this thread sees
template <bool Masked, int C, int D, int T, class Visible>
[[nodiscard]] __device__ __forceinline__ RescaleFactors<T> online_softmax(float (&s)[T][C][4], RowState<D, T>& state,
                                                                          const ScoreScale& scale, Pos base,
                                                                          Visible visible) {
  const int t = static_cast<int>(threadIdx.x % 4U);
  RescaleFactors<T> factors;
#pragma unroll
  for (int tile = 0; tile < T; ++tile) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      float largest = state.m[tile][half];
      if constexpr (Masked) {
        const VisibleKeys keys = visible(tile, half);
#pragma unroll
        for (int n = 0; n < C; ++n) {
#pragma unroll
          for (int e = 0; e < 2; ++e) {
            float& x = s[tile][n][2 * half + e];
            x = keys.has(base + 8 * n + 2 * t + e) ? x : device::minus_infinity;
          }
        }
      }
#pragma unroll
      for (int n = 0; n < C; ++n) {
        // NaN need not win here, unlike in decode: its weight is NaN whatever the maximum is.
        largest = fmaxf(largest, fmaxf(s[tile][n][2 * half], s[tile][n][2 * half + 1]));
      }
      largest = fmaxf(largest, __shfl_xor_sync(device::all_lanes, largest, 1));
      largest = fmaxf(largest, __shfl_xor_sync(device::all_lanes, largest, 2));
      const float before = state.m[tile][half];
      // A row that has seen no key subtracts nothing; when it sees its first, the factor of its empty state is 0.
      const float less = largest == device::minus_infinity ? 0.0F : device::multiply(-largest, scale.exponent);
      factors.of[tile][half] =
          before == largest ? 1.0F : device::fast_exp2(device::add(less, device::multiply(before, scale.exponent)));
      state.m[tile][half] = largest;
      float sum = 0.0F;
#pragma unroll
      for (int n = 0; n < C; ++n) {
#pragma unroll
        for (int e = 0; e < 2; ++e) {
          float& x = s[tile][n][2 * half + e];
          x = device::fast_exp2(device::multiply_add(x, scale.exponent, less));
          sum = device::add(sum, x);
        }
      }
      state.l[tile][half] = device::multiply_add(state.l[tile][half], factors.of[tile][half], sum);
    }
  }
  return factors;
}

/// Multiplies the outputs by the factors of online_softmax.
template <int D, int T>
__device__ __forceinline__ void rescale(RowState<D, T>& state, const RescaleFactors<T>& factors) {
#pragma unroll
  for (int tile = 0; tile < T; ++tile) {
    // Multiplying by 1 changes no bit, so a warp in which no maximum grew skips it.
    if (__any_sync(device::all_lanes, factors.of[tile][0] != 1.0F || factors.of[tile][1] != 1.0F)) {
#pragma unroll
      for (int n = 0; n < D / 8; ++n) {
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          state.o[tile][n][i] = device::multiply(state.o[tile][n][i], factors.of[tile][i / 2]);
        }
      }
    }
  }
}

/// Multiplies the scores of 8 C keys by the scales of the keys.
template <int C, int T>
__device__ __forceinline__ void scale_scores(float (&s)[T][C][4], const float* scales) {
  const int t = static_cast<int>(threadIdx.x % 4U);
#pragma unroll
  for (int n = 0; n < C; ++n) {
#pragma unroll
    for (int e = 0; e < 2; ++e) {
      const float scale = scales[8 * n + 2 * t + e];
#pragma unroll
      for (int tile = 0; tile < T; ++tile) {
        s[tile][n][e] = device::multiply(s[tile][n][e], scale);
        s[tile][n][2 + e] = device::multiply(s[tile][n][2 + e], scale);
      }
    }
  }
}
/// Multiplies the weights of 8 C keys by the scales of their values, for rows that see them: the weights of others stay
/// 0 even if a scale is NaN. Arguments as for online_softmax.
template <bool Masked, int C, int T, class Visible>
__device__ __forceinline__ void scale_weights(float (&s)[T][C][4], const float* scales, Pos base, Visible visible) {
  const int t = static_cast<int>(threadIdx.x % 4U);
#pragma unroll
  for (int tile = 0; tile < T; ++tile) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const VisibleKeys keys = Masked ? visible(tile, half) : VisibleKeys{0, 0};
#pragma unroll
      for (int n = 0; n < C; ++n) {
#pragma unroll
        for (int e = 0; e < 2; ++e) {
          const int key = 8 * n + 2 * t + e;
          float& x = s[tile][n][2 * half + e];
          x = !Masked || keys.has(base + key) ? device::multiply(x, scales[key]) : 0.0F;
        }
      }
    }
  }
}

/// O += P V; s holds the weights. A weight of 0 times a value that is not finite is NaN. So with DropNonfinite, for
/// tiles in which some rows do not see some keys, such values are replaced by 0; returns whether there are any.
template <Format F, bool DropNonfinite, int D, int T>
__device__ __forceinline__ bool multiply_values(const Fragments<prefill_keys>& v,
                                                const float (&s)[T][prefill_keys / 8][4], RowState<D, T>& state) {
  bool special = false;
#pragma unroll
  for (int i = 0; i < prefill_keys / 16; ++i) {
    std::uint32_t a[T][4];
#pragma unroll
    for (int tile = 0; tile < T; ++tile) {
      pack_weights<F>(s[tile], i, a[tile]);
    }
#pragma unroll
    for (int j = 0; j < D / 16; ++j) {
      std::uint32_t both[4];
      device::ldmatrix_transposed(v.at(i, j), both);
      if constexpr (DropNonfinite) {
#pragma unroll
        for (int w = 0; w < 4; ++w) {
          special = special || has_nonfinite<F>(both[w]);
          both[w] = zero_nonfinite<F>(both[w]);
        }
      }
      const std::uint32_t b[2][2] = {{both[0], both[1]}, {both[2], both[3]}};
#pragma unroll
      for (int tile = 0; tile < T; ++tile) {
        device::mma<F>(state.o[tile][2 * j], a[tile], b[0]);
        device::mma<F>(state.o[tile][2 * j + 1], a[tile], b[1]);
      }
    }
  }
  return special;
}

/// Adds the values that multiply_values has dropped to the rows that see them. Any weight leaves infinity or NaN.
template <Format F, int Keys, int D, int T, class Visible>
__device__ __forceinline__ void add_nonfinite(const std::byte* v_tile, RowState<D, T>& state, Pos base,
                                              Visible visible) {
  const int t = static_cast<int>(threadIdx.x % 4U);
  for (int key = 0; key < Keys; ++key) {
#pragma unroll
    for (int n = 0; n < D / 8; ++n) {
      const std::uint32_t pair = *reinterpret_cast<const std::uint32_t*>(v_tile + chunk_offset<Keys>(key, n) + 4 * t);
      if (has_nonfinite<F>(pair)) {
#pragma unroll
        for (int tile = 0; tile < T; ++tile) {
#pragma unroll
          for (int half = 0; half < 2; ++half) {
            if (visible(tile, half).has(base + key)) {
              state.o[tile][n][2 * half] += has_nonfinite<F>(pair & 0xffffU) ? device::low_of<F>(pair) : 0.0F;
              state.o[tile][n][2 * half + 1] += has_nonfinite<F>(pair & 0xffff0000U) ? device::high_of<F>(pair) : 0.0F;
            }
          }
        }
      }
    }
  }
}

}  // namespace detail
}  // namespace cuda
}  // namespace v0
}  // namespace kvc
