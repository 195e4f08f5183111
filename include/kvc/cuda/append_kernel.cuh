// append_kernel: stores new keys and values in a layer and optionally rotates keys and queries (RoPE).
//
// The stored rows have the bits that KvCache::write and llama::rope produce on a CPU with fused multiply-adds; a NaN
// stays NaN, but may have another payload.
//
// A warp takes one row (a token) and keeps its block, its position and its angles of rotation while it goes through the
// heads, several at a time: their loads are in flight together. If there are fewer rows than warps, several warps share
// the heads of a row. Each lane handles 8 elements of a head. If both dims are at most 128, half of the warp handles
// the key and the other half the value, or each half one query; otherwise keys and values follow each other.
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
  const float* cos = nullptr;   ///< [positions, rotary_dim / 2], at a multiple of 16 bytes
  const float* sin = nullptr;   ///< likewise
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

/// Eight elements of format I as they are stored: a chunk of a row.
template <Format I>
struct InputChunk {
  static_assert(code_bytes(I) >= 2);
  static constexpr int size = code_bytes(I) / 2;
  uint4 units[size];
};
template <Format I>
[[nodiscard]] __device__ __forceinline__ InputChunk<I> load_chunk(const std::byte* p) {
  InputChunk<I> out;  // by loads that are not read-only: the kernel also writes queries
  for (int i = 0; i < InputChunk<I>::size; ++i) {
    out.units[i] = *reinterpret_cast<const uint4*>(p + 16 * i);
  }
  return out;
}
template <Format I>
__device__ __forceinline__ void store_chunk(std::byte* p, const InputChunk<I>& chunk) {
  for (int i = 0; i < InputChunk<I>::size; ++i) {
    *reinterpret_cast<uint4*>(p + 16 * i) = chunk.units[i];
  }
}
/// The elements of a chunk as floats.
template <Format I>
__device__ __forceinline__ void to_floats(const InputChunk<I>& chunk, float (&x)[8]) {
#pragma unroll
  for (int i = 0; i < InputChunk<I>::size; ++i) {
    const std::uint32_t words[4] = {chunk.units[i].x, chunk.units[i].y, chunk.units[i].z, chunk.units[i].w};
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      if constexpr (I == Format::f32) {
        x[4 * i + j] = device::from_bits(words[j]);
      } else {
        x[2 * j] = device::low_of<I>(words[j]);
        x[2 * j + 1] = device::high_of<I>(words[j]);
      }
    }
  }
}

/// The arguments that store the latent rows of one head, in parts: the first half of a row as keys of several heads,
/// the second half as their values. `rows` have `stride` elements of format I each. key_dim must be a multiple of 16.
template <Format I, Format F>
[[nodiscard]] AppendArguments<F> latent_append_arguments(const LayerView<F>& kv, const BatchView& batch,
                                                         const std::byte* rows, Index stride, std::int32_t head) {
  const std::int32_t half = kv.key_dim / 2;
  std::int32_t dim = 128;  // the largest part that a half of a warp copies at once
  while (half % dim != 0) {
    dim -= 8;
  }
  LayerView<F> parts = kv;
  parts.k.base += head * kv.k.head;
  parts.k.head = Index{dim} * code_bytes(F);
  parts.v = parts.k;
  parts.v.base += Index{half} * code_bytes(F);
  parts.kv_heads = half / dim;
  parts.key_dim = parts.value_dim = dim;
  const std::byte* const first = rows + Index{head} * kv.key_dim * code_bytes(I);
  return {parts, batch, first, first + Index{half} * code_bytes(I), nullptr, stride, stride, 0, 0, {}};
}

/// How a lane rotates the 8 elements of its chunk, in each head of one position: element i becomes
/// first[i] * by_first[i] + second[i] * by_second[i], where (first[i], second[i]) is the pair that it belongs to.
struct Rotation {
  bool applies;  ///< whether RoPE rotates this chunk of a key
  int first;     ///< the chunk that holds the first elements of the pairs
  int second;    ///< the chunk that holds the second elements; the same if interleaved
  float by_first[8];
  float by_second[8];

