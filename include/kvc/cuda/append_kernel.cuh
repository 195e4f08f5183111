// append_kernel: stores new keys and values in a layer and optionally rotates keys and queries (RoPE).
//
// The stored rows have the bits that KvCache::write and llama::rope produce on a CPU with fused multiply-adds; a NaN
// stays NaN, but may have another payload.
//
// One warp handles one head of one token. Each lane handles 8 elements. If both dims are at most 128, half of the warp
// handles the key and the other half the value; otherwise the warp handles them one after the other.
#pragma once

#include <cstddef>
#include <cstdint>

#include "kvc/core/types.hpp"
#include "kvc/cuda/device.cuh"
#include "kvc/cuda/rows_kernel.cuh"
#include "kvc/cuda/view.cuh"

namespace kvc {
inline namespace v0 {
namespace cuda {

/// Which elements of a head form a pair that RoPE rotates: see llama::Interleaved and llama::HalfSplit.
enum class RopePairing : std::uint8_t { none, interleaved, half_split };

/// Tables of the rotation angles of each position, in device memory.
struct RopeView {
  RopePairing pairing = RopePairing::none;
  std::int32_t rotary_dim = 0;  ///< a multiple of 16, at most key_dim
  const float* cos = nullptr;   ///< [positions, rotary_dim / 2]
  const float* sin = nullptr;
};

/// Arguments of append_kernel. Strides count elements from token to token, so a matrix may be part of a wider one.
template <Format F>
struct AppendArguments {
  LayerView<F> kv;
  BatchView batch;
  const std::byte* k;  ///< [queries, kv_heads * key_dim]
  const std::byte* v;  ///< [queries, kv_heads * value_dim]
  std::byte* q;        ///< [queries, query_heads * key_dim], rotated in place; ignored if query_heads is 0
  Index k_stride;
  Index v_stride;
  Index q_stride;
  std::int32_t query_heads;
  RopeView rope;
};

namespace detail {

/// Loads eight elements of format I at p and converts them to float.
template <Format I>
__device__ __forceinline__ void load_elements(const std::byte* p, float (&x)[8]) {
  if constexpr (I == Format::f32) {
    const float4 low = *reinterpret_cast<const float4*>(p), high = *reinterpret_cast<const float4*>(p + 16);
    x[0] = low.x, x[1] = low.y, x[2] = low.z, x[3] = low.w;
    x[4] = high.x, x[5] = high.y, x[6] = high.z, x[7] = high.w;
  } else {
    const uint4 words = *reinterpret_cast<const uint4*>(p);  // not a read-only load: the kernel also writes queries
    const std::uint32_t all[4] = {words.x, words.y, words.z, words.w};
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      x[2 * i] = device::low_of<I>(all[i]);
      x[2 * i + 1] = device::high_of<I>(all[i]);
    }
  }
}
template <Format I>
__device__ __forceinline__ void store_elements(std::byte* p, const float (&x)[8]) {
  if constexpr (I == Format::f32) {
    *reinterpret_cast<float4*>(p) = {x[0], x[1], x[2], x[3]};
    *reinterpret_cast<float4*>(p + 16) = {x[4], x[5], x[6], x[7]};
  } else {
    *reinterpret_cast<uint4*>(p) = {device::pack<I>(x[0], x[1]), device::pack<I>(x[2], x[3]),
                                    device::pack<I>(x[4], x[5]), device::pack<I>(x[6], x[7])};
  }
}

/// Rotates elements 8 chunk .. 8 chunk + 7 of the head at `head`; x holds these elements.
template <Format I>
__device__ __forceinline__ void rotate(const RopeView& rope, Pos position, const std::byte* head, int chunk,
                                       float (&x)[8]) {
  if (rope.pairing == RopePairing::none || 8 * chunk >= rope.rotary_dim) {
    return;
  }
  const int half = rope.rotary_dim / 2;
  const float* const cos = rope.cos + Index{position} * half;
  const float* const sin = rope.sin + Index{position} * half;
  if (rope.pairing == RopePairing::interleaved) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const float c = cos[4 * chunk + i], s = sin[4 * chunk + i], first = x[2 * i], second = x[2 * i + 1];
      x[2 * i] = device::multiply_add(first, c, -device::multiply(second, s));
      x[2 * i + 1] = device::multiply_add(first, s, device::multiply(second, c));
    }
  } else {
    const bool is_first = 8 * chunk < half;
    const int pair = is_first ? 8 * chunk : 8 * chunk - half;
    float other[8];
    load_elements<I>(head + (is_first ? 8 * chunk + half : pair) * code_bytes(I), other);
#pragma unroll
    for (int i = 0; i < 8; ++i) {
      const float c = cos[pair + i], s = sin[pair + i];
      x[i] = is_first ? device::multiply_add(x[i], c, -device::multiply(other[i], s))
                      : device::multiply_add(other[i], s, device::multiply(x[i], c));
    }
  }
}

/// The scale of an Int8 row whose elements are spread over `lanes` lanes, eight in each; NaN if an element is not
/// finite. All lanes of the warp must take part.
[[nodiscard]] __device__ __forceinline__ float int8_scale(const float (&x)[8], int lanes) {
  std::uint32_t largest = 0;
#pragma unroll
  for (int i = 0; i < 8; ++i) {
    const std::uint32_t magnitude = device::to_bits(x[i]) & 0x7fffffffU;
    largest = magnitude > largest ? magnitude : largest;
  }
  for (int distance = 1; distance < lanes; distance *= 2) {
    const std::uint32_t other = __shfl_xor_sync(device::all_lanes, largest, distance);
    largest = other > largest ? other : largest;
  }
  if (largest >= 0x7f800000U) {
    return device::from_bits(0x7fc00000U);
  }
  const float scale = device::divide(device::from_bits(largest), 127.0F);
  constexpr float least = 1.17549435e-38F;
  const float most = device::from_bits(device::to_bits(device::divide(3.402823466e38F, 127.0F)) - 1U);
  return scale < least ? least : scale > most ? most : scale;
}

/// Stores eight elements of a row in format F. For Int8, `scale` is the scale of the row; chunk 0 stores it.
template <Format F>
__device__ __forceinline__ void store_chunk(std::byte* row, int chunk, int dim, const float (&x)[8], float scale) {
  if constexpr (code_bytes(F) >= 2) {
    store_elements<F>(row + 8 * chunk * code_bytes(F), x);
  } else {
    std::uint32_t words[2] = {0, 0};
#pragma unroll
    for (int i = 0; i < 8; ++i) {
      std::uint32_t code;
      if constexpr (F == Format::fp8_e4m3) {
        code = device::narrow_fp8(x[i]);
      } else {
        const float quotient = scale == scale ? device::divide(x[i], scale) : 0.0F;
        const float rounded = device::add(device::add(quotient, 12582912.0F), -12582912.0F);
        code = static_cast<std::uint32_t>(static_cast<std::int32_t>(rounded)) & 0xffU;
      }
      words[i / 4] |= code << (8 * (i % 4));
    }
    auto* const to = reinterpret_cast<std::uint32_t*>(row + 8 * chunk);
    to[0] = words[0];
    to[1] = words[1];
    if (F == Format::int8 && chunk == 0) {
      *reinterpret_cast<float*>(row + scale_offset(dim)) = scale;
    }
  }
}

}  // namespace detail

