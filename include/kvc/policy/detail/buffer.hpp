// Buffer: a vector that only `reserve` lets grow.
#pragma once

#include <algorithm>
#include <cstddef>
#include <span>
#include <vector>

namespace kvc {
inline namespace v0 {
namespace detail {

/// A vector that only `reserve` lets grow, so that all other members are noexcept and adding a value is one store. T is
/// trivially copyable. The tokens of a sequence that are in no node of the prefix index yet are in one.
template <class T>
class Buffer {
 public:
  [[nodiscard]] std::size_t size() const noexcept { return size_; }
  [[nodiscard]] std::size_t capacity() const noexcept { return room_.size(); }
  [[nodiscard]] std::span<const T> all() const noexcept { return {room_.data(), size_}; }
  [[nodiscard]] T& operator[](std::size_t i) noexcept { return room_[i]; }
  [[nodiscard]] const T& operator[](std::size_t i) const noexcept { return room_[i]; }

  /// Makes room for so many values. Throws std::bad_alloc; nothing has changed then.
  void reserve(std::size_t capacity) {
    if (capacity > room_.size()) {
      room_.resize(capacity);
    }
  }
  /// Adds a value, within the capacity.
  void push(T value) noexcept { room_[size_++] = value; }
  /// Adds values, within the capacity. O(values).
  void append(std::span<const T> values) noexcept {
    if (values.size() == 1) [[likely]] {
      push(values.front());
      return;
    }
    std::copy(values.begin(), values.end(), room_.begin() + static_cast<std::ptrdiff_t>(size_));
    size_ += values.size();
  }
  /// Takes other values, within the capacity. O(values).
  void assign(std::span<const T> values) noexcept {
    size_ = 0;
    append(values);
  }
  /// Takes `count` times a value, within the capacity. O(count).
  void assign(std::size_t count, T value) noexcept {
    size_ = count;
    std::fill_n(room_.begin(), count, value);
  }
  /// Drops values [first, last). O(values behind them).
  void erase(std::size_t first, std::size_t last) noexcept {
    const std::span<const T> behind = all().subspan(last);
    std::copy(behind.begin(), behind.end(), room_.begin() + static_cast<std::ptrdiff_t>(first));
    size_ -= last - first;
  }
  /// Drops the first `count` values. O(values left).
  void drop_front(std::size_t count) noexcept { erase(0, count); }
  /// Drops all behind the first `count` values, if there are more.
  void cut(std::size_t count) noexcept { size_ = std::min(size_, count); }
  void clear() noexcept { size_ = 0; }

 private:
  std::vector<T> room_;
  std::size_t size_ = 0;
};

}  // namespace detail
}  // namespace v0
}  // namespace kvc
