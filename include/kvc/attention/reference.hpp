// reference: attention by its definition, in double. Prefill and decode are tested against it.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <limits>
#include <vector>

#include "kvc/attention/kv_view.hpp"
#include "kvc/attention/options.hpp"
#include "kvc/attention/output.hpp"
#include "kvc/core/types.hpp"
#include "kvc/element/element.hpp"

namespace kvc {
inline namespace v0 {

/// Attention of the rows of one sequence: row i, at position queries.first + i, over the keys that AttentionOptions let
/// it see, one row after the other.
///
///   kv   one layer of one sequence
///   q    [n, query_heads * key_dim]     n == queries.size()
///   out  [n, query_heads * value_dim], with or without lse, or states: see AttentionOutput. Overwritten; must not
///        overlap q
///
/// Throws std::invalid_argument if extents or options do not fit, or if the view does not retain a key that a row may
/// see; nothing has been written then. O(n * query_heads * keys that a row may see * (key_dim + value_dim)).
template <KvView View>
void reference(const View& kv, PosRange queries, MatrixArg<float> q, const AttentionOutput& out,
               const AttentionOptions& options = {}) {
  using T = typename View::Element;
  const AttentionDims dims = kvc::attention_dims(kv, q, options);
  const Index H = dims.query_heads, G = dims.group, D = dims.key_dim, Dv = dims.value_dim;
  require(queries.size() == q.rows(), "queries", queries, "as many positions as q has rows");
  out.require_fits(dims, q.rows());
  const auto keys_of = [&](Index i) { return detail::visible_keys(Index{queries.first} + i, kv.length(), options); };
  for (Index i = 0; i < q.rows(); ++i) {
    for (Index head = 0; head < dims.kv_heads; ++head) {
      detail::require_retained(kv, head, keys_of(i), 0);
    }
  }

  std::vector<float> k(static_cast<std::size_t>(D)), v(static_cast<std::size_t>(Dv));
  std::vector<double> o(static_cast<std::size_t>(Dv));
  for (Index i = 0; i < q.rows(); ++i) {
    const detail::VisibleKeys keys = keys_of(i);
    for (Index h = 0; h < H; ++h) {
      double m = -std::numeric_limits<double>::infinity();  // largest score so far
      double l = 0;                                         // sum of exp(s - m)
      std::fill(o.begin(), o.end(), 0.0);                   // sum of exp(s - m) * v
      const auto add_run = [&](const KvRun<T>& run) {
        for (Index r = 0; r < run.rows; ++r) {
          const auto bias = static_cast<double>(options.mask.bias(h, i, run.first + r));
          if (bias == -HUGE_VAL) {
            continue;
          }
          detail::decode_key(run, r, D, k.data());
          detail::decode_value(run, r, D, Dv, v.data());
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
      };
      detail::for_each_run_of(kv, h / G, keys.kept, add_run);
      detail::for_each_run_of(kv, h / G, keys.recent, add_run);
      out.write_sums(i, h, m, l);
      double rescale = 1, divisor = 1;
      if (!out.has_states() && l != 0) {
        const double sink = options.sinks.empty() ? -HUGE_VAL : double{options.sinks[static_cast<std::size_t>(h)]};
        const double larger = std::max(m, sink);
        rescale = std::exp(m - larger);
        divisor = l * rescale + std::exp(sink - larger);
      }
      std::transform(o.begin(), o.end(), out.row(i, h, Dv),
                     [&](double x) { return static_cast<float>(x * rescale / divisor); });
    }
  }
}

}  // namespace v0
}  // namespace kvc
