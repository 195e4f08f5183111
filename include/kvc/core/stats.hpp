// Stats: the counters of a policy.
#pragma once

#include "kvc/core/types.hpp"

namespace kvc {
inline namespace v0 {

/// The bookkeeping of a policy at one moment. A block is the unit in which the policy gives out slots: `block_tokens`
/// of them. blocks_free + blocks_cached + blocks_referenced == blocks_total, always.
struct Stats {
  // now
  Pos block_tokens = 0;     ///< slots in a block
  Index blocks_total = 0;   ///< blocks of the pool
  Index blocks_free = 0;    ///< store nothing
  Index blocks_cached = 0;  ///< belong to no sequence and are kept for a later match; evicted if others need the room
  Index blocks_referenced = 0;  ///< belong to at least one sequence or pin
  Index largest_free_run =
      0;                      ///< blocks that one sequence could get at once: the largest hole of Contiguous; elsewhere
                              ///< all free and cached ones, since blocks of a sequence need not be neighbours
  Index sequences = 0;        ///< open sequences
  Index pins = 0;             ///< pinned prefixes; their blocks count as referenced
  Index tokens_stored = 0;    ///< slots that store a committed row of a sequence or a pin, a shared slot once
  Index tokens_reserved = 0;  ///< slots of referenced blocks
  /// Committed positions whose tokens a policy that matches prefixes does not know, so that no prompt finds them or
  /// what follows them: of open sequences now, and of closed ones at their end. 0 for policies that match nothing.
  Index tokens_unknown = 0;

  // counters since construction
  Index prompt_tokens = 0;  ///< tokens of all prompts given to open; a prompt that is opened again counts again
  Index hit_tokens = 0;     ///< those of them that were found in place
  Index hits = 0;           ///< full blocks of prompts that were found
  Index misses = 0;         ///< full blocks of prompts that were not found
  Index lost_tokens =
      0;                ///< of stats(group): tokens that would have been found, too, had this layer group kept its rows
  Index merges = 0;     ///< blocks that a commit replaced by an equal cached one
  Index evictions = 0;  ///< cached blocks that were evicted
  Index copies = 0;     ///< copy-on-write copies and moves
  Index copied_tokens = 0;  ///< rows that they copied

  /// Share of the reserved slots that store nothing, in [0, 1].
  [[nodiscard]] constexpr double internal_waste() const noexcept {
    return tokens_reserved == 0 ? 0.0 : 1.0 - static_cast<double>(tokens_stored) / static_cast<double>(tokens_reserved);
  }
  /// Share of the free and cached blocks that one sequence could not get at once, in [0, 1].
  [[nodiscard]] constexpr double external_fragmentation() const noexcept {
    const Index room = blocks_free + blocks_cached;
    return room == 0 ? 0.0 : 1.0 - static_cast<double>(largest_free_run) / static_cast<double>(room);
  }
  /// Share of the prompt tokens that were found in place, in [0, 1].
  [[nodiscard]] constexpr double hit_rate() const noexcept {
    return prompt_tokens == 0 ? 0.0 : static_cast<double>(hit_tokens) / static_cast<double>(prompt_tokens);
  }
};

}  // namespace v0
}  // namespace kvc
