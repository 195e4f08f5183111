// A load without room, without memory or with damaged bytes changes nothing; and layers are sent while they are
// computed.
#include <optional>
#include <string>
#include <vector>

#include "any_cache.hpp"
#include "failing_allocation.hpp"
#include "forge.hpp"
#include "serve.hpp"

namespace {
using namespace kvc;
using namespace kvc_test;

/// Two sequences of 19 tokens that share 8: with blocks of 4, 8 blocks.
Bytes eight_blocks() {
  const auto cache = make_cache<float, Paged4, HeadMajor>();
  const SeqId seq = cache->serve(counting(1, 19));
  const SeqId fork = cache->try_fork(seq, 8).value();
  const Values values = values_of(counting(1, 8));
  REQUIRE(cache->append(fork, counting(50, 11), values_of(counting(50, 11), values.back())));
  REQUIRE(cache->stats().blocks_referenced == 8);
  return cache->saved({fork, seq});
}

/// A source of unknown length that cannot rewind, and returns a few bytes at a time.
class Trickle final : public io::ByteSource {
 public:
  explicit Trickle(std::span<const std::byte> bytes) : io::ByteSource("a connection"), inner_(bytes) {}
  std::size_t read(std::span<const std::span<std::byte>> spans) override {
    std::size_t total = 0;
    for (const std::span<std::byte> span : spans) {
      total += inner_.read(std::span(&span, 1));
    }
    return total;
  }

 private:
  io::MemorySource inner_;
};
}  // namespace

TEMPLATE_TEST_CASE("A load without room for everything loads nothing", "[io][failure]", Reserve, GrowBest, Paged4,
                   Prefix4) {
  const Bytes bytes = eight_blocks();
  int refused = 0;
  for (Pos tokens = 4; tokens <= 140; tokens += 4) {
    CAPTURE(tokens);
    const auto cache = make_cache<float, TestType, HeadMajor>(tokens);
    const bool own = tokens > 64 && cache->append(cache->try_open({}, {})->seq, {}, values_of({1, 2}));
    const Seen before(*cache);
    const auto loaded = cache->loaded(bytes);
    cache->verify();
    if (!loaded) {
      ++refused;
      REQUIRE(Seen(*cache) == before);
    } else {
      REQUIRE(cache->stats().sequences == 2 + (own ? 1 : 0));
      REQUIRE(tokens >= 32);
    }
  }
  REQUIRE(refused >= 7);
}

TEST_CASE("load throws CapacityError where try_load returns nothing", "[io][failure]") {
  const Bytes bytes = eight_blocks();
  KvCache<float, Paged> cache(snapshot_shape, {.blocks = 7, .block_tokens = 4});
  io::MemorySource source(bytes);
  REQUIRE_THROWS_WITH(snapshot::load(cache, source), contains("no room to load a snapshot by 30 tokens"));
  REQUIRE(cache.stats().blocks_free == 7);
}

TEST_CASE("A load evicts what it needs, but not for damaged bytes nor for what does not fit", "[io][failure]") {
  Bytes bytes = eight_blocks();
  const auto full = [](Pos tokens) {
    auto cache = make_cache<float, Prefix4, HeadMajor>(tokens);
    for (Token first = 100; cache->stats().blocks_free > 0; first += 100) {
      cache->close(cache->serve(counting(first, 8)));
    }
    return cache;
  };
  const auto small = full(28);
  const Seen small_before(*small);
  REQUIRE(small->stats().blocks_cached == 7);
  REQUIRE_FALSE(small->loaded(bytes));
  REQUIRE(Seen(*small) == small_before);

  const auto cache = full(40);
  const Seen before(*cache);
  bytes[bytes.size() - 100] ^= std::byte{1};
  REQUIRE_THROWS_AS(cache->loaded(bytes), FormatError);
  REQUIRE(Seen(*cache) == before);
  bytes[bytes.size() - 100] ^= std::byte{1};
  REQUIRE(cache->loaded(bytes));
  REQUIRE(cache->stats().evictions == 8);
  cache->verify();
}

TEMPLATE_TEST_CASE("A load whose n-th allocation fails changes nothing, for every n", "[io][failure]", GrowFirst,
                   Paged4, Prefix4) {
  const auto from = make_cache<float, Prefix4, HeadMajor>();
  const SeqId seq =
      from->serve(counting(1, 19), Salt(SaltKind::tenant, "a tenant with a name too long to be stored in place"));
  (void)from->try_fork(seq, 10);
  from->close(from->serve(counting(300, 9)));
  const Bytes bytes = from->saved(from->sequences());
  int failures = 0;
  for (;; ++failures) {
    CAPTURE(failures);
    REQUIRE(failures < 400);
    const auto cache = make_cache<float, TestType, TokenMajor>();
    cache->serve(counting(1, 5));
    const Seen before(*cache);
    io::MemorySource source(bytes);
    bool refused = false;
    {
      const FailAllocation armed(failures);
      try {
        (void)cache->try_load(source, {});
      } catch (const std::bad_alloc&) {
        refused = true;
      }
    }
    cache->verify();
    if (!refused) {
      break;
    }
    REQUIRE(Seen(*cache) == before);
  }
  REQUIRE(failures > 30);
}

