// rows_kernel: copies rows of a layer, as they are stored, to arrays or from arrays (gather and scatter).
#pragma once

#include <cstddef>
#include <cstdint>

#include "kvc/core/types.hpp"
#include "kvc/cuda/device.cuh"
#include "kvc/cuda/view.cuh"

namespace kvc {
inline namespace v0 {
namespace cuda {
namespace detail {

/// The sequence that a query row belongs to, and its position there. The lanes of a warp search together, for the same
/// row: O(log32 sequences) loads that follow each other.
struct BatchRow {
  std::int32_t sequence;
  Pos position;
};
[[nodiscard]] __device__ __forceinline__ BatchRow batch_row(const BatchView& batch, std::int32_t row) {
  const auto lane = static_cast<std::int32_t>(threadIdx.x % 32U);
  std::int32_t low = 0, count = batch.header->size;  // q_indptr[low] <= row < q_indptr[low + count]
  while (count > 1) {
    const std::int32_t step = (count + 31) / 32, probe = lane * step;
    const bool before = probe < count && batch.q_indptr[low + probe] <= row;
    const std::int32_t at = (device::count_lanes(before) - 1) * step;  // lanes below some lane, and none above it
    low += at;
    count = count - at < step ? count - at : step;
  }
  return {low, batch.seq_lens[low] - (batch.q_indptr[low + 1] - row)};
}

inline constexpr int rows_threads = 256;
/// Thread blocks of kernels whose warps go through rows in a loop: enough to fill any device.
inline constexpr unsigned rows_blocks = 2048;

}  // namespace detail

/// The query rows of a batch in the pool, and arrays k [queries, kv_heads, row_bytes] and v likewise.
template <Format F>
struct RowsArguments {
  LayerView<F> kv;
  BatchView batch;
  std::byte* k;
  std::byte* v;
  bool gather;  ///< true: pool to arrays; false: arrays to pool
};

/// A warp copies the key and the value of one row and head.
///
///   Unit  uint4 if all rows and addresses are multiples of 16 bytes, std::uint32_t if of 4, else unsigned char
template <Format F, class Unit>
__global__ void __launch_bounds__(detail::rows_threads) rows_kernel(const __grid_constant__ RowsArguments<F> a) {
  const int lane = static_cast<int>(threadIdx.x % 32U), heads = a.kv.kv_heads;
  const int k_bytes = row_bytes(F, a.kv.key_dim), v_bytes = row_bytes(F, a.kv.value_dim);
  const Index warps = Index{gridDim.x} * (detail::rows_threads / 32);
  const Index works = Index{a.batch.header->queries} * heads;
  for (Index work = Index{blockIdx.x} * (detail::rows_threads / 32) + static_cast<Index>(threadIdx.x / 32U);
       work < works; work += warps) {
    const auto row = static_cast<std::int32_t>(work / heads);
    const auto head = static_cast<int>(work % heads);
    const detail::BatchRow of = detail::batch_row(a.batch, row);
    const RowLocation location = a.batch.locate(of.sequence, of.position);
    const auto copy = [&](std::byte* in_pool, std::byte* scale_in_pool, std::byte* in_array, int bytes) {
      if constexpr (F == Format::int8_planes) {
        bytes -= 4;  // an array has the scale behind the codes, as a row without planes
        if (lane == 0) {
          const std::byte* const scale = a.gather ? scale_in_pool : in_array + bytes;
          *reinterpret_cast<std::uint32_t*>(a.gather ? in_array + bytes : scale_in_pool) =
              device::load_streaming<std::uint32_t>(scale);
        }
      }
      const std::byte* const from = a.gather ? in_pool : in_array;
      std::byte* const to = a.gather ? in_array : in_pool;
      for (int i = lane * static_cast<int>(sizeof(Unit)); i < bytes; i += 32 * static_cast<int>(sizeof(Unit))) {
        *reinterpret_cast<Unit*>(to + i) = device::load_streaming<Unit>(from + i);
      }
    };
    copy(a.kv.k_row(location.block, head, location.slot), a.kv.k_scale(location.block, head, location.slot),
         a.k + work * k_bytes, k_bytes);
    copy(a.kv.v_row(location.block, head, location.slot), a.kv.v_scale(location.block, head, location.slot),
         a.v + work * v_bytes, v_bytes);
  }
}

}  // namespace cuda
}  // namespace v0
}  // namespace kvc
