// RMSNorm: scales each row to a root mean square of one, then each column by a weight.
//
//   y = x / sqrt(mean(x^2) + epsilon) * weight
//
// Zhang and Sennrich, "Root Mean Square Layer Normalization", 2019. The bits of a row depend on that row alone.
#pragma once

#include <cmath>

#include "kvc/core/error.hpp"
#include "kvc/core/matrix.hpp"
#include "kvc/core/types.hpp"
#include "kvc/simd/dot.hpp"

namespace kvc {
inline namespace v0 {
namespace llama {

/// Normalises rows: x [n, dim], weight [1, dim], y [n, dim]; y may be x. O(n x dim).
/// Throws std::invalid_argument if extents do not match.
inline void rms_norm(MatrixRef<const float> x, MatrixRef<const float> weight, float epsilon, MatrixRef<float> y) {
  require_extents(y, x.rows(), x.cols(), "y");
  require_extents(weight, 1, x.cols(), "weight");
  for (Index r = 0; r < x.rows(); ++r) {
    const float* in = x.row(r);
    float* out = y.row(r);
    const float mean = simd::dot(in, in, x.cols()) / static_cast<float>(x.cols());
    const float scale = 1.0F / std::sqrt(mean + epsilon);
    for (Index i = 0; i < x.cols(); ++i) {
      out[i] = in[i] * scale * weight.data()[i];
    }
  }
}

}  // namespace llama
}  // namespace v0
}  // namespace kvc
