// AttentionOptions, and the checked extents of a call of attention.
#pragma once

#include <algorithm>
#include <cmath>
#include <optional>
#include <string>

#include "kvc/attention/kv_view.hpp"
#include "kvc/attention/mask.hpp"
#include "kvc/core/error.hpp"
#include "kvc/core/matrix.hpp"
#include "kvc/core/types.hpp"

namespace kvc {
inline namespace v0 {

/// Options of attention, on the CPU and on a GPU (which takes neither `mask` nor `keys`). For a query row at position p
/// and a key at position j, in this order:
///
///   s  = scale * (q . k)
///   s  = softcap * tanh(s / softcap)                         if softcap > 0
///   s += mask[head, row, j]                                  additive; boolean: the key is invisible where false
///   s  = -infinity  if causal and j > p, or if window > 0 and p - j >= window, or if j >= mask.cols(), or if j is
///                   outside `keys`
///   output = sum over j of softmax(s)[j] * v[j];             0 for a row that sees no key
///   lse    = log of the sum over j of exp(s[j]);             -infinity for a row that sees no key
///
/// Causality and the window go by absolute position, so they mean the same in every chunk. There are no attention sinks
/// in the sense of a score without a key: `lse` is of keys alone.
struct AttentionOptions {
  std::optional<float> scale = {};  ///< default 1 / sqrt(key_dim)
  bool causal = true;
  Pos window = 0;     ///< keys that a row sees up to and including its own position; 0: no limit
  float softcap = 0;  ///< 0: off
  AttentionMask mask = {};
  PosRange keys = {0, max_pos};  ///< the keys that any row may see: a part of them, to be merged (AttentionStates)
};

/// The scale of a call, with its default filled in.
/// Throws std::invalid_argument naming the option that is out of range; checks neither mask nor keys.
[[nodiscard]] inline float checked_scale(const AttentionOptions& options, Index key_dim) {
  const float scale = options.scale.value_or(1.0F / std::sqrt(static_cast<float>(key_dim)));
  require(std::isfinite(scale), "scale", scale, "finite");
  require(options.window >= 0, "window", options.window, "at least 0 (0: no window)");
  require(options.softcap >= 0 && std::isfinite(options.softcap), "softcap", options.softcap,
          "finite and at least 0 (0: off)");
  return scale;
}

/// The extents of one call, checked. The code of attention calls them H, G, D, Dv.
struct AttentionDims {
  Index kv_heads;
  Index query_heads;
  Index group;  ///< query heads per kv head (GQA group): query head h reads kv head h / group
  Index key_dim;
  Index value_dim;
  float scale;
};

/// Checks a call and returns its extents.
///
///   q  [rows, query_heads * key_dim]
///
/// Throws std::invalid_argument naming the argument that does not fit.
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
  dims.scale = checked_scale(options, dims.key_dim);
  require(0 <= options.keys.first && options.keys.first <= options.keys.last, "keys", options.keys,
          "a range of positions");
  options.mask.require_covers(dims.query_heads, q.rows());
  return dims;
}

namespace detail {

/// Keys [first, last), 0 <= first <= last <= length.
struct KeyRange {
  Index first;
  Index last;
};

/// The keys that a row at `position` may see by causality, window, `keys` and the width of the mask. Both ends grow
/// with the position.
[[nodiscard]] inline KeyRange visible_keys(Index position, Pos length, const AttentionOptions& options) noexcept {
  Index last = std::min({Index{length}, options.mask.cols(), Index{options.keys.last}});
  if (options.causal) {
    last = std::clamp(position + 1, Index{0}, last);
  }
  const Index first = options.window > 0 ? position - options.window + 1 : Index{0};
  return {std::clamp(first, std::min(Index{options.keys.first}, last), last), last};
}

/// Reports a view that does not hand out a row that a query row may see.
[[noreturn]] KVC_COLD inline void throw_not_retained(Index sequence, Index position) {
  throw_invalid("position " + std::to_string(position) + " of sequence " + std::to_string(sequence),
                "not retained by its view", "retained, because a query row may see it");
}

/// Throws std::invalid_argument unless the runs of these keys of a head are exactly these keys. O(runs).
template <KvView View>
void require_retained(const View& kv, Index head, KeyRange keys, Index sequence) {
  Index next = keys.first;
  if (keys.first < keys.last) {
    kv.for_each_run(head, PosRange{static_cast<Pos>(keys.first), static_cast<Pos>(keys.last)}, [&](const auto& run) {
      const bool is_next = run.first == next && run.rows >= 1 && run.rows <= keys.last - next;
      next += is_next ? run.rows : Index{0};
    });
  }
  if (next < keys.last) {
    throw_not_retained(sequence, next);
  }
}

}  // namespace detail

}  // namespace v0
}  // namespace kvc
