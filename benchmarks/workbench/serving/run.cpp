#include "run.hpp"

#include <algorithm>
#include <chrono>
#include <stdexcept>

#include "kvc/policy/contiguous.hpp"
#include "kvc/policy/detail/block_sizes.hpp"
#include "kvc/policy/paged.hpp"
#include "kvc/policy/prefix_shared.hpp"
#include "policy_cache.hpp"
#include "run_over.hpp"
#include "simulated_executor.hpp"

namespace serving {
namespace {

template <class Policy>
void simulate_over(const Scenario& scenario, const SchedulerConfig& scheduling, const OnProgress& on_progress,
                   RunResult& result) {
  const CostModel model(scenario.model, scenario.hardware);
  SimulatedExecutor executor(model);
  PolicyCache<Policy> cache(pool_config<Policy>(scenario, result, scheduling),
                            result.layers == LayerMemory::groups
                                ? scenario.model.layer_groups()
                                : kvc::Shape{.layers = 1, .kv_heads = 1, .key_dim = 1});
  serve_over(cache, executor, scenario, scheduling, on_progress, result);
}

}  // namespace

std::string_view name(PolicyKind policy) {
  switch (policy) {
    case PolicyKind::contiguous_reserve:
      return "contiguous-reserve";
    case PolicyKind::contiguous_grow:
      return "contiguous-grow";
    case PolicyKind::paged:
      return "paged";
    case PolicyKind::prefix_shared:
      return "prefix-shared";
  }
  return "";
}

std::string_view name(LayerMemory layers) {
  switch (layers) {
    case LayerMemory::alike:
      return "alike";
    case LayerMemory::groups:
      return "groups";
    case LayerMemory::one_shape:
      return "one shape";
  }
  return "";
}

LayerMemory layer_memory(const Scenario& scenario, PolicyKind policy) {
  if (scenario.model.groups.empty()) {
    return LayerMemory::alike;
  }
  const bool in_groups = policy == PolicyKind::paged || policy == PolicyKind::prefix_shared;
  return in_groups && !scenario.one_shape ? LayerMemory::groups : LayerMemory::one_shape;
}

bool can_serve(const Scenario& scenario, PolicyKind policy) {
  return scenario.model.states.empty() || layer_memory(scenario, policy) == LayerMemory::groups;
}

std::string label(const RunResult& run) {
  std::string text(name(run.policy));
  text += run.layers == LayerMemory::alike ? "" : ", " + std::string(name(run.layers));
  text += run.tier_set.empty() ? "" : ", " + run.tier_set;
  return run.tiers.empty() ? text : text + ", " + std::string(name(run.load_rule));
}

bool can_have_tiers(PolicyKind policy) { return policy == PolicyKind::prefix_shared; }

Index grouped_blocks(const Scenario& scenario) {
  const kvc::GroupRules rules = scenario.model.layer_groups().rules();
  const kvc::detail::BlockSizes sizes = kvc::detail::block_sizes(rules, scenario.block_tokens);
  Index token = 0, block = 0;  // elements
  for (std::size_t g = 0; g < rules.groups.size(); ++g) {
    token += rules.groups[g].row_weight;
    block = std::max(block, sizes.tokens[g] * rules.groups[g].row_weight);
  }
  for (std::size_t k = 0; k < rules.states.size(); ++k) {
    block = std::max(block, sizes.states[k].in_block * rules.states[k].weight);
  }
  const Index tokens = scenario.pool();
  const auto blocks =
      static_cast<Index>(static_cast<double>(tokens) * static_cast<double>(token) / static_cast<double>(block));
  if (blocks == 0) {
    throw std::runtime_error("a pool of " + std::to_string(tokens) + " tokens has no room for one block of the layer " +
                             "groups, which is as large as " + std::to_string(kvc::ceil_div(block, token)) + " tokens");
  }
  return blocks;
}

SchedulerConfig begin_run(const Scenario& scenario, PolicyKind policy, bool chunked, double load, RunResult& result) {
  if (!can_serve(scenario, policy)) {
    throw std::runtime_error("the model " + scenario.model.name + " has recurrent layers, which " +
                             std::string(name(policy)) + " does not hold in one shape for all layers: see --policy " +
                             "paged,prefix-shared and --groups on");
  }
  if (!scenario.tiers.tiers.empty() && !can_have_tiers(policy)) {
    throw std::runtime_error("slower tiers hold the blocks of prefix-shared: see --policy prefix-shared");
  }
  result.policy = policy;
  result.load = load;
  result.load_rule = scenario.load_rule;
  result.tier_set = scenario.names_tiers ? scenario.tiers.name : "";
  result.layers = layer_memory(scenario, policy);
  result.pool_tokens =
      result.layers == LayerMemory::groups ? grouped_blocks(scenario) * scenario.block_tokens : scenario.pool();
  SchedulerConfig scheduling = scenario.scheduler;
  scheduling.chunk_tokens = chunked ? scheduling.chunk_tokens : 0;
  scheduling.watermark_tokens = static_cast<Pos>(scenario.watermark * static_cast<double>(result.pool_tokens));
  result.chunk_tokens = scheduling.chunk_tokens;
  result.order = scheduling.order;
  result.watermark_tokens = scheduling.watermark_tokens;
  return scheduling;
}

RunResult simulate(const Scenario& scenario, PolicyKind policy, bool chunked, double load,
                   const OnProgress& on_progress) {
  const auto begin = std::chrono::steady_clock::now();
  RunResult result;
  const SchedulerConfig scheduling = begin_run(scenario, policy, chunked, load, result);
  switch (policy) {
    case PolicyKind::contiguous_reserve:
    case PolicyKind::contiguous_grow:
      simulate_over<kvc::Contiguous>(scenario, scheduling, on_progress, result);
      break;
    case PolicyKind::paged:
      simulate_over<kvc::Paged>(scenario, scheduling, on_progress, result);
      break;
    case PolicyKind::prefix_shared:
      if (!scenario.tiers.tiers.empty()) {
        simulate_tiered(scenario, scheduling, on_progress, result);
        break;
      }
      simulate_over<kvc::PrefixShared<>>(scenario, scheduling, on_progress, result);
      break;
  }
  result.wall_seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
  return result;
}

}  // namespace serving
