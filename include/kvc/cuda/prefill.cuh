// prefill(): attention of many query rows per sequence, for a ragged batch, on a GPU. A batch may mix prompts, chunks
// of prompts after a cached prefix, and the rows of speculative decoding.
//
//   auto layer = cuda::view(cache, l);
//   cuda::write(layer, batch, k, v, stream);
//   cuda::prefill(layer, batch, query_heads, q, out, options, stream);
//
// Caches of f16 and bf16 use tensor cores: on Hopper, in code compiled for sm_90a, by warpgroups (prefill_hopper.cuh),
// elsewhere by warps (prefill_kernel.cuh). So do caches of fp8 and int8, by warps, up to dim 128. Others use a plain
// kernel (prefill_plain.cuh) that is many times slower; so do latent rows of more than 256 elements, and kept
// positions. Define KVC_CUDA_NO_WARPGROUPS in every file that includes this header to leave the Hopper kernel out.
//
// Each kernel gives a row the same bits in every batch and chunk, for every policy, layout and block size. These bits
// differ between kernels, from the CPU, and from cuda::decode: sums are taken in another order, and the tensor-core
// kernels round weights to 16 bits. The scale is applied to the scores in float, never to 16-bit queries.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <type_traits>

#include "kvc/attention/options.hpp"
#include "kvc/core/error.hpp"
#include "kvc/core/types.hpp"
#include "kvc/cuda/batch.cuh"
#include "kvc/cuda/check.cuh"
#include "kvc/cuda/element.cuh"
#include "kvc/cuda/launch.cuh"
#include "kvc/cuda/occupancy.cuh"
#include "kvc/cuda/options.hpp"
#include "kvc/cuda/prefill_arguments.cuh"
#include "kvc/cuda/prefill_hopper.cuh"
#include "kvc/cuda/prefill_kernel.cuh"
#include "kvc/cuda/prefill_plain.cuh"
#include "kvc/cuda/prefill_tile.cuh"
#include "kvc/cuda/remembered.hpp"
#include "kvc/cuda/tensor_map.cuh"
#include "kvc/cuda/tma_boxes.hpp"
#include "kvc/cuda/view.cuh"

