// Laws of selections: attention over selected positions has the bits of attention over a cache of these rows alone, and
// a selection of everything those of no selection.
#include "kvc/attention/selection.hpp"

#include <algorithm>
#include <limits>
#include <numeric>
#include <span>
#include <vector>

#include "attention_case.hpp"
#include "catch.hpp"
#include "kvc/attention/decode.hpp"
#include "kvc/attention/extern.hpp"
#include "kvc/cache.hpp"
#include "kvc/policy/paged.hpp"
#include "kvc/testing/kv_view_conformance.hpp"

using namespace kvc_test;
using kvc::SelectedView;
using kvc::Selection;
using kvc::top_positions;

namespace {

std::vector<Pos> some_positions(Random& random, Pos length) {
  std::vector<Pos> positions;
  const int one_in = random.between(1, 40);
  for (Pos p = 0; p < length; ++p) {
    if (random.one_in(one_in) || (!positions.empty() && positions.back() == p - 1 && !random.one_in(4))) {
      positions.push_back(p);
    }
  }
  return positions;
}

Selection all_of(Pos length) {
  std::vector<Pos> positions(static_cast<std::size_t>(length));
  std::iota(positions.begin(), positions.end(), 0);
  return Selection::of_positions(positions);
}

std::vector<Pos> all_blocks(Pos length, Pos block_tokens) {
  std::vector<Pos> blocks(static_cast<std::size_t>((length + block_tokens - 1) / block_tokens));
  std::iota(blocks.begin(), blocks.end(), 0);
  return blocks;
}

/// A view without position 3.
struct WithoutThird : OfView<kvc::DenseView<float>> {
  template <class F>
  void for_each_run(Index h, PosRange range, F&& f) const {
    all.for_each_run(h, {range.first, std::max(range.first, std::min(range.last, 3))}, f);
    all.for_each_run(h, {std::min(range.last, std::max(range.first, 4)), range.last}, f);
  }
};

}  // namespace

TEMPLATE_TEST_CASE("A selection of everything has the bits of no selection", "[attention]", KVC_ALL_ELEMENTS) {
  over_cases<TestType>(1301, [](const Case<TestType>& original, Random& random) {
    CaseShape shape = appending(original.shape);
    shape.causal = true;
    const Case<TestType> c(shape, random);
    std::vector<Selection> selections;
    for (Pos position = shape.queries.first; position < shape.queries.last; ++position) {
      selections.push_back(random.one_in(2) ? all_of(position + 1)
                                            : Selection::of_blocks(all_blocks(position + 1, 5), 5, position + 1));
    }
    const AnyView<TestType> cut = CutView<TestType>(c.view(), random, 50);
    const auto selected = kvc::selected_views(cut, selections);
    const std::vector<AnyView<TestType>> views(selected.begin(), selected.end());
    Matrix<float> out = c.out();
    Attend<TestType>::decode(std::span<const AnyView<TestType>>(views), c.q.cref(), out.ref(), c.options());
    CHECK(same(out, whole(c)));
  });
}

TEMPLATE_TEST_CASE("A selection has the bits of a cache of the selected rows alone", "[attention]", KVC_ALL_ELEMENTS) {
  over_cases<TestType>(1302, [](const Case<TestType>& original, Random& random) {
    CaseShape shape = original.shape;
    shape.causal = false;
    shape.window = shape.chunk = 0;
    shape.mask = CaseShape::Mask::none;
    const Case<TestType> c(shape, random);
    const std::vector<Pos> positions = some_positions(random, shape.length);
    shape.length = static_cast<Pos>(positions.size());
    Case<TestType> rows(shape, random);
    for (std::size_t i = 0; i < positions.size(); ++i) {
      std::copy_n(c.k.row(positions[i]), c.k.cols(), rows.k.row(static_cast<Index>(i)));
      std::copy_n(c.v.row(positions[i]), c.v.cols(), rows.v.row(static_cast<Index>(i)));
    }
    std::copy_n(c.q.row(0), c.q.rows() * c.q.cols(), rows.q.row(0));
    rows.sinks = c.sinks;

    const Selection selection = Selection::of_positions(positions);
    const CutView<TestType> cut(c.view(), random, random.between(1, 60));
    Matrix<float> out = c.out();
    Attend<TestType>::prefill(SelectedView(cut, selection), shape.queries, c.q.cref(), out.ref(), rows.options());
    CHECK(same(out, whole(rows)));
  });
}

TEMPLATE_TEST_CASE("Heads that are found from the first head have the bits of heads that are looked up", "[attention]",
                   kvc::HeadMajor, kvc::TokenMajor) {
  using Cache = kvc::KvCache<float, kvc::Paged, TestType>;
  static_assert(kvc::EvenHeadsView<SelectedView<typename Cache::View>> && !kvc::EvenHeadsView<AnyView<float>>);
  Random random(seed_or(1305));
  const Pos length = 700;
  Cache cache({.layers = 2, .kv_heads = 3, .key_dim = 20, .value_dim = 12}, {.blocks = 200, .block_tokens = 8});
  const kvc::SeqId seq = cache.open();
  auto step = cache.extend(seq, length);
  Matrix<float> k(length, 60), v(length, 36), q(2, 120), out(2, 72), expected(2, 72);
  for (Index layer = 0; layer < 2; ++layer) {
    for (Matrix<float>* m : {&k, &v, &q}) {
      std::generate_n(m->row(0), m->rows() * m->cols(), [&] { return random.uniform(-2, 2); });
    }
    cache.write(layer, step, k.cref(), v.cref());
  }
  cache.commit(std::move(step));
  const std::vector<Selection> selections = {Selection::of_positions(some_positions(random, length)),
                                             Selection::of_blocks(std::vector<Pos>{1, 5, 6, 40}, 16, length)};
  const auto views = kvc::selected_views(cache.view(1, seq), std::span(selections));
  kvc::decode(views, q.cref(), out.ref());
  const std::vector<AnyView<float>> looked_up(views.begin(), views.end());
  Attend<float>::decode(std::span<const AnyView<float>>(looked_up), q.cref(), expected.ref());
  CHECK(same(out, expected));
  CHECK_NOTHROW(kvc::testing::kv_view_conformance(SelectedView(cache.view(1, seq), selections[1])));
}

