// Latent rows (MLA) in expanded form: LatentExtents, the concept LatentExpansion, UpProjections, and expansion_pays.
// attention/expanded.hpp computes attention with them.
#pragma once

#include <algorithm>
#include <concepts>
#include <string>

#include "kvc/core/error.hpp"
#include "kvc/core/matrix.hpp"
#include "kvc/core/types.hpp"
#include "kvc/simd/dot.hpp"

namespace kvc {
inline namespace v0 {

/// Elements of a latent row, and of the keys and values that one head makes of it. DeepSeek V3: {576, 512, 192, 128}.
struct LatentExtents {
  Index row_dim;     ///< of the row: latent_dim and the elements behind them, which all heads share
  Index latent_dim;  ///< of the latent, with which the row begins; the value_dim of the layer in a cache
  Index key_dim;     ///< of an expanded key: those made of the latent, and the shared ones
  Index value_dim;   ///< of an expanded value

  friend constexpr bool operator==(const LatentExtents&, const LatentExtents&) = default;

  /// Elements of an expanded key that are made of the latent.
  [[nodiscard]] constexpr Index projected_key_dim() const noexcept { return key_dim - (row_dim - latent_dim); }
  /// Multiplications that expand one row in one head, or that absorb one query and project one output.
  [[nodiscard]] constexpr Index projection_size() const noexcept {
    return latent_dim * (projected_key_dim() + value_dim);
  }
};

/// Makes keys and values of latent rows: UpProjections, or a type of the caller's, with weights of any kind.
///
///   expression               | requires                      | returns, does                          | complexity
///   -------------------------+-------------------------------+----------------------------------------+-----------
///   e.heads()                |                               | Index: query heads, at least 1         | O(1)
///   e.extents()              |                               | LatentExtents                          | O(1)
///   e.expand(head, rows,     | rows [n, row_dim] float,      | writes the keys and values of one head | O(n *
///     k, v)                  | k [n, key_dim] float,         | of n rows; k and v may have strides    | projection
///                            | v [n, value_dim] float        |                                        | size)
///
/// All are const, and several threads may call them at once.
///
/// Law:
///   rows   the key and the value of a row have the same bits whatever rows are beside it, and however many. A product
///          that does not keep this (that of a BLAS, say) gives results within rounding, whose bits depend on the cuts
template <class E>
concept LatentExpansion =
    requires(const E& e, Index head, MatrixRef<const float> rows, MatrixRef<float> k, MatrixRef<float> v) {
      { e.heads() } -> std::same_as<Index>;
      { e.extents() } -> std::same_as<LatentExtents>;
      e.expand(head, rows, k, v);
    };

/// The up-projections of a layer in float, as a LatentExpansion:
///
///   key    [W_uk[head] latent | rest]        value    W_uv[head] latent
///
/// Refers to the caller's matrices, which must outlive it.
class UpProjections {
 public:
  ///   w_uk      [heads * projected_key_dim, latent_dim]     w_uv  [heads * value_dim, latent_dim]
  ///   rest_dim  elements of a row behind the latent
  ///
  /// Throws std::invalid_argument if an extent does not fit.
  UpProjections(MatrixRef<const float> w_uk, MatrixRef<const float> w_uv, Index heads, Index rest_dim)
      : UpProjections(w_uk, w_uv, heads, checked_part(w_uk, heads, "w_uk"), checked_part(w_uv, heads, "w_uv"), 0,
                      rest_dim) {}

  /// From one matrix that has, for each head, the rows of W_uk and then those of W_uv: kv_b_proj of DeepSeek's files.
  ///
  ///   w  [heads * (projected_key_dim + value_dim), latent_dim]
  ///
  /// Throws std::invalid_argument if an extent does not fit.
  [[nodiscard]] static UpProjections of_kv_b(MatrixRef<const float> w, Index heads, Index projected_key_dim,
                                             Index rest_dim) {
    const Index both = checked_part(w, heads, "w");
    require(projected_key_dim >= 1 && projected_key_dim < both, "projected_key_dim", projected_key_dim,
            "at least 1, and less than the rows of a head, " + std::to_string(both));
    return UpProjections(w, w.middle_rows(projected_key_dim, w.rows() - projected_key_dim), heads, projected_key_dim,
                         both - projected_key_dim, both, rest_dim);
  }

  /// Query heads.
  [[nodiscard]] Index heads() const noexcept { return heads_; }
  /// Elements of rows, keys and values.
  [[nodiscard]] LatentExtents extents() const noexcept {
    return {latent_dim() + rest_dim_, latent_dim(), key_rows_ + rest_dim_, value_rows_};
  }

  /// Keys and values of one head, in the fixed order of simd::dot. O(n * projection_size).
  void expand(Index head, MatrixRef<const float> rows, MatrixRef<float> k, MatrixRef<float> v) const noexcept {
    const auto row = [&](Index i) { return rows.row(i); };
    const auto key = [&](Index e) { return w_uk_.row(head * key_step_ + e); };
    const auto value = [&](Index e) { return w_uv_.row(head * value_step_ + e); };
    simd::dot_rows(rows.rows(), row, key_rows_, key, latent_dim(), k.data(), k.stride());
    simd::dot_rows(rows.rows(), row, value_rows_, value, latent_dim(), v.data(), v.stride());
    for (Index i = 0; i < rows.rows(); ++i) {
      std::copy_n(rows.row(i) + latent_dim(), rest_dim_, k.row(i) + key_rows_);
    }
  }

 private:
  ///   step  rows from one head to the next, of both; 0: as many as each has
  UpProjections(MatrixRef<const float> w_uk, MatrixRef<const float> w_uv, Index heads, Index key_rows, Index value_rows,
                Index step, Index rest_dim)
      : w_uk_(w_uk),
        w_uv_(w_uv),
        heads_(heads),
        key_rows_(key_rows),
        value_rows_(value_rows),
        key_step_(step == 0 ? key_rows : step),
        value_step_(step == 0 ? value_rows : step),
        rest_dim_(rest_dim) {
    require(w_uk.cols() >= 1, "columns of w_uk", w_uk.cols(), "at least 1");
    require(w_uv.cols() == w_uk.cols(), "columns of w_uv", w_uv.cols(), "those of w_uk");
    require(rest_dim >= 0, "rest_dim", rest_dim, "at least 0");
  }
  static Index checked_part(const MatrixRef<const float>& w, Index heads, const char* name) {
    require(heads >= 1, "heads", heads, "at least 1");
    require(w.rows() >= heads && w.rows() % heads == 0, std::string("rows of ") + name, w.rows(),
            "a positive multiple of heads");
    return w.rows() / heads;
  }
  [[nodiscard]] Index latent_dim() const noexcept { return w_uk_.cols(); }

  MatrixRef<const float> w_uk_;
  MatrixRef<const float> w_uv_;
  Index heads_;
  Index key_rows_;
  Index value_rows_;
  Index key_step_;
  Index value_step_;
  Index rest_dim_;
};
static_assert(LatentExpansion<UpProjections>);

/// Parts of the arithmetic peak that the kernels of both forms reach; their ratios matter. Measured with floats on a
/// Xeon with AVX-512 by `benchmarks/attention --benchmark_filter=prefill_latent`; another machine may have its own.
struct LatentRates {
  double absorbed = 0.75;   ///< attention over rows of row_dim elements
  double expanded = 0.6;    ///< attention over expanded keys and values
  double projection = 0.6;  ///< expanding rows; absorbing queries and projecting outputs, which the caller does
};

/// Whether the expanded form of a prefill takes less time than the absorbed one: the last `query_rows` of a sequence,
/// causal, over `keys` positions, their own among them. Counts multiplications in one head:
///
///   absorbed   query_rows * projection_size / projection + pairs * (row_dim + latent_dim) / absorbed
///   expanded         keys * projection_size / projection + pairs * (key_dim + value_dim)  / expanded
///
///   pairs = query_rows * (keys - query_rows) + query_rows * (query_rows + 1) / 2
///
/// A first pass over a prompt (query_rows == keys) is always cheaper in expanded form. O(1).
[[nodiscard]] constexpr bool expansion_pays(const LatentExtents& extents, Index query_rows, Index keys,
                                            const LatentRates& rates = {}) noexcept {
  const auto rows = static_cast<double>(query_rows), all = static_cast<double>(keys);
  const double pairs = rows * (all - rows) + rows * (rows + 1) / 2;
  const double projection = static_cast<double>(extents.projection_size()) / rates.projection;
  const double absorbed = static_cast<double>(extents.row_dim + extents.latent_dim) / rates.absorbed;
  const double expanded = static_cast<double>(extents.key_dim + extents.value_dim) / rates.expanded;
  return all * projection + pairs * expanded < rows * projection + pairs * absorbed;
}
}  // namespace v0
}  // namespace kvc
