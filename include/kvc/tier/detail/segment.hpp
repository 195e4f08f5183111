// Segment: one file of a FileStore. It has a header, a table of what it holds, and the records.
//
//   0      SegmentHeader, then zeros up to 4096
//   4096   the table: Entry for each record, in the order in which places were given out; all zero: none yet
//   data   the records, each from a multiple of 4096 on: head and payload (tier/record.hpp); a payload of at least 64
//          KiB begins at a multiple of 4096, too, since the system copies whole pages faster, and where the file system
//          makes holes one of at least 1 MiB at a multiple of up to 256 KiB: see record_offset
//
// A record is written before its entry, and an entry is one write within one page, with a checksum. So whenever the
// writer is killed, the table has the record or does not have it. An entry changes once more, when its record is
// erased. All integers are little-endian. POSIX.
#pragma once

#include <fcntl.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <bit>
#include <cerrno>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <optional>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "kvc/io/byte_spans.hpp"
#include "kvc/io/file.hpp"
#include "kvc/snapshot/checksum.hpp"
#include "kvc/tier/key.hpp"
#include "kvc/tier/record.hpp"
#include "kvc/tier/record_info.hpp"

namespace kvc {
inline namespace v0 {
namespace tier {
namespace detail {

inline constexpr std::uint64_t segment_page = 4096;

/// Bytes from the begin of a record to that of its payload.
[[nodiscard]] constexpr std::uint64_t payload_at(std::uint64_t head_bytes, std::uint64_t payload_bytes) noexcept {
  return payload_bytes < 65536 ? head_bytes : (head_bytes + segment_page - 1) / segment_page * segment_page;
}
/// Bytes of a segment that a record takes.
[[nodiscard]] constexpr std::uint64_t record_extent(std::uint64_t head_bytes, std::uint64_t payload_bytes) noexcept {
  return (payload_at(head_bytes, payload_bytes) + payload_bytes + segment_page - 1) / segment_page * segment_page;
}

/// The first offset from `end` on, a multiple of 4096, for a record of these bytes. With `leaves_gap`, a payload of at
/// least 1 MiB begins at a multiple of 256 KiB, or if it is less than 2 MiB, of 128 KiB: the page cache then keeps it
/// in pieces of that size instead of single pages (large folios of Linux), which are copied faster. The gap is at most
/// an eighth of it: before smaller payloads the system would read ahead into gaps for much of its time.
[[nodiscard]] constexpr std::uint64_t record_offset(std::uint64_t end, std::uint64_t head_bytes,
                                                    std::uint64_t payload_bytes, bool leaves_gap) noexcept {
  if (!leaves_gap || payload_bytes < (1 << 20)) {
    return end;
  }
  const std::uint64_t unit = std::min(std::bit_floor(payload_bytes / 8), std::uint64_t{256} << 10);
  const std::uint64_t before = payload_at(head_bytes, payload_bytes);
  return (end + before + unit - 1) / unit * unit - before;
}

/// The first bytes of a segment.
struct SegmentHeader {
  std::array<char, 8> magic;
  std::uint32_t version;
  std::uint32_t entries;   // of the table
  std::uint64_t sequence;  // grows with the time of creation, as far as the creator knew
  std::uint64_t reserved;
  std::uint64_t checksum;  // of the bytes before it

  static constexpr std::array<char, 8> right_magic{'k', 'v', 'c', 's', 'e', 'g', 'm', 't'};
  static constexpr std::uint32_t right_version = 1;
  static constexpr std::uint32_t max_entries = 1 << 20;
};
static_assert(sizeof(SegmentHeader) == 40);

/// The entry of a record in the table.
struct SegmentEntry {
  BlockKey key, parent;
  std::uint64_t offset;         // in the file, of the record
  std::uint64_t payload_bytes;  // of the payload
  std::uint32_t head_bytes;
  std::uint32_t state;
  std::array<std::uint64_t, 4> reserved;
  std::uint64_t checksum;  // of the bytes before it

  static constexpr std::uint32_t live = 1, dead = 2;
  static constexpr std::size_t most_head_bytes = record_head_bytes(max_record_tokens, max_record_parts);

  [[nodiscard]] std::uint64_t sum() const noexcept {
    return snapshot::detail::Checksum::of(
        std::as_bytes(std::span(this, 1)).first(sizeof(SegmentEntry) - sizeof checksum));
  }
  /// Bytes of the file that the record takes.
  [[nodiscard]] std::uint64_t extent() const noexcept { return record_extent(head_bytes, payload_bytes); }
  /// Whether this is an entry of a file of so many bytes whose records begin at `data_begin`.
  [[nodiscard]] bool is_valid(std::uint64_t file_bytes, std::uint64_t data_begin) const noexcept {
    return (state == live || state == dead) && checksum == sum() && offset % segment_page == 0 &&
           offset >= data_begin && offset <= file_bytes && payload_bytes <= file_bytes - offset &&
           head_bytes <= most_head_bytes &&
           payload_at(head_bytes, payload_bytes) <= file_bytes - offset - payload_bytes;
  }
};
static_assert(sizeof(SegmentEntry) == 128 && segment_page % sizeof(SegmentEntry) == 0);

/// The place of a record.
struct RecordPlace {
  std::uint32_t segment = 0;  // a number that the directory gave the file
  std::uint32_t entry = 0;
  std::uint64_t offset = 0;
  std::uint64_t payload_bytes = 0;
  std::uint32_t head_bytes = 0;
  friend bool operator==(const RecordPlace&, const RecordPlace&) = default;
};

/// An open segment, which this process may write if it holds the lock of the file. Its counters belong to the
/// directory; reads and writes of bytes are safe beside each other. Functions return 0, or the error of the system.
class Segment {
 public:
  Segment(std::string path, io::detail::FileHandle file, const SegmentHeader& header, bool has_lock,
          bool can_write = true)
      : is_own(has_lock), can_write_(can_write), path_(std::move(path)), file_(std::move(file)), header_(header) {
    data_end = data_begin();
  }

  // Counters and marks of the directory, under its lock.
  bool is_own;                       // this process holds the lock
  bool is_sealed = true;             // takes no more records
  std::uint32_t next_entry = 0;      // of a segment that takes records
  std::uint32_t writers = 0;         // records on their way into it
  bool makes_holes = false;          // bytes that nobody writes take no room; of a segment that takes records
  std::uint64_t data_end = 0;        // of its records; the next one goes behind it
  std::uint64_t taken_bytes = 0;     // extents of the records that it was given
  std::uint64_t live_bytes = 0;      // extents of its live records
  std::uint64_t physical_bytes = 0;  // that it counts for
  std::uint32_t live_records = 0;

  [[nodiscard]] const std::string& path() const noexcept { return path_; }
  [[nodiscard]] int fd() const noexcept { return file_.get(); }
  /// From now on, bytes go around the page cache where their place in memory and in the file allows it. Whether the
  /// file system does that.
  bool go_direct() {
#if defined(O_DIRECT)
    direct_ = io::detail::FileHandle(io::detail::without_interrupts(
        [&] { return ::open(path_.c_str(), (can_write_ ? O_RDWR : O_RDONLY) | O_DIRECT | O_CLOEXEC | O_NOFOLLOW); }));
#endif
    return static_cast<bool>(direct_);
  }
  /// The descriptor to read these bytes from, or to write them to.
  [[nodiscard]] int fd_for(std::uint64_t offset, std::span<const iovec> list) const noexcept {
    const auto fits = [](std::uint64_t number) { return number % segment_page == 0; };
    const bool is_direct = direct_ && fits(offset) && std::all_of(list.begin(), list.end(), [&](const iovec& each) {
                             return fits(each.iov_len) && fits(reinterpret_cast<std::uintptr_t>(each.iov_base));
                           });
    return is_direct ? direct_.get() : file_.get();
  }
  [[nodiscard]] std::uint32_t entries() const noexcept { return header_.entries; }
  [[nodiscard]] std::uint64_t sequence() const noexcept { return header_.sequence; }
  [[nodiscard]] std::uint64_t data_begin() const noexcept { return data_begin(header_.entries); }
  [[nodiscard]] static std::uint64_t data_begin(std::uint32_t entries) noexcept {
    const std::uint64_t bytes = segment_page + std::uint64_t{entries} * sizeof(SegmentEntry);
    return (bytes + segment_page - 1) / segment_page * segment_page;
  }

  /// Makes a segment under a name that nobody else has, and locks it. The file gets its name when it is whole.
  /// Returns nothing with the error of the system in `error`.
  [[nodiscard]] static std::optional<Segment> create(const std::string& path, std::uint32_t entries,
                                                     std::uint64_t sequence, int& error) {
    const std::string making = path + ".new";
    io::detail::FileHandle file(io::detail::without_interrupts(
        [&] { return ::open(making.c_str(), O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0666); }));
    SegmentHeader header{SegmentHeader::right_magic, SegmentHeader::right_version, entries, sequence, 0, 0};
    header.checksum = snapshot::detail::Checksum::of(std::as_bytes(std::span(&header, 1)).first(32));
    const io::ConstByteSpan bytes = std::as_bytes(std::span(&header, 1));
    error = !file                                                                   ? errno
            : ::flock(file.get(), LOCK_EX | LOCK_NB) != 0                           ? errno
            : ::ftruncate(file.get(), static_cast<off_t>(data_begin(entries))) != 0 ? errno
                                                                                    : 0;
    if (error == 0) {
      Segment made(path, std::move(file), header, true);
      error = made.write_at(0, std::span(&bytes, 1));
      if (error == 0 && ::rename(making.c_str(), path.c_str()) != 0) {
        error = errno;
      }
      if (error == 0) {
        made.is_sealed = false;
        made.makes_holes = made.punch(made.data_begin(), segment_page) == 0;
        return made;
      }
    }
    (void)::unlink(making.c_str());
    return std::nullopt;
  }

  /// Opens a segment; locks it if `may_own` and nobody else has. Nothing: no segment, or one that cannot be opened.
  [[nodiscard]] static std::optional<Segment> open(const std::string& path, bool may_own) {
    io::detail::FileHandle file(io::detail::without_interrupts(
        [&] { return ::open(path.c_str(), (may_own ? O_RDWR : O_RDONLY) | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK); }));
    if (!file && may_own) {
      return open(path, false);
    }
    struct stat status{};
    SegmentHeader header{};
    if (!file || ::fstat(file.get(), &status) != 0 || !S_ISREG(status.st_mode)) {
      return std::nullopt;
    }
    const bool has_lock = may_own && ::flock(file.get(), LOCK_EX | LOCK_NB) == 0;
    Segment opened(path, std::move(file), header, has_lock, may_own);
    const io::ByteSpan bytes = std::as_writable_bytes(std::span(&header, 1));
    std::size_t done = 0;
    if (opened.read_at(0, std::span(&bytes, 1), done) != 0 || done != sizeof header ||
        header.magic != SegmentHeader::right_magic || header.version != SegmentHeader::right_version ||
        header.entries == 0 || header.entries > SegmentHeader::max_entries ||
        header.checksum != snapshot::detail::Checksum::of(io::ConstByteSpan(bytes).first(32))) {
      return std::nullopt;
    }
    opened.header_ = header;
    opened.data_end = std::max<std::uint64_t>(opened.data_begin(), static_cast<std::uint64_t>(status.st_size));
    return opened;
  }

  /// Takes the lock of a segment that was opened without it, if nobody has it any more.
  [[nodiscard]] bool try_own() {
    is_own = is_own || (can_write_ && ::flock(file_.get(), LOCK_EX | LOCK_NB) == 0);
    return is_own;
  }

  /// Bytes that the file takes on the disk.
  [[nodiscard]] std::uint64_t allocated() const noexcept {
    struct stat status{};
    return ::fstat(file_.get(), &status) != 0 ? 0 : static_cast<std::uint64_t>(status.st_blocks) * 512;
  }
  [[nodiscard]] std::uint64_t size() const noexcept {
    struct stat status{};
    return ::fstat(file_.get(), &status) != 0 ? 0 : static_cast<std::uint64_t>(status.st_size);
  }

  /// Reads the spans from `offset` on; `done`: bytes read, fewer at the end of the file.
  [[nodiscard]] int read_at(std::uint64_t offset, std::span<const io::ByteSpan> spans, std::size_t& done) const {
    const std::int64_t moved = io::detail::move_bytes(spans, [&](const iovec* list, int count) {
      const ssize_t result =
          at_once(offset, list, count, [&](int fd) { return ::preadv(fd, list, count, static_cast<off_t>(offset)); });
      offset += result > 0 ? static_cast<std::uint64_t>(result) : 0;
      return result;
    });
    done = moved < 0 ? 0 : static_cast<std::size_t>(moved);
    return moved < 0 ? errno : 0;
  }
  /// Writes the spans from `offset` on.
  [[nodiscard]] int write_at(std::uint64_t offset, std::span<const io::ConstByteSpan> spans) const {
    const std::int64_t moved = io::detail::move_bytes(spans, [&](const iovec* list, int count) {
      const ssize_t result =
          at_once(offset, list, count, [&](int fd) { return ::pwritev(fd, list, count, static_cast<off_t>(offset)); });
      offset += result > 0 ? static_cast<std::uint64_t>(result) : 0;
      return result;
    });
    return moved < 0 ? errno : moved != static_cast<std::int64_t>(io::total_bytes(spans)) ? ENOSPC : 0;
  }

  /// Entries of the table that lie in the file: a header alone may announce any number.
  [[nodiscard]] std::size_t entries_there() const noexcept {
    const std::uint64_t bytes = size();
    return bytes < segment_page ? 0
                                : static_cast<std::size_t>(std::min<std::uint64_t>(
                                      header_.entries, (bytes - segment_page) / sizeof(SegmentEntry)));
  }
  /// Reads the whole table.
  [[nodiscard]] int read_table(std::vector<SegmentEntry>& table) const {
    table.resize(entries_there());
    const io::ByteSpan bytes = std::as_writable_bytes(std::span(table));
    std::size_t done = 0;
    const int error = read_at(segment_page, std::span(&bytes, 1), done);
    table.resize(done / sizeof(SegmentEntry));
    return error;
  }
  [[nodiscard]] int read_entry(std::uint32_t number, SegmentEntry& entry) const {
    const io::ByteSpan bytes = std::as_writable_bytes(std::span(&entry, 1));
    std::size_t done = 0;
    const int error = read_at(segment_page + std::uint64_t{number} * sizeof entry, std::span(&bytes, 1), done);
    return error != 0 ? error : done == sizeof entry ? 0 : EIO;
  }
  [[nodiscard]] int write_entry(std::uint32_t number, SegmentEntry entry) const {
    entry.checksum = entry.sum();
    const io::ConstByteSpan bytes = std::as_bytes(std::span(&entry, 1));
    return write_at(segment_page + std::uint64_t{number} * sizeof entry, std::span(&bytes, 1));
  }
  /// Gives the bytes of an extent back to the file system; they read as zeros.
  [[nodiscard]] int punch([[maybe_unused]] std::uint64_t offset, [[maybe_unused]] std::uint64_t bytes) const {
#if defined(FALLOC_FL_PUNCH_HOLE)
    return ::fallocate(file_.get(), FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, static_cast<off_t>(offset),
                       static_cast<off_t>(bytes)) == 0
               ? 0
               : errno;
#else
    return EOPNOTSUPP;
#endif
  }
  [[nodiscard]] int sync() const { return ::fdatasync(file_.get()) == 0 ? 0 : errno; }

 private:
  /// call(fd), through the page cache if the file system does not take it otherwise.
  template <class F>
  [[nodiscard]] ssize_t at_once(std::uint64_t offset, const iovec* list, int count, F&& call) const {
    const int fd = fd_for(offset, {list, static_cast<std::size_t>(count)});
    const ssize_t result = call(fd);
    return result < 0 && errno == EINVAL && fd != file_.get() ? call(file_.get()) : result;
  }

  bool can_write_;
  std::string path_;
  io::detail::FileHandle file_, direct_;
  SegmentHeader header_;
};

}  // namespace detail
}  // namespace tier
}  // namespace v0
}  // namespace kvc
