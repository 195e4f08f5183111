// Tiers: what other engines lost rows, room or requests to, one test for each fault, over every store.
#include <memory>
#include <stdexcept>
#include <vector>

#include "catch.hpp"
#include "every_store.hpp"
#include "kvc/layout/layer_major.hpp"
#include "kvc/tier/host_store.hpp"
#include "paused_store.hpp"
#include "tiered.hpp"

namespace {
using namespace kvc;
using namespace kvc_test;
using tier::StoreOperation;
using tier::WriteRule;
using Paused = PausedStore<EveryStore>;

/// A cache of a few blocks over a store that holds everything back until the test lets it on.
template <class L = HeadMajor>
struct Bench {
  explicit Bench(Index blocks = 8, tier::TiersConfig config = {.model = "m", .load = tier::LoadRule::always},
                 std::uint64_t bytes = 1 << 20)
      : host(present_kind(), bytes), store(host) {
    make(blocks, config);
  }
  /// Another process, with the same store.
  void make(Index blocks, const tier::TiersConfig& config) {
    tiers.reset();
    cache.reset();
    cache = std::make_unique<TieredCache<Lru, L>>(
        tiered_shape, PrefixSharedConfig<Lru>{.blocks = blocks, .block_tokens = tiered_block});
    tiers = std::make_unique<tier::Tiers<TieredCache<Lru, L>>>(*cache, config, store);
  }
  /// Lets everything on until there is nothing more.
  void run() {
    do {
      (void)tiers->poll();
    } while (store.let_all() > 0);
    (void)tiers->poll();
  }
  Pos serve(const Tokens& prompt, const OpenOptions& options = {}) {
    return serve_tiered(*tiers, *cache, prompt, options);
  }
  /// Fills the pool with other prompts, so that nothing else stays in it.
  void flood(Token first = 1'000'000) {
    const bool pauses = std::exchange(store.pauses, true);
    const auto fault = std::exchange(store.fault, [](const Paused::Operation&) { return Fault::none; });
    for (Token t = first; t < first + 40; t += 20) {
      const SeqId seq = cache->open();
      REQUIRE(compute(*cache, seq, counting(t, static_cast<int>(cache->policy().blocks()) * tiered_block)));
      cache->close(seq);
    }
    run();
    store.pauses = pauses;
    store.fault = fault;
  }

  EveryStore host;
  Paused store;
  std::unique_ptr<TieredCache<Lru, L>> cache;
  std::unique_ptr<tier::Tiers<TieredCache<Lru, L>>> tiers;
};

const Tokens common_prompt = counting(0, 18);  // four full blocks, and a part

}  // namespace

TEST_CASE("A block that the pool evicted is found in a slower tier", "[tier]") {
  Bench<> bench;
  CHECK(bench.serve(common_prompt) == 0);
  bench.run();
  CHECK(bench.host.stats().records == 4);
  CHECK(bench.tiers->recorded(0) == 4);
  bench.flood();
  CHECK(bench.cache->match_length(common_prompt) == 0);
  const tier::Found found = bench.tiers->prefetch(common_prompt);
  CHECK(found.cached == 0);
  CHECK(found.pending == 16);
  CHECK(bench.cache->match_length(common_prompt) == 0);
  bench.run();
  CHECK(bench.tiers->pending(found.load) == 0);
  CHECK(bench.cache->match_length(common_prompt) == 16);
  CHECK(bench.serve(common_prompt) == 16);
  CHECK(bench.tiers->stats(0).loaded == 4);
  CHECK(bench.tiers->stats().loads == 1);
  bench.tiers->verify();
}

TEST_CASE("Another process finds the blocks, whatever its hashes are seeded with", "[tier]") {
  Bench<> bench;
  CHECK(bench.serve(common_prompt) == 0);
  bench.run();
  bench.make(8, {.model = "m", .load = tier::LoadRule::always});
  (void)bench.tiers->prefetch(common_prompt);
  bench.run();
  CHECK(bench.serve(common_prompt) == 16);
  SECTION("but not those of another model") {
    bench.make(8, {.model = "m2", .load = tier::LoadRule::always});
    (void)bench.tiers->prefetch(common_prompt);
    bench.run();
    CHECK(bench.serve(common_prompt) == 0);
  }
  SECTION("and not those whose bytes lie otherwise") {
    TieredCache<Lru, LayerMajor<>> other(tiered_shape, {.blocks = 8, .block_tokens = tiered_block});
    tier::Tiers tiers(other, {.model = "m", .load = tier::LoadRule::always}, bench.host);
    CHECK(serve_tiered(tiers, other, common_prompt) == 0);
    settle(tiers);
    other.clear();
    CHECK_THROWS_AS(tiers.renew("m"), std::invalid_argument);
    tiers.renew("m3");
    tiers.verify();
  }
}

