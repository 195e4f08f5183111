// The options of attention on a GPU: those of attention on the CPU, without masks, sinks, chunks, kept positions and
// ranges of keys.
#pragma once

#include "kvc/attention/options.hpp"
#include "kvc/core/error.hpp"
#include "kvc/core/types.hpp"

namespace kvc {
inline namespace v0 {
namespace cuda {

/// See kvc::AttentionOptions. `causal` has no effect on decode: the row is at the last position and sees every key.
using kvc::AttentionOptions;

/// The scale, with its default filled in. Throws std::invalid_argument naming an option that is out of range, or that
/// kernels on a GPU do not support: `mask`, `sinks`, `chunk`, `kept` and `keys`.
[[nodiscard]] inline float kernel_scale(const AttentionOptions& options, Index key_dim) {
  require(options.mask.is_none(), "mask", "given", "none on a GPU");
  require(options.sinks.empty(), "sinks.size()", options.sinks.size(), "0 on a GPU");
  require(options.chunk == 0, "chunk", options.chunk, "0 on a GPU");
  require(options.kept == 0, "kept", options.kept, "0 on a GPU");
  require(options.keys == AttentionOptions{}.keys, "keys", options.keys, "all on a GPU");
  return kvc::checked_scale(options, key_dim);
}

}  // namespace cuda
}  // namespace v0
}  // namespace kvc
