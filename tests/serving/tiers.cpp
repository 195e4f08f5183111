// Slower tiers behind the pool of a served scenario: what they bring, and whether loading or computing is chosen well.
#include <algorithm>
#include <memory>
#include <string>
#include <vector>

#include "catch.hpp"
#include "policy_cache.hpp"
#include "random_source.hpp"
#include "report.hpp"
#include "run.hpp"

#if defined(KVC_HAVE_SODIUM)
#include "timed_store.hpp"

using namespace serving;

namespace {

/// Sessions whose pool holds a few of them.
Scenario sessions(Index requests) {
  Scenario s =
      parse_scenario(R"({"story": "sessions", "model": "llama-3-8b", "hardware": "a100-80g", "block_tokens": 64,
    "pool_tokens": 98304, "traffic": [{"name": "chat", "rate": 1.4, "prompt": [100, 1500], "output": [8, 40],
    "sessions": {"turns": [3, 8], "pause_s": [5, 60]}}], "requests": 1000, "seed": 3})",
                     "sessions");
  s.requests = requests;
  s.names_tiers = true;
  return s;
}

TierSet one_tier(double gigabytes_per_second, double latency_ms, bool remote) {
  TierSpec spec;
  spec.name = "tier";
  spec.blocks = 50'000;
  spec.bytes_per_second = gigabytes_per_second * 1e9;
  spec.latency = static_cast<Time>(latency_ms * millisecond);
  spec.remote = remote;
  return {"tier", {spec}};
}

RunResult run_with(Scenario s, const TierSet& tiers, LoadRule rule, double load = 1) {
  s.tiers = tiers;
  s.load_rule = rule;
  return simulate(s, PolicyKind::prefix_shared, true, load);
}

double mean_ttft_ms(const RunResult& run) { return run.metrics.all().ttft.mean() / millisecond; }

}  // namespace

TEST_CASE("A timed store takes the latency and the bandwidth, one read after another", "[serving][tiers]") {
  Time now = 0;
  TierSpec spec;
  spec.blocks = 2;
  spec.bytes_per_second = 1e6;
  spec.latency = millisecond;
  // A block of 10 bytes stands for 1000 and takes a millisecond.
  TimedStore store(spec, 10, 1000, [&] { return now; });
  std::vector<std::byte> bytes(10);
  const kvc::io::ByteSpan whole = bytes, half = whole.first(5);
  const kvc::io::ConstByteSpan from = whole;
  kvc::tier::RecordInfo a, b, c;
  a.key.bytes[0] = std::byte{1};
  b.key.bytes[0] = std::byte{2};
  c.key.bytes[0] = std::byte{3};
  std::vector<kvc::tier::BlockKey> keys = {a.key, b.key, c.key};
  std::vector<std::uint8_t> found(3, 9);
  (void)store.write(a, {&from, 1});
  (void)store.write(b, {&from, 1});
  (void)store.lookup(keys, found);
  REQUIRE(store.poll().value().operation == kvc::tier::StoreOperation::lookup);
  CHECK(found == std::vector<std::uint8_t>{0, 0, 0});  // they are on their way
  CHECK(store.next() == 2 * millisecond);
  now = 2 * millisecond - 1;
  CHECK_FALSE(store.poll());
  now = 3 * millisecond;
  CHECK(store.poll().value().operation == kvc::tier::StoreOperation::write);
  CHECK(store.poll().value().operation == kvc::tier::StoreOperation::write);
  CHECK_FALSE(store.poll());
  (void)store.read(a, {&whole, 1});
  (void)store.read(c, {&whole, 1});
  CHECK(store.reading() == 2);
  CHECK(store.bytes_reading() == 20);
  now = 5 * millisecond;
  CHECK(store.poll().value().outcome == kvc::tier::StoreOutcome::done);
  CHECK_FALSE(store.poll());
  now = 6 * millisecond;
  CHECK(store.poll().value().outcome == kvc::tier::StoreOutcome::missing);
  CHECK(store.bytes_reading() == 0);
  (void)store.write(c, {&from, 1});
  now = 8 * millisecond;
  CHECK(store.poll().value().operation == kvc::tier::StoreOperation::write);
  CHECK(store.poll_evicted() == b.key);  // a was read since
  CHECK(store.stats().records == 2);
  CHECK(store.next() == max_clock);
  // Records of half a block take half of its time and of its room.
  kvc::tier::RecordInfo d;
  d.key.bytes[0] = std::byte{4};
  const kvc::io::ConstByteSpan from_half = half;
  (void)store.write(d, {&from_half, 1});  // evicts a
  CHECK(store.next() == 9 * millisecond + millisecond / 2);
  now = 10 * millisecond;
  CHECK(store.poll().value().outcome == kvc::tier::StoreOutcome::done);
  CHECK(store.poll_evicted() == a.key);
  CHECK(store.stats().bytes == 15);
  (void)store.read(d, {&half, 1});
  CHECK(store.next() == 11 * millisecond + millisecond / 2);
  const std::vector<std::byte> much(21);
  const kvc::io::ConstByteSpan too_much = much;
  (void)store.write(b, {&too_much, 1});
  now = 20 * millisecond;
  CHECK(store.poll().value().operation == kvc::tier::StoreOperation::read);
  CHECK(store.poll().value().outcome == kvc::tier::StoreOutcome::full);
  CHECK(store.stats().records == 2);
}

