// SwiGLU: the gate of a feed-forward network.
//
//   y = gate * sigmoid(gate) * up
//
// Shazeer, "GLU Variants Improve Transformer", 2020. The bits of an element depend on its two inputs alone.
#pragma once

#include <algorithm>

#include "kvc/core/error.hpp"
#include "kvc/core/matrix.hpp"
#include "kvc/core/types.hpp"
#include "kvc/simd/exp.hpp"
#include "kvc/simd/vec.hpp"

namespace kvc {
inline namespace v0 {
namespace llama {

namespace detail {

[[gnu::noinline]] inline void swiglu_row(float* gate, const float* up, Index n) noexcept {
  const auto gated = [](const simd::F32x16& g, const simd::F32x16& u) __attribute__((always_inline)) {
    return g / (simd::broadcast(1.0F) + simd::exp(simd::zero() - g)) * u;
  };
  Index i = 0;
  for (; i + simd::lanes <= n; i += simd::lanes) {
    simd::store(gate + i, gated(simd::load(gate + i), simd::load(up + i)));
  }
  if (i < n) {
    float last[simd::lanes];
    simd::store(last, gated(simd::load_partial(gate + i, n - i), simd::load_partial(up + i, n - i)));
    std::copy_n(last, n - i, gate + i);
  }
}

}  // namespace detail

/// Replaces gate by the result: gate, up [n, hidden_dim]. O(n x hidden_dim).
/// Throws std::invalid_argument if extents do not match.
inline void swiglu(MatrixRef<float> gate, MatrixRef<const float> up) {
  require_extents(up, gate.rows(), gate.cols(), "up");
  for (Index r = 0; r < gate.rows(); ++r) {
    detail::swiglu_row(gate.row(r), up.row(r), gate.cols());
  }
}

}  // namespace llama
}  // namespace v0
}  // namespace kvc
