// The format of snapshots as structs; docs/format.md describes it byte by byte. Standard library only.
//
//   file header, then sections: desc, salt, blks, tokn, seqs, one layr per layer in any order, end
//   with layer groups:          desc, salt, blks, tokn, seqs, grps, lmap, gblk, tabl, one layr per stored layer, end
//   with recurrent layers:      ... tabl, stks, sttb, one layr per stored layer, one stat per recurrent layer, end
//   section:  SectionHeader | payload | XXH3 of the payload (8 bytes)
//
// All integers are little-endian. Rows are stored as they lie in the pool of a little-endian machine.
#pragma once

#include <algorithm>
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

static_assert(std::endian::native == std::endian::little, "snapshots are little-endian and are read in place");

/// The name of a section: four characters in file order.
enum class SectionName : std::uint32_t {};

/// The name that has these four characters.
[[nodiscard]] constexpr SectionName section_name(const char (&text)[5]) noexcept {
  std::uint32_t name = 0;
  for (std::uint32_t i = 0; i < 4; ++i) {
    name |= std::uint32_t{static_cast<unsigned char>(text[i])} << 8 * i;
  }
  return SectionName{name};
}
/// The four characters of a name, with dots for unprintable ones.
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
inline constexpr SectionName groups = section_name("grps");
inline constexpr SectionName layer_map = section_name("lmap");
inline constexpr SectionName group_blocks = section_name("gblk");
inline constexpr SectionName tables = section_name("tabl");
inline constexpr SectionName state_kinds = section_name("stks");
inline constexpr SectionName states = section_name("sttb");
inline constexpr SectionName layer = section_name("layr");
inline constexpr SectionName state_layer = section_name("stat");
inline constexpr SectionName end = section_name("end ");
}  // namespace section

namespace format {

/// As in PNG, these bytes do not survive a transfer in text mode or over a 7-bit channel.
inline constexpr std::array<unsigned char, 8> magic = {0x89, 'K', 'V', 'C', '\r', '\n', 0x1a, '\n'};
inline constexpr std::uint16_t major_version = 1;  ///< files of other major versions are rejected
inline constexpr std::uint16_t group_version = 2;  ///< the major version of snapshots of caches with layer groups
inline constexpr std::uint16_t minor_version = 0;  ///< later minor versions are read: they only add optional sections

/// The first bytes of a file.
struct FileHeader {
  std::array<unsigned char, 8> magic;
  std::uint16_t major;
  std::uint16_t minor;
  std::uint32_t zero;
  std::uint64_t checksum;  ///< XXH3 of the 16 bytes before
};
static_assert(sizeof(FileHeader) == 24);

/// The header before the payload of a section.
struct SectionHeader {
  static constexpr std::uint32_t required = 1;  ///< flag: a reader that does not know the section rejects the file
  SectionName name;
  std::uint32_t flags;     ///< all other bits are 0
  std::uint64_t index;     ///< layr, stat: the layer; else 0
  std::uint64_t size;      ///< bytes of the payload
  std::uint64_t checksum;  ///< XXH3 of the 24 bytes before
};
static_assert(sizeof(SectionHeader) == 32);

/// A name, padded with zeros; at least one.
using Name = std::array<char, 24>;
/// The first 23 characters of `text` as a Name.
[[nodiscard]] constexpr Name to_name(std::string_view text) noexcept {
  Name name{};
  std::copy_n(text.begin(), std::min(text.size(), name.size() - 1), name.begin());
  return name;
}
/// The characters of a name, with dots for unprintable ones.
[[nodiscard]] inline std::string to_text(const Name& name) {
  std::string text(name.begin(), std::find(name.begin(), name.end(), '\0'));
  std::replace_if(text.begin(), text.end(), [](char c) { return c < ' ' || c > '~'; }, '.');
  return text;
}

/// Payload of desc: the cache that the rows come from.
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
  Name policy;   ///< for people; not compared
};
static_assert(sizeof(DescriptionRecord) == 128);
/// Bytes of the rows of one token in one layer.
[[nodiscard]] constexpr std::uint64_t token_bytes(const DescriptionRecord& d) noexcept {
  return d.kv_heads * (d.key_row_bytes + d.value_row_bytes);
}

