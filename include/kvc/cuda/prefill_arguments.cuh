// The arguments of a prefill, checked. This header needs no CUDA.
#pragma once

#include <cstddef>
#include <cstdint>

#include "kvc/attention/options.hpp"
#include "kvc/core/error.hpp"
#include "kvc/core/types.hpp"
#include "kvc/cuda/divisor.hpp"
#include "kvc/cuda/options.hpp"
#include "kvc/cuda/prefill_tile.cuh"
#include "kvc/cuda/view.cuh"

namespace kvc {
inline namespace v0 {
namespace cuda {
namespace detail {

inline constexpr int plain_warps = 4;
inline constexpr int plain_threads = 32 * plain_warps;

/// Dynamic shared memory of a thread block of the plain kernel: the query row and the output of each warp.
[[nodiscard]] constexpr Index plain_shared_bytes(Index key_dim, Index value_dim) noexcept {
  return plain_warps * (key_dim + value_dim) * static_cast<Index>(sizeof(float));
}

/// Checks the arguments of a call and collects them for the kernels. Throws std::invalid_argument, naming the one that
/// does not fit.
template <Format F>
[[nodiscard]] PrefillArguments<F> prefill_arguments(const LayerView<F>& kv, const BatchView& batch, Index query_heads,
                                                    const void* q, void* out, float* lse,
                                                    const AttentionOptions& options) {
  const float scale = kernel_scale(options, kv.key_dim, query_heads);
  require_retains(kv.rule, seen_by(options));
  if (kv.rule.cross) {
    require(!options.causal, "causal", options.causal, "false in a cross-attention layer");
    require(options.window == 0, "window", options.window, "0 in a cross-attention layer");
    require(options.chunk == 0, "chunk", options.chunk, "0 in a cross-attention layer");
  }
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
          batch,
          make_prefill_tiles(group),
          static_cast<const std::byte*>(q),
          static_cast<std::byte*>(out),
          lse,
          options.sinks.empty() ? nullptr : options.sinks.data(),
          static_cast<std::int32_t>(query_heads),
          group,
          scale,
          options.softcap,
          options.window > 0 ? options.window - 1 : max_pos,
          Divisor(options.chunk > 0 ? options.chunk : max_pos),
          seen_by(options).kept,
          options.causal,
          kv.rule.cross};
}
/// Whether kernels for tensor cores take the options: a positive scale, no kept positions, and chunks that are no
/// shorter than a tile of queries, which has up to 128 positions. The plain kernel takes all.
template <Format F>
[[nodiscard]] bool fit_tensor_cores(const PrefillArguments<F>& a) noexcept {
  return a.scale > 0 && a.kept == 0 && a.chunk.value() >= a.tiles.positions.value();
}

}  // namespace detail
}  // namespace cuda
}  // namespace v0
}  // namespace kvc