TEST_CASE("A pool with a piece for each layer loads and stores its blocks", "[tier]") {
  Bench<LayerMajor<>> bench;
  CHECK(bench.serve(common_prompt) == 0);
  bench.run();
  bench.flood();
  (void)bench.tiers->prefetch(common_prompt);
  bench.run();
  CHECK(bench.serve(common_prompt) == 16);
}

TEST_CASE("A failed, missing or damaged load is a shorter hit, and what is computed behind it is right",
          "[tier][faults]") {
  const OverEveryStore each(GENERATE(from_range(store_kinds())));
  for (const Fault fault : {Fault::fails, Fault::lost, Fault::damaged, Fault::undone}) {
    for (std::size_t bad = 0; bad < 4; ++bad) {
      Bench<> bench;
      REQUIRE(bench.serve(common_prompt) == 0);
      bench.run();
      bench.flood();
      bench.store.fault = [&](const Paused::Operation& op) {
        const bool is_bad = op.kind == StoreOperation::read && op.tokens[0] == static_cast<Token>(4 * bad);
        return is_bad ? fault : Fault::none;
      };
      (void)bench.tiers->prefetch(common_prompt);
      bench.run();
      CAPTURE(static_cast<int>(fault), bad);
      CHECK(bench.cache->match_length(common_prompt) == static_cast<Pos>(4 * bad));
      CHECK(bench.serve(common_prompt) == static_cast<Pos>(4 * bad));  // its rows, found and computed, are compared
      bench.run();
      bench.tiers->verify();
      CHECK(bench.tiers->loads() == 0);
      CHECK(bench.cache->stats().pins == 0);
      const tier::TierStats stats = bench.tiers->stats(0);
      CHECK(stats.load_failed + stats.load_misses + stats.load_refused == 1);
      if (fault == Fault::damaged) {  // nobody finds it again; then the computed one took its place
        CHECK(bench.host.stats().erases == 1);
      }
    }
  }
}

TEST_CASE("A block that one tier lost is read from the next one", "[tier][faults]") {
  const OverEveryStore each(GENERATE(from_range(store_kinds())));
  EveryStore first(present_kind());
  tier::HostStore<> second({.bytes = 1 << 20, .chunk_bytes = 256});
  Paused broken(first);
  broken.pauses = false;
  TieredCache<> cache(tiered_shape, {.blocks = 8, .block_tokens = tiered_block});
  tier::Tiers tiers(cache, {.model = "m", .load = tier::LoadRule::always}, broken, second);
  CHECK(serve_tiered(tiers, cache, common_prompt) == 0);
  settle(tiers);
  CHECK(first.stats().records == 4);
  CHECK(second.stats().records == 4);
  const SeqId flood = cache.open();
  REQUIRE(compute(cache, flood, counting(100, 32)));
  cache.close(flood);
  broken.fault = [](const Paused::Operation& op) {
    return op.kind == StoreOperation::read ? Fault::fails : Fault::none;
  };
  (void)tiers.prefetch(common_prompt);
  settle(tiers);
  CHECK(serve_tiered(tiers, cache, common_prompt) == 16);
  CHECK(tiers.stats(0).load_failed == 4);
  CHECK(tiers.stats(1).loaded == 4);
  tiers.verify();
}

