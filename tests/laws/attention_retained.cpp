// Laws: attention needs the positions that its rows see, and no other: it gives the same bits whatever else a view
// retains, and it asks for no more than about as many positions as a row sees.
#include <algorithm>
#include <atomic>
#include <concepts>
#include <memory>
#include <span>
#include <utility>
#include <vector>

#include "attention_case.hpp"
#include "catch.hpp"
#include "kvc/attention/reference.hpp"

using namespace kvc_test;

namespace {

/// A view of the positions of another one that `retained` has, one entry each.
template <class T>
struct Retaining : OfView<AnyView<T>> {
  std::vector<bool> retained;

  template <class F>
  void for_each_run(Index h, PosRange range, F&& f) const {
    for (Pos at = range.first; at < range.last;) {
      const auto begin = retained.begin() + at, end = retained.begin() + range.last;
      const auto last = std::find(begin, end, !*begin);
      const auto next = static_cast<Pos>(last - retained.begin());
      if (*begin) {
        this->all.for_each_run(h, {at, next}, f);
      }
      at = next;
    }
  }
};
static_assert(kvc::KvView<Retaining<float>>);

/// Shapes that hide keys, long ones among them.
CaseShape random_hiding_shape(Random& random, int number) {
  CaseShape shape = random_shape(random, 250);
  if (number % 4 == 0) {
    shape.length = random.between(Pos{600}, Pos{2600});
    shape.kv_heads = shape.mask_heads = 1;
    shape.key_dim = shape.value_dim = random.between(Index{1}, Index{40});
    shape.queries = {shape.length - shape.queries.size(), shape.length};
    shape.mask_cols = shape.length;
  }
  if (shape.chunk == 0 && shape.window == 0) {
    shape.window = random.between(Pos{1}, Pos{700});
  }
  if (random.one_in(2)) {
    shape.kept = random.one_in(2) ? random.between(Pos{1}, Pos{8}) : random.between(Pos{1}, Pos{600});
  }
  return shape;
}

/// The positions that rows at these positions see, and by chance more.
template <class T>
std::vector<bool> in_sight_of(const Case<T>& c, PosRange rows, Random& random) {
  std::vector<bool> seen(static_cast<std::size_t>(c.shape.length));
  const bool more = random.one_in(2);
  for (Index j = 0; j < c.shape.length; ++j) {
    bool any = more && random.one_in(20);
    for (Index p = rows.first; p < rows.last; ++p) {
      any = any || c.in_sight(p, j);
    }
    seen[static_cast<std::size_t>(j)] = any;
  }
  return seen;
}

}  // namespace

TEMPLATE_TEST_CASE("Whatever else is retained, the bits are the same", "[attention]", KVC_ALL_ELEMENTS) {
  const std::uint64_t seed = seed_or(901);
  Random random(seed);
  for (int i = 0; i < cases_or(24); ++i) {
    const CaseShape shape = random_hiding_shape(random, i);
    const Case<TestType> c(shape, random);
    CAPTURE(seed, i, shape);
    const Matrix<float> expected = whole(c);
    Matrix<float> out = c.out(), reference = c.out(), in_chunks = c.out();
    const Retaining<TestType> view{{c.view()}, in_sight_of(c, shape.queries, random)};
    Attend<TestType>::prefill(view, shape.queries, c.q.cref(), out.ref(), c.options(), ThreadPerCall{2});
    CHECK(same(out, expected));
    if constexpr (std::same_as<TestType, float>) {
      kvc::reference(view, shape.queries, c.q.cref(), reference.ref(), c.options());
      kvc::reference(c.view(), shape.queries, c.q.cref(), out.ref(), c.options());
      CHECK(same(reference, out));
    }
    for (Index first = 0; first < c.q.rows();) {  // each part with no more than it sees
      const Index count = std::min(random.between(Index{1}, Index{40}), c.q.rows() - first);
      const Pos position = shape.queries.first + static_cast<Pos>(first);
      const PosRange rows{position, position + static_cast<Pos>(count)};
      Attend<TestType>::prefill(Retaining<TestType>{{c.view()}, in_sight_of(c, rows, random)}, rows,
                                c.q.cref().middle_rows(first, count), in_chunks.ref().middle_rows(first, count),
                                c.options(first, count, 0, shape.query_heads()));
      first += count;
    }
    CHECK(same(in_chunks, expected));
  }
}

