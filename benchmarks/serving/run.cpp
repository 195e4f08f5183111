#include "run.hpp"

#include <algorithm>
#include <chrono>
#include <limits>

#include "kvc/policy/contiguous.hpp"
#include "kvc/policy/paged.hpp"
#include "kvc/policy/prefix_shared.hpp"
#include "policy_cache.hpp"
#include "server.hpp"
#include "simulated_executor.hpp"

namespace serving {
namespace {

template <class Policy>
void simulate_over(const typename Policy::Config& config, const Scenario& scenario, const SchedulerConfig& scheduling,
                   const OnProgress& on_progress, RunResult& result) {
  const std::unique_ptr<Source> source = scenario.source(result.load);
  result.classes = source->classes();
  result.metrics = Metrics(scenario.slo, result.classes.size());
  result.timeline = Timeline(scenario.watch);
  const CostModel model(scenario.model, scenario.hardware);
  SimulatedExecutor executor(model);
  PolicyCache<Policy> cache(config);
  Scheduler scheduler(cache, scheduling, result.metrics);
  Index steps = 0;
  serve(cache, scheduler, *source, executor, [&](Time now) {
    result.timeline.observe(now, cache, scheduler);
    if (on_progress && ++steps % 256 == 0) {
      on_progress(result.metrics.all().requests);
    }
  });
  scheduler.unpin_all();
  result.counters = scheduler.counters();
  cache.verify();
  result.stats = cache.stats();
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

RunResult simulate(const Scenario& scenario, PolicyKind policy, bool chunked, double load,
                   const OnProgress& on_progress) {
  const auto begin = std::chrono::steady_clock::now();
  RunResult result;
  result.policy = policy;
  result.load = load;
  result.pool_tokens = scenario.pool();
  SchedulerConfig scheduling = scenario.scheduler;
  scheduling.chunk_tokens = chunked ? scheduling.chunk_tokens : 0;
  scheduling.watermark_tokens = static_cast<Pos>(scenario.watermark * static_cast<double>(result.pool_tokens));
  result.chunk_tokens = scheduling.chunk_tokens;
  result.order = scheduling.order;
  result.watermark_tokens = scheduling.watermark_tokens;

  const Index blocks = result.pool_tokens / scenario.block_tokens;
  const auto contiguous = [&](kvc::Contiguous::Mode mode) {
    return kvc::Contiguous::Config{.sequences = scheduling.max_sequences + 1,
                                   .max_tokens = static_cast<Pos>(result.pool_tokens),
                                   .pool_tokens = result.pool_tokens,
                                   .mode = mode,
                                   .growth_tokens = scenario.growth_tokens};
  };
  switch (policy) {
    case PolicyKind::contiguous_reserve:
      simulate_over<kvc::Contiguous>(contiguous(kvc::Contiguous::Mode::reserve), scenario, scheduling, on_progress,
                                     result);
      break;
    case PolicyKind::contiguous_grow:
      simulate_over<kvc::Contiguous>(contiguous(kvc::Contiguous::Mode::grow), scenario, scheduling, on_progress,
                                     result);
      break;
    case PolicyKind::paged:
      simulate_over<kvc::Paged>({.blocks = blocks, .block_tokens = scenario.block_tokens}, scenario, scheduling,
                                on_progress, result);
      break;
    case PolicyKind::prefix_shared:
      simulate_over<kvc::PrefixShared<>>({.blocks = blocks, .block_tokens = scenario.block_tokens}, scenario,
                                         scheduling, on_progress, result);
      break;
  }
  result.wall_seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
  return result;
}

}  // namespace serving
