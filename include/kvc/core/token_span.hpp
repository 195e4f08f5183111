// TokenSpan: tokens as an argument of a call.
#pragma once

#include <concepts>
#include <cstddef>
#include <initializer_list>
#include <ranges>
#include <span>
#include <type_traits>

#include "kvc/core/types.hpp"

namespace kvc {
inline namespace v0 {

namespace detail {
template <class R>
concept RangeOfTokens = std::convertible_to<R, std::span<const Token>>;
/// Ranges that a caller may take for tokens: of another integer type, or not contiguous.
template <class R>
concept RangeOfOtherTokens = !RangeOfTokens<R> && std::ranges::input_range<R> &&
                             std::integral<std::remove_cvref_t<std::ranges::range_reference_t<R>>>;
template <class R>
inline constexpr bool are_tokens = RangeOfTokens<R>;
}  // namespace detail

/// The tokens of a prompt or of an extension, as the parameter of a function. Converts from
///
///   an array, std::vector or std::span of kvc::Token     f(prompt)
///   a list in braces                                     f({1, 2, 3})
///   nothing                                              f({})
///
/// A range of another integer type is an error that says so: convert it once, where the ids enter the program.
/// Owns nothing. The tokens must outlive the call, and a list in braces lives no longer than that: do not keep a
/// TokenSpan as a variable.
class TokenSpan {
 public:
  /// No tokens.
  constexpr TokenSpan() noexcept = default;
  /// The tokens of a contiguous range.
  template <detail::RangeOfTokens R>
  constexpr TokenSpan(R&& tokens) noexcept : tokens_(tokens) {}  // NOLINT: converts by design
  /// The tokens of a list in braces.
  constexpr TokenSpan(std::initializer_list<Token> tokens) noexcept
      : tokens_(std::data(tokens), tokens.size()) {}  // NOLINT: converts by design

  /// A range of another integer type: the error names the type to use.
  template <detail::RangeOfOtherTokens R>
  constexpr TokenSpan(const R&) noexcept {  // NOLINT: converts by design
    static_assert(
        detail::are_tokens<const R&>,
        "kvc: tokens must be 32-bit (kvc::Token) and contiguous: pass a std::vector<kvc::Token>, an array or a "
        "std::span of them");
  }

  /// The tokens.
  constexpr operator std::span<const Token>() const noexcept { return tokens_; }  // NOLINT: converts by design
  /// Number of tokens.
  [[nodiscard]] constexpr std::size_t size() const noexcept { return tokens_.size(); }
  /// Whether there is none.
  [[nodiscard]] constexpr bool empty() const noexcept { return tokens_.empty(); }

 private:
  std::span<const Token> tokens_;
};

}  // namespace v0
}  // namespace kvc