namespace kvc {
inline namespace v0 {
namespace cuda {

/// The kernel that cuda::prefill uses.
///
///   best   the fastest that takes the cache, the dims, the options and the device
///   warps  as best, but never the Hopper kernel
///   plain  the plain kernel, which takes everything
enum class PrefillKernel { best, warps, plain };

/// How a call of cuda::prefill computes.
///
///   plain        by the plain kernel
///   warps        by warps, with mma.sync
///   warpgroups   by warpgroups, with wgmma; threads copy the keys and values
///   bulk_copies  by warpgroups, with wgmma; boxes of a tensor are copied (TMA), unless the entries of a batch's tables
///                stand for fewer positions than a box: then as warpgroups
enum class PrefillPath { plain, warps, warpgroups, bulk_copies };

/// Limits of one batch, where they are below those of the Batch. The plain kernel launches a thread block for each row
/// within them. Query rows of the batch beyond them may be left unwritten.
struct PrefillBounds {
  Index sequences;
  Index queries;
};

namespace detail {

/// The head dim that a tensor-core kernel is compiled for.
[[nodiscard]] constexpr int prefill_dim(int dim) noexcept { return (dim + 63) / 64 * 64; }

/// Whether rows can be loaded in chunks of 8 elements: 16 bytes at once, 8 of Fp8E4M3, and twice 4 of Int8.
template <Format F>
[[nodiscard]] bool is_chunk_aligned(const LayerView<F>& kv) noexcept {
  constexpr Index unit = F == Format::int8 ? 4 : 8 * code_bytes(F);
  return kv.key_dim % 8 == 0 && kv.value_dim % 8 == 0 && rows_begin_at(kv.k, unit) && rows_begin_at(kv.v, unit) &&
         reinterpret_cast<std::uintptr_t>(kv.pool) % 16 == 0;
}

#if defined(KVC_CUDA_NO_WARPGROUPS)
inline constexpr bool prefill_by_warpgroups = false;
#else
inline constexpr bool prefill_by_warpgroups = true;
#endif

/// Whether the device runs code compiled for sm_90a, for which the kernel is then granted its shared memory. Compiled
/// for others, the kernel is empty and takes few registers.
template <Format F, int D, int V>
[[nodiscard]] bool has_hopper_kernel() {
  static PerDevice known;
  return known.get(current_device(), [] {
    cudaFuncAttributes attributes{};
    KVC_CUDA(cudaFuncGetAttributes(&attributes, prefill_hopper_kernel<F, D, V>));
    if (attributes.numRegs <= 64) {
      return 0;
    }
    KVC_CUDA(cudaFuncSetAttribute(prefill_hopper_kernel<F, D, V>, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                  HopperTraits<D, V>::shared_bytes));
    return 1;
  }) != 0;
}

/// Tensor maps of the keys and values, for tiles of `Keys` keys; maps.box is 0 if no tensor can describe them.
template <int Keys, Format F>
[[nodiscard]] PrefillTensorMaps prefill_tensor_maps(const LayerView<F>& kv) {
  PrefillTensorMaps maps{};
  const std::int32_t box = tma_box_slots(kv.blocks, kv.block_slots, Keys);
  const auto k = tma_tensor(kv.k, kv.key_dim, kv.kv_heads, kv.blocks, kv.block_slots, box);
  const auto v = tma_tensor(kv.v, kv.value_dim, kv.kv_heads, kv.blocks, kv.block_slots, box);
  if (!k || !v || k->token_major != v->token_major) {
    return maps;
  }
  const MadeTensorMap of_k = tensor_map(kv.pool, F, *k), of_v = tensor_map(kv.pool, F, *v);
  if (of_k.possible && of_v.possible) {
    maps.k = of_k.map;
    maps.v = of_v.map;
    maps.box = box;
    maps.token_major = k->token_major;
  }
  return maps;
}

/// The thread blocks of a launch: as many as the device holds at once, but no more than there may be tiles. They share
/// the tiles that there are, so the size of the batch need not be known.
template <Format F>
[[nodiscard]] unsigned prefill_blocks(const PrefillArguments<F>& a, const PrefillBounds& bounds, unsigned resident) {
  const Index tiles = max_prefill_tiles(a.tiles, bounds.sequences, bounds.queries) * a.kv.kv_heads * a.tiles.head_tiles;
  require(tiles <= max_pos, "tiles of queries", tiles, "at most 2^31 - 1: fewer rows or sequences");
  return static_cast<unsigned>(std::min(tiles, Index{resident}));
}

/// Calls f(std::integral_constant<int, V>) for the Hopper kernel of D elements that takes the values.
template <int D, Format F, class Call>
auto with_value_dim(const LayerView<F>& kv, Call f) {
  if constexpr (D == 192) {
    if (kv.value_dim <= 128) {
      return f(std::integral_constant<int, 128>{});
    }
  }
  return f(std::integral_constant<int, D>{});
}

/// The path of a kernel for tensor cores.
template <Format F, Format Q, int D>
[[nodiscard]] PrefillPath tensor_core_path(const LayerView<F>& kv, bool warpgroups) {
  if constexpr (prefill_by_warpgroups && F == Q) {
    if (warpgroups) {
      return with_value_dim<D>(kv, [&](auto v) {
        constexpr int V = decltype(v)::value;
        return !has_hopper_kernel<F, D, V>()                               ? PrefillPath::warps
               : prefill_tensor_maps<HopperTraits<D, V>::keys>(kv).box > 0 ? PrefillPath::bulk_copies
                                                                           : PrefillPath::warpgroups;
      });
    }
  }
  return PrefillPath::warps;
}

/// Launches the Hopper kernel; false if the device has none.
template <Format F, int D, int V>
[[nodiscard]] bool launch_hopper_prefill(const PrefillArguments<F>& a, const PrefillBounds& bounds,
                                         cudaStream_t stream) {
  using Traits = HopperTraits<D, V>;
  if (!has_hopper_kernel<F, D, V>()) {
    return false;
  }
  static PerDevice known;
  const PrefillTensorMaps maps = prefill_tensor_maps<Traits::keys>(a.kv);
  const unsigned resident =
      resident_blocks(known, prefill_hopper_kernel<F, D, V>, Traits::threads, Traits::shared_bytes);
  launch("prefill_hopper_kernel", prefill_hopper_kernel<F, D, V>, prefill_blocks(a, bounds, resident), Traits::threads,
         Traits::shared_bytes, stream, a, maps);
  return true;
}

template <Format F, Format Q, int D>
void launch_prefill(const PrefillArguments<F>& a, const PrefillBounds& bounds, bool warpgroups, cudaStream_t stream) {
  if constexpr (prefill_by_warpgroups && F == Q) {
    if (warpgroups && with_value_dim<D>(a.kv, [&](auto v) {
          return launch_hopper_prefill<F, D, decltype(v)::value>(a, bounds, stream);
        })) {
      return;
    }
  }
  using Traits = PrefillTraits<D, F>;
  constexpr auto kernel = prefill_kernel<F, Q, D>;
  static PerDevice granted, known;
  (void)granted.get(current_device(), [] {
    KVC_CUDA(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, Traits::shared_bytes));
    return 0;
  });
  const unsigned resident = resident_blocks(known, kernel, Traits::threads, Traits::shared_bytes);
  launch("prefill_kernel", kernel, prefill_blocks(a, bounds, resident), Traits::threads, Traits::shared_bytes, stream,
         a);
}

/// The head dim of the tensor-core kernels that take the cache, with queries of format Q; 0 if none does.
template <Format F, Format Q>
[[nodiscard]] int tensor_core_dim(const LayerView<F>& kv, PrefillKernel kernel) {
  if constexpr (has_prefill_kernel(F, Q)) {
    const int dim = prefill_dim(kv.key_dim > kv.value_dim ? kv.key_dim : kv.value_dim);
    if (kernel != PrefillKernel::plain && is_chunk_aligned(kv) &&
        (dim <= (F == Q ? 192 : 128) ||
         (F == Q && dim == 256 && has_shared_memory(PrefillTraits<256, F>::shared_bytes)))) {
      return dim;
    }
  }
  return 0;
}
/// Calls f(std::integral_constant<int, D>) for the head dim D of a tensor-core kernel; caches of bytes have two.
template <Format F, class Call>
auto with_dim(int dim, Call f) {
  if constexpr (code_bytes(F) == 1) {
    return dim == 64 ? f(std::integral_constant<int, 64>{}) : f(std::integral_constant<int, 128>{});
  } else {
    return dim == 64    ? f(std::integral_constant<int, 64>{})
           : dim == 128 ? f(std::integral_constant<int, 128>{})
           : dim == 192 ? f(std::integral_constant<int, 192>{})
                        : f(std::integral_constant<int, 256>{});
  }
}

template <Format F, Format Q>
void launch_plain_prefill(const PrefillArguments<F>& a, const PrefillBounds& bounds, cudaStream_t stream) {
  const dim3 grid(static_cast<unsigned>(bounds.queries),
                  static_cast<unsigned>((a.query_heads + plain_warps - 1) / plain_warps));
  const auto bytes = static_cast<std::size_t>(plain_shared_bytes(a.kv.key_dim, a.kv.value_dim));
  launch("plain_prefill_kernel", plain_prefill_kernel<F, Q>, grid, plain_threads, bytes, stream, a);
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
///   batch        the uploaded tables of its layer group; sequence b has query rows q_indptr[b] .. q_indptr[b + 1] - 1,
///                at its last positions (of a cross-attention layer: anywhere)
///   q            [queries, query_heads * key_dim], row-major
///   out          [queries, query_heads * value_dim], row-major, overwritten; must not overlap q
///   lse          [queries, query_heads] or null; overwritten with the natural logarithm of the sum of exp(score) over
///                the keys that the row sees, without sinks; -infinity if it sees none. Results over disjoint sets of
///                keys, without sinks, merge by these weights.
///   options      sinks are in device memory; mask and keys are refused
///   bounds       the limits of this batch; default: those of the Batch
///   Scalar       float, __half or __nv_bfloat16
///
/// All arrays are in device memory; q and out are at multiples of 16 bytes. Query head h reads kv head
/// h / (query_heads / kv_heads). Keys that a row does not see have no influence on it, even if they are NaN, and tiles
/// of keys that no row of a tile sees are not loaded. The call allocates nothing, does not synchronise, and may be
/// captured in a graph: sizes are read on the device. Calls with the same Batch must not run concurrently: their thread
/// blocks take tiles of queries from a queue in it. O(visible (row, key) pairs * query_heads * (key_dim +
/// value_dim)).
///
/// The tensor-core kernels take options without kept positions, and chunks that are no shorter than a tile of queries
/// (128 positions, divided by the query heads of a kv head); a cache whose format is that of Scalar, f16 or bf16; dims
/// that are multiples of 8 up to 256 (computed as 64, 128, 192 or 256, the larger of both; on Hopper 192 and 128); a
/// positive scale; and beyond dim 192 a device with 131 KiB of shared memory per block. With Scalar __half or
/// __nv_bfloat16 they also take caches of Fp8E4M3 and Int8, of dims up to 128.
///
/// Throws std::invalid_argument if shapes, options, bounds or alignment do not fit, a row could see what the layer's
/// group drops, or the batch is of another group; Error if a launch fails.
template <class Scalar, Format F>
void prefill(const LayerView<F>& kv, const Batch& batch, Index query_heads, const Scalar* q, Scalar* out,
             const AttentionOptions& options, cudaStream_t stream, float* lse = nullptr,
             std::optional<PrefillBounds> bounds = {}, PrefillKernel kernel = PrefillKernel::best) {
  constexpr Format Q = format_of<Scalar>;
  static_assert(Q == Format::f32 || Q == Format::f16 || Q == Format::bf16,
                "queries are float, __half or __nv_bfloat16");
  const PrefillBounds most = detail::checked_bounds(batch, bounds);
  detail::require_same_group(kv.rule, batch.group());
  const PrefillArguments<F> a = detail::prefill_arguments(kv, batch.view(), query_heads, q, out, lse, options);
  if (most.queries == 0) {
    return;
  }
  if constexpr (detail::has_prefill_kernel(F, Q)) {
    const int dim = detail::tensor_core_dim<F, Q>(kv, kernel);
    if (dim != 0 && detail::fit_tensor_cores(a)) {
      return detail::with_dim<F>(dim, [&](auto d) {
        detail::launch_prefill<F, Q, decltype(d)::value>(a, most, kernel == PrefillKernel::best, stream);
      });
    }
  }
  detail::launch_plain_prefill<F, Q>(a, most, stream);
}

/// How prefill() computes with these arguments and a positive scale, without kept positions and short chunks, on the
/// current device. Throws Error.
template <class Scalar, Format F>
[[nodiscard]] PrefillPath prefill_path(const LayerView<F>& kv, PrefillKernel kernel = PrefillKernel::best) {
  constexpr Format Q = format_of<Scalar>;
  if constexpr (detail::has_prefill_kernel(F, Q)) {
    const int dim = detail::tensor_core_dim<F, Q>(kv, kernel);
    if (dim != 0) {
      return detail::with_dim<F>(dim, [&](auto d) {
        return detail::tensor_core_path<F, Q, decltype(d)::value>(kv, kernel == PrefillKernel::best);
      });
    }
  }
  return PrefillPath::plain;
}

}  // namespace cuda
}  // namespace v0
}  // namespace kvc
