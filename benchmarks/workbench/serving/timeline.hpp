// Timeline: the state of the pool over time, in a fixed amount of memory.
//
// A sample is due at regular times and taken at the end of the current step. When there are `most` samples, every
// second one is dropped and the interval doubles; so between half and all of `most` samples cover a run of any length.
#pragma once

#include <algorithm>
#include <array>
#include <cstdint>
#include <limits>
#include <vector>

#include "scheduler.hpp"

namespace serving {

/// All in slots (tokens of room; with layer groups, block_tokens() for each block); used + wasted + cached + free ==
/// pool.
struct Sample {
  Time time = 0;
  Index used = 0;              ///< store a row of a running sequence or a pinned prefix; shared ones count once
  Index wasted = 0;            ///< reserved and empty
  Index cached = 0;            ///< kept for later prompts, evictable
  Index free = 0;              ///< empty
  Index largest_free_run = 0;  ///< the most that one sequence could get at once
  Index waiting = 0;           ///< sequences
  Index running = 0;
  // Since the beginning; the difference of two samples shows what happened in between:
  Time blocked_25 = 0;       ///< as in Counters
  Index out_of_room_25 = 0;  ///< as in Counters
  std::array<TierSample, most_tiers> tiers{};
};

/// The owner of a cell of the map of the pool: an id of a request, or one of these.
enum Owner : Index {
  owner_free = -1,     ///< nobody
  owner_cached = -2,   ///< no sequence: kept for later prompts, or pinned
  owner_shared = -3,   ///< several sequences
  owner_reserved = -4  ///< reserved by a sequence and unused
};

/// The owners of all cells of the map at one time.
struct MapRow {
  Time time = 0;
  std::vector<Index> owners;  ///< by cell, in the order of the pool
};

/// The observed part of a run: all of it, or a short part in detail.
struct Watch {
  Time from = 0;
  Time to = std::numeric_limits<Time>::max();
};

/// Samples and maps of one run.
class Timeline {
 public:
  /// Divides the pool into `map_cells` cells, or one per block if it has fewer; 0: no map.
  explicit Timeline(Watch watch = {}, std::size_t most_samples = 512, std::size_t most_maps = 128,
                    std::size_t map_cells = 192)
      : watch_(watch), samples_(most_samples), maps_(most_maps), map_cells_(map_cells) {}

  template <class Cache>
  void observe(Time now, const Cache& cache, const Scheduler<Cache>& scheduler, const PrefixLoads* loads = nullptr) {
    if (now < watch_.from || now > watch_.to) {
      return;
    }
    if (samples_.due(now)) {
      Sample taken = sample(now, cache, scheduler);
      for (std::size_t t = 0; loads != nullptr && t < loads->tiers(); ++t) {
        taken.tiers[t] = loads->sample(t);
      }
      samples_.add(now, taken);
    }
    if (map_cells_ > 0 && maps_.due(now)) {
      maps_.add(now, {now, owners(cache, scheduler)});
    }
  }

  [[nodiscard]] const std::vector<Sample>& samples() const noexcept { return samples_.entries; }
  [[nodiscard]] const std::vector<MapRow>& maps() const noexcept { return maps_.entries; }

 private:
  template <class T>
  struct Thinned {
    explicit Thinned(std::size_t most_) : most(std::max<std::size_t>(most_, 2)) {}
    [[nodiscard]] bool due(Time now) const noexcept { return now >= next; }
    void add(Time now, T entry) {
      entries.push_back(std::move(entry));
      next = (now / interval + 1) * interval;
      if (entries.size() >= most) {
        std::size_t kept = 0;
        for (std::size_t i = 0; i < entries.size(); i += 2) {
          if (kept != i) {
            entries[kept] = std::move(entries[i]);
          }
          ++kept;
        }
        entries.resize(kept);
        // At first steps may be longer than the interval: later samples must not lie closer than the kept ones.
        interval = std::max(2 * interval, (entries.back().time - entries.front().time) / static_cast<Time>(kept));
      }
    }
    std::size_t most;
    std::vector<T> entries;
    Time interval = millisecond;
    Time next = 0;
  };

