// Laws of AttentionState: merging is associative and commutative to rounding, has an exact identity, and any division
// of the keys into sets gives the same result.
#include "attention_case.hpp"
#include "catch.hpp"
#include "kvc/attention/state.hpp"

using namespace kvc_test;

namespace {

constexpr std::size_t dim = 5;

struct OwnedState {
  std::vector<float> o = std::vector<float>(dim);
  float m = -std::numeric_limits<float>::infinity();
  float l = 0;
};

OwnedState merged(const OwnedState& a, const OwnedState& b) {
  OwnedState result = a, other = b;
  kvc::AttentionState into{result.o, result.m, result.l};
  into.merge({other.o, other.m, other.l});
  result.m = into.m;
  result.l = into.l;
  return result;
}

std::vector<float> output(const OwnedState& s) {
  OwnedState copy = s;
  std::vector<float> out(dim);
  kvc::AttentionState{copy.o, copy.m, copy.l}.write_output(out.data());
  return out;
}

OwnedState of_key(float score, const std::vector<float>& value) {
  OwnedState s;
  s.o = value;
  s.m = score;
  s.l = 1;
  return s;
}

OwnedState random_state(Random& random, int keys) {
  OwnedState s;
  for (int j = 0; j < keys; ++j) {
    std::vector<float> value(dim);
    for (float& x : value) {
      x = random.uniform(0.5F, 2);
    }
    s = merged(s, of_key(random.uniform(-20, 20), value));
  }
  return s;
}

void check_close(const OwnedState& a, const OwnedState& b) {
  const std::vector<float> x = output(a), y = output(b);
  for (std::size_t d = 0; d < dim; ++d) {
    CHECK(std::abs(x[d] - y[d]) < 2e-6F);
  }
  CHECK(a.m == b.m);
  CHECK(std::abs(a.l - b.l) <= 2e-6F * a.l);
}

}  // namespace

TEST_CASE("Merging states is associative and commutative", "[attention]") {
  const std::uint64_t seed = seed_or(301);
  Random random(seed);
  CAPTURE(seed);
  for (int i = 0; i < 200; ++i) {
    const OwnedState a = random_state(random, random.between(0, 6)), b = random_state(random, random.between(0, 6)),
                     c = random_state(random, random.between(0, 6));
    check_close(merged(merged(a, b), c), merged(a, merged(b, c)));
    check_close(merged(a, b), merged(b, a));
  }
}

TEST_CASE("The identity changes no bit of a state", "[attention]") {
  const std::uint64_t seed = seed_or(302);
  Random random(seed);
  CAPTURE(seed);
  for (int i = 0; i < 50; ++i) {
    const OwnedState a = random_state(random, random.between(0, 6));
    for (const OwnedState& x : {merged(a, OwnedState{}), merged(OwnedState{}, a)}) {
      CHECK(same_bits(x.m, a.m));
      CHECK(same_bits(x.l, a.l));
      CHECK(same_row(x.o.data(), a.o.data(), static_cast<Index>(dim)));
    }
  }
  CHECK(output(OwnedState{}) == std::vector<float>(dim, 0.0F));
  OwnedState empty;
  CHECK(kvc::AttentionState{empty.o, empty.m, empty.l}.log_sum_exp() == -std::numeric_limits<float>::infinity());
}

TEST_CASE("Any division of the keys gives the same output", "[attention]") {
  const std::uint64_t seed = seed_or(303);
  Random random(seed);
  CAPTURE(seed);
  for (int i = 0; i < 50; ++i) {
    const int keys = random.between(1, 60);
    std::vector<OwnedState> parts(static_cast<std::size_t>(random.between(1, 8)));
    OwnedState in_order;
    double l = 0;
    std::vector<double> o(dim);
    for (int j = 0; j < keys; ++j) {
      std::vector<float> value(dim);
      for (float& x : value) {
        x = random.uniform(-2, 2);
      }
      const float score = random.uniform(-10, 10);
      in_order = merged(in_order, of_key(score, value));
      OwnedState& part = parts[static_cast<std::size_t>(random.between(0, static_cast<int>(parts.size()) - 1))];
      part = merged(part, of_key(score, value));
      l += std::exp(static_cast<double>(score));
      for (std::size_t d = 0; d < dim; ++d) {
        o[d] += std::exp(static_cast<double>(score)) * static_cast<double>(value[d]);
      }
    }
    OwnedState divided;
    for (const OwnedState& part : parts) {
      divided = merged(divided, part);
    }
    for (const OwnedState& state : {in_order, divided}) {
      OwnedState copy = state;
      CHECK(static_cast<double>(kvc::AttentionState{copy.o, copy.m, copy.l}.log_sum_exp()) ==
            Approx(std::log(l)).epsilon(1e-6));
      for (std::size_t d = 0; d < dim; ++d) {
        CHECK(std::abs(static_cast<double>(output(state)[d]) - o[d] / l) < 2e-6);
      }
    }
  }
}

TEST_CASE("States of different value_dim do not merge", "[attention]") {
  std::vector<float> a(3), b(4);
  kvc::AttentionState into{a};
  CHECK_THROWS_AS(into.merge({b, 1, 1}), std::invalid_argument);
}
