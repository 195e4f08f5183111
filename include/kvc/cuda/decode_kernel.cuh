// The decode kernels: attention of one row per sequence, in pieces (decode_kernel), and the pieces made one (merge_kernel).
//
// A block of four warps takes an item, one split of 512 positions of one kv head, for all query heads of its GQA group and
// all sequences that the item serves. Step s of warp w are the 16 T positions from 16 T (4 s + w): each warp carries a running
// maximum, sum and output over its steps, and the four states are merged at the end. The scores are computed transposed,
// S^T = K Q^T and O^T += V^T P^T, so that the rows of the tiles are positions and numbers of a head, of which there are many,
// and their eight columns query rows, of which there are few: a GQA group of up to eight heads wastes no register.
//
// While keys are multiplied the values of the same step are on their way, and while values are multiplied the keys of the
// next: each warp has 4 KiB and more in flight at any time, without shared memory or barriers.
//
// The order of operations on a query row follows from the positions alone, and no operation of a row depends on the rows
// beside it. So a row has the same bits in every batch, shared or not.
#pragma once

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <limits>

#include "kvc/cuda/decode_plan.hpp"
#include "kvc/cuda/decode_rows.cuh"
#include "kvc/cuda/device.cuh"
#include "kvc/cuda/view.cuh"

