// decode_kernel: attention of the query rows of a plan, one split of keys at a time. merge_kernel.cuh merges the
// splits.
//
// A thread block of four warps takes a work item: one split of 512 positions of one kv head, for all query heads of its
// GQA group and all rows that share the split. Step s of warp w covers the 16 T positions from 16 T (4 s + w).
// Each warp keeps a running maximum, sum and output over its steps. At the end of each half of the split the block
// merges the four states, and then that of the first half with that of the second; if the plan is in halves, an item
// ends there, and the merge of partial results goes on. Scores
// and outputs are computed transposed, S^T = K Q^T and O^T += V^T P^T: the 16 rows of an mma tile are then positions
// and elements of a head, of which there are many, and its eight columns are query rows, of which there are few. A GQA
// group of up to eight heads wastes no register.
//
// A warp loads the values of a step while it multiplies the keys, and the keys of the next step while it multiplies the
// values. So at least 4 KiB per warp are in flight at any time, without shared memory or barriers.
//
// The order of operations on a query row depends on its positions only, and no operation mixes rows. So a row has the
// same bits in every batch, shared or not.
#pragma once

#include <cstddef>
#include <cstdint>

#include "kvc/core/types.hpp"
#include "kvc/cuda/decode_plan.hpp"
#include "kvc/cuda/decode_rows.cuh"
#include "kvc/cuda/decode_tile.cuh"
#include "kvc/cuda/device.cuh"
#include "kvc/cuda/view.cuh"

