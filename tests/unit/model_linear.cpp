// The row-wise parts of the decoder: right numbers, and bits that do not depend on neighbours, places or threads.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <random>
#include <vector>

#include "catch.hpp"
#include "kvc/llama/linear.hpp"
#include "kvc/llama/llama.hpp"
#include "kvc/llama/norm.hpp"
#include "kvc/llama/swiglu.hpp"

using kvc::Index;
using kvc::MatrixRef;
using kvc::Sequential;
using kvc::llama::Matrix;

namespace {

Matrix random_matrix(Index rows, Index cols, std::uint64_t seed) {
  std::mt19937_64 random(seed);
  Matrix m(rows, cols);
  for (Index i = 0; i < m.size(); ++i) m.data()[i] = static_cast<float>(random() >> 40U) * 0x1p-23F - 1.0F;
  return m;
}

double dot_in_double(const float* a, const float* b, Index n) {
  double sum = 0;
  for (Index i = 0; i < n; ++i) sum += static_cast<double>(a[i]) * static_cast<double>(b[i]);
  return sum;
}

/// A copy of `m` that begins `shift` floats after an aligned address, with rows `extra` apart.
struct Shifted {
  Shifted(const Matrix& m, Index shift, Index extra)
      : memory(static_cast<std::size_t>(shift + m.rows() * (m.cols() + extra))) {
    ref = MatrixRef<float>(memory.data() + shift, m.rows(), m.cols(), m.cols() + extra);
    for (Index r = 0; r < m.rows(); ++r) std::copy_n(m.row(r).data(), m.cols(), ref.row(r));
  }
  std::vector<float> memory;
  MatrixRef<float> ref;
};

bool equal_bits(MatrixRef<const float> a, const Matrix& b, Index b_first = 0) {
  for (Index r = 0; r < a.rows(); ++r) {
    if (std::memcmp(a.row(r), b.row(b_first + r).data(), static_cast<std::size_t>(a.cols()) * sizeof(float)) != 0)
      return false;
  }
  return true;
}

/// Last item first.
struct Backwards {
  template <class F>
  void parallel_for(Index n, F&& f) const {
    while (n > 0) f(--n);
  }
};

}  // namespace

TEST_CASE("linear multiplies by the transpose", "[model][linear]") {
  for (Index in : {1, 3, 15, 16, 17, 48, 100}) {
    for (Index out : {1, 2, 5, 16, 37}) {
      for (Index n : {1, 2, 3, 4, 7}) {
        const Matrix x = random_matrix(n, in, 1);
        const Matrix w = random_matrix(out, in, 2);
        Matrix y(n, out);
        kvc::llama::linear(x, w, y, Sequential{});
        CAPTURE(in, out, n);
        for (Index r = 0; r < n; ++r) {
          for (Index o = 0; o < out; ++o) {
            const double expected = dot_in_double(x.row(r).data(), w.row(o).data(), in);
            CHECK(static_cast<double>(y(r, o)) == Approx(expected).margin(1e-5));
          }
        }
      }
    }
  }
}

TEST_CASE("the bits of linear depend on the two rows alone", "[model][linear]") {
  const Index in = GENERATE(64, 72, 172, 5);
  const Matrix x = random_matrix(13, in, 3);
  const Matrix w = random_matrix(70, in, 4);
  Matrix whole(13, 70);
  kvc::llama::linear(x, w, whole, Sequential{});
  for (Index n = 1; n <= 13; ++n) {
    for (Index first = 0; first + n <= 13; first += n) {
      Matrix part(n, 70);
      kvc::llama::linear(x.middleRows(first, n), w, part, Sequential{});
      CHECK(equal_bits(part, whole, first));
    }
  }
  for (Index shift = 0; shift < 5; ++shift) {
    const Shifted sx(x, shift, 3);
    const Shifted sw(w, 4 - shift, 1);
    const Shifted sy(whole, 1, 7);
    kvc::llama::linear(sx.ref, sw.ref, sy.ref, Sequential{});
    CHECK(equal_bits(sy.ref, whole));
  }
}

