// Tiers of caches with layer groups: windows, chunks, latent rows and recurrent states, whatever the stores do.
#include <algorithm>
#include <cstdint>
#include <memory>
#include <set>
#include <stdexcept>
#include <utility>
#include <vector>

#include "any_groups.hpp"
#include "catch.hpp"
#include "kvc/policy/eviction/lru.hpp"
#include "kvc/policy/prefix_shared.hpp"
#include "kvc/tier/host_store.hpp"
#include "kvc/tier/tiers.hpp"
#include "paused_store.hpp"
#include "random_source.hpp"
#include "serve.hpp"

namespace {
using namespace kvc;
using namespace kvc_test;
using tier::StoreOperation;

using GroupPolicy = PrefixShared<Lru, ChainHash, EventCallback>;
using Groups = GroupsOf<float, GroupPolicy, HeadMajor>;
using GroupTiers = tier::Tiers<Groups::Cache>;
using PausedHost = PausedStore<tier::HostStore<>>;

/// A cache with layer groups over a store that holds everything back until the test lets it on.
struct GroupBench {
  explicit GroupBench(LayerGroups model, Index pool = 96, std::uint64_t bytes = 1 << 20)
      : layers(std::move(model)),
        blocks(pool),
        host({.bytes = bytes, .chunk_bytes = 256, .reports_evictions = true}),
        store(host) {
    restart();
  }
  /// Another process with the same store.
  void restart(tier::TiersConfig config = {.model = "m", .load = tier::LoadRule::always}) {
    tiers.reset();
    groups.reset();
    groups = std::make_unique<Groups>(layers, PrefixSharedConfig<Lru>{.blocks = blocks, .block_tokens = 4});
    tiers = std::make_unique<GroupTiers>(groups->cache, config, store);
  }
  void run() {
    do {
      (void)tiers->poll();
    } while (store.let_all() > 0);
    (void)tiers->poll();
    tiers->verify();
  }
  /// What a prompt finds. Computes the rest, in passes of some tokens.
  Pos serve(const Tokens& prompt, Pos pass = 7) {
    const tier::Opened opened = tiers->open(prompt);
    groups->check(opened.seq, prompt);
    while (groups->length(opened.seq) < static_cast<Pos>(prompt.size())) {
      const Pos left = static_cast<Pos>(prompt.size()) - groups->length(opened.seq);
      REQUIRE(groups->extend(opened.seq, prompt, std::min(pass, left)));
      groups->check(opened.seq, prompt);
    }
    groups->close(opened.seq);
    return opened.cached;
  }
  Pos load_and_serve(const Tokens& prompt) {
    (void)tiers->prefetch(prompt);
    run();
    return serve(prompt);
  }

  LayerGroups layers;
  Index blocks;
  tier::HostStore<> host;
  PausedHost store;
  std::unique_ptr<Groups> groups;
  std::unique_ptr<GroupTiers> tiers;
};

/// Two groups of different rows: blocks of one hold twice the tokens of those of the other.
LayerGroups uneven_layers() {
  LayerGroups layers;
  layers.add({.kv_heads = 2, .key_dim = 4, .value_dim = 4});
  layers.add({.kv_heads = 1, .key_dim = 4, .value_dim = 4, .window = 6});
  return layers;
}
std::vector<LayerGroups> kinds_of_layers() {
  return {mixed_layers(), latent_layers(), recurrent_layers(), states_alone(), uneven_layers()};
}
/// What a prompt finds that was computed before.
Pos found_again(const Groups& groups, const Tokens& prompt) {
  const Pos tokens = groups.cache.policy().node_tokens();
  return (static_cast<Pos>(prompt.size()) - 1) / tokens * tokens;
}

}  // namespace

TEST_CASE("Another process finds what was computed with layer groups", "[tier][groups]") {
  for (const LayerGroups& layers : kinds_of_layers()) {
    GroupBench bench(layers);
    const Tokens prompt = counting(0, 50);
    CHECK(bench.serve(prompt) == 0);
    bench.run();
    bench.restart();
    const tier::Found found = bench.tiers->prefetch(prompt);
    CHECK(found.cached == 0);
    CHECK(found.pending > 0);
    bench.run();
    CHECK(bench.tiers->pending(found.load) == 0);
    CHECK(bench.serve(prompt) == found_again(*bench.groups, prompt));
    CHECK(bench.tiers->stats().loads == 1);
    CHECK(bench.groups->cache.stats().pins == 0);
    // A longer prompt goes on there.
    CHECK(bench.load_and_serve(joined(prompt, counting(900, 30))) >= found_again(*bench.groups, prompt));
  }
}

