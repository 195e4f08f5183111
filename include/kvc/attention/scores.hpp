// attention_scores: the scores inside attention, for inspection and tests. Attention itself does not use it.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <limits>
#include <vector>

#include "kvc/attention/kv_view.hpp"
#include "kvc/attention/options.hpp"
#include "kvc/core/types.hpp"
#include "kvc/element/element.hpp"

namespace kvc {
inline namespace v0 {

/// The stages of a score, in the order of AttentionOptions. Each includes those before it.
enum class ScoreStage {
  raw,         ///< scale * (q . k), of every pair
  softcapped,  ///< after the soft cap
  masked,      ///< after mask, causality, window and chunk; -infinity where a key is invisible
  softmax,     ///< probabilities, which with a sink add up to less than 1; all 0 in a row that sees no key
};

/// Writes the scores of query head h and row i, at position queries.first + i, against all positions, to row h * n + i
/// of `out`. Computes in double.
///
///   q    [n, query_heads * key_dim]      n == queries.size()
///   out  [query_heads * n, kv.length()]  overwritten: an array [query_heads, n, length]
///
/// Throws std::invalid_argument if extents or options do not fit, or if the view does not retain a position: from
/// ScoreStage::masked on, one that the row may see.
/// O(n * query_heads * length * key_dim).
template <KvView View>
void attention_scores(const View& kv, PosRange queries, MatrixRef<const float> q, ScoreStage stage,
                      MatrixRef<float> out, const AttentionOptions& options = {}) {
  using T = typename View::Element;
  const AttentionDims dims = kvc::attention_dims(kv, q, options);
  const Index n = q.rows();
  require(queries.size() == n, "queries", queries, "as many positions as q has rows");
  require_extents(out, dims.query_heads * n, kv.length(), "out");

  std::vector<float> k(static_cast<std::size_t>(dims.key_dim));
  std::vector<double> s(static_cast<std::size_t>(kv.length()));
  for (Index h = 0; h < dims.query_heads; ++h) {
    for (Index i = 0; i < n; ++i) {
      detail::VisibleKeys keys{{0, 0}, {0, Index{kv.length()}}};
      if (stage >= ScoreStage::masked) {
        keys = detail::visible_keys(Index{queries.first} + i, kv.length(), options);
      }
      detail::require_retained(kv, h / dims.group, keys, 0);
      std::fill(s.begin(), s.end(), -HUGE_VAL);
      const auto add_run = [&](const KvRun<T>& run) {
        for (Index r = 0; r < run.rows; ++r) {
          const Index j = run.first + r;
          detail::decode_key(run, r, dims.key_dim, k.data());
          double x = 0;
          for (Index d = 0; d < dims.key_dim; ++d) {
            x += static_cast<double>(q.row(i)[h * dims.key_dim + d]) *
                 static_cast<double>(k[static_cast<std::size_t>(d)]);
          }
          x *= static_cast<double>(dims.scale);
          if (stage >= ScoreStage::softcapped && options.softcap > 0) {
            x = options.softcap * std::tanh(x / options.softcap);
          }
          if (stage >= ScoreStage::masked) {
            const auto bias = static_cast<double>(options.mask.bias(h, i, j));
            x = bias == -HUGE_VAL ? bias : x + bias;  // even if an invisible key is NaN
          }
          s[static_cast<std::size_t>(j)] = x;
        }
      };
      detail::for_each_run_of(kv, h / dims.group, keys.kept, add_run);
      detail::for_each_run_of(kv, h / dims.group, keys.recent, add_run);
      if (stage == ScoreStage::softmax) {
        const double sink = options.sinks.empty() ? -HUGE_VAL : double{options.sinks[static_cast<std::size_t>(h)]};
        const double m = s.empty() ? sink : std::max(*std::max_element(s.begin(), s.end()), sink);
        double l = sink == -HUGE_VAL ? 0.0 : std::exp(sink - m);
        for (double& x : s) {
          x = x == -HUGE_VAL ? 0.0 : std::exp(x - m);
          l += x;
        }
        for (double& x : s) {
          x = l == 0 ? 0.0 : x / l;
        }
      }
      std::transform(s.begin(), s.end(), out.row(h * n + i), [](double x) { return static_cast<float>(x); });
    }
  }
}

}  // namespace v0
}  // namespace kvc
