// The loop of a server: accepts requests, composes and computes steps, until no request is left.
#pragma once

#include <algorithm>
#include <optional>

#include "scheduler.hpp"

namespace serving {

/// Serves all requests of a source. `observe(time)` is called after every step and every wait. Slower tiers, if the
/// scheduler has some, are polled between steps.
/// Throws std::invalid_argument for a bad request, Livelock.
template <ServingCache Cache, Executor<Cache> E, class Observe>
void serve(Cache& cache, Scheduler<Cache>& scheduler, Source& source, E& executor, Observe&& observe) {
  Step<Cache> step;
  std::optional<Request> next = source.next();
  while (true) {
    while (next && next->arrival <= executor.now()) {
      scheduler.submit(std::move(*next));
      next = source.next();
    }
    scheduler.expire(executor.now());
    scheduler.poll_loads();
    if (scheduler.compose(executor.now(), step)) {
      executor.run(cache, step);
      scheduler.complete(executor.now(), step);
    } else if (const std::optional<Time> arrives = scheduler.next_load()) {  // prompts wait for nothing else
      executor.wait_until(next ? std::min(next->arrival, *arrives) : *arrives);
    } else if (next) {
      executor.wait_until(next->arrival);
    } else {
      return;
    }
    observe(executor.now());
  }
}

}  // namespace serving