TEST_CASE("Of a group with a window only the tail is read", "[tier][groups]") {
  LayerGroups layers;
  layers.add({.kv_heads = 1, .key_dim = 4, .value_dim = 4});
  layers.add({.kv_heads = 1, .key_dim = 4, .value_dim = 4, .window = 6, .kept = 2});
  GroupBench bench(layers);
  const Tokens prompt = counting(0, 81);
  CHECK(bench.serve(prompt) == 0);
  bench.run();
  bench.restart();
  int full = 0, window = 0;
  bench.store.fault = [&](const PausedHost::Operation& op) {
    full += op.kind == StoreOperation::read && op.info.group == 0 ? 1 : 0;
    window += op.kind == StoreOperation::read && op.info.group == 1 ? 1 : 0;
    return Fault::none;
  };
  CHECK(bench.load_and_serve(prompt) == 80);
  CHECK(full == 20);
  CHECK(window == 3);  // [0, 2) and [75, 80), in blocks of 4
}

TEST_CASE("A prefix of several groups arrives as a whole, and not before", "[tier][groups]") {
  for (const LayerGroups& layers : kinds_of_layers()) {
    GroupBench bench(layers);
    const Tokens prompt = counting(0, 42);
    CHECK(bench.serve(prompt) == 0);
    bench.run();
    bench.restart();
    const tier::Found found = bench.tiers->prefetch(prompt);
    bench.store.let_all();  // lookups
    (void)bench.tiers->poll();
    while (!bench.store.waiting.empty()) {
      CHECK(bench.groups->match(prompt, {}) == 0);
      CHECK(bench.tiers->pending(found.load) > 0);
      bench.store.let(bench.store.waiting.size() - 1);
      (void)bench.tiers->poll();
      bench.tiers->verify();
    }
    CHECK(bench.groups->match(prompt, {}) == found_again(*bench.groups, prompt));
  }
}

TEST_CASE("A lost, damaged or failing block of any group is a shorter hit, or none, and no wrong row",
          "[tier][groups][faults]") {
  for (const LayerGroups& layers : kinds_of_layers()) {
    for (const Fault fault : {Fault::fails, Fault::lost, Fault::damaged}) {
      GroupBench bench(layers);
      const Tokens prompt = counting(0, 42);
      CHECK(bench.serve(prompt) == 0);
      bench.run();
      const auto records = static_cast<int>(bench.host.stats().records);
      int shorter = 0;
      for (int bad = 0; bad < records; bad += 5) {
        bench.restart();
        int reads = 0;
        bench.store.fault = [&](const PausedHost::Operation& op) {
          return op.kind == StoreOperation::read && reads++ == bad ? fault : Fault::none;
        };
        const Pos hit = bench.load_and_serve(prompt);
        shorter += hit < found_again(*bench.groups, prompt) ? 1 : 0;
        bench.store.fault = [](const PausedHost::Operation&) { return Fault::none; };
        bench.run();  // what was computed is written again
        CHECK(bench.groups->cache.stats().pins == 0);
      }
      CHECK((shorter > 0 || records < 5));
    }
  }
}

TEST_CASE("Rows that the pool has are not read again, wherever a block of a group ends", "[tier][groups]") {
  for (const LayerGroups& layers : kinds_of_layers()) {
    GroupBench bench(layers);
    const Tokens prompt = counting(0, 61);
    CHECK(bench.serve(prompt) == 0);
    bench.run();
    for (int there = 5; there < 60; there += 11) {
      bench.restart();
      const Tokens part(prompt.begin(), prompt.begin() + there);
      CHECK(bench.serve(part) == 0);
      bench.run();
      (void)bench.tiers->prefetch(prompt);
      do {  // the last read ends first: nothing arrives before the first rows of a block are in place
        (void)bench.tiers->poll();
        if (!bench.store.waiting.empty()) {
          bench.store.let(bench.store.waiting.size() - 1);
        }
      } while (!bench.store.waiting.empty());
      bench.run();
      CHECK(bench.serve(prompt) == found_again(*bench.groups, prompt));
    }
  }
}

