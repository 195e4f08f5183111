// Replays a trace through the policies of the library, and through the references that they are compared with.
#pragma once

#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "bounds.hpp"
#include "held_model.hpp"
#include "kvc/core/types.hpp"
#include "trace.hpp"

namespace replay {

/// The definition of a hit: a block whose whole prefix is cached too, or any cached block.
enum class Accounting { chain, flat };
[[nodiscard]] constexpr std::string_view name(Accounting accounting) {
  return accounting == Accounting::chain ? "chain" : "flat";
}

/// One policy or reference at one capacity.
struct Result {
  std::string eviction;
  Accounting accounting = Accounting::chain;
  Index capacity = 0;
  Index pool_blocks = 0;  ///< of the policy: with a model, in as many bytes as `capacity` blocks of all rows have
  Hits hits;
  Index refused = 0;                         ///< requests with more blocks than the pool; their beginning was cached
  double seconds = 0;                        ///< of the replay alone
  std::optional<double> gap_recovered;       ///< (hits - lru's) / (belady's - lru's), if there is a gap
  std::optional<double> held_gap_recovered;  ///< the same of belady-held
};

/// All results for one trace.
struct Replay {
  Index blocks = 0;  ///< of all prompts; their tokens are trace.input_tokens()
  Index unique_blocks = 0;
  std::string model;  ///< empty: blocks are all that is held
  /// By capacity; then fifo, the policies, belady, belady-held, unbounded; with a model the policies and unbounded
  /// alone.
  std::vector<Result> results;
};

/// Replays requests one after another, in the order of the trace: each finds the cached part of its prompt, adds the
/// rest, and ends. Answers are not cached, as traces do not name their blocks. `evictions` must include lru.
///
/// With a model, its layer groups decide what is held: a window keeps the end of a prompt, and of recurrent layers
/// there are states at its end and where prompts have parted. A prompt is computed in passes, and refused where one of
/// them finds no room; what was computed before stays cached. Throws std::runtime_error if a capacity has no room for a
/// block.
[[nodiscard]] Replay replay_all(const kvc_bench::Trace& trace, const std::vector<Index>& capacities,
                                const std::vector<std::string>& evictions, const std::optional<HeldModel>& model = {});

}  // namespace replay