namespace kvc::inline v0::cuda {

/// A DecodePlan in device memory.
struct DecodePlanView {
  const std::int32_t* items;  ///< [2]; how many there are in `narrow` and in `wide`
  const DecodeItem* narrow;
  const DecodeItem* wide;
  const DecodeMember* members;
  const std::int32_t* part_begin;  ///< [batch + 1]
};

/// Arguments of both kernels. Numbers of the outputs are of the format of the queries.
template <Format F>
struct DecodeArguments {
  LayerView<F> kv;
  BatchView batch;
  DecodePlanView plan;
  const std::byte* q;  ///< [batch, query_heads * key_dim]
  std::byte* out;      ///< [batch, query_heads * value_dim]
  float* parts;        ///< [parts, query_heads, value_dim]; outputs of parts, not divided by their sums
  float* part_sums;    ///< [parts, query_heads, 2]; largest score times log2(e), and sum of exponentials relative to it
  std::int32_t query_heads;
  std::int32_t group;  ///< query heads per kv head
  float scale;
  float softcap;
};

namespace detail {

inline constexpr int decode_warps = 4;
inline constexpr int decode_threads = 32 * decode_warps;
inline constexpr float log2_e = 1.4426950408889634F;
inline constexpr float minus_infinity = -std::numeric_limits<float>::infinity();

/// Tiles of 16 positions in a step, so that keys take about 32 registers.
[[nodiscard]] KVC_HOST_DEVICE constexpr int tiles_per_step(Format format, int dim) noexcept {
  const int registers = dim / 32 * 2 * code_bytes(format) * 2;
  return registers <= 8 ? 4 : registers <= 16 ? 2 : 1;
}

/// The format in which keys are multiplied with queries of format Q, and values with weights. Bytes are exact in f16, and
/// queries in bf16 become so by a power of two for each row; the weights of int8 carry the scale of their values, whose
/// range f16 has not.
template <Format F, Format Q>
inline constexpr Format key_format = code_bytes(F) == 2 ? F : Format::f16;
template <Format F, Format Q>
inline constexpr Format value_format = code_bytes(F) == 2  ? F
                                       : F == Format::int8 ? Format::bf16
                                                           : Format::f16;

/// Shared memory of a block. Rows of queries are padded by four chunks, so that eight lanes that read 16 bytes each, four of
/// one row and four of the next, meet all banks once; rows of outputs by one.
template <int D, int N>
struct alignas(16) DecodeShared {
  static constexpr int q_stride = D / 8 + 4;
  static constexpr int o_stride = D + 4;
  uint4 q[8 * N * q_stride];
  float o[decode_warps * 8 * o_stride];
  Index k_offset[split_positions];
  Index v_offset[split_positions];
  float scale[8 * N];
  float m[decode_warps * 8];
  float l[decode_warps * 8];
};

/// The weights of a state in a merge: 2^(m - reference), 0 for the identity.
__device__ __forceinline__ float reference_of(float m) { return m == minus_infinity ? 0.0F : m; }

/// Where an item's rows are: fills the offsets of its positions. What is beyond them is filled with the nearest, so that the
/// loads of a thread need no branch and do not wait for each other.
template <Format F, class Shared>
__device__ __forceinline__ void find_rows(const DecodeArguments<F>& a, const BatchHeader& header,
                                          const DecodeItem& item, Shared& shared) {
  const int split = item.first / split_positions * split_positions;
  const std::int32_t pages = a.batch.kv_indptr[item.sequence];
  Place places[split_positions / decode_threads];
#pragma unroll
  for (int i = 0; i < split_positions / decode_threads; ++i) {
    const Pos position = split + i * decode_threads + static_cast<int>(threadIdx.x);
    const Pos inside = position < item.first ? item.first : position < item.last ? position : item.last - 1;
    places[i] = a.batch.place(header, pages, inside);
  }
#pragma unroll
  for (int i = 0; i < split_positions / decode_threads; ++i) {
    const int at = i * decode_threads + static_cast<int>(threadIdx.x);
    shared.k_offset[at] = a.kv.k.offset(places[i].block, 0, places[i].slot);
    shared.v_offset[at] = a.kv.v.offset(places[i].block, 0, places[i].slot);
  }
}

/// A row of an item: which sequence and query head it is of.
struct RowOfItem {
  DecodeMember member;
  std::int32_t head;
};
template <Format F>
__device__ __forceinline__ RowOfItem row_of(const DecodeArguments<F>& a, const DecodeItem& item, int kv_head, int row) {
  const int member = row / item.heads;
  return {a.plan.members[item.first_member + member],
          kv_head * a.group + item.first_head + (row - member * item.heads)};
}

/// Reads the query rows of an item, in the format that keys are multiplied in, and their scales. A warp takes a row at a
/// time and a lane a chunk of it.
template <Format F, Format Q, int D, int N>
__device__ __forceinline__ void load_queries(const DecodeArguments<F>& a, const DecodeItem& item, int kv_head,
                                             DecodeShared<D, N>& shared) {
  constexpr Format C = key_format<F, Q>;
  const int lane = static_cast<int>(threadIdx.x % 32U), warp = static_cast<int>(threadIdx.x / 32U);
  const int rows = item.members * item.heads, dim = a.kv.key_dim;
#pragma unroll
  for (int i = 0; i < 8 * N / decode_warps; ++i) {
    const int row = i * decode_warps + warp;
    uint4 chunk{0, 0, 0, 0};
    if (row < rows && 8 * lane < dim) {
      const RowOfItem of = row_of(a, item, kv_head, row);
      const Index at = (Index{of.member.sequence} * a.query_heads + of.head) * dim + 8 * lane;
      chunk = device::load_shared<uint4>(a.q + 2 * at);
    }
    float scale = a.softcap > 0 ? a.scale : device::multiply(a.scale, log2_e);
    if constexpr (Q != C) {
      // A row whose largest magnitude is 2^e and more becomes one of 1 and more; what f16 then has not is nothing beside it.
      std::uint32_t words[4] = {chunk.x, chunk.y, chunk.z, chunk.w};
      std::uint32_t largest = 0;
      for (int j = 0; j < 4; ++j) {
        const std::uint32_t low = words[j] << 16 & 0x7fffffffU, high = words[j] & 0x7fff0000U;
        largest = low > largest ? low : largest;
        largest = high > largest ? high : largest;
      }
      for (int distance = 1; distance < 32; distance *= 2) {
        const std::uint32_t other = __shfl_xor_sync(device::all_lanes, largest, distance);
        largest = other > largest ? other : largest;
      }
      const std::uint32_t exponent = largest >> 23 > 253U ? 253U : largest >> 23 < 1U ? 1U : largest >> 23;
      const float shrink = device::from_bits((254U - exponent) << 23);
      for (int j = 0; j < 4; ++j) {
        words[j] = device::pack<C>(device::multiply(device::low_of<Q>(words[j]), shrink),
                                   device::multiply(device::high_of<Q>(words[j]), shrink));
      }
      chunk = {words[0], words[1], words[2], words[3]};
      scale = device::multiply(scale, device::from_bits(exponent << 23));
    }
    if (lane < D / 8) {
      shared.q[row * DecodeShared<D, N>::q_stride + lane] = chunk;
    }
    if (lane == 0) {
      shared.scale[row] = scale;
    }
  }
}

/// One warp's state of 8 N query rows: lane (g, t) has columns 2t and 2t + 1 of each tile of eight.
template <int D, int N>
struct WarpState {
  static constexpr int groups = (D + 63) / 64;
  float o[N][groups][4][4];
  float m[N][2];
  float l[N][2];  // of the lane's positions alone, until the end

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
      m[n][0] = m[n][1] = minus_infinity;
      l[n][0] = l[n][1] = 0.0F;
    }
  }
};

