// Laws: how far attention is from exact arithmetic on the stored rows, for logits of every size, and for the smallest
// and largest numbers. The bounds are those of kvc/attention/prefill.hpp.
#include <algorithm>
#include <array>
#include <cmath>
#include <limits>
#include <random>
#include <vector>

#include "attend.hpp"
#include "catch.hpp"
#include "element_types.hpp"
#include "kvc/attention/kernel/kernels.hpp"
#include "kvc/attention/reference.hpp"
#include "random_source.hpp"

using kvc::Index;
using kvc::Pos;

namespace {

constexpr std::array<double, 5> sigmas = {1, 4, 10, 20, 30};

/// Bounds on |out - exact| / (largest |value|), for logits of these standard deviations.
using Bounds = std::array<double, 5>;
template <class T>
constexpr Bounds bounds = {1e-6, 2e-6, 3e-6, 5e-6, 1e-5};
template <>
constexpr Bounds bounds<Eigen::bfloat16> = {1.5e-4, 1e-3, 1e-3, 1e-3, 1e-3};
template <>
constexpr Bounds bounds<kvc::Fp8E4M3> = {1.5e-4, 1e-3, 1e-3, 1e-3, 1e-3};
template <>
constexpr Bounds bounds<kvc::Int8> = {2e-5, 4e-4, 8e-4, 1.5e-3, 2.5e-3};
template <>
constexpr Bounds bounds<kvc::Int4> = {1e-3, 5e-3, 8e-3, 1.2e-2, 1.8e-2};

/// Whether T stores numbers of all the sizes that floats have.
template <class T>
constexpr bool has_float_range = !std::is_same_v<T, Eigen::half> && !std::is_same_v<T, kvc::Fp8E4M3>;

float as_bf16(float x) { return static_cast<float>(Eigen::bfloat16(x)); }

/// Numbers of a problem, of one kv head; those of q, k and v are bfloat16 numbers.
struct Numbers {
  static constexpr Pos keys = 500;
  static constexpr Index queries = 4, group = 4, rows = queries * group;
  Index dim;
  std::vector<float> q, k, v;

  template <class Random>
  Numbers(Index dim_, Random& random, double q_size, double k_size, double v_size)
      : dim(dim_),
        q(normal(rows * dim, q_size, random)),
        k(normal(keys * dim, k_size, random)),
        v(normal(keys * dim, v_size, random)) {}

 private:
  /// Normal numbers of deviation 1, drawn once: to draw them takes longer than to attend to them.
  static const std::vector<double>& drawn() {
    static const std::vector<double> all = [] {
      std::mt19937_64 random(300);
      std::normal_distribution<double> distribution;
      std::vector<double> x(1 << 18);
      std::generate(x.begin(), x.end(), [&] { return distribution(random); });
      return x;
    }();
    return all;
  }
  template <class Random>
  static std::vector<float> normal(Index n, double size, Random& random) {
    std::size_t from = random();  // anywhere, and round
    std::vector<float> x(static_cast<std::size_t>(n));
    std::generate(x.begin(), x.end(),
                  [&] { return as_bf16(static_cast<float>(size * drawn()[from++ % drawn().size()])); });
    return x;
  }
};

/// The same as stored rows: a view.
template <class T>
class Stored {
 public:
  using Element = T;
  explicit Stored(const Numbers& from)
      : dim_(from.dim), row_(kvc::Element<T>::row_size(from.dim)), k_(encode(from.k)), v_(encode(from.v)) {}

  [[nodiscard]] Index kv_heads() const { return 1; }
  [[nodiscard]] Index key_dim() const { return dim_; }
  [[nodiscard]] Index value_dim() const { return dim_; }
  [[nodiscard]] Pos length() const { return Numbers::keys; }
  template <class F>
  void for_each_run(Index, kvc::PosRange range, F&& f) const {
    if (range.first < range.last) {
      f(kvc::KvRun<T>{k_.data() + range.first * row_, v_.data() + range.first * row_, Index{range.size()}, row_, row_,
                      range.first});
    }
  }

 private:
  [[nodiscard]] std::vector<kvc::StorageOf<T>> encode(const std::vector<float>& from) const {
    std::vector<kvc::StorageOf<T>> rows(static_cast<std::size_t>(Numbers::keys * row_));
    for (Index j = 0; j < Numbers::keys; ++j) {
      kvc::Element<T>::encode(from.data() + j * dim_, dim_, rows.data() + j * row_);
    }
    return rows;
  }

  Index dim_, row_;
  std::vector<kvc::StorageOf<T>> k_, v_;
};

struct Outputs {
  std::vector<float> out, exact;

