// write(): stores the keys and values of new tokens in one layer of a cache in device memory. One launch serves all
// sequences of a batch. It can apply RoPE to the keys, and to the queries of the same tokens.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <string>

#include "kvc/core/error.hpp"
#include "kvc/core/matrix.hpp"
#include "kvc/core/types.hpp"
#include "kvc/cuda/append_kernel.cuh"
#include "kvc/cuda/batch.cuh"
#include "kvc/cuda/check.cuh"
#include "kvc/cuda/element.cuh"
#include "kvc/cuda/launch.cuh"
#include "kvc/cuda/view.cuh"

namespace kvc {
inline namespace v0 {
namespace cuda {
namespace detail {

template <class Scalar>
void require_rows(const MatrixRef<Scalar>& m, Index cols, Index most_rows, const char* name) {
  require(m.cols() == cols, kvc::detail::concat({name, " columns"}), m.cols(),
          "heads times dim: " + std::to_string(cols));
  require(m.rows() <= most_rows, kvc::detail::concat({name, " rows"}), m.rows(), "within the limit of the Batch");
  require(m.stride() % 8 == 0, kvc::detail::concat({name, " stride"}), m.stride(), "a multiple of 8");
  require(reinterpret_cast<std::uintptr_t>(m.data()) % 16 == 0, name, reinterpret_cast<std::uintptr_t>(m.data()),
          "an address that is a multiple of 16");
}

template <class Scalar, Format F>
void launch_append(const AppendArguments<F>& a, Index most_rows, cudaStream_t stream) {
  constexpr Format I = format_of<Scalar>;
  // A warp for each head of each row, where that is less than fills a device.
  const Index warps = most_rows * (2 * Index{a.kv.kv_heads} + a.query_heads);
  const auto blocks = static_cast<unsigned>(std::min(ceil_div(warps, Index{rows_threads / 32}), Index{rows_blocks}));
  if (a.kv.key_dim <= 128 && a.kv.value_dim <= 128) {
    launch("append_kernel", append_kernel<I, F, true>, blocks, rows_threads, 0, stream, a);
  } else {
    launch("append_kernel", append_kernel<I, F, false>, blocks, rows_threads, 0, stream, a);
  }
}

}  // namespace detail

/// Stores the keys and values of a batch's query rows at the positions of those rows.
///
///   kv      the layer to write to
///   batch   block tables whose query rows are the new tokens
///   k       [queries, kv_heads * key_dim]
///   v       [queries, kv_heads * value_dim]
///   rope    rotation of keys and queries before the keys are stored; its tables must cover every position of the
///           batch, which is not checked
///   q       [queries, query_heads * key_dim], rotated in place if `rope` is set; empty: no queries
///   Scalar  float, __half or __nv_bfloat16
///
/// All matrices are in device memory, at addresses that are multiples of 16 bytes, with strides that are multiples of 8
/// elements. Rows beyond those of the uploaded batch are neither read nor written. The call does not synchronise and
/// may be captured in a graph.
///
/// Of a cross-attention layer the tables are those of Batch::upload_cross_rows, and the rows those of the other input.
///
/// Throws std::invalid_argument if a shape, stride, address or rotary_dim does not fit, a dim is not a multiple of 8 up
/// to 256, the batch is of another layer group, or the layer is latent or reads the rows of another one; cuda::Error if
/// the launch fails.
template <class Scalar, Format F>
void write(const LayerView<F>& kv, const Batch& batch, MatrixRef<const Scalar> k, MatrixRef<const Scalar> v,
           cudaStream_t stream, const RopeView& rope = {}, MatrixRef<Scalar> q = {}) {
  static_assert(format_of<Scalar> == Format::f32 || code_bytes(format_of<Scalar>) == 2,
                "keys and values come as float, __half or __nv_bfloat16");
  detail::require_same_group(kv.rule, batch.group());
  detail::require_writable(kv.rule);
  require(!kv.rule.latent, "layer", "latent",
          "one that stores values, to write any: write(layer, batch, rows, stream)");
  require(kv.key_dim % 8 == 0 && kv.key_dim <= 256, "key_dim", kv.key_dim, "a multiple of 8 up to 256");
  require(kv.value_dim % 8 == 0 && kv.value_dim <= 256, "value_dim", kv.value_dim, "a multiple of 8 up to 256");
  const Index most = batch.limits().queries;
  detail::require_rows(k, Index{kv.kv_heads} * kv.key_dim, most, "k");
  detail::require_rows(v, Index{kv.kv_heads} * kv.value_dim, most, "v");
  Index query_heads = 0;
  if (q.cols() != 0) {
    require(q.cols() % kv.key_dim == 0, "q columns", q.cols(), "a multiple of key_dim");
    query_heads = q.cols() / kv.key_dim;
    detail::require_rows(q, q.cols(), most, "q");
  }
  if (rope.pairing != RopePairing::none) {
    require(rope.rotary_dim > 0 && rope.rotary_dim % 16 == 0 && rope.rotary_dim <= kv.key_dim, "rope.rotary_dim",
            rope.rotary_dim, "a multiple of 16, at most key_dim");
    require(rope.cos != nullptr && rope.sin != nullptr, "rope", "without tables", "with tables in device memory");
    for (const float* const table : {rope.cos, rope.sin}) {
      require(reinterpret_cast<std::uintptr_t>(table) % 16 == 0, "rope", reinterpret_cast<std::uintptr_t>(table),
              "tables at addresses that are multiples of 16");
    }
  } else {
    query_heads = 0;  // without RoPE queries stay as they are
  }
  detail::launch_append<Scalar>(
      AppendArguments<F>{kv, batch.view(), reinterpret_cast<const std::byte*>(k.data()),
                         reinterpret_cast<const std::byte*>(v.data()), reinterpret_cast<std::byte*>(q.data()),
                         k.stride(), v.stride(), q.stride(), static_cast<std::int32_t>(query_heads), rope},
      most, stream);
}

/// Stores the latent rows, or the keys alone, of a batch's query rows: as above, for a layer without values.
///
///   rows  [queries, kv_heads * key_dim], with RoPE where the model has it
///
/// Throws as above, and if the layer is not latent or key_dim is not a multiple of 16 up to 4096.
template <class Scalar, Format F>
void write(const LayerView<F>& kv, const Batch& batch, MatrixRef<const Scalar> rows, cudaStream_t stream) {
  static_assert(format_of<Scalar> == Format::f32 || code_bytes(format_of<Scalar>) == 2,
                "rows come as float, __half or __nv_bfloat16");
  detail::require_same_group(kv.rule, batch.group());
  detail::require_writable(kv.rule);
  require(kv.rule.latent, "layer", "one that stores values", "latent: write(layer, batch, k, v, stream)");
  require(kv.key_dim % 16 == 0 && kv.key_dim <= 4096, "key_dim", kv.key_dim, "a multiple of 16 up to 4096");
  const Index most = batch.limits().queries;
  detail::require_rows(rows, Index{kv.kv_heads} * kv.key_dim, most, "rows");
  for (std::int32_t head = 0; head < kv.kv_heads; ++head) {
    detail::launch_append<Scalar>(
        detail::latent_append_arguments<format_of<Scalar>>(
            kv, batch.view(), reinterpret_cast<const std::byte*>(rows.data()), rows.stride(), head),
        most, stream);
  }
}

}  // namespace cuda
}  // namespace v0
}  // namespace kvc
