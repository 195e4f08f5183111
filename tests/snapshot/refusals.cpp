// Invalid snapshots are refused with the offset of the error, and change nothing: truncated, with flipped bits, of
// another shape or version, or forged.
#include <functional>
#include <string>
#include <vector>

#include "any_cache.hpp"
#include "failing_allocation.hpp"
#include "forge.hpp"

namespace snapshot_refusals_test {

namespace {
using namespace kvc;
using namespace kvc_test;
using Block = snapshot::format::BlockRecord;
using Sequence = snapshot::format::SequenceRecord;
using Description = snapshot::format::DescriptionRecord;

constexpr Shape tiny{.layers = 2, .kv_heads = 1, .key_dim = 2, .value_dim = 1};
using Prefix = CacheOf<float, PrefixShared<Lru, SeededHash>, HeadMajor>;
constexpr Prefix::Cache::PolicyType::Config pool{.blocks = 16, .block_tokens = 4};

/// Two sequences that share a block, one of them with a salt, and a cached block.
Bytes small_snapshot() {
  Prefix cache(pool, tiny);
  const SeqId seq = cache.serve({1, 2, 3, 4, 5, 6});
  (void)cache.try_fork(seq, 5);
  cache.serve({7}, Salt(SaltKind::lora, "x"));
  cache.close(cache.serve({1, 2, 3, 4, 9, 9, 9, 9, 1}));
  return cache.saved(cache.sequences());
}

/// A cache in use; its contents must survive every load.
struct Victim {
  Prefix cache{pool, tiny};
  Victim() {
    cache.serve({1, 2, 3});
    cache.close(cache.serve({5, 5, 5, 5, 5}));
  }
};

/// Expects that loading fails. Returns the message.
std::string refuse(Prefix& cache, std::span<const std::byte> bytes, std::int64_t offset = -1) {
  const Seen before(cache);
  std::string message;
  const std::size_t allocated = allocated_bytes();
  try {
    const auto loaded = cache.loaded(bytes);
    FAIL("loaded");
  } catch (const FormatError& error) {
    message = error.what();
    CHECK(error.source() == "some bytes");
    CHECK(error.offset() >= 0);
    CHECK(error.offset() <= static_cast<Index>(bytes.size()));
    if (offset >= 0) {
      INFO(message);
      CHECK(error.offset() == offset);
    }
  }
  // The buffers of one batch, and a small multiple of the bytes that are there.
  CHECK(allocated_bytes() - allocated < (std::size_t{2} << 20) + 16 * bytes.size());
  REQUIRE(Seen(cache) == before);
  cache.verify();
  return message;
}
std::string refuse(const Forge& forged, bool fix_sizes = true) {
  Victim victim;
  return refuse(victim.cache, forged.bytes(fix_sizes));
}
}  // namespace

TEST_CASE("The small snapshot of these tests is valid, and still is after Forge", "[io][format]") {
  const Bytes bytes = small_snapshot();
  REQUIRE(Forge(bytes).bytes() == bytes);
  Victim victim;
  REQUIRE(victim.cache.loaded(bytes)->sequences.size() == 3);
  victim.cache.verify();
}

TEST_CASE("A snapshot that is truncated anywhere is refused at its end", "[io][format]") {
  const Bytes bytes = small_snapshot();
  Victim victim;
  for (std::size_t size = 0; size < bytes.size(); ++size) {
    CAPTURE(size);
    refuse(victim.cache, std::span(bytes).first(size));
  }
}

TEST_CASE("A snapshot with any bit flipped is refused", "[io][format]") {
  Bytes bytes = small_snapshot();
  Victim victim;
  for (std::size_t at = 0; at < bytes.size(); ++at) {
    for (int bit = 0; bit < 8; ++bit) {
      CAPTURE(at, bit);
      const std::byte good = bytes[at];
      bytes[at] ^= std::byte{1} << bit;
      refuse(victim.cache, bytes);
      bytes[at] = good;
    }
  }
}

TEST_CASE("Bytes after the end, and other files, are refused", "[io][format]") {
  Bytes bytes = small_snapshot();
  const auto whole = static_cast<Index>(bytes.size());
  bytes.push_back(std::byte{0});
  Victim victim;
  REQUIRE_THAT(refuse(victim.cache, bytes, whole), contains("expected the end, found 1 bytes more"));
  REQUIRE_THAT(refuse(victim.cache, {}, 0), contains("the header of a kvc snapshot, 24 bytes"));
  REQUIRE_THAT(refuse(victim.cache, std::as_bytes(std::span("GGUF is another format, which is not this one")), 0),
               contains("a kvc snapshot, which begins with"));
}

TEST_CASE("Other major versions are refused, and later minor versions are read", "[io][format]") {
  Forge forged(small_snapshot());
  forged.header.major = 2;
  REQUIRE_THAT(refuse(forged), contains("at byte 8: expected version 1 of the format, found 2"));
  forged.header.major = 1;
  forged.header.zero = 1;
  REQUIRE_THAT(refuse(forged), contains("zeros"));
  forged.header.zero = 0;
  forged.header.minor = 9;
  Victim victim;
  REQUIRE(victim.cache.loaded(forged.bytes()));
}

TEST_CASE("Unknown sections are skipped if they are optional, and refused if they are required", "[io][format]") {
  for (const std::ptrdiff_t place : {1, 3, 5, 6, 7}) {
    Forge forged(small_snapshot());
    const auto at = forged.sections.begin() + place;
    forged.sections.insert(at, ForgedSection("note", 0, Bytes(300'000, std::byte{7})));
    Victim victim;
    REQUIRE(victim.cache.loaded(forged.bytes()));
    Bytes spoilt = forged.bytes();
    spoilt[spoilt.size() / 2] ^= std::byte{1};
    REQUIRE_THAT(refuse(victim.cache, spoilt), contains("with its checksum"));
    forged.at("note").header.flags = 1;
    REQUIRE_THAT(refuse(forged), contains("or an optional one, found \"note\""));
    forged.at("note").header.flags = 2;
    REQUIRE_THAT(refuse(forged), contains("flags that this version knows"));
  }
  Forge forged(small_snapshot());
  forged.sections.insert(forged.sections.begin(), ForgedSection("note", 0, {}));
  REQUIRE_THAT(refuse(forged), contains("section desc first"));
  forged = Forge(small_snapshot());
  forged.at("blks").header.flags = 0;
  REQUIRE_THAT(refuse(forged), contains("section blks as required"));
}

TEST_CASE("Missing, repeated and misplaced sections are refused", "[io][format]") {
  const Forge good(small_snapshot());
  for (std::size_t i = 0; i < good.sections.size(); ++i) {
    CAPTURE(i);
    Forge forged = good;
    forged.sections.erase(forged.sections.begin() + static_cast<std::ptrdiff_t>(i));
    refuse(forged);
    forged = good;
    forged.sections.insert(forged.sections.begin() + static_cast<std::ptrdiff_t>(i), forged.sections[i]);
    refuse(forged);
    if (i + 1 < good.sections.size()) {
      forged = good;
      std::swap(forged.sections[i], forged.sections[i + 1]);
      if (i < 5) {
        refuse(forged);
      } else {
        Victim victim;  // layers may come in any order
        REQUIRE(victim.cache.loaded(forged.bytes()));
      }
    }
  }
  Forge forged = good;
  forged.sections.back().header.index = 2;
  REQUIRE_THAT(refuse(forged), contains("a layer below 2 that has not been read yet, found 2"));
  forged.sections.back().header.index = ~std::uint64_t{0};
  REQUIRE_THAT(refuse(forged), contains("a layer below 2"));
  forged = good;
  forged.sections.pop_back();
  REQUIRE_THAT(refuse(forged), contains("section layr of layer 1, found the end"));
  forged = good;
  forged.sections.back().payload.pop_back();
  REQUIRE_THAT(refuse(forged), contains("the rows of a layer, found"));
  forged = good;
  forged.at("seqs").header.index = 1;
  REQUIRE_THAT(refuse(forged), contains("index 0"));
}

TEST_CASE("Impossible lengths are refused", "[io][format]") {
  const Forge good(small_snapshot());
  for (std::size_t i = 0; i < good.sections.size(); ++i) {
    for (const std::uint64_t size : {std::uint64_t{1} << 40, std::uint64_t{1} << 62, std::uint64_t{1} << 63,
                                     ~std::uint64_t{0}, ~std::uint64_t{0} - 7, std::uint64_t{1} << 32}) {
      CAPTURE(i, size);
      Forge forged = good;
      forged.sections[i].header.size = size;
      REQUIRE_THAT(refuse(forged, false), contains("a section of at most"));
    }
    // A section that announces less than it has overlaps the next one.
    Forge forged = good;
    if (forged.sections[i].header.size > 0) {
      --forged.sections[i].header.size;
      refuse(forged, false);
    }
  }
}

TEST_CASE("A stream of unknown length cannot make the reader allocate what it only announces", "[io][format]") {
  struct Endless final : io::ByteSource {
    explicit Endless(std::span<const std::byte> bytes) : io::ByteSource("a stream"), inner(bytes) {}
    std::size_t read(std::span<const std::span<std::byte>> spans) override { return inner.read(spans); }
    io::MemorySource inner;
  };
  const Forge good(small_snapshot());
  for (const char* name : {"salt", "blks", "tokn", "seqs"}) {
    CAPTURE(name);
    Forge forged = good;
    for (ForgedSection& s : forged.sections) {
      if (to_text(s.header.name) == name) {
        s.header.size = std::uint64_t{1} << 44;
      }
    }
    Victim victim;
    const Bytes bytes = forged.bytes(false);
    Endless source(bytes);
    const Seen before(victim.cache);
    const std::size_t allocated = allocated_bytes();
    REQUIRE_THROWS_WITH(victim.cache.try_load(source, {}), contains("the source ends"));
    REQUIRE(allocated_bytes() - allocated < std::size_t{2} << 20);
    REQUIRE(Seen(victim.cache) == before);
  }
}

TEST_CASE("A description of another cache, or an impossible one, is refused with the field", "[io][format]") {
  const auto change = [](std::size_t at, auto value) {
    Forge forged(small_snapshot());
    forged.at("desc").set(at, value);
    return refuse(forged);
  };
  using U = std::uint64_t;
  REQUIRE_THAT(change(offsetof(Description, layers), U{3}),
               contains("at byte 56: expected layers 2, as the cache has, found 3"));
  REQUIRE_THAT(change(offsetof(Description, kv_heads), U{2}), contains("kv_heads 1"));
  REQUIRE_THAT(change(offsetof(Description, key_dim), U{1}), contains("key_dim 2"));
  REQUIRE_THAT(change(offsetof(Description, value_dim), U{2}), contains("value_dim 1"));
  REQUIRE_THAT(change(offsetof(Description, key_row_bytes), U{4}), contains("bytes of a key 8"));
  REQUIRE_THAT(change(offsetof(Description, value_row_bytes), U{8}), contains("bytes of a value 4"));
  for (const U absurd : {U{0}, U{1} << 28, U{1} << 63, ~U{0}}) {
    for (const std::size_t field : {offsetof(Description, layers), offsetof(Description, kv_heads),
                                    offsetof(Description, key_dim), offsetof(Description, value_dim),
                                    offsetof(Description, key_row_bytes), offsetof(Description, value_row_bytes)}) {
      CAPTURE(field, absurd);
      REQUIRE_THAT(change(field, absurd), contains("between 1 and"));
    }
  }
  REQUIRE_THAT(change(offsetof(Description, block_tokens), std::uint32_t{0}), contains("block_tokens between 1"));
  REQUIRE_THAT(change(offsetof(Description, block_tokens), ~std::uint32_t{0}), contains("block_tokens between 1"));
  REQUIRE_THAT(change(offsetof(Description, block_tokens), std::uint32_t{3}),
               contains("rows between 1 and block_tokens"));
  REQUIRE_THAT(change(offsetof(Description, zero), 1), contains("zeros"));
  REQUIRE_THAT(change(offsetof(Description, element), 'g'), contains("expected elements f32, found g32"));
  REQUIRE_THAT(change(offsetof(Description, layout), 'H'),
               contains("layout head-major or token-major, found Head-major"));
  REQUIRE_THAT(change(offsetof(Description, policy), '\0'), contains("a name of 1 to 23 characters"));
  REQUIRE_THAT(change(offsetof(Description, policy), '\n'), contains("a name of 1 to 23 characters"));
  REQUIRE_THAT(change(offsetof(Description, element) + 22, 'x'), contains("a name of 1 to 23 characters"));
  snapshot::format::Name full;
  full.fill('x');
  REQUIRE_THAT(change(offsetof(Description, element), full), contains("a name of 1 to 23 characters"));
  Forge forged(small_snapshot());
  forged.at("desc").payload.resize(256);
  REQUIRE_THAT(refuse(forged), contains("a description of 128 bytes"));
}

TEST_CASE("Contradicting blocks and sequences are refused with the record", "[io][format]") {
  const Forge good(small_snapshot());
  // The blocks of the small snapshot, to be sure that the tests below change what they mean to change.
  Forge copy = good;
  const auto blocks = static_cast<std::int32_t>(copy.at("blks").payload.size() / sizeof(Block));
  const auto salts = 2;
  std::int32_t leaf = -1;  // one with an ancestor
  for (std::int32_t b = 0; b < blocks; ++b) {
    if (copy.at("blks").get<Block>(static_cast<std::size_t>(b) * sizeof(Block)).parent >= 0) {
      leaf = b;
    }
  }
  REQUIRE(leaf > 0);
  const auto change = [&](const char(&section)[5], std::int32_t record, std::size_t field, std::int32_t value) {
    Forge forged = good;
    forged.at(section).set(static_cast<std::size_t>(record) * 16 + field, value);
    CAPTURE(section, record, field, value);
    return refuse(forged);
  };
  constexpr auto most = std::numeric_limits<std::int32_t>::max();
  constexpr auto least = std::numeric_limits<std::int32_t>::min();
  for (const std::int32_t parent : {0, 1, blocks, most, -1 - salts, least}) {
    REQUIRE_THAT(change("blks", 0, offsetof(Block, parent), parent),
                 contains("block 0 with the number of an earlier block"));
  }
  REQUIRE_THAT(change("blks", leaf, offsetof(Block, parent), leaf), contains("with the number of an earlier block"));
  for (const std::int32_t rows : {0, -1, 5, most, least}) {
    REQUIRE_THAT(change("blks", leaf, offsetof(Block, rows), rows), contains("rows between 1 and block_tokens"));
  }
  for (const std::int32_t known : {-1, 5, most, least}) {
    REQUIRE_THAT(change("blks", leaf, offsetof(Block, known_tokens), known), contains("as many known tokens as rows"));
  }
  for (const std::int32_t flags : {2, 3, -1, most, least}) {
    REQUIRE_THAT(change("blks", leaf, offsetof(Block, flags), flags), contains("flags 0, or 1"));
  }
  refuse([&] {  // known tokens after unknown ones
    Forge forged = good;
    forged.at("blks").set(offsetof(Block, known_tokens), std::int32_t{0});
    return forged;
  }());
  for (std::int32_t s = 0; s < 3; ++s) {
    for (const std::int32_t last : {blocks, most, -1 - salts, least}) {
      REQUIRE_THAT(change("seqs", s, offsetof(Sequence, last), last),
                   contains("the number of a block or of a salt as last block"));
    }
    for (const std::int32_t length : {0, -1, 100, most, least}) {
      REQUIRE_THAT(change("seqs", s, offsetof(Sequence, length), length),
                   contains("a length that ends in its last block"));
    }
    for (const std::int32_t known : {-1, 100, most, least}) {
      REQUIRE_THAT(change("seqs", s, offsetof(Sequence, known_tokens), known),
                   contains("at most as many known tokens"));
    }
    REQUIRE_THAT(change("seqs", s, offsetof(Sequence, flags), 1), contains("zeros"));
    REQUIRE_THAT(change("seqs", s, offsetof(Sequence, last), -1), contains("a length that ends in its last block"));
  }
  for (const char* section : {"desc", "blks", "tokn", "seqs"}) {
    Forge forged = good;
    for (ForgedSection& s : forged.sections) {
      if (to_text(s.header.name) == section) {
        s.payload.pop_back();
      }
    }
    CAPTURE(section);
    refuse(forged);
  }
  Forge forged = good;
  forged.at("tokn").payload.resize(forged.at("tokn").payload.size() + 4);
  REQUIRE_THAT(refuse(forged), contains("tokens, as the blocks say, found"));
}

TEST_CASE("A malformed salt is refused", "[io][format]") {
  const Forge good(small_snapshot());
  const auto change = [&](std::size_t at, std::uint64_t value) {
    Forge forged = good;
    forged.at("salt").set(at, value);
    return refuse(forged);
  };
  // Two salts: one of no bytes, then one of a part with one byte; in the order of their blocks.
  Forge copy = good;
  const std::size_t at = copy.at("salt").get<std::uint64_t>(0) == 0 ? 8 : 0;
  REQUIRE(copy.at("salt").get<std::uint64_t>(at) == 10);
  for (const std::uint64_t size :
       {std::uint64_t{11}, std::uint64_t{1} << 32, ~std::uint64_t{0}, ~std::uint64_t{0} - 7}) {
    refuse([&] {
      Forge forged = good;
      forged.at("salt").set(at, size);
      return forged;
    }());
    change(at + 9, size);  // of the part
  }
  REQUIRE_THAT(change(at + 9, 2), contains("a salt, parts of a kind"));
  REQUIRE_THAT(change(at + 9, 0), contains("a salt, parts of a kind"));
  Forge forged = good;
  forged.at("salt").payload.resize(1);
  refuse(forged);
}

TEST_CASE("Sequences whose block tables would exceed the rows are refused", "[io][format]") {
  // A megabyte of sequences, each of the same 10^6 positions, of which the file has one layer of one byte each.
  constexpr Shape flat{.layers = 1, .kv_heads = 1, .key_dim = 1, .value_dim = 1};
  using Bytewise = CacheOf<Fp8E4M3, Contiguous, HeadMajor>;
  Bytewise from({.sequences = 1, .max_tokens = 1'000'000}, flat);
  const SeqId seq = from.try_open({}, {})->seq;
  from.cache.commit(from.cache.extend(seq, 1'000'000));
  Forge forged(from.saved({seq}));
  auto& sequences = forged.at("seqs").payload;
  const Bytes one = sequences;
  for (int i = 0; i < 65'536; ++i) {
    sequences.insert(sequences.end(), one.begin(), one.end());
  }
  CacheOf<Fp8E4M3, Paged, HeadMajor> to({.blocks = 1'000'000, .block_tokens = 1}, flat);
  const Bytes bytes = forged.bytes();
  const std::size_t allocated = allocated_bytes();
  REQUIRE_THROWS_WITH(to.loaded(bytes), contains("sequences whose block tables are smaller than the rows"));
  REQUIRE(allocated_bytes() - allocated < (std::size_t{2} << 20) + 16 * bytes.size());
  REQUIRE(to.stats().blocks_free == 1'000'000);
}

TEST_CASE("The end of another snapshot is refused", "[io][format]") {
  const Bytes one = small_snapshot();
  Forge forged(one);
  forged.own_end = true;
  Bytes without_end = forged.bytes();
  Bytes other = one;
  other.resize(without_end.size());
  REQUIRE(other == without_end);
  // A layer of another snapshot, valid in itself.
  forged.at("layr").payload[0] ^= std::byte{1};
  Bytes mixed = forged.bytes();
  mixed.insert(mixed.end(), one.begin() + static_cast<std::ptrdiff_t>(mixed.size()), one.end());
  Victim victim;
  REQUIRE_THAT(refuse(victim.cache, mixed), contains("the end of these 7 sections"));
}

}  // namespace snapshot_refusals_test