TEST_CASE("Rows from before a clear are neither stored nor loaded under the new weights", "[tier][faults]") {
  const OverEveryStore each(GENERATE(from_range(store_kinds())));
  Bench<> bench;
  REQUIRE(bench.serve(common_prompt) == 0);
  bench.run();
  bench.flood();
  const tier::Found found = bench.tiers->prefetch(common_prompt);
  bench.store.let_all();  // the lookup
  (void)bench.tiers->poll();
  REQUIRE(bench.store.count(StoreOperation::read) == 4);
  bench.cache->clear();
  bench.run();
  CHECK(bench.tiers->pending(found.load) == 0);
  CHECK(bench.cache->match_length(common_prompt) == 0);
  CHECK(bench.tiers->prefetch(common_prompt).pending == 0);  // nothing more is done under the old name
  const auto records = bench.host.stats().records;
  CHECK(serve_tiered(*bench.tiers, *bench.cache, counting(50, 9), {}, 7) == 0);
  bench.run();
  CHECK(bench.host.stats().records == records);
  bench.tiers->renew("m, with other weights");
  (void)bench.tiers->prefetch(common_prompt);
  bench.run();
  CHECK(serve_tiered(*bench.tiers, *bench.cache, common_prompt, {}, 7) == 0);
  bench.run();
  CHECK(bench.host.stats().records == records + 6);
  bench.tiers->verify();
}

TEST_CASE("A block is not stored before its rows are in place, and not before its parent", "[tier][faults]") {
  const OverEveryStore each(GENERATE(from_range(store_kinds())));
  Bench<> bench;
  const SeqId seq = bench.cache->open();
  {
    auto append = bench.cache->extend(seq, common_prompt);
    bench.run();
    CHECK(bench.host.stats().writes == 0);  // reserved, not committed
  }
  REQUIRE(compute(*bench.cache, seq, common_prompt));
  for (std::size_t written = 0; written < 4; ++written) {
    (void)bench.tiers->poll();
    REQUIRE(bench.store.waiting.size() == 1);  // the others wait for it
    CHECK(bench.store.waiting[0].tokens[0] == static_cast<Token>(4 * written));
    bench.store.let();
  }
  (void)bench.tiers->poll();
  CHECK(bench.store.waiting.empty());
  bench.cache->close(seq);
  bench.tiers->verify();
}

TEST_CASE("A block whose write failed takes its children along, and is written again for a later one",
          "[tier][faults]") {
  const OverEveryStore each(GENERATE(from_range(store_kinds())));
  Bench<> bench;
  bench.store.fault = [](const Paused::Operation& op) { return op.tokens[0] == 4 ? Fault::fails : Fault::none; };
  const SeqId seq = bench.cache->open();
  REQUIRE(compute(*bench.cache, seq, counting(0, 16)));
  bench.run();
  CHECK(bench.host.stats().records == 1);
  CHECK(bench.tiers->stats(0).store_failed == 1);
  CHECK(bench.tiers->stats(0).lost == 2);
  bench.tiers->verify();
  bench.store.fault = [](const Paused::Operation&) { return Fault::none; };
  REQUIRE(compute(*bench.cache, seq, counting(0, 20)));
  bench.run();
  CHECK(bench.host.stats().records == 5);
  bench.cache->close(seq);
}

TEST_CASE("Pipelined, a chain is written at once, and a child is erased if its parent failed", "[tier][faults]") {
  const OverEveryStore each(GENERATE(from_range(store_kinds())));
  Bench<> bench(8, {.model = "m", .load = tier::LoadRule::always, .pipelined = true});
  bench.store.fault = [](const Paused::Operation& op) {
    return op.kind == StoreOperation::write && op.tokens[0] == 4 ? Fault::fails : Fault::none;
  };
  const SeqId seq = bench.cache->open();
  REQUIRE(compute(*bench.cache, seq, counting(0, 16)));
  (void)bench.tiers->poll();
  REQUIRE(bench.store.waiting.size() == 4);
  bench.store.let(1);  // block 1 fails
  (void)bench.tiers->poll();
  bench.run();
  CHECK(bench.host.stats().erases >= 1);
  bench.cache->close(seq);
  bench.flood();
  (void)bench.tiers->prefetch(counting(0, 17));
  bench.run();
  CHECK(bench.serve(counting(0, 17)) == 8);  // block 1 was copied aside when it left the pool
  bench.tiers->verify();
}

TEST_CASE("A load overwrites nothing that an open sequence reads", "[tier][faults]") {
  const OverEveryStore each(GENERATE(from_range(store_kinds())));
  Bench<> bench;
  REQUIRE(bench.serve(common_prompt) == 0);
  bench.run();
  bench.flood();
  const Tokens other = counting(500, 19);
  const SeqId reader = bench.cache->open();
  REQUIRE(compute(*bench.cache, reader, other));
  (void)bench.tiers->prefetch(common_prompt);  // four blocks, and five of eight are referenced: there is room for three
  bench.run();
  CHECK(has_rows(*bench.cache, reader, other));
  CHECK(bench.serve(common_prompt) >= 0);
  CHECK(bench.cache->stats().pins == 0);
  bench.cache->close(reader);
  bench.tiers->verify();
}

