// Models whose layers differ: what layer groups save, and when a request has room.
#include <algorithm>

#include "catch.hpp"
#include "run.hpp"
#include "run_over.hpp"
#include "serve_small.hpp"

using namespace kvc_test;
using enum serving::PolicyKind;

namespace {

/// Six layers, four of which see 16 positions.
kvc::LayerGroups six_layers() {
  kvc::LayerGroups layers;
  layers.add({.key_dim = 8, .window = 16}, 4);
  layers.add({.key_dim = 8}, 2);
  return layers;
}

/// Two layers that keep everything, and four with a state of 64 bytes.
kvc::LayerGroups recurrent_layers() {
  kvc::LayerGroups layers;
  layers.add({.key_dim = 8}, 2);
  layers.add_state(64, 4);
  return layers;
}

double mean_ttft(const RunResult& run) { return run.metrics.all().ttft.mean(); }
double memory_of_a_sequence(const RunResult& run) { return run.use.mean_share() / run.use.mean_running(); }

}  // namespace

TEST_CASE("window-model: in the same memory, layer groups serve more documents at once, and earlier", "[scenario]") {
  Scenario scenario = read_scenario("window-model");
  scenario.requests = 80;
  Scenario one_shape = scenario;
  one_shape.one_shape = true;
  for (const PolicyKind policy : {paged, prefix_shared}) {
    CAPTURE(name(policy));
    const RunResult groups = simulate(scenario, policy, true);
    const RunResult alike = simulate(one_shape, policy, true);
    REQUIRE(groups.layers == LayerMemory::groups);
    REQUIRE(alike.layers == LayerMemory::one_shape);
    for (const RunResult* run : {&groups, &alike}) {
      REQUIRE(run->metrics.count(End::completed) == scenario.requests);
      REQUIRE(run->stats.blocks_referenced == 0);
      for (const Sample& s : run->timeline.samples()) {
        REQUIRE(s.used + s.wasted + s.cached + s.free == run->pool_tokens);
        REQUIRE(s.used <= run->pool_tokens);
      }
      REQUIRE(std::ranges::any_of(run->timeline.maps(), [](const MapRow& row) {
        return std::ranges::any_of(row.owners, [](Index owner) { return owner >= 0; });
      }));
    }
    REQUIRE(3 * memory_of_a_sequence(groups) <= memory_of_a_sequence(alike));
    REQUIRE(3 * mean_ttft(groups) <= mean_ttft(alike));
    REQUIRE(groups.metrics.seconds() < alike.metrics.seconds());
    REQUIRE(groups.counters.blocked < alike.counters.blocked);
    REQUIRE(groups.counters.preemptions <= alike.counters.preemptions);
    REQUIRE(groups.groups.size() == 2);
    REQUIRE((policy == prefix_shared) == (groups.counters.prompt_tokens_found > 0));
  }
  // Contiguous policies have no pool that groups share.
  REQUIRE(layer_memory(scenario, contiguous_grow) == LayerMemory::one_shape);
}

TEST_CASE("A pool of layer groups has the bytes of the scenario's pool", "[serving]") {
  Scenario scenario = read_scenario("window-model");
  for (const char* model : {"gemma-3-27b", "gpt-oss-20b", "llama-4-scout", "qwen3-next-80b", "jamba-52b"}) {
    CAPTURE(model);
    scenario.model = find_model(model);
    scenario.hardware.devices = 4;
    const kvc::LayerGroups layers = scenario.model.layer_groups();
    REQUIRE(layers.layers() == scenario.model.layers);
    const kvc::Paged policy({.blocks = 1, .block_tokens = scenario.block_tokens}, layers.rules());
    Index token = 0, block = 0;
    for (std::size_t g = 0; g < policy.group_rules().groups.size(); ++g) {
      const Index weight = policy.group_rules().groups[g].row_weight;
      token += weight;
      block = std::max(block, weight * policy.block_tokens(static_cast<Index>(g)));
    }
    for (std::size_t k = 0; k < policy.group_rules().states.size(); ++k) {
      const Index weight = policy.group_rules().states[k].weight;
      block = std::max(block, weight * policy.state_sizes(static_cast<Index>(k)).in_block);
    }
    const auto pool = static_cast<double>(scenario.pool() * token);
    REQUIRE(static_cast<double>(grouped_blocks(scenario) * block) <= pool);
    REQUIRE(static_cast<double>((grouped_blocks(scenario) + 1) * block) > pool);
  }
  scenario.pool_tokens = scenario.block_tokens;
  scenario.block_tokens = 64;
  scenario.pool_tokens = 64;
  scenario.model = find_model("llama-4-scout");
  scenario.hardware.devices = 4;
  REQUIRE(grouped_blocks(scenario) == 1);
}

TEST_CASE("A request has room if what its layers retain has, in passes of the scheduler's chunks", "[serving]") {
  // A block holds 4 rows of the four layers with a window, or 8 of the others.
  // 200 tokens: 25 blocks of the others; of the window at most 16 + 8 rows in passes of 8, or all 200.
  const std::vector<Request> one = {make_request(0, 0, 190, 11)};
  SchedulerConfig scheduling;
  const auto end_of = [&]<class Policy>(Index blocks, const Policy*) {
    const Outcome outcome = serve_small<Policy>({.blocks = blocks, .block_tokens = 4}, scheduling, one, six_layers());
    return outcome.metrics.count(End::completed) == 1 ? End::completed : End::refused;
  };
  const auto needed = [&](Index length, Index pass) {
    return serving::most_blocks(kvc::Paged({.blocks = 1, .block_tokens = 4}, six_layers().rules()), length, pass);
  };
  REQUIRE(needed(200, 8) == 25 + 6 + 2);
  REQUIRE(needed(200, 0) == 25 + 50);
  for (const Pos chunk : {8, 0}) {
    CAPTURE(chunk);
    scheduling.chunk_tokens = chunk;
    REQUIRE(end_of(needed(200, chunk), static_cast<const kvc::Paged*>(nullptr)) == End::completed);
    REQUIRE(end_of(needed(200, chunk) - 1, static_cast<const kvc::Paged*>(nullptr)) == End::refused);
    REQUIRE(end_of(needed(200, chunk), static_cast<const kvc::PrefixShared<>*>(nullptr)) == End::completed);
    REQUIRE(end_of(needed(200, chunk) - 1, static_cast<const kvc::PrefixShared<>*>(nullptr)) == End::refused);
  }
}

