// RecordIo: reads and writes the records of a FileStore, and their checksums. POSIX; needs xxHash.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "kvc/core/scope_guard.hpp"
#include "kvc/io/byte_spans.hpp"
#include "kvc/tier/detail/file_requests.hpp"
#include "kvc/tier/detail/operation_queue.hpp"
#include "kvc/tier/detail/segment.hpp"
#include "kvc/tier/detail/segment_directory.hpp"
#include "kvc/tier/record.hpp"
#include "kvc/tier/record_info.hpp"

namespace kvc {
inline namespace v0 {
namespace tier {
namespace detail {

/// Memory that begins at a page, as direct requests want it. Its contents are lost when it grows.
class PageBuffer {
 public:
  [[nodiscard]] io::ByteSpan of(std::size_t bytes) {
    if (bytes + segment_page > memory_.size()) {
      memory_.resize(bytes + segment_page);
    }
    const std::size_t past = reinterpret_cast<std::uintptr_t>(memory_.data()) % segment_page;
    return io::ByteSpan(memory_).subspan(past == 0 ? 0 : segment_page - past, bytes);
  }

 private:
  std::vector<std::byte> memory_;
};

/// For one thread at a time. A payload is moved by requests of request_bytes, of which `depth` may be under way, so
/// that checksums are computed of bytes that are still in the processor's cache, and while others are on their way.
///
/// A read through the page cache, one request at a time, takes cached_bytes: the pages and the copy of them then fit
/// into a second-level cache of 512 KiB together.
class RecordIo {
 public:
  static constexpr std::uint64_t request_bytes = 256 << 10, cached_bytes = 128 << 10;

  RecordIo(unsigned depth, bool direct)
      : requests_(depth), read_bytes_(requests_.depth() == 1 && !direct ? cached_bytes : request_bytes) {}

  [[nodiscard]] const FileRequests& requests() const noexcept { return requests_; }

  /// Reads the parts of a record to the memory of the operation. Returns why the record is refused, or sets `error` to
  /// that of the system.
  Refusal read(const SegmentDirectory::Found& found, const Operation& operation, int& error) {
    const RecordPlace& at = found.place;
    if (at.payload_bytes != operation.payload) {
      const io::ConstByteSpan head = read_head(found, error);
      return error != 0 ? Refusal::none : check_record_head(head, operation.block, operation.payload);
    }
    const auto before = static_cast<std::size_t>(payload_at(at.head_bytes, at.payload_bytes));
    const io::ByteSpan head = head_.of(before);
    const std::uint64_t part_bytes = operation.payload / operation.block.parts;
    io::SpanCursor<io::ByteSpan> cursor(operation.to);
    const kvc::detail::ScopeGuard wait([this] { (void)requests_.end_all(); });  // memory is the caller's again
    // The head, with the first bytes of the payload if these are wanted.
    std::span<const io::ByteSpan> next = cursor.next(operation.parts.first == 0 ? read_bytes_ : 0);
    first_.assign(1, head);
    first_.insert(first_.end(), next.begin(), next.end());
    requests_.read(*found.segment, at.offset, first_);
    std::uint64_t offset = at.offset + before + part_bytes * operation.parts.first + io::total_bytes(next);
    const auto send = [&] {
      while (!requests_.is_full() && !(next = cursor.next(read_bytes_)).empty()) {
        requests_.read(*found.segment, offset, next);
        offset += io::total_bytes(next);
      }
    };
    send();
    FileRequests::End end = requests_.end_first();
    error = end.error;
    if (error != 0) {
      return Refusal::none;
    }
    const Refusal refusal =
        check_record_head(io::ConstByteSpan(head).first(std::min<std::size_t>(end.bytes, at.head_bytes)),
                          operation.block, operation.payload);
    if (refusal != Refusal::none) {
      return refusal;
    }
    if (end.bytes != io::total_bytes(end.to)) {
      return Refusal::truncated;
    }
    ExpectedSums expected(head, operation.block, operation.parts.first);
    PartSums sums(part_bytes, [&](std::uint64_t sum) { expected(sum); });
    end.to = end.to.subspan(1);  // without the head
    for (;;) {
      for (const io::ByteSpan span : end.to) {
        sums.add(span);
      }
      send();
      if (requests_.is_empty()) {
        return expected.are_equal ? Refusal::none : Refusal::payload_checksum;
      }
      end = requests_.end_first();
      error = end.error;
      if (error != 0 || end.bytes != io::total_bytes(end.to)) {
        return Refusal::truncated;
      }
    }
  }

  /// Whether the record of a place is of this block.
  [[nodiscard]] bool is_of(const SegmentDirectory::Found& found, const Operation& operation) {
    int error = 0;
    const io::ConstByteSpan head = read_head(found, error);
    return error == 0 && check_record_head(head, operation.block, operation.payload) == Refusal::none;
  }

  /// Writes the record of an operation to a place. The head, which has the checksums, is written with the payload if
  /// that is one request. An error of the system, or 0.
  [[nodiscard]] int write(const SegmentDirectory::Found& place, const Operation& operation) {
    const RecordInfo& block = operation.block;
    const std::size_t head_bytes = record_head_bytes(block);
    const auto before = static_cast<std::size_t>(payload_at(head_bytes, operation.payload));
    const io::ByteSpan head = head_.of(before);
    std::vector<std::uint64_t> part_sums;
    part_sums.reserve(block.parts);
    PartSums sums(operation.payload / block.parts, [&](std::uint64_t sum) { part_sums.push_back(sum); });
    io::SpanCursor<io::ConstByteSpan> cursor(operation.from);
    std::uint64_t offset = place.place.offset + before;
    std::vector<io::ConstByteSpan> with_head{head};
    const kvc::detail::ScopeGuard wait([this] { (void)requests_.end_all(); });
    int error = 0;
    for (auto next = cursor.next(request_bytes); !next.empty() && error == 0; next = cursor.next(request_bytes)) {
      for (const io::ConstByteSpan span : next) {
        sums.add(span);
      }
      if (operation.payload <= request_bytes) {
        with_head.insert(with_head.end(), next.begin(), next.end());
      } else {
        if (requests_.is_full()) {
          error = requests_.end_first().error;
        }
        requests_.write(*place.segment, offset, next);
      }
      offset += io::total_bytes(next);
    }
    const int others = requests_.end_all();
    error = error != 0 ? error : others;
    if (error != 0) {
      return error;
    }
    part_sums.resize(block.parts, snapshot::detail::Checksum::of({}));  // parts of no bytes
    write_record_head(block, operation.payload, part_sums, head.first(head_bytes));
    std::fill(head.begin() + static_cast<std::ptrdiff_t>(head_bytes), head.end(), std::byte{});
    return place.segment->write_at(place.place.offset, with_head);
  }

 private:
  /// The bytes of a head that are there.
  [[nodiscard]] io::ConstByteSpan read_head(const SegmentDirectory::Found& found, int& error) {
    const io::ByteSpan head = head_.of(found.place.head_bytes);
    std::size_t done = 0;
    error = found.segment->read_at(found.place.offset, std::span(&head, 1), done);
    return head.first(error == 0 ? done : 0);
  }

  FileRequests requests_;
  std::uint64_t read_bytes_;
  PageBuffer head_;
  std::vector<io::ByteSpan> first_;  // of a read: where the head and the first bytes of the payload go
};

}  // namespace detail
}  // namespace tier
}  // namespace v0
}  // namespace kvc
