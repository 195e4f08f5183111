// Contents: everything in a snapshot but the rows. Integers and tokens only.
//
// Each block is stored once, however many sequences reference it. A block names the block before it in its sequences,
// so the blocks form a forest whose roots are salts, and a sequence is its last block and a length. A parent has a
// smaller number than its children, so the format cannot express a cycle or a missing block.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "kvc/core/error.hpp"
#include "kvc/core/types.hpp"
#include "kvc/io/byte_stream.hpp"
#include "kvc/layout/shape.hpp"
#include "kvc/policy/salt.hpp"
#include "kvc/snapshot/format.hpp"
#include "kvc/snapshot/sections.hpp"

namespace kvc {
inline namespace v0 {
namespace snapshot {

/// The contents of a snapshot but the rows.
struct Contents {
  Shape shape;
  Index key_row_bytes = 0;    ///< of one key of one head
  Index value_row_bytes = 0;  ///< of one value of one head
  Pos block_tokens = 0;       ///< slots in a block of the saved cache
  std::string element;        ///< Element<T>::name
  std::string layout;         ///< order of the rows: "head-major" or "token-major"
  std::string policy;         ///< of the saved cache

  std::vector<Salt> salts;
  std::vector<format::BlockRecord> blocks;
  std::vector<Token> tokens;  ///< the known tokens of each block, one block after the other
  std::vector<format::SequenceRecord> sequences;

  // Derived from the above, by block.
  std::vector<Pos> first;                  ///< position of its first row
  std::vector<std::int32_t> salt;          ///< number of its salt
  std::vector<std::uint64_t> first_token;  ///< index in `tokens` of its first one; one entry more than there are blocks
  std::uint64_t rows = 0;                  ///< of all blocks

  /// Bytes of the rows of one token in one layer.
  [[nodiscard]] std::uint64_t token_bytes() const noexcept {
    return static_cast<std::uint64_t>(shape.kv_heads) * static_cast<std::uint64_t>(key_row_bytes + value_row_bytes);
  }
  /// Bytes of all rows of one layer, the payload of a section layr.
  [[nodiscard]] std::uint64_t layer_bytes() const noexcept { return format::bounded_product(rows, token_bytes()); }

  /// Number of the salt of a sequence whose last block is `last`; -1 - s stands for an empty one with salt s.
  [[nodiscard]] std::int32_t salt_of(std::int32_t last) const noexcept {
    return last < 0 ? -1 - last : salt[static_cast<std::size_t>(last)];
  }
  /// f(block, first row, rows) for the blocks of the positions of `range` in a sequence whose last block is `last`; the
  /// last block first.
  template <class F>
  void for_each_block(std::int32_t last, PosRange range, F&& f) const {
    for (std::int32_t b = last; b >= 0;) {
      const auto at = static_cast<std::size_t>(b);
      const Pos from = std::max(range.first, first[at]);
      const Pos to = std::min<Pos>(range.last, first[at] + blocks[at].rows);
      if (from < to) {
        f(b, static_cast<Pos>(from - first[at]), static_cast<Pos>(to - from));
      }
      if (first[at] <= range.first) {
        break;
      }
      b = blocks[at].parent;
    }
  }
  /// Copies the tokens of the first `count` positions of a sequence whose last block is `last` to `to` [count].
  void copy_tokens(std::int32_t last, Pos count, std::span<Token> to) const noexcept {
    for_each_block(last, {0, count}, [&](std::int32_t b, Pos, Pos rows_of_block) {
      const auto at = static_cast<std::size_t>(b);
      std::copy_n(tokens.begin() + static_cast<std::ptrdiff_t>(first_token[at]), rows_of_block, to.begin() + first[at]);
    });
  }
  /// The known tokens of sequence number `i`.
  [[nodiscard]] std::vector<Token> tokens_of(std::size_t i) const {
    std::vector<Token> known(static_cast<std::size_t>(sequences[i].known_tokens));
    copy_tokens(sequences[i].last, sequences[i].known_tokens, known);
    return known;
  }
};

namespace detail {

/// Takes over a description, whose numbers have been checked.
inline void set_description(Contents& c, const format::DescriptionRecord& r) {
  c.shape = {.layers = static_cast<Index>(r.layers),
             .kv_heads = static_cast<Index>(r.kv_heads),
             .key_dim = static_cast<Index>(r.key_dim),
             .value_dim = static_cast<Index>(r.value_dim)};
  c.key_row_bytes = static_cast<Index>(r.key_row_bytes);
  c.value_row_bytes = static_cast<Index>(r.value_row_bytes);
  c.block_tokens = static_cast<Pos>(r.block_tokens);
  c.element = format::to_text(r.element);
  c.layout = format::to_text(r.layout);
  c.policy = format::to_text(r.policy);
}

/// Derives the remaining members for the next block, number `block`.
inline void add_derived(Contents& c, std::size_t block) {
  const format::BlockRecord& b = c.blocks[block];
  const auto parent = static_cast<std::size_t>(b.parent);
  c.first.push_back(b.parent < 0 ? 0 : c.first[parent] + c.blocks[parent].rows);
  c.salt.push_back(c.salt_of(b.parent));
  c.first_token.push_back(c.first_token.back() + static_cast<std::uint64_t>(b.known_tokens));
  c.rows += static_cast<std::uint64_t>(b.rows);
}

/// Writes all sections that precede the rows.
inline void write_contents(SectionWriter& out, const format::DescriptionRecord& description, const Contents& c) {
  out.section(section::description, bytes_of(description));

  std::vector<std::byte> salts;
  for (const Salt& salt : c.salts) {
    const std::uint64_t size = salt.bytes().size();
    const auto length = bytes_of(size);
    const auto bytes = std::as_bytes(std::span(salt.bytes()));
    salts.insert(salts.end(), length.begin(), length.end());
    salts.insert(salts.end(), bytes.begin(), bytes.end());
  }
  out.section(section::salts, salts);
  out.section(section::blocks, std::as_bytes(std::span(c.blocks)));
  out.section(section::tokens, std::as_bytes(std::span(c.tokens)));
  out.section(section::sequences, std::as_bytes(std::span(c.sequences)));
}

/// Reads all sections that precede the rows, and checks everything that can be checked without them. Throws
/// FormatError.
class ContentsReader {
 public:
  /// `with_prefixes`: sequences may be cached prefixes.
  explicit ContentsReader(SectionReader& in, bool with_prefixes = false) : in_(in), with_prefixes_(with_prefixes) {}

  [[nodiscard]] Contents read() {
    read_description();
    read_salts();
    read_blocks();
    in_.expect(section::tokens);
    c_.tokens = in_.records<Token>("tokens");
    if (c_.tokens.size() != c_.first_token.back()) {
      in_.fail_at(in_.size_offset(),
                  kvc::detail::concat({std::to_string(c_.first_token.back()), " tokens, as the blocks say, found ",
                                       std::to_string(c_.tokens.size())}));
    }
    read_sequences();
    return std::move(c_);
  }

 private:
  void read_description() {
    if (in_.expect(section::description).size != sizeof(format::DescriptionRecord)) {
      in_.fail_at(
          in_.size_offset(),
          kvc::detail::concat({"a description of ", std::to_string(sizeof(format::DescriptionRecord)), " bytes"}));
    }
    if (in_.section_offset() != sizeof(format::FileHeader)) {
      in_.fail_at(sizeof(format::FileHeader), "section desc first");
    }
    const std::uint64_t base = in_.payload_offset();
    const format::DescriptionRecord r = in_.records<format::DescriptionRecord>("a description").front();
    const auto count = [&](std::uint64_t value, std::uint64_t most, std::size_t at, const char* what) {
      if (value == 0 || value > most) {
        in_.fail_at(base + at, kvc::detail::concat(
                                   {what, " between 1 and ", std::to_string(most), ", found ", std::to_string(value)}));
      }
    };
    using R = format::DescriptionRecord;
    count(r.layers, format::most_extent, offsetof(R, layers), "layers");
    count(r.kv_heads, format::most_extent, offsetof(R, kv_heads), "kv_heads");
    count(r.key_dim, format::most_extent, offsetof(R, key_dim), "key_dim");
    count(r.value_dim, format::most_extent, offsetof(R, value_dim), "value_dim");
    count(r.key_row_bytes, format::most_row_bytes, offsetof(R, key_row_bytes), "bytes of a key");
    count(r.value_row_bytes, format::most_row_bytes, offsetof(R, value_row_bytes), "bytes of a value");
    count(r.block_tokens, max_pos, offsetof(R, block_tokens), "block_tokens");
    if (r.zero != 0) {
      in_.fail_at(base + offsetof(R, zero), "zeros");
    }
    require_name(r.element, base + offsetof(R, element));
    require_name(r.layout, base + offsetof(R, layout));
    require_name(r.policy, base + offsetof(R, policy));
    set_description(c_, r);
  }
  void require_name(const format::Name& raw, std::uint64_t at) const {
    const auto end = std::find(raw.begin(), raw.end(), '\0');
    const bool printable = std::all_of(raw.begin(), end, [](char c) { return ' ' < c && c <= '~'; });
    if (end == raw.begin() || end == raw.end() || !printable ||
        std::any_of(end, raw.end(), [](char c) { return c != 0; })) {
      in_.fail_at(at, "a name of 1 to 23 characters, padded with zeros");
    }
  }

  void read_salts() {
    in_.expect(section::salts);
    const std::uint64_t base = in_.payload_offset();
    const std::vector<std::byte> bytes = in_.records<std::byte>("salts");
    for (std::size_t at = 0; at < bytes.size();) {
      std::uint64_t size = 0;
      const std::size_t left = bytes.size() - at;
      if (left >= sizeof size) {
        std::memcpy(&size, bytes.data() + at, sizeof size);
      }
      if (left < sizeof size || size > left - sizeof size) {
        in_.fail_at(base + at, kvc::detail::concat(
                                   {"a salt within its section, of which ", std::to_string(left), " bytes are left"}));
      }
      const std::string_view encoded(reinterpret_cast<const char*>(bytes.data() + at + sizeof size),
                                     static_cast<std::size_t>(size));
      const std::optional<Salt> salt = Salt::from_bytes(encoded);
      if (!salt) {
        in_.fail_at(base + at, "a salt, parts of a kind, a length and so many bytes");
      }
      c_.salts.push_back(*salt);
      at += sizeof size + static_cast<std::size_t>(size);
    }
  }

  void read_blocks() {
    in_.expect(section::blocks);
    const std::uint64_t base = in_.payload_offset();
    c_.blocks = in_.records<format::BlockRecord>("blocks");
    if (c_.blocks.size() > static_cast<std::size_t>(max_pos)) {
      in_.fail_at(in_.size_offset(), "at most 2^31 - 1 blocks");
    }
    c_.first_token.push_back(0);
    for (std::size_t i = 0; i < c_.blocks.size(); ++i) {
      const format::BlockRecord& b = c_.blocks[i];
      const auto check = [&](bool ok, std::size_t field, const std::string& expected, std::int64_t found) {
        if (!ok) [[unlikely]] {
          in_.fail_at(base + i * sizeof b + field, kvc::detail::concat({"block ", std::to_string(i), " with ", expected,
                                                                        ", found ", std::to_string(found)}));
        }
      };
      check(b.parent < static_cast<std::int64_t>(i) && (b.parent >= 0 || is_salt(b.parent)),
            offsetof(format::BlockRecord, parent), "the number of an earlier block or of a salt as parent", b.parent);
      const bool is_root = b.parent < 0;
      const auto parent = static_cast<std::size_t>(is_root ? 0 : b.parent);
      const Pos most = is_root ? max_pos : max_pos - c_.first[parent] - c_.blocks[parent].rows;
      check(1 <= b.rows && b.rows <= std::min(most, c_.block_tokens), offsetof(format::BlockRecord, rows),
            "rows between 1 and block_tokens, at positions below 2^31", b.rows);
      const bool parent_is_known = is_root || c_.blocks[parent].known_tokens == c_.blocks[parent].rows;
      check(0 <= b.known_tokens && b.known_tokens <= (parent_is_known ? b.rows : 0),
            offsetof(format::BlockRecord, known_tokens),
            "at most as many known tokens as rows, and none after unknown ones", b.known_tokens);
      const bool cached = b.flags == format::BlockRecord::cached;
      const bool parent_cached = is_root || c_.blocks[parent].flags != 0;
      check(b.flags == 0 || (cached && b.known_tokens == b.rows && parent_cached), offsetof(format::BlockRecord, flags),
            "flags 0, or 1 where its tokens are known and its parent is cached", b.flags);
      add_derived(c_, i);
    }
  }
  [[nodiscard]] bool is_salt(std::int32_t parent) const noexcept {
    return static_cast<std::uint64_t>(-1 - std::int64_t{parent}) < c_.salts.size();
  }

  void read_sequences() {
    in_.expect(section::sequences);
    const std::uint64_t base = in_.payload_offset();
    c_.sequences = in_.records<format::SequenceRecord>("sequences");
    for (std::size_t i = 0; i < c_.sequences.size(); ++i) {
      const format::SequenceRecord& s = c_.sequences[i];
      const auto check = [&](bool ok, std::size_t field, const char* expected, std::int64_t found) {
        if (!ok) [[unlikely]] {
          in_.fail_at(base + i * sizeof s + field, kvc::detail::concat({"sequence ", std::to_string(i), " with ",
                                                                        expected, ", found ", std::to_string(found)}));
        }
      };
      const bool is_empty = s.last < 0;
      check(is_empty ? is_salt(s.last) : static_cast<std::size_t>(s.last) < c_.blocks.size(),
            offsetof(format::SequenceRecord, last), "the number of a block or of a salt as last block", s.last);
      const auto last = static_cast<std::size_t>(is_empty ? 0 : s.last);
      const Pos begin = is_empty ? 0 : c_.first[last];
      check(is_empty ? s.length == 0 : begin < s.length && s.length <= begin + c_.blocks[last].rows,
            offsetof(format::SequenceRecord, length), "a length that ends in its last block", s.length);
      check(0 <= s.known_tokens && s.known_tokens <= s.length && s.known_tokens <= known(s.last),
            offsetof(format::SequenceRecord, known_tokens), "at most as many known tokens as its blocks",
            s.known_tokens);
      check(s.flags == 0 || (with_prefixes_ && s.flags == format::SequenceRecord::cached && s.length > 0 &&
                             s.known_tokens == s.length),
            offsetof(format::SequenceRecord, flags),
            with_prefixes_ ? "flags 0, or 1 where all its tokens are known" : "zeros", s.flags);
    }
  }
  /// Leading positions with known tokens of a sequence whose last block is `last`. The known tokens of a block continue
  /// those of its parent, or there are none.
  [[nodiscard]] Pos known(std::int32_t last) {
    if (known_.empty()) {
      known_.resize(c_.blocks.size());
      for (std::size_t i = 0; i < known_.size(); ++i) {
        const format::BlockRecord& b = c_.blocks[i];
        known_[i] = b.known_tokens > 0 ? c_.first[i] + b.known_tokens
                    : b.parent < 0     ? 0
                                       : known_[static_cast<std::size_t>(b.parent)];
      }
    }
    return last < 0 ? 0 : known_[static_cast<std::size_t>(last)];
  }

  SectionReader& in_;
  bool with_prefixes_;
  Contents c_;
  std::vector<Pos> known_;
};

}  // namespace detail

/// Reads the contents of a snapshot but the rows, and no more bytes than that takes. Throws FormatError.
[[nodiscard]] inline Contents read_contents(io::ByteSource& source) {
  detail::SectionReader in(source);
  return detail::ContentsReader(in).read();
}

}  // namespace snapshot
}  // namespace v0
}  // namespace kvc
