// TierLoads: kvc::tier::Tiers behind the cache of a run, for its scheduler. Needs libsodium.
#pragma once

#include <algorithm>
#include <chrono>
#include <functional>
#include <optional>
#include <span>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "kvc/tier/tiers.hpp"
#include "prefix_loads.hpp"

namespace serving {

/// PrefixLoads over stores, which must outlive it, as must the cache. `Store` tells what is under way: `next()`,
/// `reading()` and `writing()`, as TimedStore does; or, of stores in real time, nothing.
template <class Cache, class Store>
class TierLoads final : public PrefixLoads {
 public:
  /// For one to most_tiers stores, in the order of the specs. `clock` tells the time of the run.
  TierLoads(Cache& cache, const TierSet& set, LoadRule rule, std::vector<Store*> stores, std::function<Time()> clock)
      : cache_(cache),
        stores_(std::move(stores)),
        tiers_(make(cache, config(set, rule, clock))),
        clock_(std::move(clock)),
        block_bytes_(bytes_of_block(cache)) {
    // Of a node of the index every record of a group that keeps everything is read, of other groups the last ones
    // alone.
    const kvc::tier::PoolBytes<Cache> bytes(cache);
    const auto& groups = cache.layers().groups();
    for (std::size_t g = 0; g < groups.size(); ++g) {
      least_bytes_ += groups[g].retained.everything() ? static_cast<double>(bytes.bytes(g)) : 0;
    }
  }
  /// Bytes in records of a block of the pool, in all layer groups, without recurrent states.
  [[nodiscard]] static Index bytes_of_block(Cache& cache) {
    const kvc::tier::PoolBytes<Cache> bytes(cache);
    Index all = 0;
    for (std::size_t g = 0; g < cache.layers().groups().size(); ++g) {
      all += static_cast<Index>(bytes.bytes(g)) * cache.policy().block_tokens() / cache.policy().node_tokens();
    }
    return all;
  }

  Begun begin(std::span<const Token> prompt, const kvc::OpenOptions& options,
              std::span<const kvc::PosRange> others) override {
    double wait = 0;
    if (tiers_.policy().prefill().known()) {
      for (const kvc::PosRange range : others) {
        wait += tiers_.policy().prefill().seconds(range);
      }
    }
    tiers_.policy().set_wait(wait);
    if (const Pos cached = cache_.match_length(prompt, options); !may_pay(static_cast<Pos>(prompt.size()), cached)) {
      return {0, cached};
    }
    const kvc::tier::Found found = tiers_.prefetch(prompt, options);
    return {static_cast<std::uint64_t>(found.load), found.cached + found.pending};
  }
  [[nodiscard]] bool pending(std::uint64_t load) const override { return tiers_.pending(kvc::tier::LoadId{load}) > 0; }
  void cancel(std::uint64_t load) override { tiers_.cancel(kvc::tier::LoadId{load}); }
  void computed(kvc::PosRange range, Time took) override {
    tiers_.policy().prefill().add(range, static_cast<double>(took) / second);
  }
  void poll() override { (void)tiers_.poll(); }
  [[nodiscard]] std::optional<Time> next() const override {
    if constexpr (is_timed) {
      Time first = max_clock;
      for (const Store* store : stores_) {
        first = std::min(first, store->next());
      }
      return first == max_clock ? std::nullopt : std::optional(first);
    } else {
      return tiers_.loads() > 0 ? std::optional(clock_()) : std::nullopt;  // poll again
    }
  }
  [[nodiscard]] bool loading() const override { return tiers_.loads() > 0; }
  [[nodiscard]] std::size_t tiers() const override { return tiers_.size(); }
  [[nodiscard]] TierSample sample(std::size_t tier) const override {
    const kvc::tier::TierStats stats = tiers_.stats(tier);
    TierSample sample{.held = static_cast<Index>(stores_[tier]->stats().records),
                      .loaded = blocks(stats.bytes_loaded),
                      .stored = blocks(stats.bytes_stored)};
    if constexpr (is_timed) {
      sample.held = blocks(static_cast<Index>(stores_[tier]->stats().bytes));
      sample.reading = stores_[tier]->reading();
      sample.writing = stores_[tier]->writing();
    }
    return sample;
  }