TEST_CASE("The layers of a load arrive one by one, in any order, and the first computes while the last is on its way",
          "[tier][groups][layers]") {
  Random random(seed_or(3));
  std::vector<LayerGroups> kinds = kinds_of_layers();
  kinds.emplace_back(Shape{.layers = 4, .kv_heads = 1, .key_dim = 4, .value_dim = 4});
  for (const LayerGroups& layers : kinds) {
    GroupBench bench(layers);
    const Tokens prompt = counting(0, 46);
    CHECK(bench.serve(prompt) == 0);
    bench.run();
    for (const bool fails : {false, true}) {
      bench.restart({.model = "m", .load = tier::LoadRule::always, .layers_per_read = 1});
      const tier::Found found = bench.tiers->prefetch(prompt);
      CHECK_FALSE(bench.tiers->open_early(found.load));  // no room has been taken yet
      bench.store.let_all();
      (void)bench.tiers->poll();
      const std::optional<tier::EarlySequence> early = bench.tiers->open_early(found.load);
      REQUIRE(early);
      const Pos length = bench.groups->length(early->seq);
      CHECK(length == found_again(*bench.groups, prompt));
      const Index count = bench.groups->cache.layers().layers();
      std::vector<char> seen(static_cast<std::size_t>(count), 0);
      int ready_early = 0;
      while (!bench.store.waiting.empty()) {
        if (fails && bench.store.waiting.size() == 1) {
          bench.store.fault = [](const PausedHost::Operation&) { return Fault::fails; };
        }
        bench.store.let(random.between(std::size_t{0}, bench.store.waiting.size() - 1));
        for (Index layer = 0; layer < count; ++layer) {
          if (bench.tiers->ready(*early, layer) == length) {
            ready_early += seen[static_cast<std::size_t>(layer)]++ == 0 && !bench.store.waiting.empty() ? 1 : 0;
          }
        }
        if (bench.tiers->pending(found.load) > 0) {
          (void)bench.tiers->poll();
        }
        bench.store.fault = [](const PausedHost::Operation&) { return Fault::none; };
        if (fails && bench.store.waiting.empty()) {
          break;
        }
      }
      CHECK((ready_early > 0 || count == 1 || fails));
      bench.run();
      bench.run();
      if (fails) {
        CHECK_FALSE(bench.tiers->ready(*early, 0));
        CHECK_FALSE(bench.tiers->finish(*early, prompt));  // and it is closed
        CHECK_FALSE(bench.groups->cache.contains(early->seq));
      } else {
        CHECK(bench.tiers->ready(*early, 0) == length);
        bench.groups->check(early->seq, prompt);
        REQUIRE(bench.groups->cache.contains(early->seq));
        auto step = bench.groups->cache.try_extend_without_tokens(early->seq, static_cast<int>(prompt.size()) - length);
        REQUIRE(step);
        for (Index layer = 0; layer < count; ++layer) {
          bench.groups->write(layer, *step, prompt);
        }
        bench.groups->cache.commit(std::move(*step));
        CHECK(bench.tiers->finish(*early, prompt));
        bench.groups->check(early->seq, prompt);
        bench.groups->close(early->seq);
        bench.tiers->verify();
      }
      CHECK(bench.serve(prompt) >= 0);
      bench.run();
    }
  }
}

TEST_CASE("Groups that tiers cannot hold are refused by name", "[tier][groups]") {
  tier::HostStore<> host({.bytes = 1 << 16, .chunk_bytes = 256});
  Groups cross(cross_layers(), {.blocks = 16, .block_tokens = 4});
  CHECK_THROWS_WITH((tier::Tiers(cross.cache, {.model = "m"}, host)), contains("cross_rows"));
  LayerGroups compressed;
  compressed.add({.kv_heads = 1, .key_dim = 4, .value_dim = 4});
  compressed.add({.kv_heads = 1, .key_dim = 64, .value_dim = 64, .tokens_per_row = 64});
  Groups coarse(compressed, {.blocks = 16, .block_tokens = 4});
  CHECK_THROWS_WITH((tier::Tiers(coarse.cache, {.model = "m"}, host)), contains("tokens_per_row"));
}

