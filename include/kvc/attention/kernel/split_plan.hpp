// Plans a batch, in integers only: which splits its sequences have, and which sequences begin in the same memory.
// Attention on the CPU and attention on a GPU share it.
#pragma once

#include <algorithm>
#include <cstddef>
#include <iterator>
#include <numeric>
#include <vector>

#include "kvc/attention/options.hpp"
#include "kvc/core/types.hpp"

namespace kvc {
inline namespace v0 {
namespace detail {

/// Positions of a split, from a multiple of as many. Fixed, so that a sequence is split alike in every batch.
inline constexpr Index split_keys = 512;

/// The splits in which keys lie: [kept_first, kept_last), and behind them [first, last).
struct KeySplits {
  Index kept_first;
  Index kept_last;
  Index first;
  Index last;

  [[nodiscard]] static KeySplits of(const VisibleKeys& keys) noexcept {
    KeySplits splits{0, 0, ceil_div(keys.recent.first, split_keys), 0};
    splits.last = splits.first;
    if (!keys.recent.empty()) {
      splits.first = keys.recent.first / split_keys;
      splits.last = ceil_div(keys.recent.last, split_keys);
    }
    if (!keys.kept.empty()) {
      splits.kept_first = keys.kept.first / split_keys;
      splits.kept_last = std::min(ceil_div(keys.kept.last, split_keys), splits.first);
    }
    return splits;
  }

  [[nodiscard]] constexpr Index kept() const noexcept { return kept_last - kept_first; }
  [[nodiscard]] constexpr Index count() const noexcept { return kept() + last - first; }
  [[nodiscard]] constexpr bool contains(Index split) const noexcept {
    return (first <= split && split < last) || (kept_first <= split && split < kept_last);
  }
};

/// f(split) for the splits in which keys lie, ascending.
template <class F>
void for_each_split(const VisibleKeys& keys, F f) {
  const KeySplits splits = KeySplits::of(keys);
  for (Index split = splits.kept_first; split < splits.kept_last; ++split) {
    f(split);
  }
  for (Index split = splits.first; split < splits.last; ++split) {
    f(split);
  }
}

/// The splits of a batch, numbered: those of sequence 0 first, then those of sequence 1, ...
class SplitIndex {
 public:
  SplitIndex() = default;

  ///   keys_of(b) -> VisibleKeys   b < sequences; keys that any row of sequence b may see
  template <class F>
  SplitIndex(Index sequences, F keys_of) : splits_(static_cast<std::size_t>(sequences)), begin_(splits_.size() + 1) {
    for (std::size_t b = 0; b < splits_.size(); ++b) {
      splits_[b] = KeySplits::of(keys_of(static_cast<Index>(b)));
      begin_[b + 1] = begin_[b] + splits_[b].count();
      end_ = std::max({end_, splits_[b].last, splits_[b].kept_last});
    }
  }

  [[nodiscard]] Index total() const noexcept { return begin_.back(); }         ///< splits of all sequences
  [[nodiscard]] Index end() const noexcept { return end_; }                    ///< one past the last split
  [[nodiscard]] Index begin(Index b) const noexcept { return begin_[at(b)]; }  ///< splits before those of b
  [[nodiscard]] Index count(Index b) const noexcept { return begin_[at(b) + 1] - begin_[at(b)]; }
  /// The first split of b, if it has one.
  [[nodiscard]] Index first(Index b) const noexcept {
    const KeySplits& splits = splits_[at(b)];
    return splits.kept() > 0 ? splits.kept_first : splits.first;
  }
  [[nodiscard]] bool contains(Index b, Index split) const noexcept { return splits_[at(b)].contains(split); }
  /// The number of a split that sequence b has.
  [[nodiscard]] Index number(Index b, Index split) const noexcept {
    const KeySplits& splits = splits_[at(b)];
    return begin(b) + (split < splits.first ? split - splits.kept_first : splits.kept() + split - splits.first);
  }

 private:
  [[nodiscard]] static constexpr std::size_t at(Index b) noexcept { return static_cast<std::size_t>(b); }

  std::vector<KeySplits> splits_;  // [sequences]
  std::vector<Index> begin_ = {0};
  Index end_ = 0;
};

/// The sequences of a batch in an order in which those that share a prefix are neighbours: that of a walk over the tree
/// of their prefixes.
struct SharedOrder {
  std::vector<Index> sequence;  ///< [sequences] a permutation
  std::vector<Index> shared;    ///< [sequences] positions up to which this one is like the one before; [0] is 0

  /// Sequences in their own order that share nothing.
  [[nodiscard]] static SharedOrder unshared(Index count) {
    SharedOrder order{std::vector<Index>(static_cast<std::size_t>(count)),
                      std::vector<Index>(static_cast<std::size_t>(count))};
    std::iota(order.sequence.begin(), order.sequence.end(), Index{0});
    return order;
  }
};

/// Finds the shared prefixes of a batch from the runs of its sequences. Sequences share a position if a run of each has
/// it in the same place, or if neither has it.
///
///   Run            `rows` consecutive positions from position `first` on, in one place
///   unit           shared positions are counted in multiples of this
///   length(b)      positions of sequence b
///   visit(b, n, f) calls f(run) for the runs of the first n <= length(b) positions of sequence b, ascending
///   before(x, y)   a strict order of the places of runs
///   same(x, y)     whether two runs begin in the same place, with the same distances
///
/// O(count log count) where nothing is shared; one visit of all runs of those that share their first `unit` positions.
template <class Run, class Length, class Visit, class Before, class Same>
[[nodiscard]] SharedOrder find_shared_order(Index count, Index unit, Length length, Visit visit, Before before,
                                            Same same) {
  if (count <= 1) {
    return SharedOrder::unshared(count);
  }
  struct Sequence {
    Index number;
    Index end;  // of the positions that were read
    std::vector<Run> runs;

    /// Where run i begins; the end, if there is none.
    [[nodiscard]] Index first(std::size_t i) const { return i < runs.size() ? runs[i].first : end; }
  };
  const auto read_runs = [&](Sequence& s, Index most) {
    s.end = std::min(most, length(s.number));
    s.runs.clear();
    visit(s.number, s.end, [&](const Run& run) { s.runs.push_back(run); });
  };
  // By places first, so that neighbours are those with most in common.
  const auto in_order = [&](const Sequence& a, const Sequence& b) {
    return std::lexicographical_compare(
        a.runs.begin(), a.runs.end(), b.runs.begin(), b.runs.end(),
        [&](const Run& x, const Run& y) { return before(x, y) || (!before(y, x) && x.rows > y.rows); });
  };
  const auto shared_positions = [&](const Sequence& a, const Sequence& b) {
    for (std::size_t i = 0;; ++i) {
      Index positions = std::min(a.first(i), b.first(i));  // neither has those behind the run before
      const bool both = i < a.runs.size() && i < b.runs.size() && a.first(i) == b.first(i);
      if (both && same(a.runs[i], b.runs[i])) {
        positions += std::min(a.runs[i].rows, b.runs[i].rows);
        if (a.runs[i].rows == b.runs[i].rows) {
          continue;
        }
      }
      return positions / unit * unit;
    }
  };

  std::vector<Sequence> sequences(static_cast<std::size_t>(count));
  for (Index b = 0; b < count; ++b) {
    Sequence& s = sequences[static_cast<std::size_t>(b)];
    s.number = b;
    read_runs(s, unit);
  }
  std::stable_sort(sequences.begin(), sequences.end(), in_order);
  for (auto first = sequences.begin(); first != sequences.end();) {
    auto last = first + 1;
    while (last != sequences.end() && shared_positions(*(last - 1), *last) > 0) {
      ++last;
    }
    if (last - first > 1) {
      std::for_each(first, last, [&](Sequence& s) { read_runs(s, Index{max_pos}); });
      std::stable_sort(first, last, in_order);
    }
    first = last;
  }
  SharedOrder order = SharedOrder::unshared(count);
  for (std::size_t i = 0; i < sequences.size(); ++i) {
    order.sequence[i] = sequences[i].number;
    order.shared[i] = i == 0 ? 0 : shared_positions(sequences[i - 1], sequences[i]);
  }
  return order;
}

/// f(first, last) for the sequences [first, last) of the order, each of which has the positions before `end` in common
/// with the one before it. Covers all sequences, in ascending order.
template <class F>
void for_each_sharing(const SharedOrder& order, Index end, F f) {
  const Index count = std::ssize(order.shared);
  for (Index first = 0, last = 0; first < count; first = last) {
    for (last = first + 1; last < count && order.shared[static_cast<std::size_t>(last)] >= end;) {
      ++last;
    }
    f(first, last);
  }
}

}  // namespace detail
}  // namespace v0
}  // namespace kvc
