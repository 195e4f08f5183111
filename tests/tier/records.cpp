// Records and keys: what is written is read, and everything else is refused for the reason that it has.
#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <numeric>
#include <set>
#include <string>
#include <vector>

#include "../random_source.hpp"
#include "catch.hpp"
#include "kvc/tier/record.hpp"
#include "minimal_store.hpp"
#if defined(KVC_HAVE_SODIUM)
#include "kvc/tier/key_chain.hpp"
#endif

namespace {
using namespace kvc;
using namespace kvc::tier;
using kvc_test::contains;
using RecordBytes = std::vector<std::byte>;

/// A block whose digests are all different.
RecordInfo some_block(std::span<const Token> tokens, std::uint32_t parts = 1) {
  RecordInfo block;
  block.key.bytes.fill(std::byte{1});
  block.parent.bytes.fill(std::byte{2});
  block.format.bytes.fill(std::byte{3});
  block.salt.bytes.fill(std::byte{4});
  block.group = 5;
  block.parts = parts;
  block.tokens = tokens;
  return block;
}

RecordBytes some_payload(std::size_t bytes) {
  RecordBytes payload(bytes);
  for (std::size_t i = 0; i < bytes; ++i) {
    payload[i] = static_cast<std::byte>(i * 7 + i / 256);
  }
  return payload;
}

RecordBytes head_of(const RecordInfo& block, io::ConstByteSpan payload) {
  RecordBytes head(record_head_bytes(block));
  write_record_head(block, std::span(&payload, 1), head);
  return head;
}
}  // namespace

TEST_CASE("A record is accepted for its block, however its bytes are cut into spans", "[tier][record]") {
  const std::vector<Token> tokens{7, -1, 2000000000};
  const RecordBytes payload = some_payload(4 * 75);
  const RecordInfo block = some_block(tokens, 4);
  const RecordBytes head = head_of(block, payload);
  REQUIRE(head.size() == record_head_bytes(3, 4));
  REQUIRE(check_record_head(head, block, payload.size()) == Refusal::none);
  const std::vector<io::ConstByteSpan> cut{std::span(payload).first(0), std::span(payload).first(74),
                                           std::span(payload).subspan(74, 3), std::span(payload).subspan(77)};
  REQUIRE(check_record_payload(head, block, {}, std::span(cut)) == Refusal::none);
  RecordBytes again(head.size());
  write_record_head(block, cut, again);
  REQUIRE(again == head);
  const io::ConstByteSpan middle = std::span(payload).subspan(75, 150);  // parts 1 and 2
  REQUIRE(check_record_payload(head, block, {1, 2}, std::span(&middle, 1)) == Refusal::none);
  REQUIRE(check_record_payload(head, block, {2, 2}, std::span(&middle, 1)) == Refusal::payload_checksum);
}

TEST_CASE("A record is refused for anything that is not its block's", "[tier][record]") {
  const std::vector<Token> tokens{1, 2, 3}, others{1, 2, 4}, fewer{1, 2};
  const RecordBytes payload = some_payload(64);
  const RecordInfo block = some_block(tokens, 2);
  const RecordBytes head = head_of(block, payload);
  const auto refusal = [&](auto change, std::uint64_t bytes = 64) {
    RecordInfo wanted = block;
    change(wanted);
    return check_record_head(head, wanted, bytes);
  };
  REQUIRE(refusal([](RecordInfo& r) { r.format.bytes[31] = {}; }) == Refusal::format);
  REQUIRE(refusal([](RecordInfo& r) { r.salt.bytes[0] = {}; }) == Refusal::salt);
  REQUIRE(refusal([](RecordInfo& r) { r.group = 0; }) == Refusal::group);
  REQUIRE(refusal([](RecordInfo& r) { r.parent.bytes[5] = {}; }) == Refusal::parent);
  REQUIRE(refusal([&](RecordInfo& r) { r.tokens = others; }) == Refusal::tokens);
  REQUIRE(refusal([&](RecordInfo& r) { r.tokens = fewer; }) == Refusal::tokens);
  REQUIRE(refusal([&](RecordInfo& r) { r.tokens = {}; }) == Refusal::tokens);
  REQUIRE(refusal([](RecordInfo& r) { r.key.bytes[9] = {}; }) == Refusal::key);
  REQUIRE(refusal([](RecordInfo& r) { r.parts = 1; }) == Refusal::size);
  REQUIRE(refusal([](RecordInfo&) {}, 63) == Refusal::size);
  // The first difference in the order of the enumeration is the one that is told.
  REQUIRE(refusal([&](RecordInfo& r) {
            r.tokens = others;
            r.parent.bytes[5] = {};
          }) == Refusal::parent);
  for (std::uint8_t i = 0; i <= static_cast<std::uint8_t>(Refusal::payload_checksum); ++i) {
    REQUIRE(to_text(Refusal{i}) != "unknown");
  }
}

