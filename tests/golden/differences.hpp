// How far computed rows are from those of a file.
#pragma once

#include <cmath>
#include <limits>

#include "catch.hpp"
#include "kvc/core/matrix.hpp"
#include "kvc/core/types.hpp"

namespace kvc_test {

/// The largest difference between two matrices of the same extents; NaN counts as infinite.
inline float largest_difference(kvc::MatrixRef<const float> a, kvc::MatrixRef<const float> b) {
  REQUIRE(a.rows() == b.rows());
  REQUIRE(a.cols() == b.cols());
  float largest = 0;
  for (kvc::Index r = 0; r < a.rows(); ++r) {
    for (kvc::Index i = 0; i < a.cols(); ++i) {
      const float difference = std::abs(a.row(r)[i] - b.row(r)[i]);
      if (!(difference <= largest))
        largest = difference == difference ? difference : std::numeric_limits<float>::infinity();
    }
  }
  return largest;
}

}  // namespace kvc_test
