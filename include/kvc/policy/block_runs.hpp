// for_each_block_run: the runs of a sequence whose positions lie in a table of blocks.
#pragma once

#include <algorithm>
#include <cstddef>
#include <span>

#include "kvc/core/types.hpp"

namespace kvc {
inline namespace v0 {

/// f(SlotRun) for each block that `range` touches, in ascending order, where position p is slot p % block_tokens of
/// block table[p / block_tokens]. O(blocks touched).
template <class F>
void for_each_block_run(std::span<const BlockId> table, Pos block_tokens, PosRange range, F&& f) {
  for (Pos p = range.first; p < range.last;) {
    const Pos offset = p % block_tokens;
    const Pos count = std::min(static_cast<Pos>(block_tokens - offset), static_cast<Pos>(range.last - p));
    f(SlotRun{table[static_cast<std::size_t>(p / block_tokens)], offset, count, p});
    p += count;
  }
}

}  // namespace v0
}  // namespace kvc
