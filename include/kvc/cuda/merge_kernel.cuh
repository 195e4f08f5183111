// merge_kernel: merges the partial results that decode_kernel leaves for the splits of a row.
//
// With m = max m[i] over the partial results i:  output = sum 2^(m[i] - m) o[i] / sum 2^(m[i] - m) l[i]; see
// attention/state.hpp. If the plan is in halves, the two halves of each split become one first, as decode_kernel would
// have merged them. Each of four warps adds every fourth split in ascending order, then the four sums are added. So the
// order depends on the number of splits of the row only.
//
// The kernel may begin while those before it still run: it waits for them before it reads what they have written.
//
// A thread block takes one row and query head. Where that leaves a device idle, since there are few rows, it takes 32
// elements of them: what is added to an element, and in which order, is the same.
#pragma once

#include <cstddef>
#include <cstdint>

#include "kvc/core/types.hpp"
#include "kvc/cuda/decode_kernel.cuh"
#include "kvc/cuda/device.cuh"

namespace kvc {
inline namespace v0 {
namespace cuda {
namespace detail {

/// Thread blocks of the merge below which each takes 32 elements: as many as a large device holds at once.
inline constexpr Index merge_blocks = 1024;

/// Thread blocks that take 32 elements each, for one row and query head.
[[nodiscard]] KVC_HOST_DEVICE constexpr int merge_parts(int dim) noexcept { return (dim + 31) / 32; }
/// The grid of merge_kernel for at most so many rows.
[[nodiscard]] constexpr Index merge_grid(Index rows, Index query_heads, Index dim) noexcept {
  const Index whole = rows * query_heads, parts = whole * merge_parts(static_cast<int>(dim));
  return whole > merge_blocks ? whole : parts < merge_blocks ? parts : merge_blocks;
}

/// The splits [begin, end) of a row, with so many partial results each.
struct RowSplits {
  std::int32_t begin;
  std::int32_t end;
  std::int32_t parts;
};

/// Merges elements [first, first + 32 * Width * Each) of a row, as far as there are; lane l has Width of them each
/// time.
template <int Width, int Each, Format Q, Format F>
__device__ __forceinline__ void merge_elements(const DecodeArguments<F>& a, const RowSplits& splits, std::int32_t row,
                                               std::int32_t head, int first) {
  constexpr int warps = decode_warps, most = 32 * Width * Each;
  __shared__ float largest[warps];
  __shared__ float sums[warps];
  alignas(16) __shared__ float outputs[warps * most];
  const int lane = static_cast<int>(threadIdx.x % 32U), warp = static_cast<int>(threadIdx.x / 32U);
  const int dim = a.kv.value_dim;
  const auto [begin, end, parts] = splits;
  const auto row_of = [&](std::int32_t partial) { return Index{partial} * a.query_heads + head; };
  const auto sums_of = [&](std::int32_t partial) {
    return *reinterpret_cast<const float2*>(a.partial_sums + 2 * row_of(partial));
  };

  float m = device::minus_infinity;
  for (std::int32_t partial = parts * begin + static_cast<std::int32_t>(threadIdx.x); partial < parts * end;
       partial += decode_threads) {
    m = device::maximum(m, a.partial_sums[2 * row_of(partial)]);
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
  const float reference = reference_of(m);

  float l = 0.0F;
  float o[Each][Width] = {};
  const auto load = [&](std::int32_t partial, int at, float(&to)[Width]) {
    if constexpr (Width == 4) {
      *reinterpret_cast<float4*>(to) = *reinterpret_cast<const float4*>(a.partials + row_of(partial) * dim + at);
    } else {
      to[0] = a.partials[row_of(partial) * dim + at];
    }
  };
  // Adds a split; complete(at, from) may change the elements `at` and behind of a partial result that were loaded.
  const auto add = [&](float2 of, std::int32_t partial, auto complete) {
    const float weight = device::exp2(device::add(of.x, -reference));
    l = device::multiply_add(of.y, weight, l);
#pragma unroll
    for (int i = 0; i < Each; ++i) {
      const int at = first + (32 * i + lane) * Width;
      if (at < dim) {
        float from[Width];
        load(partial, at, from);
        complete(at, from);
#pragma unroll
        for (int e = 0; e < Width; ++e) {
          o[i][e] = device::multiply_add(from[e], weight, o[i][e]);
        }
      }
    }
  };
  if (parts == 1) {
#pragma unroll(Width == 1 ? 8 : 4)
    for (std::int32_t split = begin + warp; split < end; split += warps) {
      add(sums_of(split), split, [](int, float(&)[Width]) {});
    }
  } else {
#pragma unroll 2
    for (std::int32_t split = begin + warp; split < end; split += warps) {
      const float2 halves[2] = {sums_of(2 * split), sums_of(2 * split + 1)};
      const bool has_first = halves[0].y != no_half, has_second = halves[1].y != no_half;
      const HalvesMerged both(halves[0], halves[1]);
      const float2 of = !has_second ? halves[0] : !has_first ? halves[1] : float2{both.m, both.l};
      add(of, 2 * split + (has_first ? 0 : 1), [&](int at, float(&from)[Width]) {
        if (has_first && has_second) {
          float second[Width];
          load(2 * split + 1, at, second);
#pragma unroll
          for (int e = 0; e < Width; ++e) {
            from[e] = both.output(from[e], second[e]);
          }
        }
      });
    }
  }
#pragma unroll
  for (int i = 0; i < Each; ++i) {
#pragma unroll
    for (int e = 0; e < Width; ++e) {
      outputs[warp * most + (32 * i + lane) * Width + e] = o[i][e];
    }
  }
  if (lane == 0) {
    sums[warp] = l;
  }
  __syncthreads();
  l = 0.0F;
  for (int w = 0; w < warps; ++w) {
    l = device::add(l, sums[w]);
  }
  l = device::sink_divisor(a.sinks, head, m, l);
  for (int d = 2 * static_cast<int>(threadIdx.x); d < most && first + d < dim; d += 2 * decode_threads) {
    float low = 0.0F, high = 0.0F;
    for (int w = 0; w < warps; ++w) {
      low = device::add(low, outputs[w * most + d]);
      high = device::add(high, outputs[w * most + d + 1]);
    }
    low = l == 0.0F ? 0.0F : device::divide(low, l);
    high = l == 0.0F ? 0.0F : device::divide(high, l);
    const Index at = (Index{row} * a.query_heads + head) * dim + first + d;
    *reinterpret_cast<std::uint32_t*>(a.out + 2 * at) = device::pack<Q>(low, high);
  }
  if (a.lse != nullptr && first == 0 && threadIdx.x == 0) {
    // From shared memory: kept in registers, both would cost the loop above two resident blocks.
    float m_all = device::minus_infinity, l_all = 0.0F;
    for (int w = 0; w < warps; ++w) {
      m_all = device::maximum(m_all, largest[w]);
      l_all = device::add(l_all, sums[w]);
    }
    a.lse[Index{row} * a.query_heads + head] = device::log_sum_exp(m_all, l_all);
  }
}

}  // namespace detail

/// Completes the rows with several partial results, and those with none. The grid is merge_grid, or larger. D: 256, or
/// 512; value_dim at most.
template <Format F, Format Q, int D = 256>
__global__ void __launch_bounds__(detail::decode_threads) merge_kernel(const __grid_constant__ DecodeArguments<F> a) {
  // The plan is older than the launches that this one may overlap with.
  const Index all = Index{a.plan.counts[2]} * a.query_heads;
  const int parts = detail::merge_parts(a.kv.value_dim);
  const bool whole = all * parts > Index{gridDim.x} || all * parts > detail::merge_blocks;
  const auto block = static_cast<std::int32_t>(blockIdx.x), unit = whole ? block : block / parts;
  const std::int32_t row = unit / a.query_heads;
  const detail::RowSplits splits =
      unit < all ? detail::RowSplits{a.plan.partial_begin[row], a.plan.partial_begin[row + 1], a.plan.counts[3]}
                 : detail::RowSplits{0, 1, 1};
  device::wait_for_launches_before();
  if (splits.end - splits.begin == 1 && splits.parts == 1) {
    return;  // decode_kernel has stored the output, or there is no such row
  }
  const std::int32_t head = unit - row * a.query_heads;
  if (whole) {
    detail::merge_elements<4, D / 128, Q>(a, splits, row, head, 0);
  } else {
    detail::merge_elements<1, 1, Q>(a, splits, row, head, 32 * (block - unit * parts));
  }
}

}  // namespace cuda
}  // namespace v0
}  // namespace kvc
