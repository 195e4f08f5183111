// Replays a trace through a prefix cache with slower tiers behind it.
#pragma once

#include <iosfwd>
#include <string>
#include <string_view>
#include <vector>

#include "kvc/core/types.hpp"
#include "trace.hpp"

namespace replay {

using kvc::Index;

/// A tier of the command line.
struct TierSize {
  std::string name;
  Index blocks = 0;
  std::string rule = "through";  ///< when blocks are written: through, back or selective
};

/// One eviction policy of the pool, or the best cache that knows the future, at one capacity of the pool.
struct TieredResult {
  std::string eviction;
  Index capacity = 0;
  Index pool_hits = 0;        ///< blocks of prompts that were in the pool
  std::vector<Index> hits;    ///< [tiers] blocks that were not, and were read from the tier
  std::vector<Index> stored;  ///< [tiers] blocks that were written to it
  std::vector<Index> lost;    ///< [tiers] blocks that left the pool too early to be written
  double seconds = 0;
};

/// Replays requests as replay_all does, each prompt loaded as far as a tier has it before it is opened. A tier keeps so
/// many blocks, and evicts the least recently used one without children. A bound, `belady-held` with the room of the
/// pool and all tiers together, comes last for each capacity. Empty if the program was built without libsodium.
[[nodiscard]] std::vector<TieredResult> replay_tiers(const kvc_bench::Trace& trace,
                                                     const std::vector<Index>& capacities,
                                                     const std::vector<std::string>& evictions,
                                                     const std::vector<TierSize>& tiers);

/// A table for each capacity.
void print(std::ostream& out, const kvc_bench::Trace& trace, const std::vector<TierSize>& tiers,
           const std::vector<TieredResult>& results);

}  // namespace replay
