// Reference hit counts. On flat accesses blocks do not depend on each other, none is pinned, and a block is cached from
// its access on. A prefix cache cannot reach the count of belady, because it references the blocks of a running
// request; belady-held is the most that it can.
#pragma once

#include <array>
#include <cstdint>
#include <string_view>
#include <vector>

#include "kvc/core/types.hpp"
#include "trace.hpp"

namespace replay {

using kvc::Index;
using kvc::Pos;

inline constexpr std::array<std::string_view, 4> bound_names = {"fifo", "belady", "belady-held", "unbounded"};

/// All blocks of all prompts, one after the other.
struct Accesses {
  std::vector<std::int32_t> block;  ///< numbered anew, 0 .. unique - 1
  std::vector<Pos> tokens;          ///< of the prompt, in this block
  std::vector<std::int32_t> next;   ///< the next access to the same block, or size(): none
  std::vector<std::int32_t> end;    ///< of each prompt: the number of its last access, and one
  Index unique = 0;

  [[nodiscard]] std::size_t size() const noexcept { return block.size(); }
};

/// Throws std::invalid_argument if there are 2^31 - 1 accesses or more. Expected O(blocks).
[[nodiscard]] Accesses accesses_of(const kvc_bench::Trace& trace);

/// Counts of a replay.
struct Hits {
  Index blocks = 0;
  Index tokens = 0;
  Index evictions = 0;
};

/// An unbounded cache: all but the first access to each block hit. O(accesses).
[[nodiscard]] Hits unbounded(const Accesses& accesses);

/// Evicts the block that was cached first. O(accesses).
[[nodiscard]] Hits fifo(const Accesses& accesses, Index capacity);

/// Evicts the block whose next access is the furthest away: no policy that caches every accessed block hits more often.
/// A missing block is always cached, even if it would be the first to evict, as a cache of prefixes must. L. A. Belady,
/// "A study of replacement algorithms for a virtual-storage computer", 1966. O(accesses log accesses).
[[nodiscard]] Hits belady(const Accesses& accesses, Index capacity);

/// The most hits of any cache that holds all blocks of a prompt while it runs, and no block without those before it,
/// for prompts one after another; of a prompt longer than the cache it holds the beginning. It evicts as belady does,
/// but never a block of the running prompt.
///
/// That is the optimum. A block is found again if it stays from one prompt that has it to the next that does. All such
/// stays are worth one hit; at each prompt so many may go on as there is room beside its own blocks; and where they are
/// too many, giving up the one that ends last leaves most room for others. A block's parent is in each prompt that the
/// block is in, so its stays end no later: the block goes first, and no chain is broken.
///
/// O(accesses log accesses).
[[nodiscard]] Hits belady_held(const Accesses& accesses, Index capacity);

}  // namespace replay
