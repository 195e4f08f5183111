// Parses values that several benchmark programs take, in lists and callbacks, with the checks and the messages of the
// examples' validators.
#pragma once

#include <CLI/CLI.hpp>
#include <algorithm>
#include <charconv>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <string>
#include <utility>
#include <vector>

#include "validators.hpp"

namespace kvc_bench {

/// CLI11 puts the name of the option in front.
[[noreturn]] inline void reject(const char* option, const std::string& value, const std::string& allowed) {
  throw CLI::ValidationError(option, validators::not_allowed(value, allowed));
}

/// The parts of "a,b,c", also where the option was given again.
[[nodiscard]] inline std::vector<std::string> split(const CLI::results_t& texts) {
  std::vector<std::string> parts;
  for (const std::string& text : texts) {
    for (std::size_t begin = 0; begin <= text.size();) {
      const std::size_t end = std::min(text.find(',', begin), text.size());
      parts.push_back(text.substr(begin, end - begin));
      begin = end + 1;
    }
  }
  return parts;
}

/// The number that the whole text is. Throws CLI::ValidationError for any other text, and out of range.
[[nodiscard]] inline std::int64_t whole(const char* option, const std::string& text, std::int64_t low,
                                        std::int64_t high) {
  const auto value = validators::parse<std::int64_t>(text);
  if (!value || *value < low || *value > high) {
    reject(option, text, validators::whole_range(low, high));
  }
  return *value;
}

[[nodiscard]] inline double number(const char* option, const std::string& text, double low, double high) {
  const auto value = validators::parse<double>(text);
  if (!value || !(*value >= low && *value <= high)) {
    char range[96];
    std::snprintf(range, sizeof range, "a number from %g to %g", low, high);
    reject(option, text, range);
  }
  return *value;
}

/// The value that a word stands for. Throws CLI::ValidationError, which lists the words.
template <class T>
[[nodiscard]] T one_of(const char* option, const std::string& text,
                       const std::vector<std::pair<std::string, T>>& allowed) {
  std::vector<std::string> words;
  for (const auto& [word, value] : allowed) {
    if (word == text) {
      return value;
    }
    words.push_back(word);
  }
  reject(option, text, validators::one_of_text(words));
}

}  // namespace kvc_bench