namespace kvc {
inline namespace v0 {
namespace cuda {

/// A DecodePlan in device memory; see there for the arrays.
struct DecodePlanView {
  const std::int32_t* counts;  ///< [4]; items in `narrow` and in `wide`, rows, and partial results of a split
  const DecodeItem* narrow;
  const DecodeItem* wide;
  const DecodeMember* members;
  const std::int32_t* partial_begin;  ///< [rows + 1]; splits before those of each row
};

/// Arguments of decode_kernel and merge_kernel. q and out have elements of format Q, f16 or bf16.
template <Format F>
struct DecodeArguments {
  LayerView<F> kv;
  BatchView batch;
  DecodePlanView plan;
  const std::byte* q;   ///< [rows, query_heads * key_dim]
  std::byte* out;       ///< [rows, query_heads * value_dim]
  float* lse;           ///< [rows, query_heads] natural logarithms, or null
  const float* sinks;   ///< [query_heads] logits, or null
  float* partials;      ///< [partials, query_heads, value_dim]; outputs of splits, not divided by their sums
  float* partial_sums;  ///< [partials, query_heads, 2]; largest score * log2(e), and sum of exponentials relative to
                        ///< it; no_half where there is no such half
  std::int32_t query_heads;
  std::int32_t group;  ///< query heads per kv head
  float scale;
  float softcap;
  bool aligned;  ///< all rows begin at multiples of 16 bytes
};

namespace detail {

/// Whether all rows of a layer begin at multiples of 16 bytes.
template <Format F>
[[nodiscard]] bool has_aligned_rows(const LayerView<F>& kv) noexcept {
  return rows_begin_at(kv.k, 16) && rows_begin_at(kv.v, 16) && reinterpret_cast<std::uintptr_t>(kv.pool) % 16 == 0;
}

/// Fills the offsets of an item's positions in the pool. Positions outside [first, last) get the nearest one inside, so
/// that the loads of a thread need no branch and are all in flight at once. Of int8_planes, whose values lie as their
/// keys do, loads the scales in the place of the values' offsets.
template <Format F, class Shared>
__device__ __forceinline__ void locate_rows(const DecodeArguments<F>& a, const BatchHeader& header,
                                            const DecodeItem& item, int kv_head, Shared& shared) {
  const int split = item.first / split_positions * split_positions;
  const std::int32_t first_entry = a.batch.kv_indptr[item.sequence];
  const EntryGap gap = a.batch.gap(header, item.sequence);
  RowLocation locations[split_positions / decode_threads];
#pragma unroll
  for (int i = 0; i < split_positions / decode_threads; ++i) {
    const Pos position = split + i * decode_threads + static_cast<int>(threadIdx.x);
    const Pos inside = position < item.first ? item.first : position < item.last ? position : item.last - 1;
    locations[i] = a.batch.locate(header, first_entry, gap.without(inside));
  }
#pragma unroll
  for (int i = 0; i < split_positions / decode_threads; ++i) {
    const int at = i * decode_threads + static_cast<int>(threadIdx.x);
    const RowLocation& of = locations[i];
    shared.k_offset[at] = a.kv.k.offset(of.block, 0, of.slot);
    if constexpr (F == Format::int8_planes) {
      const bool visible = item.first <= split + at && split + at < item.last;
      shared.scales[0][at] = visible ? device::load_readonly<float>(a.kv.k_scale(of.block, kv_head, of.slot)) : 0.0F;
      shared.scales[1][at] = visible ? device::load_readonly<float>(a.kv.v_scale(of.block, kv_head, of.slot)) : 0.0F;
    } else {
      shared.v_offset[at] = a.kv.v.offset(of.block, 0, of.slot);
    }
  }
}

/// The member and query head of one row of queries of an item.
struct ItemRow {
  DecodeMember member;
  std::int32_t head;
};
template <Format F>
__device__ __forceinline__ ItemRow item_row(const DecodeArguments<F>& a, const DecodeItem& item, int kv_head, int row) {
  const int member = row / item.heads;
  return {a.plan.members[item.first_member + member],
          kv_head * a.group + item.first_head + (row - member * item.heads)};
}

/// Loads the query rows of an item to shared memory, in the format that keys are multiplied in, with a scale for each.
/// A warp loads one row at a time, a lane one chunk of it.
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
      const ItemRow of = item_row(a, item, kv_head, row);
      const Index at = (Index{of.member.row} * a.query_heads + of.head) * dim + 8 * lane;
      chunk = device::load_readonly<uint4>(a.q + 2 * at);
    }
    float scale = a.softcap > 0 ? a.scale : device::multiply(a.scale, device::log2_e);
    if constexpr (Q != C) {
      // Multiplies the row by a power of two such that its largest magnitude lies in [1, 2), and its scale by the
      // inverse. Both are exact, but for elements below 2^-14 of the largest, which f16 rounds.
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
      const float normaliser = device::from_bits((254U - exponent) << 23);
      for (int j = 0; j < 4; ++j) {
        words[j] = device::pack<C>(device::multiply(device::low_of<Q>(words[j]), normaliser),
                                   device::multiply(device::high_of<Q>(words[j]), normaliser));
      }
      chunk = {words[0], words[1], words[2], words[3]};
      scale = device::multiply(scale, device::from_bits(exponent << 23));
    }
    if (lane < D / 8) {
      shared.q[row * DecodeShared<D, N>::q_stride + query_place(F, lane)] = chunk;
    }
    if (lane == 0) {
      shared.scale[row] = scale;
    }
  }
}

/// The sum of a half without visible positions.
inline constexpr float no_half = -1.0F;

/// How the states of the two halves of a split become one: o = o0 * by_first + o1 * by_second.
struct HalvesMerged {
  float m, l, by_first, by_second;

