// Splits: how the keys of a batch are cut into what threads take, and the order in which each goes through them.
#pragma once

#include <algorithm>
#include <tuple>
#include <vector>

#include "kvc/attention/kernel/kernels.hpp"
#include "kvc/attention/kernel/query_tile.hpp"
#include "kvc/attention/kernel/sharing.hpp"
#include "kvc/attention/options.hpp"

namespace kvc {
inline namespace v0 {
namespace detail {

/// Sequences [first, last) of the shared order, which have the first tile of this split in common, or are one.
struct SplitGroup {
  Index split;
  Index first;
  Index last;
  Index state = 0;  // the first of its states: [kv_heads, sequences, rows of each]
};

/// Consecutive splits of the same sequences, and some kv heads: what one thread does in one go.
struct WorkItem {
  Index first;  // split_groups
  Index last;
  Index first_head;
  Index heads;
  bool merges;   // begins with the first split of its rows, and so leaves one state of each for all of its splits
  bool by_head;  // one head after the other
};

/// The splits of all sequences, those of sequence b one after the other.
struct SplitIndex {
  std::vector<Index> before;  // [B + 1] splits of the sequences before b
  std::vector<Index> first;   // [B] number of the first split of sequence b

  [[nodiscard]] Index count(Index b) const {
    return before[static_cast<std::size_t>(b) + 1] - before[static_cast<std::size_t>(b)];
  }
  [[nodiscard]] bool has(Index b, Index split) const {
    return split >= first[static_cast<std::size_t>(b)] && split < first[static_cast<std::size_t>(b)] + count(b);
  }
  [[nodiscard]] Index at(Index b, Index split) const {
    return before[static_cast<std::size_t>(b)] + split - first[static_cast<std::size_t>(b)];
  }
};

/// Cuts all splits of all sequences into split_groups of at most `most` sequences. Those of the same sequences come one
/// after the other, in the order of their splits.
///
///   heads, rows   of keys and values, and query rows of a sequence that each of them has
[[nodiscard]] inline std::vector<SplitGroup> make_split_groups(const SplitIndex& index, const SharedOrder& order,
                                                               Index most, Index heads, Index rows) {
  const Index sequences = std::ssize(index.first);
  Index splits = 0;
  for (Index b = 0; b < sequences; ++b) {
    splits = std::max(splits, index.first[static_cast<std::size_t>(b)] + index.count(b));
  }
  std::vector<SplitGroup> split_groups;
  for (Index split = 0; split < splits; ++split) {
    const Index tile = split * (split_keys / tile_keys);
    bool open = false;  // whether the sequence before belongs to the last split_group
    for (Index i = 0; i < sequences; ++i) {
      const bool has = index.has(order.sequence[static_cast<std::size_t>(i)], split);
      if (has && open && order.shared[static_cast<std::size_t>(i)] > tile && i - split_groups.back().first < most) {
        split_groups.back().last = i + 1;
      } else if (has) {
        split_groups.push_back({split, i, i + 1});
      }
      open = has;
    }
  }
  if (sequences > 1) {
    std::ranges::sort(split_groups, {}, [](const SplitGroup& p) { return std::tuple(p.first, p.last, p.split); });
  }
  Index state = 0;
  for (SplitGroup& p : split_groups) {
    p.state = state;
    state += heads * (p.last - p.first) * rows;
  }
  return split_groups;
}

/// Cuts the split_groups, for each kv head, into what threads take one by one: much at first, little in the end, so that
/// few items begin and all threads end at about the same time. Where they can, heads are kept whole, whose states then
/// need not be kept for each split.
///
///   kv_heads, rows   of keys and values, and query rows of a sequence that each of them has
///   most_rows        in all heads of a work item
///   by_head          by_head(split_group): whether the positions of a head lie in one split_group from there on
template <class F>
[[nodiscard]] std::vector<WorkItem> make_work_items(const std::vector<SplitGroup>& split_groups,
                                                    const SplitIndex& index, const SharedOrder& order, Index kv_heads,
                                                    Index rows, Index most_rows, Index threads, F by_head) {
  const auto rows_of = [&](const SplitGroup& p) { return (p.last - p.first) * rows; };
  const auto cost = [&](const SplitGroup& p) { return ceil_div(rows_of(p), few_rows); };  // of one head
  const auto count = static_cast<Index>(split_groups.size());
  Index left = 0;
  for (const SplitGroup& p : split_groups) {
    left += cost(p) * kv_heads;
  }
  const auto share = [&] { return threads == 1 ? left : std::max(left / (2 * threads), Index{1}); };
  std::vector<WorkItem> items;
  for (Index first = 0, last = 0; first < count; first = last) {
    const SplitGroup& p = split_groups[static_cast<std::size_t>(first)];
    for (last = first + 1; last < count; ++last) {
      const SplitGroup& next = split_groups[static_cast<std::size_t>(last)];
      if (next.first != p.first || next.last != p.last || next.split != p.split + last - first) {
        break;
      }
    }
    bool whole = true;  // whether the rows begin here
    for (Index i = p.first; i < p.last; ++i) {
      whole = whole && index.first[static_cast<std::size_t>(order.sequence[static_cast<std::size_t>(i)])] == p.split;
    }
    const bool one_by_one = by_head(p);
    const auto add = [&](Index from, Index to, Index head, Index heads) {
      items.push_back({from, to, head, heads, whole && from == first, one_by_one});
      left -= cost(p) * (to - from) * heads;
    };
    const Index most_heads = std::clamp(most_rows / rows_of(p), Index{1}, kv_heads);
    Index head = 0;
    while (head < kv_heads) {
      const Index heads = std::min({share() / (cost(p) * (last - first)), most_heads, kv_heads - head});
      if (heads == 0 || (!one_by_one && heads < most_heads)) {
        break;
      }
      add(first, last, head, heads);
      head += heads;
    }
    for (Index at = first, to = first; at < last && head < kv_heads; at = to) {
      const Index heads = std::clamp(share() / cost(p), Index{1}, std::min(most_heads, kv_heads - head));
      to = at + std::clamp(share() / (cost(p) * heads), Index{1}, last - at);
      for (Index h = head; h < kv_heads; h += heads) {
        add(at, to, h, std::min(heads, kv_heads - h));
      }
    }
  }
  return items;
}

/// One step of a work item: some of its sequences, which share a tile, and one kv head.
struct Step {
  Index split_group;
  Index tile;
  Index first;  // sequences, relative to those of the split_group
  Index last;
  Index head;
  KeyRange keys;  // within the tile
};

/// Goes through the steps of a work item in the order in which the cache lies in memory: tiles outside, then the sequences
/// that share each, then the heads, as in a block; or, where the positions of a head are in one split_group, heads outside.
///
///   keys_of(b) -> KeyRange   keys that any row of sequence b may see
template <class F>
class Steps {
 public:
  Steps(F keys_of, const SharedOrder& order, const std::vector<SplitGroup>& split_groups, const WorkItem& item)
      : keys_of_(keys_of), order_(order), split_groups_(split_groups), item_(item), step_(start()) {
    step_.head = item_.by_head ? 0 : item_.heads;
  }

  /// False at the end.
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
  [[nodiscard]] Index first_tile(Index split_group) const {
    return split_groups_[static_cast<std::size_t>(split_group)].split * (split_keys / tile_keys);
  }
  [[nodiscard]] Step start() const { return {item_.first, first_tile(item_.first), 0, 0, 0, {0, 0}}; }

  /// The next sequences with keys in a tile.
  bool next_keys() {
    do {
      if (!next_group()) {
        return false;
      }
    } while (step_.keys.first >= step_.keys.last);
    return true;
  }
  bool next_group() {
    const SplitGroup& split_group = split_groups_[static_cast<std::size_t>(step_.split_group)];
    const Index count = split_group.last - split_group.first;
    if (step_.last == count) {
      step_.last = 0;
      if (++step_.tile == (split_group.split + 1) * (split_keys / tile_keys)) {
        if (++step_.split_group == item_.last) {
          return false;
        }
        KVC_ASSERT(step_.tile == first_tile(step_.split_group));
      }
    }
    const Index base = step_.tile * tile_keys;
    step_.first = step_.last;
    step_.keys = {tile_keys, 0};
    do {
      const KeyRange range = keys_of_(order_.sequence[static_cast<std::size_t>(split_group.first + step_.last)]);
      step_.keys.first = std::min(step_.keys.first, std::max(range.first - base, Index{0}));
      step_.keys.last = std::max(step_.keys.last, std::min(range.last - base, tile_keys));
      ++step_.last;
    } while (step_.last < count &&
             order_.shared[static_cast<std::size_t>(split_group.first + step_.last)] > step_.tile);
    return true;
  }

  F keys_of_;
  const SharedOrder& order_;
  const std::vector<SplitGroup>& split_groups_;
  WorkItem item_;
  Step step_;
};

}  // namespace detail
}  // namespace v0
}  // namespace kvc
