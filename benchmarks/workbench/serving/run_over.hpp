// Runs a scenario over one cache, with or without bytes, and one executor, simulated or real.
#pragma once

#include <memory>

#include "run.hpp"
#include "server.hpp"

namespace serving {

/// Fills in the parameters of the coming run, and returns its scheduling.
[[nodiscard]] SchedulerConfig begin_run(const Scenario& scenario, PolicyKind policy, bool chunked, double load,
                                        RunResult& result);

/// The pool of a scenario.
template <class Policy>
[[nodiscard]] typename Policy::Config pool_config(const Scenario& scenario, PolicyKind policy,
                                                  const SchedulerConfig& scheduling) {
  const Index tokens = scenario.pool();
  if constexpr (kvc::BlockTablePolicy<Policy>) {
    return {.blocks = tokens / scenario.block_tokens, .block_tokens = scenario.block_tokens};
  } else {
    using Mode = typename Policy::Mode;
    return {.sequences = scheduling.max_sequences + 1,
            .max_tokens = static_cast<Pos>(tokens),
            .pool_tokens = tokens,
            .mode = policy == PolicyKind::contiguous_reserve ? Mode::reserve : Mode::grow,
            .growth_tokens = scenario.growth_tokens};
  }
}

/// Serves all requests of the scenario, and fills in the result.
template <class Cache, class E>
void serve_over(Cache& cache, E& executor, const Scenario& scenario, const SchedulerConfig& scheduling,
                const OnProgress& on_progress, RunResult& result) {
  const std::unique_ptr<Source> source = scenario.source(result.load);
  result.classes = source->classes();
  result.metrics = Metrics(scenario.slo, result.classes.size());
  result.timeline = Timeline(scenario.watch);
  Scheduler scheduler(cache, scheduling, result.metrics);
  Index steps = 0;
  serve(cache, scheduler, *source, executor, [&](Time now) {
    result.timeline.observe(now, cache, scheduler);
    if (on_progress && ++steps % 256 == 0) {
      on_progress(result.metrics.all().requests);
    }
  });
  result.source_note = source->note();
  scheduler.unpin_all();
  result.counters = scheduler.counters();
  cache.verify();
  result.stats = cache.stats();
}

}  // namespace serving
