// A file of version 1 of the format, as the code wrote it before there were layer groups, is still read, and is still
// what a cache of one shape is saved as.
#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <string_view>
#include <vector>

#include "catch.hpp"
#include "forge.hpp"
#include "kvc/cache.hpp"
#include "kvc/policy/contiguous.hpp"
#include "kvc/policy/eviction/lru.hpp"
#include "kvc/policy/paged.hpp"
#include "kvc/policy/prefix_shared.hpp"
#include "kvc/snapshot/snapshot.hpp"

namespace {
using namespace kvc;

/// Written from PrefixShared<Lru> with 16 blocks of 4 tokens, f32, two layers with two heads, keys of 2 elements and
/// values of 1: the sequences of `saved_tokens`, of which the second is a fork of the first, and one that was closed.
constexpr std::string_view version_1_hex =
    "894b56430d0a1a0a0100000000000000b171db8739f56ece646573630100000000000000000000008000000000000000"
    "fc586b0817537a4702000000000000000200000000000000020000000000000001000000000000000800000000000000"
    "04000000000000000400000000000000663332000000000000000000000000000000000000000000686561642d6d616a"
    "6f7200000000000000000000000000007072656669782d736861726564000000000000000000000049f1bd9df4f66769"
    "73616c740100000000000000000000001a00000000000000076e614e1fcba71500000000000000000a00000000000000"
    "02010000000000000078191d826978425a86626c6b73010000000000000000000000500000000000000003e0b8d385b7"
    "4381ffffffff040000000400000001000000000000000400000004000000010000000000000002000000020000000000"
    "000000000000020000000200000000000000feffffff0100000001000000000000009a0b4f7400ce03aa746f6b6e0100"
    "000000000000000000003400000000000000deb530ff9396823b01000000020000000300000004000000090000000a00"
    "00000b0000000c00000005000000060000000500000007000000080000001067ba226c2c08e873657173010000000000"
    "000000000000300000000000000071b4ae42abdc60680200000006000000060000000000000003000000060000000600"
    "0000000000000400000001000000010000000000000001b20d4d635cec7c6c6179720100000000000000000000003801"
    "000000000000bfec056a9c9c8f6200002041000030410000a0410000a8410000f0410000f84100002042000024420000"
    "4041000050410000b0410000b84100000042000004420000284200002c420000ff430000024400800444000007440080"
    "ff430040024400c00444004007440000b4420000b6420000c8420000ca420000dc420000de420000f0420000f2420000"
    "b8420000ba420000cc420000ce420000e0420000e2420000f4420000f64200801344000016440080184400001b4400c0"
    "13440040164400c0184400401b440000484200004c42000070420000744200005042000054420000784200007c420080"
    "094400000c4400c0094400400c440000484200004c4200008c4200008e42000050420000544200009042000092420080"
    "094400800e4400c0094400c00e440000a0420000a2420000a4420000a64200001144004011445a04858f181284b26c61"
    "79720100000001000000000000003801000000000000f9b986605cc5be0800807c4400c07c4400007f4400407f4400c0"
    "804400e08044000082440020824400007d4400407d4400807f4400c07f440000814400208144004082440060824400c0"
    "bc440000be440040bf440080c04400e0bc440020be440060bf4400a0c04400408844006088440080894400a0894400c0"
    "8a4400e08a4400008c4400208c440080884400a0884400c0894400e0894400008b4400208b4400408c4400608c4400c0"
    "c6440000c8440040c9440080ca4400e0c6440020c8440060c94400a0ca4400408344006083440080844400a084440080"
    "834400a0834400c0844400e0844400c0c1440000c34400e0c1440020c344004083440060834400c0854400e085440080"
    "834400a08344000086440020864400c0c1440040c44400e0c1440060c444000087440020874400408744006087440080"
    "c54400a0c5444666df63394b4335656e6420010000000000000000000000100000000000000051734dfabc06fe0a0700"
    "0000000000000f9e348ebf6fe5bff771377923637787";

const std::vector<std::vector<Token>> saved_tokens = {{1, 2, 3, 4, 5, 6}, {1, 2, 3, 4, 5, 7}, {8}};
const std::vector<Token> closed_tokens = {1, 2, 3, 4, 9, 10, 11, 12};
const Salt salt_of_third(SaltKind::lora, "x");
constexpr Shape version_1_shape{.layers = 2, .kv_heads = 2, .key_dim = 2, .value_dim = 1};

std::vector<std::byte> version_1_file() {
  std::vector<std::byte> bytes;
  for (std::size_t i = 0; i + 1 < version_1_hex.size(); i += 2) {
    const auto digit = [&](std::size_t at) {
      const char c = version_1_hex[at];
      return static_cast<unsigned>(c <= '9' ? c - '0' : c - 'a' + 10);
    };
    bytes.push_back(static_cast<std::byte>(digit(i) * 16 + digit(i + 1)));
  }
  return bytes;
}

template <class P, class L = HeadMajor>
struct Version1 {
  KvCache<float, P, L> cache;

