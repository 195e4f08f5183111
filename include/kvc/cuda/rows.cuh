// gather() and scatter(): copy rows of a layer, as they are stored, to arrays and back; for example to move a sequence
// to host memory and to restore it.
//
// The rows are those of the query rows of a batch. To take whole sequences, pass their lengths as queries to
// make_tables. (A Batch takes tables of a group that has dropped rows only for query rows that see none of those.)
// Arrays may be in device memory or in a PinnedBuffer, which kernels access directly.
#pragma once

#include <cstddef>
#include <cstdint>

#include "kvc/core/error.hpp"
#include "kvc/cuda/batch.cuh"
#include "kvc/cuda/check.cuh"
#include "kvc/cuda/launch.cuh"
#include "kvc/cuda/rows_kernel.cuh"
#include "kvc/cuda/view.cuh"

namespace kvc {
inline namespace v0 {
namespace cuda {
namespace detail {

/// Launches the copy of a layer's rows. A latent layer has no values beside its keys.
template <Format F>
void launch_rows(RowsArguments<F> a, const Batch& batch, cudaStream_t stream) {
  require_same_group(a.kv.rule, batch.group());
  require(!a.kv.rule.latent || a.v == nullptr, "v", "given", "null for a latent layer, which has no values of its own");
  if (a.kv.rule.latent) {
    a.kv.value_dim = 0;
  }
  const auto multiple = [&](std::uintptr_t of) {
    const auto bits = static_cast<std::uintptr_t>(row_bytes(F, a.kv.key_dim) | row_bytes(F, a.kv.value_dim)) |
                      reinterpret_cast<std::uintptr_t>(a.kv.pool) | reinterpret_cast<std::uintptr_t>(a.k) |
                      reinterpret_cast<std::uintptr_t>(a.v);
    return bits % of == 0;  // strides and bases are multiples of row sizes
  };
  if (multiple(16)) {
    launch("rows_kernel", rows_kernel<F, uint4>, rows_blocks, rows_threads, 0, stream, a);
  } else if (multiple(4)) {
    launch("rows_kernel", rows_kernel<F, std::uint32_t>, rows_blocks, rows_threads, 0, stream, a);
  } else {
    launch("rows_kernel", rows_kernel<F, unsigned char>, rows_blocks, rows_threads, 0, stream, a);
  }
}

}  // namespace detail

/// Copies the rows of the batch's query rows from the pool to arrays.
///
///   k  [queries, kv_heads, row_bytes(F, key_dim)], overwritten
///   v  [queries, kv_heads, row_bytes(F, value_dim)], overwritten; null for a latent layer
///
/// Does not synchronise; may be captured in a graph. Throws std::invalid_argument if the batch is of another layer
/// group, or v is given for a latent layer; Error if the launch fails.
template <Format F>
void gather(const LayerView<F>& kv, const Batch& batch, std::byte* k, std::byte* v, cudaStream_t stream) {
  detail::launch_rows(RowsArguments<F>{kv, batch.view(), k, v, true}, batch, stream);
}

/// Copies rows from arrays to the pool: the inverse of gather, with the same shapes and errors.
template <Format F>
void scatter(const LayerView<F>& kv, const Batch& batch, const std::byte* k, const std::byte* v, cudaStream_t stream) {
  detail::require_writable(kv.rule);
  detail::launch_rows(
      RowsArguments<F>{kv, batch.view(), const_cast<std::byte*>(k), const_cast<std::byte*>(v), false},  // only read
      batch, stream);
}

}  // namespace cuda
}  // namespace v0
}  // namespace kvc
