// DecodeLimits: what a DecodeWork is made for, and the checks of a decode. This header needs no CUDA.
#pragma once

#include <algorithm>
#include <cstdint>

#include "kvc/attention/options.hpp"
#include "kvc/core/error.hpp"
#include "kvc/core/retained.hpp"
#include "kvc/core/types.hpp"
#include "kvc/cuda/decode_plan.hpp"
#include "kvc/cuda/format.hpp"
#include "kvc/cuda/options.hpp"
#include "kvc/cuda/view.cuh"

namespace kvc {
inline namespace v0 {
namespace cuda {

/// The largest batch that a DecodeWork can plan for, and the shape of the model.
struct DecodeLimits {
  Index sequences = 0;  ///< or query rows, of plans with several for a sequence
  Index positions = 0;  ///< that rows see, of all rows together; shared ones count once per row
  Index query_heads = 0;
  Index kv_heads = 0;
  Index dim = 0;                 ///< key_dim and value_dim
  Format format = Format::none;  ///< of the cache: format_of<T>
  Index value_dim = 0;           ///< for decode_latent: of the values, which are the beginnings of keys; 0 for decode

  /// Whether it is for latent rows, which decode_latent takes.
  [[nodiscard]] constexpr bool latent() const noexcept { return value_dim > 0; }
  /// Elements of an output.
  [[nodiscard]] constexpr Index out_dim() const noexcept { return latent() ? value_dim : dim; }
};

/// Elements of a latent row, and of its value, at most.
inline constexpr int latent_key_dim = 576, latent_value_dim = 512;
/// Rows of queries of an item over latent rows, few and many.
inline constexpr int latent_few = 16, latent_many = 64;

namespace detail {
/// Query rows that each kernel handles at once, as many as its registers hold: at most 32 for caches of 16-bit
/// elements, 16 for caches of bytes, whose conversion to 16 bits takes registers, and 8 beyond dim 128.
[[nodiscard]] constexpr ItemRows item_rows(Format format, Index group, Index dim) noexcept {
  const std::int32_t most = dim > 128 ? 8 : code_bytes(format) == 1 ? 16 : 32;
  return {std::min(group <= 8 ? 8 : group <= 16 ? 16 : 32, most), most};
}

/// The same by the limits.
[[nodiscard]] constexpr ItemRows item_rows(const DecodeLimits& limits) noexcept {
  return limits.latent() ? ItemRows{latent_few, latent_many}
                         : item_rows(limits.format, limits.query_heads / limits.kv_heads, limits.dim);
}

/// The limits. Throws std::invalid_argument, naming the one that is not possible.
[[nodiscard]] inline const DecodeLimits& checked(const DecodeLimits& limits) {
  require_between(limits.sequences, Index{1}, Index{max_pos}, "limits.sequences");
  require_between(limits.positions, Index{1}, Index{1} << 38, "limits.positions");
  require_between(limits.kv_heads, Index{1}, Index{1} << 16, "limits.kv_heads");
  require_between(limits.query_heads, Index{1}, Index{65535}, "limits.query_heads");
  require(limits.sequences * limits.query_heads <= max_pos, "limits.sequences", limits.sequences,
          "at most 2^31 - 1, divided by query_heads");
  require(limits.query_heads % limits.kv_heads == 0, "limits.query_heads", limits.query_heads,
          "a multiple of kv_heads");
  if (limits.latent()) {
    require(limits.dim >= 8 && limits.dim <= latent_key_dim && limits.dim % 8 == 0, "limits.dim", limits.dim,
            "a multiple of 8 up to 576, for latent rows");
    require(limits.value_dim <= std::min(limits.dim, Index{latent_value_dim}) && limits.value_dim % 8 == 0,
            "limits.value_dim", limits.value_dim, "a multiple of 8 up to 512 and limits.dim");
    require(limits.format == Format::f16 || limits.format == Format::bf16, "limits.format",
            static_cast<int>(limits.format), "f16 or bf16, for latent rows: format_of<T> of the cache");
    return limits;
  }
  require(limits.value_dim == 0, "limits.value_dim", limits.value_dim, "positive, or 0 if rows are not latent");
  require(limits.dim >= 8 && limits.dim <= 256 && limits.dim % 8 == 0, "limits.dim", limits.dim,
          "a multiple of 8 up to 256");
  require(limits.format != Format::none && limits.format != Format::f32, "limits.format",
          static_cast<int>(limits.format), "f16, bf16, fp8_e4m3 or int8: format_of<T> of the cache");
  return limits;
}

/// The scale of a decode of this layer; `planned` is what rows see by the plan. Throws std::invalid_argument, naming
/// the argument, if the layer or the options do not fit the limits or the plan, or a row could see what the layer's
/// group drops.
template <Format F>
[[nodiscard]] float checked_decode(const LayerView<F>& kv, const DecodeLimits& limits, const Retained& planned,
                                   const AttentionOptions& options, QueryRows rows = QueryRows::last) {
  require((F == Format::int8_planes ? Format::int8 : F) == limits.format, "format", static_cast<int>(F),
          "that of the DecodeWork");
  require(kv.kv_heads == limits.kv_heads, "kv_heads", kv.kv_heads, "that of the DecodeWork");
  require(kv.key_dim == limits.dim, "key_dim", kv.key_dim, "the dim of the DecodeWork");
  require(kv.value_dim == limits.out_dim(), "value_dim", kv.value_dim,
          kv.rule.latent ? "that of the DecodeWork: cuda::decode_latent takes latent rows, by limits with a value_dim"
                         : "the dim of the DecodeWork");
  require(F != Format::int8_planes || (kv.k.block == kv.v.block && kv.k.head == kv.v.head && kv.k.slot == kv.v.slot),
          "layout", "one with other strides of values than of keys", "one with the same, for scales in planes");
  const float scale = kernel_scale(options, kv.key_dim, limits.query_heads);
  require(options.window == planned.window, "window", options.window, "that which was planned for");
  require(options.chunk == planned.chunk, "chunk", options.chunk, "that which was planned for");
  require(options.kept == planned.kept, "kept", options.kept, "that which was planned for");
  require_retains(kv.rule, planned);
  require(rows == QueryRows::last || options.causal, "causal", options.causal, "true by a plan of QueryRows::every");
  require(rows == QueryRows::last || !kv.rule.cross, "layer", "one of cross attention",
          "another by a plan of QueryRows::every: cuda::prefill takes it");
  return scale;
}

}  // namespace detail
}  // namespace cuda
}  // namespace v0
}  // namespace kvc
