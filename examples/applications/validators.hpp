// What command lines of the examples accept, with messages that say what is allowed.
#pragma once

#include <CLI/CLI.hpp>
#include <charconv>
#include <limits>
#include <string>
#include <type_traits>
#include <vector>

namespace validators {

/// Accepts what from_chars reads as a whole and `ok` likes. CLI11 puts the name of the option in front of the message.
template <class V, class Ok>
CLI::Validator number(const std::string& allowed, Ok ok) {
  return CLI::Validator(
      [allowed, ok](std::string& text) {
        V value{};
        const char* end = text.data() + text.size();
        const auto [stop, error] = std::from_chars(text.data(), end, value);
        if (error != std::errc{} || stop != end || !ok(value)) {
          return "\"" + text + "\" is not allowed, it must be " + allowed;
        }
        if constexpr (std::is_integral_v<V>) {
          text = std::to_string(value);  // or CLI11 would take 010 for eight
        }
        return std::string();
      },
      "");
}

inline CLI::Validator whole(int least, int most = std::numeric_limits<int>::max()) {
  return number<int>("a whole number from " + std::to_string(least) + " to " + std::to_string(most),
                     [=](int value) { return least <= value && value <= most; });
}

inline CLI::Validator one_of(const std::vector<std::string>& words) {
  return CLI::Validator(
      [words](std::string& text) {
        std::string all;
        for (const std::string& word : words) {
          if (text == word) return std::string();
          all += (all.empty() ? "" : ", ") + word;
        }
        return "\"" + text + "\" is not allowed, it must be one of " + all;
      },
      "");
}

}  // namespace validators
