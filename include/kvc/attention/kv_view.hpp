// What attention reads: the KvView concept, and a view of two plain arrays.
//
// A view is one layer of one sequence. It hands out runs, stretches of consecutive positions of one head that lie
// evenly spaced in memory, so that attention works on any storage without copies and without virtual calls.
#pragma once

#include <concepts>

#include "kvc/core/error.hpp"
#include "kvc/core/matrix.hpp"
#include "kvc/core/types.hpp"
#include "kvc/element/element.hpp"

namespace kvc {
inline namespace v0 {

namespace detail {
struct IgnoreRun {
  template <class T>
  void operator()(const KvRun<T>&) const noexcept {}
};
}  // namespace detail

///   expression                        meaning
///   typename V::Element               the element type T: attention reads rows through kvc::Element<T>
///   kv_heads() -> Index               at least 1
///   key_dim(), value_dim() -> Index   numbers in the key and in the value of one head, at least 1
///   length() -> Pos                   positions [0, length()) can be read
///   for_each_run(head, range, f)      calls f(KvRun<T>) for stretches that cover exactly `range`, in ascending order, each at
///                                     least one row long; range lies in [0, length()). How the range is cut is the view's choice:
///                                     results do not depend on it.
///
/// Reading a view from several threads is safe as long as nobody changes what it shows.
template <class V>
concept KvView =
    ElementType<typename V::Element> && requires(const V& view, Index head, PosRange range, detail::IgnoreRun f) {
      { view.kv_heads() } -> std::same_as<Index>;
      { view.key_dim() } -> std::same_as<Index>;
      { view.value_dim() } -> std::same_as<Index>;
      { view.length() } -> std::same_as<Pos>;
      view.for_each_run(head, range, f);
    };

/// A view of keys and values that lie in two row-major arrays, one row per position: for those who keep no cache.
///
///   k  [tokens, kv_heads * row_size(key_dim)]
///   v  [tokens, kv_heads * row_size(value_dim)]
///
/// Owns nothing; the arrays must outlive it.
template <class T>
class DenseView {
 public:
  using Element = T;

  /// Throws std::invalid_argument where an extent does not fit.
  DenseView(MatrixRef<const StorageOf<T>> k, MatrixRef<const StorageOf<T>> v, Index kv_heads, Index key_dim,
            Index value_dim)
      : k_(k),
        v_(v),
        kv_heads_(kv_heads),
        key_dim_(key_dim),
        value_dim_(value_dim),
        length_(checked_count(k.rows(), "tokens")) {
    require(kv_heads >= 1, "kv_heads", kv_heads, "at least 1");
    require(key_dim >= 1, "key_dim", key_dim, "at least 1");
    require(value_dim >= 1, "value_dim", value_dim, "at least 1");
    require_extents(k, k.rows(), kv_heads * key_row(), "k");
    require_extents(v, k.rows(), kv_heads * value_row(), "v");
  }

  /// For element types that store one object per number: the dimensions follow from the columns.
  /// Throws std::invalid_argument where an extent does not fit.
  DenseView(MatrixRef<const StorageOf<T>> k, MatrixRef<const StorageOf<T>> v, Index kv_heads)
      : DenseView(k, v, kv_heads, dim_of(k, kv_heads), dim_of(v, kv_heads)) {}

  [[nodiscard]] Index kv_heads() const noexcept { return kv_heads_; }
  [[nodiscard]] Index key_dim() const noexcept { return key_dim_; }
  [[nodiscard]] Index value_dim() const noexcept { return value_dim_; }
  [[nodiscard]] Pos length() const noexcept { return length_; }

  /// One run.
  template <class F>
  void for_each_run(Index head, PosRange range, F&& f) const {
    KVC_ASSERT(0 <= range.first && range.last <= length_);
    if (!range.empty()) {
      f(KvRun<T>{k_.row(range.first) + head * key_row(), v_.row(range.first) + head * value_row(), range.size(),
                 k_.stride(), v_.stride(), range.first});
    }
  }

 private:
  [[nodiscard]] Index key_row() const noexcept { return kvc::Element<T>::row_size(key_dim_); }
  [[nodiscard]] Index value_row() const noexcept { return kvc::Element<T>::row_size(value_dim_); }
  [[nodiscard]] static Index dim_of(const MatrixRef<const StorageOf<T>>& m, Index kv_heads) {
    require(kv_heads >= 1, "kv_heads", kv_heads, "at least 1");
    return m.cols() / kv_heads;
  }

  MatrixRef<const StorageOf<T>> k_;
  MatrixRef<const StorageOf<T>> v_;
  Index kv_heads_;
  Index key_dim_;
  Index value_dim_;
  Pos length_;
};
static_assert(KvView<DenseView<float>>);

}  // namespace v0
}  // namespace kvc
