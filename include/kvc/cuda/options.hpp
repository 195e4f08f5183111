// The options of attention on a GPU: those of attention on the CPU, but for a mask and a part of the keys.
#pragma once

#include "kvc/attention/options.hpp"
#include "kvc/core/error.hpp"
#include "kvc/core/types.hpp"

namespace kvc {
inline namespace v0 {
namespace cuda {

/// Of a decode, `causal` has no meaning: its row is the last position, and sees all.
using kvc::AttentionOptions;

/// The scale, with its default filled in. Throws std::invalid_argument if an option is out of range, or is one that
/// kernels on a GPU do not have: a mask, or a part of the keys.
[[nodiscard]] inline float checked_scale(const AttentionOptions& options, Index key_dim) {
  require(options.mask.is_none(), "mask", "given", "none on a GPU");
  require(options.keys == AttentionOptions{}.keys, "keys", options.keys, "all on a GPU");
  return kvc::checked_scale(options, key_dim);
}

}  // namespace cuda
}  // namespace v0
}  // namespace kvc
