// What a caller may ask of attention, and the extents of a call.
#pragma once

#include <algorithm>
#include <cmath>
#include <optional>

#include "kvc/attention/kv_view.hpp"
#include "kvc/attention/mask.hpp"

namespace kvc {
inline namespace v0 {

/// Options of prefill, decode and reference. For a query row at position p and a key at position j, in this order:
///
///   s  = scale * (q . k)
///   s  = softcap * tanh(s / softcap)                         if softcap > 0
///   s += mask[head, row, j]                                  additive; boolean: the key is invisible where false
///   s  = -infinity  if causal and j > p, or if window > 0 and p - j >= window, or if j >= mask.cols()
///   output = sum over j of softmax(s)[j] * v[j];             0 for a row that sees no key
///
/// Causality and the window go by absolute position, so they mean the same in every chunk.
struct AttentionOptions {
  std::optional<float> scale = {};  ///< default 1 / sqrt(key_dim)
  bool causal = true;
  Pos window = 0;     ///< keys that a row sees up to and including its own position; 0: no limit
  float softcap = 0;  ///< 0: off
  AttentionMask mask = {};
};

/// The extents of one call, checked. What the code of attention calls H, G, D, Dv.
struct AttentionDims {
  Index kv_heads;
  Index query_heads;
  Index group;  ///< query heads per kv head (GQA group): query head h reads kv head h / group
  Index key_dim;
  Index value_dim;
  float scale;
};

/// Checks a call and returns its extents. Throws std::invalid_argument naming what does not fit.
///
///   q  [rows, query_heads * key_dim]
template <KvView View>
[[nodiscard]] AttentionDims attention_dims(const View& kv, MatrixRef<const float> q, const AttentionOptions& options) {
  AttentionDims dims{kv.kv_heads(), 0, 0, kv.key_dim(), kv.value_dim(), 0};
  require(dims.kv_heads >= 1, "kv_heads", dims.kv_heads, "at least 1");
  require(dims.key_dim >= 1, "key_dim", dims.key_dim, "at least 1");
  require(dims.value_dim >= 1, "value_dim", dims.value_dim, "at least 1");
  if (q.cols() <= 0 || q.cols() % (dims.kv_heads * dims.key_dim) != 0) {
    throw_invalid("q columns", q.cols(),
                  "a positive multiple of kv_heads * key_dim = " + std::to_string(dims.kv_heads * dims.key_dim));
  }
  dims.query_heads = q.cols() / dims.key_dim;
  dims.group = dims.query_heads / dims.kv_heads;

  dims.scale = options.scale.value_or(1.0F / std::sqrt(static_cast<float>(dims.key_dim)));
  require(std::isfinite(dims.scale), "scale", dims.scale, "finite");
  require(options.window >= 0, "window", options.window, "at least 0 (0: no window)");
  require(options.softcap >= 0 && std::isfinite(options.softcap), "softcap", options.softcap,
          "finite and at least 0 (0: off)");
  options.mask.require_covers(dims.query_heads, q.rows());
  return dims;
}

namespace detail {
/// Keys [first, last), 0 <= first <= last <= length, that a row at `position` may see by causality, window and width of
/// the mask. Both ends grow with the position.
struct KeyRange {
  Index first;
  Index last;
};
[[nodiscard]] inline KeyRange visible_keys(Index position, Pos length, const AttentionOptions& options) noexcept {
  Index last = std::min(Index{length}, options.mask.cols());
  if (options.causal) {
    last = std::clamp(position + 1, Index{0}, last);
  }
  const Index first = options.window > 0 ? position - options.window + 1 : Index{0};
  return {std::clamp(first, Index{0}, last), last};
}
}  // namespace detail

}  // namespace v0
}  // namespace kvc
