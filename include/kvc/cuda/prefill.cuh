// prefill(): attention of many query rows per sequence, for a ragged batch, on a GPU. A batch may mix prompts, chunks
// of prompts after a cached prefix, and the rows of speculative decoding.
//
//   auto layer = cuda::view(cache, l);
//   cuda::write(layer, batch, k, v, stream);
//   cuda::prefill(layer, batch, query_heads, q, out, options, stream);
//
// Caches of f16 and bf16 use tensor cores: on Hopper, in code compiled for sm_90a, by warpgroups (prefill_hopper.cuh),
// elsewhere by warps (prefill_kernel.cuh). Other caches use a plain kernel (prefill_plain.cuh) that is many times
// slower. Define KVC_CUDA_NO_WARPGROUPS in every file that includes this header to leave the Hopper kernel out.
//
// Each kernel gives a row the same bits in every batch and chunk, for every policy, layout and block size. These bits
// differ between kernels, from the CPU, and from cuda::decode: sums are taken in another order, and the tensor-core
// kernels round weights to 16 bits. The scale is applied to the scores in float, never to 16-bit queries.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>

#include "kvc/core/error.hpp"
#include "kvc/core/types.hpp"
#include "kvc/cuda/batch.cuh"
#include "kvc/cuda/check.cuh"
#include "kvc/cuda/element.cuh"
#include "kvc/cuda/options.hpp"
#include "kvc/cuda/prefill_hopper.cuh"
#include "kvc/cuda/prefill_kernel.cuh"
#include "kvc/cuda/prefill_plain.cuh"
#include "kvc/cuda/tensor_map.cuh"
#include "kvc/cuda/tma_boxes.hpp"

