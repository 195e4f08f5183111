// Numbers and generated text as programs print them. For the examples and the benchmark programs.
#pragma once

#include <cstdio>
#include <string>
#include <string_view>

namespace text {

/// `value` with `digits` digits after the point, and its unit.
inline std::string fixed(double value, int digits, const char* unit = "") {
  char text[64];
  std::snprintf(text, sizeof text, "%.*f%s", digits, value, unit);
  return text;
}

/// `bytes` without the control characters that a terminal would obey, but with newlines and tabs.
inline std::string printable(std::string_view bytes) {
  std::string text;
  for (const char c : bytes) {
    const auto code = static_cast<unsigned char>(c);
    if (c == '\n' || c == '\t' || (code >= 0x20 && code != 0x7F)) {
      text += c;
    }
  }
  return text;
}

}  // namespace text
