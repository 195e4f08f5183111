// Law: in a ragged batch each row has the bits that a call for its sequence alone gives it.
#include <algorithm>
#include <vector>

#include "attention_case.hpp"
#include "catch.hpp"

using namespace kvc_test;

namespace {

/// A batch over the rows of one case: sequences of several lengths that begin in the same memory, or in their own.
template <class T>
struct Batch {
  std::vector<AnyView<T>> views;
  std::vector<PosRange> queries;
  std::vector<std::int32_t> q_indptr{0};
};

/// The positions of `rows` rows somewhere about the end of a sequence.
PosRange positions(Random& random, Pos length, Pos rows, bool last) {
  const Pos first = last ? length - rows : random.between(-20, length + 20);
  return {first, first + rows};
}

template <class T>
Batch<T> random_batch(const Case<T>& c, Random& random, Pos rows, bool last) {
  Batch<T> batch;
  for (Pos left = rows; left > 0 || random.one_in(3);) {
    const Pos count = std::min(left, random.one_in(2) ? 1 : random.one_in(4) ? 0 : random.between(Pos{2}, Pos{400}));
    const Pos length = random.one_in(6) ? 0 : random.between(Pos{0}, c.shape.length);
    if (random.one_in(3)) {
      batch.views.emplace_back(CutView<T>(c.view(length), random, random.between(Pos{1}, Pos{100})));
    } else {
      batch.views.emplace_back(c.view(length));
    }
    batch.queries.push_back(positions(random, length, count, last));
    batch.q_indptr.push_back(batch.q_indptr.back() + count);
    left -= count;
  }
  return batch;
}

template <class T>
Matrix<float> one_by_one(const Case<T>& c, const Batch<T>& batch) {
  Matrix<float> out = c.out();
  for (std::size_t b = 0; b < batch.views.size(); ++b) {
    const Index first = batch.q_indptr[b], count = batch.q_indptr[b + 1] - first;
    Attend<T>::prefill(batch.views[b], batch.queries[b], c.q.cref().middle_rows(first, count),
                       out.ref().middle_rows(first, count), c.options(first, count, 0, c.shape.query_heads()));
  }
  return out;
}

/// Claims three threads, and takes items from the last to the first.
struct Backwards {
  static Index concurrency() { return 3; }
  void parallel_for(Index n, const std::function<void(Index)>& f) const {
    while (n > 0) {
      f(--n);
    }
  }
};

}  // namespace

TEMPLATE_TEST_CASE("A ragged prefill has the bits of each sequence alone", "[attention]", KVC_ALL_ELEMENTS) {
  const std::uint64_t seed = seed_or(501);
  Random random(seed);
  const int cases = cases_or(24);
  const Pos longest = cases < 6 ? 600 : 1400;  // one of the fewest is as dear as the rest together
  for (int i = 0; i < cases; ++i) {
    CaseShape shape = random_shape(random, i % 4 == 0 ? longest : 200);
    const Pos rows = random.between(Pos{1}, i % 4 == 0 ? longest / 3 : Pos{120});
    shape.queries = {0, rows};  // of the batch: as many rows of q
    shape.mask_rows = random.one_in(3) ? 1 : rows;
    if (i % 4 == 0) {
      shape.kv_heads = shape.mask_heads = 1;
      shape.key_dim = shape.value_dim = random.between(Index{1}, Index{40});
    }
    const Case<TestType> c(shape, random);
    const bool last = random.one_in(2);
    const Batch<TestType> batch = random_batch(c, random, rows, last);
    CAPTURE(seed, i, shape, batch.views.size(), last);
    const Matrix<float> expected = one_by_one(c, batch);
    const std::span<const AnyView<TestType>> views(batch.views);

    Matrix<float> out = c.out();
    Attend<TestType>::prefill(views, batch.queries, c.q.cref(), out.ref(), c.options());
    CHECK(same(out, expected));
    Matrix<float> on_threads = c.out();
    Attend<TestType>::prefill(views, batch.queries, c.q.cref(), on_threads.ref(), c.options(), Backwards{});
    CHECK(same(on_threads, expected));
    if (last) {
      Matrix<float> by_indptr = c.out();
      Attend<TestType>::prefill(views, batch.q_indptr, c.q.cref(), by_indptr.ref(), c.options());
      CHECK(same(by_indptr, expected));
    }
  }
}

TEST_CASE("A ragged prefill says which argument does not fit", "[attention]") {
  Random random(1);
  CaseShape shape;
  shape.length = 5;
  shape.queries = {0, 4};
  const Case<float> c(shape, random);
  const std::vector<AnyView<float>> views{c.view(), c.view(3)};
  Matrix<float> out = c.out();
  const auto call = [&](const auto& queries) {
    Attend<float>::prefill(std::span<const AnyView<float>>(views), queries, c.q.cref(), out.ref());
  };
  using Ranges = std::vector<PosRange>;
  using Integers = std::vector<std::int32_t>;
  CHECK_THROWS_WITH(call(Ranges{{0, 4}}), contains("queries.size() is 1, must be the number of views, 2"));
  CHECK_THROWS_WITH(call(Ranges{{0, 2}, {2, 1}}), contains("queries is [2, 1)"));
  CHECK_THROWS_WITH(call(Ranges{{0, 2}, {0, 1}}),
                    contains("q rows is 4, must be the number of query rows of all views, 3"));
  CHECK_THROWS_WITH(call(Integers{0, 4}), contains("q_indptr.size() is 2"));
  CHECK_THROWS_WITH(call(Integers{1, 2, 4}), contains("q_indptr[0] is 1, must be 0"));
  CHECK_THROWS_WITH(call(Integers{0, 3, 2}), contains("q_indptr[2] is 2, must be at least the one before"));
  CHECK_THROWS_WITH(call(Integers{0, 3, 5}), contains("q rows is 4"));
  CHECK_NOTHROW(call(Integers{0, 4, 4}));
  CHECK_NOTHROW(call(Ranges{{1, 5}, {0, 0}}));

  const Case<float> other(
      [] {
        CaseShape wide;
        wide.key_dim = 2;
        return wide;
      }(),
      random);
  const std::vector<AnyView<float>> mixed{c.view(), other.view()};
  CHECK_THROWS_WITH(
      Attend<float>::prefill(std::span<const AnyView<float>>(mixed), Integers{0, 2, 4}, c.q.cref(), out.ref()),
      contains("key_dim of a view is 2"));
}