TEST_CASE("A load under way that cannot be stopped keeps its room until it ends", "[tier][faults]") {
  const OverEveryStore each(GENERATE(from_range(store_kinds())));
  Bench<> bench;
  REQUIRE(bench.serve(common_prompt) == 0);
  bench.run();
  bench.flood();
  const tier::Found found = bench.tiers->prefetch(common_prompt);
  bench.store.let_all();
  (void)bench.tiers->poll();
  REQUIRE(bench.store.count(StoreOperation::read) == 4);
  SECTION("it can be stopped") {
    bench.tiers->cancel(found.load);
    CHECK(bench.store.count(StoreOperation::read) == 0);
    CHECK(bench.tiers->loads() == 0);
    CHECK(bench.cache->available() == 8);
  }
  SECTION("it cannot") {
    bench.store.can_cancel = false;
    bench.tiers->cancel(found.load);
    CHECK(bench.tiers->pending(found.load) == 0);
    CHECK(bench.cache->available() == 4);
    const SeqId seq = bench.cache->open();
    REQUIRE(compute(*bench.cache, seq, counting(700, 16)));
    bench.store.let_all();  // into the blocks of the load
    CHECK(has_rows(*bench.cache, seq, counting(700, 16)));
    bench.run();
    CHECK(bench.tiers->loads() == 0);
    CHECK(bench.cache->match_length(common_prompt) == 0);
    bench.cache->close(seq);
    CHECK(bench.cache->available() == 8);
  }
  SECTION("its tiers are destroyed") {
    bench.store.can_cancel = false;
    bench.tiers.reset();  // waits
    bench.cache->verify();
    CHECK(bench.cache->available() == 8);
    CHECK(bench.cache->stats().pins == 0);
    return;
  }
  bench.tiers->verify();
}

TEST_CASE("Blocks that leave the pool before they are written are copied aside, or given up from the end on",
          "[tier][faults]") {
  const OverEveryStore each(GENERATE(from_range(store_kinds())));
  Bench<> bench(8, {.model = "m", .load = tier::LoadRule::always, .writes = 2});
  REQUIRE(bench.serve(common_prompt) == 0);  // nothing is written yet
  const SeqId seq = bench.cache->open();
  SECTION("only the last one, whose parent is written") {
    for (int i = 0; i < 3; ++i) {
      (void)bench.tiers->poll();
      bench.store.let_all();
    }
    (void)bench.tiers->poll();  // the last one is ready, or under way
    REQUIRE(compute(*bench.cache, seq, counting(100, 32)));
    bench.run();
    CHECK(bench.tiers->stats(0).lost <= 8);
  }
  SECTION("all") {
    REQUIRE(compute(*bench.cache, seq, counting(100, 32)));
    bench.run();
    CHECK(bench.tiers->stats(0).lost == 3);  // the first one was under way, or was ready when it left
  }
  bench.cache->close(seq);
  bench.flood();
  (void)bench.tiers->prefetch(common_prompt);
  bench.run();
  CHECK(bench.serve(common_prompt) >= 0);  // rows are compared
  bench.tiers->verify();
}

TEST_CASE("No room is taken before the tiers have answered, and none for what nobody has", "[tier][faults]") {
  const OverEveryStore each(GENERATE(from_range(store_kinds())));
  Bench<> bench;
  REQUIRE(bench.serve(common_prompt) == 0);
  bench.run();
  const Tokens unknown = counting(300, 30);
  (void)bench.tiers->prefetch(unknown);
  CHECK(bench.cache->match_length(common_prompt) == 16);
  CHECK(bench.cache->stats().pins == 0);
  bench.run();
  CHECK(bench.cache->match_length(common_prompt) == 16);  // nothing was evicted
  CHECK(bench.tiers->stats().loads == 0);
  SECTION("a lookup that fails finds nothing") {
    bench.flood();
    bench.store.fault = [](const Paused::Operation& op) {
      return op.kind == StoreOperation::lookup ? Fault::fails : Fault::none;
    };
    (void)bench.tiers->prefetch(common_prompt);
    bench.run();
    CHECK(bench.serve(common_prompt) == 0);
    CHECK(bench.tiers->stats(0).lookups_failed >= 1);
  }
  bench.tiers->verify();
}