TEST_CASE("the bits of linear do not depend on the executor", "[model][linear]") {
  const Matrix x = random_matrix(64, 80, 5);  // enough work for several tasks
  const Matrix w = random_matrix(203, 80, 6);
  Matrix a(64, 203);
  Matrix b(64, 203);
  kvc::llama::linear(x, w, a, Sequential{});
  kvc::llama::linear(x, w, b, Backwards{});
  CHECK(equal_bits(a, b));
}

TEST_CASE("linear takes empty matrices and refuses others that do not fit", "[model][linear]") {
  Matrix x(0, 4);
  Matrix w(3, 4);
  Matrix y(0, 3);
  CHECK_NOTHROW(kvc::llama::linear(x, w, y, Sequential{}));
  Matrix none(0, 4);
  Matrix one(1, 4);
  Matrix empty(1, 0);
  CHECK_NOTHROW(kvc::llama::linear(one, none, empty, Sequential{}));
  CHECK_THROWS_AS(kvc::llama::linear(Matrix(2, 5), w, y, Sequential{}), std::invalid_argument);
  CHECK_THROWS_AS(kvc::llama::linear(Matrix(2, 4), w, y, Sequential{}), std::invalid_argument);
}

TEST_CASE("rms_norm scales rows to unit mean square", "[model][norm]") {
  const Index dim = GENERATE(1, 7, 64, 100);
  const Matrix x = random_matrix(5, dim, 7);
  const Matrix weight = random_matrix(1, dim, 8);
  Matrix y(5, dim);
  kvc::llama::rms_norm(x, weight, 1e-5F, y);
  for (Index r = 0; r < 5; ++r) {
    const double mean = dot_in_double(x.row(r).data(), x.row(r).data(), dim) / static_cast<double>(dim);
    for (Index i = 0; i < dim; ++i) {
      const double expected = static_cast<double>(x(r, i)) / std::sqrt(mean + 1e-5) * static_cast<double>(weight(0, i));
      CHECK(static_cast<double>(y(r, i)) == Approx(expected).margin(1e-6));
    }
  }
  // Alone, elsewhere, in place: the same bits.
  const Shifted sx(x, 3, 2);
  kvc::llama::rms_norm(sx.ref, weight, 1e-5F, sx.ref);
  CHECK(equal_bits(sx.ref, y));
  Matrix zero = Matrix::Zero(1, dim);
  kvc::llama::rms_norm(zero, weight, 1e-5F, zero);
  for (Index i = 0; i < dim; ++i) CHECK(zero(0, i) == 0.0F);
  CHECK_THROWS_AS(kvc::llama::rms_norm(x, Matrix(1, dim + 1), 1e-5F, y), std::invalid_argument);
}

TEST_CASE("swiglu gates", "[model][swiglu]") {
  const Index dim = GENERATE(1, 15, 16, 43);
  Matrix gate = random_matrix(3, dim, 9) * 20.0F;
  const Matrix up = random_matrix(3, dim, 10);
  gate(0, 0) = 200.0F;
  gate(1, 0) = -200.0F;
  Matrix y = gate;
  kvc::llama::swiglu(y, up);
  for (Index i = 0; i < gate.size(); ++i) {
    const double g = static_cast<double>(gate.data()[i]);
    const double expected = g / (1 + std::exp(-g)) * static_cast<double>(up.data()[i]);
    CHECK(static_cast<double>(y.data()[i]) == Approx(expected).margin(1e-6));
  }
  const Shifted sy(gate, 1, 6);
  const Shifted su(up, 2, 1);
  kvc::llama::swiglu(sy.ref, su.ref);
  CHECK(equal_bits(sy.ref, y));
  CHECK_THROWS_AS(kvc::llama::swiglu(y, Matrix(3, dim + 1)), std::invalid_argument);
}
