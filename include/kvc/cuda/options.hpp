// The options of attention on a GPU: those of attention on the CPU, without masks and ranges of keys.
#pragma once

#include <iterator>

#include "kvc/attention/options.hpp"
#include "kvc/core/error.hpp"
#include "kvc/core/retained.hpp"
#include "kvc/core/types.hpp"

namespace kvc {
inline namespace v0 {
namespace cuda {

/// See kvc::AttentionOptions. Here `sinks` are in device memory, like all arrays; that each is finite or -infinity is
/// not checked. `causal` has no effect on the last row of a sequence; a decode of several rows requires it.
using kvc::AttentionOptions;

/// The scale, with its default filled in. Throws std::invalid_argument naming an option that is out of range, or that
/// kernels on a GPU do not support: `mask` and `keys`; and unless there are as many sinks as query heads, or none.
[[nodiscard]] inline float kernel_scale(const AttentionOptions& options, Index key_dim, Index query_heads) {
  require(options.mask.is_none(), "mask", "given", "none on a GPU");
  require(options.keys == AttentionOptions{}.keys, "keys", options.keys, "all on a GPU");
  require(options.sinks.empty() || std::ssize(options.sinks) == query_heads, "sinks.size()", options.sinks.size(),
          "0 or the number of query heads");
  return kvc::checked_scale(options, key_dim);
}

/// The positions that rows see by the window, the chunk and the kept positions of `options`.
[[nodiscard]] constexpr Retained seen_by(const AttentionOptions& options) noexcept {
  const bool all = options.window == 0 && options.chunk == 0;
  return {options.window, options.chunk, all ? 0 : options.kept};
}

}  // namespace cuda
}  // namespace v0
}  // namespace kvc