TEST_CASE("A prefix whose beginning is evicted before the tiers have answered is not loaded", "[tier][faults]") {
  const OverEveryStore each(GENERATE(from_range(store_kinds())));
  Bench<> bench;
  REQUIRE(bench.serve(common_prompt) == 0);
  bench.run();
  bench.flood();
  (void)bench.tiers->prefetch(counting(0, 9));
  bench.run();
  REQUIRE(bench.cache->match_length(common_prompt) == 8);
  const tier::Found found = bench.tiers->prefetch(common_prompt);  // asks for the two blocks behind
  CHECK(found.cached == 8);
  CHECK(found.pending == 8);
  bench.flood();
  CHECK(bench.tiers->stats().loads_overtaken == 1);
  CHECK(bench.tiers->pending(found.load) == 0);
  CHECK(bench.cache->match_length(common_prompt) == 0);
  (void)bench.tiers->prefetch(common_prompt);
  bench.run();
  CHECK(bench.serve(common_prompt) == 16);
}

TEST_CASE("The blocks of one salt are never found under another", "[tier][faults]") {
  const OverEveryStore each(GENERATE(from_range(store_kinds())));
  Bench<> bench;
  const OpenOptions a{.salt = Salt(SaltKind::tenant, "a")}, b{.salt = Salt(SaltKind::tenant, "b")};
  REQUIRE(bench.serve(common_prompt, a) == 0);
  bench.run();
  bench.flood();
  for (const OpenOptions& options : {b, OpenOptions{}}) {
    (void)bench.tiers->prefetch(common_prompt, options);
    bench.run();
    CHECK(bench.cache->match_length(common_prompt, options) == 0);
  }
  (void)bench.tiers->prefetch(common_prompt, a);
  bench.run();
  CHECK(bench.serve(common_prompt, a) == 16);
}

TEST_CASE("Two prompts with a common prefix load it once", "[tier]") {
  Bench<> bench;
  REQUIRE(bench.serve(common_prompt) == 0);
  bench.run();
  bench.flood();
  const tier::Found one = bench.tiers->prefetch(common_prompt);
  const tier::Found two = bench.tiers->prefetch(common_prompt);
  CHECK(one.load == two.load);
  bench.run();
  CHECK(bench.tiers->stats(0).loaded == 4);
  CHECK(bench.tiers->prefetch(common_prompt).load == tier::no_load);
}

TEST_CASE("What the pool is too small for is loaded as far as it fits", "[tier]") {
  Bench<> bench(16);
  const Tokens longer = counting(0, 57);
  REQUIRE(bench.serve(longer) == 0);
  bench.run();
  bench.make(6, {.model = "m", .load = tier::LoadRule::always});
  (void)bench.tiers->prefetch(longer);
  bench.run();
  CHECK(bench.cache->match_length(longer) == 24);
  bench.tiers->verify();
}

TEST_CASE("Nothing is loaded or asked by LoadRule::never, and write rules decide what is stored", "[tier]") {
  SECTION("never") {
    Bench<> bench(8, {.model = "m", .load = tier::LoadRule::never, .write = {WriteRule::never}});
    REQUIRE(bench.serve(common_prompt) == 0);
    CHECK(bench.tiers->prefetch(counting(40, 9)).load == tier::no_load);
    bench.run();
    CHECK(bench.host.stats().lookups == 0);
    CHECK(bench.host.stats().writes == 0);
  }
  SECTION("back: as the pool runs short") {
    Bench<> bench(16, {.model = "m", .load = tier::LoadRule::always, .write = {WriteRule::back}, .reserve = 6});
    REQUIRE(bench.serve(common_prompt) == 0);
    bench.run();
    CHECK(bench.host.stats().writes == 0);
    REQUIRE(bench.serve(counting(100, 41)) == 0);  // 14 of 16 blocks were computed: 2 could be taken without loss
    bench.run();
    CHECK(bench.host.stats().writes >= 4);
    CHECK(bench.host.stats().writes < 14);
    CHECK(bench.tiers->flush(tier::TimePoint::max()));
    CHECK(bench.host.stats().writes == 14);
  }
  SECTION("selective: what was found again") {
    Bench<> bench(16, {.model = "m", .load = tier::LoadRule::always, .write = {WriteRule::selective}});
    REQUIRE(bench.serve(common_prompt) == 0);
    bench.run();
    CHECK(bench.host.stats().writes == 0);
    REQUIRE(bench.serve(counting(0, 11)) == 10);
    bench.run();
    CHECK(bench.host.stats().writes == 2);
    bench.flood();
    CHECK(bench.host.stats().writes == 2);
    CHECK(bench.tiers->stats(0).not_worth > 0);
  }
}

