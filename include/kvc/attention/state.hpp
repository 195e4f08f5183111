// AttentionState: attention over a part of the keys, and how two parts become one.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <limits>
#include <span>

#include "kvc/attention/options.hpp"
#include "kvc/core/error.hpp"
#include "kvc/core/matrix.hpp"
#include "kvc/core/types.hpp"
#include "kvc/simd/exp.hpp"

namespace kvc {
inline namespace v0 {

/// The state of one query row and head after a set J of keys with scores s[j] and values v[j]:
///
///   m = max s[j]       l = sum exp(s[j] - m)       o = sum exp(s[j] - m) * v[j]          (j in J)
///
/// The attention output over J is o / l. States of disjoint sets merge:
///
///   m = max(m1, m2)    l = l1 exp(m1 - m) + l2 exp(m2 - m)    o = o1 exp(m1 - m) + o2 exp(m2 - m)
///
/// In exact arithmetic merging is associative and commutative, and the state of the empty set (m = -infinity, l = 0,
/// o = 0) is its identity. In floating point the identity is exact and the rest holds to rounding; kvc merges in one
/// fixed order, ascending positions, from the left.
///
/// Owns nothing: o lies in memory of the caller's.
///
/// Sources: Milakov and Gimelshein, "Online normalizer calculation for softmax" (2018), for the running maximum; Dao et
/// al., "FlashAttention" (2022), for carrying o along; the merge is that of split keys (Flash-Decoding, 2023) and
/// shared prefixes (FlashInfer, 2024).
struct AttentionState {
  std::span<float> o;                                 ///< [value_dim] not normalised
  float m = -std::numeric_limits<float>::infinity();  ///< largest score
  float l = 0;                                        ///< sum of exponentials relative to m

  /// No key has been seen.
  [[nodiscard]] bool is_identity() const noexcept { return m == -std::numeric_limits<float>::infinity(); }

  /// log of the sum of exp(s[j]); -infinity for the identity.
  [[nodiscard]] float log_sum_exp() const noexcept { return is_identity() ? m : m + std::log(l); }

  /// Makes this state the identity. O(value_dim).
  void reset() noexcept {
    m = -std::numeric_limits<float>::infinity();
    l = 0;
    std::fill(o.begin(), o.end(), 0.0F);
  }

  /// Merges the state of another set of keys, disjoint from this one's. Merging the identity, on either side, changes
  /// no bit. Throws std::invalid_argument if their value_dim differ. O(value_dim).
  void merge(const AttentionState& other) {
    require(o.size() == other.o.size(), "value_dim of a state to merge", other.o.size(), "that of the other");
    if (other.is_identity()) {
      return;
    }
    if (is_identity()) {
      std::copy(other.o.begin(), other.o.end(), o.begin());
      m = other.m;
      l = other.l;
      return;
    }
    // NaN must win, as it does for every other function of the scores.
    const float largest = (m > other.m || m != m) ? m : other.m;
    const float a = simd::exp(m - largest);
    const float b = simd::exp(other.m - largest);
    m = largest;
    l = simd::madd(l, a, other.l * b);
    for (std::size_t d = 0; d < o.size(); ++d) {
      o[d] = simd::madd(o[d], a, other.o[d] * b);
    }
  }

  /// Merges a sink (AttentionOptions::sinks), which is the state {o = 0, m = logit, l = 1}: once, when all keys have
  /// been merged. From then on `log_sum_exp()` includes it. O(value_dim).
  void add_sink(float logit) noexcept {
    if (logit == -std::numeric_limits<float>::infinity()) {
      return;
    }
    if (is_identity()) {
      m = logit;
      l = 1;
      return;
    }
    const float largest = (m > logit || m != m) ? m : logit;  // NaN must win, as in merge
    const float a = simd::exp(m - largest);
    l = simd::madd(l, a, simd::exp(logit - largest));
    m = largest;
    for (float& x : o) {
      x = simd::madd(x, a, 0.0F);  // the bits of merge
    }
  }

  /// out[d] = o[d] / l, or 0 for the identity: the attention output  [value_dim]. O(value_dim).
  void write_output(float* out) const noexcept {
    for (std::size_t d = 0; d < o.size(); ++d) {
      out[d] = l == 0 ? 0.0F : o[d] / l;
    }
  }
  /// The same after `add_sink(logit)`, which is not kept. `out` may be `o`.
  void write_output(float* out, float logit) const noexcept {
    if (out != o.data()) {
      std::copy(o.begin(), o.end(), out);
    }
    AttentionState all{{out, o.size()}, m, l};
    all.add_sink(logit);
    all.write_output(out);
  }
};

/// The states of many rows and heads, in arrays of the caller's. A call of attention over a part of the keys
/// (AttentionOptions::keys) fills them in; parts of one row may come from anywhere, and are merged here:
///
///   decode(views, q, first_part, {.keys = {0, 1000}});
///   decode(views, q, second_part, {.keys = {1000, max_pos}});
///   first_part.merge(second_part);
///   first_part.write_output(out, lse);
///
/// Outputs of another engine with their log-sum-exp are states, too: o = output, m = lse, l = 1. States are of keys
/// alone, without sinks: `write_output` adds these to what has been merged, once.
///
/// Merged in ascending order of keys, parts give the outputs of one call within its accuracy (see prefill), whatever
/// the cuts: 2e-6 of the largest value for float. The bits are the same if every part but the first lies within 512
/// positions from a multiple of 512.
struct AttentionStates {
  MatrixRef<float> o;  ///< [rows, query_heads * value_dim] not normalised
  MatrixRef<float> m;  ///< [rows, query_heads] largest score
  MatrixRef<float> l;  ///< [rows, query_heads] sum of exponentials relative to m

  /// Query rows.
  [[nodiscard]] Index rows() const noexcept { return m.rows(); }
  /// Query heads.
  [[nodiscard]] Index query_heads() const noexcept { return m.cols(); }
  /// Elements of the output of one head.
  [[nodiscard]] Index value_dim() const noexcept { return query_heads() == 0 ? 0 : o.cols() / query_heads(); }

  /// A copy of m and l, and o where it lies.
  [[nodiscard]] AttentionState state(Index row, Index head) const noexcept {
    return {
        {o.row(row) + head * value_dim(), static_cast<std::size_t>(value_dim())}, m.row(row)[head], l.row(row)[head]};
  }

  /// Makes every state the identity. O(rows * query_heads * value_dim), as the following.
  void reset() const {
    require_consistent();
    for_each([&](Index row, Index head) {
      AttentionState s = state(row, head);
      s.reset();
      store(row, head, s);
    });
  }

  /// Merges each state of `other` into that of the same row and head. Throws std::invalid_argument if extents differ.
  void merge(const AttentionStates& other) const {
    require_consistent();
    require_extents(other.o, o.rows(), o.cols(), "o of the states to merge");
    require_extents(other.m, m.rows(), m.cols(), "m of the states to merge");
    require_extents(other.l, l.rows(), l.cols(), "l of the states to merge");
    for_each([&](Index row, Index head) {
      AttentionState s = state(row, head);
      s.merge(other.state(row, head));
      store(row, head, s);
    });
  }

  /// Writes the outputs, and their log-sum-exp unless `lse` is empty. `out` may be `o`.
  ///
  ///   out    [rows, query_heads * value_dim]     lse  [rows, query_heads]
  ///   sinks  [query_heads] or empty: those of AttentionOptions, which states do not include, for the outputs alone
  ///
  /// Throws std::invalid_argument if extents do not fit, or if a sink is neither finite nor -infinity.
  void write_output(MatrixRef<float> out, MatrixRef<float> lse = {}, std::span<const float> sinks = {}) const {
    require_consistent();
    detail::require_sinks(sinks, query_heads());
    require_extents(out, o.rows(), o.cols(), "out");
    const bool has_lse = lse.rows() > 0 || lse.cols() > 0;
    if (has_lse) {
      require_extents(lse, m.rows(), m.cols(), "lse");
    }
    for_each([&](Index row, Index head) {
      const AttentionState s = state(row, head);
      if (has_lse) {
        lse.row(row)[head] = s.log_sum_exp();
      }
      float* const to = out.row(row) + head * value_dim();
      if (sinks.empty()) {
        s.write_output(to);
      } else {
        s.write_output(to, sinks[static_cast<std::size_t>(head)]);
      }
    });
  }

 private:
  void require_consistent() const {
    require_extents(l, m.rows(), m.cols(), "l of the states");
    require(o.rows() == m.rows(), "rows of o of the states", o.rows(), "those of m");
    require(query_heads() == 0 ? o.cols() == 0 : o.cols() % query_heads() == 0, "columns of o of the states", o.cols(),
            "a multiple of those of m");
  }
  void store(Index row, Index head, const AttentionState& s) const noexcept {
    m.row(row)[head] = s.m;
    l.row(row)[head] = s.l;
  }
  template <class F>
  void for_each(F f) const {
    for (Index row = 0; row < rows(); ++row) {
      for (Index head = 0; head < query_heads(); ++head) {
        f(row, head);
      }
    }
  }
};

}  // namespace v0
}  // namespace kvc