/// Scores become weights, and the state is made relative to the new maximum.
///
///   s       [T][4] of query tile n: positions g (s[0], s[1]) and g + 8, query rows 2t and 2t + 1
template <Format F, int D, int N, int T>
__device__ __forceinline__ void soften(float (&s)[T][4], int n, const KeyRows<F, D, T>& keys, TileRange range,
                                       const float* scales, float softcap, WarpState<D, N>& state) {
  const int lane = static_cast<int>(threadIdx.x % 32U);
  float shrink[2];
#pragma unroll
  for (int e = 0; e < 2; ++e) {
    const float scale = scales[8 * n + 2 * (lane % 4) + e];
    float largest = state.m[n][e];
#pragma unroll
    for (int tile = 0; tile < T; ++tile) {
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        float x = device::multiply(s[tile][2 * i + e], scale);
        if constexpr (F == Format::int8) {
          x = device::multiply(x, keys.scales[tile][i]);
        }
        if (softcap > 0) {
          x = device::multiply(device::multiply(softcap, tanhf(device::divide(x, softcap))), log2_e);
        }
        x = range.has(16 * tile + key_position(lane, i)) ? x : minus_infinity;
        s[tile][2 * i + e] = x;
        largest = device::maximum(largest, x);
      }
    }
    largest = device::largest_of_column(largest);
    const float reference = reference_of(largest);
    shrink[e] = device::power_of_two(device::add(state.m[n][e], -reference));
    state.m[n][e] = largest;
    float sum = 0.0F;
#pragma unroll
    for (int tile = 0; tile < T; ++tile) {
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        s[tile][2 * i + e] = device::power_of_two(device::add(s[tile][2 * i + e], -reference));
        sum = device::add(sum, s[tile][2 * i + e]);
      }
    }
    state.l[n][e] = device::multiply_add(state.l[n][e], shrink[e], sum);
  }
  // Multiplying with one changes no bit, so that it may be left out for a warp in which nothing grew.
  if (__any_sync(device::all_lanes, shrink[0] != 1.0F || shrink[1] != 1.0F)) {
#pragma unroll
    for (int c = 0; c < WarpState<D, N>::groups; ++c) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
#pragma unroll
        for (int j = 0; j < 4; ++j) {
          state.o[n][c][i][j] = device::multiply(state.o[n][c][i][j], shrink[j % 2]);
        }
      }
    }
  }
}

/// S^T = K Q^T for one step.
template <Format F, Format Q, int D, int N, int T>
__device__ __forceinline__ void multiply_keys(const KeyRows<F, D, T>& keys, const DecodeShared<D, N>& shared,
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
          device::multiply_tiles<C>(s[n][tile], rows, b[h]);
        }
      }
    }
  }
}