  /// Waits in real time until what is cached is written.
  void flush() { (void)tiers_.flush(std::chrono::steady_clock::now() + std::chrono::seconds(60)); }
  [[nodiscard]] std::vector<TierResult> results(const TierSet& set) const {
    std::vector<TierResult> results;
    for (std::size_t t = 0; t < tiers_.size(); ++t) {
      const kvc::tier::TierStats stats = tiers_.stats(t);
      results.push_back({set.tiers[t], blocks(stats.bytes_loaded), blocks(stats.bytes_stored), stats.lost,
                         stats.loads_unused, stats.load_misses + stats.load_refused + stats.load_failed});
    }
    return results;
  }
  [[nodiscard]] LoadResult result() const {
    const kvc::tier::TiersStats& stats = tiers_.stats();
    return {stats.loads, stats.loads_short, stats.loads_no_room, stats.blocks_computed};
  }
  void verify() const { tiers_.verify(); }

 private:
  static constexpr bool is_timed = requires(const Store& store) { store.next(); };
  using Tiers = kvc::tier::Tiers<Cache>;

  /// Whether some tier, if it had all of the rest of a prompt, would be read at all. Otherwise it is not asked: the
  /// question alone would take a step of the server where the answer is not there at once.
  [[nodiscard]] bool may_pay(Pos prompt, Pos cached) {
    kvc::tier::TierPolicy& policy = tiers_.policy();
    if (policy.rule() != LoadRule::cheaper) {
      return true;
    }
    const Pos node = cache_.policy().node_tokens();
    const auto nodes = static_cast<std::size_t>((prompt - 1 - cached) / node);
    std::vector<double> under_way(tiers_.size(), 0);
    if constexpr (is_timed) {
      for (std::size_t t = 0; t < stores_.size(); ++t) {
        under_way[t] = static_cast<double>(stores_[t]->bytes_reading());
      }
    }
    for (std::size_t t = 0; t < tiers_.size(); ++t) {
      const std::vector<std::uint8_t> all(nodes, static_cast<std::uint8_t>(t));
      if (policy.blocks_to_load({cached, prompt, node, least_bytes_, all, under_way}) > 0) {
        return true;
      }
    }
    return false;
  }

  static kvc::tier::TiersConfig config(const TierSet& set, LoadRule rule, const std::function<Time()>& clock) {
    kvc::tier::TiersConfig config{
        .model = "serve-bench", .load = rule, .reads = 1 << 16, .writes = 256, .pipelined = true, .seconds = [clock] {
          return static_cast<double>(clock()) / second;
        }};
    for (const TierSpec& spec : set.tiers) {
      config.write.push_back(spec.write_back ? kvc::tier::WriteRule::back : kvc::tier::WriteRule::through);
    }
    return config;
  }
  Tiers make(Cache& cache, const kvc::tier::TiersConfig& config) const {
    switch (stores_.size()) {
      case 1:
        return Tiers(cache, config, *stores_[0]);
      case 2:
        return Tiers(cache, config, *stores_[0], *stores_[1]);
      case 3:
        return Tiers(cache, config, *stores_[0], *stores_[1], *stores_[2]);
      default:
        throw std::invalid_argument("serving: tiers are " + std::to_string(stores_.size()) + ", must be 1 to 3");
    }
  }

  [[nodiscard]] Index blocks(Index bytes) const noexcept { return (bytes + block_bytes_ / 2) / block_bytes_; }

  Cache& cache_;
  std::vector<Store*> stores_;
  Tiers tiers_;
  std::function<Time()> clock_;
  Index block_bytes_;
  double least_bytes_ = 0;  // that are read for a node
};

}  // namespace serving
