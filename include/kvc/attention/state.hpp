// AttentionState: what attention over some of the keys leaves behind, and how two of them become one.
//
// For scores s[j] and values v[j] over a set of positions J, the state is
//
//   m = max s[j]       l = sum exp(s[j] - m)       o = sum exp(s[j] - m) * v[j]          (j in J)
//
// and the attention output over J is o / l. For disjoint sets the states combine:
//
//   m = max(m1, m2)    l = l1 exp(m1 - m) + l2 exp(m2 - m)    o = o1 exp(m1 - m) + o2 exp(m2 - m)
//
// In exact arithmetic this is associative and commutative, and the state of the empty set (m = -infinity, l = 0, o = 0)
// is its identity. In floating point the identity is exact and the rest holds to rounding; where kvc merges, it does so
// in one fixed order, ascending positions, from the left.
//
// Sources: Milakov and Gimelshein, "Online normalizer calculation for softmax" (2018), for the running maximum; Dao et
// al., "FlashAttention" (2022), for carrying o along; its log-sum-exp form, m + log l, is the weight under which a
// state counts in a merge, as used for split keys (Flash-Decoding, 2023) and shared prefixes (FlashInfer, 2024).
#pragma once

#include <algorithm>
#include <cmath>
#include <limits>
#include <span>

#include "kvc/core/error.hpp"
#include "kvc/simd/exp.hpp"

namespace kvc {
inline namespace v0 {

/// A view of one state: o lies in memory that the caller owns.
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

  /// *this = *this (+) other, for states of disjoint sets of keys. Merging the identity, on either side, changes no bit.
  /// Throws std::invalid_argument if their value_dim differ. O(value_dim).
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

  /// out[d] = o[d] / l, or 0 for the identity: the attention output  [value_dim]. O(value_dim).
  void write_output(float* out) const noexcept {
    for (std::size_t d = 0; d < o.size(); ++d) {
      out[d] = l == 0 ? 0.0F : o[d] / l;
    }
  }
};

}  // namespace v0
}  // namespace kvc
