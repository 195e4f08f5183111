// Laws: a sink is a state {o = 0, m = logit, l = 1} that is merged once per row and head, when all keys have been.
#include <algorithm>
#include <limits>
#include <span>
#include <vector>

#include "attention_case.hpp"
#include "catch.hpp"
#include "kvc/attention/state.hpp"

using namespace kvc_test;

namespace {

constexpr float infinity = std::numeric_limits<float>::infinity();

/// Outputs of a case with other sinks than its own.
template <class T>
Matrix<float> with_sinks(const Case<T>& c, std::span<const float> sinks) {
  kvc::AttentionOptions options = c.options();
  options.sinks = sinks;
  Matrix<float> out = c.out();
  Attend<T>::prefill(c.view(), c.shape.queries, c.q.cref(), out.ref(), options);
  return out;
}

std::vector<float> all_the_same(const CaseShape& shape, float logit) {
  return std::vector<float>(static_cast<std::size_t>(shape.query_heads()), logit);
}

}  // namespace

TEMPLATE_TEST_CASE("Sinks are merged after the keys, and leave states and their log-sum-exp alone", "[attention]",
                   float, Eigen::bfloat16, kvc::Int8) {
  over_cases<TestType>(1001, [](const Case<TestType>& original, Random& random) {
    CaseShape shape = original.shape;
    shape.sinks = true;
    const Case<TestType> c(shape, random);
    const Index rows = c.q.rows(), heads = shape.query_heads();
    Matrix<float> o = c.out(), m(rows, heads), l(rows, heads), o_without = c.out(), m_without(rows, heads),
                  l_without(rows, heads);
    const kvc::AttentionStates states{o.ref(), m.ref(), l.ref()};
    Attend<TestType>::prefill(c.view(), shape.queries, c.q.cref(), states, c.options());
    kvc::AttentionOptions without = c.options();
    without.sinks = {};
    Attend<TestType>::prefill(c.view(), shape.queries, c.q.cref(),
                              kvc::AttentionStates{o_without.ref(), m_without.ref(), l_without.ref()}, without);
    CHECK(same(o, o_without));
    CHECK(same(m, m_without));
    CHECK(same(l, l_without));

    // By hand, and by the two functions that do it.
    Matrix<float> expected = c.out(), out = c.out(), lse(rows, heads), lse_of_call(rows, heads);
    states.write_output(out.ref(), lse.ref(), c.sinks);
    for (Index row = 0; row < rows; ++row) {
      for (Index h = 0; h < heads; ++h) {
        std::vector<float> zeros(static_cast<std::size_t>(shape.value_dim));
        kvc::AttentionState state = states.state(row, h);
        state.merge({zeros, c.sinks[static_cast<std::size_t>(h)], 1});
        state.write_output(expected.row(row) + h * shape.value_dim);
      }
    }
    CHECK(same(out, expected));
    Attend<TestType>::prefill(c.view(), shape.queries, c.q.cref(), {out.ref(), lse_of_call.ref()}, c.options());
    CHECK(same(out, expected));
    CHECK(same(lse_of_call, lse));
  });
}

TEMPLATE_TEST_CASE("A sink of -infinity changes no bit, and a large one leaves nothing", "[attention]", float,
                   Eigen::bfloat16, kvc::Int8) {
  over_cases<TestType>(1002, [](const Case<TestType>& c, Random&) {
    CHECK(same(with_sinks(c, all_the_same(c.shape, -infinity)), with_sinks(c, {})));
    CHECK(same(with_sinks(c, all_the_same(c.shape, -1e30F)), with_sinks(c, {})));
    const Matrix<float> none = with_sinks(c, all_the_same(c.shape, 1e30F));
    CHECK(std::all_of(none.row(0), none.row(0) + none.rows() * none.cols(), [](float x) { return x == 0; }));
  });
}

TEST_CASE("Sinks that do not fit are refused", "[attention]") {
  Random random(1);
  CaseShape shape;
  shape.group = 2;
  const Case<float> c(shape, random);
  CHECK_THROWS_WITH(with_sinks(c, std::vector<float>(3)), contains("sinks.size() is 3, must be 0 or the number of"));
  CHECK_THROWS_WITH(with_sinks(c, std::vector<float>{0, infinity}), contains("sinks[1] is inf"));
  CHECK_THROWS_WITH(with_sinks(c, std::vector<float>{std::numeric_limits<float>::quiet_NaN(), 0}),
                    contains("sinks[0] is nan"));
  Matrix<float> o = c.out(), m(1, 2), l(1, 2);
  const kvc::AttentionStates states{o.ref(), m.ref(), l.ref()};
  CHECK_THROWS_WITH(states.write_output(o.ref(), {}, std::vector<float>(1)), contains("sinks.size() is 1"));
}
