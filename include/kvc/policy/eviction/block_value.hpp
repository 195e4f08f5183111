// block_value: what it is worth to keep a cached block, for whoever has to choose between blocks: slower tiers,
// engines.
#pragma once

#include <cstdint>

#include "kvc/core/types.hpp"
#include "kvc/policy/eviction/concept.hpp"

namespace kvc {
inline namespace v0 {

/// How much the cost of a block grows with each block before it, as a share of the cost of a first block. For blocks of
/// 16 tokens, and a model of 8 * 10^9 parameters in 32 layers of width 4096. A token costs two operations per
/// parameter, and four per layer, unit of width and token before it: 2 * 8e9 and, per block before it, 4 * 32 * 4096 *
/// 16, or one 1900th of that.
inline constexpr double default_cost_slope = 1.0 / 1900;

/// The cost of computing a block with `depth` blocks before it, in units of the cost of a first block: its tokens
/// attend to all tokens before them. O(1).
[[nodiscard]] constexpr double compute_cost(Pos depth, double slope = default_cost_slope) noexcept {
  return 1 + depth * slope;
}

/// The costs of a block, in units that are the same for all blocks that are compared.
struct BlockCost {
  double miss = 1;   ///< of a miss: compute_cost(depth), or measured seconds. Less the cost of a hit, where a hit has
                     ///< to be read from a slower tier. Not negative
  double bytes = 1;  ///< of keeping it. More than 0
};

/// The value of keeping a block: the cost of misses that it is estimated to save now, per unit of time and byte.
///
///     value = hazard * cost.miss / cost.bytes
///
/// The block with the lowest value is the first to go without. It is for comparing blocks at one time: the unit of time
/// is the logical one of the policy. `block` and `now` are as of EstimatesReuse. O(1).
template <EstimatesReuse E>
[[nodiscard]] double block_value(const E& eviction, BlockId block, std::uint64_t now, const BlockCost& cost) noexcept {
  return eviction.hazard(block, now) * cost.miss / cost.bytes;
}

}  // namespace v0
}  // namespace kvc
