// TiersConfig and TiersStats: how slower tiers behind a cache behave, and what they did.
#pragma once

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "kvc/core/error.hpp"
#include "kvc/core/types.hpp"
#include "kvc/tier/tier_policy.hpp"

namespace kvc {
inline namespace v0 {
namespace tier {

/// When a cached block is written to a tier. No block is written before its parent is recorded there.
enum class WriteRule : std::uint8_t {
  through,    ///< as soon as it is cached
  back,       ///< when the pool runs short: while fewer than `reserve` blocks can be taken without loss
  selective,  ///< as soon as a later prompt has found it; and of the blocks that leave the pool without, those of more
  ///< than their mean block_value, where the eviction policy EstimatesReuse. A miss costs what computing the block
  ///< takes longer than reading it, as far as that was measured
  never  ///< the tier is only read
};

namespace detail {
[[nodiscard]] inline double steady_seconds() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}
}  // namespace detail

/// Tells the time in seconds, from any beginning.
using SecondsNow = std::function<double()>;

/// How Tiers behaves.
struct TiersConfig {
  /// Names the model with its weights: it is a part of every key. Two caches find each other's blocks if the names and
  /// the fingerprints of their blocks are equal. Not empty.
  std::string model;
  LoadRule load = LoadRule::cheaper;
  std::vector<WriteRule> write{};  ///< [tiers]; empty: through, for each
  std::size_t reads = 64;          ///< most blocks that are read at once, and begun by one `poll`
  std::size_t writes = 16;  ///< most blocks that are written at once, and begun by one `poll` for each tier; so many
                            ///< blocks of memory are taken to copy them aside
  /// Layers of the model that one read brings, 0: all. With fewer, the first layers of a prefix are in place while the
  /// last ones are on their way (Tiers::ready), at the price of more and smaller reads.
  Index layers_per_read = 0;
  /// Whether a block may be written while its parent is on its way to the same tier. A store that takes long for each
  /// write gets many blocks of one prompt at once then, and is as fast as its bandwidth. If the process dies at that
  /// moment, a block can be there without its parent: no prompt finds it before the parent is written again, and it is
  /// evicted in its turn. A block whose parent could not be written is erased.
  bool pipelined = false;
  Index reserve = 0;                             ///< see WriteRule::back; 0: an eighth of the pool
  SecondsNow seconds = &detail::steady_seconds;  ///< for measurements
};

/// Throws std::invalid_argument, naming the member, if a value is not allowed.
inline void require_valid(const TiersConfig& config, std::size_t tiers) {
  require(!config.model.empty(), "config.model", config.model, "a name of the model and its weights");
  require(tiers >= 1 && tiers <= TierPolicy::max_tiers, "stores", tiers, "between 1 and 8");
  require(config.write.empty() || config.write.size() == tiers, "config.write.size()", config.write.size(),
          "0 or the number of stores");
  require(config.reads >= 1, "config.reads", config.reads, "at least 1");
  require(config.writes >= 1, "config.writes", config.writes, "at least 1");
  require(config.layers_per_read >= 0, "config.layers_per_read", config.layers_per_read, "at least 0");
  require(config.reserve >= 0, "config.reserve", config.reserve, "at least 0");
  require(static_cast<bool>(config.seconds), "config.seconds", "no function", "a function");
}

/// What happened between a cache and one tier. Counts of blocks, but for the bytes.
struct TierStats {
  Index loaded = 0;          ///< read, and matchable since
  Index bytes_loaded = 0;    ///< of these
  Index load_misses = 0;     ///< were to be read, and there was no record any more
  Index load_refused = 0;    ///< were to be read, and the record was damaged or foreign
  Index load_failed = 0;     ///< were to be read, and the store failed
  Index loads_unused = 0;    ///< were read, and a block before them was not
  Index lookups_failed = 0;  ///< questions for the blocks of a prompt that the store did not answer
  Index stored = 0;          ///< written
  Index bytes_stored = 0;    ///< of these
  Index store_full = 0;      ///< were to be written, and there was no room
  Index store_failed = 0;    ///< were to be written, and the store failed
  Index rescued = 0;         ///< left the pool before they were written, and were copied aside
  Index lost = 0;       ///< were to be written, and never will be: they, or blocks before them, left the pool too early
                        ///< or could not be written
  Index not_worth = 0;  ///< were not written, by WriteRule::selective
};

/// Prefixes that were brought, or not, from slower tiers.
struct TiersStats {
  Index loads = 0;            ///< prefixes that were begun to load
  Index loads_short = 0;      ///< of them, those that got less than was begun
  Index loads_cancelled = 0;  ///< of them, those that were cancelled, by `cancel` or because the cache was cleared
  Index loads_overtaken = 0;  ///< prefixes whose beginning the pool evicted before the tiers had answered
  Index loads_no_room = 0;    ///< prefixes that were not loaded for want of room in the pool
  Index blocks_computed = 0;  ///< blocks that a tier has and that were not loaded, by the rule
};

}  // namespace tier
}  // namespace v0
}  // namespace kvc
