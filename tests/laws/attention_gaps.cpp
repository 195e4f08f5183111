// Law: a key that a row may see and that the view does not retain is an error that names it, never another number.
#include <stdexcept>
#include <string>
#include <vector>

#include "attention_case.hpp"
#include "catch.hpp"
#include "kvc/attention/reference.hpp"
#include "kvc/attention/scores.hpp"
#include "kvc/cache.hpp"
#include "kvc/policy/paged.hpp"

using namespace kvc_test;

namespace {

/// A view without the positions [first, last) of one kv head, or of all.
template <class T>
struct Gappy : OfView<kvc::DenseView<T>> {
  Pos first, last;
  Index head = all_heads;
  static constexpr Index all_heads = -1;

  template <class F>
  void for_each_run(Index h, PosRange range, F&& f) const {
    if (h != head && head != all_heads) {
      this->all.for_each_run(h, range, f);
      return;
    }
    this->all.for_each_run(h, {range.first, std::max(range.first, std::min(range.last, first))}, f);
    this->all.for_each_run(h, {std::min(range.last, std::max(range.first, last)), range.last}, f);
  }
};
static_assert(kvc::KvView<Gappy<float>>);

/// A view whose runs are wrong in another way: `change` is applied to each.
struct Wrong : OfView<kvc::DenseView<float>> {
  void (*change)(kvc::KvRun<float>&);

  template <class F>
  void for_each_run(Index h, PosRange range, F&& f) const {
    all.for_each_run(h, range, [&](kvc::KvRun<float> run) {
      change(run);
      f(run);
    });
  }
};

std::string missing(Index position, Index sequence = 0) {
  return "position " + std::to_string(position) + " of sequence " + std::to_string(sequence) + " is not retained";
}

/// The first key that a row of the case may see by all but the entries of the mask, within [first, last), or -1.
template <class T>
Index first_seen(const Case<T>& c, Pos first, Pos last) {
  for (Index j = first; j < last; ++j) {
    for (Index p = c.shape.queries.first; p < c.shape.queries.last; ++p) {
      if (c.in_sight(p, j)) {
        return j;
      }
    }
  }
  return -1;
}

}  // namespace

TEMPLATE_TEST_CASE("A gap that a row may see is an error, and one that none sees is not", "[attention]",
                   KVC_ALL_ELEMENTS) {
  over_cases<TestType>(801, [](const Case<TestType>& c, Random& random) {
    if (c.shape.length == 0) {
      return;
    }
    const Pos first = random.between(Pos{0}, c.shape.length - 1);
    const Pos last = random.one_in(2) ? first + 1 : random.between(first + 1, c.shape.length);
    const Gappy<TestType> view{{c.view()}, first, last, random.between(Index{0}, c.shape.kv_heads - 1)};
    const Index seen = first_seen(c, first, last);
    CAPTURE(first, last, view.head, seen);
    Matrix<float> out = c.out(), reference = c.out();
    const auto fast = [&](const AnyExecutor& executor) {
      Attend<TestType>::prefill(view, c.shape.queries, c.q.cref(), out.ref(), c.options(), executor);
    };
    const auto by_definition = [&] { kvc::reference(view, c.shape.queries, c.q.cref(), reference.ref(), c.options()); };
    if (seen < 0) {
      fast(kvc::Sequential{});
      CHECK(same(out, whole(c)));
      by_definition();
      return;
    }
    CHECK_THROWS_AS(fast(kvc::Sequential{}), std::invalid_argument);
    CHECK_THROWS_WITH(fast(kvc::Sequential{}), contains(missing(seen)));
    CHECK_THROWS_WITH(fast(ThreadPerCall{2}), contains(missing(seen)));  // it would not survive a throw in a thread
    CHECK_THROWS_AS(by_definition(), std::invalid_argument);
    CHECK_THROWS_WITH(by_definition(), contains(missing(seen)));
    CHECK(same(reference, c.out()));  // not written
  });
}