  template <class Cache>
  static Sample sample(Time now, const Cache& cache, const Scheduler<Cache>& scheduler) {
    const kvc::Stats stats = cache.stats();
    const Index block = stats.block_tokens;
    const Index used = used_slots(cache.policy(), stats);
    return {now,
            used,
            stats.blocks_referenced * block - used,
            stats.blocks_cached * block,
            stats.blocks_free * block,
            stats.largest_free_run * block,
            scheduler.waiting(),
            scheduler.running(),
            scheduler.counters().blocked_25,
            scheduler.counters().out_of_room_25,
            {}};
  }

  /// With layer groups a block of each group counts as block_tokens() slots, however many it has.
  template <class Policy>
  static Index used_slots(const Policy& policy, const kvc::Stats& stats) {
    if constexpr (PoolsGroups<Policy>) {
      if (has_groups(policy)) {
        Index used = 0;
        Index states = stats.blocks_referenced;  // blocks that are of no group
        for (Index g = 0; g < policy.groups(); ++g) {
          const kvc::Stats group = policy.stats(g);
          used += group.tokens_stored * stats.block_tokens / policy.block_tokens(g);
          states -= group.blocks_referenced;
        }
        return used + states * stats.block_tokens;
      }
    }
    return stats.tokens_stored;
  }

  /// f(BlockId) for each block that a sequence holds.
  template <class Policy, class F>
  static void for_each_block(const Policy& policy, kvc::SeqId seq, F&& f) {
    if constexpr (PoolsGroups<Policy>) {
      for (Index g = 0; g < policy.groups(); ++g) {
        const kvc::GroupBlocks parts = policy.group_blocks(seq, g);
        std::ranges::for_each(parts.kept, f);
        std::ranges::for_each(parts.rest, f);
      }
      if constexpr (kvc::HoldsStates<Policy>) {
        for (const Pos length : policy.state_lengths(seq)) {
          for (std::size_t kind = 0; kind < policy.group_rules().states.size(); ++kind) {
            std::ranges::for_each(policy.state_blocks(seq, static_cast<Index>(kind), length), f);
          }
        }
      }
    } else {
      std::ranges::for_each(policy.block_table(seq), f);
    }
  }

  /// Of each cell the owner of the slot or block in its middle.
  template <class Cache>
  std::vector<Index> owners(const Cache& cache, const Scheduler<Cache>& scheduler) const {
    const auto& policy = cache.policy();
    constexpr bool in_blocks = kvc::BlockTablePolicy<typename Cache::PolicyType>;
    const Index units = in_blocks ? policy.blocks() : pool_tokens(policy);
    const auto cells = std::min<Index>(units, static_cast<Index>(map_cells_));
    const auto middle = [&](Index cell) { return (2 * cell + 1) * units / (2 * cells); };
    std::vector<Index> owners(static_cast<std::size_t>(cells), owner_free);
    if constexpr (in_blocks) {
      std::vector<Index> of_block(static_cast<std::size_t>(units), owner_free);
      if constexpr (kvc::KeepsPrefixes<typename Cache::PolicyType>) {
        policy.for_each_cached(
            [&](const auto& stored) { of_block[static_cast<std::size_t>(stored.block)] = owner_cached; });
      }
      scheduler.for_each_running([&](Index request, kvc::SeqId seq) {
        for_each_block(policy, seq, [&](kvc::BlockId block) {
          Index& owner = of_block[static_cast<std::size_t>(block)];
          owner = owner >= 0 && owner != request ? Index{owner_shared} : owner == owner_shared ? owner : request;
        });
      });
      for (Index cell = 0; cell < cells; ++cell) {
        owners[static_cast<std::size_t>(cell)] = of_block[static_cast<std::size_t>(middle(cell))];
      }
    } else {
      scheduler.for_each_running([&](Index request, kvc::SeqId seq) {
        const kvc::SlotRun all = policy.allocation(seq);
        const Pos reserved = policy.reserved(seq);
        for (Index cell = all.offset * cells / units; cell < cells && middle(cell) < all.offset + all.count; ++cell) {
          if (middle(cell) >= all.offset) {
            owners[static_cast<std::size_t>(cell)] =
                middle(cell) < all.offset + reserved ? request : Index{owner_reserved};
          }
        }
      });
    }
    return owners;
  }

  Watch watch_;
  Thinned<Sample> samples_;
  Thinned<MapRow> maps_;
  std::size_t map_cells_;
};

}  // namespace serving
