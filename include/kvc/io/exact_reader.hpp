// ExactReader: reads whole objects from a ByteSource, and reports where a file ends too early.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <type_traits>
#include <vector>

#include "kvc/core/error.hpp"
#include "kvc/core/types.hpp"
#include "kvc/io/byte_stream.hpp"

namespace kvc {
inline namespace v0 {
namespace io {

/// Reads from a source whose size is known, and counts the offset. The source must outlive it. Integers and floats are
/// read as they lie; the formats of kvc are little-endian, and so are its targets.
class ExactReader {
 public:
  /// Throws FormatError if the source does not know its size, as a pipe does not.
  explicit ExactReader(ByteSource& source) : source_(&source) {
    if (!source.left()) {
      fail("a file of known size, not a pipe or a device");
    }
    size_ = static_cast<Index>(*source.left());
  }

  /// The name of the source.
  [[nodiscard]] const std::string& name() const noexcept { return source_->name(); }
  /// Bytes of the whole source, counted from where it stood at construction.
  [[nodiscard]] Index size() const noexcept { return size_; }
  /// Bytes that were read.
  [[nodiscard]] Index offset() const noexcept { return offset_; }
  /// Bytes that are still to be read.
  [[nodiscard]] Index left() const noexcept { return size_ - offset_; }

  /// Throws FormatError at the current offset.
  [[noreturn]] KVC_COLD void fail(const std::string& expected) const { fail_at(offset_, expected); }
  /// Throws FormatError at `offset`.
  [[noreturn]] KVC_COLD void fail_at(Index offset, const std::string& expected) const {
    throw_error(FormatError(name(), offset, expected));
  }

  /// Reads `bytes` bytes to `to`. Throws FormatError, which names `what`, if fewer are left.
  void read(void* to, Index bytes, const char* what) {
    if (bytes > left()) {
      fail(std::string(what) + " of " + std::to_string(bytes) + " bytes, the file ends after " +
           std::to_string(left()));
    }
    const ByteSpan span(static_cast<std::byte*>(to), static_cast<std::size_t>(bytes));
    if (bytes > 0 && source_->read(std::span(&span, 1)) != span.size()) {
      fail(std::string(what) + " of " + std::to_string(bytes) + " bytes, the file has become shorter");
    }
    offset_ += bytes;
  }

  /// Reads one number. Throws FormatError as above.
  template <class V>
    requires std::is_arithmetic_v<V>
  [[nodiscard]] V read(const char* what) {
    V value{};
    read(&value, Index{sizeof(V)}, what);
    return value;
  }

  /// Reads `bytes` bytes and discards them. Throws FormatError as above.
  void skip(Index bytes, const char* what) {
    std::vector<std::byte> discarded(static_cast<std::size_t>(std::min(bytes, Index{1} << 16)));
    while (bytes > 0) {
      const Index part = std::min(bytes, static_cast<Index>(discarded.size()));
      read(discarded.data(), part, what);
      bytes -= part;
    }
  }

 private:
  ByteSource* source_;
  Index size_ = 0;
  Index offset_ = 0;
};

}  // namespace io
}  // namespace v0
}  // namespace kvc
