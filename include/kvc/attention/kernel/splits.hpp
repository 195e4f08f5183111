// Turns the splits of a batch into work items, and orders the work within an item.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <tuple>
#include <vector>

#include "kvc/attention/kernel/kernels.hpp"
#include "kvc/attention/kernel/kv_tile_rows.hpp"
#include "kvc/attention/kernel/split_plan.hpp"
#include "kvc/core/types.hpp"

namespace kvc {
inline namespace v0 {
namespace detail {

inline constexpr Index split_tiles = split_keys / tile_keys;

/// The sequences of a batch in their shared order. All members below speak of the i-th sequence of that order.
struct SplitBatch {
  SharedOrder order;
  std::vector<VisibleKeys> keys;   ///< [sequences] that any row of it may see
  std::vector<Index> first_query;  ///< [sequences + 1] rows of q of the sequences before
  SplitIndex splits;

  [[nodiscard]] Index size() const noexcept { return std::ssize(keys); }
  [[nodiscard]] Index sequence(Index i) const noexcept { return order.sequence[static_cast<std::size_t>(i)]; }
  [[nodiscard]] Index shared(Index i) const noexcept { return order.shared[static_cast<std::size_t>(i)]; }
  [[nodiscard]] Index queries_before(Index i) const noexcept { return first_query[static_cast<std::size_t>(i)]; }
  /// Rows of q of sequences [first, last).
  [[nodiscard]] Index queries(Index first, Index last) const noexcept {
    return queries_before(last) - queries_before(first);
  }
};

/// One split of sequences [first, last), which have its first tile in common, or are one.
struct SplitGroup {
  Index split;
  Index first;
  Index last;
  Index rows;       ///< query rows of one kv head: of all its sequences and the heads of the GQA group
  Index state = 0;  ///< the first of its states: [kv_heads, rows]
};

/// All splits of all sequences as groups of at most `most_rows` query rows, or of one sequence. Groups of the same
/// sequences are neighbours, in the order of their splits.
///
///   group  query heads per kv head
[[nodiscard]] inline std::vector<SplitGroup> make_split_groups(const SplitBatch& batch, Index most_rows, Index kv_heads,
                                                               Index group) {
  std::vector<SplitGroup> groups;
  for (Index split = 0; split < batch.splits.end(); ++split) {
    for_each_sharing(batch.order, split * split_keys + tile_keys, [&](Index first, Index last) {
      bool open = false;  // whether the sequence before belongs to the last group
      for (Index i = first; i < last; ++i) {
        const bool has = batch.splits.contains(i, split);
        const Index rows = has ? batch.queries(i, i + 1) * group : 0;
        if (has && open && groups.back().rows + rows <= most_rows) {
          groups.back().last = i + 1;
          groups.back().rows += rows;
        } else if (has) {
          groups.push_back({split, i, i + 1, rows});
        }
        open = has;
      }
    });
  }
  if (batch.size() > 1) {
    std::ranges::sort(groups, {}, [](const SplitGroup& g) { return std::tuple(g.first, g.last, g.split); });
  }
  Index state = 0;
  for (SplitGroup& g : groups) {
    g.state = state;
    state += kv_heads * g.rows;
  }
  return groups;
}

/// Consecutive splits of the same sequences, and some kv heads: what one thread does in one go.
struct WorkItem {
  Index first_group;  ///< split groups [first_group, last_group)
  Index last_group;
  Index first_head;
  Index heads;
  bool merges;   ///< begins with the first split of its rows, and so leaves one state of each for all of its splits
  bool by_head;  ///< one head after the other
};

/// Cuts the split groups into work items: large ones at first, small ones in the end, so that there are few items and
/// all threads end at about the same time. Keeps the splits of a head together where it can, since their states need
/// not be kept apart then.
///
///   most_rows       query rows in all heads of an item
///   by_head(group)  whether the positions of a head are contiguous in memory from there on
template <class F>
[[nodiscard]] std::vector<WorkItem> make_work_items(const std::vector<SplitGroup>& groups, const SplitBatch& batch,
                                                    Index kv_heads, Index most_rows, Index threads, F by_head) {
  const auto cost = [&](const SplitGroup& g) { return ceil_div(g.rows, few_rows); };  // of one head
  const auto count = static_cast<Index>(groups.size());
  Index left = 0;
  for (const SplitGroup& g : groups) {
    left += cost(g) * kv_heads;
  }
  const auto share = [&] { return threads == 1 ? left : std::max(left / (2 * threads), Index{1}); };
  std::vector<WorkItem> items;
  for (Index first = 0, last = 0; first < count; first = last) {
    const SplitGroup& g = groups[static_cast<std::size_t>(first)];
    for (last = first + 1; last < count; ++last) {
      const SplitGroup& next = groups[static_cast<std::size_t>(last)];
      if (next.first != g.first || next.last != g.last || next.split != g.split + last - first) {
        break;
      }
    }
    bool from_first_split = true;  // of each sequence
    for (Index i = g.first; i < g.last; ++i) {
      from_first_split = from_first_split && batch.splits.first(i) == g.split;
    }
    const bool one_by_one = by_head(g);
    const auto add = [&](Index from, Index to, Index head, Index heads) {
      items.push_back({from, to, head, heads, from_first_split && from == first, one_by_one});
      left -= cost(g) * (to - from) * heads;
    };
    const Index most_heads = std::clamp(most_rows / g.rows, Index{1}, kv_heads);
    Index head = 0;
    while (head < kv_heads) {  // all splits of some heads
      const Index heads = std::min({share() / (cost(g) * (last - first)), most_heads, kv_heads - head});
      if (heads == 0 || (!one_by_one && heads < most_heads)) {
        break;
      }
      add(first, last, head, heads);
      head += heads;
    }
    for (Index at = first, to = first; at < last && head < kv_heads; at = to) {  // some splits of the heads left
      const Index heads = std::clamp(share() / cost(g), Index{1}, std::min(most_heads, kv_heads - head));
      to = at + std::clamp(share() / (cost(g) * heads), Index{1}, last - at);
      for (Index h = head; h < kv_heads; h += heads) {
        add(at, to, h, std::min(heads, kv_heads - h));
      }
    }
  }
  return items;
}

/// One step of a work item: one tile and one kv head, for those of its sequences that share the tile.
struct Step {
  Index group;  ///< split group
  Index tile;   ///< its positions begin at tile * tile_keys
  Index first;  ///< sequences [first, last) of the batch
  Index last;
  Index head;          ///< relative to the first head of the item
  std::uint64_t keys;  ///< of the tile that any of the sequences may see, one bit each
};

/// The steps of a work item in the order in which the cache lies in memory: tiles outside, then the sequences that
/// share each, then the heads, as in a block; or heads outside, where the positions of a head are contiguous.
class Steps {
 public:
  Steps(const SplitBatch& batch, const std::vector<SplitGroup>& groups, const WorkItem& item)
      : batch_(batch), groups_(groups), item_(item), step_(start()) {
    step_.head = item.by_head ? 0 : item.heads;
  }

  /// Gives the next step, or returns false at the end.
  bool next(Step& step) {
    if (item_.by_head) {
      while (!next_keys()) {
        const Index head = step_.head + 1;
        if (head == item_.heads) {
          return false;
        }
        step_ = start();
        step_.head = head;
      }
    } else if (++step_.head >= item_.heads) {
      if (!next_keys()) {
        return false;
      }
      step_.head = 0;
    }
    step = step_;
    return true;
  }

 private:
  [[nodiscard]] const SplitGroup& group_of(const Step& step) const {
    return groups_[static_cast<std::size_t>(step.group)];
  }
  /// Before the first step.
  [[nodiscard]] Step start() const {
    const SplitGroup& group = groups_[static_cast<std::size_t>(item_.first_group)];
    return {item_.first_group, group.split * split_tiles, group.first, group.first, 0, 0};
  }

  /// To the next sequences with keys in a tile.
  bool next_keys() {
    do {
      if (!next_sequences()) {
        return false;
      }
    } while (step_.keys == 0);
    return true;
  }
  /// To the next sequences that share a tile, of this tile or of the next.
  bool next_sequences() {
    if (step_.last == group_of(step_).last) {
      step_.last = group_of(step_).first;
      if (++step_.tile == (group_of(step_).split + 1) * split_tiles) {
        if (++step_.group == item_.last_group) {
          return false;
        }
        KVC_ASSERT(step_.tile == group_of(step_).split * split_tiles);
      }
    }
    const Index base = step_.tile * tile_keys, end = group_of(step_).last;
    step_.first = step_.last;
    step_.keys = 0;
    do {
      step_.keys |= tile_bits(batch_.keys[static_cast<std::size_t>(step_.last)], base);
      ++step_.last;
    } while (step_.last < end && batch_.shared(step_.last) > base);
    return true;
  }

  const SplitBatch& batch_;
  const std::vector<SplitGroup>& groups_;
  const WorkItem& item_;
  Step step_;
};

}  // namespace detail
}  // namespace v0
}  // namespace kvc
