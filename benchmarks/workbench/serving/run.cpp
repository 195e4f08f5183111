#include "run.hpp"

#include <chrono>

#include "kvc/policy/contiguous.hpp"
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
  PolicyCache<Policy> cache(pool_config<Policy>(scenario, result.policy, scheduling));
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

SchedulerConfig begin_run(const Scenario& scenario, PolicyKind policy, bool chunked, double load, RunResult& result) {
  result.policy = policy;
  result.load = load;
  result.pool_tokens = scenario.pool();
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
      simulate_over<kvc::PrefixShared<>>(scenario, scheduling, on_progress, result);
      break;
  }
  result.wall_seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
  return result;
}

}  // namespace serving
