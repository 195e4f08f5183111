// MatrixRef and MatrixArg: row-major matrices that the caller owns.
//
// kvc takes keys, values and queries as MatrixArg and outputs as MatrixRef. Both convert from Eigen objects, but
// include nothing of Eigen.
#pragma once

#include <concepts>
#include <cstddef>
#include <memory>
#include <string>
#include <string_view>
#include <type_traits>
#include <utility>
#include <vector>

#include "kvc/core/error.hpp"
#include "kvc/core/types.hpp"

namespace kvc {
inline namespace v0 {

namespace detail {
/// A dense matrix in the manner of Eigen: extents, strides, a pointer, and a flag that tells row-major from
/// column-major.
template <class M>
concept DenseMatrix = requires(M& m) {
  { m.rows() } -> std::convertible_to<Index>;
  { m.cols() } -> std::convertible_to<Index>;
  { m.outerStride() } -> std::convertible_to<Index>;
  { m.innerStride() } -> std::convertible_to<Index>;
  m.data();
  { std::remove_cvref_t<M>::IsRowMajor } -> std::convertible_to<bool>;
};

/// An expression in the manner of Eigen: it has no memory of its own before eval() gives it some.
template <class E, class S>
concept MatrixExpression = std::same_as<typename E::Scalar, S> && requires(const E& expression) {
  { expression.eval() } -> std::convertible_to<typename E::PlainObject>;
  { E::PlainObject::IsRowMajor } -> std::convertible_to<bool>;
};

/// A matrix or an expression of another arithmetic type than float, where rows of float are wanted.
template <class M, class S>
concept OtherNumbers = std::same_as<S, float> && std::is_arithmetic_v<typename M::Scalar> &&
                       !std::same_as<typename M::Scalar, float> && requires(const M& m) { m.eval(); };
template <class M>
inline constexpr bool has_floats = std::same_as<typename M::Scalar, float>;
}  // namespace detail

/// A view of a row-major matrix  data  [rows, cols], with `stride` elements from the start of one row to that of the
/// next.
///
/// Converts from an Eigen matrix, map or block of the same scalar, and from a pointer with its extents. It owns
/// nothing: the memory must outlive it. S is const for a view that only reads. Copies are cheap.
template <class S>
class MatrixRef {
 public:
  /// A matrix of no rows.
  constexpr MatrixRef() = default;

  /// Throws std::invalid_argument if an extent is negative, or `stride` < cols with more than one row.
  constexpr MatrixRef(S* data, Index rows, Index cols, Index stride)
      : data_(data), rows_(rows), cols_(cols), stride_(stride) {
    require(rows >= 0, "rows", rows, "at least 0");
    require(cols >= 0, "cols", cols, "at least 0");
    require(rows <= 1 || stride >= cols, "stride", stride, "at least the number of columns");
  }
  /// The same, with adjacent rows: stride = cols.
  constexpr MatrixRef(S* data, Index rows, Index cols) : MatrixRef(data, rows, cols, cols) {}

  /// From an Eigen matrix, map or block. Throws std::invalid_argument if the elements of a row are not adjacent.
  template <class M>
    requires(detail::DenseMatrix<std::remove_reference_t<M>> &&
             std::convertible_to<decltype(std::declval<M&>().data()), S*>)
  constexpr MatrixRef(M&& m) : MatrixRef(m.data(), m.rows(), m.cols(), m.outerStride()) {  // NOLINT: converts by design
    static_assert(std::remove_cvref_t<M>::IsRowMajor,
                  "kvc takes row-major matrices: one row per token. Declare the Eigen matrix with Eigen::RowMajor.");
    require(m.innerStride() == 1, "inner stride", static_cast<Index>(m.innerStride()), "1");
  }

  /// From a matrix of another arithmetic type: the error names the type to use.
  template <class M>
    requires detail::OtherNumbers<std::remove_cvref_t<M>, std::remove_const_t<S>>
  constexpr MatrixRef(M&&) {  // NOLINT: converts by design
    static_assert(detail::has_floats<std::remove_cvref_t<M>>,
                  "kvc takes rows of float: declare the Eigen matrix with the scalar float, or pass m.cast<float>().");
  }

  /// A view that only reads, of one that may write.
  template <class Writable>
    requires(std::same_as<const Writable, S> && !std::is_const_v<Writable>)
  constexpr MatrixRef(MatrixRef<Writable> other)  // NOLINT: converts by design
      : data_(other.data()), rows_(other.rows()), cols_(other.cols()), stride_(other.stride()) {}

  /// The first element.
  [[nodiscard]] constexpr S* data() const noexcept { return data_; }
  /// Number of rows.
  [[nodiscard]] constexpr Index rows() const noexcept { return rows_; }
  /// Number of columns.
  [[nodiscard]] constexpr Index cols() const noexcept { return cols_; }
  /// Elements from one row to the next.
  [[nodiscard]] constexpr Index stride() const noexcept { return stride_; }
  /// The first element of row i. Not checked.
  [[nodiscard]] constexpr S* row(Index i) const noexcept { return data_ + i * stride_; }

  /// Rows [first, first + count). Throws std::invalid_argument if the matrix does not have them.
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

/// A matrix that a call reads, as its parameter: everything that MatrixRef<const S> converts from, and also an Eigen
/// expression such as  k * 2.0f,  which is evaluated into memory that lives as long as the MatrixArg.
///
/// For parameters only: a matrix that is not an expression is not copied and must outlive the call.
template <class S>
class MatrixArg {
 public:
  /// A matrix of no rows.
  constexpr MatrixArg() = default;
  /// From any argument that MatrixRef<const S> takes: a matrix, a map, a block, another view. No copy.
  template <class M>
    requires std::convertible_to<M, MatrixRef<const S>>
  constexpr MatrixArg(M&& m) : ref_(std::forward<M>(m)) {}  // NOLINT: converts by design
  /// As MatrixRef: a matrix of adjacent rows at a pointer. Throws std::invalid_argument if an extent is negative.
  constexpr MatrixArg(const S* data, Index rows, Index cols) : ref_(data, rows, cols) {}
  /// As MatrixRef: `stride` elements from row to row. Throws std::invalid_argument if an extent is negative, or
  /// `stride` < cols with more than one row.
  constexpr MatrixArg(const S* data, Index rows, Index cols, Index stride) : ref_(data, rows, cols, stride) {}

  /// Evaluates an expression, into rows whatever its factors are. O(elements), and allocates. Throws std::bad_alloc.
  template <class E>
    requires(detail::MatrixExpression<E, S> && !std::convertible_to<const E&, MatrixRef<const S>>)
  MatrixArg(const E& expression) {  // NOLINT: converts by design
    using Plain = typename E::PlainObject;
    auto evaluated = std::make_shared<const Plain>(expression);
    if constexpr (Plain::IsRowMajor) {
      ref_ = MatrixRef<const S>(*evaluated);
      owned_ = std::move(evaluated);
    } else {  // some products are column-major, whatever their factors are
      const Index rows = evaluated->rows(), cols = evaluated->cols();
      auto elements = std::make_shared<std::vector<S>>();
      elements->reserve(static_cast<std::size_t>(rows * cols));
      for (Index i = 0; i < rows; ++i) {
        for (Index j = 0; j < cols; ++j) {
          elements->push_back((*evaluated)(i, j));
        }
      }
      ref_ = MatrixRef<const S>(elements->data(), rows, cols);
      owned_ = std::move(elements);
    }
  }

  /// Lives as long as the MatrixArg.
  constexpr operator MatrixRef<const S>() const noexcept { return ref_; }  // NOLINT: converts by design
  /// The rows, valid as long as this object.
  [[nodiscard]] constexpr MatrixRef<const S> ref() const noexcept { return ref_; }
  /// Number of rows.
  [[nodiscard]] constexpr Index rows() const noexcept { return ref_.rows(); }
  /// Number of columns.
  [[nodiscard]] constexpr Index cols() const noexcept { return ref_.cols(); }
  /// The first element of row i. Not checked.
  [[nodiscard]] constexpr const S* row(Index i) const noexcept { return ref_.row(i); }

 private:
  std::shared_ptr<const void> owned_;
  MatrixRef<const S> ref_;
};

/// Throws std::invalid_argument unless `m` is [rows, cols]. `name` is the caller's name of the matrix.
template <class S>
constexpr void require_extents(const MatrixRef<S>& m, Index rows, Index cols, std::string_view name) {
  if (m.rows() != rows || m.cols() != cols) [[unlikely]] {
    throw_invalid(name, detail::concat({"[", std::to_string(m.rows()), ", ", std::to_string(m.cols()), "]"}),
                  detail::concat({"[", std::to_string(rows), ", ", std::to_string(cols), "]"}));
  }
}

}  // namespace v0
}  // namespace kvc
