// RoPE: both pairings against the formula, partial rotation, tables from elsewhere.
#include <cmath>
#include <vector>

#include "catch.hpp"
#include "kvc/llama/llama.hpp"
#include "kvc/llama/rope.hpp"

using kvc::Index;
using kvc::Pos;
using kvc::llama::Matrix;

namespace {

Matrix ramp(Index rows, Index cols) {
  Matrix m(rows, cols);
  for (Index i = 0; i < m.size(); ++i) m.data()[i] = std::sin(static_cast<float>(i) * 0.7F);
  return m;
}

/// Element j of a head by the formula.
double turned(const float* head, Index j, Index a, Index b, Index i, Pos p, Index rotary_dim) {
  const double angle = p * std::pow(10000.0, -2.0 * static_cast<double>(i) / static_cast<double>(rotary_dim));
  const double x = static_cast<double>(head[a]);
  const double y = static_cast<double>(head[b]);
  return j == a ? x * std::cos(angle) - y * std::sin(angle) : x * std::sin(angle) + y * std::cos(angle);
}

template <class Pairing>
void check_against_formula(Index rotary_dim) {
  constexpr Index heads = 3;
  constexpr Index head_dim = 10;
  const std::vector<Pos> positions = {0, 1, 7, 300, 7};
  const kvc::llama::RopeTable table(301, rotary_dim, 10000.0);
  const Matrix before = ramp(5, heads * head_dim);
  Matrix after = before;
  kvc::llama::rope(Pairing{}, table, positions, after, head_dim);
  const Index half = rotary_dim / 2;
  for (Index row = 0; row < 5; ++row) {
    for (Index h = 0; h < heads; ++h) {
      const float* head = before.row(row).data() + h * head_dim;
      for (Index i = 0; i < half; ++i) {
        for (Index j : {Pairing::first(i, half), Pairing::second(i, half)}) {
          const double expected = turned(head, j, Pairing::first(i, half), Pairing::second(i, half), i,
                                         positions[static_cast<std::size_t>(row)], rotary_dim);
          CHECK(static_cast<double>(after(row, h * head_dim + j)) == Approx(expected).margin(1e-6));
        }
      }
      for (Index j = rotary_dim; j < head_dim; ++j) CHECK(after(row, h * head_dim + j) == head[j]);
    }
  }
}

}  // namespace

TEST_CASE("rope turns pairs by the formula", "[model][rope]") {
  for (Index rotary_dim : {0, 2, 6, 10}) {
    check_against_formula<kvc::llama::Interleaved>(rotary_dim);
    check_against_formula<kvc::llama::HalfSplit>(rotary_dim);
  }
}

TEST_CASE("the pairings are the same rotation of reordered numbers", "[model][rope]") {
  constexpr Index dim = 8;
  const kvc::llama::RopeTable table(50, dim, 10000.0);
  const std::vector<Pos> positions = {49, 3};
  Matrix interleaved = ramp(2, dim);
  Matrix split(2, dim);
  for (Index i = 0; i < dim / 2; ++i) {
    split.col(i) = interleaved.col(2 * i);
    split.col(dim / 2 + i) = interleaved.col(2 * i + 1);
  }
  kvc::llama::rope(kvc::llama::Interleaved{}, table, positions, interleaved, dim);
  kvc::llama::rope(kvc::llama::HalfSplit{}, table, positions, split, dim);
  for (Index i = 0; i < dim / 2; ++i) {
    for (Index row = 0; row < 2; ++row) {
      CHECK(split(row, i) == interleaved(row, 2 * i));
      CHECK(split(row, dim / 2 + i) == interleaved(row, 2 * i + 1));
    }
  }
}

TEST_CASE("scores depend on the distance of positions only", "[model][rope]") {
  constexpr Index dim = 16;
  const kvc::llama::RopeTable table(100, dim, 10000.0);
  const auto score = [&](Pos q_at, Pos k_at) {
    Matrix qk = ramp(2, dim);
    const std::vector<Pos> positions = {q_at, k_at};
    kvc::llama::rope(kvc::llama::Interleaved{}, table, positions, qk, dim);
    double sum = 0;
    for (Index i = 0; i < dim; ++i) sum += static_cast<double>(qk(0, i)) * static_cast<double>(qk(1, i));
    return sum;
  };
  CHECK(score(5, 2) == Approx(score(90, 87)).margin(1e-4));
}

TEST_CASE("tables may come from elsewhere", "[model][rope]") {
  const kvc::llama::RopeTable made(20, 6, 500.0);
  Matrix cos(20, 3);
  Matrix sin(20, 3);
  for (Pos p = 0; p < 20; ++p) {
    for (Index i = 0; i < 3; ++i) {
      cos(p, i) = made.cos(p)[i];
      sin(p, i) = made.sin(p)[i];
    }
  }
  const kvc::llama::RopeTable given(cos, sin);
  CHECK(given.positions() == 20);
  CHECK(given.rotary_dim() == 6);
  Matrix a = ramp(2, 12);
  Matrix b = a;
  const std::vector<Pos> positions = {4, 19};
  kvc::llama::rope(kvc::llama::HalfSplit{}, made, positions, a, 6);
  kvc::llama::rope(kvc::llama::HalfSplit{}, given, positions, b, 6);
  CHECK(a == b);
  CHECK_THROWS_AS(kvc::llama::RopeTable(cos, Matrix(20, 2)), std::invalid_argument);
}

TEST_CASE("rope checks its arguments", "[model][rope]") {
  CHECK_THROWS_AS(kvc::llama::RopeTable(-1, 4, 1e4), std::invalid_argument);
  CHECK_THROWS_AS(kvc::llama::RopeTable(4, 3, 1e4), std::invalid_argument);
  CHECK_THROWS_AS(kvc::llama::RopeTable(4, 4, 0.0), std::invalid_argument);
  const kvc::llama::RopeTable table(8, 4, 1e4);
  Matrix x = ramp(1, 12);
  const auto apply = [&](std::vector<Pos> positions, Index head_dim) {
    kvc::llama::rope(kvc::llama::Interleaved{}, table, positions, x, head_dim);
  };
  CHECK_NOTHROW(apply({7}, 6));
  CHECK_THROWS_AS(apply({8}, 6), std::invalid_argument);
  CHECK_THROWS_AS(apply({-1}, 6), std::invalid_argument);
  CHECK_THROWS_AS(apply({1, 2}, 6), std::invalid_argument);
  CHECK_THROWS_AS(apply({1}, 2), std::invalid_argument);
  CHECK_THROWS_AS(apply({1}, 5), std::invalid_argument);
}