  /// Loads the angles of a position.
  __device__ __forceinline__ Rotation(const RopeView& rope, Pos position, int chunk)
      : applies(rope.pairing != RopePairing::none && 8 * chunk < rope.rotary_dim), first(chunk), second(chunk) {
    if (!applies) {
      return;
    }
    const int half = rope.rotary_dim / 2;
    const bool interleaved = rope.pairing == RopePairing::interleaved, is_first = 8 * chunk < half;
    int pair = 4 * chunk;
    if (!interleaved) {
      first = is_first ? chunk : chunk - half / 8;
      second = first + half / 8;
      pair = 8 * first;
    }
    const Index at = Index{position} * half + pair;
    const auto load = [at](const float* from, int i) { return *reinterpret_cast<const float4*>(from + at + i); };
    const float4 c0 = load(rope.cos, 0), s0 = load(rope.sin, 0);
    if (interleaved) {
      const float c[4] = {c0.x, c0.y, c0.z, c0.w}, s[4] = {s0.x, s0.y, s0.z, s0.w};
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        by_first[2 * i] = c[i], by_second[2 * i] = -s[i];
        by_first[2 * i + 1] = s[i], by_second[2 * i + 1] = c[i];
      }
    } else {
      const float4 c1 = load(rope.cos, 4), s1 = load(rope.sin, 4);
      const float c[8] = {c0.x, c0.y, c0.z, c0.w, c1.x, c1.y, c1.z, c1.w};
      const float s[8] = {s0.x, s0.y, s0.z, s0.w, s1.x, s1.y, s1.z, s1.w};
#pragma unroll
      for (int i = 0; i < 8; ++i) {
        by_first[i] = is_first ? c[i] : s[i];
        by_second[i] = is_first ? -s[i] : c[i];
      }
    }
  }
  /// x, the elements of chunk `first`, becomes the rotated elements; y holds those of chunk `second`.
  __device__ __forceinline__ void apply(bool interleaved, float (&x)[8], float (&y)[8]) const {
    if (interleaved) {
#pragma unroll
      for (int i = 0; i < 8; i += 2) {
        y[i] = y[i + 1];
        x[i + 1] = x[i];
      }
    }
#pragma unroll
    for (int i = 0; i < 8; ++i) {
      // The product that is rounded is -(second * sin), or second * cos.
      x[i] = device::multiply_add(x[i], by_first[i], device::multiply(y[i], by_second[i]));
    }
  }
};

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

/// Stores eight elements of a row in format F. For Int8, `scale` is the scale of the row; chunk 0 stores it at
/// `scale_to`.
template <Format F>
__device__ __forceinline__ void store_elements(std::byte* row, std::byte* scale_to, int chunk, const float (&x)[8],
                                               float scale) {
  if constexpr (F == Format::f32) {
    *reinterpret_cast<float4*>(row + 32 * chunk) = {x[0], x[1], x[2], x[3]};
    *reinterpret_cast<float4*>(row + 32 * chunk + 16) = {x[4], x[5], x[6], x[7]};
  } else if constexpr (code_bytes(F) == 2) {
    *reinterpret_cast<uint4*>(row + 16 * chunk) = {device::pack<F>(x[0], x[1]), device::pack<F>(x[2], x[3]),
                                                   device::pack<F>(x[4], x[5]), device::pack<F>(x[6], x[7])};
  } else {
    std::uint32_t words[2];
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      if constexpr (F == Format::fp8_e4m3) {
        words[i] = device::narrow_fp8(x[4 * i], x[4 * i + 1]) | device::narrow_fp8(x[4 * i + 2], x[4 * i + 3]) << 16;
      } else {
        words[i] = 0;
#pragma unroll
        for (int j = 0; j < 4; ++j) {
          const float quotient = scale == scale ? device::divide(x[4 * i + j], scale) : 0.0F;
          // The low byte of a float of this size is that of the integer.
          words[i] |= (device::to_bits(device::add(quotient, 12582912.0F)) & 0xffU) << (8 * j);
        }
      }
    }
    auto* const to = reinterpret_cast<std::uint32_t*>(row + 8 * chunk);
    to[0] = words[0];
    to[1] = words[1];
    if (is_int8(F) && chunk == 0) {
      *reinterpret_cast<float*>(scale_to) = scale;
    }
  }
}

/// Where a lane finds its rows of a few heads: keys, values or queries.
struct HeadRows {
  const std::byte* from;  ///< the row of the first head
  Index from_stride;      ///< bytes from head to head
  std::byte* to;
  Index to_stride;
  int dim;
  int heads;                   ///< that are left; the lane stores as many of them as fit a step
  bool rotates;                ///< whether its chunk is rotated
  std::byte* scale = nullptr;  ///< of int8: the scale of the first head
  Index scale_stride = 0;
};

/// Heads of a step. A step loads all of its chunks before it stores any.
inline constexpr int copied_heads = 4, converted_heads = 2;

/// Copies the rows of a step as they are.
template <Format F>
__device__ __forceinline__ void copy_heads(const HeadRows& rows, int chunk) {
  const int at = 8 * chunk * code_bytes(F);
  InputChunk<F> all[copied_heads];
#pragma unroll
  for (int i = 0; i < copied_heads; ++i) {
    if (8 * chunk < rows.dim && i < rows.heads) {
      all[i] = load_chunk<F>(rows.from + i * rows.from_stride + at);
    }
  }
#pragma unroll
  for (int i = 0; i < copied_heads; ++i) {
    if (8 * chunk < rows.dim && i < rows.heads) {
      store_chunk<F>(rows.to + i * rows.to_stride + at, all[i]);
    }
  }
}

