#include <cmath>
#include <limits>

#include "catch.hpp"
#include "kvc/simd/exp.hpp"
#include "random_source.hpp"

using namespace kvc;

namespace {

/// |x - exact| in units of the last place of exact.
double ulps(float x, double exact) {
  int exponent = 0;
  std::frexp(exact, &exponent);
  return std::abs(static_cast<double>(x) - exact) / std::ldexp(1.0, exponent - std::numeric_limits<float>::digits);
}

/// The largest error of f against exact over [low, high], at points some floats apart, fewer where KVC_TEST_CASES says
/// so.
template <class F, class Exact>
double largest_error(F f, Exact exact, float low, float high) {
  double worst = 0;
  float x[simd::lanes], y[simd::lanes];
  const float step = (high - low) / static_cast<float>(kvc_test::cases_or(2'000'000));
  for (float at = low; at < high;) {
    for (float& each : x) {
      each = std::min(at, high);
      at = std::nextafter(at + step, high + 1);
    }
    simd::store(y, f(simd::load(x)));
    for (int i = 0; i < simd::lanes; ++i) {
      worst = std::max(worst, ulps(y[i], exact(static_cast<double>(x[i]))));
    }
  }
  return worst;
}

constexpr float infinity = std::numeric_limits<float>::infinity();
constexpr float not_a_number = std::numeric_limits<float>::quiet_NaN();

}  // namespace

TEST_CASE("exp is within 2 ulp of the exact value", "[simd]") {
  const auto f = [](const simd::F32x16& x) { return simd::exp(x); };
  const auto exact = [](double x) { return std::exp(x); };
  const double below = largest_error(f, exact, -87.33654F, 0), near = largest_error(f, exact, -1e-3F, 1e-3F),
               above = largest_error(f, exact, 0, 88.7F);
  INFO("largest errors " << below << " below 0, " << near << " near 0, " << above << " above, ulp");
  CHECK(below < 1.5);
  CHECK(near < 1.5);
  CHECK(above < 1.5);
}

TEST_CASE("exp at the ends", "[simd]") {
  CHECK(simd::exp(0.0F) == 1.0F);
  CHECK(simd::exp(-0.0F) == 1.0F);
  CHECK(simd::exp(-infinity) == 0.0F);
  CHECK(simd::exp(-88.0F) == 0.0F);
  CHECK(simd::exp(-1e30F) == 0.0F);
  CHECK(simd::exp(infinity) == infinity);
  CHECK(simd::exp(89.0F) == infinity);
  CHECK(std::isfinite(simd::exp(88.72F)));
  CHECK(std::isnan(simd::exp(not_a_number)));
}

TEST_CASE("exp of one number has the bits of exp of a vector", "[simd]") {
  float x[simd::lanes], y[simd::lanes];
  for (int i = 0; i < simd::lanes; ++i) {
    x[i] = -0.37F * static_cast<float>(i * i);
  }
  simd::store(y, simd::exp(simd::load(x)));
  for (int i = 0; i < simd::lanes; ++i) {
    CHECK(simd::exp(x[i]) == y[i]);
  }
}

TEST_CASE("tanh is within 2 ulp of the exact value", "[simd]") {
  const auto f = [](const simd::F32x16& x) { return simd::tanh(x); };
  const auto exact = [](double x) { return std::tanh(x); };
  const double wide = largest_error(f, exact, -12, 12), near = largest_error(f, exact, -0.7F, 0.7F);
  INFO("largest errors " << wide << ", " << near << " near 0, ulp");
  CHECK(wide < 2);
  CHECK(near < 2);

  float y[simd::lanes];
  const float x[simd::lanes] = {infinity, -infinity, not_a_number, 0.0F, -0.0F, 1e30F, -1e30F, 1e-30F};
  simd::store(y, simd::tanh(simd::load(x)));
  CHECK(y[0] == 1.0F);
  CHECK(y[1] == -1.0F);
  CHECK(std::isnan(y[2]));
  CHECK(y[3] == 0.0F);
  CHECK(y[4] == 0.0F);
  CHECK(y[5] == 1.0F);
  CHECK(y[6] == -1.0F);
  CHECK(y[7] == 1e-30F);
}
