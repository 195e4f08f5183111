// What the command lines of the benchmark programs have in common.
#pragma once

#include <CLI/CLI.hpp>
#include <algorithm>
#include <cstddef>
#include <string>
#include <vector>

namespace kvc_bench {

/// CLI11 puts the name of the option in front.
[[noreturn]] inline void reject(const char* option, const std::string& value, const std::string& allowed) {
  throw CLI::ValidationError(option, "\"" + value + "\" is not allowed, it must be " + allowed);
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

}  // namespace kvc_bench