  [[nodiscard]] double error() const {
    double largest = 0;
    for (std::size_t i = 0; i < out.size(); ++i) {
      const double e = std::abs(static_cast<double>(out[i]) - static_cast<double>(exact[i]));
      largest = e <= largest ? largest : e;  // NaN counts
    }
    return largest;
  }
};

template <class T>
Outputs attend(const Numbers& numbers, const kvc::AttentionOptions& options) {
  const Stored<T> kv(numbers);
  const auto size = numbers.q.size();
  Outputs outputs{std::vector<float>(size), std::vector<float>(size)};
  const auto matrix = [&](auto* data) {
    return kvc::MatrixRef<std::remove_pointer_t<decltype(data)>>(data, Numbers::queries, Numbers::group * numbers.dim);
  };
  const kvc::PosRange queries = {Numbers::keys - Numbers::queries, Numbers::keys};
  kvc_test::Attend<T>::prefill(kv, queries, matrix(numbers.q.data()), matrix(outputs.out.data()), options);
  kvc::reference(kv, queries, matrix(numbers.q.data()), matrix(outputs.exact.data()), options);
  return outputs;
}

double largest(const std::vector<float>& x) {
  double largest = 0;
  for (const float each : x) {
    largest = std::max(largest, std::abs(static_cast<double>(each)));
  }
  return largest;
}

/// The default scale, and the nearest power of two.
std::array<float, 2> scales(Index dim) {
  const double exact = 1 / std::sqrt(static_cast<double>(dim));
  return {static_cast<float>(exact), static_cast<float>(std::exp2(std::round(std::log2(exact))))};
}

}  // namespace

TEMPLATE_TEST_CASE("Attention is as exact as its bounds say, whatever the size of logits and the scale", "[attention]",
                   KVC_ALL_ELEMENTS) {
  std::mt19937_64 random(301);
  for (std::size_t s = 0; s < sigmas.size(); ++s) {
    double worst = 0;
    // All dims with both scales, or one pair for each sigma where KVC_TEST_CASES wants fewest: then each dim once.
    for (std::size_t i = 0; i < static_cast<std::size_t>(kvc_test::cases_or(10)); ++i) {
      constexpr std::array<Index, 5> dims = {64, 80, 96, 128, 256};
      const std::size_t pair = (3 * s + i) % 10;
      const Index dim = dims[pair % 5];
      const float scale = scales(dim)[pair / 5];
      const double q_size = sigmas[s] / (static_cast<double>(scale) * std::sqrt(static_cast<double>(dim)));
      const Numbers numbers(dim, random, q_size, 1, 1);
      const double error = attend<TestType>(numbers, {.scale = scale}).error() / largest(numbers.v);
      CAPTURE(sigmas[s], dim, scale, error);
      CHECK(error <= bounds<TestType>[s]);
      worst = error <= worst ? worst : error;
    }
    INFO("sigma " << sigmas[s] << ": " << worst);
    CHECK(worst <= bounds<TestType>[s]);
  }
}

TEST_CASE("Attention over rows of more than 256 floats is as exact as its bounds say", "[attention]") {
  std::mt19937_64 random(306);
  for (const Index dim : {320, 512, 1024}) {
    for (const std::size_t s : {1U, 3U}) {
      const Numbers numbers(dim, random, sigmas[s], 1, 1);
      const double error = attend<float>(numbers, {}).error() / largest(numbers.v);
      CAPTURE(dim, sigmas[s], error);
      CHECK(error <= bounds<float>[s]);
    }
  }
}

TEST_CASE("Scores of long keys are nearly as exact as those of 128 elements", "[attention]") {
  std::mt19937_64 random(305);
  std::normal_distribution<float> distribution;
  constexpr Index heads = 500;  // each with one key, whose score is the log-sum-exp
  const auto error_of = [&](Index dim) {
    std::vector<float> q(static_cast<std::size_t>(heads * dim)), k(q.size());
    std::ranges::generate(q, [&] { return distribution(random); });
    std::ranges::generate(k, [&] { return distribution(random); });
    const std::vector<float> v(heads, 1.0F);
    std::vector<float> out(heads), lse(heads);
    kvc_test::Attend<float>::decode(kvc::DenseView<float>({k.data(), 1, heads * dim}, {v.data(), 1, heads}, heads),
                                    {q.data(), 1, heads * dim}, {{out.data(), 1, heads}, {lse.data(), 1, heads}},
                                    {.scale = 1});
    double squares = 0;
    for (Index h = 0; h < heads; ++h) {
      double exact = 0;
      for (Index d = h * dim; d < (h + 1) * dim; ++d) {
        exact +=
            static_cast<double>(q[static_cast<std::size_t>(d)]) * static_cast<double>(k[static_cast<std::size_t>(d)]);
      }
      const double error = static_cast<double>(lse[static_cast<std::size_t>(h)]) - exact;
      squares += error * error;
    }
    return std::sqrt(squares / static_cast<double>(heads * dim));  // scores have the deviation sqrt(dim)
  };
  const double of_128 = error_of(128);
  for (const Index dim : {272, 320, 512, 576, 1024}) {
    CAPTURE(dim);
    CHECK(error_of(dim) < 1.4 * of_128);  // as one chain: 1.54 at 512 elements, 2 at 1024
  }
}

