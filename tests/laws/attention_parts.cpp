// Law: attention over any cut of the keys, part by part, merged in ascending order, is attention over all of them.
#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "attention_case.hpp"
#include "catch.hpp"
#include "kvc/attention/reference.hpp"
#include "kvc/attention/state.hpp"

using namespace kvc_test;

namespace {

/// The states of all rows of a case, in memory of their own.
struct OwnedStates {
  Matrix<float> o, m, l;
  template <class T>
  explicit OwnedStates(const Case<T>& c)
      : o(c.out()), m(c.q.rows(), c.shape.query_heads()), l(c.q.rows(), c.shape.query_heads()) {}
  kvc::AttentionStates ref() { return {o.ref(), m.ref(), l.ref()}; }
};

template <class T>
OwnedStates states_of(const Case<T>& c, PosRange keys) {
  OwnedStates states(c);
  kvc::AttentionOptions options = c.options();
  options.keys = keys;
  Attend<T>::prefill(c.view(), c.shape.queries, c.q.cref(), states.ref(), options);
  return states;
}

/// Outputs and their log-sum-exp.
struct Result {
  Matrix<float> out, lse;
};

template <class T>
Result all_keys(const Case<T>& c) {
  Result result{c.out(), Matrix<float>(c.q.rows(), c.shape.query_heads())};
  Attend<T>::prefill(c.view(), c.shape.queries, c.q.cref(), {result.out.ref(), result.lse.ref()}, c.options());
  return result;
}

/// The parts between the cuts, merged in ascending order.
template <class T>
Result in_parts(const Case<T>& c, const std::vector<Pos>& cuts) {
  OwnedStates total = states_of(c, {0, cuts.empty() ? kvc::max_pos : cuts.front()});
  for (std::size_t i = 0; i < cuts.size(); ++i) {
    OwnedStates part = states_of(c, {cuts[i], i + 1 < cuts.size() ? cuts[i + 1] : kvc::max_pos});
    total.ref().merge(part.ref());
  }
  Result result{c.out(), Matrix<float>(c.q.rows(), c.shape.query_heads())};
  total.ref().write_output(result.out.ref(), result.lse.ref(), c.sinks);
  return result;
}

double largest_difference(const Matrix<float>& a, const Matrix<float>& b) {
  double largest = 0;
  for (Index i = 0; i < a.rows() * a.cols(); ++i) {
    const float x = a.row(0)[i], y = b.row(0)[i];
    const double d = x == y ? 0.0 : std::abs(static_cast<double>(x) - static_cast<double>(y));
    largest = d <= largest ? largest : d;  // NaN counts
  }
  return largest;
}

/// Ascending positions within the sequence.
std::vector<Pos> random_cuts(Random& random, Pos length) {
  std::vector<Pos> cuts(static_cast<std::size_t>(random.between(0, 5)));
  std::generate(cuts.begin(), cuts.end(), [&] { return random.between(Pos{0}, length); });
  std::ranges::sort(cuts);  // some may be equal: parts without keys
  return cuts;
}

constexpr double largest_value = 2;  // in a Case

}  // namespace

TEMPLATE_TEST_CASE("Any cut of the keys, merged in ascending order, gives the whole", "[attention]", KVC_ALL_ELEMENTS) {
  over_cases<TestType>(701, [](const Case<TestType>& c, Random& random) {
    const Result expected = all_keys(c);
    const std::vector<Pos> cuts = random_cuts(random, c.shape.length);
    CAPTURE(cuts);
    const Result merged = in_parts(c, cuts);
    // Where weights are rounded, they are rounded anew: relative to the largest score of the part.
    CHECK(largest_difference(merged.out, expected.out) < attention_error<TestType> * largest_value);
    CHECK(largest_difference(merged.lse, expected.lse) < 5e-6);
  });
}

