// Numbers as reports print them. For the examples and the benchmark programs.
#pragma once

#include <cstdio>
#include <string>

namespace text {

/// `value` with `digits` digits after the point, and its unit.
inline std::string fixed(double value, int digits, const char* unit = "") {
  char text[64];
  std::snprintf(text, sizeof text, "%.*f%s", digits, value, unit);
  return text;
}

}  // namespace text
