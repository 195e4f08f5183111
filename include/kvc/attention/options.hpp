// AttentionOptions, and the checked extents of a call of attention.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <iterator>
#include <limits>
#include <optional>
#include <span>
#include <string>

#include "kvc/attention/kv_view.hpp"
#include "kvc/attention/mask.hpp"
#include "kvc/attention/memory_plan.hpp"
#include "kvc/core/error.hpp"
#include "kvc/core/matrix.hpp"
#include "kvc/core/types.hpp"

namespace kvc {
inline namespace v0 {

/// Options of attention, on the CPU and on a GPU (which takes some of them: cuda/options.hpp). For a query row at
/// position p and a key at position j, in this order:
///
///   s  = scale * (q . k)
///   s  = softcap * tanh(s / softcap)                         if softcap > 0
///   s += mask[head, row, j]                                  additive; boolean: the key is invisible where false
///   s  = -infinity                                           if the row does not see j
///   output = sum over j of exp(s[j]) * v[j] / (sum over j of exp(s[j]) + exp(sinks[head]));
///                                                            0 for a row that sees no key
///   lse    = log of the sum over j of exp(s[j]);             -infinity for a row that sees no key
///
/// A row sees a key j < mask.cols() in `keys` unless one of these hides it:
///
///   causal       j > p
///   window > 0   p - j >= window                             but not a kept position, j < kept
///   chunk > 0    j < floor(p / chunk) * chunk                but not a kept position
///
/// All of them go by absolute position, so they mean the same in every part of a prompt. With both a window and a
/// chunk, a row sees the keys that both let it see. The keys that a row sees may have a gap, between the kept positions
/// and its window or chunk: keys in the gap are not read.
///
/// A sink has no key, no value and no scale, and neither soft cap nor mask apply to it; every row has it, once. It is
/// part of outputs only: `lse` and AttentionStates are of keys alone, so that they merge. (Sinks: gpt-oss, 2025. Kept
/// positions: StreamingLLM, 2023, which calls them attention sinks. Chunks: Llama 4, 2025.)
struct AttentionOptions {
  std::optional<float> scale = {};  ///< default 1 / sqrt(key_dim)
  bool causal = true;
  Pos window = 0;     ///< keys that a row sees up to and including its own position; 0: no limit
  Pos chunk = 0;      ///< a row sees the keys from the last multiple of this on, up to its own position; 0: no limit
  Pos kept = 0;       ///< kept positions [0, kept), which rows see whatever `window` and `chunk`
  float softcap = 0;  ///< 0: off
  AttentionMask mask = {};
  std::span<const float> sinks = {};  ///< [query_heads] a logit each, finite or -infinity, of the caller's; empty: none
  PosRange keys = {0, max_pos};       ///< the keys that any row may see: a part of them, to be merged (AttentionStates)
  /// How decode prefetches, which changes no bit; none: as memory_plan_choice.hpp says. Not used on a GPU.
  std::optional<MemoryPlan> memory_plan = {};
};

/// The scale of a call, with its default filled in.
/// Throws std::invalid_argument naming the option that is out of range; checks neither mask nor sinks nor keys.
[[nodiscard]] inline float checked_scale(const AttentionOptions& options, Index key_dim) {
  const float scale = options.scale.value_or(1.0F / std::sqrt(static_cast<float>(key_dim)));
  require(std::isfinite(scale), "scale", scale, "finite");
  require(options.window >= 0, "window", options.window, "at least 0 (0: no window)");
  require(options.chunk >= 0, "chunk", options.chunk, "at least 0 (0: no chunks)");
  require(options.kept >= 0, "kept", options.kept, "at least 0");
  require(options.softcap >= 0 && std::isfinite(options.softcap), "softcap", options.softcap,
          "finite and at least 0 (0: off)");
  if (options.memory_plan) {
    require_between(options.memory_plan->lines, std::int32_t{0}, MemoryPlan::max_lines, "memory_plan.lines");
  }
  return scale;
}

namespace detail {
/// Throws std::invalid_argument unless there are no sinks, or one for each head, finite or -infinity. O(sinks).
inline void require_sinks(std::span<const float> sinks, Index query_heads) {
  if (sinks.empty()) {
    return;
  }
  require(std::ssize(sinks) == query_heads, "sinks.size()", sinks.size(), "0 or the number of query heads");
  for (std::size_t h = 0; h < sinks.size(); ++h) {
    const bool ok = sinks[h] < std::numeric_limits<float>::infinity();  // no NaN either
    if (!ok) {
      throw_invalid("sinks[" + std::to_string(h) + "]", sinks[h], "finite or -infinity");
    }
  }
}
}  // namespace detail

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
  detail::require_sinks(options.sinks, dims.query_heads);
  return dims;
}

namespace detail {

/// Keys [first, last), 0 <= first <= last <= length.
struct KeyRange {
  Index first;
  Index last;

