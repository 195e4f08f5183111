// merge_kernel: merges the partial results that decode_kernel leaves for the splits of a sequence.
//
// With m = max m[i] over the partial results i:  output = sum 2^(m[i] - m) o[i] / sum 2^(m[i] - m) l[i]; see
// attention/state.hpp. Each of four warps adds every fourth partial result in ascending order, then the four sums are
// added. So the order depends on the number of partial results of the sequence only.
#pragma once

#include <cstddef>
#include <cstdint>

#include "kvc/cuda/decode_kernel.cuh"
#include "kvc/cuda/device.cuh"

namespace kvc {
inline namespace v0 {
namespace cuda {

/// Completes the sequences with several partial results, and those with none. gridDim.x >= batch, gridDim.y ==
/// query_heads: one thread block for each sequence and query head.
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
  const std::int32_t begin = a.plan.partial_begin[sequence], end = a.plan.partial_begin[sequence + 1];
  if (end - begin == 1) {
    return;  // decode_kernel has stored the output
  }
  const auto row = [&](std::int32_t partial) { return Index{partial} * a.query_heads + head; };

  float m = device::minus_infinity;
  for (std::int32_t partial = begin + static_cast<std::int32_t>(threadIdx.x); partial < end;
       partial += detail::decode_threads) {
    m = device::maximum(m, a.partial_sums[2 * row(partial)]);
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
  for (std::int32_t partial = begin + warp; partial < end; partial += warps) {
    const float2 of = *reinterpret_cast<const float2*>(a.partial_sums + 2 * row(partial));
    const float weight = device::exp2(device::add(of.x, -reference));
    l = device::multiply_add(of.y, weight, l);
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      if (128 * i + 4 * lane < dim) {
        const float4 from = *reinterpret_cast<const float4*>(a.partials + row(partial) * dim + 128 * i + 4 * lane);
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
  l = device::sink_divisor(a.sinks, head, m, l);
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
  if (a.lse != nullptr && threadIdx.x == 0) {
    // From shared memory: kept in registers, both would cost the loop above two resident blocks.
    float m_all = device::minus_infinity, l_all = 0.0F;
    for (int w = 0; w < warps; ++w) {
      m_all = device::maximum(m_all, largest[w]);
      l_all = device::add(l_all, sums[w]);
    }
    a.lse[Index{sequence} * a.query_heads + head] = device::log_sum_exp(m_all, l_all);
  }
}

}  // namespace cuda
}  // namespace v0
}  // namespace kvc
