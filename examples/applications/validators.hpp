// Checks of command-line values, with messages that say what is allowed. For the examples and the benchmark programs.
#pragma once

#include <CLI/CLI.hpp>
#include <algorithm>
#include <charconv>
#include <cstdint>
#include <limits>
#include <optional>
#include <string>
#include <type_traits>
#include <vector>

namespace validators {

/// The number that the whole text is, as std::from_chars reads it.
template <class V>
[[nodiscard]] std::optional<V> parse(const std::string& text) {
  V value{};
  const char* end = text.data() + text.size();
  const auto [stop, error] = std::from_chars(text.data(), end, value);
  return error == std::errc{} && stop == end ? std::optional<V>(value) : std::nullopt;
}

/// The message for a value that is not allowed. CLI11 puts the name of the option in front.
[[nodiscard]] inline std::string not_allowed(const std::string& text, const std::string& allowed) {
  return "\"" + text + "\" is not allowed, it must be " + allowed;
}

[[nodiscard]] inline std::string whole_range(std::int64_t least, std::int64_t most) {
  return "a whole number from " + std::to_string(least) + " to " + std::to_string(most);
}

[[nodiscard]] inline std::string one_of_text(const std::vector<std::string>& words) {
  std::string all;
  for (const std::string& word : words) {
    all += (all.empty() ? "one of " : ", ") + word;
  }
  return all;
}

/// Accepts a number for which `ok` is true. --help shows `range` behind the type of the value.
template <class V, class Ok>
CLI::Validator number(const std::string& allowed, Ok ok, const std::string& range) {
  return CLI::Validator(
      [allowed, ok](std::string& text) {
        const std::optional<V> value = parse<V>(text);
        if (!value || !ok(*value)) {
          return not_allowed(text, allowed);
        }
        if constexpr (std::is_integral_v<V>) {
          text = std::to_string(*value);  // or CLI11 would take 010 for eight
        }
        return std::string();
      },
      range);
}

inline CLI::Validator whole(int least, int most = std::numeric_limits<int>::max()) {
  const std::string range = most == std::numeric_limits<int>::max()
                                ? "at least " + std::to_string(least)
                                : std::to_string(least) + " to " + std::to_string(most);
  return number<int>(whole_range(least, most), [=](int value) { return least <= value && value <= most; }, range);
}

/// The name of a file: CLI11 itself takes an empty text.
inline CLI::Validator file_name() {
  return CLI::Validator(
      [](std::string& text) { return text.empty() ? not_allowed(text, "the name of a file") : std::string(); }, "");
}

inline CLI::Validator one_of(const std::vector<std::string>& words) {
  return CLI::Validator(
      [words](std::string& text) {
        return std::ranges::find(words, text) != words.end() ? std::string() : not_allowed(text, one_of_text(words));
      },
      "");
}

}  // namespace validators
