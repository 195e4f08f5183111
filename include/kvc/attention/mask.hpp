// AttentionMask: which keys a query row may attend to, beyond causality and the window.
#pragma once

#include <limits>

#include "kvc/core/error.hpp"
#include "kvc/core/matrix.hpp"
#include "kvc/core/types.hpp"

namespace kvc {
inline namespace v0 {

/// A mask of logical shape [query_heads, rows, length]: query head, row of q, key position. It refers to the caller's
/// array through strides, so that it broadcasts without a copy, and must not outlive it.
///
/// A boolean mask is true where the row may attend. An additive mask is added to the score, and is -infinity where the
/// row may not attend. A key that a row may not attend to has no influence on it, even if it is NaN.
///
/// Key positions >= cols are masked: a mask may be narrower than the sequence is long. Throws std::invalid_argument if
/// heads < 1, rows < 0 or cols < 0, or if there are more than 2^60 entries.
class AttentionMask {
 public:
  /// No mask.
  constexpr AttentionMask() = default;

  /// From an array  mask  [heads, rows, cols], row-major. heads == 1 serves all query heads, rows == 1 all rows.
  static constexpr AttentionMask boolean(const bool* mask, Index heads, Index rows, Index cols) {
    return AttentionMask(Kind::boolean, mask, nullptr, heads, rows, cols);
  }
  /// The same of an array of numbers that are added to the scores.
  static constexpr AttentionMask additive(const float* mask, Index heads, Index rows, Index cols) {
    return AttentionMask(Kind::additive, nullptr, mask, heads, rows, cols);
  }

  /// The same mask  [rows, cols]  for all query heads.
  static constexpr AttentionMask boolean(MatrixRef<const bool> mask) {
    return boolean(mask.data(), 1, mask.rows(), mask.cols()).with_strides(0, mask.rows() == 1 ? 0 : mask.stride(), 1);
  }
  /// The same of numbers that are added to the scores.
  static constexpr AttentionMask additive(MatrixRef<const float> mask) {
    return additive(mask.data(), 1, mask.rows(), mask.cols()).with_strides(0, mask.rows() == 1 ? 0 : mask.stride(), 1);
  }

  /// The same array with other strides: entry [h, i, j] is at  h * head + i * row + j * key.  A stride of 0 broadcasts.
  [[nodiscard]] constexpr AttentionMask with_strides(Index head, Index row, Index key) const noexcept {
    AttentionMask mask = *this;
    mask.head_stride_ = head;
    mask.row_stride_ = row;
    mask.key_stride_ = key;
    return mask;
  }

  /// The part of the mask that is for one query head and rows [first_row, first_row + rows), as a mask of one head and
  /// these rows. Not checked.
  [[nodiscard]] constexpr AttentionMask part(Index head, Index first_row, Index rows) const noexcept {
    AttentionMask mask = *this;
    const Index offset = head * head_stride_ + first_row * row_stride_;
    mask.bools_ = kind_ == Kind::boolean ? bools_ + offset : nullptr;
    mask.floats_ = kind_ == Kind::additive ? floats_ + offset : nullptr;
    mask.heads_ = 1;
    mask.rows_ = rows;
    mask.head_stride_ = 0;
    return mask;
  }

  /// Whether it lets every key be seen.
  [[nodiscard]] constexpr bool is_none() const noexcept { return kind_ == Kind::none; }
  /// Keys that it covers; those beyond are invisible. max_pos if there is no mask.
  [[nodiscard]] constexpr Index cols() const noexcept { return is_none() ? Index{max_pos} : cols_; }

  /// The number to add to the score: 0, a finite number, or -infinity for a key that must not be seen. Requires key <
  /// cols().
  [[nodiscard]] float bias(Index head, Index row, Index key) const noexcept {
    if (is_none()) {
      return 0.0F;
    }
    const Index at = head * head_stride_ + row * row_stride_ + key * key_stride_;
    return kind_ == Kind::additive ? floats_[at] : (bools_[at] ? 0.0F : -std::numeric_limits<float>::infinity());
  }

  /// Throws std::invalid_argument unless the mask covers `query_heads` heads and `rows` rows.
  constexpr void require_covers(Index query_heads, Index rows) const {
    if (is_none()) {
      return;
    }
    require(head_stride_ == 0 || heads_ == query_heads, "mask heads", heads_, "1 or the number of query heads");
    require(row_stride_ == 0 || rows_ == rows, "mask rows", rows_, "1 or the number of query rows");
  }

 private:
  enum class Kind { none, boolean, additive };

  constexpr AttentionMask(Kind kind, const bool* bools, const float* floats, Index heads, Index rows, Index cols)
      : kind_(kind), bools_(bools), floats_(floats) {
    require(heads >= 1, "mask heads", heads, "at least 1");
    require(rows >= 0, "mask rows", rows, "at least 0");
    require(cols >= 0, "mask cols", cols, "at least 0");
    constexpr Index most = Index{1} << 60;
    require(rows == 0 || (cols <= most / rows && (cols == 0 || heads <= most / (rows * cols))), "mask cols", cols,
            "such that a mask has at most 2^60 entries");
    heads_ = heads;
    rows_ = rows;
    cols_ = cols;
    head_stride_ = heads == 1 ? 0 : rows * cols;
    row_stride_ = rows == 1 ? 0 : cols;
  }

  Kind kind_ = Kind::none;
  const bool* bools_ = nullptr;
  const float* floats_ = nullptr;
  Index heads_ = 1;
  Index rows_ = 1;
  Index cols_ = 0;
  Index head_stride_ = 0;
  Index row_stride_ = 0;
  Index key_stride_ = 1;
};

}  // namespace v0
}  // namespace kvc