TEST_CASE("The next turn of a session begins with the whole turn before it, and its answer", "[serving][tiers]") {
  const Scenario s = sessions(300);
  const std::unique_ptr<Source> source = s.source();
  std::vector<Request> all;
  while (auto request = source->next()) {
    REQUIRE((all.empty() || request->arrival >= all.back().arrival));
    all.push_back(std::move(*request));
  }
  REQUIRE(all.size() == 300);
  Index continued = 0;
  for (const Request& r : all) {
    if (r.prompt.size() < 3) {
      continue;
    }
    ++continued;
    const auto before = std::ranges::find_if(all, [&](const Request& earlier) {
      return answer_content(earlier.id, 0) == r.prompt[r.prompt.size() - 2].content;
    });
    REQUIRE(before != all.end());
    REQUIRE(before->prompt.size() + 2 == r.prompt.size());
    for (std::size_t i = 0; i < before->prompt.size(); ++i) {
      REQUIRE(before->prompt[i].content == r.prompt[i].content);
    }
    REQUIRE(r.prompt[r.prompt.size() - 2].tokens == before->output_tokens);
    const double pause = static_cast<double>(r.arrival - before->arrival) / second;
    REQUIRE((pause >= 5 && pause <= 60));
  }
  REQUIRE(continued > 100);
}

TEST_CASE("Slower tiers bring what the pool has evicted, and every request ends as without them", "[serving][tiers]") {
  const Scenario s = sessions(400);
  const RunResult without = run_with(s, {}, LoadRule::cheaper);
  const RunResult with = run_with(s, one_tier(20, 0.05, false), LoadRule::cheaper);
  CHECK(without.tiers.empty());
  CHECK(label(without) == "prefix-shared, no tier");
  CHECK(label(with) == "prefix-shared, tier, cheaper");
  CHECK(with.metrics.count(End::completed) == without.metrics.count(End::completed));
  CHECK(with.metrics.generated_tokens() == without.metrics.generated_tokens());
  REQUIRE(with.tiers.size() == 1);
  CHECK(with.tiers[0].loaded > 1000);
  CHECK(with.tiers[0].load_failures == 0);
  CHECK(with.counters.prompt_tokens_found > 2 * without.counters.prompt_tokens_found);
  CHECK(mean_ttft_ms(with) < 0.7 * mean_ttft_ms(without));
  const Sample last = with.timeline.samples().back();
  CHECK(last.tiers[0].held > 0);
  CHECK(last.tiers[0].loaded <= with.tiers[0].loaded);
  // Loads that nobody takes cost nothing: with `never` the times are those without a tier.
  const RunResult never = run_with(s, one_tier(20, 0.05, false), LoadRule::never);
  CHECK(mean_ttft_ms(never) == mean_ttft_ms(without));
  CHECK(never.tiers[0].stored > 1000);
  // The document has what the page draws.
  const std::string json = to_json({s, {without, with}});
  CHECK(json.find(R"("tier_set":"tier","load_rule":"cheaper")") != std::string::npos);
  CHECK(json.find(R"("held":[)") != std::string::npos);
  // Policies that share nothing have no tiers.
  Scenario paged = s;
  paged.tiers = one_tier(20, 0.05, false);
  CHECK_THROWS_AS(simulate(paged, PolicyKind::paged, true), std::runtime_error);
}

