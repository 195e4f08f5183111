// What a caller may ask of attention on a GPU: kvc::AttentionOptions without a mask.
#pragma once

#include <cmath>
#include <optional>

#include "kvc/core/error.hpp"
#include "kvc/core/types.hpp"

namespace kvc {
inline namespace v0 {
namespace cuda {

/// For a query row at position p and a key at position j, in this order:
///
///   s = scale * (q . k);   s = softcap * tanh(s / softcap) if softcap > 0
///   s = -infinity          if causal and j > p, or if window > 0 and p - j >= window
struct AttentionOptions {
  std::optional<float> scale = {};  ///< default 1 / sqrt(key_dim)
  bool causal = true;               ///< of prefill; the row of a decode is the last position, and sees all
  Pos window = 0;                   ///< keys that a row sees up to and including its own position; 0: no limit
  float softcap = 0;                ///< 0: off
};

/// The scale, with its default filled in. Throws std::invalid_argument if an option is out of range.
[[nodiscard]] inline float checked_scale(const AttentionOptions& options, Index key_dim) {
  const float scale = options.scale.value_or(1.0F / std::sqrt(static_cast<float>(key_dim)));
  require(std::isfinite(scale), "scale", scale, "finite");
  require(options.window >= 0, "window", options.window, "at least 0 (0: no window)");
  require(options.softcap >= 0 && std::isfinite(options.softcap), "softcap", options.softcap,
          "finite and at least 0 (0: off)");
  return scale;
}

}  // namespace cuda
}  // namespace v0
}  // namespace kvc
