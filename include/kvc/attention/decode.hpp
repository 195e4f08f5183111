// Attention of the newest position of a sequence over all of its keys and values, for one sequence or for a batch.
#pragma once

#include <span>

#include "kvc/attention/kernel/attention_call.hpp"
#include "kvc/element/float16.hpp"

namespace kvc {
inline namespace v0 {

/// out[b] = attention of query row b, at the last position of views[b], over the positions that AttentionOptions let it
/// see.
///
///   views  one layer of each sequence, of any lengths (0: the row gives 0); all of the same heads and dims
///   q      [B, query_heads * key_dim]    B == views.size()
///   out    [B, query_heads * value_dim]  overwritten; must not overlap q or the caches
///
/// A mask's row b belongs to views[b]. Each row has the bits that prefill and any other batch give it. Long sequences
/// are split over threads, by heads and by stretches of 512 positions, and positions that several sequences share (the
/// same blocks, found from the views) are read once for all of them. Errors and cost as for prefill, with a few
/// allocations more per call for the order, the prepared rows of q and the states of the splits; rows of what is shared
/// count once in what is read.
template <KvView View, class Ex = Sequential>
  requires Executor<Ex>
void decode(std::span<const View> views, MatrixRef<const float> q, MatrixRef<float> out,
            const AttentionOptions& options = {}, Ex&& executor = {}) {
  if (static_cast<Index>(views.size()) != q.rows()) {
    throw_invalid("q rows", q.rows(), "the number of views, " + std::to_string(views.size()));
  }
  if (views.empty()) {
    return;
  }
  const AttentionDims dims = attention_dims(views.front(), q, options);
  for (const View& view : views) {
    require(view.kv_heads() == dims.kv_heads, "kv_heads of a view", view.kv_heads(), "that of the first view");
    require(view.key_dim() == dims.key_dim, "key_dim of a view", view.key_dim(), "that of the first view");
    require(view.value_dim() == dims.value_dim, "value_dim of a view", view.value_dim(), "that of the first view");
  }
  require_extents(out, q.rows(), dims.query_heads * dims.value_dim, "out");
  const auto view = [&](Index b) -> const View& { return views[static_cast<std::size_t>(b)]; };
  const auto position = [&](Index b) { return Index{view(b).length()} - 1; };
  detail::AttentionCall(dims, options, q.rows(), Index{1}, view, position, q, out).run(executor);
}

/// The same for one sequence.  q [1, query_heads * key_dim],  out [1, query_heads * value_dim]
template <KvView View, class Ex = Sequential>
  requires Executor<Ex>
void decode(const View& kv, MatrixRef<const float> q, MatrixRef<float> out, const AttentionOptions& options = {},
            Ex&& executor = {}) {
  decode(std::span<const View>(&kv, 1), q, out, options, executor);
}

}  // namespace v0
}  // namespace kvc
