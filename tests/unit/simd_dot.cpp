#include <vector>

#include "catch.hpp"
#include "kvc/simd/dot.hpp"
#include "random_source.hpp"

using namespace kvc;
using kvc_test::Random;
using kvc_test::seed_or;

namespace {

std::vector<float> numbers(Random& random, Index count) {
  std::vector<float> x(static_cast<std::size_t>(count));
  for (float& each : x) {
    each = random.uniform(-1, 1);
  }
  return x;
}

}  // namespace

TEST_CASE("A dot product adds in the documented order", "[simd]") {
  const std::uint64_t seed = seed_or(11);
  CAPTURE(seed);
  Random random(seed);
  for (Index n = 0; n <= 70; ++n) {
    const std::vector<float> a = numbers(random, n), b = numbers(random, n);
    float lane[16] = {};
    for (std::size_t i = 0; i < a.size(); ++i) {
      lane[i % 16] = simd::madd(a[i], b[i], lane[i % 16]);
    }
    CHECK(simd::dot(a.data(), b.data(), n) == simd::sum(simd::load(lane)));
  }
}

TEST_CASE("A dot product does not depend on the address", "[simd]") {
  Random random(12);
  const std::vector<float> a = numbers(random, 100), b = numbers(random, 100);
  for (Index shift = 0; shift < 17; ++shift) {
    std::vector<float> x(static_cast<std::size_t>(shift), 9.0F), y(static_cast<std::size_t>(16 - shift), 9.0F);
    x.insert(x.end(), a.begin(), a.end());
    y.insert(y.end(), b.begin(), b.end());
    CHECK(simd::dot(x.data() + shift, y.data() + 16 - shift, 100) == simd::dot(a.data(), b.data(), 100));
  }
}

TEST_CASE("All pairs of rows have the bits of each pair alone", "[simd]") {
  const std::uint64_t seed = seed_or(13);
  Random random(seed);
  for (int round = 0; round < 60; ++round) {
    const Index rows = random.between(0, 11), cols = random.between(0, 40), n = random.between(0, 150);
    const Index a_stride = n + random.between(0, 3), b_stride = n + random.between(0, 3),
                stride = cols + random.between(0, 3);
    CAPTURE(seed, round, rows, cols, n);
    const std::vector<float> a = numbers(random, rows * a_stride), b = numbers(random, cols * b_stride);
    std::vector<float> out(static_cast<std::size_t>(rows * stride), 7.0F);
    simd::dot_rows(
        rows, [&](Index i) { return a.data() + i * a_stride; }, cols, [&](Index j) { return b.data() + j * b_stride; },
        n, out.data(), stride);
    for (Index i = 0; i < rows; ++i) {
      for (Index j = 0; j < stride; ++j) {
        const float expected = j < cols ? simd::dot(a.data() + i * a_stride, b.data() + j * b_stride, n) : 7.0F;
        CHECK(out[static_cast<std::size_t>(i * stride + j)] == expected);
      }
    }
  }
}
