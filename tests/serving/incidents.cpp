// The incidents of benchmarks/workbench/serving/scenarios: each has its symptoms under contiguous allocation, and loses
// them under the right policy.
#include <map>

#include "catch.hpp"
#include "random_source.hpp"
#include "run.hpp"

using namespace serving;

namespace {

using enum PolicyKind;

struct Runs {
  std::map<std::pair<PolicyKind, bool>, RunResult> runs;
  [[nodiscard]] const RunResult& of(PolicyKind policy, bool chunked) const { return runs.at({policy, chunked}); }
};

Runs run_all(const Scenario& scenario) {
  Runs all;
  for (const PolicyKind policy : all_policies) {
    for (const bool chunked : {false, true}) {
      CAPTURE(scenario.name, name(policy), chunked);
      const RunResult& run = all.runs[{policy, chunked}] = simulate(scenario, policy, chunked);
      // Under every policy all requests end, and no block is referenced at the end.
      const Metrics& m = run.metrics;
      REQUIRE(m.arrivals() == scenario.requests);
      REQUIRE(m.count(End::completed) + m.count(End::aborted) == scenario.requests);
      REQUIRE(run.stats.blocks_referenced == 0);
      const Counters& c = run.counters;
      REQUIRE(c.prompt_tokens_found + c.again_tokens_found + c.prefill_tokens + c.decode_tokens + c.forked_tokens ==
              c.released_tokens);
      if (policy == paged || policy == prefix_shared) {  // blocks of one size: what is free can be used
        REQUIRE(c.failed_admissions_25 == 0);
        REQUIRE(c.out_of_room_25 == 0);
      }
      REQUIRE((policy == prefix_shared) == (c.prompt_tokens_found > 0));
    }
  }
  return all;
}

double times(Time a, Time b) { return static_cast<double>(a) / static_cast<double>(b); }
Time ttft(const RunResult& run, double percent) { return run.metrics.all().ttft.percentile(percent); }
Time tpot(const RunResult& run, double percent) { return run.metrics.all().tpot.percentile(percent); }
/// Share of the prompt tokens that were cached.
double saved(const RunResult& run) {
  return static_cast<double>(run.counters.prompt_tokens_found) / static_cast<double>(run.counters.prompt_tokens);
}
/// Failures although a quarter of the pool was free.
Index put_off(const RunResult& run) { return run.counters.failed_admissions_25 + run.counters.out_of_room_25; }

/// The scenario with its own seed and others: an incident is not an accident of one.
std::vector<Scenario> seeded(const std::string& name) {
  std::vector<Scenario> scenarios;
  for (unsigned i = 0; i < static_cast<unsigned>(kvc_test::cases_or(5)); ++i) {
    scenarios.push_back(read_scenario(name));
    scenarios.back().seed += 10 * i;
  }
  return scenarios;
}

}  // namespace

TEST_CASE("policy-prefix-mixed: documents disturb the p95 of contiguous allocation, and of no other", "[scenario]") {
  const Scenario scenario = GENERATE(from_range(seeded("policy-prefix-mixed")));
  CAPTURE(scenario.seed);
  const Runs runs = run_all(scenario);
  Scenario without = scenario;
  without.traffic.resize(1);
  for (const bool chunked : {false, true}) {
    CAPTURE(chunked);
    for (const PolicyKind policy : {contiguous_reserve, contiguous_grow}) {
      REQUIRE(put_off(runs.of(policy, chunked)) >= 100);
      REQUIRE(runs.of(policy, chunked).counters.most_free_at_failure >= 0.25);
      REQUIRE(times(ttft(runs.of(policy, chunked), 95), ttft(runs.of(prefix_shared, chunked), 95)) >= 4);
    }
    REQUIRE(saved(runs.of(prefix_shared, chunked)) >= 0.25);
    // The p95 of the questions is that of a prompt, not of a wait.
    const RunResult alone = simulate(without, prefix_shared, chunked);
    REQUIRE(ttft(alone, 95) > 0);
    REQUIRE(runs.of(prefix_shared, chunked).metrics.of(0).ttft.percentile(95) <= 600 * millisecond);
  }
  REQUIRE(runs.of(prefix_shared, true).metrics.of(0).ttft.percentile(99) <=
          runs.of(prefix_shared, false).metrics.of(0).ttft.percentile(99) / 2);
}

