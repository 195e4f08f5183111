// Simulations as a whole: the same for a seed, sound over time, and of public traces.
#include "catch.hpp"
#include "report.hpp"
#include "run.hpp"
#include "test_data.hpp"

using namespace serving;
using enum serving::PolicyKind;

TEST_CASE("The same scenario gives the same document, bit for bit", "[scenario]") {
  Scenario scenario = read_scenario("chat-completions");
  scenario.requests = 400;
  const auto document = [&](std::uint64_t seed) {
    Report report{scenario, {}};
    report.scenario.seed = seed;
    for (const PolicyKind policy : all_policies) {
      report.runs.push_back(simulate(report.scenario, policy, true));
      report.runs.back().wall_seconds = 0;
    }
    return to_json(report);
  };
  REQUIRE(document(4) == document(4));
  REQUIRE(document(4) != document(5));
}

TEST_CASE("The shares of the pool add up over time, and the map has an owner for every cell", "[scenario]") {
  Scenario scenario = read_scenario("report-generator");
  scenario.requests = 300;
  for (const PolicyKind policy : all_policies) {
    CAPTURE(name(policy));
    const RunResult run = simulate(scenario, policy, true);
    REQUIRE(run.timeline.samples().size() >= 200);
    REQUIRE(run.timeline.samples().size() <= 512);
    Index most_running = 0;
    for (const Sample& s : run.timeline.samples()) {
      REQUIRE(s.used + s.wasted + s.cached + s.free == run.pool_tokens);
      REQUIRE(s.largest_free_run <= s.free + s.cached);
      REQUIRE((policy != prefix_shared ? s.cached == 0 : true));
      most_running = std::max(most_running, s.running);
    }
    REQUIRE(most_running > 5);
    REQUIRE(run.timeline.maps().size() >= 50);
    bool owned = false;
    bool reserved = false;
    bool cached = false;
    for (const MapRow& row : run.timeline.maps()) {
      REQUIRE(row.owners.size() == 192);
      for (const Index owner : row.owners) {
        REQUIRE((owner >= owner_reserved && owner < scenario.requests));
        owned = owned || owner >= 0;
        reserved = reserved || owner == owner_reserved;
        cached = cached || owner == owner_cached;
      }
    }
    REQUIRE(owned);
    REQUIRE((policy == contiguous_reserve ? reserved : true));
    REQUIRE((policy == prefix_shared) == cached);
  }
}

TEST_CASE("Public traces are served under every policy", "[scenario]") {
  Scenario scenario = read_scenario("chat-completions");
  scenario.traffic.clear();
  scenario.requests = 300;
  scenario.pool_tokens = 0;
  scenario.hardware = find_hardware("a100-80g");
  SECTION("azure") {
    scenario.trace = kvc_bench::TraceInput::open(kvc_test::data_file("azure/AzureLLMInferenceTrace_conv.csv"));
    for (const PolicyKind policy : all_policies) {
      REQUIRE(simulate(scenario, policy, true).metrics.count(End::completed) == 300);
    }
  }
  SECTION("mooncake: what the prompts have in common is found") {
    scenario.trace = kvc_bench::TraceInput::open(kvc_test::data_file("mooncake/conversation_trace.jsonl"));
    const RunResult shared = simulate(scenario, prefix_shared, true);
    REQUIRE(shared.metrics.count(End::completed) == 300);
    REQUIRE(shared.counters.prompt_tokens_found > 0);
    REQUIRE(simulate(scenario, paged, true).counters.prompt_tokens_found == 0);
  }
  SECTION("weka") {
    scenario.trace = kvc_bench::TraceInput::open(kvc_test::data_file("weka/weka_merged_test.rle.jsonl"));
    scenario.requests = 60;
    const RunResult shared = simulate(scenario, prefix_shared, true);
    REQUIRE(shared.metrics.count(End::completed) == 60);
    REQUIRE(shared.counters.prompt_tokens_found >= shared.counters.prompt_tokens / 2);
  }
}