TEST_CASE("The selected positions of a view are a view", "[attention]") {
  Random random(seed_or(1303));
  for (int i = 0; i < cases_or(20); ++i) {
    CaseShape shape = random_shape(random, 200);
    shape.key_dim = shape.value_dim = 1;
    const Case<float> c(shape, random);
    const Selection selection = Selection::of_positions(some_positions(random, shape.length));
    const CutView<float> cut(c.view(), random, random.between(1, 40));
    CHECK_NOTHROW(kvc::testing::kv_view_conformance(SelectedView(cut, selection)));
  }
}

TEST_CASE("A selected position that the view does not retain is an error", "[attention]") {
  Random random(1);
  CaseShape shape;
  shape.length = 9;
  const Case<float> c(shape, random);
  const WithoutThird view{{c.view()}};
  Matrix<float> out = c.out();
  const auto attend = [&](const std::vector<Pos>& positions) {
    const Selection selection = Selection::of_positions(positions);
    Attend<float>::decode(SelectedView(view, selection), c.q.cref(), out.ref());
  };
  CHECK_NOTHROW(attend({0, 2, 4, 8}));
  CHECK_THROWS_WITH(attend({0, 2, 3, 8}), contains("position 2 of sequence 0 is not retained"));  // its rank
  CHECK_THROWS_WITH(attend({0, 9}), contains("selection.end() is 10"));
}

TEST_CASE("A selection is a table of ascending positions", "[attention]") {
  CHECK(Selection().size() == 0);
  CHECK(Selection::of_positions(std::vector<Pos>{}).end() == 0);
  const Selection blocks = Selection::of_blocks(std::vector<Pos>{0, 2, 3}, 4, 14);
  CHECK(blocks.size() == 10);
  CHECK(blocks.end() == 14);
  std::vector<Pos> positions;
  blocks.for_each_range({2, 9}, [&](PosRange range, Pos rank) {
    CHECK(rank == static_cast<Pos>(positions.size()) + 2);
    for (Pos p = range.first; p < range.last; ++p) {
      positions.push_back(p);
    }
  });
  CHECK(positions == std::vector<Pos>{2, 3, 8, 9, 10, 11, 12});
  CHECK_THROWS_WITH(Selection::of_positions(std::vector<Pos>{3, 3}), contains("positions[1] is 3"));
  CHECK_THROWS_WITH(Selection::of_positions(std::vector<Pos>{-1}), contains("positions[0] is -1"));
  CHECK_THROWS_WITH(Selection::of_blocks(std::vector<Pos>{1, 0}, 4, 14), contains("blocks[1] is 0"));
  CHECK_THROWS_WITH(Selection::of_blocks(std::vector<Pos>{4}, 4, 14), contains("blocks[0] is 4"));
  CHECK_THROWS_WITH(Selection::of_blocks(std::vector<Pos>{0}, 0, 14), contains("block_tokens is 0"));
}

TEST_CASE("Of equal scores the first positions are selected", "[attention]") {
  constexpr float infinity = std::numeric_limits<float>::infinity();
  constexpr float nan = std::numeric_limits<float>::quiet_NaN();
  const std::vector<float> scores = {1, 3, -infinity, 2, 3, nan, -0.0F, 2, 0, infinity};
  CHECK(top_positions(scores, 0).empty());
  CHECK(top_positions(scores, 1) == std::vector<Pos>{9});
  CHECK(top_positions(scores, 2) == std::vector<Pos>{1, 9});
  CHECK(top_positions(scores, 4) == std::vector<Pos>{1, 3, 4, 9});
  CHECK(top_positions(scores, 7) == std::vector<Pos>{0, 1, 3, 4, 6, 7, 9});
  CHECK(top_positions(scores, 99) == std::vector<Pos>{0, 1, 3, 4, 6, 7, 8, 9});
  CHECK_THROWS_WITH(top_positions(scores, -1), contains("count is -1"));

  Random random(seed_or(1304));  // as a stable sort selects them
  for (int i = 0; i < cases_or(50); ++i) {
    std::vector<float> some(static_cast<std::size_t>(random.between(1, 200)));
    std::ranges::generate(some, [&] { return static_cast<float>(random.between(-5, 5)); });
    std::vector<Pos> order(some.size());
    std::iota(order.begin(), order.end(), 0);
    std::ranges::stable_sort(
        order, [&](Pos a, Pos b) { return some[static_cast<std::size_t>(a)] > some[static_cast<std::size_t>(b)]; });
    order.resize(static_cast<std::size_t>(random.between(0, static_cast<int>(some.size()))));
    std::ranges::sort(order);
    CHECK(top_positions(some, std::ssize(order)) == order);
  }
}
