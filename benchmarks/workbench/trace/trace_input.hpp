// The bytes of a trace: of a file, a pipe, or memory; gzip-compressed or not, which the first bytes decide.
#pragma once

#include <zlib.h>

#include <cstddef>
#include <cstdio>
#include <memory>
#include <string>

#include "kvc/core/types.hpp"

namespace kvc_bench {

/// Where a trace is, and how to read it again from its beginning. Cheap to copy.
class TraceInput {
 public:
  /// A regular file or a folder is only named, and opened by each reader. Anything else, such as a pipe, can be read
  /// once: it is read to its end here, and kept. Throws TraceError if there is no such file, or a pipe holds more than
  /// `max_kept_bytes`.
  [[nodiscard]] static TraceInput open(const std::string& path);
  [[nodiscard]] static TraceInput memory(std::string name, std::string bytes);

  [[nodiscard]] const std::string& name() const noexcept { return name_; }
  [[nodiscard]] bool is_folder() const;
  /// Null: the file of this name.
  [[nodiscard]] const std::shared_ptr<const std::string>& bytes() const noexcept { return bytes_; }

  static constexpr std::size_t max_kept_bytes = std::size_t{4} << 30;

 private:
  std::string name_;
  std::shared_ptr<const std::string> bytes_;
};

/// Reads an input from its beginning, decompressed. A gzip file is a sequence of members; zero bytes after a member are
/// padding. Whatever else follows a member is an error, and so are a member that ends early or fails its check sum.
class ByteReader {
 public:
  explicit ByteReader(const TraceInput& input);
  ~ByteReader();
  ByteReader(const ByteReader&) = delete;
  ByteReader& operator=(const ByteReader&) = delete;

  /// Appends more bytes to `out`, and returns whether there were any. Throws TraceError, which names the file and, of a
  /// compressed one, the offset in it.
  bool append_to(std::string& out);

 private:
  struct Close {
    void operator()(std::FILE* file) const noexcept { std::fclose(file); }
  };
  /// Refills `raw_` once all of it was used; false at the end of the input.
  bool refill();
  [[nodiscard]] std::size_t left() const noexcept { return raw_size_ - raw_used_; }
  bool inflate_to(std::string& out);
  /// Skips padding; whether a member begins here. Otherwise the input has ended.
  bool next_member();
  [[noreturn]] void fail(const std::string& problem) const;
  /// Of the first raw byte that was not used, in the file.
  [[nodiscard]] kvc::Index offset() const noexcept { return raw_begin_ + static_cast<kvc::Index>(raw_used_); }

  TraceInput input_;
  std::unique_ptr<std::FILE, Close> file_;
  std::size_t memory_used_ = 0;
  std::string raw_;  // as it is in the file; a part of it
  std::size_t raw_size_ = 0;
  std::size_t raw_used_ = 0;
  kvc::Index raw_begin_ = 0;  // offset of raw_ in the file
  bool compressed_ = false;
  bool in_member_ = false;
  z_stream inflater_{};
};

}  // namespace kvc_bench
