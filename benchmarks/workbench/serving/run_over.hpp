// Runs a scenario over one cache, with or without bytes, and one executor, simulated or real.
#pragma once

#include <memory>

#include "run.hpp"
#include "server.hpp"

namespace serving {

/// Fills in the parameters of the coming run, and returns its scheduling.
[[nodiscard]] SchedulerConfig begin_run(const Scenario& scenario, PolicyKind policy, bool chunked, double load,
                                        RunResult& result);

/// Blocks of a pool of layer groups that has as many bytes as the pool of the scenario. Throws std::runtime_error if
/// there is not one.
[[nodiscard]] Index grouped_blocks(const Scenario& scenario);

/// The pool of a run that begin_run has begun.
template <class Policy>
[[nodiscard]] typename Policy::Config pool_config(const Scenario& scenario, const RunResult& run,
                                                  const SchedulerConfig& scheduling) {
  if constexpr (kvc::BlockTablePolicy<Policy>) {
    typename Policy::Config config{.blocks = run.pool_tokens / scenario.block_tokens,
                                   .block_tokens = scenario.block_tokens};
    if constexpr (kvc::ConfiguresPasses<Policy>) {
      config.pass_tokens = scheduling.chunk_tokens;
    }
    return config;
  } else {
    using Mode = typename Policy::Mode;
    return {.sequences = scheduling.max_sequences + 1,
            .max_tokens = static_cast<Pos>(run.pool_tokens),
            .pool_tokens = run.pool_tokens,
            .mode = run.policy == PolicyKind::contiguous_reserve ? Mode::reserve : Mode::grow,
            .growth_tokens = scenario.growth_tokens};
  }
}

/// Simulates a run that begin_run has begun, of PrefixShared with slower tiers. Throws std::runtime_error if the
/// program was built without them.
void simulate_tiered(const Scenario& scenario, const SchedulerConfig& scheduling, const OnProgress& on_progress,
                     RunResult& result);

/// Serves all requests of the scenario, and fills in the result. `loads` are slower tiers behind the cache, or nullptr.
template <class Cache, class E>
void serve_over(Cache& cache, E& executor, const Scenario& scenario, const SchedulerConfig& scheduling,
                const OnProgress& on_progress, RunResult& result, PrefixLoads* loads = nullptr) {
  const std::unique_ptr<Source> source = scenario.source(result.load);
  result.classes = source->classes();
  result.metrics = Metrics(scenario.slo, result.classes.size());
  result.timeline = Timeline(scenario.watch);
  Scheduler scheduler(cache, scheduling, result.metrics, loads);
  const auto& policy = cache.policy();
  const Index slots = pool_tokens(policy);
  Index steps = 0;
  serve(cache, scheduler, *source, executor, [&](Time now) {
    result.use.observe(now, slots - available_tokens(policy), slots, scheduler.running());
    result.timeline.observe(now, cache, scheduler, loads);
    if (on_progress && ++steps % 256 == 0) {
      on_progress(result.metrics.all().requests);
    }
  });
  result.source_note = source->note();
  if constexpr (PoolsGroups<typename Cache::PolicyType>) {
    for (Index g = 0; has_groups(policy) && g < policy.groups(); ++g) {
      result.groups.push_back({policy.block_tokens(g), policy.stats(g).lost_tokens});
    }
  }
  scheduler.unpin_all();
  result.counters = scheduler.counters();
  cache.verify();
  result.stats = cache.stats();
}

}  // namespace serving