namespace kvc {
inline namespace v0 {
namespace cuda {

/// The kernel that cuda::prefill uses.
///
///   best   the fastest that takes the cache, the dims and the device
///   warps  as best, but never the Hopper kernel
///   plain  the plain kernel, which takes everything
enum class PrefillKernel { best, warps, plain };

/// Limits of one batch, where they are below those of the Batch: fewer thread blocks are launched without work. Query
/// rows of the batch beyond them are left unwritten.
struct PrefillBounds {
  Index sequences;
  Index queries;
};

namespace detail {

/// The head dim that a tensor-core kernel is compiled for.
[[nodiscard]] constexpr int prefill_dim(int dim) noexcept { return (dim + 63) / 64 * 64; }

/// Whether rows can be copied in chunks of 16 bytes.
template <Format F>
[[nodiscard]] bool is_chunk_aligned(const LayerView<F>& kv) noexcept {
  const auto whole = [](const RowStrides& s) {
    return s.base % 16 == 0 && s.block % 16 == 0 && s.head % 16 == 0 && s.slot % 16 == 0;
  };
  return kv.key_dim % 8 == 0 && kv.value_dim % 8 == 0 && whole(kv.k) && whole(kv.v) &&
         reinterpret_cast<std::uintptr_t>(kv.pool) % 16 == 0;
}

/// Whether the device grants a thread block so much dynamic shared memory, beside what kernels declare.
[[nodiscard]] inline bool has_shared_memory(int bytes) {
  int device = 0, most = 0;
  KVC_CUDA(cudaGetDevice(&device));
  KVC_CUDA(cudaDeviceGetAttribute(&most, cudaDevAttrMaxSharedMemoryPerBlockOptin, device));
  return bytes + (3 << 10) <= most;
}

#if defined(KVC_CUDA_NO_WARPGROUPS)
inline constexpr bool prefill_by_warpgroups = false;
#else
inline constexpr bool prefill_by_warpgroups = true;
#endif

/// Whether the device runs code compiled for sm_90a. Compiled for others, the kernel is empty and takes few registers.
template <Format F, int D>
[[nodiscard]] bool has_hopper_kernel() {
  cudaFuncAttributes attributes{};
  KVC_CUDA(cudaFuncGetAttributes(&attributes, prefill_hopper_kernel<F, D>));
  return attributes.numRegs > 64;
}

/// Tensor maps of the keys and values; maps.box is 0 if no tensor can describe them.
template <int D, Format F>
[[nodiscard]] PrefillTensorMaps prefill_tensor_maps(const LayerView<F>& kv) {
  PrefillTensorMaps maps{};
  const std::int32_t box = tma_box_slots(kv.blocks, kv.block_slots, HopperTraits<D>::keys);
  const auto k = tma_tensor(kv.k, kv.key_dim, kv.kv_heads, kv.blocks, kv.block_slots, box);
  const auto v = tma_tensor(kv.v, kv.value_dim, kv.kv_heads, kv.blocks, kv.block_slots, box);
  if (k && v && k->token_major == v->token_major && make_tensor_map(maps.k, kv.pool, F, *k) &&
      make_tensor_map(maps.v, kv.pool, F, *v)) {
    maps.box = box;
    maps.token_major = k->token_major;
  }
  return maps;
}

template <Format F>
[[nodiscard]] dim3 prefill_grid(const PrefillArguments<F>& a, const PrefillBounds& bounds) {
  const Index slots = max_prefill_tiles(a.tiles, bounds.sequences, bounds.queries);
  require(slots <= max_pos, "tiles of queries", slots, "at most 2^31 - 1: fewer rows or sequences");
  return dim3(static_cast<unsigned>(slots), static_cast<unsigned>(a.kv.kv_heads * a.tiles.head_tiles));
}

template <Format F, int D>
void launch_prefill(const PrefillArguments<F>& a, const PrefillBounds& bounds, bool warpgroups, cudaStream_t stream) {
  const dim3 grid = prefill_grid(a, bounds);
  if constexpr (prefill_by_warpgroups) {
    if (warpgroups && has_hopper_kernel<F, D>()) {
      using Traits = HopperTraits<D>;
      constexpr auto kernel = prefill_hopper_kernel<F, D>;
      KVC_CUDA(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, Traits::shared_bytes));
      kernel<<<grid, Traits::threads, Traits::shared_bytes, stream>>>(a, prefill_tensor_maps<D>(a.kv));
      return check_launch("prefill_hopper_kernel");
    }
  }
  using Traits = PrefillTraits<D>;
  constexpr auto kernel = prefill_kernel<F, D>;
  KVC_CUDA(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, Traits::shared_bytes));
  kernel<<<grid, Traits::threads, Traits::shared_bytes, stream>>>(a);
  check_launch("prefill_kernel");
}

template <Format F, Format Q>
void launch_plain_prefill(const PrefillArguments<F>& a, const PrefillBounds& bounds, cudaStream_t stream) {
  const dim3 grid(static_cast<unsigned>(bounds.queries),
                  static_cast<unsigned>((a.query_heads + plain_warps - 1) / plain_warps));
  const auto bytes = static_cast<std::size_t>(plain_shared_bytes(a.kv.key_dim, a.kv.value_dim));
  plain_prefill_kernel<F, Q><<<grid, plain_threads, bytes, stream>>>(a);
  check_launch("plain_prefill_kernel");
}

/// Checks the arguments of a call and collects them for the kernels.
template <Format F>
[[nodiscard]] PrefillArguments<F> prefill_arguments(const LayerView<F>& kv, const Batch& batch, Index query_heads,
                                                    const void* q, void* out, float* lse,
                                                    const AttentionOptions& options) {
  const float scale = kernel_scale(options, kv.key_dim);
  require(query_heads >= 1 && query_heads <= 65535 && query_heads % kv.kv_heads == 0, "query_heads", query_heads,
          "a positive multiple of kv_heads, up to 65535");
  require(kv.key_dim >= 1 && kv.value_dim >= 1 && plain_shared_bytes(kv.key_dim, kv.value_dim) <= 48 << 10,
          "key_dim + value_dim", Index{kv.key_dim} + kv.value_dim, "at most 3072, and each at least 1");
  for (const void* p : {q, static_cast<const void*>(out)}) {
    const auto address = reinterpret_cast<std::uintptr_t>(p);
    require(address % 16 == 0, p == q ? "q" : "out", address, "an address that is a multiple of 16");
  }
  const auto group = static_cast<std::int32_t>(query_heads / kv.kv_heads);
  return {kv,
          batch.view(),
          make_prefill_tiles(group),
          static_cast<const std::byte*>(q),
          static_cast<std::byte*>(out),
          lse,
          static_cast<std::int32_t>(query_heads),
          group,
          scale,
          options.softcap,
          options.window,
          options.causal};
}
[[nodiscard]] inline PrefillBounds checked_bounds(const Batch& batch, const std::optional<PrefillBounds>& bounds) {
  const BatchLimits& limits = batch.limits();
  if (!bounds) {
    return {limits.sequences, limits.queries};
  }
  require_between(bounds->sequences, Index{0}, limits.sequences, "bounds.sequences");
  require_between(bounds->queries, Index{0}, limits.queries, "bounds.queries");
  return *bounds;
}

}  // namespace detail

/// out[i] = attention of query row i over the keys that it sees; 0 if it sees none.
///
///   kv           one layer of a cache, with the keys and values of all positions of the batch, also those of its rows
///   batch        the uploaded tables; sequence b has query rows q_indptr[b] .. q_indptr[b + 1] - 1, at its last
///                positions
///   q            [queries, query_heads * key_dim], row-major
///   out          [queries, query_heads * value_dim], row-major, overwritten; must not overlap q
///   lse          [queries, query_heads] or null; overwritten with the natural logarithm of the sum of exp(score) over
///                the keys that the row sees, -infinity if it sees none. Results over disjoint sets of keys merge by
///                these weights.
///   bounds       the limits of this batch; default: those of the Batch
///   Scalar       float, __half or __nv_bfloat16
///
/// All arrays are in device memory; q and out are at multiples of 16 bytes. Query head h reads kv head
/// h / (query_heads / kv_heads). Keys that a row does not see have no influence on it, even if they are NaN, and tiles
/// of keys that no row of a tile sees are not loaded. The call allocates nothing, does not synchronise, and may be
/// captured in a graph: sizes are read on the device. O(visible (row, key) pairs * query_heads * (key_dim +
/// value_dim)).
///
/// The tensor-core kernels take a cache whose format is that of Scalar, f16 or bf16; dims that are multiples of 8 up to
/// 256 (computed as 64, 128, 192 or 256); a positive scale; and beyond dim 192 a device with 131 KiB of shared memory
/// per block.
///
/// Throws std::invalid_argument if shapes, options, bounds or alignment do not fit, Error if a launch fails.
template <class Scalar, Format F>
void prefill(const LayerView<F>& kv, const Batch& batch, Index query_heads, const Scalar* q, Scalar* out,
             const AttentionOptions& options, cudaStream_t stream, float* lse = nullptr,
             std::optional<PrefillBounds> bounds = {}, PrefillKernel kernel = PrefillKernel::best) {
  constexpr Format Q = format_of<Scalar>;
  static_assert(Q == Format::f32 || Q == Format::f16 || Q == Format::bf16,
                "queries are float, __half or __nv_bfloat16");
  const PrefillBounds most = detail::checked_bounds(batch, bounds);
  const PrefillArguments<F> a = detail::prefill_arguments(kv, batch, query_heads, q, out, lse, options);
  if (most.queries == 0) {
    return;
  }
  if constexpr (F == Q && code_bytes(F) == 2) {
    const int dim = detail::prefill_dim(kv.key_dim > kv.value_dim ? kv.key_dim : kv.value_dim);
    const bool warpgroups = kernel == PrefillKernel::best;
    if (detail::is_chunk_aligned(kv) && a.scale > 0 && kernel != PrefillKernel::plain) {
      switch (dim) {
        case 64:
          return detail::launch_prefill<F, 64>(a, most, warpgroups, stream);
        case 128:
          return detail::launch_prefill<F, 128>(a, most, warpgroups, stream);
        case 192:
          return detail::launch_prefill<F, 192>(a, most, warpgroups, stream);
        case 256:
          if (detail::has_shared_memory(detail::PrefillTraits<256>::shared_bytes)) {
            return detail::launch_prefill<F, 256>(a, most, warpgroups, stream);
          }
          break;
        default:
          break;
      }
    }
  }
  detail::launch_plain_prefill<F, Q>(a, most, stream);
}

}  // namespace cuda
}  // namespace v0
}  // namespace kvc
