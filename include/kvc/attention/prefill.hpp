// prefill: attention of many query rows of each sequence over its keys and values.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
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

namespace detail {

/// The rows of a ragged batch.
struct RaggedRows {
  std::vector<SequenceRows> of_each;
  Index count = 0;  ///< of all sequences

  [[nodiscard]] std::span<const SequenceRows> sequences() const noexcept { return of_each; }
};

/// Rows at these positions of their sequences. Throws std::invalid_argument unless there is a range for each view.
template <class View>
[[nodiscard]] RaggedRows rows_at(std::span<const View> views, std::span<const PosRange> queries) {
  require(queries.size() == views.size(), "queries.size()", queries.size(),
          "the number of views, " + std::to_string(views.size()));
  RaggedRows rows;
  rows.of_each.reserve(queries.size());
  for (const PosRange& positions : queries) {
    require(positions.first <= positions.last, "queries", positions, "ranges of positions");
    rows.of_each.push_back({rows.count, Index{positions.size()}, Index{positions.first}});
    rows.count += positions.size();
  }
  return rows;
}

/// Rows that are the last positions of their sequences. Throws std::invalid_argument unless q_indptr ascends from 0 and
/// has one number more than there are views.
template <class View>
[[nodiscard]] RaggedRows last_rows(std::span<const View> views, std::span<const std::int32_t> q_indptr) {
  require(q_indptr.size() == views.size() + 1, "q_indptr.size()", q_indptr.size(),
          "one more than the number of views, " + std::to_string(views.size()));
  require(q_indptr.front() == 0, "q_indptr[0]", q_indptr.front(), "0");
  RaggedRows rows;
  rows.of_each.reserve(views.size());
  for (std::size_t b = 0; b < views.size(); ++b) {
    const Index count = Index{q_indptr[b + 1]} - q_indptr[b];
    require(count >= 0, "q_indptr[" + std::to_string(b + 1) + "]", q_indptr[b + 1], "at least the one before");
    rows.of_each.push_back({Index{q_indptr[b]}, count, Index{views[b].length()} - count});
  }
  rows.count = q_indptr.back();
  return rows;
}

}  // namespace detail

/// Attention of the rows of one sequence: row i, at position queries.first + i, over the keys in [0, kv.length()) that
/// AttentionOptions let it see. A prompt, a chunk of one, or the tokens of one speculative step.
///
///   kv       one layer of one sequence; query head h reads kv head h / (query_heads / kv_heads)
///   queries  n positions. May begin below 0 or end beyond kv.length(): causality and window then apply as they stand,
///            and a row that sees no key gives 0
///   q        [n, query_heads * key_dim]
///   out      [n, query_heads * value_dim], with or without lse, or states: see AttentionOutput. Overwritten; must not
///            overlap q or the cache
///
/// **Bits.** A row has the same bits whatever rows, heads and sequences are computed beside it, in prefill as in
/// decode, however the view is cut into runs, and on any executor. They are those of the target that was compiled for.
///
/// **Accuracy.** Sums are floats. Products are those of floats, except where the processor multiplies narrower numbers
/// (AVX-512 with BF16, or with VNNI): there, queries and weights are rounded to bfloat16 for bfloat16 and Fp8E4M3, to
/// 15 and 16 bits for Int8, to 12 and 8 bits for Int4. Bounds on the error against exact arithmetic on the stored rows,
/// as parts of the largest value, for logits of standard deviation
///
///                                 1        4        10       20       30
///   floats                        1e-6     2e-6     3e-6     5e-6     1e-5
///   bfloat16, Fp8E4M3 (BF16)      1.5e-4   1e-3     1e-3     1e-3     1e-3     if q holds bfloat16 numbers
///   Int8 (VNNI)                   2e-5     4e-4     8e-4     1.5e-3   2.5e-3
///   Int4 (VNNI)                   1e-3     5e-3     8e-3     1.2e-2   1.8e-2
///
/// tested for normally distributed q, k and v, dims of 64 to 256 (floats: to 1024), and any scale: no scale rounds a
/// query. Other queries are rounded to bfloat16 first, which moves logits of deviation s by about s / 1000. Values may
/// be of any size, as long as no sum of 512 weighted ones overflows a float, and are exact to 2^-118 at least.
///
/// **Errors.** Throws std::invalid_argument if extents or options do not fit; nothing has been written then. Throws
/// std::invalid_argument naming the position if the view does not retain a key that a row may see, and std::bad_alloc;
/// `out` may be partly written then.
///
/// **Cost.** O(query_heads * pairs * (key_dim + value_dim)) for `pairs` of a row and a key that it may see by
/// causality, window, chunk, kept positions and `keys`. Keys that no row may see are not read, and need not be
/// retained. A few allocations per call.
///
/// Method: tiles with a running maximum (FlashAttention, 2022), see attention/kernel/query_tile.hpp.
template <KvView View, class Ex = Sequential>
  requires Executor<Ex>
void prefill(const View& kv, PosRange queries, MatrixArg<float> q, const AttentionOutput& out,
             const AttentionOptions& options = {}, Ex&& executor = {}) {
  const AttentionDims dims = kvc::attention_dims(kv, q, options);
  require(queries.size() == q.rows(), "queries", queries, "as many positions as q has rows");
  out.require_fits(dims, q.rows());
  const detail::SequenceRows rows{0, q.rows(), Index{queries.first}};
  detail::AttentionCall<View>(dims, options, std::span(&kv, 1), std::span(&rows, 1), q, out).run(executor);
}

/// The same for a ragged batch of sequences, whose rows lie one after the other in q and out: chunks of prompts of any
/// length and rows of decode (one position) side by side. Each row has the bits that a call for its sequence alone
/// gives.
///
///   views    one layer of each sequence, a contiguous range; all of the same heads and dims
///   queries  the positions of the rows of each sequence: [B], B == views.size(); may be empty
///   q        [sum of queries[b].size(), query_heads * key_dim]    out  as many rows
///
/// Rows of a mask are those of q. Sequences with few rows share what they read of common prefixes, as in decode.
template <KvViewRange Views, class Ex = Sequential>
  requires Executor<Ex>
void prefill(const Views& views, std::span<const PosRange> queries, MatrixArg<float> q, const AttentionOutput& out,
             const AttentionOptions& options = {}, Ex&& executor = {}) {
  const auto all = detail::view_span(views);
  const detail::RaggedRows rows = detail::rows_at(all, queries);
  detail::attend(all, rows.sequences(), rows.count, q, out, options, executor);
}

/// The same for rows that are the last positions of their sequences, as after `extend`: those of sequence b are
/// [q_indptr[b], q_indptr[b + 1]) of q and out, as in cuda::prefill and BatchIndex::q_indptr.
///
///   q_indptr  [B + 1] ascending from 0, also known as cu_seqlens_q
template <KvViewRange Views, class Ex = Sequential>
  requires Executor<Ex>
void prefill(const Views& views, std::span<const std::int32_t> q_indptr, MatrixArg<float> q, const AttentionOutput& out,
             const AttentionOptions& options = {}, Ex&& executor = {}) {
  const auto all = detail::view_span(views);
  const detail::RaggedRows rows = detail::last_rows(all, q_indptr);
  detail::attend(all, rows.sequences(), rows.count, q, out, options, executor);
}

}  // namespace v0
}  // namespace kvc
