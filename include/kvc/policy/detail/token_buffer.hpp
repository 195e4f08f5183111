// TokenBuffer: the tokens of a sequence that are in no node of the prefix index yet.
#pragma once

#include <algorithm>
#include <cstddef>
#include <span>
#include <vector>

#include "kvc/core/types.hpp"

namespace kvc {
inline namespace v0 {
namespace detail {

/// A vector that only `reserve` lets grow, so that all other members are noexcept and adding a token is one store.
class TokenBuffer {
 public:
  [[nodiscard]] std::size_t size() const noexcept { return size_; }
  [[nodiscard]] std::size_t capacity() const noexcept { return room_.size(); }
  [[nodiscard]] std::span<const Token> all() const noexcept { return std::span(room_).first(size_); }

  /// Makes room for so many tokens. Throws std::bad_alloc; nothing has changed then.
  void reserve(std::size_t capacity) {
    if (capacity > room_.size()) {
      room_.resize(capacity);
    }
  }
  /// Adds a token, within the capacity.
  void push(Token token) noexcept { room_[size_++] = token; }
  /// Adds tokens, within the capacity. O(tokens).
  void append(std::span<const Token> tokens) noexcept {
    if (tokens.size() == 1) [[likely]] {
      push(tokens.front());
      return;
    }
    std::ranges::copy(tokens, room_.begin() + static_cast<std::ptrdiff_t>(size_));
    size_ += tokens.size();
  }
  /// Takes other tokens, within the capacity. O(tokens).
  void assign(std::span<const Token> tokens) noexcept {
    size_ = 0;
    append(tokens);
  }
  /// Drops the first `count` tokens. O(tokens left).
  void drop_front(std::size_t count) noexcept {
    std::ranges::copy(all().subspan(count), room_.begin());
    size_ -= count;
  }
  /// Drops all behind the first `count` tokens, if there are more.
  void cut(std::size_t count) noexcept { size_ = std::min(size_, count); }
  void clear() noexcept { size_ = 0; }

 private:
  std::vector<Token> room_;
  std::size_t size_ = 0;
};

}  // namespace detail
}  // namespace v0
}  // namespace kvc
