// Folds, columns, online_softmax, and the dot products of narrow numbers, each against the same spelt out.
#include <algorithm>
#include <bit>
#include <cmath>
#include <cstdint>
#include <limits>
#include <random>
#include <vector>

#include "catch.hpp"
#include "kvc/attention/kernel/online_softmax.hpp"
#include "kvc/simd/fold.hpp"
#include "kvc/simd/narrow.hpp"
#include "kvc/simd/transpose.hpp"

using namespace kvc;
using simd::lanes;

namespace {

std::vector<float> numbers(std::size_t count, unsigned seed) {
  std::mt19937 random(seed);
  std::normal_distribution<float> normal;
  std::vector<float> all(count);
  for (float& x : all) {
    x = normal(random);
  }
  return all;
}

float plain_fold(const float* x) {
  float part[4];
  for (int t = 0; t < 4; ++t) {
    part[t] = ((x[t] + x[t + 4]) + x[t + 8]) + x[t + 12];
  }
  return ((part[0] + part[1]) + part[2]) + part[3];
}

template <int rows>
void folds_as_documented() {
  const std::vector<float> x = numbers(std::size_t{rows} * 4 * lanes, rows);
  simd::F32x16 in[rows][4];
  for (int i = 0; i < rows; ++i) {
    for (int n = 0; n < 4; ++n) {
      in[i][n] = simd::load(&x[static_cast<std::size_t>((i * 4 + n) * lanes)]);
    }
  }
  float out[lanes];
  simd::store(out, simd::fold_rows<rows>(in));
  for (int i = 0; i < rows; ++i) {
    for (int n = 0; n < 4; ++n) {
      CHECK(out[4 * i + n] == plain_fold(&x[static_cast<std::size_t>((i * 4 + n) * lanes)]));
    }
  }
}

}  // namespace

TEST_CASE("fold has the bits of its documented order", "[simd]") {
  folds_as_documented<1>();
  folds_as_documented<2>();
  folds_as_documented<4>();
}

TEST_CASE("columns of sixteen rows", "[simd]") {
  const std::vector<float> x = numbers(lanes * 23, 5);
  simd::F32x16 rows[lanes];
  const float* pointers[lanes];
  for (int l = 0; l < lanes; ++l) {
    pointers[l] = &x[static_cast<std::size_t>(l * 23)];
    rows[l] = simd::load(pointers[l]);
  }
  float columns[lanes * lanes];
  simd::store_columns(rows, columns);
  for (int c = 0; c < lanes; ++c) {
    for (int l = 0; l < lanes; ++l) {
      CHECK(columns[c * lanes + l] == pointers[l][c]);
    }
  }
  Index expected = 2;  // with a tail that is not a multiple of four columns
  simd::for_each_column(pointers, 2, 23, [&](Index c, const simd::U32x16& column) {
    REQUIRE(c == expected++);
    float of_rows[lanes];
    simd::store(of_rows, as_floats(column));
    for (int l = 0; l < lanes; ++l) {
      CHECK(of_rows[l] == pointers[l][c]);
    }
  });
  CHECK(expected == 23);
}

