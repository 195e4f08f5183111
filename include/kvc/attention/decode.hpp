// decode: attention of the newest position of each sequence over all of its keys and values.
#pragma once

#include <cstddef>
#include <span>
#include <vector>

#include "kvc/attention/kernel/attention_call.hpp"
#include "kvc/attention/kernel/call_rows.hpp"
#include "kvc/attention/kv_view.hpp"
#include "kvc/attention/options.hpp"
#include "kvc/core/types.hpp"
#include "kvc/element/float16.hpp"
#include "kvc/parallel/executor.hpp"

namespace kvc {
inline namespace v0 {

/// Attention of one row of each sequence, at its last position, over the keys that AttentionOptions let it see.
///
///   views  one layer of each sequence, a contiguous range; of any lengths (0: the row gives 0), all of the same heads
///          and dims
///   q      [B, query_heads * key_dim]    B == views.size(); row b is that of views[b], also in a mask
///   out    [B, query_heads * value_dim], with or without lse, or states: see AttentionOutput. Overwritten; must not
///          overlap q or the caches
///
/// Each row has the bits that prefill and any other batch give it; accuracy and errors are those of prefill. Long
/// sequences are split among threads, by heads and by 512 positions, and positions that several sequences share (the
/// same blocks, found from the views) are read once for all of them, which is what they cost.
template <KvViewRange Views, class Ex = Sequential>
  requires Executor<Ex>
void decode(const Views& views, MatrixArg<float> q, const AttentionOutput& out, const AttentionOptions& options = {},
            Ex&& executor = {}) {
  const auto all = detail::view_span(views);
  std::vector<detail::SequenceRows> rows;
  rows.reserve(all.size());
  for (std::size_t b = 0; b < all.size(); ++b) {
    rows.push_back({static_cast<Index>(b), 1, Index{all[b].length()} - 1});
  }
  detail::attend(all, std::span<const detail::SequenceRows>(rows), std::ssize(all), q, out, options, executor);
}

/// The same for one sequence.  q  [1, query_heads * key_dim]    out  [1, query_heads * value_dim]
template <KvView View, class Ex = Sequential>
  requires Executor<Ex>
void decode(const View& kv, MatrixArg<float> q, const AttentionOutput& out, const AttentionOptions& options = {},
            Ex&& executor = {}) {
  kvc::decode(std::span<const View>(&kv, 1), q, out, options, executor);
}

}  // namespace v0
}  // namespace kvc
