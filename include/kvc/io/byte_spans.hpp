// Byte spans, and lists of them: the memory that one write gathers from, or one read scatters into.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

namespace kvc {
inline namespace v0 {
namespace io {

/// Bytes to write to, and bytes to read.
using ByteSpan = std::span<std::byte>;
using ConstByteSpan = std::span<const std::byte>;

/// Bytes of all spans of a list. O(spans).
template <class Spans>
[[nodiscard]] constexpr std::uint64_t total_bytes(const Spans& spans) noexcept {
  std::uint64_t sum = 0;
  for (const auto& span : spans) {
    sum += span.size();
  }
  return sum;
}

/// A list of byte spans in the order in which they were added. A span that begins where the one before it ends extends
/// that one, so that contiguous memory stays one span. Does not own the bytes. Byte is std::byte or const std::byte.
template <class Byte>
class SpanList {
 public:
  /// O(1), amortised.
  void add(std::span<Byte> span) {
    if (span.empty()) {
      return;
    }
    bytes_ += span.size();
    if (!spans_.empty() && spans_.back().data() + spans_.back().size() == span.data()) {
      spans_.back() = std::span<Byte>(spans_.back().data(), spans_.back().size() + span.size());
    } else {
      spans_.push_back(span);
    }
  }
  /// Forgets all spans.
  void clear() noexcept {
    spans_.clear();
    bytes_ = 0;
  }
  /// Makes room for `count` spans.
  void reserve(std::size_t count) { spans_.reserve(count); }
  /// The spans, in order.
  [[nodiscard]] std::span<const std::span<Byte>> spans() const noexcept { return spans_; }
  /// Bytes of all spans.
  [[nodiscard]] std::size_t bytes() const noexcept { return bytes_; }
  /// Whether there is no span.
  [[nodiscard]] bool empty() const noexcept { return spans_.empty(); }

 private:
  std::vector<std::span<Byte>> spans_;
  std::size_t bytes_ = 0;
};

/// The spans of a list one range of bytes after the other: next(n) gives those of the next n bytes, fewer at the end.
/// The result of a call is valid until the next call. Refers to the list.
template <class Span>
class SpanCursor {
 public:
  /// At the first byte.
  explicit SpanCursor(std::span<const Span> spans) noexcept : rest_(spans) {}
  /// O(spans of these bytes). Throws std::bad_alloc.
  [[nodiscard]] std::span<const Span> next(std::uint64_t bytes) {
    now_.clear();
    while (bytes > 0 && !rest_.empty()) {
      const Span whole = rest_.front().subspan(taken_);
      const Span part = whole.first(static_cast<std::size_t>(bytes < whole.size() ? bytes : whole.size()));
      if (!part.empty()) {
        now_.push_back(part);
      }
      bytes -= part.size();
      taken_ += part.size();
      if (part.size() == whole.size()) {
        rest_ = rest_.subspan(1);
        taken_ = 0;
      }
    }
    return now_;
  }

 private:
  std::span<const Span> rest_;
  std::size_t taken_ = 0;  // bytes of the first of them
  std::vector<Span> now_;
};

}  // namespace io
}  // namespace v0
}  // namespace kvc