TEMPLATE_TEST_CASE("Parts of one split each, after the first, give the bits of the whole", "[attention]",
                   KVC_ALL_ELEMENTS) {
  const std::uint64_t seed = seed_or(703);
  Random random(seed);
  for (int i = 0; i < cases_or(8); ++i) {
    CaseShape shape = random_shape(random, 60);
    shape.length = random.between(Pos{600}, Pos{2600});
    shape.kv_heads = shape.mask_heads = 1;
    shape.window *= 6;
    shape = appending(shape);
    const Case<TestType> c(shape, random);
    std::vector<Pos> cuts;
    for (Pos at = random.between(Pos{1}, Pos{2}) * 512; at < shape.length; at += 512) {
      cuts.push_back(at);
    }
    CAPTURE(seed, i, shape, cuts);
    const Result expected = all_keys(c), merged = in_parts(c, cuts);
    CHECK(same(merged.out, expected.out));
    CHECK(same(merged.lse, expected.lse));
  }
}

TEMPLATE_TEST_CASE("A part without keys changes no bit, on either side", "[attention]", KVC_ALL_ELEMENTS) {
  over_cases<TestType>(704, [](const Case<TestType>& c, Random&) {
    OwnedStates whole_states = states_of(c, {0, kvc::max_pos});
    Result expected{c.out(), Matrix<float>(c.q.rows(), c.shape.query_heads())};
    whole_states.ref().write_output(expected.out.ref(), expected.lse.ref(), c.sinks);
    CHECK(same(expected.out, all_keys(c).out));

    const OwnedStates none = states_of(c, {c.shape.length, kvc::max_pos});
    CHECK(std::all_of(none.m.row(0), none.m.row(0) + none.m.rows() * none.m.cols(),
                      [](float m) { return m == -std::numeric_limits<float>::infinity(); }));
    OwnedStates before = states_of(c, {0, 0}), after = states_of(c, {0, kvc::max_pos}), empty(c);
    empty.ref().reset();
    before.ref().merge(whole_states.ref());
    after.ref().merge(empty.ref());
    for (OwnedStates* merged : {&before, &after}) {
      CHECK(same(merged->o, whole_states.o));
      CHECK(same(merged->m, whole_states.m));
      CHECK(same(merged->l, whole_states.l));
    }
  });
}

TEMPLATE_TEST_CASE("Outputs and their log-sum-exp are states that merge", "[attention]", KVC_ALL_ELEMENTS) {
  over_cases<TestType>(705, [](const Case<TestType>& c, Random& random) {
    const Pos cut = random.between(Pos{0}, c.shape.length);
    CAPTURE(cut);
    const auto normalised = [&](PosRange keys) {
      OwnedStates states(c);
      kvc::AttentionOptions options = c.options();
      options.keys = keys;
      options.sinks = {};
      std::fill_n(states.l.row(0), states.l.rows() * states.l.cols(), 1.0F);
      Attend<TestType>::prefill(c.view(), c.shape.queries, c.q.cref(), {states.o.ref(), states.m.ref()}, options);
      return states;
    };
    OwnedStates total = normalised({0, cut}), rest = normalised({cut, kvc::max_pos});
    total.ref().merge(rest.ref());
    Matrix<float> out = c.out();
    total.ref().write_output(out.ref(), {}, c.sinks);
    CHECK(largest_difference(out, whole(c)) < 2 * attention_error<TestType> * largest_value);
  });
}

TEMPLATE_TEST_CASE("States of a batch that decodes, in parts, give what one call gives", "[attention]", float,
                   kvc::Int8) {
  const std::uint64_t seed = seed_or(706);
  Random random(seed);
  for (int i = 0; i < cases_or(12); ++i) {
    CaseShape shape = random_shape(random, 60);
    shape.length = random.between(Pos{100}, Pos{1500});
    shape.kv_heads = 2;
    shape.mask = CaseShape::Mask::none;
    const Case<TestType> c(shape, random);
    std::vector<AnyView<TestType>> views;  // which share their first rows
    for (Index b = 0; b < c.q.rows(); ++b) {
      views.emplace_back(c.view(random.between(Pos{0}, shape.length)));
    }
    const Pos cut = random.between(Pos{0}, shape.length);
    CAPTURE(seed, i, shape, cut);
    const std::span<const AnyView<TestType>> all(views);
    kvc::AttentionOptions options = c.options();
    Matrix<float> expected = c.out(), out = c.out();
    Attend<TestType>::decode(all, c.q.cref(), expected.ref(), options);
    OwnedStates prefix(c), rest(c);
    options.keys = {0, cut};
    Attend<TestType>::decode(all, c.q.cref(), prefix.ref(), options);
    options.keys = {cut, kvc::max_pos};
    Attend<TestType>::decode(all, c.q.cref(), rest.ref(), options);
    prefix.ref().merge(rest.ref());
    prefix.ref().write_output(out.ref(), {}, c.sinks);
    CHECK(largest_difference(out, expected) < attention_error<TestType> * largest_value);
  }
}