  explicit Version1(const typename P::Config& config) : cache(version_1_shape, config) {}

  std::optional<snapshot::Loaded> loaded(std::span<const std::byte> bytes) {
    io::MemorySource source(bytes, "a file");
    return snapshot::try_load(cache, source);
  }
  /// Rows are 1000 * layer + 10 * token + column, and 500 more in values.
  void check(SeqId seq, std::span<const Token> tokens) const {
    REQUIRE(cache.length(seq) == std::ssize(tokens));
    for (Index layer = 0; layer < version_1_shape.layers; ++layer) {
      for (Index head = 0; head < version_1_shape.kv_heads; ++head) {
        cache.view(layer, seq).for_each_run(head, {0, cache.length(seq)}, [&](const KvRun<float>& run) {
          for (Index i = 0; i < run.rows; ++i) {
            const auto row = static_cast<float>(1000 * layer + 10 * tokens[static_cast<std::size_t>(run.first + i)]);
            for (Index c = 0; c < version_1_shape.key_dim; ++c) {
              REQUIRE(run.k[i * run.k_stride + c] == row + static_cast<float>(head * version_1_shape.key_dim + c));
            }
            REQUIRE(run.v[i * run.v_stride] == row + 500.0F + static_cast<float>(head));
          }
        });
      }
    }
  }
  std::vector<SeqId> check_loads() {
    const auto loaded = this->loaded(version_1_file());
    REQUIRE(loaded);
    REQUIRE(loaded->sequences.size() == saved_tokens.size());
    for (std::size_t i = 0; i < saved_tokens.size(); ++i) {
      check(loaded->sequences[i], saved_tokens[i]);
    }
    cache.verify();
    return loaded->sequences;
  }
};

using Version1Prefix = Version1<PrefixShared<Lru>>;
constexpr PrefixShared<Lru>::Config version_1_pool{.blocks = 16, .block_tokens = 4};
}  // namespace

TEST_CASE("A snapshot of version 1 loads into any policy, block size and layout", "[io][format]") {
  Version1Prefix(version_1_pool).check_loads();
  Version1<PrefixShared<Lru>, TokenMajor>({.blocks = 40, .block_tokens = 1}).check_loads();
  Version1<Paged, TokenMajor>({.blocks = 16, .block_tokens = 3}).check_loads();
  Version1<Contiguous>({.sequences = 4, .max_tokens = 16}).check_loads();
}

TEST_CASE("What a snapshot of version 1 has cached is shared and found", "[io][format]") {
  Version1Prefix version_1(version_1_pool);
  const std::vector<SeqId> sequences = version_1.check_loads();
  auto& cache = version_1.cache;
  REQUIRE(cache.stats().blocks_referenced == 4);  // the first block is that of two sequences
  REQUIRE(cache.stats().blocks_cached == 1);
  std::vector<Token> prompt = closed_tokens;
  prompt.push_back(13);
  const Opened opened = cache.open(prompt);
  REQUIRE(opened.cached == 8);
  version_1.check(opened.seq, closed_tokens);
  OpenOptions options;
  options.salt = salt_of_third;
  REQUIRE(cache.match_length(saved_tokens[0], options) == 0);
  // The loaded sequences go on.
  auto step = cache.extend(sequences[1], std::vector<Token>{20});
  cache.commit(std::move(step));
  REQUIRE(cache.length(sequences[1]) == 7);
  cache.verify();
}

TEST_CASE("A cache of one shape is still saved as version 1, byte for byte", "[io][format]") {
  Version1Prefix version_1(version_1_pool);
  const std::vector<SeqId> sequences = version_1.check_loads();
  io::MemorySink sink;
  snapshot::save(version_1.cache, std::span<const SeqId>(sequences), sink);
  REQUIRE(sink.take() == version_1_file());
}

TEST_CASE("A damaged snapshot of version 1 is refused, and changes nothing", "[io][format]") {
  const std::vector<std::byte> file = version_1_file();
  Version1Prefix version_1(version_1_pool);
  const auto refuse = [&](std::span<const std::byte> bytes) {
    REQUIRE_THROWS_AS(version_1.loaded(bytes), FormatError);
    REQUIRE(version_1.cache.stats().blocks_free == version_1_pool.blocks);
    REQUIRE(version_1.cache.stats().sequences == 0);
  };
  for (std::size_t at = 0; at < file.size(); ++at) {
    CAPTURE(at);
    refuse(std::span(file).first(at));
    std::vector<std::byte> damaged = file;
    damaged[at] ^= std::byte{0x10};
    refuse(damaged);
  }
  // Damage with right checksums: the second block is its own parent, and the length of a sequence passes its last
  // block.
  kvc_test::Forge forged(file);
  forged.at("blks").set(16, std::int32_t{1});
  refuse(forged.bytes());
  forged = kvc_test::Forge(file);
  forged.at("seqs").set(4, std::int32_t{9});
  refuse(forged.bytes());
  version_1.check_loads();
}