TEST_CASE("A gap in one sequence of a batch is found, and named", "[attention]") {
  const std::uint64_t seed = seed_or(802);
  Random random(seed);
  const int cases = cases_or(30);
  for (int i = 0; i < cases; ++i) {
    CaseShape shape = random_shape(random, i % 5 != 0 ? 200 : cases < 6 ? 600 : 1500);
    shape.length = std::max(shape.length, 20);
    shape.queries = {0, random.between(Pos{2}, Pos{9})};
    shape.mask = CaseShape::Mask::none;
    shape.window = shape.chunk = 0;
    const Case<float> c(shape, random);
    const auto wrong = static_cast<std::size_t>(random.between(Index{0}, c.q.rows() - 1));
    const Pos gap = random.between(Pos{0}, shape.length - 1);
    std::vector<AnyView<float>> views;
    std::vector<PosRange> queries;
    for (std::size_t b = 0; b < static_cast<std::size_t>(c.q.rows()); ++b) {
      if (b == wrong) {
        views.emplace_back(Gappy<float>{{c.view()}, gap, gap + 1});
      } else {
        views.emplace_back(c.view());  // begins in the same memory
      }
      queries.push_back({shape.length - 1, shape.length});
    }
    CAPTURE(seed, i, shape, wrong, gap);
    Matrix<float> out = c.out();
    const std::span<const AnyView<float>> all(views);
    const auto message = contains(missing(gap, static_cast<Index>(wrong)));
    CHECK_THROWS_WITH(Attend<float>::decode(all, c.q.cref(), out.ref()), message);
    CHECK_THROWS_WITH(Attend<float>::decode(all, c.q.cref(), out.ref(), {}, ThreadPerCall{3}), message);
    CHECK_THROWS_WITH(Attend<float>::prefill(all, queries, c.q.cref(), out.ref()), message);
    CHECK_NOTHROW(Attend<float>::decode(all, c.q.cref(), out.ref(), {.keys = {gap + 1, kvc::max_pos}}));
  }
}

TEST_CASE("Runs that are not those that were asked for are an error", "[attention]") {
  Random random(1);
  CaseShape shape;
  shape.length = 100;
  shape.queries = {99, 100};
  const Case<float> c(shape, random);
  Matrix<float> out = c.out();
  const auto refuses = [&](void (*change)(kvc::KvRun<float>&)) {
    const Wrong view{{c.view()}, change};
    CHECK_THROWS_AS(Attend<float>::decode(view, c.q.cref(), out.ref()), std::invalid_argument);
    CHECK_THROWS_AS(kvc::reference(view, shape.queries, c.q.cref(), out.ref()), std::invalid_argument);
  };
  refuses([](kvc::KvRun<float>& run) { ++run.first; });
  refuses([](kvc::KvRun<float>& run) { --run.rows; });
  refuses([](kvc::KvRun<float>& run) { ++run.rows; });
  refuses([](kvc::KvRun<float>& run) { run.rows = 0; });
  refuses([](kvc::KvRun<float>& run) { run.rows = -1; });
}

namespace {

/// A policy that drops the middle of every sequence and tells nobody.
struct DropsMiddle : kvc::Paged {
  using Paged::Paged;
  template <class F>
  void for_each_run(kvc::SeqId seq, PosRange range, F&& f) const {
    const Pos end = std::max(length(seq) - 8, Pos{4});  // keeps [0, 4) and the last 8
    Paged::for_each_run(seq, {range.first, std::max(range.first, std::min(range.last, Pos{4}))}, f);
    Paged::for_each_run(seq, {std::min(range.last, std::max(range.first, end)), range.last}, f);
  }
};

}  // namespace

TEST_CASE("A policy that drops rows makes attention fail where they are needed", "[attention]") {
  kvc::KvCache<float, DropsMiddle> cache({.layers = 1, .kv_heads = 1, .key_dim = 4}, {.blocks = 8, .block_tokens = 4});
  const kvc::SeqId seq = cache.open();
  auto step = cache.extend(seq, 20);
  Random random(1);
  Matrix<float> rows(20, 4), out(1, 4), expected(1, 4);
  std::generate_n(rows.row(0), 80, [&] { return random.uniform(-1, 1); });
  cache.write(0, step, rows.cref(), rows.cref());
  cache.commit(std::move(step));
  const auto q = rows.cref().middle_rows(0, 1);
  CHECK_THROWS_WITH(Attend<float>::decode(cache.view(0, seq), q, out.ref()), contains(missing(4)));
  CHECK_THROWS_WITH(Attend<float>::prefill(cache.view(0, seq), {19, 20}, q, out.ref()), contains(missing(4)));
  CHECK_THROWS_WITH(kvc::reference(cache.view(0, seq), {19, 20}, q, out.ref()), contains(missing(4)));
  CHECK_THROWS_WITH(
      kvc::attention_scores(cache.view(0, seq), {19, 20}, q, kvc::ScoreStage::raw, Matrix<float>(1, 20).ref()),
      contains(missing(4)));

  // A window of what it keeps is served.
  Attend<float>::decode(cache.view(0, seq), q, out.ref(), {.window = 8});
  const kvc::DenseView<float> dense(rows.cref(), rows.cref(), 1);
  kvc::reference(dense, {19, 20}, q, expected.ref(), {.window = 8});
  for (Index d = 0; d < 4; ++d) {
    CHECK(out(0, d) == Approx(expected(0, d)).margin(1e-6));
  }
}
