// RoPE: rotary position embedding, on all or the first part of each head.
//
// The elements of a head form pairs, and pair i of a token at position p is rotated by
// angle = p * theta^(-2i / rotary_dim):
//
//   (a, b) -> (a cos - b sin, a sin + b cos)
//
// Two conventions exist for the pairs; each is a type here, `Interleaved` and `HalfSplit`. Elements beyond rotary_dim
// do not change. Su et al., "RoFormer: Enhanced Transformer with Rotary Position Embedding", 2021.
#pragma once

#include <Eigen/Core>
#include <algorithm>
#include <cmath>
#include <concepts>
#include <cstddef>
#include <span>

#include "kvc/core/error.hpp"
#include "kvc/core/matrix.hpp"
#include "kvc/core/types.hpp"
#include "kvc/simd/vec.hpp"

namespace kvc {
inline namespace v0 {
namespace llama {

/// Pairs of neighbours, (0, 1), (2, 3), …: the paper, Meta's Llama checkpoints, llama2.c.
struct Interleaved {
  /// The first element of pair i.
  [[nodiscard]] static constexpr Index first(Index i, Index /*half*/) noexcept { return 2 * i; }
  /// The second element of pair i.
  [[nodiscard]] static constexpr Index second(Index i, Index /*half*/) noexcept { return 2 * i + 1; }
};

/// Pairs across the halves, (0, half), (1, half + 1), …: GPT-NeoX, Hugging Face's Llama checkpoints.
struct HalfSplit {
  /// The first element of pair i.
  [[nodiscard]] static constexpr Index first(Index i, Index /*half*/) noexcept { return i; }
  /// The second element of pair i.
  [[nodiscard]] static constexpr Index second(Index i, Index half) noexcept { return half + i; }
};

/// A convention for the pairs of `half` pairs of elements.
///
///   P::first(i, half), P::second(i, half)  | Index of the first and the second element of pair i, 0 <= i < half
template <class P>
concept RopePairing = requires(Index i, Index half) {
  { P::first(i, half) } -> std::same_as<Index>;
  { P::second(i, half) } -> std::same_as<Index>;
};

/// Tables of cosines and sines by position, [positions, rotary_dim / 2] each.
class RopeTable {
 public:
  /// A table of no positions.
  RopeTable() = default;

  /// Computes the formula above in double.
  /// Throws std::invalid_argument if positions < 0, rotary_dim is negative or odd, or theta is not positive.
  RopeTable(Index positions, Index rotary_dim, double theta) {
    require(positions >= 0, "positions", positions, "at least 0");
    require(rotary_dim >= 0 && rotary_dim % 2 == 0, "rotary_dim", rotary_dim, "even and at least 0");
    require(theta > 0.0, "theta", theta, "positive");
    const Index half = rotary_dim / 2;
    cos_.resize(positions, half);
    sin_.resize(positions, half);
    for (Index i = 0; i < half; ++i) {
      const double frequency = std::pow(theta, -2.0 * static_cast<double>(i) / static_cast<double>(rotary_dim));
      for (Index p = 0; p < positions; ++p) {
        cos_(p, i) = static_cast<float>(std::cos(static_cast<double>(p) * frequency));
        sin_(p, i) = static_cast<float>(std::sin(static_cast<double>(p) * frequency));
      }
    }
  }

  /// Copies given tables: cos, sin [positions, rotary_dim / 2].
  /// Throws std::invalid_argument if their extents differ.
  RopeTable(MatrixRef<const float> cos, MatrixRef<const float> sin)
      : cos_(cos.rows(), cos.cols()), sin_(cos.rows(), cos.cols()) {
    require_extents(sin, cos.rows(), cos.cols(), "sin");
    for (Index p = 0; p < cos.rows(); ++p) {
      std::copy_n(cos.row(p), cos.cols(), cos_.row(p).data());
      std::copy_n(sin.row(p), sin.cols(), sin_.row(p).data());
    }
  }

  /// Positions in the table.
  [[nodiscard]] Index positions() const noexcept { return cos_.rows(); }
  /// Elements of a head that are rotated.
  [[nodiscard]] Index rotary_dim() const noexcept { return 2 * cos_.cols(); }
  /// Cosines of position p, one for each pair.
  [[nodiscard]] const float* cos(Pos p) const noexcept { return cos_.data() + p * cos_.cols(); }
  /// Sines of position p, one for each pair.
  [[nodiscard]] const float* sin(Pos p) const noexcept { return sin_.data() + p * sin_.cols(); }

 private:
  Eigen::Matrix<float, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor> cos_;
  Eigen::Matrix<float, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor> sin_;
};

namespace detail {

/// Rotates `half` pairs of one head.
template <RopePairing P>
void rope_head(float* head, const float* cos, const float* sin, Index half) noexcept {
  for (Index i = 0; i < half; ++i) {
    float& first = head[P::first(i, half)];
    float& second = head[P::second(i, half)];
    const float a = first;
    const float b = second;
    first = simd::madd(a, cos[i], -(b * sin[i]));  // madd: the same bits wherever this is compiled into
    second = simd::madd(a, sin[i], b * cos[i]);
  }
}

}  // namespace detail

/// Rotates the heads of n tokens in place. O(n x heads x rotary_dim).
///
///   pairing    Interleaved{} or HalfSplit{}
///   positions  [n], each in [0, table.positions())
///   x          [n, heads * head_dim], head_dim >= table.rotary_dim()
///
/// Throws std::invalid_argument if extents do not match or a position is not in the table.
template <RopePairing P>
void rope(P /*pairing*/, const RopeTable& table, std::span<const Pos> positions, MatrixRef<float> x, Index head_dim) {
  require(x.rows() == static_cast<Index>(positions.size()), "rows of x", x.rows(), "one per position");
  require(head_dim > 0 && head_dim >= table.rotary_dim(), "head_dim", head_dim, "positive and at least the rotary_dim");
  require(x.cols() % head_dim == 0, "columns of x", x.cols(), "a multiple of head_dim");
  for (Pos p : positions) {
    require(p >= 0 && p < table.positions(), "position", p, "within the table of rotations");
  }
  for (Index row = 0; row < x.rows(); ++row) {
    const Pos p = positions[static_cast<std::size_t>(row)];
    for (Index col = 0; col < x.cols(); col += head_dim) {
      detail::rope_head<P>(x.row(row) + col, table.cos(p), table.sin(p), table.rotary_dim() / 2);
    }
  }
}

}  // namespace llama
}  // namespace v0
}  // namespace kvc
