// MatrixRef: a row-major matrix that somebody else owns.
//
// The type in which kvc takes keys, values and queries and gives back outputs. It converts from any dense row-major
// Eigen object of the same scalar without kvc's core knowing Eigen, and from a pointer with its extents. It owns
// nothing: the memory must outlive it.
#pragma once

#include <concepts>
#include <type_traits>

#include "kvc/core/error.hpp"
#include "kvc/core/types.hpp"

namespace kvc {
inline namespace v0 {

namespace detail {
/// Dense matrices in the manner of Eigen: extents, a stride between rows, and a flag that says how they lie.
template <class M>
concept DenseMatrix = requires(M& m) {
  { m.rows() } -> std::convertible_to<Index>;
  { m.cols() } -> std::convertible_to<Index>;
  { m.outerStride() } -> std::convertible_to<Index>;
  { m.innerStride() } -> std::convertible_to<Index>;
  m.data();
  { std::remove_cvref_t<M>::IsRowMajor } -> std::convertible_to<bool>;
};
}  // namespace detail

/// A row-major matrix  data  [rows, cols], `stride` elements from one row to the next.
template <class S>
class MatrixRef {
 public:
  constexpr MatrixRef() = default;

  /// `stride` >= cols unless there is at most one row. Throws std::invalid_argument otherwise.
  constexpr MatrixRef(S* data, Index rows, Index cols, Index stride)
      : data_(data), rows_(rows), cols_(cols), stride_(stride) {
    require(rows >= 0, "rows", rows, "at least 0");
    require(cols >= 0, "cols", cols, "at least 0");
    require(rows <= 1 || stride >= cols, "stride", stride, "at least the number of columns");
  }
  constexpr MatrixRef(S* data, Index rows, Index cols) : MatrixRef(data, rows, cols, cols) {}

  /// From an Eigen matrix, map or block. A column-major one does not convert: use Eigen::RowMajor.
  template <class M>
    requires(detail::DenseMatrix<std::remove_reference_t<M>> &&
             std::convertible_to<decltype(std::declval<M&>().data()), S*>)
  constexpr MatrixRef(M&& m) : MatrixRef(m.data(), m.rows(), m.cols(), m.outerStride()) {  // NOLINT: converts by design
    static_assert(std::remove_cvref_t<M>::IsRowMajor,
                  "kvc takes row-major matrices: one row per token. Declare the Eigen matrix with Eigen::RowMajor.");
    require(m.innerStride() == 1, "inner stride", static_cast<Index>(m.innerStride()), "1");
  }

  /// A view for reading of a view for writing.
  template <class Writable>
    requires(std::same_as<const Writable, S> && !std::is_const_v<Writable>)
  constexpr MatrixRef(MatrixRef<Writable> other)  // NOLINT: converts by design
      : data_(other.data()), rows_(other.rows()), cols_(other.cols()), stride_(other.stride()) {}

  [[nodiscard]] constexpr S* data() const noexcept { return data_; }
  [[nodiscard]] constexpr Index rows() const noexcept { return rows_; }
  [[nodiscard]] constexpr Index cols() const noexcept { return cols_; }
  [[nodiscard]] constexpr Index stride() const noexcept { return stride_; }
  [[nodiscard]] constexpr S* row(Index i) const noexcept { return data_ + i * stride_; }

  /// Rows [first, first + count). Throws std::invalid_argument if they are not all there.
  [[nodiscard]] constexpr MatrixRef middle_rows(Index first, Index count) const {
    require_between(first, Index{0}, rows_, "first row");
    require_between(count, Index{0}, rows_ - first, "row count");
    return MatrixRef(row(first), count, cols_, stride_);
  }

 private:
  S* data_ = nullptr;
  Index rows_ = 0;
  Index cols_ = 0;
  Index stride_ = 0;
};

/// Throws std::invalid_argument unless `m` is [rows, cols]; `name` is how the caller calls it.
template <class S>
constexpr void require_extents(const MatrixRef<S>& m, Index rows, Index cols, std::string_view name) {
  if (m.rows() != rows || m.cols() != cols) [[unlikely]] {
    throw_invalid(name, detail::concat({"[", std::to_string(m.rows()), ", ", std::to_string(m.cols()), "]"}),
                  detail::concat({"[", std::to_string(rows), ", ", std::to_string(cols), "]"}));
  }
}

}  // namespace v0
}  // namespace kvc
