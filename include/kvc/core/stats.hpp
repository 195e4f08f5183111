// What a policy says about itself.
#pragma once

#include "kvc/core/types.hpp"

namespace kvc {
inline namespace v0 {

/// A snapshot of a policy's bookkeeping. Counts are of now, counters since construction.
///
/// A block here is the unit in which the policy hands out room: `block_tokens` slots. Always
/// blocks_free + blocks_cached + blocks_referenced == blocks_total.
struct Stats {
  Pos block_tokens = 0;
  Index blocks_total = 0;
  Index blocks_free = 0;        ///< hold nothing
  Index blocks_cached = 0;      ///< held by no sequence, kept for a later match; room for others when needed
  Index blocks_referenced = 0;  ///< held by at least one sequence
  Index largest_free_run =
      0;                ///< blocks that one sequence could get at once: for Contiguous the largest hole, else all that
                        ///< is free or can be evicted, since pages need not be neighbours
  Index sequences = 0;  ///< open
  Index pins = 0;       ///< prefixes that are pinned; their blocks count as referenced

  Index tokens_stored = 0;    ///< slots that hold a committed row of an open sequence or a pin, a shared slot once
  Index tokens_reserved = 0;  ///< slots of referenced blocks

  Index prompt_tokens = 0;  ///< counter: tokens of all prompts given to open, each time that a request comes again too
  Index hit_tokens = 0;     ///< counter: those of them that were found in place
  Index hits = 0;           ///< counter: full blocks of prompts that were found
  Index misses = 0;         ///< counter: full blocks of prompts that were not
  Index merges = 0;         ///< counter: blocks that a commit replaced by an equal cached one
  Index evictions = 0;      ///< counter: cached blocks given up to make room
  Index copies = 0;         ///< counter: copy-on-write copies and moves
  Index copied_tokens = 0;  ///< counter: rows copied by them

  /// Share of reserved slots that hold nothing: 0 is none.
  [[nodiscard]] constexpr double internal_waste() const noexcept {
    return tokens_reserved == 0 ? 0.0 : 1.0 - static_cast<double>(tokens_stored) / static_cast<double>(tokens_reserved);
  }
  /// Share of the room (free or evictable) that one sequence could not get at once: 0 is none.
  [[nodiscard]] constexpr double external_fragmentation() const noexcept {
    const Index room = blocks_free + blocks_cached;
    return room == 0 ? 0.0 : 1.0 - static_cast<double>(largest_free_run) / static_cast<double>(room);
  }
  /// Share of prompt tokens that were found in place.
  [[nodiscard]] constexpr double hit_rate() const noexcept {
    return prompt_tokens == 0 ? 0.0 : static_cast<double>(hit_tokens) / static_cast<double>(prompt_tokens);
  }
};

}  // namespace v0
}  // namespace kvc
