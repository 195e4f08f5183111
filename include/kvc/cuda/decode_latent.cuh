// decode_latent(): decode over latent rows, as multi-head latent attention (MLA) has them, on a GPU.
//
//   cuda::DecodeWork work({.sequences = 256, .positions = 1 << 20, .query_heads = 128, .kv_heads = 1, .dim = 576,
//                          .format = cuda::format_of<T>, .value_dim = 512});                           // once
//   work.upload(tables, {}, stream);                                                                   // each step
//   cuda::decode_latent(cuda::view(cache, layer), batch, work, q, out, {.scale = scale}, stream);      // each layer
//
// Each latent row is read once for up to 64 query heads, for scores and for values. All that is said of decode() holds:
// a row has the same bits in every batch. They differ from those of other kernels.
#pragma once

#include <cstddef>

#include "kvc/attention/options.hpp"
#include "kvc/core/error.hpp"
#include "kvc/cuda/batch.cuh"
#include "kvc/cuda/check.cuh"
#include "kvc/cuda/decode.cuh"
#include "kvc/cuda/decode_kernel.cuh"
#include "kvc/cuda/decode_latent_kernel.cuh"
#include "kvc/cuda/launch.cuh"
#include "kvc/cuda/occupancy.cuh"
#include "kvc/cuda/remembered.hpp"
#include "kvc/cuda/view.cuh"

namespace kvc {
inline namespace v0 {
namespace cuda {
namespace detail {

template <Format F, int R>
void launch_latent(const DecodeArguments<F>& a, ItemList list, cudaStream_t stream) {
  using Traits = LatentTraits<R>;
  constexpr auto kernel = latent_decode_kernel<F, R>;
  static PerDevice granted, known, waits;
  (void)granted.get(current_device(), [] {
    KVC_CUDA(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, Traits::shared_bytes));
    return 0;
  });
  const unsigned blocks = resident_blocks(known, kernel, Traits::threads, Traits::shared_bytes);
  if (list.dependent) {
    launch_dependent(waits, "latent_decode_kernel", kernel, blocks, Traits::threads, Traits::shared_bytes, stream, a,
                     list.wide);
  } else {
    launch("latent_decode_kernel", kernel, blocks, Traits::threads, Traits::shared_bytes, stream, a, list.wide);
  }
}

}  // namespace detail

/// out[r] = attention of query row r over the latent rows that `options` let it see. Rows, arrays and options are as of
/// decode(), but:
///
///   kv      a latent layer of f16 or bf16, with key_dim up to 576 and value_dim up to 512, multiples of 8
///   work    of limits with dim = key_dim and value_dim
///   q       [rows, query_heads * key_dim]
///   out     [rows, query_heads * value_dim], overwritten; 0 for a sequence without positions
///   Scalar  __half or __nv_bfloat16, of the format of the cache
///
/// Needs a device that grants a thread block 160 KiB of shared memory: those of compute capability 8.0, 9.0 and 10.0
/// do. Throws as decode(); std::invalid_argument too if the layer is not latent or the device grants less.
template <class Scalar, Format F>
void decode_latent(const LayerView<F>& kv, const Batch& batch, const DecodeWork& work, const Scalar* q, Scalar* out,
                   const AttentionOptions& options, cudaStream_t stream, float* lse = nullptr) {
  static_assert(F == format_of<Scalar> && code_bytes(F) == 2, "the cache and the queries are both f16, or both bf16");
  require(kv.rule.latent, "layer", "one with values of its own", "a latent one: cuda::decode takes others");
  require(work.limits().latent(), "limits.value_dim of the DecodeWork", work.limits().value_dim,
          "the value_dim of the layer");
  require(detail::has_shared_memory(detail::LatentTraits<latent_many>::shared_bytes), "device",
          "one with little shared memory", "one that grants a thread block 160 KiB: cuda::prefill takes the rows, too");
  const DecodeArguments<F> a = detail::decode_arguments(kv, batch, work, q, out, options, lse);
  detail::launch_plan<F, latent_value_dim>(a, work, stream, [&](int rows, detail::ItemList list) {
    rows == latent_few ? detail::launch_latent<F, latent_few>(a, list, stream)
                       : detail::launch_latent<F, latent_many>(a, list, stream);
  });
}

}  // namespace cuda
}  // namespace v0
}  // namespace kvc
