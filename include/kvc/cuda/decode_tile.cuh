// The arithmetic of a decode step: 16 T positions times 8 N query rows, in the registers of a warp.
//
// Scores are computed transposed, S^T = K Q^T, and so are outputs, O^T += V^T P^T. Of each tile of eight query rows,
// lane 4 g + t holds rows 2t and 2t + 1: their scores at positions g and g + 8, and the elements of their outputs that
// decode_rows.cuh assigns to it. The order of operations on a row depends on its positions only.
#pragma once

#include <cmath>
#include <cstddef>
#include <cstdint>

#include "kvc/core/types.hpp"
#include "kvc/cuda/decode_plan.hpp"
#include "kvc/cuda/decode_rows.cuh"
#include "kvc/cuda/device.cuh"
#include "kvc/cuda/format.hpp"

namespace kvc {
inline namespace v0 {
namespace cuda {
namespace detail {

inline constexpr int decode_warps = 4;
inline constexpr int decode_threads = 32 * decode_warps;

/// Tiles of 16 positions per step, chosen so that keys take about 32 registers.
[[nodiscard]] KVC_HOST_DEVICE constexpr int tiles_per_step(Format format, int dim) noexcept {
  const int registers = dim / 32 * 2 * code_bytes(format) * 2;
  return registers <= 8 ? 4 : registers <= 16 ? 2 : 1;
}

/// The formats in which keys are multiplied by queries of format Q, and values by weights. Codes of one byte are exact
/// in f16; a row of bf16 queries becomes f16 by a power of two. Weights of int8 values include the scale of the value's
/// row, which may exceed the range of f16, so they are bf16.
template <Format F, Format Q>
inline constexpr Format key_format = code_bytes(F) == 2 ? F : Format::f16;
template <Format F, Format Q>
inline constexpr Format value_format = code_bytes(F) == 2 ? F
                                       : is_int8(F)       ? Format::bf16
                                                          : Format::f16;

/// Shared memory of a thread block. Query rows are padded by four chunks, so that eight lanes that read 16 bytes each,
/// four of one row and four of the next, hit every bank once; output rows are padded by one.
template <int D, int N>
struct alignas(16) DecodeShared {
  static constexpr int q_stride = D / 8 + 4;
  static constexpr int o_stride = D + 4;
  uint4 q[8 * N * q_stride];
  float o[decode_warps * 8 * o_stride];
  Index k_offset[split_positions];
  union {
    Index v_offset[split_positions];
    float scales[2][split_positions];  ///< of keys and values, of int8_planes; 0 where a position is not visible
  };
  float scale[8 * N];
  float m[decode_warps * 8];
  float l[decode_warps * 8];
};

/// The exponent's reference: the largest score, or 0 if no position is visible, since -infinity - (-infinity) is NaN.
__device__ __forceinline__ float reference_of(float m) { return m == device::minus_infinity ? 0.0F : m; }

/// A warp's state of 8 N query rows. Lane 4 g + t holds rows 2t and 2t + 1 of each tile of eight.
template <int D, int N>
struct WarpState {
  static constexpr int groups = (D + 63) / 64;
  float o[N][groups][4][4];
  float m[N][2];
  float l[N][2];  // sum over this lane's positions only, until merge_and_store

  __device__ __forceinline__ void reset() {
#pragma unroll
    for (int n = 0; n < N; ++n) {
#pragma unroll
      for (int c = 0; c < groups; ++c) {
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          o[n][c][i][0] = o[n][c][i][1] = o[n][c][i][2] = o[n][c][i][3] = 0.0F;
        }
      }
      m[n][0] = m[n][1] = device::minus_infinity;
      l[n][0] = l[n][1] = 0.0F;
    }
  }
};

/// Online softmax of one step: turns scores into weights and rescales the state to the new maximum.
///
///   s       [T][4] of query tile n: positions g (s[0], s[1]) and g + 8 (s[2], s[3]), query rows 2t and 2t + 1
///   scales  of each query row: scale * log2(e), or scale if there is a softcap
template <Format F, int D, int N, int T>
__device__ __forceinline__ void online_softmax(float (&s)[T][4], int n, const KeyRows<F, D, T, N == 1>& keys,
                                               TileRange range, const float* scales, float softcap,
                                               WarpState<D, N>& state) {
  const int lane = static_cast<int>(threadIdx.x % 32U);
  float factors[2];
#pragma unroll
  for (int e = 0; e < 2; ++e) {
    const float scale = scales[8 * n + 2 * (lane % 4) + e];
    float largest = state.m[n][e];
#pragma unroll
    for (int tile = 0; tile < T; ++tile) {
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        float x = device::multiply(s[tile][2 * i + e], scale);
        if constexpr (is_int8(F)) {
          x = device::multiply(x, keys.scales[tile][i]);
        }
        if (softcap > 0) {
          x = device::multiply(device::multiply(softcap, tanhf(device::divide(x, softcap))), device::log2_e);
        }
        x = range.has(16 * tile + key_position(lane, i)) ? x : device::minus_infinity;
        s[tile][2 * i + e] = x;
        largest = device::maximum(largest, x);
      }
    }
    largest = device::column_max(largest);
    const float reference = reference_of(largest);
    factors[e] = device::exp2(device::add(state.m[n][e], -reference));
    state.m[n][e] = largest;
    float sum = 0.0F;
#pragma unroll
    for (int tile = 0; tile < T; ++tile) {
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        s[tile][2 * i + e] = device::exp2(device::add(s[tile][2 * i + e], -reference));
        sum = device::add(sum, s[tile][2 * i + e]);
      }
    }
    state.l[n][e] = device::multiply_add(state.l[n][e], factors[e], sum);
  }
  // Multiplying by 1 changes no bit, so a warp in which no maximum grew skips it.
  if (__any_sync(device::all_lanes, factors[0] != 1.0F || factors[1] != 1.0F)) {
#pragma unroll
    for (int c = 0; c < WarpState<D, N>::groups; ++c) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
#pragma unroll
        for (int j = 0; j < 4; ++j) {
          state.o[n][c][i][j] = device::multiply(state.o[n][c][i][j], factors[j % 2]);
        }
      }
    }
  }
}

