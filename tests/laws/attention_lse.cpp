// Laws: the log-sum-exp of a row is that of its scores, has the same bits in every call, and leaves the outputs alone.
#include <cmath>
#include <limits>
#include <vector>

#include "attention_case.hpp"
#include "catch.hpp"
#include "kvc/attention/reference.hpp"
#include "kvc/attention/scores.hpp"

using namespace kvc_test;

namespace {

constexpr float infinity = std::numeric_limits<float>::infinity();

template <class T>
Matrix<float> lse_of(const Case<T>& c) {
  return Matrix<float>(c.q.rows(), c.shape.query_heads());
}

/// The largest difference; infinite where only one of two is infinite.
double difference(const Matrix<float>& a, const Matrix<float>& b) {
  double largest = 0;
  for (Index i = 0; i < a.rows() * a.cols(); ++i) {
    const float x = a.row(0)[i], y = b.row(0)[i];
    const double d = x == y ? 0.0 : std::abs(static_cast<double>(x) - static_cast<double>(y));
    largest = d <= largest ? largest : d;  // NaN counts
  }
  return largest;
}

/// Largest error of a log-sum-exp of scores of a few units: that of a score, where queries are rounded.
template <class T>
inline constexpr double lse_error = 4 * attention_error<T>;

}  // namespace

TEST_CASE("The reference's log-sum-exp is that of the masked scores", "[attention]") {
  const std::uint64_t seed = seed_or(601);
  Random random(seed);
  for (int i = 0; i < cases_or(60); ++i) {
    const CaseShape shape = random_shape(random, 150);
    const Case<float> c(shape, random);
    CAPTURE(seed, i, shape);
    const Index n = c.q.rows(), H = shape.query_heads();
    Matrix<float> scores(H * n, shape.length), out = c.out(), lse = lse_of(c), expected = lse_of(c);
    kvc::attention_scores(c.view(), shape.queries, c.q.cref(), kvc::ScoreStage::masked, scores.ref(), c.options());
    kvc::reference(c.view(), shape.queries, c.q.cref(), {out.ref(), lse.ref()}, c.options());
    for (Index h = 0; h < H; ++h) {
      for (Index row = 0; row < n; ++row) {
        double sum = 0;  // of exponentials of scores that are small
        for (Index j = 0; j < shape.length; ++j) {
          sum += std::exp(static_cast<double>(scores(h * n + row, j)));
        }
        expected(row, h) = static_cast<float>(std::log(sum));
      }
    }
    CHECK(difference(lse, expected) < 1e-5);
  }
}

TEMPLATE_TEST_CASE("The log-sum-exp agrees with the reference, and the outputs are as without", "[attention]",
                   KVC_ALL_ELEMENTS) {
  const std::uint64_t seed = seed_or(602);
  Random random(seed);
  for (int i = 0; i < cases_or(60); ++i) {
    CaseShape shape = random_shape(random, i % 20 == 0 ? 1500 : 200);
    if (shape.length > 300) {
      shape.kv_heads = shape.mask_heads = 1;
      shape.group = 1;
    }
    const Case<TestType> c(shape, random);
    CAPTURE(seed, i, shape);
    Matrix<float> out = c.out(), lse = lse_of(c), expected_out = c.out(), expected = lse_of(c);
    std::fill_n(lse.row(0), lse.rows() * lse.cols(), std::numeric_limits<float>::quiet_NaN());  // is overwritten
    Attend<TestType>::prefill(c.view(), shape.queries, c.q.cref(), {out.ref(), lse.ref()}, c.options());
    kvc::reference(c.view(), shape.queries, c.q.cref(), {expected_out.ref(), expected.ref()}, c.options());
    CHECK(difference(lse, expected) < lse_error<TestType>);
    CHECK(same(out, whole(c)));
    for (Index row = 0; row < c.q.rows(); ++row) {
      for (Index h = 0; h < shape.query_heads(); ++h) {
        bool sees_one = false;
        for (Index j = 0; j < shape.length && !sees_one; ++j) {
          sees_one = c.visible(h, row, j);
        }
        CHECK((lse(row, h) == -infinity) == !sees_one);
      }
    }
  }
}

TEMPLATE_TEST_CASE("The log-sum-exp has the same bits in prefill, decode, chunks, cut views and on threads",
                   "[attention]", KVC_ALL_ELEMENTS) {
  over_cases<TestType>(603, [](const Case<TestType>& original, Random& random) {
    CaseShape shape = appending(original.shape);
    shape.causal = true;
    const Case<TestType> c(shape, random);
    const Index rows = c.q.rows();
    Matrix<float> out = c.out(), expected = lse_of(c), lse = lse_of(c);
    Attend<TestType>::prefill(c.view(), shape.queries, c.q.cref(), {out.ref(), expected.ref()}, c.options());

    Attend<TestType>::prefill(CutView<TestType>(c.view(), random, 50), shape.queries, c.q.cref(),
                              {out.ref(), lse.ref()}, c.options(), ThreadPerCall{2});
    CHECK(same(lse, expected));

    std::vector<AnyView<TestType>> views;  // what the sequence was when each row was its newest
    for (Index i = 0; i < rows; ++i) {
      views.push_back(c.view(shape.queries.first + static_cast<Pos>(i) + 1));
    }
    lse = lse_of(c);
    Attend<TestType>::decode(std::span<const AnyView<TestType>>(views), c.q.cref(), {out.ref(), lse.ref()},
                             c.options());
    CHECK(same(lse, expected));

    lse = lse_of(c);
    for (Index first = 0; first < rows;) {
      const Index count = std::min(random.between(Index{1}, Index{40}), rows - first);
      const Pos position = shape.queries.first + static_cast<Pos>(first);
      Attend<TestType>::prefill(c.view(), {position, position + static_cast<Pos>(count)},
                                c.q.cref().middle_rows(first, count),
                                {out.ref().middle_rows(first, count), lse.ref().middle_rows(first, count)},
                                c.options(first, count, 0, shape.query_heads()));
      first += count;
    }
    CHECK(same(lse, expected));
  });
}

TEST_CASE("The extents of a log-sum-exp are checked", "[attention]") {
  Random random(1);
  CaseShape shape;
  shape.group = 2;
  const Case<float> c(shape, random);
  Matrix<float> out = c.out(), wrong(1, 1), states_m(1, 2);
  CHECK_THROWS_WITH(Attend<float>::decode(c.view(), c.q.cref(), {out.ref(), wrong.ref()}),
                    contains("lse is [1, 1], must be [1, 2]"));
  CHECK_THROWS_WITH(
      Attend<float>::decode(c.view(), c.q.cref(), kvc::AttentionStates{out.ref(), states_m.ref(), wrong.ref()}),
      contains("states.l is [1, 1], must be [1, 2]"));
}