namespace {
/// Blocks are the likelier to be used again the lower their number is.
struct LowNumbersFirst : Lru {
  using Lru::Lru;
  [[nodiscard]] double hazard(BlockId block, std::uint64_t) const noexcept {
    return static_cast<std::int32_t>(block) < 8 ? 2 : 1;
  }
};
}  // namespace

TEST_CASE("WriteRule::selective keeps what the eviction policy takes for valuable, where a read pays", "[tier]") {
  static_assert(EstimatesReuse<LowNumbersFirst>);
  using Cache = TieredCache<LowNumbersFirst>;
  tier::HostStore<> host({.bytes = 1 << 20, .chunk_bytes = 256});
  Cache cache(tiered_shape, {.blocks = 16, .block_tokens = tiered_block});
  tier::Tiers tiers(cache, {.model = "m", .write = {WriteRule::selective}}, host);
  const auto stored_of = [&](int from) {  // of 800 prompts of one block, of which 784 leave
    const Index before = tiers.stats(0).stored;
    for (int i = from; i < from + 800; ++i) {
      const SeqId seq = cache.open();
      REQUIRE(compute(cache, seq, counting(1'000 * i, tiered_block)));
      cache.close(seq);
      (void)tiers.poll();
    }
    return tiers.stats(0).stored - before;
  };
  SECTION("half of the blocks have the higher hazard") {
    (void)stored_of(0);  // the mean is learned
    CHECK(stored_of(1'000) == 400);
    CHECK(tiers.stats(0).not_worth >= 400);
  }
  SECTION("nothing that is computed sooner than read") {
    tiers.policy().prefill() = tier::PrefillSpeed(1e-6, 0);
    tiers.policy().reads(0) = tier::ReadSpeed(0, 1e3);
    CHECK(stored_of(0) == 0);
  }
  SECTION("the latency of a read is shared by a prefix") {
    tiers.policy().prefill() = tier::PrefillSpeed(1e-3, 0);
    tiers.policy().reads(0) = tier::ReadSpeed(1, 1e9);
    CHECK(stored_of(0) >= 400);
  }
}

TEST_CASE("A store that evicts keeps parents longest, and what it evicted is written again", "[tier]") {
  Bench<> bench(16, {.model = "m", .load = tier::LoadRule::always}, 6 * 256);  // six records
  REQUIRE(bench.serve(counting(0, 17)) == 0);
  bench.run();
  REQUIRE(bench.serve(counting(100, 17)) == 0);
  bench.run();
  CHECK(bench.host.stats().evicted == 2);
  CHECK(bench.tiers->recorded(0) == 6);
  bench.make(16, {.model = "m", .load = tier::LoadRule::always});
  (void)bench.tiers->prefetch(counting(0, 17));
  bench.run();
  CHECK(bench.cache->match_length(counting(0, 17)) == 8);
  bench.tiers->verify();
}

TEST_CASE("Bad configurations are refused by name", "[tier]") {
  Bench<> bench;
  TieredCache<> cache(tiered_shape, {.blocks = 8, .block_tokens = tiered_block});
  CHECK_THROWS_WITH(tier::Tiers(cache, {}, bench.host), contains("config.model"));
  CHECK_THROWS_WITH(tier::Tiers(cache, {.model = "m", .write = {WriteRule::back, WriteRule::back}}, bench.host),
                    contains("config.write.size()"));
  CHECK_THROWS_WITH(tier::Tiers(cache, {.model = "m", .reads = 0}, bench.host), contains("config.reads"));
  CHECK_THROWS_AS(bench.tiers->stats(1), std::invalid_argument);
}