  __device__ __forceinline__ HalvesMerged(float2 first, float2 second) : m(device::maximum(first.x, second.x)) {
    const float reference = reference_of(m);
    by_first = device::exp2(device::add(first.x, -reference));
    by_second = device::exp2(device::add(second.x, -reference));
    l = output(first.y, second.y);
  }
  /// An element of the merged output, from those of the halves.
  [[nodiscard]] __device__ __forceinline__ float output(float first, float second) const {
    return device::multiply_add(second, by_second, device::multiply(first, by_first));
  }
};

/// Merges the states of the four warps for each row, and stores the result.
///
///   second  the item has the first half of the split, too, which was stored before: merges it
///   last    the item ends here; stores the result to the output, or to the partial results
template <Format F, Format Q, int D, int N>
__device__ __forceinline__ void merge_and_store(const DecodeArguments<F>& a, const DecodeItem& item, int kv_head,
                                                const WarpState<D, N>& state, DecodeShared<D, N>& shared, bool second,
                                                bool last) {
  constexpr int stride = DecodeShared<D, N>::o_stride;
  const int lane = static_cast<int>(threadIdx.x % 32U), warp = static_cast<int>(threadIdx.x / 32U);
  const int g = lane / 4, t = lane % 4, dim = a.kv.value_dim, rows = item.members * item.heads;
#pragma unroll
  for (int n = 0; n < N; ++n) {
    if (8 * n >= rows) {  // uniform over the block
      break;
    }
#pragma unroll
    for (int e = 0; e < 2; ++e) {
      const int row = warp * 8 + 2 * t + e;
#pragma unroll
      for (int c = 0; c < WarpState<D, N>::groups; ++c) {
        const int chunk = value_chunk(F, lane, c, WarpState<D, N>::groups);
        float* const o = shared.o + row * stride + 8 * chunk;
        if (8 * chunk < D) {
          *reinterpret_cast<float4*>(o) = {state.o[n][c][0][e], state.o[n][c][1][e], state.o[n][c][2][e],
                                           state.o[n][c][3][e]};
          *reinterpret_cast<float4*>(o + 4) = {state.o[n][c][0][2 + e], state.o[n][c][1][2 + e],
                                               state.o[n][c][2][2 + e], state.o[n][c][3][2 + e]};
        }
      }
      const float l = device::column_sum(state.l[n][e]);
      if (g == 0) {
        shared.m[row] = state.m[n][e];
        shared.l[row] = l;
      }
    }
    __syncthreads();
    const int row = static_cast<int>(threadIdx.x) / 16;  // sixteen threads per row
    float2* sums_to = nullptr;
    float2 row_sums{};
    if (8 * n + row < rows) {
      const ItemRow of = item_row(a, item, kv_head, 8 * n + row);
      float m = device::minus_infinity, l = 0.0F, weights[decode_warps];
      for (int w = 0; w < decode_warps; ++w) {
        m = device::maximum(m, shared.m[8 * w + row]);
      }
      const float reference = reference_of(m);
#pragma unroll
      for (int w = 0; w < decode_warps; ++w) {
        weights[w] = device::exp2(device::add(shared.m[8 * w + row], -reference));
        l = device::multiply_add(shared.l[8 * w + row], weights[w], l);
      }
      const Index out_row = Index{of.member.row} * a.query_heads + of.head;
      const Index partial_row = Index{of.member.place()} * a.query_heads + of.head;
      float2* const sums = reinterpret_cast<float2*>(a.partial_sums) + partial_row;
      const float2 own{m, l};
      const HalvesMerged both(second ? *sums : own, own);
      if (second) {
        m = both.m;
        l = both.l;
      }
      const bool whole = last && of.member.partial < 0;
      const float divisor = device::sink_divisor(a.sinks, of.head, m, l);
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
        float4* const partial = reinterpret_cast<float4*>(a.partials + partial_row * dim + d);
        if (second) {
          const float4 first = *partial;
          o[0] = both.output(first.x, o[0]);
          o[1] = both.output(first.y, o[1]);
          o[2] = both.output(first.z, o[2]);
          o[3] = both.output(first.w, o[3]);
        }
        if (!whole) {
          *partial = {o[0], o[1], o[2], o[3]};
        } else {
          // Adding 0 turns -0 into 0, as the merge of several partial results does.
          const auto value = [divisor](float x) {
            return divisor == 0.0F ? 0.0F : device::divide(device::add(x, 0.0F), divisor);
          };
          *reinterpret_cast<uint2*>(a.out + 2 * (out_row * dim + d)) = {device::pack<Q>(value(o[0]), value(o[1])),
                                                                        device::pack<Q>(value(o[2]), value(o[3]))};
        }
      }
      if (threadIdx.x % 16U == 0) {
        if (!whole) {
          sums_to = sums;
          row_sums = {m, l};
        } else if (a.lse != nullptr) {
          a.lse[out_row] = device::log_sum_exp(m, l);
        }
      }
    }
    __syncthreads();
    if (sums_to != nullptr) {  // now that all threads of the row have read those of the first half
      *sums_to = row_sums;
      if (item.empty != 0) {
        sums_to[Index{item.empty} * a.query_heads] = {device::minus_infinity, no_half};
      }
    }
  }
}

}  // namespace detail

