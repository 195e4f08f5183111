// Selection: the positions that a query row attends to, where an indexer or a score of blocks chose them. SelectedView:
// a view of these positions alone, over which attention runs as over any other view.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <span>
#include <string>
#include <vector>

#include "kvc/attention/kv_view.hpp"
#include "kvc/config.hpp"
#include "kvc/core/error.hpp"
#include "kvc/core/types.hpp"
#include "kvc/element/element.hpp"

namespace kvc {
inline namespace v0 {

/// The table of a selection: ascending positions, each with its rank, the number of selected positions before it.
///
///   auto top = kvc::Selection::of_positions(kvc::top_positions(index_scores, 2048));   // DSA
///   auto some = kvc::Selection::of_blocks(kvc::top_positions(block_scores, 128), 16, cache.length(seq));   // Quest
///
/// It knows no layer and no memory: layers that reuse the selection of another layer read theirs through the same
/// object. Consecutive positions take one entry of 8 bytes.
class Selection {
 public:
  /// Selects nothing.
  Selection() = default;

  /// Selects these positions. Throws std::invalid_argument unless they are ascending, distinct and at least 0.
  /// O(positions).
  [[nodiscard]] static Selection of_positions(std::span<const Pos> positions) {
    Selection selection;
    for (std::size_t i = 0; i < positions.size(); ++i) {
      require(positions[i] >= selection.end_, "positions[" + std::to_string(i) + "]", positions[i],
              "at least " + std::to_string(selection.end_) + ": positions ascend");
      require(positions[i] < max_pos, "positions[" + std::to_string(i) + "]", positions[i], "below the largest Pos");
      selection.add({positions[i], positions[i] + 1});
    }
    return selection;
  }

  /// Selects the positions below `length` of these blocks, of `block_tokens` positions each. Throws
  /// std::invalid_argument unless blocks are ascending and distinct, and begin within [0, length). O(blocks).
  [[nodiscard]] static Selection of_blocks(std::span<const std::int32_t> blocks, Pos block_tokens, Pos length) {
    require(block_tokens >= 1, "block_tokens", block_tokens, "at least 1");
    require(length >= 0, "length", length, "at least 0");
    Selection selection;
    std::int32_t next = 0;
    for (std::size_t i = 0; i < blocks.size(); ++i) {
      require(blocks[i] >= next && Index{blocks[i]} * block_tokens < length, "blocks[" + std::to_string(i) + "]",
              blocks[i], "at least " + std::to_string(next) + ", and a block that begins before the length");
      const Pos first = blocks[i] * block_tokens;
      selection.add({first, first + std::min(block_tokens, length - first)});
      next = blocks[i] + 1;
    }
    return selection;
  }

  /// Selected positions.
  [[nodiscard]] Pos size() const noexcept { return size_; }
  /// One past the last selected position; 0 if there is none.
  [[nodiscard]] Pos end() const noexcept { return end_; }

  /// f(range, rank) for the ranges of consecutive positions with ranks in `ranks`, ascending; `rank` is that of the
  /// first position of the range. Requires `ranks` within [0, size()). O(log entries + ranges).
  template <class F>
  void for_each_range(PosRange ranks, F&& f) const {
    KVC_ASSERT(0 <= ranks.first && ranks.last <= size_);
    for (std::size_t i = entry_of(ranks); ranks.first < ranks.last; ++i) {
      const Pos last = std::min(rank_behind(i), ranks.last);
      const Pos first = entries_[i].position + (ranks.first - entries_[i].rank);
      f(PosRange{first, first + (last - ranks.first)}, ranks.first);
      ranks.first = last;
    }
  }

 private:
  struct Entry {
    Pos position;  // the first of consecutive ones
    Pos rank;
  };

  void add(PosRange range) {
    if (entries_.empty() || range.first != end_) {
      entries_.push_back({range.first, size_});
    }
    size_ += range.size();
    end_ = range.last;
  }
  [[nodiscard]] Pos rank_behind(std::size_t i) const noexcept {
    return i + 1 < entries_.size() ? entries_[i + 1].rank : size_;
  }
  /// The entry of the first of these ranks.
  [[nodiscard]] std::size_t entry_of(PosRange ranks) const noexcept {
    const auto behind = std::upper_bound(entries_.begin(), entries_.end(), ranks.first,
                                         [](Pos rank, const Entry& entry) { return rank < entry.rank; });
    return static_cast<std::size_t>(behind - entries_.begin()) - (behind == entries_.begin() ? 0 : 1);
  }

  std::vector<Entry> entries_;
  Pos size_ = 0;
  Pos end_ = 0;
};

/// The positions of the `count` largest scores, ascending, as Selection::of_positions and, where a score is that of a
/// block, Selection::of_blocks take them.
///
///   scores  [positions] those of one query row, -infinity where it must not look
///
/// Of equal scores those of lower positions come first, so that a selection does not depend on how it is computed. -0
/// equals 0. Positions whose score is -infinity or NaN are never selected: there may be fewer than `count`. Throws
/// std::invalid_argument if count < 0 or there are more scores than positions. O(positions) on average.
[[nodiscard]] inline std::vector<Pos> top_positions(std::span<const float> scores, Index count) {
  require(count >= 0, "count", count, "at least 0");
  require(std::ssize(scores) <= Index{max_pos}, "scores.size()", scores.size(), "at most the largest Pos");
  std::vector<Pos> positions;
  for (std::size_t j = 0; j < scores.size(); ++j) {
    if (scores[j] > -std::numeric_limits<float>::infinity()) {  // no NaN either
      positions.push_back(static_cast<Pos>(j));
    }
  }
  if (count < std::ssize(positions)) {
    const auto at = [&](Pos j) { return scores[static_cast<std::size_t>(j)]; };
    std::nth_element(positions.begin(), positions.begin() + count, positions.end(),
                     [&](Pos a, Pos b) { return at(a) != at(b) ? at(a) > at(b) : a < b; });
    positions.resize(static_cast<std::size_t>(count));
    std::sort(positions.begin(), positions.end());
  }
  return positions;
}

/// The selected positions of a view: a KvView whose position r is the position of rank r. Attention over it reads the
/// selected rows and no others, by the kernels of any view, and its tiles are full however far apart the rows lie.
///
///   view       any view, such as that of one layer and sequence of a cache; copied
///   selection  for this query row; must outlive the view
///
/// Options of attention go by rank here: `causal` hides nothing from decode, since only what a row may see is selected,
/// and `window`, `chunk`, `kept` and a mask count selected positions. A row over a selection of all positions up to its
/// own has the bits that it has without one.
///
/// A query row is one view: `selected_views` makes those of many rows, which decode takes as a batch.
template <KvView View>
class SelectedView {
 public:
  using Element = typename View::Element;

  /// Throws std::invalid_argument if a selected position is not below view.length().
  SelectedView(const View& view, const Selection& selection) : view_(view), selection_(&selection) {
    require(selection.end() <= view.length(), "selection.end()", selection.end(), "at most the length of the view");
  }

  /// Key/value heads.
  [[nodiscard]] Index kv_heads() const noexcept { return view_.kv_heads(); }
  /// Elements in the key of one head.
  [[nodiscard]] Index key_dim() const noexcept { return view_.key_dim(); }
  /// Elements in the value of one head.
  [[nodiscard]] Index value_dim() const noexcept { return view_.value_dim(); }
  /// Selected positions.
  [[nodiscard]] Pos length() const noexcept { return selection_->size(); }

  /// Those of the view.
  [[nodiscard]] HeadStrides head_strides() const noexcept
    requires EvenHeadsView<View>
  {
    return view_.head_strides();
  }

  /// f(KvRun) for runs of rows that are consecutive in the view, numbered by rank. A row that the view does not retain
  /// is left out: attention reports its rank.
  template <class F>
  void for_each_run(Index head, PosRange ranks, F&& f) const {
    Ranges near;
    selection_->for_each_range(ranks, [&](PosRange range, Pos rank) {
      if (near.count == Ranges::most || (near.count > 0 && range.first - near.last().range.last > far)) {
        hand_out(head, near, f);
        near.count = 0;
      }
      near.of[near.count++] = {range, rank};
    });
    hand_out(head, near, f);
  }

 private:
  /// To look a position up costs as much as to pass over about so many.
  static constexpr Pos far = 32;

  struct Ranges {
    struct Range {
      PosRange range;
      Pos rank;
    };
    static constexpr int most = 16;
    Range of[most];
    int count = 0;

    [[nodiscard]] const Range& last() const noexcept { return of[count - 1]; }
  };

  /// The runs of some ranges, found in one visit.
  template <class F>
  void hand_out(Index head, const Ranges& ranges, F& f) const {
    if (ranges.count == 0) {
      return;
    }
    int i = 0;
    view_.for_each_run(head, PosRange{ranges.of[0].range.first, ranges.last().range.last},
                       [&](const KvRun<Element>& run) {
                         const auto end = static_cast<Pos>(run.first + run.rows);
                         for (; i < ranges.count && ranges.of[i].range.first < end; ++i) {
                           const auto [range, rank] = ranges.of[i];
                           const Pos first = std::max(range.first, run.first), last = std::min(range.last, end);
                           if (first < last) {
                             f(run.part(first - run.first, last - first, rank + (first - range.first)));
                           }
                           if (range.last > end) {
                             break;  // the rest is in later runs
                           }
                         }
                       });
  }

  View view_;
  const Selection* selection_;
};

/// The views of many query rows of one sequence, each of which has a selection of its own: decode takes them as a
/// batch. selections  [rows], must outlive the views. Throws as SelectedView does.
template <KvView View>
[[nodiscard]] std::vector<SelectedView<View>> selected_views(const View& view, std::span<const Selection> selections) {
  std::vector<SelectedView<View>> views;
  views.reserve(selections.size());
  for (const Selection& selection : selections) {
    views.emplace_back(view, selection);
  }
  return views;
}

}  // namespace v0
}  // namespace kvc
