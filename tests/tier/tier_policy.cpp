// TierPolicy: what is measured, and when loading beats computing. WriteQueue: no block before its parent.
#include <cmath>
#include <stdexcept>
#include <vector>

#include "catch.hpp"
#include "kvc/tier/tier_policy.hpp"
#include "kvc/tier/write_queue.hpp"
#include "random_source.hpp"

namespace {
using namespace kvc;
using namespace kvc::tier;
using Catch::Approx;

constexpr double megabyte = 1 << 20;

/// Blocks of 16 tokens and 2 MiB, all in tier 0.
struct Prefix {
  explicit Prefix(std::size_t count) : tiers(count, 0) {}
  [[nodiscard]] LoadCandidate candidate(Pos cached = 0, double under_way = 0) {
    bytes_under_way[0] = under_way;
    return {.cached = cached,
            .prompt = cached + 16 * static_cast<Pos>(tiers.size()) + 1,
            .block_tokens = 16,
            .block_bytes = 2 * megabyte,
            .tiers = tiers,
            .bytes_under_way = bytes_under_way};
  }
  std::vector<std::uint8_t> tiers;
  std::vector<double> bytes_under_way = {0, 0};
};

}  // namespace

TEST_CASE("ReadSpeed learns latency and bandwidth from reads of any size", "[tier][policy]") {
  ReadSpeed speed;
  CHECK_FALSE(speed.known());
  CHECK(speed.seconds(1e9) == 0);
  kvc_test::Random random(1);
  for (int i = 0; i < 200; ++i) {
    const double bytes = random.between(1, 64) * megabyte;
    speed.add(bytes, (0.002 + bytes / 2e9) * random.uniform(0.9F, 1.1F));
  }
  CHECK(speed.seconds(0) == Approx(0.002).margin(0.0007));
  CHECK(speed.seconds(64 * megabyte) == Approx(0.002 + 64 * megabyte / 2e9).epsilon(0.05));
  for (int i = 0; i < 200; ++i) {  // it became ten times slower
    const double bytes = random.between(1, 64) * megabyte;
    speed.add(bytes, 0.002 + bytes / 2e8);
  }
  CHECK(speed.seconds(64 * megabyte) == Approx(0.002 + 64 * megabyte / 2e8).epsilon(0.1));
  ReadSpeed alike;
  alike.add(megabyte, 0.01);
  CHECK(alike.seconds(megabyte) == Approx(0.01));
  CHECK(alike.seconds(2 * megabyte) == Approx(0.02));
  CHECK(ReadSpeed(0.001, 1e9).seconds(1e9) == Approx(1.001));
  CHECK_THROWS_AS(ReadSpeed(-1, 1), std::invalid_argument);
  CHECK_THROWS_AS(ReadSpeed(0, 0), std::invalid_argument);
}

