// Attention written out: the definition in AttentionOptions, in double, one row after the other. What prefill and
// decode are tested against.
#pragma once

#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "kvc/attention/options.hpp"

namespace kvc {
inline namespace v0 {

/// out[i] = attention of query row i, at position queries.first + i, over all keys of `kv` that it may see.
///
///   kv   one layer of one sequence
///   q    [n, query_heads * key_dim]     n == queries.size()
///   out  [n, query_heads * value_dim]   overwritten; must not overlap q
///
/// Throws std::invalid_argument if extents or options do not fit. O(n * query_heads * length * (key_dim + value_dim)).
template <KvView View>
void reference(const View& kv, PosRange queries, MatrixRef<const float> q, MatrixRef<float> out,
               const AttentionOptions& options = {}) {
  using T = typename View::Element;
  const AttentionDims dims = attention_dims(kv, q, options);
  const Index H = dims.query_heads, G = dims.group, D = dims.key_dim, Dv = dims.value_dim;
  require(queries.size() == q.rows(), "queries", queries, "as many positions as q has rows");
  require_extents(out, q.rows(), H * Dv, "out");

  std::vector<float> k(static_cast<std::size_t>(D)), v(static_cast<std::size_t>(Dv));
  std::vector<double> o(static_cast<std::size_t>(Dv));
  const auto visible = [&](Index p, Index j) {
    return (!options.causal || j <= p) && (options.window == 0 || p - j < options.window) && j < options.mask.cols();
  };

  for (Index i = 0; i < q.rows(); ++i) {
    const Index p = queries.first + i;
    for (Index h = 0; h < H; ++h) {
      double m = -std::numeric_limits<double>::infinity();  // largest score so far
      double l = 0;                                         // sum of exp(s - m)
      std::fill(o.begin(), o.end(), 0.0);                   // sum of exp(s - m) * v
      kv.for_each_run(h / G, {0, kv.length()}, [&](const KvRun<T>& run) {
        for (Index r = 0; r < run.rows; ++r) {
          const Index j = run.first + r;
          const double bias = visible(p, j) ? static_cast<double>(options.mask.bias(h, i, j)) : -HUGE_VAL;
          if (bias == -HUGE_VAL) {
            continue;
          }
          Element<T>::decode(run.k + r * run.k_stride, D, k.data());
          Element<T>::decode(run.v + r * run.v_stride, Dv, v.data());
          double s = 0;
          for (Index d = 0; d < D; ++d) {
            s += static_cast<double>(q.row(i)[h * D + d]) * static_cast<double>(k[static_cast<std::size_t>(d)]);
          }
          s *= static_cast<double>(dims.scale);
          if (options.softcap > 0) {
            s = options.softcap * std::tanh(s / options.softcap);
          }
          s += bias;
          if (s == -HUGE_VAL) {
            continue;
          }
          const double larger = s > m || std::isnan(s) ? s : m;
          const double rescale = std::exp(m - larger);
          const double weight = std::exp(s - larger);
          m = larger;
          l = l * rescale + weight;
          for (std::size_t d = 0; d < o.size(); ++d) {
            o[d] = o[d] * rescale + weight * static_cast<double>(v[d]);
          }
        }
      });
      for (std::size_t d = 0; d < o.size(); ++d) {
        out.row(i)[h * Dv + static_cast<Index>(d)] = l == 0 ? 0.0F : static_cast<float>(o[d] / l);
      }
    }
  }
}

}  // namespace v0
}  // namespace kvc
