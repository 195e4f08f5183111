// KvView: the concept of what attention reads, and DenseView, a view of two plain arrays.
#pragma once

#include <concepts>
#include <ranges>
#include <span>

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

/// The keys and values of one sequence in one layer, as attention reads them: without copies and without virtual calls.
///
///   expression                     | requires           | returns, does            | throws           | complexity
///   -------------------------------+--------------------+--------------------------+------------------+---------------
///   typename V::Element            |                    | the element type T of    |                  |
///                                  |                    | the rows, which are read |                  |
///                                  |                    | through kvc::Element<T>  |                  |
///   v.kv_heads()                   |                    | Index: key/value heads,  | nothing          | O(1)
///                                  |                    | at least 1               |                  |
///   v.key_dim(), v.value_dim()     |                    | Index: elements in the   | nothing          | O(1)
///                                  |                    | key and in the value of  |                  |
///                                  |                    | one head, at least 1     |                  |
///   v.length()                     |                    | Pos: the position behind | nothing          | O(1)
///                                  |                    | the last of the sequence |                  |
///   v.for_each_run(head, range, f) | 0 <= head <        | f(KvRun<T>) for runs of  | what f throws;   | O(runs of the
///                                  | kv_heads(), range  | that head that together  | may throw        | range), or a
///                                  | within [0,         | are exactly the retained | invalid_argument | binary search
///                                  | length())          | positions of `range`     | where "requires" | more
///                                  |                    |                          | is not met       |
///
/// All are const.
///
/// Laws:
///   runs       they are in ascending order, do not overlap, and each has at least one row; an empty range has none.
///              Between runs lie positions that the view does not retain, if any. How retained positions are cut into
///              runs is up to the view: results do not depend on it
///   rows       row i of a run is that of position first + i. It lies at k + i * k_stride and v + i * v_stride, the
///              same place whatever range is requested, and does not change while attention reads it
///   scales     either all runs of a view have scale planes, or none; rows in the same place have their scales in the
///              same place
///   heads      if two views have a position of head 0 in the same place, or neither retains it, the same is true of
///              every head: a batch reads it once for both
///
/// Most views retain all positions. That of a window layer may retain what later rows can see: its last positions, and
/// kept ones at the beginning. Attention reads rows of positions that a query row may see, and no others. Where the
/// runs lack one of these it throws std::invalid_argument, which names the position and the sequence.
///
/// Several threads may read one view at once. Copies are cheap and show the same. testing/kv_view_conformance.hpp
/// checks the laws; a minimal view is in tests/conformance/views.cpp.
template <class V>
concept KvView =
    ElementType<typename V::Element> && requires(const V& view, Index head, PosRange range, detail::IgnoreRun f) {
      { view.kv_heads() } -> std::same_as<Index>;
      { view.key_dim() } -> std::same_as<Index>;
      { view.value_dim() } -> std::same_as<Index>;
      { view.length() } -> std::same_as<Pos>;
      view.for_each_run(head, range, f);
    };

/// From the row of a head to that of the next head at the same position, in storage units.
struct HeadStrides {
  Index k;
  Index v;
  Index k_scales = 0;  ///< where they lie in planes of their own
  Index v_scales = 0;
};

/// A view whose heads lie at the same distance from one another at every position. Attention looks the rows of one head
/// up and knows those of all.
///
///   expression             | requires | returns, does                                          | throws  | complexity
///   -----------------------+----------+--------------------------------------------------------+---------+-----------
///   v.head_strides()       |          | HeadStrides: the rows of head h + 1 lie so far behind  | nothing | O(1)
///                          |          | those of head h, in runs with the same strides         |         |
template <class V>
concept EvenHeadsView = KvView<V> && requires(const V& view) {
  { view.head_strides() } -> std::same_as<HeadStrides>;
};

/// Several views in contiguous memory: a std::vector, std::span or array of them.
template <class R>
concept KvViewRange = std::ranges::contiguous_range<const R> && std::ranges::sized_range<const R> &&
                      KvView<std::ranges::range_value_t<const R>>;

namespace detail {
template <KvViewRange R>
[[nodiscard]] auto view_span(const R& views) {
  return std::span<const std::ranges::range_value_t<const R>>(std::ranges::data(views), std::ranges::size(views));
}
}  // namespace detail

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
    constexpr Index most = Index{1} << 24;  // as of a Shape
    require_between(kv_heads, Index{1}, most, "kv_heads");
    require_between(key_dim, Index{1}, most, "key_dim");
    require_between(value_dim, Index{1}, most, "value_dim");
    require_extents(k, k.rows(), kv_heads * key_row(), "k");
    require_extents(v, k.rows(), kv_heads * value_row(), "v");
  }

  /// For element types that store one object per element: the dimensions follow from the columns.
  /// Throws std::invalid_argument where an extent does not fit.
  DenseView(MatrixRef<const StorageOf<T>> k, MatrixRef<const StorageOf<T>> v, Index kv_heads)
      : DenseView(k, v, kv_heads, dim_of(k, kv_heads), dim_of(v, kv_heads)) {}

  /// Key/value heads.
  [[nodiscard]] Index kv_heads() const noexcept { return kv_heads_; }
  /// Elements in the key of one head.
  [[nodiscard]] Index key_dim() const noexcept { return key_dim_; }
  /// Elements in the value of one head.
  [[nodiscard]] Index value_dim() const noexcept { return value_dim_; }
  /// Positions, one for each row.
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