TEST_CASE("save refuses a sequence that is not open, and impossible tokens", "[io][failure]") {
  const auto cache = make_cache<float, Paged4, HeadMajor>();
  const SeqId seq = cache->serve(counting(1, 6));
  const SeqId fork = cache->try_fork(seq, 5).value();
  io::MemorySink sink;
  const auto save = [&](std::vector<snapshot::SavedSequence> list) { cache->save(list, sink); };
  REQUIRE_THROWS_WITH(save({{SeqId{}, {}, {}}}), contains("must be an open sequence"));
  const Tokens seven = counting(1, 7);
  const Tokens others = counting(2, 3);
  REQUIRE_THROWS_WITH(save({{seq, seven, {}}}), contains("tokens.size() is 7"));
  REQUIRE_THROWS_WITH(save({{seq, std::span(seven).first(6), {}}, {fork, others, {}}}),
                      contains("different from those of a sequence that shares the rows"));
  REQUIRE(sink.bytes().empty());
}

TEST_CASE("Layers travel while the next ones are computed", "[io]") {
  using Cache = KvCache<float, PrefixShared<Lru, SeededHash>>;
  using Matrix = Eigen::Matrix<float, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;
  constexpr Shape shape{.layers = 3, .kv_heads = 2, .key_dim = 4};
  const Tokens prompt = counting(1, 11);
  Cache from(shape, {.blocks = 8, .block_tokens = 4});
  const Opened opened = from.open(prompt);
  auto step = from.extend(opened.seq, prompt);
  io::MemorySink sink;
  const snapshot::SavedSequence saved{opened.seq, {}, {}};
  snapshot::Writer<Cache> writer(from, std::span(&saved, 1), sink, {.cached_prefixes = false, .reserved = true});
  std::vector<Matrix> rows;
  std::vector<std::size_t> sizes{sink.bytes().size()};
  for (const Index layer : {2, 0, 1}) {
    REQUIRE_THROWS_WITH(writer.finish(), contains("must be written before finish"));
    rows.push_back(Matrix::Random(11, 8));
    from.write(layer, step, rows.back(), rows.back());
    writer.layer(layer);
    sizes.push_back(sink.bytes().size());
    REQUIRE_THROWS_WITH(writer.layer(layer), contains("one that was not written yet"));
    REQUIRE_THROWS_WITH(writer.layer(3), contains("layer is 3"));
  }
  writer.finish();
  from.commit(std::move(step));

  for (const Pos block_tokens : {4, 3}) {
    Cache to(shape, {.blocks = 8, .block_tokens = block_tokens});
    {  // half of it, as if the sender had died
      Trickle source(std::span(sink.bytes()).first(sizes[2] + 10));
      snapshot::Reader<Cache> reader(to, source);
      REQUIRE(reader.try_reserve());
      REQUIRE(reader.next_layer() == 2);
      REQUIRE(reader.next_layer() == 0);
      REQUIRE_THROWS_WITH(reader.next_layer(), contains("a connection: at byte " + std::to_string(sizes[2] + 10)));
      REQUIRE_THROWS_WITH(reader.commit(), contains("before the end was read"));
    }
    to.verify();
    REQUIRE(to.stats().blocks_free == 8);
    Trickle source(sink.bytes());
    snapshot::Reader<Cache> reader(to, source);
    REQUIRE_THROWS_WITH(reader.next_layer(), contains("before try_reserve"));
    REQUIRE(reader.try_reserve());
    for (const Index layer : {2, 0, 1}) {
      REQUIRE(reader.next_layer() == layer);
      REQUIRE(to.match_length(prompt) == 0);
    }
    REQUIRE_FALSE(reader.next_layer());
    const snapshot::Loaded loaded = reader.commit();
    to.verify();
    REQUIRE(to.match_length(prompt) == 10 / block_tokens * block_tokens);
    for (std::size_t i = 0; i < 3; ++i) {
      Matrix k(11, 8);
      Matrix v(11, 8);
      to.gather(i == 0 ? 2 : static_cast<Index>(i) - 1, loaded.sequences[0], {0, 11}, k, v);
      REQUIRE(k == rows[i]);
      REQUIRE(v == rows[i]);
    }
  }
}
