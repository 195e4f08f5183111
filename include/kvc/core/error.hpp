// The errors of kvc.
//
//   std::invalid_argument   a bad argument: the message names it, its value and what is allowed
//   CapacityError           no room; the try_ forms return an empty optional instead
//   FormatError             a bad file, or bad bytes from a peer: its name, the offset, what was expected
//   InvariantError          a policy's bookkeeping or a layout contradicts itself: a bug in that type
//
// Without exceptions the same calls report to `error_handler()`, and abort if it returns.
#pragma once

#include <concepts>
#include <cstddef>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <initializer_list>
#include <new>
#include <stdexcept>
#include <string>
#include <string_view>
#include <type_traits>
#include <utility>

#include "kvc/config.hpp"
#include "kvc/core/limit.hpp"
#include "kvc/core/stats.hpp"
#include "kvc/core/types.hpp"

namespace kvc {
inline namespace v0 {

/// No room for an operation, which has changed nothing. Thrown by the plain forms. The message and `limit()` say which
/// limit was met, if the policy explains its refusals (see policy/capabilities.hpp).
class CapacityError : public std::bad_alloc {
 public:
  /// `operation` must be a literal; `tokens` are those that room was wanted for; `now` are the counts of the policy, or
  /// of the group that `met` names.
  CapacityError(const char* operation, Index tokens, const Stats& now, const LimitMet& met = {}) noexcept
      : requested_(tokens), largest_free_run_(now.largest_free_run * now.block_tokens), met_(met) {
    const auto print = [&](const char* format, auto... numbers) {
      std::snprintf(message_, sizeof message_, format, operation, static_cast<long long>(tokens),
                    static_cast<long long>(numbers)...);
    };
    switch (met.limit) {
      case Limit::sequences:
        print("kvc: no room to %s by %lld tokens: the limit of %lld open sequences is reached", met.allowed);
        break;
      case Limit::max_tokens:
        print("kvc: no room to %s by %lld tokens: max_tokens of the sequence is %lld, and it would have %lld",
              met.allowed, met.needed);
        break;
      case Limit::pool:
        print(
            "kvc: no room to %s by %lld tokens: %lld slots are needed, and of the pool's %lld slots %lld are free or "
            "evictable; %lld sequences are open",
            met.needed, now.blocks_total * now.block_tokens, met.allowed, now.sequences);
        break;
      case Limit::fragmentation:
        print(
            "kvc: no room to %s by %lld tokens: %lld slots in one piece are needed; %lld slots are free, "
            "but the largest hole has %lld",
            met.needed, now.blocks_free * now.block_tokens, met.allowed);
        break;
      case Limit::pass_tokens:
        print("kvc: no room to %s by %lld tokens: %lld of them would fit now, and more in further extensions",
              met.allowed);
        break;
      case Limit::none:
        print(
            "kvc: no room to %s by %lld tokens: %lld sequences are open, %lld of %lld slots are free or evictable, at "
            "most %lld of them for one sequence",
            now.sequences, (now.blocks_free + now.blocks_cached) * now.block_tokens,
            now.blocks_total * now.block_tokens, largest_free_run_);
    }
    if (met.group >= 0) {
      const std::size_t used = std::strlen(message_);
      std::snprintf(message_ + used, sizeof message_ - used, " (layer group %lld)", static_cast<long long>(met.group));
    }
  }
  [[nodiscard]] const char* what() const noexcept override { return message_; }
  /// The limit that was met; Limit::none if the policy does not say.
  [[nodiscard]] Limit limit() const noexcept { return met_.limit; }
  /// The amount that the limit allows, in its unit.
  [[nodiscard]] Index allowed() const noexcept { return met_.allowed; }
  /// The amount that the operation needed, in the unit of the limit.
  [[nodiscard]] Index needed() const noexcept { return met_.needed; }
  /// Tokens that room was wanted for.
  [[nodiscard]] Index requested() const noexcept { return requested_; }
  /// Tokens that one new sequence could have had.
  [[nodiscard]] Index largest_free_run() const noexcept { return largest_free_run_; }

 private:
  Index requested_;
  Index largest_free_run_;
  LimitMet met_;
  char message_[256];
};

namespace detail {
/// The parts, one after the other. (Chains of operator+ make g++ 12 warn of overlaps that cannot be.)
[[nodiscard]] KVC_COLD inline std::string concat(std::initializer_list<std::string_view> parts) {
  std::string joined;
  for (const std::string_view part : parts) {
    joined.append(part);
  }
  return joined;
}
}  // namespace detail

/// Bytes from a file or a peer are not what the format calls for. Nothing of them was loaded.
class FormatError : public std::runtime_error {
 public:
  /// "kvc: SOURCE: at byte OFFSET: expected EXPECTED"
  FormatError(const std::string& source, Index offset, const std::string& expected)
      : std::runtime_error(
            detail::concat({"kvc: ", source, ": at byte ", std::to_string(offset), ": expected ", expected})),
        source_(source),
        offset_(offset) {}
  [[nodiscard]] const std::string& source() const noexcept { return source_; }  ///< the file, or the peer
  [[nodiscard]] Index offset() const noexcept { return offset_; }               ///< the byte, counted from 0

 private:
  std::string source_;
  Index offset_;
};

/// An invariant does not hold: verify() found that the bookkeeping of a policy contradicts itself, or a layout is
/// wrong.
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

/// The handler in use. Only builds without exceptions call it.
inline ErrorHandler error_handler() noexcept { return detail::installed_error_handler; }

/// Installs a handler. Call it before other threads start.
inline void set_error_handler(ErrorHandler handler) noexcept { detail::installed_error_handler = handler; }

/// Throws `error`; without exceptions, gives its message to the error handler and aborts.
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
    return concat({"{index ", std::to_string(value.index), ", generation ", std::to_string(value.generation), "}"});
  } else if constexpr (std::is_same_v<V, PosRange>) {
    return concat({"[", std::to_string(value.first), ", ", std::to_string(value.last), ")"});
  } else {
    return std::string(value);
  }
}
}  // namespace detail

/// Throws std::invalid_argument, such as "kvc: block_tokens is 0, must be at least 1". `allowed` completes "must be
/// ...".
template <class V>
[[noreturn]] KVC_COLD void throw_invalid(std::string_view argument, const V& value, std::string_view allowed) {
  throw_error(std::invalid_argument(
      detail::concat({"kvc: ", argument, " is ", detail::value_text(value), ", must be ", allowed})));
}

/// Throws std::invalid_argument unless `ok`, see throw_invalid.
template <class V>
constexpr void require(bool ok, std::string_view argument, const V& value, std::string_view allowed) {
  if (!ok) [[unlikely]] {
    throw_invalid(argument, value, allowed);
  }
}

/// Throws std::invalid_argument unless low <= value <= high.
template <class V>
constexpr void require_between(V value, V low, V high, std::string_view argument) {
  if (value < low || value > high) [[unlikely]] {
    throw_invalid(argument, value, detail::concat({"between ", std::to_string(low), " and ", std::to_string(high)}));
  }
}

/// A count of any integer type as a Pos. Throws std::invalid_argument unless it is in [0, max_pos].
template <std::integral I>
[[nodiscard]] constexpr Pos checked_count(I count, std::string_view argument) {
  if (std::cmp_less(count, 0) || std::cmp_greater(count, max_pos)) [[unlikely]] {
    throw_invalid(argument, count, detail::concat({"between 0 and ", std::to_string(max_pos)}));
  }
  return static_cast<Pos>(count);
}

}  // namespace v0
}  // namespace kvc