  [[nodiscard]] constexpr bool empty() const noexcept { return first >= last; }
};

/// The keys that a row may see, or several rows: two ranges with a gap between. `kept` is empty if there is no gap.
struct VisibleKeys {
  KeyRange kept;    ///< kept positions; kept.last < recent.first
  KeyRange recent;  ///< all others, and the kept positions if they are next to them

  [[nodiscard]] constexpr bool empty() const noexcept { return kept.empty() && recent.empty(); }
};

/// The keys that a row at `position` may see by all options but the entries of the mask. All ends grow with the
/// position, and the ranges of rows at consecutive positions overlap or are neighbours.
[[nodiscard]] inline VisibleKeys visible_keys(Index position, Pos length, const AttentionOptions& options) noexcept {
  Index last = std::min({Index{length}, options.mask.cols(), Index{options.keys.last}});
  if (options.causal) {
    last = std::clamp(position + 1, Index{0}, last);
  }
  const Index begin = std::min(Index{options.keys.first}, last);
  Index first = options.window > 0 ? position - options.window + 1 : Index{0};
  if (options.chunk > 0 && position > 0) {
    first = std::max(first, position / options.chunk * options.chunk);
  }
  first = std::clamp(first, begin, last);
  const Index kept = options.kept;
  if (first <= kept) {
    return {{0, 0}, {begin, last}};
  }
  return {{begin < kept ? begin : 0, begin < kept ? kept : 0}, {first, last}};
}

/// The keys that any of the rows at positions [first, last) may see.
[[nodiscard]] inline VisibleKeys visible_keys(Index first, Index last, Pos length,
                                              const AttentionOptions& options) noexcept {
  if (first >= last) {
    return {{0, 0}, {0, 0}};
  }
  // All ends of the keys of a row grow with its position, and what the early row keeps the late one keeps, too.
  const VisibleKeys early = visible_keys(first, length, options), late = visible_keys(last - 1, length, options);
  const KeyRange recent{std::max(early.recent.first, Index{options.keys.first}), late.recent.last};
  return {early.kept, recent.empty() ? KeyRange{recent.last, recent.last} : recent};
}

/// Reports a view that does not hand out a row that a query row may see.
[[noreturn]] KVC_COLD inline void throw_not_retained(Index sequence, Index position) {
  throw_invalid("position " + std::to_string(position) + " of sequence " + std::to_string(sequence),
                "not retained by its view", "retained, because a query row may see it");
}

/// The runs of a range of keys of a head, which may be empty.
template <KvView View, class F>
void for_each_run_of(const View& kv, Index head, KeyRange keys, F&& f) {
  if (!keys.empty()) {
    kv.for_each_run(head, PosRange{static_cast<Pos>(keys.first), static_cast<Pos>(keys.last)}, f);
  }
}

/// Throws std::invalid_argument unless the runs of these keys of a head are exactly these keys. O(runs).
template <KvView View>
void require_retained(const View& kv, Index head, const VisibleKeys& keys, Index sequence) {
  for (const KeyRange& range : {keys.kept, keys.recent}) {
    Index next = range.first;
    detail::for_each_run_of(kv, head, range, [&](const auto& run) {
      const bool is_next = run.first == next && run.rows >= 1 && run.rows <= range.last - next;
      next += is_next ? run.rows : Index{0};
    });
    if (next < range.last) {
      throw_not_retained(sequence, next);
    }
  }
}

}  // namespace detail

}  // namespace v0
}  // namespace kvc
