// RecordInfo: what a record says of a block besides its bytes, and Refusal: why a record is not what was asked for.
// Standard library only.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <span>
#include <string_view>

#include "kvc/core/error.hpp"
#include "kvc/core/types.hpp"
#include "kvc/tier/key.hpp"

namespace kvc {
inline namespace v0 {
namespace tier {

/// A block as stores know it. All of it stands in the record and is compared when the record is read. KeyChain makes
/// these. Owns nothing: `tokens` refers to the caller's; stores copy them.
struct RecordInfo {
  BlockKey key;                   ///< of the block
  BlockKey parent;                ///< of the block before it; the root of its chain if it is the first
  Digest format;                  ///< which bytes the payload consists of: a hash of model and fingerprint
  Digest salt;                    ///< hash of Salt::bytes()
  std::int32_t group = 0;         ///< layer group whose rows it holds
  std::uint32_t parts = 1;        ///< parts of equal size that can be read one by one: layers, for example
  std::span<const Token> tokens;  ///< its own tokens
};

inline constexpr std::size_t max_record_tokens = std::size_t{1} << 20;
inline constexpr std::size_t max_record_parts = std::size_t{1} << 16;

/// Throws std::invalid_argument unless a record can be made of this block with a payload of so many bytes: at least one
/// part, at most 65,536, of equal size; at most 2^20 tokens.
inline void require_recordable(const RecordInfo& block, std::uint64_t payload_bytes) {
  require(block.parts >= 1 && block.parts <= max_record_parts, "parts", block.parts, "between 1 and 65536");
  require(block.tokens.size() <= max_record_tokens, "tokens", block.tokens.size(), "at most 1048576");
  require(payload_bytes % block.parts == 0, "bytes", payload_bytes, "a multiple of the number of parts");
}

/// A range of the parts of a payload. The default is all.
struct PartRange {
  std::uint32_t first = 0;
  std::uint32_t count = std::numeric_limits<std::uint32_t>::max();

  /// The range, cut to what a record of so many parts has.
  [[nodiscard]] constexpr PartRange within(std::uint32_t parts) const noexcept {
    const std::uint32_t begin = std::min(first, parts);
    return {begin, std::min(count, parts - begin)};
  }
  friend constexpr bool operator==(PartRange, PartRange) = default;
};

/// Why a record was refused, in the order in which it is checked.
enum class Refusal : std::uint8_t {
  none,              ///< it was not
  truncated,         ///< it ends too early
  no_record,         ///< its first bytes are not those of a record
  version,           ///< of another version of the format
  head_checksum,     ///< its head is damaged
  format,            ///< of another model, element type, layout or block size
  salt,              ///< of another salt
  group,             ///< of another layer group
  parent,            ///< another prefix goes before it
  tokens,            ///< of other tokens
  key,               ///< stored under the key of another block
  size,              ///< another number of bytes or parts
  payload_checksum,  ///< its bytes are damaged
};

/// Whether a record of `stored`, with so many bytes of payload, is a record of exactly `wanted` with so many:
/// Refusal::none, or the first difference. O(tokens).
[[nodiscard]] inline Refusal compare(const RecordInfo& stored, std::uint64_t stored_bytes, const RecordInfo& wanted,
                                     std::uint64_t wanted_bytes) noexcept {
  if (stored.format != wanted.format) {
    return Refusal::format;
  }
  if (stored.salt != wanted.salt) {
    return Refusal::salt;
  }
  if (stored.group != wanted.group) {
    return Refusal::group;
  }
  if (stored.parent != wanted.parent) {
    return Refusal::parent;
  }
  if (!std::equal(stored.tokens.begin(), stored.tokens.end(), wanted.tokens.begin(), wanted.tokens.end())) {
    return Refusal::tokens;
  }
  if (stored.key != wanted.key) {
    return Refusal::key;
  }
  if (stored_bytes != wanted_bytes || stored.parts != wanted.parts) {
    return Refusal::size;
  }
  return Refusal::none;
}

/// The refusal in words that go behind "refused: ".
[[nodiscard]] constexpr std::string_view to_text(Refusal refusal) noexcept {
  switch (refusal) {
    case Refusal::none:
      return "not refused";
    case Refusal::truncated:
      return "the record is truncated";
    case Refusal::no_record:
      return "the bytes are no record";
    case Refusal::version:
      return "the record has another version";
    case Refusal::head_checksum:
      return "the head of the record is damaged";
    case Refusal::format:
      return "the block has another format";
    case Refusal::salt:
      return "the block has another salt";
    case Refusal::group:
      return "the block belongs to another layer group";
    case Refusal::parent:
      return "the block has another parent";
    case Refusal::tokens:
      return "the block has other tokens";
    case Refusal::key:
      return "the record belongs to another key";
    case Refusal::size:
      return "the block has another number of bytes or parts";
    case Refusal::payload_checksum:
      return "the bytes of the block are damaged";
  }
  return "unknown";
}

}  // namespace tier
}  // namespace v0
}  // namespace kvc
