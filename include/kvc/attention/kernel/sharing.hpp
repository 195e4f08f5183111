// Which sequences of a batch have their first positions in the same memory: found from the runs of their views.
#pragma once

#include <algorithm>
#include <functional>
#include <numeric>
#include <vector>

#include "kvc/attention/kernel/kernels.hpp"
#include "kvc/attention/kv_view.hpp"

namespace kvc {
inline namespace v0 {
namespace detail {

/// A batch in an order in which sequences that share a prefix are neighbours, whatever the tree of sharing: the order
/// of a walk over that tree.
struct SharedOrder {
  std::vector<Index> sequence;  // [B] a permutation
  std::vector<Index> shared;    // [B] tiles of 64 positions that this one has in common with the one before; [0] is 0
};

/// Two sequences share a position if its key and its value are at the same address for both. One kv head stands for
/// all.
///
///   view(b) -> const View&   b < count
///
/// O(count log count) where nothing is shared, and one visit of all runs of those that share their first tile.
template <class ViewOf>
[[nodiscard]] SharedOrder shared_order(Index count, ViewOf view) {
  using T = typename std::remove_cvref_t<decltype(view(0))>::Element;
  struct Sequence {
    Index number;
    std::vector<KvRun<T>> runs;
  };
  const auto visit = [&](Sequence& s, Pos most) {
    s.runs.clear();
    view(s.number).for_each_run(0, {0, std::min(most, view(s.number).length())},
                                [&](const KvRun<T>& run) { s.runs.push_back(run); });
  };
  // Addresses first, so that neighbours are those with most in common.
  const auto before = [](const Sequence& a, const Sequence& b) {
    return std::lexicographical_compare(a.runs.begin(), a.runs.end(), b.runs.begin(), b.runs.end(),
                                        [](const KvRun<T>& x, const KvRun<T>& y) {
                                          if (x.k != y.k) {
                                            return std::less<>{}(x.k, y.k);
                                          }
                                          return x.v != y.v ? std::less<>{}(x.v, y.v) : x.rows > y.rows;
                                        });
  };
  const auto common_tiles = [](const Sequence& a, const Sequence& b) {
    Index positions = 0;
    for (std::size_t i = 0; i < std::min(a.runs.size(), b.runs.size()); ++i) {
      const KvRun<T>&x = a.runs[i], &y = b.runs[i];
      if (x.k != y.k || x.v != y.v || x.k_stride != y.k_stride || x.v_stride != y.v_stride) {
        break;
      }
      positions += std::min(x.rows, y.rows);
      if (x.rows != y.rows) {
        break;
      }
    }
    return positions / tile_keys;
  };

  SharedOrder order{std::vector<Index>(static_cast<std::size_t>(count)),
                    std::vector<Index>(static_cast<std::size_t>(count))};
  if (count == 1) {
    return order;
  }
  std::vector<Sequence> sequences(static_cast<std::size_t>(count));
  for (Index b = 0; b < count; ++b) {
    Sequence& s = sequences[static_cast<std::size_t>(b)];
    s.number = b;
    visit(s, static_cast<Pos>(tile_keys));
  }
  std::ranges::stable_sort(sequences, before);
  for (auto first = sequences.begin(); first != sequences.end();) {
    auto last = first + 1;
    while (last != sequences.end() && common_tiles(*(last - 1), *last) > 0) {
      ++last;
    }
    if (last - first > 1) {
      std::for_each(first, last, [&](Sequence& s) { visit(s, max_pos); });
      std::stable_sort(first, last, before);
    }
    first = last;
  }
  for (std::size_t i = 0; i < sequences.size(); ++i) {
    order.sequence[i] = sequences[i].number;
    order.shared[i] = i == 0 ? 0 : common_tiles(sequences[i - 1], sequences[i]);
  }
  return order;
}

}  // namespace detail
}  // namespace v0
}  // namespace kvc
