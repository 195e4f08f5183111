// Records from outside: bytes of a head and a payload are either exactly what was asked for, or refused; and a head
// whose checksum is right, but that is of something else, is refused for that.
#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <span>
#include <vector>

#include "kvc/tier/record.hpp"

namespace {
using namespace kvc;
using namespace kvc::tier;

void expect(bool ok, const char* what) {
  if (!ok) {
    std::fprintf(stderr, "broken: %s\n", what);
    std::abort();
  }
}
}  // namespace

/// The first byte: bit 0: the checksum of the head is made right; bits 1 and 2: parts, less one; the rest: tokens. Then
/// come the bytes of a record; its head is as long as it says, and the rest is payload.
extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  if (size == 0) {
    return 0;
  }
  const std::vector<Token> tokens(data[0] >> 3, 7);
  RecordInfo block;
  block.key.bytes.fill(std::byte{1});
  block.parent.bytes.fill(std::byte{2});
  block.format.bytes.fill(std::byte{3});
  block.salt.bytes.fill(std::byte{4});
  block.parts = 1U + (data[0] >> 1 & 3U);
  block.tokens = tokens;
  std::vector<std::byte> bytes(size - 1);
  if (!bytes.empty()) {
    std::memcpy(bytes.data(), data + 1, bytes.size());
  }
  const std::size_t head_bytes = std::min(bytes.size(), record_head_bytes(block));
  const std::span<std::byte> head = std::span(bytes).first(head_bytes);
  const io::ConstByteSpan payload = std::span(bytes).subspan(head_bytes);
  if ((data[0] & 1) != 0 && head.size() == record_head_bytes(block)) {
    const std::uint64_t sum = snapshot::detail::Checksum::of(head.first(head.size() - 8));
    std::memcpy(head.data() + head.size() - 8, &sum, 8);
  }
  const Refusal refusal = check_record_head(head, block, payload.size());
  expect(to_text(refusal) != "unknown", "a refusal has a name");
  const Refusal of_payload =
      refusal == Refusal::none && payload.size() % block.parts == 0
          ? check_record_payload(head, block, {}, std::span<const io::ConstByteSpan>(&payload, 1))
          : refusal;
  if (payload.size() % block.parts != 0) {
    return 0;  // no read asks for so many
  }
  // The record that would have been written.
  std::vector<std::byte> right(record_head_bytes(block));
  write_record_head(block, std::span<const io::ConstByteSpan>(&payload, 1), right);
  const bool is_right = head.size() == right.size() && std::memcmp(head.data(), right.data(), right.size()) == 0;
  expect(of_payload != Refusal::none || is_right, "only the right record passes");
  expect(!is_right || of_payload == Refusal::none, "the right record passes");
  // Read in parts.
  for (std::uint32_t part = 0; refusal == Refusal::none && part < block.parts; ++part) {
    const std::size_t part_bytes = payload.size() / block.parts;
    const io::ConstByteSpan span = payload.subspan(part * part_bytes, part_bytes);
    const Refusal alone = check_record_payload(head, block, {part, 1}, std::span<const io::ConstByteSpan>(&span, 1));
    expect(of_payload != Refusal::none || alone == Refusal::none, "a part of a right record passes");
  }
  return 0;
}