TEST_CASE("online_softmax makes weights of scores", "[simd]") {
  constexpr float infinity = std::numeric_limits<float>::infinity();
  for (const Index count : {1, 3, 4, 6, 16}) {
    const auto size = static_cast<std::size_t>(count * 64);
    const std::vector<float> before = numbers(size, 9);
    std::vector<float> s = before;
    std::mt19937_64 random(7);
    std::vector<std::uint64_t> visible(static_cast<std::size_t>(count));
    std::vector<float> m(visible.size(), 0.25F), l(visible.size(), 2.0F), rescale(visible.size()), top(visible.size());
    for (std::uint64_t& bits : visible) {
      bits = random();
    }
    visible[0] = 0;  // sees nothing here, but has seen something before
    m.back() = -infinity;
    l.back() = 0;
    const std::vector<std::uint64_t> seen = visible;
    const std::vector<float> m_before = m;
    detail::online_softmax(s.data(), visible.data(), count, m.data(), l.data(), rescale.data(), top.data());
    for (std::size_t r = 0; r < visible.size(); ++r) {
      double largest = static_cast<double>(m_before[r]), sum = 0;
      for (std::size_t j = 0; j < 64; ++j) {
        if ((seen[r] >> j & 1U) != 0) {
          largest = std::max(largest, static_cast<double>(before[r * 64 + j]));
        }
      }
      if (largest == -HUGE_VAL) {
        CHECK(visible[r] == 0);
        CHECK(l[r] == 0);
        continue;
      }
      for (std::size_t j = 0; j < 64; ++j) {
        const double exact =
            (seen[r] >> j & 1U) != 0 ? std::exp(static_cast<double>(before[r * 64 + j]) - largest) : 0.0;
        CHECK(std::abs(static_cast<double>(s[r * 64 + j]) - exact) < 3e-7);
        sum += exact;
      }
      if (visible[r] != 0) {
        CHECK(top[r] == *std::max_element(s.begin() + static_cast<std::ptrdiff_t>(r * 64),
                                          s.begin() + static_cast<std::ptrdiff_t>(r * 64 + 64)));
      }
      CHECK(static_cast<double>(m[r]) == largest);
      const double old = m_before[r] == -infinity ? 0.0 : 2.0 * std::exp(static_cast<double>(m_before[r]) - largest);
      CHECK(std::abs(static_cast<double>(l[r]) - old - sum) < 1e-5 * (old + sum));
    }
  }
}

TEST_CASE("dot products of narrow numbers", "[simd]") {
#if KVC_SIMD_BYTE_DOT
  std::mt19937 random(3);
  std::uint8_t a[64];
  std::int8_t b[64];
  std::int32_t sum[lanes], out[lanes];
  for (int i = 0; i < 64; ++i) {
    a[i] = static_cast<std::uint8_t>(random());
    b[i] = static_cast<std::int8_t>(random());
  }
  for (int l = 0; l < lanes; ++l) {
    sum[l] = static_cast<std::int32_t>(random() >> 8U) - (1 << 22);
  }
  const simd::U32x16 dot = simd::dot_bytes(simd::load_bytes(sum, 64), simd::load_bytes(a, 64), simd::load_bytes(b, 64));
  std::memcpy(out, &dot, sizeof out);
  for (int l = 0; l < lanes; ++l) {
    std::int32_t exact = sum[l];
    for (int i = 0; i < 4; ++i) {
      exact += a[4 * l + i] * b[4 * l + i];
    }
    CHECK(out[l] == exact);
  }
#endif
#if KVC_SIMD_BF16_DOT
  const std::vector<float> x = numbers(lanes * 2, 1), y = numbers(lanes * 2, 2);
  std::uint16_t narrow[2][lanes * 2];
  for (int i = 0; i < 2; ++i) {
    simd::store_bf16(narrow[0] + i * lanes, simd::load(&x[static_cast<std::size_t>(i * lanes)]));
    simd::store_bf16(narrow[1] + i * lanes, simd::load(&y[static_cast<std::size_t>(i * lanes)]));
  }
  const auto value = [](std::uint16_t bits) { return double{std::bit_cast<float>(std::uint32_t{bits} << 16)}; };
  float product[lanes];
  simd::store(product, simd::dot_bf16(simd::zero(), simd::load_bytes(narrow[0], 64), simd::load_bytes(narrow[1], 64)));
  for (int l = 0; l < lanes; ++l) {
    const double exact =
        value(narrow[0][2 * l]) * value(narrow[1][2 * l]) + value(narrow[0][2 * l + 1]) * value(narrow[1][2 * l + 1]);
    CHECK(std::abs(static_cast<double>(product[l]) - exact) < 1e-6);
    CHECK(std::abs(value(narrow[0][2 * l]) - static_cast<double>(x[static_cast<std::size_t>(2 * l)])) <
          std::abs(static_cast<double>(x[static_cast<std::size_t>(2 * l)])) / 256 + 1e-30);
  }
#endif
#if !KVC_SIMD_BYTE_DOT && !KVC_SIMD_BF16_DOT
  KVC_SKIP("the target multiplies neither bytes nor bfloat16");
#endif
}
