#include "tiers.hpp"

#include <algorithm>
#include <chrono>
#include <deque>
#include <ostream>
#include <span>
#include <tuple>

#include "bounds.hpp"
#include "evictions.hpp"
#include "progress.hpp"
#include "report.hpp"
#include "text.hpp"

#if defined(KVC_HAVE_SODIUM)
#include "counted_store.hpp"
#include "kvc/cache.hpp"
#include "kvc/element/none.hpp"
#include "kvc/policy/prefix_shared.hpp"
#include "kvc/tier/tiers.hpp"
#endif

namespace replay {
namespace {

double seconds_since(std::chrono::steady_clock::time_point start) {
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

#if defined(KVC_HAVE_SODIUM)
/// The same hashes in every run, as without tiers.
struct TieredHash : kvc::ChainHash {
  TieredHash() : ChainHash(1) {}
};

kvc::tier::WriteRule rule_of(const std::string& name) {
  using kvc::tier::WriteRule;
  return name == "back" ? WriteRule::back : name == "selective" ? WriteRule::selective : WriteRule::through;
}

/// A block is a token, as without tiers; and it has no bytes.
template <class Eviction>
TieredResult replay(const Configured<Eviction>& configured, const kvc_bench::Trace& trace, Index capacity,
                    const std::vector<TierSize>& sizes, kvc_bench::Progress& progress) {
  using Cache = kvc::KvCache<kvc::None, kvc::PrefixShared<Eviction, TieredHash, kvc::EventCallback>>;
  Cache cache(kvc::Shape{.layers = 1, .kv_heads = 1, .key_dim = 1, .value_dim = 1},
              {.blocks = capacity, .block_tokens = 1, .eviction = configured.config});
  std::deque<CountedStore> stores;
  kvc::tier::TiersConfig config{.model = "replay",
                                .load = kvc::tier::LoadRule::always,
                                .reads = static_cast<std::size_t>(capacity),
                                .writes = 1024};
  for (const TierSize& size : sizes) {
    stores.emplace_back(size.blocks);
    config.write.push_back(rule_of(size.rule));
  }
  const auto make = [&](auto&... each) { return kvc::tier::Tiers<Cache>(cache, config, each...); };
  auto tiers = stores.size() == 1   ? make(stores[0])
               : stores.size() == 2 ? make(stores[0], stores[1])
                                    : make(stores[0], stores[1], stores[2]);
  TieredResult result;
  std::vector<kvc::Token> prompt;
  const auto start = std::chrono::steady_clock::now();
  for (std::size_t i = 0; i < trace.requests.size(); ++i) {
    const kvc_bench::Request& request = trace.requests[i];
    prompt.assign(request.blocks.begin(), request.blocks.end());
    prompt.push_back(-1);  // the token that a match must leave; it is not computed
    result.pool_hits += cache.match_length(prompt);
    const kvc::tier::LoadId load = tiers.prefetch(prompt).load;
    while (tiers.pending(load) > 0) {
      (void)tiers.poll();
    }
    const kvc::tier::Opened opened = tiers.open(prompt);
    std::span<const kvc::Token> rest(prompt);
    rest = rest.subspan(static_cast<std::size_t>(opened.cached));
    rest = rest.first(rest.size() - 1);
    auto append = cache.try_extend(opened.seq, rest);
    if (!append) {  // no other request references a block
      rest = rest.first(static_cast<std::size_t>(capacity - opened.cached));
      append = cache.try_extend(opened.seq, rest);
    }
    cache.commit(std::move(*append));
    for (std::size_t written = 0; written <= rest.size(); written += config.writes) {
      (void)tiers.poll();
    }
    cache.close(opened.seq);
    if (i % 64 == 0) {
      progress.show(static_cast<double>(i) / static_cast<double>(trace.requests.size()));
    }
  }
  result.seconds = seconds_since(start);
  result.eviction = configured.name;
  result.capacity = capacity;
  for (std::size_t t = 0; t < sizes.size(); ++t) {
    const kvc::tier::TierStats stats = tiers.stats(t);
    result.hits.push_back(stats.loaded);
    result.stored.push_back(stats.stored);
    result.lost.push_back(stats.lost);
  }
  return result;
}
#endif

}  // namespace

std::vector<TieredResult> replay_tiers(const kvc_bench::Trace& trace, const std::vector<Index>& capacities,
                                       const std::vector<std::string>& evictions, const std::vector<TierSize>& tiers) {
  std::vector<TieredResult> results;
#if defined(KVC_HAVE_SODIUM)
  kvc_bench::Progress progress(capacities.size() * (evictions.size() + 1));
  const Accesses accesses = accesses_of(trace);
  for (const Index capacity : capacities) {
    for (const std::string& eviction : evictions) {
      progress.step(eviction + " at " + std::to_string(capacity) + " blocks, with tiers");
      std::apply(
          [&](const auto&... each) {
            (void)((each.name == eviction &&
                    (results.push_back(replay(each, trace, capacity, tiers, progress)), true)) ||
                   ...);
          },
          replayed);
    }
    Index all = capacity;
    for (const TierSize& tier : tiers) {
      all += tier.blocks;
    }
    progress.step("belady-held at " + std::to_string(all) + " blocks");
    const auto start = std::chrono::steady_clock::now();
    TieredResult bound;
    bound.eviction = "belady-held";
    bound.capacity = capacity;
    bound.pool_hits = belady_held(accesses, all).blocks;
    bound.seconds = seconds_since(start);
    results.push_back(bound);
  }
#else
  (void)trace, (void)capacities, (void)evictions, (void)tiers;
#endif
  return results;
}

void print(std::ostream& out, const kvc_bench::Trace& trace, const std::vector<TierSize>& tiers,
           const std::vector<TieredResult>& results) {
  const Index blocks = trace.blocks();
  const auto cell = [](std::string text, std::size_t width) {
    return std::string(width - std::min(width, text.size()), ' ') + text;
  };
  const auto share = [&](Index hits) {
    return text::fixed(blocks == 0 ? 0 : 100 * static_cast<double>(hits) / static_cast<double>(blocks), 2, " %");
  };
  Index capacity = -1;
  for (const TieredResult& r : results) {
    if (r.capacity != capacity) {
      capacity = r.capacity;
      out << "\ncapacity " << grouped(capacity) << " blocks";
      for (const TierSize& tier : tiers) {
        out << ", then " << tier.name << " with " << grouped(tier.blocks) << " (" << tier.rule << ')';
      }
      out << "\n  eviction                    pool";
      for (const TierSize& tier : tiers) {
        out << cell(tier.name, 10);
      }
      out << "       all";
      for (const TierSize& tier : tiers) {
        out << cell("to " + tier.name, 13) << cell("lost", 10);
      }
      out << '\n';
    }
    out << "  " << r.eviction << cell(share(r.pool_hits), 32 - std::min<std::size_t>(22, r.eviction.size()));
    Index all = r.pool_hits;
    for (std::size_t t = 0; t < tiers.size(); ++t) {
      out << cell(t < r.hits.size() ? share(r.hits[t]) : "-", 10);
      all += t < r.hits.size() ? r.hits[t] : 0;
    }
    out << cell(share(all), 10);
    for (std::size_t t = 0; t < r.stored.size(); ++t) {
      out << cell(grouped(r.stored[t]), 13) << cell(grouped(r.lost[t]), 10);
    }
    out << '\n';
  }
}

}  // namespace replay