/// O^T += V^T P^T for one step; s holds the weights.
template <Format F, Format Q, int D, int N, int T>
__device__ __forceinline__ void multiply_values(const ValueRows<F, D, T>& values, const float (&s)[N][T][4],
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
        if constexpr (F == Format::int8) {
          low = device::multiply(low, values.scales[tile][i]);
          high = device::multiply(high, values.scales[tile][i]);
        }
        p[n][i] = device::transpose(device::pack<C>(low, high));
      }
    }
#pragma unroll
    for (int c = 0; c < ValueRows<F, D, T>::groups; ++c) {
      std::uint32_t v[4][4];  // [position of the lane][pair of its chunk]
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
          device::multiply_tiles<C>(state.o[n][c][i], rows, p[n]);
        }
      }
    }
  }
}

/// The states of the four warps become one for each row, and go to the output or to the parts.
template <Format F, Format Q, int D, int N>
__device__ __forceinline__ void finish(const DecodeArguments<F>& a, const DecodeItem& item, int kv_head,
                                       const WarpState<D, N>& state, DecodeShared<D, N>& shared) {
  constexpr int stride = DecodeShared<D, N>::o_stride;
  const int lane = static_cast<int>(threadIdx.x % 32U), warp = static_cast<int>(threadIdx.x / 32U);
  const int g = lane / 4, t = lane % 4, dim = a.kv.value_dim, rows = item.members * item.heads;
#pragma unroll
  for (int n = 0; n < N; ++n) {
    if (8 * n >= rows) {  // the same for all threads
      break;
    }
#pragma unroll
    for (int e = 0; e < 2; ++e) {
      const int row = warp * 8 + 2 * t + e;
#pragma unroll
      for (int c = 0; c < WarpState<D, N>::groups; ++c) {
        float* const o = shared.o + row * stride + 64 * c + 8 * g;
        if (64 * c + 8 * g < D) {
          *reinterpret_cast<float4*>(o) = {state.o[n][c][0][e], state.o[n][c][1][e], state.o[n][c][2][e],
                                           state.o[n][c][3][e]};
          *reinterpret_cast<float4*>(o + 4) = {state.o[n][c][0][2 + e], state.o[n][c][1][2 + e],
                                               state.o[n][c][2][2 + e], state.o[n][c][3][2 + e]};
        }
      }
      const float l = device::sum_of_column(state.l[n][e]);
      if (g == 0) {
        shared.m[row] = state.m[n][e];
        shared.l[row] = l;
      }
    }
    __syncthreads();
    const int row = static_cast<int>(threadIdx.x) / 16;  // sixteen threads to a row
    if (8 * n + row < rows) {
      const RowOfItem of = row_of(a, item, kv_head, 8 * n + row);
      float m = minus_infinity, l = 0.0F, weights[decode_warps];
      for (int w = 0; w < decode_warps; ++w) {
        m = device::maximum(m, shared.m[8 * w + row]);
      }
      const float reference = reference_of(m);
#pragma unroll
      for (int w = 0; w < decode_warps; ++w) {
        weights[w] = device::power_of_two(device::add(shared.m[8 * w + row], -reference));
        l = device::multiply_add(shared.l[8 * w + row], weights[w], l);
      }
      const Index out_row = Index{of.member.sequence} * a.query_heads + of.head;
      const Index part_row = Index{of.member.part} * a.query_heads + of.head;
      for (int d = static_cast<int>(threadIdx.x) % 16 * 4; d < dim; d += 64) {
        float o[4] = {0.0F, 0.0F, 0.0F, 0.0F};
#pragma unroll
        for (int w = 0; w < decode_warps; ++w) {
          const float4 from = *reinterpret_cast<const float4*>(shared.o + (8 * w + row) * stride + d);
          o[0] = device::multiply_add(from.x, weights[w], o[0]);
          o[1] = device::multiply_add(from.y, weights[w], o[1]);
          o[2] = device::multiply_add(from.z, weights[w], o[2]);
          o[3] = device::multiply_add(from.w, weights[w], o[3]);
        }
        if (of.member.part >= 0) {
          *reinterpret_cast<float4*>(a.parts + part_row * dim + d) = {o[0], o[1], o[2], o[3]};
        } else {
          const auto value = [l](float x) { return l == 0.0F ? 0.0F : device::divide(x, l); };
          *reinterpret_cast<uint2*>(a.out + 2 * (out_row * dim + d)) = {device::pack<Q>(value(o[0]), value(o[1])),
                                                                        device::pack<Q>(value(o[2]), value(o[3]))};
        }
      }
      if (of.member.part >= 0 && threadIdx.x % 16U == 0) {
        *reinterpret_cast<float2*>(a.part_sums + 2 * part_row) = {m, l};
      }
    }
    __syncthreads();
  }
}

}  // namespace detail

