// Laws: prefill is what the reference says it is, and what a row must not see cannot reach it.
#include <limits>

#include "attention_case.hpp"
#include "catch.hpp"
#include "kvc/attention/reference.hpp"
#include "kvc/attention/scores.hpp"

using namespace kvc_test;

namespace {

/// Largest difference, relative to the largest value that could come out.
template <class T>
double error(const Case<T>& c, const Matrix<float>& out, const Matrix<float>& expected) {
  double largest = 1e-30, difference = 0;
  for (Index i = 0; i < c.v_numbers.rows() * c.v_numbers.cols(); ++i) {
    largest = std::max(largest, std::abs(static_cast<double>(c.v_numbers.row(0)[i])));
  }
  for (Index i = 0; i < out.rows() * out.cols(); ++i) {
    const double d = std::abs(static_cast<double>(out.row(0)[i]) - static_cast<double>(expected.row(0)[i]));
    difference = d <= difference ? difference : d;  // NaN counts
  }
  return difference / largest;
}

}  // namespace

TEMPLATE_TEST_CASE("Prefill agrees with the reference", "[attention]", KVC_ALL_ELEMENTS) {
  const std::uint64_t seed = seed_or(201);
  Random random(seed);
  for (int i = 0; i < cases_or(90); ++i) {
    CaseShape shape = random_shape(random, i % 30 == 0 ? 2500 : 200);
    if (shape.length > 300) {  // the reference is slow
      shape.kv_heads = shape.mask_heads = 1;
      shape.group = std::min(shape.group, Index{2});
    }
    const Case<TestType> c(shape, random);
    CAPTURE(seed, i, shape);
    Matrix<float> out = c.out(), expected = c.out();
    std::fill_n(out.row(0), out.rows() * out.cols(), std::numeric_limits<float>::quiet_NaN());  // is overwritten
    Attend<TestType>::prefill(c.view(), shape.queries, c.q.cref(), out.ref(), c.options());
    kvc::reference(c.view(), shape.queries, c.q.cref(), expected.ref(), c.options());
    CHECK(error(c, out, expected) < attention_error<TestType>);
  }
}

TEMPLATE_TEST_CASE("Decode agrees with the reference", "[attention]", KVC_ALL_ELEMENTS) {
  const std::uint64_t seed = seed_or(202);
  Random random(seed);
  for (int i = 0; i < cases_or(60); ++i) {
    CaseShape shape = random_shape(random, i % 10 == 0 ? 5000 : 200);
    shape.queries = {shape.length - 1, shape.length};
    shape.mask_rows = 1;
    const Case<TestType> c(shape, random);
    CAPTURE(seed, i, shape);
    Matrix<float> out = c.out(), expected = c.out();
    Attend<TestType>::decode(c.view(), c.q.cref(), out.ref(), c.options());
    kvc::reference(c.view(), shape.queries, c.q.cref(), expected.ref(), c.options());
    CHECK(error(c, out, expected) < attention_error<TestType>);
  }
}

TEST_CASE("The scores of the last stage weigh the values as the reference does", "[attention]") {
  const std::uint64_t seed = seed_or(203);
  Random random(seed);
  for (int i = 0; i < cases_or(40); ++i) {
    const CaseShape shape = random_shape(random, 100);
    const Case<float> c(shape, random);
    CAPTURE(seed, i, shape);
    const Index n = c.q.rows(), H = shape.query_heads(), Dv = shape.value_dim;
    Matrix<float> p(H * n, shape.length), expected = c.out(), out = c.out();
    kvc::attention_scores(c.view(), shape.queries, c.q.cref(), kvc::ScoreStage::softmax, p.ref(), c.options());
    kvc::reference(c.view(), shape.queries, c.q.cref(), expected.ref(), c.options());
    for (Index h = 0; h < H; ++h) {
      for (Index row = 0; row < n; ++row) {
        for (Index d = 0; d < Dv; ++d) {
          double sum = 0;
          for (Index j = 0; j < shape.length; ++j) {
            sum += static_cast<double>(p(h * n + row, j)) * static_cast<double>(c.v(j, h / shape.group * Dv + d));
          }
          out(row, h * Dv + d) = static_cast<float>(sum);
        }
      }
    }
    CHECK(error(c, out, expected) < 2e-6);
  }
}

