// linear: y = x W^T, the matrix product of a decoder.
//
// Each element of the result is one simd::dot, whose bits depend on its two rows alone: not on the number of rows, the
// tiling, the addresses, or the number of threads. So a token gets the same activations in a prefill of any chunking,
// in a batch and alone.
#pragma once

#include <algorithm>
#include <string>

#include "kvc/core/error.hpp"
#include "kvc/core/matrix.hpp"
#include "kvc/core/types.hpp"
#include "kvc/parallel/executor.hpp"
#include "kvc/simd/dot.hpp"

namespace kvc {
inline namespace v0 {
namespace llama {

namespace detail {

/// Rows of w per block: they stay in the first-level cache while all rows of x are multiplied with them.
inline constexpr Index linear_block = 16;

/// Columns [first, last) of y. Not inlined: one copy of the kernel serves every decoder in a program.
[[gnu::noinline]] inline void linear_columns(MatrixRef<const float> x, MatrixRef<const float> w, MatrixRef<float> y,
                                             Index first, Index last) noexcept {
  for (; first < last; first += linear_block) {
    const auto x_row = [&](Index i) { return x.row(i); };
    const auto w_row = [&](Index j) { return w.row(first + j); };
    simd::dot_rows(x.rows(), x_row, std::min(linear_block, last - first), w_row, x.cols(), y.data() + first,
                   y.stride());
  }
}

}  // namespace detail

/// y = x W^T.
///
///   x  [n, in]     w  [out, in]     y  [n, out], overwritten; must not overlap x or w
///   ex an executor; a task is a range of outputs with at least 2^17 multiplications, about the cost of waking a thread
///
/// O(n x in x out). Throws std::invalid_argument if extents do not match.
template <Executor Ex>
void linear(MatrixRef<const float> x, MatrixRef<const float> w, MatrixRef<float> y, Ex&& ex) {
  require(x.cols() == w.cols(), "columns of w", w.cols(), "as many as those of x, " + std::to_string(x.cols()));
  require_extents(y, x.rows(), w.rows(), "y");
  constexpr Index least_work = Index{1} << 17;
  const Index block_work = std::max(Index{1}, x.rows() * x.cols() * detail::linear_block);
  const Index task = detail::linear_block * ceil_div(least_work, block_work);
  const Index tasks = ceil_div(w.rows(), task);
  const auto run = [&](Index t) { detail::linear_columns(x, w, y, t * task, std::min(w.rows(), (t + 1) * task)); };
  if (tasks == 1) {
    run(0);
  } else {
    ex.parallel_for(tasks, run);
  }
}

}  // namespace llama
}  // namespace v0
}  // namespace kvc
