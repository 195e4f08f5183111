// The sampler: what it may draw, how often, and that it always draws the same.
#include <array>
#include <cmath>
#include <limits>
#include <vector>

#include "catch.hpp"
#include "kvc/llama/sampler.hpp"

using kvc::Token;
using kvc::llama::Sampler;
using kvc::llama::SamplerConfig;

namespace {

std::vector<double> frequencies(Sampler sampler, const std::vector<float>& logits, int draws) {
  std::vector<double> seen(logits.size());
  for (int i = 0; i < draws; ++i) seen[static_cast<std::size_t>(sampler(logits))] += 1.0 / draws;
  return seen;
}

}  // namespace

TEST_CASE("temperature 0 takes the most likely, the first among equals", "[model][sampler]") {
  Sampler sampler({.temperature = 0.0, .top_p = 0.5, .seed = 3});
  CHECK(sampler(std::vector<float>{1, 5, 2}) == 1);
  CHECK(sampler(std::vector<float>{4, 7, 7, 1}) == 1);
  CHECK(sampler(std::vector<float>{-3}) == 0);
  CHECK(Sampler::greedy(std::vector<float>{-std::numeric_limits<float>::infinity(), -9}) == 1);
}

TEST_CASE("draws follow the softmax at their temperature", "[model][sampler]") {
  const std::vector<float> logits = {0.0F, 1.0F, 2.0F, -1.0F};
  const double temperature = GENERATE(0.5, 1.0, 2.0);
  std::vector<double> expected;
  double total = 0;
  for (float x : logits) total += expected.emplace_back(std::exp(static_cast<double>(x) / temperature));
  const auto seen = frequencies(Sampler({.temperature = temperature, .seed = 1}), logits, 40'000);
  for (std::size_t i = 0; i < logits.size(); ++i) CHECK(seen[i] == Approx(expected[i] / total).margin(0.01));
}

TEST_CASE("top-p keeps the smallest set of likely tokens that reaches p", "[model][sampler]") {
  // Probabilities .5 .3 .1 .1
  std::vector<float> logits;
  for (float p : {0.1F, 0.5F, 0.3F, 0.1F}) logits.push_back(std::log(p));
  const auto nucleus = [&](double p) { return frequencies(Sampler({.top_p = p, .seed = 5}), logits, 20'000); };

  CHECK(nucleus(0.01) == std::vector<double>{0, nucleus(0.01)[1], 0, 0});
  CHECK(nucleus(0.4)[1] == Approx(1));
  const auto two = nucleus(0.7);
  CHECK(two[0] + two[3] == 0);
  CHECK(two[1] == Approx(0.625).margin(0.015));
  const auto three = nucleus(0.85);  // of equals, the lower id
  CHECK(three[0] == Approx(0.1 / 0.9).margin(0.015));
  CHECK(three[3] == 0);
  CHECK(nucleus(1.0)[3] == Approx(0.1).margin(0.015));
}

TEST_CASE("top-p leaves a token where all are equally unlikely", "[model][sampler]") {
  const std::vector<float> logits(1000, 0.0F);
  for (double p : {1e-9, 0.5, 0.999999}) {
    Sampler sampler({.top_p = p, .seed = 2});
    for (int i = 0; i < 100; ++i) CHECK(sampler(logits) < std::max<Token>(1, static_cast<Token>(p * 1000 + 1)));
  }
}

TEST_CASE("equal seeds draw equal tokens, others do not", "[model][sampler]") {
  std::vector<float> logits(50);
  for (std::size_t i = 0; i < logits.size(); ++i) logits[i] = static_cast<float>(i % 7) * 0.3F;
  const auto draw = [&](std::uint64_t seed, double p) {
    Sampler sampler({.temperature = 0.9, .top_p = p, .seed = seed});
    std::vector<Token> tokens;
    for (int i = 0; i < 64; ++i) tokens.push_back(sampler(logits));
    return tokens;
  };
  CHECK(draw(1, 0.9) == draw(1, 0.9));
  CHECK(draw(1, 1.0) == draw(1, 1.0));
  CHECK(draw(1, 1.0) != draw(2, 1.0));
}

TEST_CASE("draws are the same on every platform", "[model][sampler]") {
  // Powers of two as weights: no platform's exp can shift a bound far enough to matter. The expected tokens follow from
  // the standard's mt19937_64, whose 10000th output it fixes, and from the top 53 bits of each output.
  std::mt19937_64 reference(42);
  Sampler sampler({.seed = 42});
  const std::array<double, 3> weights = {0.5, 0.25, 0.25};
  std::vector<float> logits;
  for (double w : weights) logits.push_back(static_cast<float>(std::log(w)));
  for (int i = 0; i < 1000; ++i) {
    const double unit = std::ldexp(static_cast<double>(reference() >> 11U), -53);
    const Token expected = unit < 0.5 ? 0 : unit < 0.75 ? 1 : 2;
    CHECK(sampler(logits) == expected);
  }
}

TEST_CASE("the sampler checks what it is given", "[model][sampler]") {
  constexpr double nan = std::numeric_limits<double>::quiet_NaN();
  for (double bad : {-0.1, nan, std::numeric_limits<double>::infinity()}) {
    CHECK_THROWS_AS(Sampler({.temperature = bad}), std::invalid_argument);
  }
  for (double bad : {0.0, -1.0, 1.5, nan}) {
    CHECK_THROWS_AS(Sampler({.top_p = bad}), std::invalid_argument);
  }
  Sampler sampler({.temperature = 1.0});
  constexpr float inf = std::numeric_limits<float>::infinity();
  CHECK_THROWS_AS(sampler(std::vector<float>{}), std::invalid_argument);
  for (float bad : {inf, std::numeric_limits<float>::quiet_NaN()}) {
    CHECK_THROWS_AS(sampler(std::vector<float>{0, bad, 1}), std::invalid_argument);
  }
  CHECK_THROWS_AS(sampler(std::vector<float>{-inf, -inf}), std::invalid_argument);
}