TEST_CASE("Tiers behind layer groups hold records of different sizes, and bring less than all rows of a prefix",
          "[serving][tiers]") {
  for (const char* const model : {"gemma-3-27b", "qwen3-next-80b"}) {
    CAPTURE(model);
    Scenario s = sessions(300);
    s.model = find_model(model);
    s.hardware = find_hardware("h200");
    s.hardware.devices = 4;
    s.pool_tokens = 32768;
    const auto without = run_with(s, {}, LoadRule::cheaper);
    const auto with = run_with(s, one_tier(50, 0.05, false), LoadRule::always);
    CHECK(label(with) == "prefix-shared, groups, tier, always");
    CHECK(with.metrics.count(End::completed) == without.metrics.count(End::completed));
    CHECK(with.metrics.generated_tokens() == without.metrics.generated_tokens());
    CHECK(with.tiers[0].load_failures == 0);
    CHECK(with.tiers[0].loaded > 100);
    CHECK(with.counters.prompt_tokens_found > without.counters.prompt_tokens_found);
    // In one shape every row of a prefix is read; in groups, of most layers those of the window alone.
    Scenario one_shape = s;
    one_shape.one_shape = true;
    if (can_serve(one_shape, PolicyKind::prefix_shared)) {
      const auto all = run_with(one_shape, one_tier(50, 0.05, false), LoadRule::always);
      const auto per_token = [](const RunResult& run) {
        return static_cast<double>(run.tiers[0].loaded) / static_cast<double>(run.counters.prompt_tokens_found);
      };
      CHECK(per_token(with) < per_token(all));
    }
  }
}

TEST_CASE("Load or compute: never 5 % worse than the better of always and never, and better than both somewhere",
          "[serving][tiers]") {
  // Simulated times are the same in every build: slow ones check one case. By night at more loads and bandwidths.
  const bool slow = kvc_test::cases_or(100) < 50;
  const bool all = kvc_test::operations_or(0) >= 1'000'000;
  const std::vector<double> loads = slow  ? std::vector{0.4}
                                    : all ? std::vector{0.3, 0.6, 0.8, 1.0}
                                          : std::vector{0.4, 1.0};
  const std::vector<double> bandwidths = slow  ? std::vector{20.0}
                                         : all ? std::vector{0.5, 1.0, 2.0, 3.0, 5.0, 10.0, 25.0}
                                               : std::vector{1.0, 2.5, 20.0};
  const Scenario s = sessions(slow ? 300 : all ? 2000 : 700);
  int better_than_both = 0;
  for (const double load : loads) {
    const double never = mean_ttft_ms(run_with(s, one_tier(1, 1, false), LoadRule::never, load));
    for (const double bandwidth : bandwidths) {
      const TierSet tier = one_tier(bandwidth, bandwidth < 2 ? 1 : 0.1, bandwidth < 2);
      const double always = mean_ttft_ms(run_with(s, tier, LoadRule::always, load));
      const double cheaper = mean_ttft_ms(run_with(s, tier, LoadRule::cheaper, load));
      CAPTURE(load, bandwidth, always, never, cheaper);
      CHECK(cheaper <= 1.05 * std::min(always, never));
      better_than_both += cheaper < 0.97 * std::min(always, never) ? 1 : 0;
    }
  }
  CHECK((slow || better_than_both >= 1));
}

#else
TEST_CASE("Slower tiers behind a served scenario", "[serving][tiers]") {
  KVC_SKIP("built without xxHash or libsodium (Debian: libxxhash-dev, libsodium-dev)");
}
#endif