/// Stores the keys and values of the query rows of a batch, and rotates the queries. Any grid size works.
///
///   I        format of k, v and q
///   F        format of the cache
///   Halves   key_dim and value_dim are at most 128
template <Format I, Format F, bool Halves>
__global__ void __launch_bounds__(detail::rows_threads) append_kernel(const __grid_constant__ AppendArguments<F> a) {
  constexpr int lanes = Halves ? 16 : 32, unit = code_bytes(I);
  const int lane = static_cast<int>(threadIdx.x % 32U), chunk = lane % lanes;
  const int heads = a.kv.kv_heads + a.query_heads;
  const Index warps = Index{gridDim.x} * (detail::rows_threads / 32);
  const Index works = Index{a.batch.header->queries} * heads;
  for (Index work = Index{blockIdx.x} * (detail::rows_threads / 32) + static_cast<Index>(threadIdx.x / 32U);
       work < works; work += warps) {
    const auto row = static_cast<std::int32_t>(work / heads);
    const auto head = static_cast<int>(work % heads);
    const detail::BatchRow of = detail::batch_row(a.batch, row);
    if (head >= a.kv.kv_heads) {  // a query: all lanes read before any lane writes
      const int dim = a.kv.key_dim;
      std::byte* const at = a.q + (row * a.q_stride + Index{head - a.kv.kv_heads} * dim) * unit;
      const bool mine = lane < lanes && 8 * chunk < dim;
      float x[8] = {};
      if (mine) {
        detail::load_elements<I>(at + 8 * chunk * unit, x);
        detail::rotate<I>(a.rope, of.position, at, chunk, x);
      }
      __syncwarp();
      if (mine) {
        detail::store_elements<I>(at + 8 * chunk * unit, x);
      }
      continue;
    }
    const RowLocation location = a.batch.locate(of.sequence, of.position);
#pragma unroll
    for (int pass = 0; pass < (Halves ? 1 : 2); ++pass) {
      const bool is_key = Halves ? lane < 16 : pass == 0;
      const int dim = is_key ? a.kv.key_dim : a.kv.value_dim;
      const std::byte* const from = is_key ? a.k + (row * a.k_stride + Index{head} * dim) * unit
                                           : a.v + (row * a.v_stride + Index{head} * dim) * unit;
      float x[8] = {};
      if (8 * chunk < dim) {
        detail::load_elements<I>(from + 8 * chunk * unit, x);
        if (is_key) {
          detail::rotate<I>(a.rope, of.position, from, chunk, x);
        }
      }
      float scale = 0.0F;
      if constexpr (F == Format::int8) {
        scale = detail::int8_scale(x, lanes);  // a warp operation: outside the branch below
      }
      if (8 * chunk < dim) {
        std::byte* const to =
            is_key ? a.kv.k_row(location.block, head, location.slot) : a.kv.v_row(location.block, head, location.slot);
        detail::store_chunk<F>(to, chunk, dim, x, scale);
      }
    }
  }
}

}  // namespace cuda
}  // namespace v0
}  // namespace kvc