TEST_CASE("PrefillSpeed learns the cost of tokens and of looking back", "[tier][policy]") {
  PrefillSpeed speed;
  CHECK(std::isinf(speed.seconds({0, 1})));
  CHECK(speed.seconds({5, 5}) == 0);
  const auto truth = [](PosRange r) {
    return 1e-4 * r.size() + 1e-8 * (static_cast<double>(r.first) + r.last) / 2 * r.size();
  };
  for (const PosRange range : {PosRange{0, 512}, PosRange{0, 4096}, PosRange{8192, 9216}, PosRange{512, 700}}) {
    speed.add(range, truth(range));
  }
  for (const PosRange range : {PosRange{0, 100}, PosRange{32768, 33000}, PosRange{0, 100'000}}) {
    CHECK(speed.seconds(range) == Approx(truth(range)).epsilon(0.01));
  }
  CHECK(PrefillSpeed(1e-4, 1e-8).seconds({1000, 2000}) == Approx(truth({1000, 2000})));
}

TEST_CASE("Blocks are loaded where that makes the first token come sooner", "[tier][policy]") {
  Prefix prefix(64);
  TierPolicy policy(LoadRule::cheaper);
  SECTION("all, as long as no prefill was measured") { CHECK(policy.blocks_to_load(prefix.candidate()) == 64); }
  SECTION("a fast tier: all") {
    policy.prefill() = PrefillSpeed(1e-4, 0);  // 1.6 ms per block
    policy.reads(0) = ReadSpeed(1e-3, 4e9);    // 0.5 ms per block
    CHECK(policy.blocks_to_load(prefix.candidate()) == 64);
    CHECK(policy.seconds_to_first_token(prefix.candidate(), 64) ==
          Approx(1e-3 + 64 * 2 * megabyte / 4e9 + 1e-4).epsilon(0.01));
    Prefix one(1);
    policy.reads(0) = ReadSpeed(3e-3, 4e9);  // its latency is more than the block takes to compute
    CHECK(policy.blocks_to_load(one.candidate()) == 0);
    CHECK(policy.blocks_to_load(prefix.candidate()) == 64);
  }
  SECTION("a slow tier: none, but for a probe now and then") {
    policy.prefill() = PrefillSpeed(1e-4, 0);
    policy.reads(0) = ReadSpeed(1e-3, 1e9);  // 2.1 ms per block
    std::size_t probes = 0;
    for (std::uint32_t i = 0; i < 4 * TierPolicy::probe_every; ++i) {
      const std::size_t blocks = policy.blocks_to_load(prefix.candidate());
      REQUIRE(blocks <= 1);
      probes += blocks;
    }
    CHECK(probes == 4);
  }
  SECTION("a queue before it: none") {
    policy.prefill() = PrefillSpeed(1e-4, 0);
    policy.reads(0) = ReadSpeed(1e-3, 4e9);
    CHECK(policy.blocks_to_load(prefix.candidate(0, 2e9)) == 0);
  }
  SECTION("deep in a prompt computing costs more") {
    policy.prefill() = PrefillSpeed(1e-4, 1e-8);
    policy.reads(0) = ReadSpeed(1e-3, 1e9);
    CHECK(policy.blocks_to_load(prefix.candidate(0)) == 0);
    CHECK(policy.blocks_to_load(prefix.candidate(16'384)) == 64);
  }
  SECTION("as far as the fast tier has it") {
    for (std::size_t i = 40; i < 64; ++i) {
      prefix.tiers[i] = 1;
    }
    policy.prefill() = PrefillSpeed(1e-4, 0);
    policy.reads(0) = ReadSpeed(1e-3, 4e9);
    policy.reads(1) = ReadSpeed(0.5, 1e8);
    CHECK(policy.blocks_to_load(prefix.candidate()) == 40);
  }
  SECTION("always and never") {
    policy.prefill() = PrefillSpeed(1e-9, 0);
    policy.reads(0) = ReadSpeed(1, 1e6);
    TierPolicy always(LoadRule::always), never(LoadRule::never);
    CHECK(always.blocks_to_load(prefix.candidate()) == 64);
    CHECK(never.blocks_to_load(prefix.candidate()) == 0);
  }
  CHECK_THROWS_AS(policy.reads(TierPolicy::max_tiers), std::invalid_argument);
}

TEST_CASE("The choice is never worse than all or nothing", "[tier][policy]") {
  kvc_test::Random random(3);
  for (int i = 0; i < 300; ++i) {
    Prefix prefix(random.between(std::size_t{1}, std::size_t{40}));
    for (std::size_t b = random.between(std::size_t{0}, prefix.tiers.size()); b < prefix.tiers.size(); ++b) {
      prefix.tiers[b] = 1;
    }
    TierPolicy policy;
    policy.prefill() = PrefillSpeed(random.uniform(1e-5F, 1e-3F), random.uniform(0, 1e-8F));
    policy.reads(0) = ReadSpeed(random.uniform(0, 0.01F), random.uniform(1e8F, 1e10F));
    policy.reads(1) = ReadSpeed(random.uniform(0, 0.1F), random.uniform(1e7F, 1e9F));
    const LoadCandidate candidate = prefix.candidate(16 * random.between(0, 500));
    const double chosen = policy.seconds_to_first_token(candidate, policy.blocks_to_load(candidate));
    CHECK(chosen <= policy.seconds_to_first_token(candidate, 0));
    CHECK(chosen <= policy.seconds_to_first_token(candidate, prefix.tiers.size()));
  }
}

TEST_CASE("WriteQueue hands out no block before its parent is recorded", "[tier][policy]") {
  WriteQueue queue(8);
  const auto block = [](int i) { return static_cast<BlockId>(i); };
  CHECK(queue.add(block(0), no_block));
  CHECK(queue.add(block(1), block(0)));
  CHECK(queue.add(block(2), block(1)));
  CHECK(queue.add(block(3), block(1)));
  CHECK_FALSE(queue.add(block(5), block(4)));  // nothing is planned of its parent
  queue.verify();
  CHECK(queue.pending() == 4);
  CHECK(queue.take() == block(0));
  CHECK_FALSE(queue.take());
  SECTION("in their order") {
    (void)queue.finish(block(0));
    CHECK(queue.take() == block(1));
    (void)queue.finish(block(1));
    CHECK(queue.take() == block(2));
    CHECK(queue.take() == block(3));
    queue.put_back(block(3));
    CHECK(queue.take() == block(3));
    (void)queue.finish(block(2));
    (void)queue.finish(block(3));
    CHECK(queue.pending() == 0);
    CHECK(queue.dropped() == 0);
    queue.forget(block(3));
    CHECK(queue.state(block(3)) == WriteState::none);
  }
  SECTION("a failure takes all that wait along") {
    queue.forget(block(0));
    CHECK(queue.pending() == 0);
    CHECK(queue.dropped() == 3);
    CHECK(queue.state(block(3)) == WriteState::none);
  }
  SECTION("a block whose parent the tier has lost is dropped") {
    (void)queue.finish(block(0));
    queue.forget(block(0));
    CHECK_FALSE(queue.take());
    CHECK(queue.dropped() == 3);
  }
  SECTION("a block that leaves takes its children along") {
    queue.forget(block(1));
    CHECK(queue.dropped() == 3);
    (void)queue.finish(block(0));
    CHECK_FALSE(queue.take());
    CHECK(queue.add(block(1), block(0)));
    CHECK(queue.take() == block(1));
  }
  SECTION("all") {
    queue.clear();
    CHECK(queue.dropped() == 3);
    CHECK(queue.state(block(0)) == WriteState::none);
  }
  queue.verify();
}

TEST_CASE("A pipelined WriteQueue hands out children of what is under way, and none whose parent failed",
          "[tier][policy]") {
  WriteQueue queue(8, true);
  const auto block = [](int i) { return static_cast<BlockId>(i); };
  for (int i = 0; i < 4; ++i) {
    CHECK(queue.add(block(i), i == 0 ? no_block : block(i - 1)));
  }
  CHECK(queue.take() == block(0));
  CHECK(queue.take() == block(1));
  CHECK(queue.take() == block(2));
  queue.verify();
  CHECK(queue.finish(block(2)));  // before its parent
  queue.forget(block(0));         // the write failed
  CHECK_FALSE(queue.finish(block(1)));
  CHECK(queue.state(block(1)) == WriteState::none);
  CHECK(queue.take() == block(3));  // its parent is recorded, and will be found once the others are written again
  CHECK(queue.add(block(0), no_block));
  CHECK(queue.add(block(1), block(0)));
  CHECK(queue.take() == block(0));
  CHECK(queue.take() == block(1));
  CHECK(queue.finish(block(1)));
  CHECK(queue.finish(block(0)));
  queue.verify();
}
