// What a caller gets when something is wrong.
//
//   std::invalid_argument   a bad argument: the message names it, its value and what is allowed
//   CapacityError           no room; the `try_*` forms return an empty optional instead
//   FormatError             a bad file or bad bytes from a peer: file, offset, what was expected
//   InvariantError          `verify()` found broken bookkeeping: a bug in a policy
//
// Without exceptions the same calls report to `error_handler()`, and abort should that return.
#pragma once

#include <cstdio>
#include <cstdlib>
#include <initializer_list>
#include <new>
#include <stdexcept>
#include <string>
#include <string_view>
#include <type_traits>
#include <utility>

#include "kvc/config.hpp"
#include "kvc/core/stats.hpp"
#include "kvc/core/types.hpp"

namespace kvc {
inline namespace v0 {

/// No room for what was asked. Thrown by the plain forms; the operation has changed nothing. The message and the members
/// tell what room there was; whether it was that or a limit of the policy's that was met, the policy's documentation says.
class CapacityError : public std::bad_alloc {
 public:
  /// `operation` must be a literal.
  CapacityError(const char* operation, Index tokens, const Stats& now) noexcept
      : requested_(tokens), largest_free_run_(now.largest_free_run * now.block_tokens) {
    std::snprintf(
        message_, sizeof message_,
        "kvc: no room to %s by %lld tokens: %lld sequences are open, %lld of %lld slots are free or evictable, "
        "at most %lld of them for one sequence",
        operation, static_cast<long long>(tokens), static_cast<long long>(now.sequences),
        static_cast<long long>((now.blocks_free + now.blocks_cached) * now.block_tokens),
        static_cast<long long>(now.blocks_total * now.block_tokens), static_cast<long long>(largest_free_run_));
  }
  [[nodiscard]] const char* what() const noexcept override { return message_; }
  /// Tokens that room was wanted for.
  [[nodiscard]] Index requested() const noexcept { return requested_; }
  /// Tokens that one new sequence could have had.
  [[nodiscard]] Index largest_free_run() const noexcept { return largest_free_run_; }

 private:
  Index requested_;
  Index largest_free_run_;
  char message_[224];
};

namespace detail {
/// The pieces, one after the other. (Chains of operator+ make g++ 12 warn of overlaps that cannot be.)
[[nodiscard]] KVC_COLD inline std::string concat(std::initializer_list<std::string_view> pieces) {
  std::string joined;
  for (const std::string_view piece : pieces) {
    joined.append(piece);
  }
  return joined;
}
}  // namespace detail

/// Bytes from outside that do not hold what they should. Nothing was half-loaded.
class FormatError : public std::runtime_error {
 public:
  FormatError(const std::string& source, Index offset, const std::string& expected)
      : std::runtime_error(
            detail::concat({"kvc: ", source, ": at byte ", std::to_string(offset), ": expected ", expected})),
        source_(source),
        offset_(offset) {}
  [[nodiscard]] const std::string& source() const noexcept { return source_; }
  [[nodiscard]] Index offset() const noexcept { return offset_; }

 private:
  std::string source_;
  Index offset_;
};

/// An invariant of a policy does not hold.
class InvariantError : public std::logic_error {
 public:
  using std::logic_error::logic_error;
};

/// Receives the message of an error when kvc is compiled without exceptions. Must not return.
using ErrorHandler = void (*)(const char* message);

namespace detail {
inline void print_error(const char* message) { std::fprintf(stderr, "%s\n", message); }
inline ErrorHandler installed_error_handler = &print_error;
}  // namespace detail

/// The handler in use; assign to `set_error_handler` before starting threads. Only used without exceptions.
inline ErrorHandler error_handler() noexcept { return detail::installed_error_handler; }
inline void set_error_handler(ErrorHandler handler) noexcept { detail::installed_error_handler = handler; }

/// Throws `error`, or hands its message to the handler and aborts.
template <class E>
[[noreturn]] KVC_COLD void throw_error(const E& error) {
#if KVC_HAS_EXCEPTIONS
  throw error;
#else
  error_handler()(error.what());
  std::abort();
#endif
}

namespace detail {
template <class V>
std::string value_text(const V& value) {
  if constexpr (std::is_same_v<V, bool>) {
    return value ? "true" : "false";
  } else if constexpr (std::is_arithmetic_v<V>) {
    return std::to_string(value);
  } else if constexpr (std::is_same_v<V, SeqId>) {
    return concat({"{slot ", std::to_string(value.slot), ", generation ", std::to_string(value.generation), "}"});
  } else if constexpr (std::is_same_v<V, PosRange>) {
    return concat({"[", std::to_string(value.first), ", ", std::to_string(value.last), ")"});
  } else {
    return std::string(value);
  }
}
}  // namespace detail

/// Reports a bad argument: "kvc: block_tokens is 0, must be at least 1".
template <class V>
[[noreturn]] KVC_COLD void throw_invalid(std::string_view argument, const V& value, std::string_view allowed) {
  throw_error(std::invalid_argument(
      detail::concat({"kvc: ", argument, " is ", detail::value_text(value), ", must be ", allowed})));
}

/// Checks `ok`, and reports the argument otherwise. `allowed` completes "must be ...".
template <class V>
constexpr void require(bool ok, std::string_view argument, const V& value, std::string_view allowed) {
  if (!ok) [[unlikely]] {
    throw_invalid(argument, value, allowed);
  }
}

/// As `require`, for a value that must lie in [low, high].
template <class V>
constexpr void require_between(V value, V low, V high, std::string_view argument) {
  if (value < low || value > high) [[unlikely]] {
    throw_invalid(argument, value, detail::concat({"between ", std::to_string(low), " and ", std::to_string(high)}));
  }
}

/// Converts a count that a caller gave in any integer type, or reports it.
template <std::integral I>
[[nodiscard]] constexpr Pos checked_count(I count, std::string_view argument) {
  if (std::cmp_less(count, 0) || std::cmp_greater(count, max_pos)) [[unlikely]] {
    throw_invalid(argument, count, detail::concat({"between 0 and ", std::to_string(max_pos)}));
  }
  return static_cast<Pos>(count);
}

}  // namespace v0
}  // namespace kvc