TEST_CASE("A damaged record is refused, whichever byte it is and wherever it ends", "[tier][record]") {
  const std::vector<Token> tokens{1, 2, 3};
  RecordBytes payload = some_payload(96);
  const RecordInfo block = some_block(tokens, 3);
  const RecordBytes head = head_of(block, payload);
  for (std::size_t i = 0; i < head.size(); ++i) {
    RecordBytes damaged = head;
    damaged[i] ^= std::byte{0x40};
    INFO("byte " << i);
    REQUIRE(check_record_head(damaged, block, 96) == (i < 8    ? Refusal::no_record
                                                      : i < 12 ? Refusal::version
                                                               : Refusal::head_checksum));
    REQUIRE(check_record_head(std::span(head).first(i), block, 96) == Refusal::truncated);
  }
  for (std::size_t i = 0; i < payload.size(); ++i) {
    payload[i] ^= std::byte{1};
    const io::ConstByteSpan all = payload;
    REQUIRE(check_record_payload(head, block, {}, std::span(&all, 1)) == Refusal::payload_checksum);
    payload[i] ^= std::byte{1};
  }
}

TEST_CASE("A record without bytes is refused if its parts have other checksums than nothing has", "[tier][record]") {
  const std::vector<Token> tokens{1, 2};
  const RecordInfo block = some_block(tokens, 2);
  const std::uint64_t nothing = snapshot::detail::Checksum::of({});
  RecordBytes head(record_head_bytes(block));
  for (const std::uint64_t damage : {0U, 4U}) {
    const std::uint64_t sums[] = {nothing, nothing ^ damage};  // the checksum of the head is right
    write_record_head(block, 0, sums, head);
    REQUIRE(check_record_head(head, block, 0) == (damage == 0 ? Refusal::none : Refusal::payload_checksum));
  }
}

TEST_CASE("A record that cannot be made is an error that names the argument", "[tier][record]") {
  const std::vector<Token> tokens{1};
  const RecordBytes payload = some_payload(10);
  const io::ConstByteSpan all = payload;
  RecordBytes head(1000);
  const auto make = [&](std::uint32_t parts, std::size_t head_bytes) {
    write_record_head(some_block(tokens, parts), std::span(&all, 1), std::span(head).first(head_bytes));
  };
  REQUIRE_THROWS_WITH(make(0, 1000), contains("parts is 0, must be between 1 and 65536"));
  REQUIRE_THROWS_WITH(make(3, 1000), contains("bytes is 10, must be a multiple of the number of parts"));
  REQUIRE_THROWS_WITH(make(2, 1000), contains("head is 1000, must be"));
  REQUIRE_NOTHROW(make(2, record_head_bytes(1, 2)));
}