TEMPLATE_TEST_CASE("Values of every size come out as exactly as those near 1", "[attention]", KVC_ALL_ELEMENTS) {
  std::mt19937_64 random(302);
  // Sums are floats: 500 values of 1e35 stay below the largest.
  for (const double size : {1e-38, 1e-36, 1e-34, 1e-32, 1e-30, 1e-28, 1e-20, 1e20, 1e34}) {
    if (size > 1 && !has_float_range<TestType>) {
      continue;
    }
    const Numbers numbers(96, random, 1, 1, size);
    const double error = attend<TestType>(numbers, {}).error();
    CAPTURE(size, error);
    // Below, numbers and their steps leave the normal floats.
    CHECK(error <= bounds<TestType>[0] * largest(numbers.v) + 0x1p-118);
  }
}

TEMPLATE_TEST_CASE("Tiny values keep their sign or come out as 0", "[attention]", KVC_ALL_ELEMENTS) {
  std::mt19937_64 random(303);
  for (const double size : {1e-42, 1e-38, 1e-35, 1e-33, 1e-31, 2e-30, 1e-29, 1e-20}) {
    Numbers numbers(96, random, 1, 1, size);
    for (std::size_t i = 0; i < numbers.v.size(); ++i) {  // of one sign in each dimension, and of similar size
      const double x = size * (1 + std::abs(static_cast<double>(numbers.v[i])) / (4 * size));
      numbers.v[i] = as_bf16(static_cast<float>(i % 2 == 0 ? x : -x));
    }
    CAPTURE(size);
    const Outputs outputs = attend<TestType>(numbers, {});
    bool right = true;
    for (std::size_t i = 0; i < outputs.out.size(); ++i) {
      right = right && (outputs.out[i] == 0 || (outputs.out[i] > 0) == (i % 2 == 0));
    }
    CHECK(right);
    if (size >= 2e-30 && has_float_range<TestType>) {
      CHECK(std::none_of(outputs.out.begin(), outputs.out.end(), [](float x) { return x == 0; }));
    }
  }
}

TEMPLATE_TEST_CASE("Keys of every size, with queries that make up for it, give the same logits", "[attention]",
                   KVC_ALL_ELEMENTS) {
  std::mt19937_64 random(304);
  for (const double size : {1e-30, 1e-20, 1e10, 1e20, 1e30, 1e33}) {
    if (size > 1 && !has_float_range<TestType>) {
      continue;
    }
    const Numbers numbers(96, random, 4 / size, size, 1);
    const double error = attend<TestType>(numbers, {}).error() / largest(numbers.v);
    CAPTURE(size, error);
    CHECK(error <= bounds<TestType>[1]);
  }
}

TEST_CASE("The parts of a scale multiply to it, and the queries' part rounds nothing", "[attention]") {
  using kvc::detail::ScaleParts;
  constexpr float least = std::numeric_limits<float>::denorm_min(), most = std::numeric_limits<float>::max();
  for (const float scale : {1.0F, 0.125F, 0.0883883461F, -0.0883883461F, 3.0F, 0.0F, -0.0F, 0x1p-126F, 0x1.8p-126F,
                            0x1.8p-130F, least, -least, most, -most}) {
    CAPTURE(scale);
    const ScaleParts whole = ScaleParts::in_queries(scale);
    CHECK(whole.of_queries == scale);
    CHECK(whole.of_scores == 1);
    const ScaleParts parts = ScaleParts::power_of_two_in_queries(scale);
    int exponent = 0;
    CHECK(std::frexp(parts.of_queries, &exponent) == 0.5F);
    CHECK(std::isnormal(parts.of_queries));
    CHECK(parts.of_queries * parts.of_scores == scale);
    CHECK(std::signbit(parts.of_scores) == std::signbit(scale));
    if (std::isnormal(scale)) {
      CHECK(std::abs(parts.of_scores) >= 1);
      CHECK(std::abs(parts.of_scores) < 2);
    }
  }
}
