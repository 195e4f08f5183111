// The error that every reader of traces throws.
#pragma once

#include <stdexcept>
#include <string>
#include <string_view>

#include "kvc/core/types.hpp"

namespace kvc_bench {

/// Where something stands, for messages.
struct LinePlace {
  std::string_view file = "line";
  kvc::Index line = 1;  ///< from 1; 0: the file as a whole
};

/// A trace holds something that it must not hold: `FILE:LINE: "FIELD": PROBLEM`.
class TraceError : public std::runtime_error {
 public:
  /// Line 0: the file as a whole. An empty field: the line as a whole. A field within another one is named with its
  /// path: hash_ids/3.
  TraceError(std::string_view file, kvc::Index line, std::string_view field, std::string_view problem);
  [[nodiscard]] const std::string& file() const noexcept { return file_; }
  [[nodiscard]] kvc::Index line() const noexcept { return line_; }
  [[nodiscard]] const std::string& field() const noexcept { return field_; }

 private:
  std::string file_;
  kvc::Index line_;
  std::string field_;
};

}  // namespace kvc_bench
