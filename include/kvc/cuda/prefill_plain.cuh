// A plain prefill kernel. It takes every format and shape, and all options; sums are in float. It serves caches of
// float, those of bytes beyond dim 128, dims that are not multiples of 8, latent rows of more than 256 elements, and
// kept positions. Device tests compare the fast kernels with it.
//
// A warp handles one query row of one head. Of each 32 keys, a lane computes the score of one; then each lane updates
// its share of the output's elements.
#pragma once

#include <cmath>
#include <cstddef>
#include <cstdint>

#include "kvc/core/types.hpp"
#include "kvc/cuda/device.cuh"
#include "kvc/cuda/format.hpp"
#include "kvc/cuda/prefill_arguments.cuh"
#include "kvc/cuda/prefill_ptx.cuh"
#include "kvc/cuda/prefill_tile.cuh"
#include "kvc/cuda/view.cuh"

namespace kvc {
inline namespace v0 {
namespace cuda {

namespace detail {

/// Element d of a row, without its scale.
template <Format F>
[[nodiscard]] __device__ __forceinline__ float element_of(const std::byte* row, Index d) {
  if constexpr (F == Format::f32) {
    return device::load_readonly<float>(row + 4 * d);
  } else if constexpr (code_bytes(F) == 2) {
    return device::low_of<F>(device::load_readonly<std::uint16_t>(row + 2 * d));
  } else {
    const std::uint32_t code = device::load_readonly<std::uint8_t>(row + d);
    std::uint32_t pairs[2];
    if constexpr (F == Format::fp8_e4m3) {
      device::widen_fp8(code, pairs);
    } else {
      device::widen_int8(code, pairs);
    }
    return device::low_of<Format::f16>(pairs[0]);
  }
}
/// The factor of all elements of a row, from the address of its scale.
template <Format F>
[[nodiscard]] __device__ __forceinline__ float scale_of(const std::byte* scale) {
  return is_int8(F) ? device::load_readonly<float>(scale) : 1.0F;
}
template <Format F>
__device__ __forceinline__ void store_element(std::byte* row, Index d, float x) {
  if constexpr (F == Format::f32) {
    reinterpret_cast<float*>(row)[d] = x;
  } else {
    reinterpret_cast<std::uint16_t*>(row)[d] = static_cast<std::uint16_t>(device::pack<F>(x, 0.0F) & 0xffffU);
  }
}

[[nodiscard]] __device__ __forceinline__ float warp_max(float x) {
  for (int distance = 16; distance > 0; distance /= 2) {
    x = device::maximum(x, __shfl_xor_sync(device::all_lanes, x, distance));
  }
  return x;
}
[[nodiscard]] __device__ __forceinline__ float warp_sum(float x) {
  for (int distance = 16; distance > 0; distance /= 2) {
    x = device::add(x, __shfl_xor_sync(device::all_lanes, x, distance));
  }
  return x;
}

}  // namespace detail

/// gridDim.x >= query rows, gridDim.y * 4 >= query_heads; plain_threads threads and plain_shared_bytes.
///
///   F  format of the cache
///   Q  format of queries and output: f32, f16 or bf16
template <Format F, Format Q>
__global__ void __launch_bounds__(detail::plain_threads)
    plain_prefill_kernel(const __grid_constant__ PrefillArguments<F> a) {
  __shared__ std::int32_t sequence;
  const auto row = static_cast<std::int32_t>(blockIdx.x);
  const int lane = static_cast<int>(threadIdx.x % 32U), warp = static_cast<int>(threadIdx.x / 32U);
  const int key_dim = a.kv.key_dim, value_dim = a.kv.value_dim;
  if (row >= a.batch.header->queries) {
    return;
  }
  for (auto b = static_cast<std::int32_t>(threadIdx.x); b < a.batch.header->size; b += detail::plain_threads) {
    if (a.batch.q_indptr[b] <= row && row < a.batch.q_indptr[b + 1]) {
      sequence = b;  // exactly one thread writes
    }
  }
  __syncthreads();
  const int head = static_cast<int>(blockIdx.y) * detail::plain_warps + warp;
  if (head >= a.query_heads) {
    return;
  }
  const int kv_head = head / a.group;
  const Pos length = a.batch.seq_lens[sequence];
  const std::int32_t begin_row = a.batch.q_indptr[sequence], end_row = a.batch.q_indptr[sequence + 1];
  const Pos position = a.cross ? row - begin_row : length - (end_row - row);
  const detail::VisibleKeys keys = detail::visible_keys(a, position, detail::chunk_of(a, position), length);
  const Pos kept = keys.first <= a.kept ? 0 : a.kept;  // the row sees [0, kept), and from `first` on
  const Pos first = keys.first <= a.kept ? 0 : keys.first, last = keys.last;

  float* const q = reinterpret_cast<float*>(device::dynamic_shared()) + warp * (key_dim + value_dim);
  float* const o = q + key_dim;
  for (int d = lane; d < key_dim; d += 32) {
    q[d] = detail::element_of<Q>(a.q, (Index{row} * a.query_heads + head) * key_dim + d);
  }
  for (int d = lane; d < value_dim; d += 32) {
    o[d] = 0.0F;
  }
  __syncwarp();

  float m = device::minus_infinity;  // largest score so far
  float l = 0.0F;                    // sum of exp(s - m)
#pragma unroll 1
  for (Pos base = kept > 0 ? 0 : first; base < last; base = base < kept && base + 32 >= kept ? first : base + 32) {
    const Pos left = (base < kept ? kept : last) - base;
    const bool visible = lane < left;
    float s = device::minus_infinity;
    Index v_offset = 0;
    [[maybe_unused]] float v_scale = 1.0F;
    if (visible) {
      const RowLocation location = a.batch.locate(sequence, base + lane);
      const std::byte* const k = a.kv.k_row(location.block, kv_head, location.slot);
      v_offset = a.kv.v.offset(location.block, kv_head, location.slot);
      s = 0.0F;
      for (int d = 0; d < key_dim; ++d) {
        s += q[d] * detail::element_of<F>(k, d);
      }
      s *= a.scale * detail::scale_of<F>(a.kv.k_scale(location.block, kv_head, location.slot));
      v_scale = detail::scale_of<F>(a.kv.v_scale(location.block, kv_head, location.slot));
      s = a.softcap > 0 ? a.softcap * tanhf(s / a.softcap) : s;
    }
    const float largest = device::maximum(m, detail::warp_max(s));
    const float reference = largest == device::minus_infinity ? 0.0F : largest;
    const float factor = expf(m - reference);
    const float weight = expf(s - reference);
    m = largest;
    l = l * factor + detail::warp_sum(weight);
    for (int d = lane; d < value_dim; d += 32) {
      o[d] *= factor;
    }
    for (int i = 0; i < 32 && i < left; ++i) {
      const std::byte* const v = a.kv.pool + __shfl_sync(device::all_lanes, v_offset, i);
      float w = __shfl_sync(device::all_lanes, weight, i);
      if constexpr (is_int8(F)) {
        w *= __shfl_sync(device::all_lanes, v_scale, i);
      }
      for (int d = lane; d < value_dim; d += 32) {
        o[d] += w * detail::element_of<F>(v, d);
      }
    }
  }
  if (a.lse != nullptr && lane == 0) {
    a.lse[Index{row} * a.query_heads + head] = l == 0.0F ? device::minus_infinity : m + logf(l);
  }
  const float divisor = a.sinks == nullptr || l == 0.0F ? l : l + expf(a.sinks[head] - m);
  for (int d = lane; d < value_dim; d += 32) {
    detail::store_element<Q>(a.out, (Index{row} * a.query_heads + head) * value_dim + d,
                             divisor == 0.0F ? 0.0F : o[d] / divisor);
  }
}

}  // namespace cuda
}  // namespace v0
}  // namespace kvc
