#include <limits>
#include <vector>

#include "catch.hpp"
#include "kvc/simd/vec.hpp"
#include "random_source.hpp"

using namespace kvc;
using kvc_test::Random;
using kvc_test::seed_or;

namespace {

struct Sixteen {
  float lane[simd::lanes];
  explicit Sixteen(const simd::F32x16& v) { simd::store(lane, v); }
  float operator[](int i) const { return lane[i]; }
};

std::vector<float> numbers(Random& random, std::size_t count) {
  std::vector<float> x(count);
  for (float& each : x) {
    each = random.uniform(-10, 10);
  }
  return x;
}

}  // namespace

TEST_CASE("Vectors load and store at any address", "[simd]") {
  Random random(1);
  const std::vector<float> x = numbers(random, 40);
  for (std::size_t at = 0; at < 20; ++at) {
    const Sixteen v(simd::load(x.data() + at));
    for (int i = 0; i < simd::lanes; ++i) {
      CHECK(v[i] == x[at + static_cast<std::size_t>(i)]);
    }
  }
}

TEST_CASE("A partial load fills up with zeros and reads nothing past the end", "[simd]") {
  Random random(2);
  for (Index count = 0; count <= simd::lanes; ++count) {
    const std::vector<float> x =
        numbers(random, static_cast<std::size_t>(count));  // its end is where the sanitizer looks
    const Sixteen v(simd::load_partial(x.data(), count));
    for (int i = 0; i < simd::lanes; ++i) {
      CHECK(v[i] == (i < count ? x[static_cast<std::size_t>(i)] : 0.0F));
    }
  }
}

TEST_CASE("Arithmetic works lane by lane", "[simd]") {
  Random random(3);
  const std::vector<float> a = numbers(random, 16), b = numbers(random, 16), c = numbers(random, 16);
  const simd::F32x16 x = simd::load(a.data()), y = simd::load(b.data()), z = simd::load(c.data());
  const Sixteen sum(x + y), difference(x - y), product(x * y), quotient(x / y), larger(simd::max(x, y)),
      fused(simd::madd(x, y, z));
  const Sixteen broadcast(simd::broadcast(-0.0F)), zero(simd::zero());
  for (int i = 0; i < simd::lanes; ++i) {
    const auto u = static_cast<std::size_t>(i);
    CHECK(sum[i] == a[u] + b[u]);
    CHECK(difference[i] == a[u] - b[u]);
    CHECK(product[i] == a[u] * b[u]);
    CHECK(quotient[i] == a[u] / b[u]);
    CHECK(larger[i] == std::max(a[u], b[u]));
    CHECK(fused[i] == simd::madd(a[u], b[u], c[u]));
    CHECK(std::signbit(broadcast[i]));
    CHECK(zero[i] == 0.0F);
  }
}

TEST_CASE("The sum of the lanes is one fixed tree", "[simd]") {
  const std::uint64_t seed = seed_or(4);
  CAPTURE(seed);
  Random random(seed);
  for (int round = 0; round < 100; ++round) {
    std::vector<float> x = numbers(random, 64);
    const simd::F32x16 v[4] = {simd::load(x.data()), simd::load(x.data() + 16), simd::load(x.data() + 32),
                               simd::load(x.data() + 48)};
    const simd::F32x4 each = simd::sum_each(v[0], v[1], v[2], v[3]);
    for (int i = 0; i < 4; ++i) {
      float* lane = x.data() + i * simd::lanes;
      for (int half = 8; half >= 1; half /= 2) {
        for (int l = 0; l < half; ++l) {
          lane[l] = lane[l] + lane[l + half];
        }
      }
      CHECK(simd::sum(v[i]) == lane[0]);
      CHECK(each[i] == lane[0]);
    }
  }
}

TEST_CASE("The largest lane is found wherever it is, and NaN wins", "[simd]") {
  for (std::size_t at = 0; at < 16; ++at) {
    std::vector<float> x(16, -3.0F);
    x[at] = -2.0F;
    CHECK(simd::max(simd::load(x.data())) == -2.0F);
    x[at] = std::numeric_limits<float>::quiet_NaN();
    CHECK(std::isnan(simd::max(simd::load(x.data()))));
    const simd::F32x16 ones = simd::broadcast(1);
    CHECK(std::isnan(Sixteen(simd::max(simd::load(x.data()), ones))[static_cast<int>(at)]));
    CHECK(std::isnan(Sixteen(simd::max(ones, simd::load(x.data())))[static_cast<int>(at)]));
  }
}