TEST_CASE("The reference gives states, too", "[attention]") {
  const std::uint64_t seed = seed_or(707);
  Random random(seed);
  for (int i = 0; i < cases_or(20); ++i) {
    const Case<float> c(random_shape(random, 100), random);
    CAPTURE(seed, i, c.shape);
    OwnedStates states(c);
    kvc::reference(c.view(), c.shape.queries, c.q.cref(), states.ref(), c.options());
    Matrix<float> out = c.out();
    states.ref().write_output(out.ref(), {}, c.sinks);
    CHECK(largest_difference(out, whole(c)) < 4e-6 * largest_value);
  }
}

TEST_CASE("A range of keys hides those outside of it", "[attention]") {
  const std::uint64_t seed = seed_or(708);
  Random random(seed);
  for (int i = 0; i < cases_or(40); ++i) {
    CaseShape shape = random_shape(random, 200);
    shape.mask = CaseShape::Mask::boolean;
    shape.mask_heads = shape.mask_rows = 1;
    shape.mask_cols = shape.length;
    Case<float> c(shape, random);
    const Pos first = random.between(Pos{0}, shape.length), last = random.between(first, shape.length);
    for (Index j = 0; j < shape.length; ++j) {
      c.bools(0, j) = first <= j && j < last;
    }
    CAPTURE(seed, i, shape, first, last);
    kvc::AttentionOptions options = c.options();
    options.mask = {};
    options.keys = {first, last};
    Matrix<float> out = c.out();
    Attend<float>::prefill(c.view(), shape.queries, c.q.cref(), out.ref(), options);
    CHECK(same(out, whole(c)));
    kvc::reference(c.view(), shape.queries, c.q.cref(), out.ref(), options);
    CHECK(largest_difference(out, whole(c)) < 2e-6 * largest_value);
  }
  Random fixed(1);
  const Case<float> c({}, fixed);
  Matrix<float> out = c.out();
  for (const PosRange wrong : {PosRange{-1, 4}, PosRange{3, 2}}) {
    CHECK_THROWS_WITH(Attend<float>::decode(c.view(), c.q.cref(), out.ref(), {.keys = wrong}),
                      contains("must be a range of positions"));
  }
}

TEST_CASE("States whose extents differ do not merge", "[attention]") {
  Matrix<float> o(2, 6), m(2, 3), l(2, 3), narrow(2, 3), out(2, 6);
  const kvc::AttentionStates states{o.ref(), m.ref(), l.ref()};
  CHECK_THROWS_WITH(states.merge({narrow.ref(), m.ref(), l.ref()}), contains("o of the states to merge is [2, 3]"));
  CHECK_THROWS_WITH(states.merge({o.ref(), m.ref(), o.ref()}), contains("l of the states to merge is [2, 6]"));
  CHECK_THROWS_WITH(states.write_output(narrow.ref()), contains("out is [2, 3], must be [2, 6]"));
  CHECK_THROWS_WITH(states.write_output(out.ref(), out.ref()), contains("lse is [2, 6], must be [2, 3]"));
  CHECK_THROWS_WITH((kvc::AttentionStates{o.ref(), m.ref(), o.ref()}.reset()), contains("l of the states is [2, 6]"));
}