TEMPLATE_TEST_CASE("A key that a row must not see cannot reach it", "[attention]", KVC_ALL_ELEMENTS) {
  const auto poison = [](kvc::StorageOf<TestType>* row, Index dim, int what) {
    if (what == 1) {
      fill_with_ones<TestType>(row, kvc::Element<TestType>::row_size(dim));
    } else {
      fill_row<TestType>(row, dim,
                         what == 2 ? std::numeric_limits<float>::infinity() : std::numeric_limits<float>::quiet_NaN());
    }
  };
  const std::uint64_t seed = seed_or(204);
  Random random(seed);
  for (int i = 0; i < cases_or(60); ++i) {
    const CaseShape shape = random_shape(random, 250);
    Case<TestType> c(shape, random);
    CAPTURE(seed, i, shape);
    Matrix<float> clean = c.out(), out = c.out();
    Attend<TestType>::prefill(c.view(), shape.queries, c.q.cref(), clean.ref(), c.options());

    std::vector<bool> poisoned(static_cast<std::size_t>(shape.length));
    for (Index j = 0; j < shape.length; ++j) {
      if (random.one_in(20)) {
        poisoned[static_cast<std::size_t>(j)] = true;
        const int what = random.between(0, 3);
        for (Index h = 0; h < shape.kv_heads; ++h) {
          poison(c.value(j, h), shape.value_dim, what);
          if (what != 0) {
            poison(c.key(j, h), shape.key_dim, what);
          }
        }
      }
    }
    Attend<TestType>::prefill(c.view(), shape.queries, c.q.cref(), out.ref(), c.options());

    for (Index h = 0; h < shape.query_heads(); ++h) {
      for (Index row = 0; row < c.q.rows(); ++row) {
        bool sees_poison = false;
        for (Index j = 0; j < shape.length; ++j) {
          sees_poison = sees_poison || (poisoned[static_cast<std::size_t>(j)] && c.visible(h, row, j));
        }
        const float* got = out.row(row) + h * shape.value_dim;
        CAPTURE(h, row);
        if (!sees_poison) {
          CHECK(same_row(got, clean.row(row) + h * shape.value_dim, shape.value_dim));
        }
      }
    }
  }
}

TEMPLATE_TEST_CASE("A NaN that a row sees is not lost", "[attention]", KVC_ALL_ELEMENTS) {
  const std::uint64_t seed = seed_or(205);
  Random random(seed);
  for (int i = 0; i < cases_or(60); ++i) {
    const CaseShape shape = random_shape(random, 250);
    Case<TestType> c(shape, random);
    if (shape.length == 0) {
      continue;
    }
    const Index at = random.between(Index{0}, Index{shape.length} - 1);
    const auto with_nan = [](kvc::StorageOf<TestType>* row, const float* numbers, Index dim) {
      std::vector<float> changed(numbers, numbers + dim);
      changed[0] = std::numeric_limits<float>::quiet_NaN();
      kvc::Element<TestType>::encode(changed.data(), dim, row);
    };
    if (random.one_in(2)) {
      with_nan(c.key(at, 0), c.k_numbers.row(at), shape.key_dim);
    } else {
      with_nan(c.value(at, 0), c.v_numbers.row(at), shape.value_dim);
    }
    CAPTURE(seed, i, shape, at);
    Matrix<float> out = c.out();
    Attend<TestType>::prefill(c.view(), shape.queries, c.q.cref(), out.ref(), c.options());
    for (Index h = 0; h < shape.group; ++h) {
      for (Index row = 0; row < c.q.rows(); ++row) {
        CHECK(std::isnan(out(row, h * shape.value_dim)) == c.visible(h, row, at));
      }
    }
  }
}