/// Items of one kind, for 8 N query rows each. Any number of blocks: they share the items and kv heads.
///
///   F  format of the cache    Q  of queries and output: f16 or bf16
///   D  64, 128, 192 or 256: key_dim and value_dim rounded up, both multiples of 8
template <Format F, Format Q, int D, int N>
__global__ void __launch_bounds__(detail::decode_threads)
    decode_kernel(const __grid_constant__ DecodeArguments<F> a, bool wide) {
  static_assert(Q == Format::f16 || Q == Format::bf16);
  static_assert(F == Q || code_bytes(F) == 1);
  constexpr int T = detail::tiles_per_step(F, D);
  constexpr int step = 16 * T * detail::decode_warps;
  static_assert(split_positions % step == 0);
  __shared__ detail::DecodeShared<D, N> shared;
  const int warp = static_cast<int>(threadIdx.x / 32U);
  const BatchHeader header = *a.batch.header;
  const int kv_heads = a.kv.kv_heads, works = a.plan.items[wide ? 1 : 0] * kv_heads;

  for (int work = static_cast<int>(blockIdx.x); work < works; work += static_cast<int>(gridDim.x)) {
    const int kv_head = work % kv_heads;
    const DecodeItem item = (wide ? a.plan.wide : a.plan.narrow)[work / kv_heads];
    __syncthreads();  // the one before is done with the shared memory
    detail::find_rows(a, header, item, shared);
    detail::load_queries<F, Q, D, N>(a, item, kv_head, shared);
    __syncthreads();

    const int split = item.first / split_positions * split_positions;
    const int first = item.first - split, last = item.last - split;  // within the split
    const std::byte* const k = a.kv.pool + kv_head * a.kv.k.head;
    const std::byte* const v = a.kv.pool + kv_head * a.kv.v.head;
    const int base = 16 * T * warp;
    // The steps of this warp that have a visible position.
    int at = first > base + 16 * T - 1 ? (first - base - 16 * T) / step + 1 : 0;
    const int end = last > base ? (last - base - 1) / step + 1 : 0;

    detail::WarpState<D, N> state;
    state.reset();
    detail::KeyRows<F, D, T> keys;
    detail::ValueRows<F, D, T> values;
    if (at < end) {
      keys.load(k, shared.k_offset, {base + at * step, first, last}, a.kv.key_dim);
    }
#pragma unroll 1
    for (; at < end; ++at) {
      const detail::TileRange range{base + at * step, first, last};
      values.load(v, shared.v_offset, range, a.kv.value_dim);
      float s[N][T][4];
      detail::multiply_keys<F, Q, D, N, T>(keys, shared, s);
#pragma unroll
      for (int n = 0; n < N; ++n) {
        detail::soften<F, D, N, T>(s[n], n, keys, range, shared.scale, a.softcap, state);
      }
      if (at + 1 < end) {
        keys.load(k, shared.k_offset, {base + (at + 1) * step, first, last}, a.kv.key_dim);
      }
      detail::multiply_values<F, Q, D, N, T>(values, s, state);
    }
    detail::finish<F, Q, D, N>(a, item, kv_head, state, shared);
  }
}