/// S^T = K Q^T of one step.
template <Format F, Format Q, int D, int N, int T>
__device__ __forceinline__ void multiply_keys(const KeyRows<F, D, T, N == 1>& keys, const DecodeShared<D, N>& shared,
                                              float (&s)[N][T][4]) {
  constexpr Format C = key_format<F, Q>;
  const int lane = static_cast<int>(threadIdx.x % 32U), g = lane / 4, t = lane % 4;
#pragma unroll
  for (int n = 0; n < N; ++n) {
#pragma unroll
    for (int tile = 0; tile < T; ++tile) {
      s[n][tile][0] = s[n][tile][1] = s[n][tile][2] = s[n][tile][3] = 0.0F;
    }
  }
#pragma unroll
  for (int j = 0; j < D / 32; ++j) {
    std::uint32_t a[T][2][4];
#pragma unroll
    for (int tile = 0; tile < T; ++tile) {
      keys.chunks[tile][0][j].template widen<C>(a[tile][0]);
      keys.chunks[tile][1][j].template widen<C>(a[tile][1]);
    }
#pragma unroll
    for (int n = 0; n < N; ++n) {
      const uint4 q = shared.q[(8 * n + g) * DecodeShared<D, N>::q_stride + t + 4 * j];
      const std::uint32_t b[2][2] = {{q.x, q.y}, {q.z, q.w}};
#pragma unroll
      for (int tile = 0; tile < T; ++tile) {
#pragma unroll
        for (int h = 0; h < 2; ++h) {
          const std::uint32_t rows[4] = {a[tile][0][2 * h], a[tile][1][2 * h], a[tile][0][2 * h + 1],
                                         a[tile][1][2 * h + 1]};
          device::mma<C>(s[n][tile], rows, b[h]);
        }
      }
    }
  }
}

/// O^T += V^T P^T of one step; s holds the weights.
template <Format F, Format Q, int D, int N, int T>
__device__ __forceinline__ void multiply_values(const ValueRows<F, D, T, N == 1>& values, const float (&s)[N][T][4],
                                                WarpState<D, N>& state) {
  constexpr Format C = value_format<F, Q>;
#pragma unroll
  for (int tile = 0; tile < T; ++tile) {
    std::uint32_t p[N][2];
#pragma unroll
    for (int n = 0; n < N; ++n) {
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        float low = s[n][tile][2 * i], high = s[n][tile][2 * i + 1];
        if constexpr (is_int8(F)) {
          low = device::multiply(low, values.scales[tile][i]);
          high = device::multiply(high, values.scales[tile][i]);
        }
        p[n][i] = device::transpose(device::pack<C>(low, high));
      }
    }
#pragma unroll
    for (int c = 0; c < WarpState<D, N>::groups; ++c) {
      std::uint32_t v[4][4];  // [position of this lane][pair of its chunk]
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        values.chunks[tile][i][c].template widen<C>(v[i]);
      }
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const auto both = [i](std::uint32_t x, std::uint32_t y) {
          return i % 2 == 0 ? device::low_halves(x, y) : device::high_halves(x, y);
        };
        const std::uint32_t rows[4] = {both(v[0][i / 2], v[1][i / 2]), both(v[0][2 + i / 2], v[1][2 + i / 2]),
                                       both(v[2][i / 2], v[3][i / 2]), both(v[2][2 + i / 2], v[3][2 + i / 2])};
#pragma unroll
        for (int n = 0; n < N; ++n) {
          device::mma<C>(state.o[n][c][i], rows, p[n]);
        }
      }
    }
  }
}

}  // namespace detail
}  // namespace cuda
}  // namespace v0
}  // namespace kvc
