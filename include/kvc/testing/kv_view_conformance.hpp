// The contract of KvView as a suite: testing::kv_view_conformance(my_view).
#pragma once

#include <algorithm>
#include <cstddef>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "kvc/attention/kv_view.hpp"
#include "kvc/core/error.hpp"
#include "kvc/core/types.hpp"
#include "kvc/element/element.hpp"
#include "kvc/testing/contract.hpp"

namespace kvc {
inline namespace v0 {
namespace testing {

/// Checks the laws of KvView on all heads and on ranges of all kinds: the runs of a range are exactly the retained
/// positions of that range, in order, and a row lies in the same place whatever range is asked for; of an
/// EvenHeadsView, heads lie as far apart as it says. Reads no row.
///
///   retained  the positions that the view has to retain: ranges in ascending order with gaps between
///   name      what errors call the view
///
/// Throws ContractError for the first law that does not hold. O(kv_heads * length * ranges); take a view of less than
/// some 1000 positions.
template <KvView V>
void kv_view_conformance(const V& view, std::span<const PosRange> retained, std::string_view name = "the view") {
  using Run = KvRun<typename V::Element>;
  expect(view.kv_heads() >= 1, name, {"kv_heads() is ", std::to_string(view.kv_heads())});
  expect(view.key_dim() >= 1, name, {"key_dim() is ", std::to_string(view.key_dim())});
  expect(view.value_dim() >= 1, name, {"value_dim() is ", std::to_string(view.value_dim())});
  const Pos length = view.length();
  expect(length >= 0, name, {"length() is ", std::to_string(length)});
  // The first position from `p` on that the view has to retain, or `end`.
  const auto next_retained = [&](Index p, Pos end) {
    for (const PosRange& range : retained) {
      if (p < range.last) {
        return std::min(std::max(p, Index{range.first}), Index{end});
      }
    }
    return Index{end};
  };

  // Every pair of ends in short views; in long ones the first, some in between and the last.
  std::vector<Pos> ends;
  for (Pos p = 0; p <= length;
       p += length <= 40 || p < 4 || p + 4 >= length ? 1 : std::min(length / 23 + 1, length - 4 - p)) {
    ends.push_back(p);
  }
  const V copy = view;
  const auto place = [](const Run& run, Index row) {
    return std::pair(run.k + row * run.k_stride, run.v + row * run.v_stride);
  };
  using Places = std::vector<decltype(place(Run{}, 0))>;
  Places places_before;  // of the head before
  for (Index head = 0; head < view.kv_heads(); ++head) {
    // Of all positions, when the whole range is asked for.
    Places places(static_cast<std::size_t>(length));
    const auto check = [&](const V& of, PosRange range, auto each_row) {
      const std::string asked =
          kvc::detail::concat({" when [", std::to_string(range.first), ", ", std::to_string(range.last), ") of head ",
                               std::to_string(head), " is asked for"});
      Index next = next_retained(range.first, range.last);
      of.for_each_run(head, range, [&](const Run& run) {
        expect(run.rows >= 1, name, {"a run has ", std::to_string(run.rows), " rows", asked});
        expect(run.first == next, name,
               {"a run begins at position ", std::to_string(run.first), " instead of ", std::to_string(next), asked});
        expect(run.first + run.rows <= range.last, name,
               {"a run ends at position ", std::to_string(run.first + run.rows), asked});
        for (Index row = 0; row < run.rows; ++row) {
          expect(next_retained(run.first + row, range.last) == run.first + row, name,
                 {"a run has position ", std::to_string(run.first + row), ", which is not retained,", asked});
          each_row(run.first + row, place(run, row), asked);
        }
        next = next_retained(run.first + run.rows, range.last);
      });
      expect(next == range.last, name, {"the runs end at position ", std::to_string(next), asked});
    };
    check(view, {0, length},
          [&](Index position, const auto& at, const std::string&) { places[static_cast<std::size_t>(position)] = at; });
    const auto same_place = [&](Index position, const auto& at, const std::string& asked) {
      expect(at == places[static_cast<std::size_t>(position)], name,
             {"the row of position ", std::to_string(position), " lies elsewhere", asked});
    };
    for (std::size_t first = 0; first < ends.size(); ++first) {
      for (std::size_t last = first; last < ends.size(); ++last) {
        check(view, {ends[first], ends[last]}, same_place);
      }
    }
    check(copy, {0, length}, same_place);
    if constexpr (EvenHeadsView<V>) {
      const HeadStrides strides = view.head_strides();
      for (std::size_t p = 0; p < places_before.size(); ++p) {
        expect(places[p].first == nullptr || (places[p].first == places_before[p].first + strides.k &&
                                              places[p].second == places_before[p].second + strides.v),
               name,
               {"position ", std::to_string(p), " of head ", std::to_string(head),
                " does not lie head_strides() behind that of the head before"});
      }
    }
    places_before = std::move(places);
  }
}

/// The same for a view that retains all of its positions.
template <KvView V>
void kv_view_conformance(const V& view, std::string_view name = "the view") {
  const PosRange all{0, view.length()};
  testing::kv_view_conformance(view, std::span(&all, 1), name);
}

}  // namespace testing
}  // namespace v0
}  // namespace kvc
