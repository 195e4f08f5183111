// AttentionOutput: where a call of attention writes.
#pragma once

#include <cmath>
#include <concepts>
#include <limits>
#include <type_traits>

#include "kvc/attention/options.hpp"
#include "kvc/attention/state.hpp"
#include "kvc/core/matrix.hpp"
#include "kvc/core/types.hpp"

namespace kvc {
inline namespace v0 {

/// Where prefill, decode and reference write, in memory of the caller's that they overwrite. Outputs alone, outputs and
/// their log-sum-exp, or states:
///
///   prefill(kv, queries, q, out);               out     [rows, query_heads * value_dim]
///   prefill(kv, queries, q, {out, lse});        lse     [rows, query_heads]
///   prefill(kv, queries, q, states);            states  AttentionStates, to be merged with those of other keys
///
/// `lse` is the natural logarithm of the sum over the keys that a row sees of exp(score), the score as AttentionOptions
/// defines it, soft cap and additive mask included, sinks not; -infinity for a row that sees no key. States do not
/// include sinks either.
class AttentionOutput {
 public:
  /// An `lse` without rows and columns is not written.
  AttentionOutput(MatrixRef<float> out, MatrixRef<float> lse = {})  // NOLINT: converts by design
      : out_(out), lse_(lse) {}

  /// From all that converts to a matrix.
  template <class M>
    requires(std::convertible_to<M, MatrixRef<float>> && !std::same_as<std::remove_cvref_t<M>, MatrixRef<float>>)
  AttentionOutput(M&& out)  // NOLINT: converts by design
      : out_(static_cast<M&&>(out)) {}

  /// From an array  out  [rows, cols].
  AttentionOutput(float* out, Index rows, Index cols) : out_(out, rows, cols) {}

  /// States instead of outputs.
  AttentionOutput(const AttentionStates& states)  // NOLINT: converts by design
      : out_(states.o), m_(states.m), l_(states.l), has_states_(true) {}

  /// Throws std::invalid_argument naming the array whose extents do not fit.
  void require_fits(const AttentionDims& dims, Index rows) const {
    require_extents(out_, rows, dims.query_heads * dims.value_dim, has_states_ ? "states.o" : "out");
    if (has_states_) {
      require_extents(m_, rows, dims.query_heads, "states.m");
      require_extents(l_, rows, dims.query_heads, "states.l");
    } else if (has_lse()) {
      require_extents(lse_, rows, dims.query_heads, "lse");
    }
  }

  /// The elements of one row and head: outputs, or sums that are not normalised if `has_states()`.  [value_dim]
  [[nodiscard]] float* row(Index row, Index head, Index value_dim) const noexcept {
    return out_.row(row) + head * value_dim;
  }
  /// Whether the call writes states instead of outputs.
  [[nodiscard]] bool has_states() const noexcept { return has_states_; }

  /// Writes all but the elements of `row`, from the state of one row and head. Real is float or double.
  template <class Real>
  void write_sums(Index row, Index head, Real m, Real l) const noexcept {
    if (has_states_) {
      m_.row(row)[head] = static_cast<float>(m);
      l_.row(row)[head] = static_cast<float>(l);
    } else if (has_lse()) {
      lse_.row(row)[head] = static_cast<float>(l == 0 ? -std::numeric_limits<Real>::infinity() : m + std::log(l));
    }
  }

 private:
  [[nodiscard]] bool has_lse() const noexcept { return lse_.rows() > 0 || lse_.cols() > 0; }

  MatrixRef<float> out_;
  MatrixRef<float> lse_ = {};
  MatrixRef<float> m_ = {};
  MatrixRef<float> l_ = {};
  bool has_states_ = false;
};

}  // namespace v0
}  // namespace kvc
