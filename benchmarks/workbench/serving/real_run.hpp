// A real run over one policy. Included by one file per policy, as the decoder takes long to compile.
#pragma once

#include <chrono>
#include <stdexcept>
#include <string>

#include "kvc/cache.hpp"
#include "real.hpp"
#include "run_over.hpp"

#if defined(KVC_HAVE_SODIUM)
#include "real_stores.hpp"
#include "tier_loads.hpp"
#endif

namespace serving {

/// Hash of one sampled token. Their sum is the hash of all answers.
[[nodiscard]] constexpr std::uint64_t answer_hash(Index request, int sample, Pos place, Token token) noexcept {
  std::uint64_t hash = scramble(static_cast<std::uint64_t>(request) + 1);
  hash = scramble(hash + (static_cast<std::uint64_t>(sample) << 32) + static_cast<std::uint64_t>(place));
  return scramble(hash + static_cast<std::uint64_t>(token));
}

/// Computes the rows of an extension and the logits behind it.
template <class Cache>
kvc::llama::Matrix compute_rows(const RealMachine& machine, Cache& cache, const typename Cache::Append& append,
                                std::span<const Token> tokens) {
  return kvc::llama::dec(*machine.model, cache, std::span<const typename Cache::Append>(&append, 1), tokens,
                         kvc::llama::Logits::last, machine.threads);
}

/// Serves the scenario over a cache with keys and values, and over its tiers if it has some, and fills in the result.
template <class Policy>
void real_over(const Scenario& scenario, const SchedulerConfig& scheduling, const RealMachine& machine,
               const OnProgress& on_progress, const OnAnswer& on_answer, RunResult& result) {
  kvc::KvCache<float, Policy> cache(machine.model->config.cache_shape(),
                                    pool_config<Policy>(scenario, result, scheduling));
  const auto begin = std::chrono::steady_clock::now();
  const Time processor = read_clock(ClockKind::cpu);
  ModelExecutor executor(*machine.model, machine.threads, machine.clock,
                         [&](Index request, int sample, Pos place, Token token) {
                           result.answers_hash += answer_hash(request, sample, place, token);
                           if (on_answer) {
                             on_answer(request, sample, place, token);
                           }
                         });
#if defined(KVC_HAVE_SODIUM)
  if constexpr (kvc::tier::TierableCache<kvc::KvCache<float, Policy>>) {
    if (!scenario.tiers.tiers.empty()) {
      const kvc::tier::PoolBytes block(cache);
      RealStores stores(scenario.tiers, block.bytes(0));
      TierLoads<kvc::KvCache<float, Policy>, RealStore> loads(cache, scenario.tiers, scenario.load_rule, stores.all(),
                                                              [&executor] { return executor.now(); });
      serve_over(cache, executor, scenario, scheduling, on_progress, result, &loads);
      result.tiers = loads.results(scenario.tiers);
      result.loads = loads.result();
    }
  }
#endif
  if (scenario.tiers.tiers.empty()) {
    serve_over(cache, executor, scenario, scheduling, on_progress, result);
  } else if (result.tiers.empty()) {
    throw std::runtime_error("--tiers: this program was built without xxHash or libsodium (Debian: libxxhash-dev, " +
                             std::string("libsodium-dev)"));
  }
  result.processor_seconds = static_cast<double>(read_clock(ClockKind::cpu) - processor) / second;
  result.wall_seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
}

}  // namespace serving
