// The planner of splits and shared prefixes, on integers.
#include <algorithm>
#include <tuple>
#include <vector>

#include "catch.hpp"
#include "kvc/attention/kernel/split_plan.hpp"

using namespace kvc;
using detail::KeyRange;
using detail::SharedOrder;
using detail::SplitIndex;
using detail::VisibleKeys;

namespace {

/// `rows` positions that lie at `place`.
struct Run {
  int place;
  Index rows;
  Index first = 0;
};
using Sequence = std::vector<Run>;

/// Positions follow from the rows, but for a gap before the runs whose `first` says so.
Sequence sequence(std::vector<Run> runs) {
  Index next = 0;
  for (Run& run : runs) {
    run.first = std::max(run.first, next);
    next = run.first + run.rows;
  }
  return runs;
}

SharedOrder order_of(const std::vector<Sequence>& batch, Index unit, int* visited = nullptr) {
  const auto length = [&](Index b) {
    const Sequence& runs = batch[static_cast<std::size_t>(b)];
    return runs.empty() ? 0 : runs.back().first + runs.back().rows;
  };
  const auto visit = [&](Index b, Index most, auto f) {
    for (const Run& run : batch[static_cast<std::size_t>(b)]) {
      if (run.first < most) {
        f(Run{run.place, std::min(run.rows, most - run.first), run.first});
        visited != nullptr ? ++*visited : 0;
      }
    }
  };
  return detail::find_shared_order<Run>(
      std::ssize(batch), unit, length, visit, [](const Run& x, const Run& y) { return x.place < y.place; },
      [](const Run& x, const Run& y) { return x.place == y.place; });
}

/// For each sequence b, the rows that it shares with the one before it in the order; -1 if it is the first.
std::vector<Index> shared_by_sequence(const SharedOrder& order) {
  std::vector<Index> shared(order.sequence.size());
  for (std::size_t i = 0; i < shared.size(); ++i) {
    shared[static_cast<std::size_t>(order.sequence[i])] = i == 0 ? -1 : order.shared[i];
  }
  return shared;
}

}  // namespace

TEST_CASE("Splits are numbered by sequence, from the first that a row sees", "[attention]") {
  const std::vector<KeyRange> keys{{0, 513}, {0, 0}, {1000, 1600}, {512, 1024}, {700, 700}};
  const SplitIndex splits(std::ssize(keys),
                          [&](Index b) { return VisibleKeys{{0, 0}, keys[static_cast<std::size_t>(b)]}; });
  const std::vector<Index> counts{2, 0, 3, 1, 0}, begins{0, 2, 2, 5, 6};
  for (Index b = 0; b < std::ssize(keys); ++b) {
    CAPTURE(b);
    CHECK(splits.count(b) == counts[static_cast<std::size_t>(b)]);
    CHECK(splits.begin(b) == begins[static_cast<std::size_t>(b)]);
  }
  CHECK(splits.total() == 6);
  CHECK(splits.end() == 4);
  CHECK(splits.first(2) == 1);
  CHECK(splits.number(2, 3) == 4);
  CHECK(splits.contains(2, 3));
  CHECK_FALSE(splits.contains(2, 4));
  CHECK_FALSE(splits.contains(2, 0));
  CHECK_FALSE(splits.contains(1, 0));
  CHECK_FALSE(splits.contains(4, 1));
  CHECK(SplitIndex().total() == 0);
}

TEST_CASE("Splits that hold no key of a sequence have no number", "[attention]") {
  const std::vector<VisibleKeys> keys{
      {{0, 4}, {5000, 5001}},     // splits 0 and 9
      {{4, 513}, {1024, 1600}},   // 0 to 3
      {{0, 4}, {100, 600}},       // 0 and 1
      {{500, 600}, {700, 1025}},  // 0, 1 and 2
      {{0, 4}, {300, 300}},       // 0
      {{600, 700}, {900, 901}},   // 1
  };
  const std::vector<std::vector<Index>> expected{{0, 9}, {0, 1, 2, 3}, {0, 1}, {0, 1, 2}, {0}, {1}};
  const SplitIndex splits(std::ssize(keys), [&](Index b) { return keys[static_cast<std::size_t>(b)]; });
  Index number = 0;
  for (std::size_t b = 0; b < keys.size(); ++b) {
    CAPTURE(b);
    const auto sequence = static_cast<Index>(b);
    CHECK(splits.begin(sequence) == number);
    CHECK(splits.count(sequence) == std::ssize(expected[b]));
    CHECK(splits.first(sequence) == expected[b].front());
    std::vector<Index> found, visited;
    for (Index split = 0; split < splits.end(); ++split) {
      if (splits.contains(sequence, split)) {
        found.push_back(split);
        CHECK(splits.number(sequence, split) == number++);
      }
    }
    detail::for_each_split(keys[b], [&](Index split) { visited.push_back(split); });
    CHECK(found == expected[b]);
    CHECK(visited == expected[b]);
  }
  CHECK(splits.total() == number);
  CHECK(splits.end() == 10);
}