TEST_CASE("Tiers of layer groups find only what was computed, with its rows and states, whatever the store does",
          "[tier][groups][model]") {
  const std::uint64_t seed = seed_or(60);
  CAPTURE(seed);
  Index loaded = 0;
  std::uint64_t number = 0;
  for (const LayerGroups& layers : kinds_of_layers()) {
    CAPTURE(number);
    Random random(seed + number++);
    GroupBench bench(layers, 40, random.one_in(2) ? 1 << 20 : 64 * 256);
    bool faults = false;
    bench.store.can_cancel = random.one_in(2);
    bench.store.fault = [&](const PausedHost::Operation&) {
      return faults && random.one_in(6) ? static_cast<Fault>(random.between(1, 4)) : Fault::none;
    };
    std::vector<std::pair<SeqId, Tokens>> open;
    std::set<Tokens> computed;
    const auto close = [&](std::size_t i) {
      bench.groups->check(open[i].first, open[i].second);
      bench.groups->close(open[i].first);
      open.erase(open.begin() + static_cast<std::ptrdiff_t>(i));
    };
    const auto random_prompt = [&] {
      Tokens prompt = counting(100 * random.between(0, 2), random.between(1, 40));
      return random.one_in(2) ? joined(prompt, counting(1000 + 100 * random.between(0, 1), random.between(1, 14)))
                              : prompt;
    };
    const int steps = operations_or(5000) / 20;  // each has several reads and checks of whole sequences
    for (int i = 0; i < steps; ++i) {
      switch (random.between(0, 9)) {
        case 0:
        case 1: {
          const Tokens prompt = random_prompt();
          const tier::Opened opened = bench.tiers->open(prompt);
          bench.groups->check(opened.seq, prompt);
          CHECK((opened.cached == 0 || computed.contains(Tokens(prompt.begin(), prompt.begin() + opened.cached))));
          bool fits = true;
          while (fits && bench.groups->length(opened.seq) < static_cast<Pos>(prompt.size())) {
            const Pos left = static_cast<Pos>(prompt.size()) - bench.groups->length(opened.seq);
            fits = bench.groups->extend(opened.seq, prompt, std::min(left, Pos{1} + random.between(0, 9)));
          }
          const Pos length = bench.groups->length(opened.seq);
          for (Pos n = 1; n <= length; ++n) {
            computed.emplace(prompt.begin(), prompt.begin() + n);
          }
          open.emplace_back(opened.seq, Tokens(prompt.begin(), prompt.begin() + length));
          if (open.size() > 2) {
            close(0);
          }
          break;
        }
        case 2:
          if (!open.empty()) {
            close(random.between(std::size_t{0}, open.size() - 1));
          }
          break;
        case 3:
        case 4:
          (void)bench.tiers->prefetch(random_prompt());
          break;
        case 5:
          if (random.one_in(4)) {
            while (!open.empty()) {
              close(0);
            }
            loaded += bench.tiers->stats(0).loaded;
            bench.restart({.model = "m",
                           .load = tier::LoadRule::always,
                           .write = {random.one_in(3) ? tier::WriteRule::back : tier::WriteRule::through},
                           .reads = random.between(std::size_t{1}, std::size_t{8}),
                           .layers_per_read = random.between(0, 2),
                           .pipelined = random.one_in(2)});
          }
          break;
        case 6:
          faults = random.one_in(3);
          break;
        default:
          for (int n = random.between(0, 9); n > 0 && !bench.store.waiting.empty(); --n) {
            bench.store.let(random.between(std::size_t{0}, bench.store.waiting.size() - 1));
          }
          (void)bench.tiers->poll();
      }
      bench.tiers->verify();
    }
    faults = false;
    while (!open.empty()) {
      close(0);
    }
    bench.run();
    CHECK(bench.tiers->loads() == 0);
    CHECK(bench.groups->cache.stats().pins == 0);
    CHECK(bench.groups->cache.available() == bench.groups->cache.policy().blocks());
    loaded += bench.tiers->stats(0).loaded;
  }
  CHECK(loaded > 10);  // a test without loads would be none
}