/// Computes the items of one list, with 8 N query rows each. Any grid size works: the blocks share items and kv heads.
///
///   F     format of the cache
///   Q     format of queries and output, f16 or bf16
///   D     64, 128, 192 or 256: key_dim and value_dim, both multiples of 8, rounded up
///   wide  which of the two lists
template <Format F, Format Q, int D, int N>
__global__ void __launch_bounds__(detail::decode_threads)
    decode_kernel(const __grid_constant__ DecodeArguments<F> a, bool wide) {
  static_assert(Q == Format::f16 || Q == Format::bf16);
  static_assert(F == Q || code_bytes(F) == 1);
  constexpr int T = detail::tiles_per_step(F, D);
  constexpr int step = 16 * T * detail::decode_warps;
  static_assert(half_positions % step == 0);
  __shared__ detail::DecodeShared<D, N> shared;
  const int warp = static_cast<int>(threadIdx.x / 32U);
  const int kv_heads = a.kv.kv_heads, works = a.plan.counts[wide ? 1 : 0] * kv_heads;
  device::release_dependents();

  for (int work = static_cast<int>(blockIdx.x); work < works; work += static_cast<int>(gridDim.x)) {
    const int kv_head = work % kv_heads;
    const DecodeItem item = (wide ? a.plan.wide : a.plan.narrow)[work / kv_heads];
    __syncthreads();  // the item before is done with the shared memory
    detail::locate_rows(a, *a.batch.header, item, kv_head, shared);
    detail::load_queries<F, Q, D, N>(a, item, kv_head, shared);
    __syncthreads();

    const int split = item.first / split_positions * split_positions;
    const int first = item.first - split, last = item.last - split;  // relative to the split
    const std::byte* const k = a.kv.pool + kv_head * a.kv.k.head;
    constexpr bool planes = F == Format::int8_planes;
    const Index* const v_offset = planes ? shared.k_offset : shared.v_offset;
    const std::byte* const v = a.kv.pool + kv_head * a.kv.v.head + (planes ? a.kv.v.base - a.kv.k.base : 0);
    const int base = 16 * T * warp;
    // The steps of this warp that have a visible position.
    int at = first > base + 16 * T - 1 ? (first - base - 16 * T) / step + 1 : 0;
    const int end = last > base ? (last - base - 1) / step + 1 : 0;

    detail::WarpState<D, N> state;
    detail::KeyRows<F, D, T, N == 1> keys;  // items of more than eight rows may share keys: these stay in the cache
    detail::ValueRows<F, D, T, N == 1> values;
    if (at < end) {
      keys.load(k, shared.k_offset, {base + at * step, first, last}, a.kv.key_dim, a.aligned, shared.scales[0]);
    }
#pragma unroll 1
    for (int past = first < half_positions ? half_positions : split_positions;; past += half_positions) {
      const int until = past / step < end ? past / step : end;
      state.reset();
#pragma unroll 1
      for (; at < until; ++at) {
        const detail::TileRange range{base + at * step, first, last};
        values.load(v, v_offset, range, a.kv.value_dim, a.aligned, shared.scales[1]);
        float s[N][T][4];
        detail::multiply_keys<F, Q, D, N, T>(keys, shared, s);
#pragma unroll
        for (int n = 0; n < N; ++n) {
          detail::online_softmax<F, D, N, T>(s[n], n, keys, range, shared.scale, a.softcap, state);
        }
        if (at + 1 < end) {
          keys.load(k, shared.k_offset, {base + (at + 1) * step, first, last}, a.kv.key_dim, a.aligned,
                    shared.scales[0]);
        }
        detail::multiply_values<F, Q, D, N, T>(values, s, state);
      }
      const bool ends = past >= last;
      detail::merge_and_store<F, Q, D, N>(a, item, kv_head, state, shared,
                                          past > half_positions && first < half_positions, ends);
      if (ends) {
        break;
      }
    }
  }
  // This launch ends after those that it depends on, so what depends on it need wait for no other.
  device::wait_for_launches_before();
}

}  // namespace cuda
}  // namespace v0
}  // namespace kvc