TEST_CASE("Sequences that begin in the same place are neighbours, and share whole units", "[attention]") {
  const std::vector<Sequence> batch{
      sequence({{7, 10}, {8, 10}, {1, 5}}),   // 0: shares 20 with 3, 10 with 2
      sequence({{9, 30}}),                    // 1: alone
      sequence({{7, 10}, {2, 10}}),           // 2
      sequence({{7, 10}, {8, 10}, {3, 10}}),  // 3
      sequence({}),                           // 4: no positions
      sequence({{7, 7}}),                     // 5: shares 7 of 10
  };
  const SharedOrder order = order_of(batch, 1);
  std::vector<Index> sorted = order.sequence;
  std::ranges::sort(sorted);
  CHECK(sorted == std::vector<Index>{0, 1, 2, 3, 4, 5});
  CHECK(order.shared[0] == 0);
  const std::vector<Index> shared = shared_by_sequence(order);
  CHECK(std::max(shared[0], shared[3]) == 20);
  CHECK(shared[1] <= 0);
  CHECK(shared[4] <= 0);
  CHECK(shared[5] == 7);

  for (const Index common : order_of(batch, 8).shared) {
    CHECK(common % 8 == 0);
  }
  CHECK(std::ranges::max(order_of(batch, 8).shared) == 16);
  CHECK(order_of({}, 1).sequence.empty());
}

TEST_CASE("Runs are shared up to the first that differs in its rows or its gap", "[attention]") {
  const auto common = [](const Sequence& a, const Sequence& b) { return order_of({a, b}, 1).shared[1]; };
  CHECK(common(sequence({{1, 5}, {2, 5}}), sequence({{1, 5}, {2, 9}})) == 10);
  CHECK(common(sequence({{1, 5}, {2, 5}}), sequence({{1, 4}, {2, 5}})) == 4);
  CHECK(common(sequence({{1, 5}, {2, 5}}), sequence({{1, 5}, {2, 5, 6}})) == 5);
  CHECK(common(sequence({{1, 5, 3}}), sequence({{1, 5, 3}})) == 8);  // neither has the first positions
  CHECK(common(sequence({{1, 5, 3}}), sequence({{1, 5, 4}})) == 3);
  CHECK(common(sequence({{1, 5, 3}}), sequence({{2, 5, 3}})) == 3);
  CHECK(common(sequence({{1, 5, 3}}), sequence({})) == 0);
  CHECK(common(sequence({{1, 5}, {2, 5, 10}}), sequence({{1, 5}, {2, 5, 10}, {3, 1, 20}})) == 15);
  CHECK(common(sequence({{1, 5}, {2, 5, 10}}), sequence({{1, 5}, {2, 5, 12}})) == 10);
  CHECK(common(sequence({{1, 5}, {2, 5, 10}}), sequence({{1, 5}})) == 5);
}

TEST_CASE("Only sequences that share their first unit are read whole", "[attention]") {
  std::vector<Sequence> batch;
  for (int b = 0; b < 10; ++b) {
    batch.push_back(sequence({{b, 4}, {100, 4}, {200 + b, 4}}));
  }
  int visited = 0;
  CHECK(std::ranges::max(order_of(batch, 4, &visited).shared) == 0);
  CHECK(visited == 10);
  batch[3] = batch[8];
  visited = 0;
  CHECK(std::ranges::max(order_of(batch, 4, &visited).shared) == 12);
  CHECK(visited == 10 + 2 * 3);
}

TEST_CASE("Groups of sharing sequences cover the order", "[attention]") {
  using Group = std::tuple<Index, Index>;
  const SharedOrder order{{3, 0, 2, 1, 4}, {0, 512, 1024, 0, 64}};
  const auto groups = [&](Index end) {
    std::vector<Group> found;
    for_each_sharing(order, end, [&](Index first, Index last) { found.emplace_back(first, last); });
    return found;
  };
  CHECK(groups(64) == std::vector<Group>{{0, 3}, {3, 5}});
  CHECK(groups(512) == std::vector<Group>{{0, 3}, {3, 4}, {4, 5}});
  CHECK(groups(513) == std::vector<Group>{{0, 1}, {1, 3}, {3, 4}, {4, 5}});
  CHECK(groups(2000).size() == 5);
}
