// ByteSink and ByteSource: where bytes are written to and read from. Files are in io/file.hpp, memory is here, and a
// program can add its own, a connection for example.
//
// Both take lists of spans: a sink gathers from the blocks of a pool, a source scatters into them, and nothing is
// copied in between. One call moves about a quarter of a megabyte, so the cost of a virtual call does not show.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <optional>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "kvc/core/error.hpp"
#include "kvc/io/byte_spans.hpp"

namespace kvc {
inline namespace v0 {
namespace io {

/// Accepts bytes in order.
///
///   expression      does                                               throws
///   s.write(spans)  takes all bytes of the spans, one span after the   anything, if it cannot take all of them;
///                   other; keeps no reference to them                  the writer passes the exception on
class ByteSink {
 public:
  virtual ~ByteSink() = default;
  /// Takes all bytes of the spans. Throws what it likes, if it cannot.
  virtual void write(std::span<const ConstByteSpan> spans) = 0;

 protected:
  ByteSink() = default;
  ByteSink(const ByteSink&) = default;
  ByteSink& operator=(const ByteSink&) = default;
};

/// Provides bytes in order.
///
///   expression       returns                                                          throws
///   s.read(spans)    bytes read; fewer than the spans hold only at the end of the     FormatError, if reading fails
///                    bytes. Fills one span after the other, and waits for bytes
///   s.left()         bytes that are still to come, or empty if that is unknown.
///                    A reader uses it to reject lengths before it allocates
///   s.can_rewind()   whether `rewind` works
///   s.rewind(bytes)  the last `bytes` bytes will be read again                        std::invalid_argument for more
///                                                                                     bytes than were read
///   s.name()         the name of the source in messages, a path for example
class ByteSource {
 public:
  virtual ~ByteSource() = default;
  /// Fills the spans; returns the bytes read, fewer only at the end. Throws FormatError if reading fails.
  virtual std::size_t read(std::span<const ByteSpan> spans) = 0;
  /// Bytes that are still to come; empty if that is unknown.
  [[nodiscard]] virtual std::optional<std::uint64_t> left() const { return std::nullopt; }
  /// Whether `rewind` works.
  [[nodiscard]] virtual bool can_rewind() const { return false; }
  /// The last `bytes` bytes will be read again. Throws std::invalid_argument for more than were read.
  virtual void rewind(std::uint64_t bytes) { require(bytes == 0, "bytes", bytes, "0: the source cannot rewind"); }
  /// The name of the source in messages.
  [[nodiscard]] const std::string& name() const noexcept { return name_; }

 protected:
  explicit ByteSource(std::string name) : name_(std::move(name)) {}
  ByteSource(const ByteSource&) = default;
  ByteSource& operator=(const ByteSource&) = default;

 private:
  std::string name_;
};

/// A sink that appends to a vector.
class MemorySink final : public ByteSink {
 public:
  void write(std::span<const ConstByteSpan> spans) override {
    for (const ConstByteSpan span : spans) {
      bytes_.insert(bytes_.end(), span.begin(), span.end());
    }
  }
  /// All bytes that were written.
  [[nodiscard]] const std::vector<std::byte>& bytes() const noexcept { return bytes_; }
  /// Moves the bytes out; the sink is empty afterwards.
  [[nodiscard]] std::vector<std::byte> take() noexcept { return std::exchange(bytes_, {}); }
  /// Allocates room for `bytes` bytes in all, so that appending does not move them.
  void reserve(std::size_t bytes) { bytes_.reserve(bytes); }

 private:
  std::vector<std::byte> bytes_;
};

/// A source over memory of any alignment, which must outlive it.
class MemorySource final : public ByteSource {
 public:
  /// Reads these bytes, which must outlive it.
  explicit MemorySource(ConstByteSpan bytes, std::string name = "bytes in memory")
      : ByteSource(std::move(name)), bytes_(bytes) {}

  std::size_t read(std::span<const ByteSpan> spans) override {
    const std::size_t before = at_;
    for (const ByteSpan span : spans) {
      const std::size_t count = std::min(span.size(), bytes_.size() - at_);
      if (count > 0) {
        std::memcpy(span.data(), bytes_.data() + at_, count);
      }
      at_ += count;
    }
    return at_ - before;
  }
  [[nodiscard]] std::optional<std::uint64_t> left() const override { return bytes_.size() - at_; }
  [[nodiscard]] bool can_rewind() const override { return true; }
  void rewind(std::uint64_t bytes) override {
    require(bytes <= at_, "bytes", bytes, "at most as many as were read");
    at_ -= static_cast<std::size_t>(bytes);
  }

 private:
  ConstByteSpan bytes_;
  std::size_t at_ = 0;
};

}  // namespace io
}  // namespace v0
}  // namespace kvc
