// The wire format of keys and values, as structs: what docs/format.md says byte by byte. Standard library only.
//
//   file header, then sections: desc, salt, blks, tokn, seqs, one layr per layer in any order, end
//   section:  SectionHeader | payload | XXH3 of the payload (8 bytes)
//
// All integers are little-endian, and rows are stored as they lie in a pool of a little-endian machine.
#pragma once

#include <array>
#include <bit>
#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>
#include <type_traits>

#include "kvc/core/types.hpp"

namespace kvc {
inline namespace v0 {
namespace snapshot {

static_assert(std::endian::native == std::endian::little, "snapshots are little-endian and are read as they lie");

/// The name of a section: four characters, in the order in which they are in the file.
enum class SectionName : std::uint32_t {};
[[nodiscard]] constexpr SectionName section_name(const char (&text)[5]) noexcept {
  std::uint32_t name = 0;
  for (std::uint32_t i = 0; i < 4; ++i) {
    name |= std::uint32_t{static_cast<unsigned char>(text[i])} << 8 * i;
  }
  return SectionName{name};
}
/// Its four characters; a dot for one that cannot be printed.
[[nodiscard]] inline std::string to_text(SectionName name) {
  std::string text;
  for (std::uint32_t i = 0; i < 4; ++i) {
    const auto c = static_cast<char>(static_cast<std::uint32_t>(name) >> 8 * i & 0xff);
    text.push_back(' ' <= c && c <= '~' ? c : '.');
  }
  return text;
}

namespace section {
inline constexpr SectionName description = section_name("desc");
inline constexpr SectionName salts = section_name("salt");
inline constexpr SectionName blocks = section_name("blks");
inline constexpr SectionName tokens = section_name("tokn");
inline constexpr SectionName sequences = section_name("seqs");
inline constexpr SectionName layer = section_name("layr");
inline constexpr SectionName end = section_name("end ");
}  // namespace section

namespace format {

/// As of PNG: bytes that a transfer as text, or one of seven bits, spoils.
inline constexpr std::array<unsigned char, 8> magic = {0x89, 'K', 'V', 'C', '\r', '\n', 0x1a, '\n'};
inline constexpr std::uint16_t major_version = 1;  ///< another one is refused
inline constexpr std::uint16_t minor_version = 0;  ///< a later one is read: it has only added optional sections

struct FileHeader {
  std::array<unsigned char, 8> magic;
  std::uint16_t major;
  std::uint16_t minor;
  std::uint32_t zero;
  std::uint64_t checksum;  ///< XXH3 of the 16 bytes before
};
static_assert(sizeof(FileHeader) == 24);

struct SectionHeader {
  static constexpr std::uint32_t required = 1;  ///< of flags: who does not know the section must not read on
  SectionName name;
  std::uint32_t flags;     ///< all other bits are 0
  std::uint64_t index;     ///< layr: the layer; else 0
  std::uint64_t size;      ///< bytes of the payload
  std::uint64_t checksum;  ///< XXH3 of the 24 bytes before
};
static_assert(sizeof(SectionHeader) == 32);

/// A name, filled up with zeros.
using Name = std::array<char, 24>;

/// Payload of desc.
struct DescriptionRecord {
  std::uint64_t layers;
  std::uint64_t kv_heads;
  std::uint64_t key_dim;
  std::uint64_t value_dim;
  std::uint64_t key_row_bytes;    ///< one key of one head
  std::uint64_t value_row_bytes;  ///< one value of one head
  std::uint32_t block_tokens;     ///< most rows of a block
  std::uint32_t zero;
  Name element;  ///< Element<T>::name
  Name layout;   ///< order of rows in a block of a layer: "head-major" or "token-major"
  Name policy;   ///< that it comes from, for people
};
static_assert(sizeof(DescriptionRecord) == 128);

/// Element of blks: rows that are stored once, whoever holds them.
struct BlockRecord {
  static constexpr std::uint32_t cached = 1;  ///< of flags: to be found by later prompts, though nobody may hold it
  std::int32_t parent;  ///< number of the block before it in its sequences, smaller than its own; -1 - s: none, salt s
  std::int32_t rows;    ///< 1 .. block_tokens. All, wherever the block has another behind it
  std::int32_t told;    ///< of the rows, how many from the first on have known tokens: these are in tokn
  std::uint32_t flags;
};
static_assert(sizeof(BlockRecord) == 16);

/// Element of seqs.
struct SequenceRecord {
  std::int32_t last;    ///< its last block; -1 - s: it is empty, salt s
  std::int32_t length;  ///< positions: it ends within its last block, or with it
  std::int32_t told;    ///< of these, how many from the first on have tokens that this sequence knows
  std::uint32_t zero;
};
static_assert(sizeof(SequenceRecord) == 16);

/// Payload of end.
struct EndRecord {
  std::uint64_t sections;  ///< before this one
  std::uint64_t checksum;  ///< XXH3 of the checksums of their headers and payloads, in order
};
static_assert(sizeof(EndRecord) == 16);

template <class Record>
concept Plain = std::is_trivially_copyable_v<Record> && std::has_unique_object_representations_v<Record>;
static_assert(Plain<FileHeader> && Plain<SectionHeader> && Plain<DescriptionRecord> && Plain<BlockRecord> &&
              Plain<SequenceRecord> && Plain<EndRecord>);

/// Bounds of what a header may claim, so that products of it can be formed: as those of a shape.
inline constexpr std::uint64_t most_extent = std::uint64_t{1} << 24;
inline constexpr std::uint64_t most_row_bytes = std::uint64_t{1} << 27;
/// A product that stops at 2^62 instead of overflowing. Both factors must be at most that.
[[nodiscard]] constexpr std::uint64_t bounded_product(std::uint64_t a, std::uint64_t b) noexcept {
  constexpr std::uint64_t most = std::uint64_t{1} << 62;
  return a != 0 && b > most / a ? most : a * b;
}

}  // namespace format
}  // namespace snapshot
}  // namespace v0
}  // namespace kvc
