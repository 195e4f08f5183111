// TierSpec: a slower tier behind the pool, as a resource with room, bandwidth, latency and a queue; what a run says of
// it. Standard library only.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "kvc/tier/tier_policy.hpp"
#include "request.hpp"

namespace serving {

using kvc::tier::LoadRule;

/// A slower tier. Reads wait for reads and writes for writes: each way has the bandwidth by itself.
struct TierSpec {
  std::string name;
  Index blocks = 0;             ///< room, in blocks of the pool
  double bytes_per_second = 0;  ///< of either way; 0: no time passes
  Time latency = 0;             ///< of each operation, beside its bytes
  bool remote = false;          ///< a question for a block takes the latency, too
  bool write_back = false;      ///< blocks are written as the pool runs short, not as soon as they are cached

  friend bool operator==(const TierSpec&, const TierSpec&) = default;
};

/// The most tiers of a run.
inline constexpr std::size_t most_tiers = 3;

/// The tiers of a run, from the fastest to the slowest. None: evicted blocks are lost.
struct TierSet {
  std::string name = "no tier";
  std::vector<TierSpec> tiers;
};

[[nodiscard]] constexpr std::string_view name(LoadRule rule) noexcept {
  return rule == LoadRule::always ? "always" : rule == LoadRule::never ? "never" : "cheaper";
}

/// What is in a tier and on its way, at one moment. Counts of blocks of the pool: with layer groups, of as many bytes.
struct TierSample {
  Index held = 0;
  Index reading = 0;  ///< reads of records that were asked for and have not ended
  Index writing = 0;
  Index loaded = 0;  ///< since the beginning
  Index stored = 0;  ///< since the beginning
};

/// One tier at the end of a run. Counts of blocks of the pool, where nothing else is said.
struct TierResult {
  TierSpec spec;
  Index loaded = 0;         ///< read, and found by a prompt afterwards
  Index stored = 0;         ///< written
  Index lost = 0;           ///< records of what left the pool too early to be written
  Index loads_unused = 0;   ///< records that were read in vain: a block before them was not there
  Index load_failures = 0;  ///< reads that missed, were refused or failed
};

/// Prefixes of a run that slower tiers had.
struct LoadResult {
  Index loads = 0;            ///< that were begun
  Index loads_short = 0;      ///< that got less than was begun
  Index no_room = 0;          ///< that found no room in the pool
  Index blocks_computed = 0;  ///< blocks that a tier had and that were computed, by the rule
};

}  // namespace serving
