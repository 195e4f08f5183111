// Sections: frames with checksums around the parts of a snapshot. The writer checksums bytes on their way out, while
// they are in the processor's cache; the reader uses no number that it has not checked.
#pragma once

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <limits>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "kvc/config.hpp"
#include "kvc/core/error.hpp"
#include "kvc/core/types.hpp"
#include "kvc/io/byte_spans.hpp"
#include "kvc/io/byte_stream.hpp"
#include "kvc/snapshot/checksum.hpp"
#include "kvc/snapshot/format.hpp"

namespace kvc {
inline namespace v0 {
namespace snapshot {
namespace detail {

template <format::Plain Record>
[[nodiscard]] std::span<const std::byte> bytes_of(const Record& record) noexcept {
  return std::as_bytes(std::span(&record, 1));
}
template <format::Plain Record>
[[nodiscard]] std::span<std::byte> writable_bytes_of(Record& record) noexcept {
  return std::as_writable_bytes(std::span(&record, 1));
}

/// Bytes that are checksummed and moved together, while they are in the second-level cache.
inline constexpr std::size_t batch_bytes = std::size_t{256} << 10;
inline constexpr std::size_t batch_spans = 1024;

/// Collects spans, and hands them on in batches. Byte is std::byte or const std::byte.
template <class Byte>
class Batch {
 public:
  Batch() { spans_.reserve(batch_spans); }

  /// Calls f(spans) whenever a batch is full. A span that is too large for it is cut.
  template <class F>
  void add(std::span<Byte> span, F&& f) {
    while (!span.empty()) {
      const auto part = span.first(std::min(span.size(), batch_bytes - spans_.bytes()));
      span = span.subspan(part.size());
      spans_.add(part);
      if (spans_.bytes() == batch_bytes || spans_.spans().size() == batch_spans) {
        flush(f);
      }
    }
  }
  template <class F>
  void flush(F&& f) {
    if (!spans_.empty()) {
      f(spans_.spans());
      spans_.clear();
    }
  }

 private:
  io::SpanList<Byte> spans_;
};

/// Writes the file header, and sections with their checksums.
class SectionWriter {
 public:
  /// Writes the file header.
  explicit SectionWriter(io::ByteSink& sink, std::uint16_t version = format::major_version) : sink_(&sink) {
    format::FileHeader header{format::magic, version, format::minor_version, 0, 0};
    header.checksum = Checksum::of(bytes_of(header).first(offsetof(format::FileHeader, checksum)));
    put(bytes_of(header));
  }

  /// Begins a section; exactly `size` bytes must be added before `finish`.
  void begin(SectionName name, std::uint64_t size, std::uint64_t index = 0,
             std::uint32_t flags = format::SectionHeader::required) {
    format::SectionHeader header{name, flags, index, size, 0};
    header.checksum = Checksum::of(bytes_of(header).first(offsetof(format::SectionHeader, checksum)));
    put(bytes_of(header));
    all_.add(bytes_of(header.checksum));
    payload_.reset();
    left_ = size;
  }
  /// Adds bytes, which must not change until `finish`.
  void add(io::ConstByteSpan span) {
    KVC_ASSERT(span.size() <= left_);
    left_ -= span.size();
    batch_.add(span, [this](std::span<const io::ConstByteSpan> spans) { send(spans); });
  }
  void finish() {
    KVC_ASSERT(left_ == 0);
    batch_.flush([this](std::span<const io::ConstByteSpan> spans) { send(spans); });
    const std::uint64_t sum = payload_.value();
    put(bytes_of(sum));
    all_.add(bytes_of(sum));
    ++sections_;
  }
  void section(SectionName name, io::ConstByteSpan payload) {
    begin(name, payload.size());
    add(payload);
    finish();
  }
  void end() {
    const format::EndRecord record{sections_, all_.value()};
    section(section::end, bytes_of(record));
  }

 private:
  void put(io::ConstByteSpan bytes) { sink_->write(std::span<const io::ConstByteSpan>(&bytes, 1)); }
  void send(std::span<const io::ConstByteSpan> spans) {
    for (const io::ConstByteSpan span : spans) {
      payload_.add(span);
    }
    sink_->write(spans);
  }

  io::ByteSink* sink_;
  Batch<const std::byte> batch_;
  Checksum payload_;
  Checksum all_;
  std::uint64_t sections_ = 0;
  std::uint64_t left_ = 0;
};

/// Reads the file header, and sections with their checksums. Throws FormatError for whatever is wrong.
class SectionReader {
 public:
  /// Reads the file header, of this major version. Throws FormatError.
  explicit SectionReader(io::ByteSource& source, std::uint16_t version = format::major_version) : source_(&source) {
    format::FileHeader header{};
    take(writable_bytes_of(header), "the header of a kvc snapshot");
    if (header.magic != format::magic) {
      fail_at(0, "a kvc snapshot, which begins with \\x89KVC");
    }
    // The version comes first: another version may have another header.
    if (header.major != version) {
      fail_at(offsetof(format::FileHeader, major),
              kvc::detail::concat(
                  {"version ", std::to_string(version), " of the format, found ", std::to_string(header.major)}));
    }
    require_checksum(header.checksum, bytes_of(header).first(offsetof(format::FileHeader, checksum)),
                     offsetof(format::FileHeader, checksum), "the file header");
    if (header.zero != 0) {
      fail_at(offsetof(format::FileHeader, zero), "zeros");
    }
  }

  /// Reads the header of the next known section; unknown optional ones are skipped.
  const format::SectionHeader& next() {
    KVC_ASSERT(left_ == 0);
    for (;;) {
      at_ = offset_;
      take(writable_bytes_of(header_), "the header of a section");
      require_checksum(header_.checksum, bytes_of(header_).first(offsetof(format::SectionHeader, checksum)),
                       at_ + offsetof(format::SectionHeader, checksum), "the header of a section");
      if ((header_.flags & ~format::SectionHeader::required) != 0) {
        fail_at(at_ + offsetof(format::SectionHeader, flags), "flags that this version knows");
      }
      check_size();
      left_ = header_.size;
      payload_.reset();
      if (is_known(header_.name)) {
        if (header_.flags != format::SectionHeader::required) {
          fail_at(at_ + offsetof(format::SectionHeader, flags),
                  kvc::detail::concat({"section ", to_text(header_.name), " as required"}));
        }
        return header_;
      }
      if (header_.flags == format::SectionHeader::required) {
        fail_at(at_, kvc::detail::concat({"a section that this version knows, or an optional one, found \"",
                                          to_text(header_.name), "\""}));
      }
      skip();
      finish();
    }
  }

  /// Reads the header of the next known section, which must be this one.
  const format::SectionHeader& expect(SectionName name) {
    const format::SectionHeader& header = next();
    if (header.name != name) {
      fail_at(section_offset(), kvc::detail::concat({"section ", to_text(name), ", found ", to_text(header.name)}));
    }
    if (header.index != 0) {
      fail_at(section_offset() + offsetof(format::SectionHeader, index), "index 0");
    }
    return header;
  }

  /// Reads the payload of a small section as records. Memory grows with the bytes that arrive, not with the announced
  /// size.
  template <format::Plain Record>
  [[nodiscard]] std::vector<Record> records(const char* what) {
    if (header_.size % sizeof(Record) != 0) {
      fail_at(size_offset(), kvc::detail::concat({what, " of a multiple of ", std::to_string(sizeof(Record)),
                                                  " bytes, found ", std::to_string(header_.size)}));
    }
    std::vector<Record> all;
    while (left_ > 0) {
      const std::size_t most = std::max(batch_bytes / sizeof(Record), all.size());  // doubling
      const std::size_t count = std::min(most, static_cast<std::size_t>(left_ / sizeof(Record)));
      const std::size_t before = all.size();
      all.resize(before + count);
      add(std::as_writable_bytes(std::span(all).subspan(before)));
      flush();
    }
    finish();
    return all;
  }

  /// Requests the next bytes of the payload. They are in place, and checksummed, at the latest after `flush`.
  void add(io::ByteSpan span) {
    KVC_ASSERT(span.size() <= left_);
    left_ -= span.size();
    batch_.add(span, [this](std::span<const io::ByteSpan> spans) { fill(spans); });
  }
  void flush() {
    batch_.flush([this](std::span<const io::ByteSpan> spans) { fill(spans); });
  }
  /// Discards `bytes` bytes of the payload, but checksums them.
  void skip(std::uint64_t bytes) {
    KVC_ASSERT(bytes <= left_);
    scratch_.resize(batch_bytes);
    while (bytes > 0) {
      const auto part = static_cast<std::size_t>(std::min<std::uint64_t>(bytes, scratch_.size()));
      add(std::span(scratch_).first(part));
      flush();  // the next part overwrites this one
      bytes -= part;
    }
  }
  void skip() { skip(left_); }
  /// Checks the checksum of the payload.
  void finish() {
    KVC_ASSERT(left_ == 0);
    flush();
    const std::uint64_t at = offset_;
    std::uint64_t sum = 0;
    take(writable_bytes_of(sum), "the checksum of a section");
    if (sum != payload_.value()) {
      fail_at(at, kvc::detail::concat(
                      {"section ", to_text(header_.name), " from byte ", std::to_string(at_), " with its checksum"}));
    }
    all_.add(bytes_of(header_.checksum));
    all_.add(bytes_of(sum));
    ++sections_;
  }
  /// Reads the payload of the section `end`, whose header `next` has read, and checks that nothing is missing or left.
  void end() {
    const std::uint64_t sections = sections_;
    const std::uint64_t sum = all_.value();
    const std::uint64_t at = offset_;
    const std::vector<format::EndRecord> record = records<format::EndRecord>("an end");
    if (record.size() != 1) {
      fail_at(size_offset(), "an end of 16 bytes");
    }
    if (record[0].sections != sections || record[0].checksum != sum) {
      fail_at(at, kvc::detail::concat({"the end of these ", std::to_string(sections), " sections, found that of ",
                                       std::to_string(record[0].sections), " others"}));
    }
    if (source_->left().value_or(0) != 0) {
      fail_at(offset_, kvc::detail::concat({"the end, found ", std::to_string(*source_->left()), " bytes more"}));
    }
  }

  /// A position between sections, for `rewind`.
  struct Mark {
    std::uint64_t offset;
    std::uint64_t sections;
    Checksum all;
  };
  [[nodiscard]] Mark mark() const noexcept { return {offset_, sections_, all_}; }
  [[nodiscard]] bool can_rewind() const { return source_->can_rewind(); }
  void rewind(const Mark& mark) {
    source_->rewind(offset_ - mark.offset);
    offset_ = mark.offset;
    sections_ = mark.sections;
    all_ = mark.all;
  }

  [[nodiscard]] std::uint64_t payload_left() const noexcept { return left_; }
  [[nodiscard]] std::uint64_t section_offset() const noexcept { return at_; }  ///< of the header that `next` has read
  [[nodiscard]] std::uint64_t payload_offset() const noexcept { return at_ + sizeof(format::SectionHeader); }
  [[nodiscard]] std::uint64_t size_offset() const noexcept { return at_ + offsetof(format::SectionHeader, size); }

  [[noreturn]] KVC_COLD void fail_at(std::uint64_t offset, const std::string& expected) const {
    throw_error(FormatError(source_->name(), static_cast<Index>(offset), expected));
  }

 private:
  static bool is_known(SectionName name) noexcept {
    constexpr std::array known = {section::description, section::salts,       section::blocks,    section::tokens,
                                  section::sequences,   section::groups,      section::layer_map, section::group_blocks,
                                  section::tables,      section::state_kinds, section::states,    section::layer,
                                  section::state_layer, section::end};
    return std::find(known.begin(), known.end(), name) != known.end();
  }
  void check_size() const {
    constexpr std::uint64_t most = std::uint64_t{1} << 62;  // offsets are signed
    const std::uint64_t room = source_->left().value_or(most);
    if (header_.size > most - std::min(most, offset_) || room < sizeof(std::uint64_t) ||
        header_.size > room - sizeof(std::uint64_t)) {
      fail_at(size_offset(), kvc::detail::concat({"a section of at most ", std::to_string(room < 8 ? 0 : room - 8),
                                                  " bytes, which are left, found ", std::to_string(header_.size)}));
    }
  }
  void require_checksum(std::uint64_t sum, std::span<const std::byte> bytes, std::uint64_t at, const char* what) const {
    if (sum != Checksum::of(bytes)) {
      fail_at(at, kvc::detail::concat({what, " with its checksum"}));
    }
  }
  void take(io::ByteSpan span, const char* what) {
    const std::size_t count = source_->read(std::span<const io::ByteSpan>(&span, 1));
    offset_ += count;
    if (count < span.size()) {
      fail_at(offset_, kvc::detail::concat({what, ", ", std::to_string(span.size()), " bytes, the source ends"}));
    }
  }
  void fill(std::span<const io::ByteSpan> spans) {
    const std::size_t count = source_->read(spans);
    offset_ += count;
    if (count < io::total_bytes(spans)) {
      fail_at(offset_, kvc::detail::concat({"section ", to_text(header_.name), " of ", std::to_string(header_.size),
                                            " bytes, the source ends"}));
    }
    for (const io::ByteSpan span : spans) {
      payload_.add(span);
    }
  }

  io::ByteSource* source_;
  format::SectionHeader header_{};
  Batch<std::byte> batch_;
  std::vector<std::byte> scratch_;
  Checksum payload_;
  Checksum all_;
  std::uint64_t sections_ = 0;
  std::uint64_t offset_ = 0;
  std::uint64_t at_ = 0;
  std::uint64_t left_ = 0;
};

/// The layers of a snapshot, which stand in any order, each once, before the end. Recurrent layers are counted behind
/// those that store rows.
class LayerSections {
 public:
  explicit LayerSections(Index layers, Index recurrent = 0)
      : layers_(static_cast<std::size_t>(layers)), recurrent_(static_cast<std::size_t>(recurrent)) {
    restart();
  }
  void restart() { written_.assign(layers_ + recurrent_, false); }

  /// Reads the header of the next layer, which has bytes_of(layer) bytes, and returns its number; or reads the end, and
  /// returns nothing. Throws FormatError.
  template <class F>
  [[nodiscard]] std::optional<Index> next(SectionReader& in, F&& bytes_of) {
    const format::SectionHeader& header = in.next();
    const std::uint64_t at = in.section_offset();
    if (header.name == section::end) {
      for (std::size_t i = 0; i < written_.size(); ++i) {
        if (!written_[i]) {
          const bool has_rows = i < layers_;
          in.fail_at(at, kvc::detail::concat({"section ", has_rows ? "layr" : "stat", " of layer ",
                                              std::to_string(has_rows ? i : i - layers_), ", found the end"}));
        }
      }
      if (header.index != 0) {
        in.fail_at(at + offsetof(format::SectionHeader, index), "index 0");
      }
      in.end();
      return std::nullopt;
    }
    const bool has_rows = header.name == section::layer;
    if (!has_rows && (header.name != section::state_layer || recurrent_ == 0)) {
      in.fail_at(at, kvc::detail::concat({"section layr or end, found ", to_text(header.name)}));
    }
    const std::size_t first = has_rows ? 0 : layers_;
    const std::size_t count = has_rows ? layers_ : recurrent_;
    if (header.index >= count || written_[first + static_cast<std::size_t>(header.index)]) {
      in.fail_at(at + offsetof(format::SectionHeader, index),
                 kvc::detail::concat({"a layer below ", std::to_string(count), " that has not been read yet, found ",
                                      std::to_string(header.index)}));
    }
    const std::size_t layer = first + static_cast<std::size_t>(header.index);
    if (const std::uint64_t bytes = bytes_of(static_cast<Index>(layer)); header.size != bytes) {
      in.fail_at(in.size_offset(),
                 kvc::detail::concat({std::to_string(bytes), has_rows ? " bytes, the rows" : " bytes, the states",
                                      " of a layer, found ", std::to_string(header.size)}));
    }
    written_[layer] = true;
    return static_cast<Index>(layer);
  }

 private:
  std::size_t layers_;     // that store rows
  std::size_t recurrent_;  // layers
  std::vector<bool> written_;
};

}  // namespace detail
}  // namespace snapshot
}  // namespace v0
}  // namespace kvc
