// References for hit counts, on flat accesses: each block stands for itself, nothing is pinned, and a block is in the
// cache from the moment it is accessed. A cache of prefixes does not reach belady, since it holds a request's blocks
// while it runs, and keeps no block without those before it.
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

inline constexpr std::array<std::string_view, 3> bound_names = {"fifo", "belady", "unbounded"};

/// All blocks of all prompts, one after the other.
struct Accesses {
  std::vector<std::int32_t> block;  ///< numbered anew, 0 .. unique - 1
  std::vector<Pos> tokens;          ///< of the prompt, in this block
  std::vector<std::int32_t> next;   ///< the next access to the same block, or size(): none
  Index unique = 0;

  [[nodiscard]] std::size_t size() const noexcept { return block.size(); }
};

/// Throws std::invalid_argument if there are 2^31 - 1 accesses or more. Expected O(blocks).
[[nodiscard]] Accesses accesses_of(const kvc_bench::Trace& trace);

/// What a replay found in the cache.
struct Hits {
  Index blocks = 0;
  Index tokens = 0;
  Index evictions = 0;
};

/// A cache without an end: all but the first access to each block hit. O(accesses).
[[nodiscard]] Hits unbounded(const Accesses& accesses);

/// Evicts the block that came in first. O(accesses).
[[nodiscard]] Hits fifo(const Accesses& accesses, Index capacity);

/// Evicts the block whose next access is the furthest away: no policy that caches each block it is asked for hits more
/// often. A block that is missing comes in always, even where it would be the first to go, as a cache of prefixes has to
/// take it. L. A. Belady, "A study of replacement algorithms for a virtual-storage computer", 1966.
/// O(accesses log accesses).
[[nodiscard]] Hits belady(const Accesses& accesses, Index capacity);

}  // namespace replay