/// Sequences of several parts, and of none: one block for each sequence and query head, a thread for every four numbers of
/// every fourth part. gridDim.x >= batch, gridDim.y == query_heads.
template <Format F, Format Q>
__global__ void __launch_bounds__(detail::decode_threads) merge_kernel(const __grid_constant__ DecodeArguments<F> a) {
  constexpr int warps = detail::decode_warps, most_dim = 256;
  __shared__ float largest[warps];
  __shared__ float sums[warps];
  alignas(16) __shared__ float outputs[warps * most_dim];
  const int sequence = static_cast<int>(blockIdx.x), head = static_cast<int>(blockIdx.y), dim = a.kv.value_dim;
  const int lane = static_cast<int>(threadIdx.x % 32U), warp = static_cast<int>(threadIdx.x / 32U);
  if (sequence >= a.batch.header->size) {
    return;
  }
  const std::int32_t begin = a.plan.part_begin[sequence], end = a.plan.part_begin[sequence + 1];
  if (end - begin == 1) {
    return;  // it went to the output at once
  }
  const auto row = [&](std::int32_t part) { return Index{part} * a.query_heads + head; };

  float m = detail::minus_infinity;
  for (std::int32_t part = begin + static_cast<std::int32_t>(threadIdx.x); part < end; part += detail::decode_threads) {
    m = device::maximum(m, a.part_sums[2 * row(part)]);
  }
  for (int distance = 1; distance < 32; distance *= 2) {
    m = device::maximum(m, __shfl_xor_sync(device::all_lanes, m, distance));
  }
  if (lane == 0) {
    largest[warp] = m;
  }
  __syncthreads();
  for (int w = 0; w < warps; ++w) {
    m = device::maximum(m, largest[w]);
  }
  const float reference = detail::reference_of(m);

  float l = 0.0F;
  float o[2][4] = {};
#pragma unroll 4
  for (std::int32_t part = begin + warp; part < end; part += warps) {
    const float2 of = *reinterpret_cast<const float2*>(a.part_sums + 2 * row(part));
    const float weight = device::power_of_two(device::add(of.x, -reference));
    l = device::multiply_add(of.y, weight, l);
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      if (128 * i + 4 * lane < dim) {
        const float4 from = *reinterpret_cast<const float4*>(a.parts + row(part) * dim + 128 * i + 4 * lane);
        o[i][0] = device::multiply_add(from.x, weight, o[i][0]);
        o[i][1] = device::multiply_add(from.y, weight, o[i][1]);
        o[i][2] = device::multiply_add(from.z, weight, o[i][2]);
        o[i][3] = device::multiply_add(from.w, weight, o[i][3]);
      }
    }
  }
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    *reinterpret_cast<float4*>(outputs + warp * most_dim + 128 * i + 4 * lane) = {o[i][0], o[i][1], o[i][2], o[i][3]};
  }
  if (lane == 0) {
    sums[warp] = l;
  }
  __syncthreads();
  l = 0.0F;
  for (int w = 0; w < warps; ++w) {
    l = device::add(l, sums[w]);
  }
  for (int d = 2 * static_cast<int>(threadIdx.x); d < dim; d += 2 * detail::decode_threads) {
    float low = 0.0F, high = 0.0F;
    for (int w = 0; w < warps; ++w) {
      low = device::add(low, outputs[w * most_dim + d]);
      high = device::add(high, outputs[w * most_dim + d + 1]);
    }
    low = l == 0.0F ? 0.0F : device::divide(low, l);
    high = l == 0.0F ? 0.0F : device::divide(high, l);
    const Index at = (Index{sequence} * a.query_heads + head) * dim + d;
    *reinterpret_cast<std::uint32_t*>(a.out + 2 * at) = device::pack<Q>(low, high);
  }
}

}  // namespace kvc::inline v0::cuda