TEST_CASE("knowledge-assistant: long requests do not start though a quarter of the memory is free", "[scenario]") {
  const Scenario scenario = GENERATE(from_range(seeded("knowledge-assistant")));
  CAPTURE(scenario.seed);
  const Runs runs = run_all(scenario);
  for (const bool chunked : {false, true}) {
    CAPTURE(chunked);
    for (const PolicyKind policy : {contiguous_reserve, contiguous_grow}) {
      const RunResult& run = runs.of(policy, chunked);
      REQUIRE(run.counters.failed_admissions_25 >= 100);
      REQUIRE(run.counters.delayed_25 >= 100);
      REQUIRE(run.counters.blocked_25 >= 60 * second);
      // Power users are the second class.
      REQUIRE(times(run.metrics.of(1).ttft.percentile(99), runs.of(paged, chunked).metrics.of(1).ttft.percentile(99)) >=
              5);
    }
    REQUIRE(runs.of(prefix_shared, chunked).counters.failed_admissions <= 30);
    REQUIRE(saved(runs.of(prefix_shared, chunked)) >= 0.3);
  }
}

TEST_CASE("multi-tenant: long prompts of one tenant hold up all with a quarter of the memory free", "[scenario]") {
  const Scenario scenario = GENERATE(from_range(seeded("multi-tenant")));
  CAPTURE(scenario.seed);
  const Runs runs = run_all(scenario);
  for (const bool chunked : {false, true}) {
    CAPTURE(chunked);
    for (const PolicyKind policy : {contiguous_reserve, contiguous_grow}) {
      const RunResult& run = runs.of(policy, chunked);
      REQUIRE(run.counters.failed_admissions_25 >= 30);
      REQUIRE(run.counters.blocked_25 >= 10 * second);
      REQUIRE(times(ttft(run, 99), ttft(runs.of(prefix_shared, chunked), 99)) >= 1.5);
    }
    REQUIRE(2 * runs.of(prefix_shared, chunked).counters.blocked <=
            runs.of(contiguous_reserve, chunked).counters.blocked);
    REQUIRE(saved(runs.of(prefix_shared, chunked)) >= 0.25);
  }
  // Interactive users, the first class: memory is the one half of it, and the batch's long prefills the other.
  REQUIRE(times(runs.of(contiguous_reserve, false).metrics.of(0).ttft.percentile(99),
                runs.of(prefix_shared, true).metrics.of(0).ttft.percentile(99)) >= 2);
}

TEST_CASE("chat-completions: the P99 of the TTFT spikes, and chunks end the rest of it", "[scenario]") {
  const Scenario scenario = GENERATE(from_range(seeded("chat-completions")));
  CAPTURE(scenario.seed);
  const Runs runs = run_all(scenario);
  for (const bool chunked : {false, true}) {
    CAPTURE(chunked);
    for (const PolicyKind policy : {contiguous_reserve, contiguous_grow}) {
      REQUIRE(put_off(runs.of(policy, chunked)) >= 50);
      REQUIRE(times(ttft(runs.of(policy, chunked), 99), ttft(runs.of(prefix_shared, chunked), 99)) >= 4);
    }
    REQUIRE(saved(runs.of(prefix_shared, chunked)) >= 0.3);
    REQUIRE(runs.of(prefix_shared, chunked).counters.forks > 0);
    REQUIRE(runs.of(prefix_shared, chunked).metrics.count(End::aborted) > 0);
  }
  // A short message waits behind a long prompt that is computed whole.
  REQUIRE(times(runs.of(prefix_shared, false).metrics.of(0).ttft.percentile(99),
                runs.of(prefix_shared, true).metrics.of(0).ttft.percentile(99)) >= 3);
  REQUIRE(times(runs.of(paged, false).metrics.itl().percentile(99.5),
                runs.of(paged, true).metrics.itl().percentile(99.5)) >= 2);
}

