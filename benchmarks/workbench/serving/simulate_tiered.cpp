#include <chrono>
#include <deque>
#include <stdexcept>
#include <string>

#include "run.hpp"

#if defined(KVC_HAVE_SODIUM)
#include "kvc/policy/events.hpp"
#include "kvc/policy/prefix_shared.hpp"
#include "policy_cache.hpp"
#include "run_over.hpp"
#include "simulated_executor.hpp"
#include "tier_loads.hpp"
#include "timed_store.hpp"
#endif

namespace serving {

#if defined(KVC_HAVE_SODIUM)
void simulate_tiered(const Scenario& scenario, const SchedulerConfig& scheduling, const OnProgress& on_progress,
                     RunResult& result) {
  using Policy = kvc::PrefixShared<kvc::ReuseHazard, kvc::ChainHash, kvc::EventCallback>;
  using Cache = PolicyCache<Policy, float>;
  const CostModel model(scenario.model, scenario.hardware);
  SimulatedExecutor executor(model);
  // Rows of a few bytes: what is decided from the times of reads does not depend on the unit of their bytes.
  Cache cache(pool_config<Policy>(scenario, result, scheduling),
              result.layers == LayerMemory::groups ? scenario.model.small_layer_groups()
                                                   : kvc::Shape{.layers = 1, .kv_heads = 1, .key_dim = 1});
  const auto clock = [&executor] { return executor.now(); };
  const double model_bytes = scenario.model.kv_bytes_per_token() * scenario.block_tokens;
  using Loads = TierLoads<Cache, TimedStore>;
  std::deque<TimedStore> stores;
  std::vector<TimedStore*> all;
  for (const TierSpec& spec : scenario.tiers.tiers) {
    all.push_back(&stores.emplace_back(spec, Loads::bytes_of_block(cache), model_bytes, clock));
  }
  Loads loads(cache, scenario.tiers, scenario.load_rule, all, clock);
  serve_over(cache, executor, scenario, scheduling, on_progress, result, &loads);
  loads.verify();
  result.tiers = loads.results(scenario.tiers);
  result.loads = loads.result();
}
#else
void simulate_tiered(const Scenario&, const SchedulerConfig&, const OnProgress&, RunResult&) {
  throw std::runtime_error("--tiers: this program was built without xxHash or libsodium (Debian: libxxhash-dev, " +
                           std::string("libsodium-dev)"));
}
#endif

}  // namespace serving
