// Contiguous beyond the common contract: its two modes, its fits, and the failure it is known for.
#include "kvc/policy/contiguous.hpp"

#include "catch.hpp"

namespace {
using namespace kvc;

SeqId grown(Contiguous& policy, Pos tokens) {
  const SeqId seq = policy.try_open()->seq;
  REQUIRE(policy.try_extend(seq, tokens));
  policy.commit(seq);
  return seq;
}

Pos start_of(const Contiguous& policy, SeqId seq) {
  Pos start = -1;
  policy.for_each_run(seq, {0, policy.length(seq)}, [&](const SlotRun& run) { start = run.offset; });
  return start;
}
}  // namespace

TEST_CASE("Free memory, and still no room: external fragmentation", "[contiguous]") {
  // Ten sequences fill the pool; every second one ends. Half of the pool is free, in holes of a tenth.
  Contiguous policy(
      {.sequences = 16, .max_tokens = 1000, .pool_tokens = 1000, .mode = Contiguous::Mode::grow, .growth_tokens = 100});
  std::vector<SeqId> sequences;
  for (int i = 0; i < 10; ++i) {
    sequences.push_back(grown(policy, 100));
  }
  for (std::size_t i = 0; i < 10; i += 2) {
    policy.close(sequences[i]);
  }
  Stats stats = policy.stats();
  REQUIRE(stats.blocks_free == 500);
  REQUIRE(stats.largest_free_run == 100);
  REQUIRE(stats.external_fragmentation() == Approx(0.8));
  const SeqId seq = policy.try_open()->seq;
  REQUIRE_FALSE(policy.try_extend(seq, 101));
  REQUIRE(policy.try_extend(seq, 100));
  policy.verify();
}

TEST_CASE("A growing sequence moves when its neighbour is in the way, and leaves a hole behind", "[contiguous]") {
  Contiguous policy(
      {.sequences = 4, .max_tokens = 64, .pool_tokens = 64, .mode = Contiguous::Mode::grow, .growth_tokens = 8});
  const SeqId a = grown(policy, 8);
  const SeqId b = grown(policy, 8);
  REQUIRE(start_of(policy, a) == 0);
  REQUIRE(start_of(policy, b) == 8);
  const auto moved = policy.try_extend(a, 1);
  REQUIRE(moved->copies[0].count == 8);
  REQUIRE(moved->copies[0].from_slot == 0);
  REQUIRE(moved->copies[0].to_slot == 16);
  policy.commit(a);
  const auto grew = policy.try_extend(a, 20);  // the rest of the pool lies behind it
  REQUIRE(grew->copies.empty());
  policy.commit(a);
  REQUIRE(start_of(policy, a) == 16);
  policy.verify();
  REQUIRE(policy.stats().copies == 1);
  REQUIRE(policy.stats().copied_tokens == 8);
}

TEST_CASE("First fit takes the lowest hole, best fit the smallest", "[contiguous]") {
  const auto fit = GENERATE(Contiguous::Fit::first, Contiguous::Fit::best);
  Contiguous policy({.sequences = 8,
                     .max_tokens = 40,
                     .pool_tokens = 100,
                     .mode = Contiguous::Mode::grow,
                     .fit = fit,
                     .growth_tokens = 1});
  const SeqId a = grown(policy, 30);
  grown(policy, 1);
  const SeqId c = grown(policy, 10);
  grown(policy, 1);
  policy.close(a);
  policy.close(c);
  REQUIRE(start_of(policy, grown(policy, 10)) == (fit == Contiguous::Fit::first ? 0 : 31));
}

TEST_CASE("Reserve takes the maximum at once and wastes what is not used", "[contiguous]") {
  Contiguous policy({.sequences = 3, .max_tokens = 100});
  const SeqId a = grown(policy, 10);
  REQUIRE(policy.stats().tokens_reserved == 100);
  REQUIRE(policy.stats().internal_waste() == Approx(0.9));
  REQUIRE_FALSE(policy.try_extend(a, 91));
  REQUIRE(policy.try_extend(a, 90));
  const OpenOptions small{.max_tokens = 20};
  REQUIRE(policy.try_open({}, small));
  REQUIRE(policy.stats().tokens_reserved == 120);
  REQUIRE(policy.try_open());
  REQUIRE_FALSE(policy.try_open({}, small));  // three sequences are open
  policy.verify();
}

TEST_CASE("Where rounding up finds no room, growing takes what there is", "[contiguous]") {
  Contiguous policy(
      {.sequences = 2, .max_tokens = 20, .pool_tokens = 20, .mode = Contiguous::Mode::grow, .growth_tokens = 16});
  const SeqId a = grown(policy, 5);
  const SeqId b = grown(policy, 4);  // of 20 slots, 16 are taken
  REQUIRE(policy.stats().blocks_free == 0);
  REQUIRE_FALSE(policy.try_extend(b, 1));
  policy.truncate(a, 0);
  REQUIRE(policy.try_extend(b, 1));
  policy.verify();
}

TEST_CASE("A bad configuration is refused with its name and value", "[contiguous]") {
  REQUIRE_THROWS_WITH(Contiguous({.sequences = 0, .max_tokens = 1}), kvc_test::contains("config.sequences is 0"));
  REQUIRE_THROWS_WITH(Contiguous({.sequences = 1}), kvc_test::contains("config.max_tokens is 0"));
  REQUIRE_THROWS_WITH(Contiguous({.sequences = 1, .max_tokens = 1, .pool_tokens = -5}),
                      kvc_test::contains("config.pool_tokens is -5"));
  REQUIRE_THROWS_WITH(Contiguous({.sequences = 1 << 20, .max_tokens = 1 << 20}),
                      kvc_test::contains("config.sequences * config.max_tokens"));
  REQUIRE_THROWS_WITH(Contiguous({.sequences = 1, .max_tokens = 1, .growth_tokens = 0}),
                      kvc_test::contains("config.growth_tokens is 0"));
  Contiguous policy({.sequences = 1, .max_tokens = 4});
  REQUIRE_THROWS_WITH(policy.try_open({}, {.max_tokens = 5}), kvc_test::contains("options.max_tokens is 5"));
}

TEST_CASE("A policy tells what is free and what a sequence has, in constant time", "[contiguous]") {
  Contiguous reserve({.sequences = 4, .max_tokens = 40, .pool_tokens = 100});
  (void)reserve.try_open();
  const SeqId seq = reserve.try_open()->seq;
  REQUIRE(reserve.available() == 20);
  REQUIRE(reserve.try_extend(seq, 3));
  REQUIRE(reserve.allocation(seq) == SlotRun{BlockId{0}, 40, 40, 0});
  Contiguous grow(
      {.sequences = 4, .max_tokens = 64, .pool_tokens = 64, .mode = Contiguous::Mode::grow, .growth_tokens = 8});
  REQUIRE(grow.allocation(grown(grow, 9)) == SlotRun{BlockId{0}, 0, 16, 0});
  REQUIRE(grow.available() == 48);
  REQUIRE(grow.available() == grow.stats().blocks_free);
}
