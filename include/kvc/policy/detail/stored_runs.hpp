// for_each_stored_run: the rows that a policy holds of a sequence in a layer group, also those that no row sees any
// more.
#pragma once

#include <algorithm>
#include <cstddef>
#include <span>
#include <vector>

#include "kvc/core/types.hpp"
#include "kvc/policy/capabilities.hpp"
#include "kvc/policy/group_table.hpp"

namespace kvc {
inline namespace v0 {
namespace detail {

/// f(SlotRun) for the rows that a policy holds of the positions of `range` of a sequence in a group, ascending;
/// range.last <= policy.positions(seq, group). With block tables these are all rows of its blocks, of which a group may
/// see only some. O(blocks of the range).
template <HoldsGroups P, class F>
void for_each_stored_run(const P& policy, SeqId seq, Index group, PosRange range, F&& f) {
  if constexpr (GroupTablePolicy<P>) {
    std::vector<SlotRun> runs;
    with_shared_lock(policy, [&](const auto& bare) {
      const GroupBlocks blocks = bare.group_blocks(seq, group);
      const Pos size = bare.block_tokens(group);
      const auto add = [&](BlockId block, Index first, Index last) {
        first = std::max<Index>(first, range.first);
        last = std::min<Index>(last, range.last);
        if (first < last) {
          runs.push_back(
              {block, static_cast<Pos>(first % size), static_cast<Pos>(last - first), static_cast<Pos>(first)});
        }
      };
      // Blocks of consecutive numbers; those before the range are skipped at once.
      const auto add_blocks = [&](std::span<const BlockId> part, Pos number) {
        const Pos skipped = std::max(range.first / size - number, 0);
        for (auto i = static_cast<std::size_t>(skipped); i < part.size(); ++i) {
          const Index first = (Index{number} + static_cast<Index>(i)) * size;
          if (first >= range.last) {
            return;
          }
          if (blocks.missing.empty()) {
            add(part[i], first, first + size);
            continue;
          }
          add(part[i], first, std::min<Index>(first + size, blocks.missing.first));
          add(part[i], std::max<Index>(first, blocks.missing.last), first + size);
        }
      };
      add_blocks(blocks.kept, 0);
      add_blocks(blocks.rest, blocks.first);
    });
    std::ranges::for_each(runs, f);
  } else {
    policy.for_each_run(seq, group, range, f);
  }
}

}  // namespace detail
}  // namespace v0
}  // namespace kvc
