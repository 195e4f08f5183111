// The lines of a trace.
#pragma once

#include <optional>
#include <string>
#include <string_view>

#include "kvc/core/types.hpp"
#include "trace_input.hpp"

namespace kvc_bench {

/// Bytes of a line at most.
inline constexpr std::size_t max_line_bytes = std::size_t{1} << 26;
/// Bytes of a document of many lines at most.
inline constexpr std::size_t max_document_bytes = std::size_t{1} << 28;

/// Lines of an input, one after another. Errors are TraceErrors that name file and line.
class LineReader {
 public:
  explicit LineReader(const TraceInput& input) : name_(input.name()), bytes_(input) {}

  /// Moves on to the next line, and returns whether there is one. A last line without line end is one.
  bool next();
  /// Without LF or CR LF, and without the byte order mark of some editors. Valid until the next call of `next`.
  [[nodiscard]] std::string_view line() const noexcept { return line_; }
  /// Of this line, from 1.
  [[nodiscard]] kvc::Index number() const noexcept { return number_; }
  /// This line and all that follow it, with LF between them; null if they have more than max_document_bytes.
  [[nodiscard]] std::optional<std::string> rest();

 private:
  std::string name_;
  ByteReader bytes_;
  std::string buffer_;     // bytes that were read
  std::size_t begin_ = 0;  // those before this were handed out
  std::string_view line_;
  kvc::Index number_ = 0;
};

}  // namespace kvc_bench