#if defined(KVC_HAVE_SODIUM)
TEST_CASE("Keys depend on the format, the salt, the group and all tokens, and on nothing else", "[tier][key]") {
  const std::vector<Token> first{1, 2, 3, 4}, second{5, 6, 7, 8}, same{1, 2, 3, 4};
  std::set<std::string> keys;
  const auto walk = [&](KeyChain&& chain, std::span<const Token> a, std::span<const Token> b) {
    const BlockKey root = chain.key();
    const RecordInfo one = chain.next(a);
    const RecordInfo two = chain.next(b, 3);
    REQUIRE(one.parent == root);
    REQUIRE(two.parent == one.key);
    REQUIRE(two.key == chain.key());
    REQUIRE(two.parts == 3);
    REQUIRE(two.tokens.data() == b.data());
    chain.resume(one.key);
    REQUIRE(chain.next(b).key == two.key);
    chain.restart();
    REQUIRE(chain.next(a).key == one.key);
    return two.key.hex();
  };
  const auto is_new = [&](const std::string& key) { return keys.insert(key).second; };
  REQUIRE(is_new(walk(KeyChain("model"), first, second)));
  REQUIRE(!is_new(walk(KeyChain("model"), same, second)));
  REQUIRE(is_new(walk(KeyChain("model", {}, 1), first, second)));
  REQUIRE(is_new(walk(KeyChain("other"), first, second)));
  REQUIRE(is_new(walk(KeyChain("model", Salt(SaltKind::tenant, "a")), first, second)));
  REQUIRE(is_new(walk(KeyChain("model", Salt(SaltKind::lora, "a")), first, second)));
  REQUIRE(is_new(walk(KeyChain("model"), second, first)));
  REQUIRE(is_new(walk(KeyChain("model"), first, first)));
  const std::vector<Token> whole{1, 2, 3, 4, 5, 6, 7, 8};
  KeyChain chain("model");
  REQUIRE(is_new(chain.next(whole).key.hex()));  // the same prefix in one block
  REQUIRE_THROWS_WITH(KeyChain("model", {}, -1), contains("group is -1"));
  REQUIRE_THROWS_WITH(chain.next({}), contains("tokens is 0"));
}

TEST_CASE("Keys are the same in every process, for ever", "[tier][key]") {
  // From Python: hashlib.blake2b(..., digest_size=32), with the integers as 4 little-endian bytes.
  KeyChain chain("model", Salt(SaltKind::tenant, "a"), 2);
  REQUIRE(chain.root().hex() == "bea1774db8e750367ea7bc9e4cfc8688e9ba130b6b356daf4861bcb27155d5f9");
  const std::vector<Token> tokens{1, -2, 3};
  REQUIRE(chain.next(tokens).key.hex() == "b6367a494013ad5b8f55e3347444168ec43f0e2a33142d9bc0f4f542d3971840");
  REQUIRE(chain.next(tokens).key.hex() == "d6b3101fce135b986893c508897163adc3d5ad15156e69bdc0b4e4ec8e2dc6ac");
  std::vector<Token> longer(100);  // more than one compression of the hash
  std::iota(longer.begin(), longer.end(), 0);
  REQUIRE(chain.next(std::span(longer).first(16)).key.hex() ==
          "5b80237afc92f32d5b842a2141af8574b9151d4d6c85ebf80dcd16c68c9bc104");
  REQUIRE(chain.next(longer).key.hex() == "ec6d532e5d4fdda15a980d01c211d24733195959c674eacac4a2687a516f50c0");
}

TEST_CASE("A key is one hash of libsodium, whatever number of tokens a block has", "[tier][key]") {
  kvc_test::Random random(kvc_test::seed_or(3));
  KeyChain chain("model");
  for (std::size_t count = 1; count <= 70; ++count) {
    std::vector<Token> tokens(count);
    std::ranges::generate(
        tokens, [&] { return random.between(std::numeric_limits<Token>::min(), std::numeric_limits<Token>::max()); });
    const Digest before = chain.key();
    BlockKey expected;
    crypto_generichash_state state;
    crypto_generichash_init(&state, nullptr, 0, expected.bytes.size());
    crypto_generichash_update(&state, reinterpret_cast<const unsigned char*>(before.bytes.data()), before.bytes.size());
    crypto_generichash_update(&state, reinterpret_cast<const unsigned char*>(tokens.data()), count * sizeof(Token));
    crypto_generichash_final(&state, reinterpret_cast<unsigned char*>(expected.bytes.data()), expected.bytes.size());
    CAPTURE(count);
    REQUIRE(chain.next(tokens).key == expected);
  }
}
#endif

TEST_CASE("Keys are equal only if all of their bytes are", "[tier][key]") {
  for (std::size_t i = 0; i < BlockKey{}.bytes.size(); ++i) {
    for (int bit = 0; bit < 8; ++bit) {
      BlockKey key, same, other;
      key.bytes.fill(std::byte{0x5a});
      same = other = key;
      other.bytes[i] ^= std::byte{1} << bit;
      REQUIRE(key == same);
      REQUIRE(key != other);
    }
  }
}
