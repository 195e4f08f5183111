// Records: what a store keeps under the key of a block. A record is a head and a payload:
//
//   head      fixed part (FixedHead), the tokens of the block, a checksum of each part of the payload, one of the head
//   payload   the bytes of the block, in parts of equal size, a layer each for example
//
// Whoever reads a record compares all that the head says with what is expected, and the payload with its checksums. A
// record that does not pass is refused, for a reason that has a name; to its reader it is a miss. Checksums are XXH3
// with 64 bits, and all integers are little-endian. Needs xxHash, as snapshots do.
#pragma once

#include <algorithm>
#include <array>
#include <bit>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <span>
#include <utility>
#include <vector>

#include "kvc/core/error.hpp"
#include "kvc/core/types.hpp"
#include "kvc/io/byte_spans.hpp"
#include "kvc/snapshot/checksum.hpp"
#include "kvc/tier/key.hpp"
#include "kvc/tier/record_info.hpp"

namespace kvc {
inline namespace v0 {
namespace tier {

static_assert(std::endian::native == std::endian::little, "records are little-endian and are read in place");

namespace detail {

/// The first bytes of every record, in the order of the file.
struct FixedHead {
  std::array<char, 8> magic;
  std::uint32_t version;
  std::uint32_t head_bytes;  // of the whole head
  Digest key, parent, format, salt;
  std::uint64_t payload_bytes;
  std::int32_t group;
  std::uint32_t parts;
  std::uint32_t tokens;
  std::uint32_t reserved;  // 0
};
static_assert(sizeof(FixedHead) == 168);

inline constexpr std::array<char, 8> record_magic{'k', 'v', 'c', 'b', 'l', 'o', 'c', 'k'};
inline constexpr std::uint32_t record_version = 1;

/// The checksums of the parts of a payload whose bytes come one span after the other. `each(sum)` is called at the end
/// of each part.
template <class F>
class PartSums {
 public:
  PartSums(std::uint64_t part_bytes, F each) : part_bytes_(part_bytes), left_(part_bytes), each_(std::move(each)) {}

  void add(io::ConstByteSpan bytes) {
    while (!bytes.empty() && part_bytes_ > 0) {
      if (left_ == part_bytes_ && bytes.size() >= part_bytes_) {  // a whole part in one span
        each_(snapshot::detail::Checksum::of(bytes.first(static_cast<std::size_t>(part_bytes_))));
        bytes = bytes.subspan(static_cast<std::size_t>(part_bytes_));
        continue;
      }
      const auto count = static_cast<std::size_t>(std::min<std::uint64_t>(left_, bytes.size()));
      sum_.add(bytes.first(count));
      bytes = bytes.subspan(count);
      left_ -= count;
      if (left_ == 0) {
        each_(sum_.value());
        sum_.reset();
        left_ = part_bytes_;
      }
    }
  }

 private:
  std::uint64_t part_bytes_, left_;
  F each_;
  snapshot::detail::Checksum sum_;
};

}  // namespace detail

/// Bytes of the head of a record. O(1).
[[nodiscard]] constexpr std::size_t record_head_bytes(std::size_t tokens, std::size_t parts) noexcept {
  return sizeof(detail::FixedHead) + tokens * sizeof(Token) + (parts + 1) * sizeof(std::uint64_t);
}
/// Bytes of the head of a record of this block. O(1).
[[nodiscard]] constexpr std::size_t record_head_bytes(const RecordInfo& block) noexcept {
  return record_head_bytes(block.tokens.size(), block.parts);
}

/// Writes the head of the record of `block`, with a payload of so many bytes whose parts have these checksums, to
/// `head`, of record_head_bytes(block) bytes. Throws as require_recordable, before anything is written. O(tokens +
/// parts).
inline void write_record_head(const RecordInfo& block, std::uint64_t payload_bytes, std::span<const std::uint64_t> sums,
                              io::ByteSpan head) {
  require_recordable(block, payload_bytes);
  require(sums.size() == block.parts, "sums", sums.size(), "one for each part");
  require(head.size() == record_head_bytes(block), "head", head.size(), "record_head_bytes(block) bytes");
  const detail::FixedHead fixed{detail::record_magic,
                                detail::record_version,
                                static_cast<std::uint32_t>(head.size()),
                                block.key,
                                block.parent,
                                block.format,
                                block.salt,
                                payload_bytes,
                                block.group,
                                block.parts,
                                static_cast<std::uint32_t>(block.tokens.size()),
                                0};
  std::byte* to = head.data();
  const auto put = [&to](const void* from, std::size_t count) {
    if (count > 0) {
      std::memcpy(to, from, count);
      to += count;
    }
  };
  put(&fixed, sizeof fixed);
  put(block.tokens.data(), block.tokens.size_bytes());
  put(sums.data(), sums.size_bytes());
  const std::uint64_t sum = snapshot::detail::Checksum::of(head.first(head.size() - sizeof(std::uint64_t)));
  put(&sum, sizeof sum);
}

/// The same, with the checksums of these bytes. O(payload).
inline void write_record_head(const RecordInfo& block, std::span<const io::ConstByteSpan> payload, io::ByteSpan head) {
  const std::uint64_t bytes = io::total_bytes(payload);
  require_recordable(block, bytes);
  std::vector<std::uint64_t> sums;
  sums.reserve(block.parts);
  detail::PartSums parts(bytes / block.parts, [&](std::uint64_t sum) { sums.push_back(sum); });
  for (const io::ConstByteSpan span : payload) {
    parts.add(span);
  }
  sums.resize(block.parts, snapshot::detail::Checksum::of({}));  // parts of no bytes
  write_record_head(block, bytes, sums, head);
}

namespace detail {
/// Compares checksums with those of a head whose numbers of tokens and parts are those of the block, from a part on.
class ExpectedSums {
 public:
  ExpectedSums(io::ConstByteSpan head, const RecordInfo& block, std::uint32_t first) noexcept
      : next_(head.data() + sizeof(FixedHead) + block.tokens.size_bytes() + sizeof(std::uint64_t) * first) {}
  void operator()(std::uint64_t sum) noexcept {
    std::uint64_t wanted = 0;
    std::memcpy(&wanted, next_, sizeof wanted);
    next_ += sizeof wanted;
    are_equal = are_equal && sum == wanted;
  }
  bool are_equal = true;

 private:
  const std::byte* next_;
};
}  // namespace detail

/// Whether `head`, bytes from a store, is the whole head of a record of exactly this block with `payload_bytes` bytes
/// of payload: Refusal::none, or the first reason why not, in the order of the enumeration. Trusts no byte of it. Where
/// there is no payload, its checksums are compared here: no reader has bytes of it to compare. O(tokens + parts).
[[nodiscard]] inline Refusal check_record_head(io::ConstByteSpan head, const RecordInfo& block,
                                               std::uint64_t payload_bytes) noexcept {
  detail::FixedHead fixed{};
  if (head.size() < sizeof fixed) {
    return Refusal::truncated;
  }
  std::memcpy(&fixed, head.data(), sizeof fixed);
  if (fixed.magic != detail::record_magic) {
    return Refusal::no_record;
  }
  if (fixed.version != detail::record_version) {
    return Refusal::version;
  }
  if (fixed.tokens > max_record_tokens || fixed.parts > max_record_parts || fixed.parts == 0 ||
      fixed.head_bytes != record_head_bytes(fixed.tokens, fixed.parts)) {
    return Refusal::head_checksum;
  }
  if (head.size() < fixed.head_bytes) {
    return Refusal::truncated;
  }
  const std::size_t summed = fixed.head_bytes - sizeof(std::uint64_t);
  std::uint64_t sum = 0;
  std::memcpy(&sum, head.data() + summed, sizeof sum);
  if (sum != snapshot::detail::Checksum::of(head.first(summed))) {
    return Refusal::head_checksum;
  }
  if (fixed.reserved != 0) {  // of a later version that gave it a meaning
    return Refusal::version;
  }
  // The tokens lie at any address: they are compared as bytes, the rest as members.
  const bool equal_tokens = fixed.tokens == block.tokens.size() &&
                            (fixed.tokens == 0 || std::memcmp(head.data() + sizeof fixed, block.tokens.data(),
                                                              block.tokens.size_bytes()) == 0);
  const RecordInfo stored{fixed.key,
                          fixed.parent,
                          fixed.format,
                          fixed.salt,
                          fixed.group,
                          fixed.parts,
                          equal_tokens ? block.tokens : std::span<const Token>()};
  if (!equal_tokens) {
    const Refusal before_tokens = compare(stored, fixed.payload_bytes, block, payload_bytes);
    return before_tokens < Refusal::tokens && before_tokens != Refusal::none ? before_tokens : Refusal::tokens;
  }
  const Refusal refusal = compare(stored, fixed.payload_bytes, block, payload_bytes);
  if (refusal == Refusal::none && payload_bytes == 0) {
    detail::ExpectedSums expected(head, block, 0);
    for (std::uint32_t part = 0; part < block.parts; ++part) {
      expected(snapshot::detail::Checksum::of({}));
    }
    return expected.are_equal ? Refusal::none : Refusal::payload_checksum;
  }
  return refusal;
}

/// Whether the bytes of `parts` of the payload, which lie in `spans`, have the checksums of the head, which has passed
/// check_record_head: Refusal::none or Refusal::payload_checksum. O(bytes).
template <class Span>
[[nodiscard]] Refusal check_record_payload(io::ConstByteSpan head, const RecordInfo& block, PartRange parts,
                                           std::span<const Span> spans) noexcept {
  parts = parts.within(block.parts);
  detail::ExpectedSums expected(head, block, parts.first);
  detail::PartSums sums(parts.count == 0 ? 0 : io::total_bytes(spans) / parts.count,
                        [&](std::uint64_t sum) { expected(sum); });
  for (const Span& span : spans) {
    sums.add(span);
  }
  return expected.are_equal ? Refusal::none : Refusal::payload_checksum;
}

}  // namespace tier
}  // namespace v0
}  // namespace kvc