/// Element of blks: the rows of a block, stored once however many sequences reference it.
struct BlockRecord {
  static constexpr std::uint32_t cached = 1;  ///< flag: later prompts find the block, referenced or not
  std::int32_t parent;  ///< number of the block before it in its sequences, less than its own; -1 - s: none, salt s
  std::int32_t rows;    ///< 1 .. block_tokens; a block that another one follows is full
  std::int32_t known_tokens;  ///< leading rows whose tokens are known; they are in tokn
  std::uint32_t flags;
};
static_assert(sizeof(BlockRecord) == 16);

/// Element of seqs.
struct SequenceRecord {
  static constexpr std::uint32_t cached = 1;  ///< flag: no sequence, but a prefix that is cached in layer groups
  std::int32_t last;                          ///< its last block; -1 - s: it is empty, salt s
  std::int32_t length;                        ///< positions; the last one is in the last block
  std::int32_t known_tokens;                  ///< leading positions whose tokens this sequence knows
  std::uint32_t flags;                        ///< in version 1 always 0
};
static_assert(sizeof(SequenceRecord) == 16);

/// Element of grps: a layer group.
struct GroupRecord {
  std::uint32_t layers;       ///< that store rows
  std::uint32_t more_tokens;  ///< of compressed rows: tokens of a row beside the first one; else 0
  std::uint64_t kv_heads;
  std::uint64_t key_dim;
  std::uint64_t value_dim;
  std::uint64_t key_row_bytes;
  std::uint64_t value_row_bytes;
  std::int32_t window;
  std::int32_t chunk;
  std::int32_t kept;
  std::int32_t cross_rows;
};
static_assert(sizeof(GroupRecord) == 64);
/// Bytes of the rows of one token in one layer.
[[nodiscard]] constexpr std::uint64_t token_bytes(const GroupRecord& g) noexcept {
  return g.kv_heads * (g.key_row_bytes + g.value_row_bytes);
}

/// Element of lmap: where the rows of a layer of the model are, or its states.
struct LayerRecord {
  std::int32_t group;   ///< of a recurrent layer -1 - k, of kind k
  std::int32_t layer;   ///< of the group, or of the kind
  std::uint32_t reads;  ///< 1: it reads the rows that another layer writes; else 0
};
static_assert(sizeof(LayerRecord) == 12);

/// Element of gblk: rows of a group at consecutive positions, stored once however many sequences reference them.
struct GroupBlockRecord {
  std::int32_t group;
  std::int32_t first;  ///< position of its first row
  std::int32_t rows;   ///< at least 1
  std::uint32_t zero;
};
static_assert(sizeof(GroupBlockRecord) == 16);

/// Element of stks: recurrent layers whose states have the same bytes.
struct StateKindRecord {
  std::uint64_t layers;
  std::uint64_t bytes;  ///< of the state of one layer
};
static_assert(sizeof(StateKindRecord) == 16);

/// Element of sttb: the states of a sequence after so many tokens. They are stored once however many sequences have
/// them.
struct StateRecord {
  std::int32_t sequence;
  std::int32_t length;  ///< tokens that they stand for
  std::int32_t number;  ///< of the stored states: at most one more than all before it
  std::uint32_t zero;
};
static_assert(sizeof(StateRecord) == 16);

/// Payload of end.
struct EndRecord {
  std::uint64_t sections;  ///< that precede this one
  std::uint64_t checksum;  ///< XXH3 of the checksums of their headers and payloads, in order
};
static_assert(sizeof(EndRecord) == 16);

/// A record that can be written and read as its bytes.
template <class Record>
concept Plain = std::is_trivially_copyable_v<Record> && std::has_unique_object_representations_v<Record>;
static_assert(Plain<FileHeader> && Plain<SectionHeader> && Plain<DescriptionRecord> && Plain<BlockRecord> &&
              Plain<SequenceRecord> && Plain<EndRecord> && Plain<GroupRecord> && Plain<LayerRecord> &&
              Plain<GroupBlockRecord> && Plain<StateKindRecord> && Plain<StateRecord>);

/// The largest extents that a header may claim, those of a Shape, so that products of them do not overflow.
inline constexpr std::uint64_t most_extent = std::uint64_t{1} << 24;
inline constexpr std::uint64_t most_row_bytes = std::uint64_t{1} << 27;
/// a * b, or 2^62 if that is less. Both factors must be at most 2^62.
[[nodiscard]] constexpr std::uint64_t bounded_product(std::uint64_t a, std::uint64_t b) noexcept {
  constexpr std::uint64_t most = std::uint64_t{1} << 62;
  return a != 0 && b > most / a ? most : a * b;
}

}  // namespace format
}  // namespace snapshot
}  // namespace v0
}  // namespace kvc