/// Rotates the rows of a step, if the lane's rows are to be, and stores them in format F. All lanes of the warp take
/// part.
template <Format I, Format F, int Lanes>
__device__ __forceinline__ void convert_heads(const HeadRows& rows, int chunk, const Rotation& rotation,
                                              bool interleaved) {
  constexpr int unit = 8 * code_bytes(I);
  const bool inside = 8 * chunk < rows.dim;
  const int own = (rows.rotates ? rotation.first : chunk) * unit, partner = rotation.second * unit;
  InputChunk<I> first[converted_heads] = {}, second[converted_heads] = {};
#pragma unroll
  for (int i = 0; i < converted_heads; ++i) {
    if (inside && i < rows.heads) {
      first[i] = load_chunk<I>(rows.from + i * rows.from_stride + own);
    }
    if (rows.rotates && i < rows.heads) {
      second[i] = load_chunk<I>(rows.from + i * rows.from_stride + partner);
    }
  }
  __syncwarp();  // queries are rotated in place: all lanes read before any lane writes
#pragma unroll
  for (int i = 0; i < converted_heads; ++i) {
    float x[8];
    to_floats(first[i], x);
    if (rows.rotates) {
      float y[8];
      to_floats(second[i], y);
      rotation.apply(interleaved, x, y);
    }
    float scale = 0.0F;
    if constexpr (is_int8(F)) {
      scale = int8_scale(x, Lanes);  // a warp operation: outside the branch below
    }
    if (inside && i < rows.heads) {
      store_elements<F>(rows.to + i * rows.to_stride, is_int8(F) ? rows.scale + i * rows.scale_stride : nullptr, chunk,
                        x, scale);
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
__global__ void __launch_bounds__(detail::rows_threads, I == Format::f32 ? 2 : 3)
    append_kernel(const __grid_constant__ AppendArguments<F> a) {
  constexpr int lanes = Halves ? 16 : 32, unit = code_bytes(I);
  const int lane = static_cast<int>(threadIdx.x % 32U), chunk = lane % lanes, half = lane / lanes;
  const bool rotates = a.rope.pairing != RopePairing::none, interleaved = a.rope.pairing == RopePairing::interleaved;
  // Steps of a row: its keys and values, or first all keys and then all values; then its queries, in pairs if Halves.
  const int at_once = I == F && !rotates ? detail::copied_heads : detail::converted_heads;
  constexpr int queries_at_once = detail::converted_heads * (Halves ? 2 : 1);
  const int key_steps = (a.kv.kv_heads + at_once - 1) / at_once, kv_steps = Halves ? key_steps : 2 * key_steps;
  const int steps = kv_steps + (rotates ? (a.query_heads + queries_at_once - 1) / queries_at_once : 0);

  const Index warps = Index{gridDim.x} * (detail::rows_threads / 32);
  const Index rows = a.batch.header->queries;
  int shift = 0;  // 2^shift warps share a row
  while (1 << shift < steps && rows << (shift + 1) <= warps) {
    ++shift;
  }
  for (Index work = Index{blockIdx.x} * (detail::rows_threads / 32) + static_cast<Index>(threadIdx.x / 32U);
       work < rows << shift; work += warps) {
    const auto row = static_cast<std::int32_t>(work >> shift);
    const int first_step = static_cast<int>(work - (Index{row} << shift));
    const detail::BatchRow of = detail::batch_row(a.batch, row);
    const RowLocation location = a.batch.locate(of.sequence, of.position);
    const detail::Rotation rotation(a.rope, of.position, chunk);
#pragma unroll 1
    for (int step = first_step; step < steps; step += 1 << shift) {
      if (step < kv_steps) {
        const bool is_key = Halves ? half == 0 : step < key_steps;
        const int head = at_once * (Halves || is_key ? step : step - key_steps);
        const int dim = is_key ? a.kv.key_dim : a.kv.value_dim;
        const Index stride = is_key ? a.k_stride : a.v_stride;
        detail::HeadRows heads{
            (is_key ? a.k : a.v) + (row * stride + Index{head} * dim) * unit,
            Index{dim} * unit,
            is_key ? a.kv.k_row(location.block, head, location.slot) : a.kv.v_row(location.block, head, location.slot),
            is_key ? a.kv.k.head : a.kv.v.head,
            dim,
            a.kv.kv_heads - head,
            is_key && rotation.applies};
        if constexpr (F == Format::int8_planes) {
          heads.scale = is_key ? a.kv.k_scale(location.block, head, location.slot)
                               : a.kv.v_scale(location.block, head, location.slot);
          heads.scale_stride = is_key ? a.kv.k_scales.head : a.kv.v_scales.head;
        } else if constexpr (F == Format::int8) {
          heads.scale = heads.to + scale_offset(dim);
          heads.scale_stride = heads.to_stride;
        }
        if constexpr (I == F) {
          if (!rotates) {
            detail::copy_heads<F>(heads, chunk);
            continue;
          }
        }
        detail::convert_heads<I, F, lanes>(heads, chunk, rotation, interleaved);
      } else {
        const int head = queries_at_once * (step - kv_steps) + half, dim = a.kv.key_dim, left = a.query_heads - head;
        std::byte* const at = a.q + (row * a.q_stride + Index{head} * dim) * unit;
        const Index stride = Index{Halves ? 2 * dim : dim} * unit;
        detail::convert_heads<I, I, lanes>(
            {at, stride, at, stride, dim, Halves ? (left + 1) / 2 : left, rotation.applies}, chunk, rotation,
            interleaved);
      }
    }
  }
}

}  // namespace cuda
}  // namespace v0
}  // namespace kvc