TEMPLATE_TEST_CASE("In a batch, each sequence needs what its own rows see", "[attention]", KVC_ALL_ELEMENTS) {
  const std::uint64_t seed = seed_or(902);
  Random random(seed);
  for (int i = 0; i < cases_or(24); ++i) {
    CaseShape shape = random_hiding_shape(random, i);
    shape.queries = {0, random.between(Pos{2}, Pos{12})};  // a row each
    shape.mask = CaseShape::Mask::none;
    const Case<TestType> c(shape, random);
    CAPTURE(seed, i, shape);
    std::vector<AnyView<TestType>> views;  // which lie in the same memory
    std::vector<PosRange> queries;
    Matrix<float> expected = c.out(), out = c.out(), on_threads = c.out();
    for (Index row = 0; row < c.q.rows(); ++row) {
      const Pos length = random.one_in(3) && !queries.empty()
                             ? queries.back().last
                             : random.between(std::max(0, shape.length - 100), shape.length);
      queries.push_back({length - 1, length});
      std::vector<bool> retained = in_sight_of(c, queries.back(), random);
      views.emplace_back(Retaining<TestType>{{c.view(length)}, std::move(retained)});
      Attend<TestType>::decode(c.view(length), c.q.cref().middle_rows(row, 1), expected.ref().middle_rows(row, 1),
                               c.options());
    }
    const std::span<const AnyView<TestType>> all(views);
    Attend<TestType>::decode(all, c.q.cref(), out.ref(), c.options());
    CHECK(same(out, expected));
    Attend<TestType>::decode(all, c.q.cref(), on_threads.ref(), c.options(), ThreadPerCall{3});
    CHECK(same(on_threads, expected));
    on_threads = c.out();
    Attend<TestType>::prefill(all, queries, c.q.cref(), on_threads.ref(), c.options(), ThreadPerCall{2});
    CHECK(same(on_threads, expected));
  }
}

TEST_CASE("Of sequences that lack the same position, the one whose row sees it is named", "[attention]") {
  Random random(3);
  CaseShape shape;
  shape.length = 200;
  shape.window = 100;
  shape.queries = {0, 2};  // a row each
  const Case<float> c(shape, random);
  Matrix<float> out = c.out();
  std::vector<bool> retained(200, true);
  retained[60] = false;
  const auto decode = [&](Pos first, Pos second) {
    const std::vector<AnyView<float>> views{Retaining<float>{{c.view(first)}, retained},
                                            Retaining<float>{{c.view(second)}, retained}};
    Attend<float>::decode(std::span<const AnyView<float>>(views), c.q.cref(), out.ref(), c.options());
  };
  CHECK_NOTHROW(decode(200, 161));
  CHECK_THROWS_WITH(decode(200, 160), contains("position 60 of sequence 1 is not retained"));
  CHECK_THROWS_WITH(decode(150, 200), contains("position 60 of sequence 0 is not retained"));
}

TEST_CASE("A position outside of `keys` need not be retained", "[attention]") {
  const std::uint64_t seed = seed_or(903);
  Random random(seed);
  for (int i = 0; i < cases_or(40); ++i) {
    CaseShape shape = random_shape(random, 200);
    shape.mask = CaseShape::Mask::none;
    const Case<float> c(shape, random);
    const Pos first = random.between(Pos{0}, shape.length), last = random.between(first, shape.length);
    CAPTURE(seed, i, shape, first, last);
    kvc::AttentionOptions options = c.options();
    options.keys = {first, last};
    Retaining<float> view{{c.view()}, std::vector<bool>(static_cast<std::size_t>(shape.length))};
    std::fill(view.retained.begin() + first, view.retained.begin() + last, true);
    Matrix<float> out = c.out(), expected = c.out();
    Attend<float>::prefill(view, shape.queries, c.q.cref(), out.ref(), options);
    Attend<float>::prefill(c.view(), shape.queries, c.q.cref(), expected.ref(), options);
    CHECK(same(out, expected));
  }
}

namespace {

/// Counts the positions that it hands out.
struct Counting : OfView<kvc::DenseView<float>> {
  std::shared_ptr<std::atomic<Index>> count = std::make_shared<std::atomic<Index>>(0);

  template <class F>
  void for_each_run(Index h, PosRange range, F&& f) const {
    *count += range.size();
    all.for_each_run(h, range, f);
  }
};

}  // namespace

TEST_CASE("Attention asks for the positions that a row sees, however long the sequence", "[attention]") {
  Random random(1);
  CaseShape shape;
  shape.length = 20000;
  const auto asked = [&](Pos rows, const kvc::AttentionOptions& options) {
    shape.queries = {shape.length - rows, shape.length};
    const Case<float> c(shape, random);
    const Counting view{{c.view()}};
    Matrix<float> out = c.out();
    Attend<float>::prefill(view, shape.queries, c.q.cref(), out.ref(), options);
    return view.count->load();
  };
  // To plan, attention also looks at two tiles at the beginning of a work item.
  constexpr Index planning = 4 * 128;
  CHECK(asked(1, {.window = 100}) <= 100 + planning);
  CHECK(asked(1, {.chunk = 3000}) <= 2000 + planning);
  CHECK(asked(1, {.window = 100, .kept = 4}) <= 104 + planning);
  CHECK(asked(1, {.window = 700, .kept = 700}) <= 1400 + planning);
  CHECK(asked(300, {.window = 100, .kept = 4}) <= 2 * (100 + 4 + 300));  // two tiles of rows
  CHECK(asked(300, {.chunk = 512, .kept = 4}) <= 2 * (512 + 4 + 300));
}

TEST_CASE("A row at a multiple of the chunk sees itself alone", "[attention]") {
  Random random(2);
  CaseShape shape;
  shape.kv_heads = 2;
  shape.key_dim = shape.value_dim = 24;
  shape.length = 1300;
  shape.queries = {0, 1300};
  for (const Pos chunk : {1, 7, 64, 100, 512, 600}) {
    shape.chunk = chunk;
    const Case<float> c(shape, random);
    const Matrix<float> out = whole(c);
    for (Index p = 0; p < shape.length; p += chunk) {
      CHECK(same_row(out.row(p), c.v.row(p), out.cols()));
    }
  }
}
