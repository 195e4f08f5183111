// RowStates: the states of many query rows, between two calls of the kernels.
#pragma once

#include <algorithm>
#include <cstddef>
#include <limits>

#include "kvc/attention/kernel/scratch.hpp"
#include "kvc/attention/state.hpp"
#include "kvc/core/types.hpp"

namespace kvc {
inline namespace v0 {
namespace detail {

/// The states of a number of rows, in memory of the caller's.
struct RowStates {
  float* o;  // [rows, value_pad], elements where the tile places them
  float* m;  // [rows]
  float* l;  // [rows]

  [[nodiscard]] static constexpr Index size(Index rows, Index value_pad) noexcept {
    return rows * value_pad + 2 * padded(rows);
  }
  [[nodiscard]] static RowStates at(float* p, Index rows, Index value_pad) noexcept {
    return {p, p + rows * value_pad, p + rows * value_pad + padded(rows)};
  }
  [[nodiscard]] AttentionState state(Index row, Index value_pad) const noexcept {
    return {{o + row * value_pad, static_cast<std::size_t>(value_pad)}, m[row], l[row]};
  }
  /// Those of the rows from `row` on.
  [[nodiscard]] RowStates from(Index row, Index value_pad) const noexcept {
    return {o + row * value_pad, m + row, l + row};
  }
  void reset(Index rows, Index value_pad) const noexcept {
    std::fill_n(o, rows * value_pad, 0.0F);
    std::fill_n(m, rows, -std::numeric_limits<float>::infinity());
    std::fill_n(l, rows, 0.0F);
  }
  /// (*this)[row] = (*this)[row] (+) other[row] for all rows.
  void merge(const RowStates& other, Index rows, Index value_pad) const {
    for (Index r = 0; r < rows; ++r) {
      AttentionState into = state(r, value_pad);
      into.merge(other.state(r, value_pad));
      m[r] = into.m;
      l[r] = into.l;
    }
  }
};

}  // namespace detail
}  // namespace v0
}  // namespace kvc