TEST_CASE("While a prompt is computed in chunks, its blocks are not given to another", "[serving]") {
  // Both fit one after the other only. The second waits until the first has ended, and nobody is preempted.
  SchedulerConfig scheduling;
  scheduling.chunk_tokens = 8;
  scheduling.step_tokens = 16;
  const std::vector<Request> two = {make_request(0, 0, 190, 11), make_request(1, 0, 190, 11)};
  const Outcome paged = serve_small<kvc::Paged>({.blocks = 60, .block_tokens = 4}, scheduling, two, six_layers());
  const Outcome shared =
      serve_small<kvc::PrefixShared<>>({.blocks = 60, .block_tokens = 4}, scheduling, two, six_layers());
  for (const Outcome* outcome : {&paged, &shared}) {
    REQUIRE(outcome->metrics.count(End::completed) == 2);
    REQUIRE(outcome->counters.preemptions == 0);
    REQUIRE(outcome->counters.failed_admissions > 0);
    REQUIRE(outcome->clock.most_work == 1);
  }
}

TEST_CASE("A request has room if its rows and the states that it holds at once have", "[serving]") {
  // A block holds 4 rows of both layers, or the states of all four after one length.
  const std::vector<Request> one = {make_request(0, 0, 190, 11)};
  SchedulerConfig scheduling;
  scheduling.chunk_tokens = 8;
  const auto end_of = [&]<class Policy>(Index blocks, const Policy*) {
    const Outcome outcome =
        serve_small<Policy>({.blocks = blocks, .block_tokens = 4}, scheduling, one, recurrent_layers());
    return outcome.metrics.count(End::completed) == 1 ? End::completed : End::refused;
  };
  REQUIRE(end_of(50 + 2, static_cast<const kvc::Paged*>(nullptr)) == End::completed);
  REQUIRE(end_of(50 + 1, static_cast<const kvc::Paged*>(nullptr)) == End::refused);
  REQUIRE(end_of(50 + 5, static_cast<const kvc::PrefixShared<>*>(nullptr)) == End::completed);
  REQUIRE(end_of(50 + 4, static_cast<const kvc::PrefixShared<>*>(nullptr)) == End::refused);
}

TEST_CASE("Of a model with recurrent layers a prompt is found where there are states", "[serving]") {
  std::vector<Request> requests;
  const auto add = [&](std::vector<Segment> prompt) {
    Request request = make_request(std::ssize(requests), std::ssize(requests) * second, 1, 1);
    request.tokens.clear();
    request.prompt = std::move(prompt);
    requests.push_back(std::move(request));
  };
  const auto found = [&](const kvc::LayerGroups& layers) {
    return serve_small<kvc::PrefixShared<>>({.blocks = 200, .block_tokens = 4}, {}, requests, layers)
        .counters.prompt_tokens_found;
  };
  kvc::LayerGroups attention;
  attention.add({.key_dim = 8}, 2);
  add({{1, 40}});
  add({{1, 40}});  // the same: found to the last whole node before its end
  REQUIRE(found(recurrent_layers()) == 36);
  REQUIRE(found(attention) == 39);
  requests.resize(1);
  add({{1, 20}, {2, 20}});  // parts in the middle, where there is no state yet
  REQUIRE(found(recurrent_layers()) == 0);
  REQUIRE(found(attention) == 20);
  add({{1, 20}, {3, 20}});  // and now there is
  REQUIRE(found(recurrent_layers()) == 20);
  REQUIRE(found(attention) == 40);
}

TEST_CASE("Models with recurrent layers serve traffic, their states counted in the pool", "[scenario]") {
  Scenario scenario = read_scenario("window-model");
  scenario.requests = 60;
  scenario.hardware.devices = 4;
  for (const char* model : {"qwen3-next-80b", "jamba-52b"}) {
    CAPTURE(model);
    scenario.model = find_model(model);
    for (const PolicyKind policy : {paged, prefix_shared}) {
      const RunResult run = simulate(scenario, policy, true);
      REQUIRE(run.layers == LayerMemory::groups);
      REQUIRE(run.metrics.count(End::completed) == scenario.requests);
      REQUIRE(run.stats.blocks_referenced == 0);
      for (const Sample& s : run.timeline.samples()) {
        REQUIRE(s.used + s.wasted + s.cached + s.free == run.pool_tokens);
        REQUIRE(s.used <= run.pool_tokens);
      }
      REQUIRE((policy == prefix_shared) == (run.counters.prompt_tokens_found > 0));
    }
    REQUIRE_FALSE(can_serve(scenario, contiguous_grow));
    REQUIRE_THROWS_WITH(simulate(scenario, contiguous_grow, true),
                        contains("has recurrent layers, which contiguous-grow"));
  }
  scenario.one_shape = true;
  REQUIRE_FALSE(can_serve(scenario, paged));
}
