// Lines of a file that may be gzip-compressed.
#pragma once

#include <zlib.h>

#include <memory>
#include <string>
#include <string_view>

#include "kvc/core/types.hpp"

namespace kvc_bench {

/// What the file is, its first bytes say, not its name. Errors are TraceErrors that name file and line.
class LineReader {
 public:
  explicit LineReader(const std::string& path);

  /// Moves on to the next line, and returns whether there is one. A last line without line end is one.
  bool next();
  /// Without LF or CR LF. Valid until the next call of `next`.
  [[nodiscard]] std::string_view line() const noexcept { return line_; }
  /// Of this line, from 1.
  [[nodiscard]] kvc::Index number() const noexcept { return number_; }

 private:
  /// Appends to what is left of the buffer; false at the end of the file.
  bool read_more();

  struct Close {
    void operator()(gzFile file) const noexcept { gzclose(file); }
  };
  std::string path_;
  std::unique_ptr<gzFile_s, Close> file_;
  std::string buffer_;     // bytes that were read
  std::size_t begin_ = 0;  // of them, those before this were handed out
  std::string_view line_;
  kvc::Index number_ = 0;
};

}  // namespace kvc_bench