TEST_CASE("report-generator: growing allocations run out of room with a quarter free, and tokens come late",
          "[scenario]") {
  const Scenario scenario = GENERATE(from_range(seeded("report-generator")));
  CAPTURE(scenario.seed);
  const Runs runs = run_all(scenario);
  for (const bool chunked : {false, true}) {
    CAPTURE(chunked);
    const RunResult& grow = runs.of(contiguous_grow, chunked);
    REQUIRE(grow.counters.out_of_room_25 >= 60);
    REQUIRE(grow.counters.preemptions >= 400);
    REQUIRE(grow.counters.lost_tokens > 0);
    for (const PolicyKind policy : {paged, prefix_shared}) {
      REQUIRE(runs.of(policy, chunked).counters.out_of_room <= grow.counters.out_of_room / 10);
      REQUIRE(times(tpot(grow, 99), tpot(runs.of(policy, chunked), 99)) >= 1.2);
      REQUIRE(times(ttft(grow, 99), ttft(runs.of(policy, chunked), 99)) >= 2.5);
    }
    // Reserving the longest answer instead never runs out of room, and waits for it, with a quarter free.
    REQUIRE(runs.of(contiguous_reserve, chunked).counters.out_of_room == 0);
    REQUIRE(runs.of(contiguous_reserve, chunked).counters.failed_admissions_25 >= 60);
    REQUIRE(times(ttft(runs.of(contiguous_reserve, chunked), 95), ttft(runs.of(paged, chunked), 95)) >= 10);
    REQUIRE(saved(runs.of(prefix_shared, chunked)) >= 0.15);
  }
}

TEST_CASE("streaming-agents: the TTFT goes up and the TPOT stays, and pinned prefixes are memory too", "[scenario]") {
  const Scenario scenario = GENERATE(from_range(seeded("streaming-agents")));
  CAPTURE(scenario.seed);
  const Runs runs = run_all(scenario);
  Scenario unpinned = scenario;
  unpinned.traffic[0].pinned = false;
  for (const bool chunked : {false, true}) {
    CAPTURE(chunked);
    const RunResult& reserve = runs.of(contiguous_reserve, chunked);
    const RunResult& with_pages = runs.of(paged, chunked);
    const RunResult& pinned = runs.of(prefix_shared, chunked);
    REQUIRE(times(ttft(reserve, 95), ttft(with_pages, 95)) >= 4);
    REQUIRE(times(tpot(reserve, 50), tpot(with_pages, 50)) <= 1.05);
    REQUIRE(put_off(reserve) >= 30);
    REQUIRE(reserve.counters.blocked_25 >= 60 * second);
    REQUIRE(runs.of(contiguous_grow, chunked).counters.out_of_room_25 >= 20);
    // Switching off prefix reuse: out of room less often, and a worse usual TTFT.
    REQUIRE(pinned.counters.pins == 24);
    REQUIRE(pinned.counters.out_of_room >= 3 * std::max<Index>(5, with_pages.counters.out_of_room));
    REQUIRE(ttft(with_pages, 50) > ttft(pinned, 50));
    // The cure: share prefixes, and unpin unused ones.
    const RunResult free = simulate(unpinned, prefix_shared, chunked);
    REQUIRE(free.counters.out_of_room <= pinned.counters.out_of_room / 3);
    REQUIRE(ttft(free, 50) < ttft(with_pages, 50));
    REQUIRE(ttft(free, 95) < ttft(with_pages, 95));
    REQUIRE(saved(free) >= 0.05);
  }
}
