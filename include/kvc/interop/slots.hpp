// Slot numbers: the place of a position in a pool as one integer, block * block_tokens + slot, as kernels take it that
// write single rows (slot_mapping) or read selected ones (indices).
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <ranges>
#include <span>
#include <vector>

#include "kvc/core/error.hpp"
#include "kvc/core/types.hpp"
#include "kvc/policy/capabilities.hpp"
#include "kvc/policy/concept.hpp"
#include "kvc/policy/detail/stored_runs.hpp"

namespace kvc {
inline namespace v0 {
namespace interop {

inline constexpr std::int64_t no_slot = -1;   ///< pads a slot_mapping: a row that is not to be written
inline constexpr std::int32_t no_index = -1;  ///< pads slot indices: nothing is read

namespace detail {
/// Slots in a block of a group, and all slots of its blocks.
template <class P>
[[nodiscard]] Pos block_tokens(const P& policy, Index group) {
  if constexpr (HoldsGroups<P>) {
    return policy.block_tokens(group);  // throws if it is not there
  } else {
    require(group == 0, "group", group, "0: the policy holds one group");
    return policy.block_tokens();
  }
}
/// f(position, slot number) for the positions of a range that are there, ascending. Returns their number.
template <class P, class F>
Pos for_each_slot(const P& policy, Index group, SeqId seq, PosRange range, F f) {
  const Index tokens = detail::block_tokens(policy, group);
  Pos found = 0;
  const auto visit = [&](const SlotRun& run) {
    for (Pos i = 0; i < run.count; ++i) {
      f(run.first + i, to_index(run.block) * tokens + run.offset + i);
    }
    found += run.count;
  };
  if constexpr (HoldsGroups<P>) {
    policy.for_each_run(seq, group, range, visit);
    if (found < range.size()) {  // a sequence that is restored: also rows that blocks have and no row sees any more
      found = 0;
      kvc::detail::for_each_stored_run(policy, seq, group, range, visit);
    }
  } else {
    policy.for_each_run(seq, range, visit);
  }
  return found;
}
/// Positions of a group, those of an uncommitted extension included.
template <class P>
[[nodiscard]] Pos positions(const P& policy, Index group, SeqId seq) {
  if constexpr (HoldsGroups<P>) {
    return policy.positions(seq, group);
  } else {
    return policy.reserved(seq);
  }
}
/// The positions of a group that an append reserves.
template <class P, class Append>
[[nodiscard]] PosRange extension(const P& policy, const Append& append, Index group) {
  if constexpr (HoldsGroups<P>) {
    return policy.extension(append.seq(), group);
  } else {
    return append.range();
  }
}
/// All of them, of appends that must be uncommitted ones of the cache.
template <class Cache, class Appends>
[[nodiscard]] Index rows_of(const Cache& cache, const Appends& appends, Index group) {
  (void)detail::block_tokens(cache.policy(), group);  // throws if the group is not there
  Index rows = 0;
  for (const auto& append : appends) {
    require(cache.owns(append), "append", "finished or of another cache", "an uncommitted one of this cache");
    rows += detail::extension(cache.policy(), append, group).size();
  }
  return rows;
}
}  // namespace detail

/// Where the rows of a step go: `slots[i]` is the slot of row i of all `appends` (a range of Append), one after the
/// other, in the given group. Entries behind the last row are no_slot, so that a step of fewer rows can use the arrays
/// of a captured graph, and so are those of rows that a restored sequence has no slot for. Call it after the last
/// extend of a step. O(rows + slots).
/// Throws std::invalid_argument if an append is not an uncommitted one of this cache, there is no such group, or the
/// rows are more than the slots; these are unchanged then.
template <class Cache, std::ranges::forward_range Appends>
void slot_mapping(const Cache& cache, const Appends& appends, std::span<std::int64_t> slots, Index group = 0) {
  const auto rows = static_cast<std::size_t>(detail::rows_of(cache, appends, group));
  require(rows <= slots.size(), "slots.size()", slots.size(), "at least the number of rows");
  std::fill(slots.begin(), slots.end(), no_slot);
  with_shared_lock(cache.policy(), [&](const auto& policy) {
    std::span<std::int64_t> rest = slots;
    for (const auto& append : appends) {
      const PosRange range = detail::extension(policy, append, group);
      detail::for_each_slot(policy, group, append.seq(), range, [&](Pos position, Index slot) {
        rest[static_cast<std::size_t>(position - range.first)] = slot;
      });
      rest = rest.subspan(static_cast<std::size_t>(range.size()));
    }
  });
}
/// The same as a vector, padded to `size` entries if the rows are fewer.
template <class Cache, std::ranges::forward_range Appends>
[[nodiscard]] std::vector<std::int64_t> slot_mapping(const Cache& cache, const Appends& appends, Index size = 0,
                                                     Index group = 0) {
  std::vector<std::int64_t> slots(static_cast<std::size_t>(std::max(detail::rows_of(cache, appends, group), size)));
  interop::slot_mapping(cache, appends, std::span<std::int64_t>(slots), group);
  return slots;
}

/// Where selected positions of a sequence lie: `indices[i]` is the slot of `positions[i]`; no_index if that is
/// negative, and for all i >= positions.size(). Sparse attention takes such indices with a selection of the top-k.
/// Throws std::invalid_argument if the handle is stale, a position is not there (the group may have dropped it), the
/// indices are fewer than the positions, or the pool has more slots than 32 bits count. O(indices).
template <Policy P>
void slot_indices(const P& policy, SeqId seq, std::span<const Pos> positions, std::span<std::int32_t> indices,
                  Index group = 0) {
  require(indices.size() >= positions.size(), "indices.size()", indices.size(), "at least the number of positions");
  std::fill(indices.begin(), indices.end(), no_index);
  with_shared_lock(policy, [&](const auto& bare) {
    const Index slots = Index{bare.blocks()} * detail::block_tokens(bare, group);
    require(slots <= Index{max_pos} + 1, "slots in the pool", slots, "at most 2^31, to be counted in 32 bits");
    const Pos length = detail::positions(bare, group, seq);
    for (std::size_t i = 0; i < positions.size(); ++i) {
      const Pos p = positions[i];
      if (p >= 0 && p < length) {
        detail::for_each_slot(bare, group, seq, {p, p + 1},
                              [&](Pos, Index slot) { indices[i] = static_cast<std::int32_t>(slot); });
      }
      require(p < 0 || indices[i] != no_index, "position", p, "one that the sequence has, in this layer group");
    }
  });
}

}  // namespace interop
}  // namespace v0
}  // namespace kvc
