// Attention of many query rows of one sequence over its keys and values: prefill, and any chunk of it.
#pragma once

#include "kvc/attention/kernel/attention_call.hpp"
#include "kvc/element/float16.hpp"

namespace kvc {
inline namespace v0 {

/// out[i] = attention of query row i, at position queries.first + i, over the positions [0, kv.length()) that
/// AttentionOptions let it see.
///
///   kv       one layer of one sequence; query head h reads kv head h / (query_heads / kv_heads)
///   queries  their positions; n == queries.size(). May begin below 0 or end beyond kv.length(): causality and window
///            then apply as they stand, and a row that sees no key gives 0
///   q        [n, query_heads * key_dim]
///   out      [n, query_heads * value_dim]  overwritten; must not overlap q or the cache
///
/// A row's result has the same bits whatever rows, heads and sequences are computed beside it, in prefill as in decode,
/// however the view is cut into runs, and on any executor. Sums are floats. Products are those of floats, with an error
/// against exact arithmetic on the stored rows of about 1e-6 of the largest value, but where the processor multiplies
/// narrower numbers: then queries and weights are rounded to bfloat16 for bfloat16 and Fp8E4M3 (error about 3e-3), to
/// 15 and 16 bits for Int8 (1e-4), to 8 bits for Int4 (1e-2). Bits are those of the target that was compiled for.
///
/// Throws std::invalid_argument if extents or options do not fit, std::bad_alloc. One allocation per work item.
/// O(query_heads * pairs * (key_dim + value_dim)) for `pairs` of a row and a key it may see by causality and window;
/// keys that no row of a tile may see in this way are not read.
/// Method: tiles with a running maximum (FlashAttention, 2022), see attention/kernel/query_tile.hpp.
template <KvView View, class Ex = Sequential>
  requires Executor<Ex>
void prefill(const View& kv, PosRange queries, MatrixRef<const float> q, MatrixRef<float> out,
             const AttentionOptions& options = {}, Ex&& executor = {}) {
  const AttentionDims dims = attention_dims(kv, q, options);
  require(queries.size() == q.rows(), "queries", queries, "as many positions as q has rows");
  require_extents(out, q.rows(), dims.query_heads * dims.value_dim, "out");
  const auto view = [&](Index) -> const View& { return kv; };
  const auto position = [&](Index) { return Index{queries.first}; };
  detail::AttentionCall(dims, options, Index{1}, q.rows(), view, position, q, out).run(executor);
}

}  // namespace v0
}  // namespace kvc
