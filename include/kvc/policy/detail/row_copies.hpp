// RowCopies: the rows that an operation of a policy copies, and how many all operations have copied.
#pragma once

#include <cstddef>
#include <span>
#include <vector>

#include "kvc/core/types.hpp"

namespace kvc {
inline namespace v0 {
namespace detail {

/// The list that an Extension or a Fork hands out, and the counters of Stats that follow from it.
class RowCopies {
 public:
  /// Makes room for so many copies in one operation. Throws std::bad_alloc.
  void reserve(std::size_t copies) { list_.reserve(copies); }

  /// Begins an operation: the list is empty.
  void clear() noexcept { list_.clear(); }
  /// One copy more of this operation, within the room that was reserved.
  void add(const RowCopy& copy) noexcept {
    list_.push_back(copy);
    ++count_;
    tokens_ += copy.count;
  }

  /// The copies of this operation. Valid until the next one.
  [[nodiscard]] std::span<const RowCopy> list() const noexcept { return list_; }
  /// Copies of all operations.
  [[nodiscard]] Index count() const noexcept { return count_; }
  /// Rows that they copied.
  [[nodiscard]] Index tokens() const noexcept { return tokens_; }

 private:
  std::vector<RowCopy> list_;
  Index count_ = 0;
  Index tokens_ = 0;
};

}  // namespace detail
}  // namespace v0
}  // namespace kvc
