// The loops of part_kernels.hpp have the bits of those of kernels.hpp, and CodedRows those of Element::decode.
#include "kvc/attention/kernel/part_kernels.hpp"

#include <algorithm>
#include <array>
#include <cstdint>
#include <cstring>
#include <limits>
#include <random>
#include <type_traits>
#include <vector>

#include "catch.hpp"
#include "kvc/attention/kernel/float_tile.hpp"

using namespace kvc;

#if KVC_PART_KERNELS

namespace {

using detail::tile_keys;

std::vector<float> random_floats(Index count, unsigned seed) {
  std::mt19937 random(seed);
  std::normal_distribution<float> normal;
  std::vector<float> all(static_cast<std::size_t>(count));
  for (float& x : all) {
    x = normal(random);
  }
  return all;
}

struct NoPrefetcher {
  void prefetch(Index) const noexcept {}
};

/// Queries, and rows of 64 keys.
struct FloatRows {
  Index dim, padded = detail::padded(dim);
  std::vector<float> q = random_floats(6 * padded, 1), keys = random_floats(tile_keys * dim, 2);
  const float* at[tile_keys] = {};

  explicit FloatRows(Index elements) : dim(elements) {
    for (Index j = 0; j < tile_keys; ++j) {
      at[j] = keys.data() + j * dim;
    }
    for (Index r = 0; r < 6; ++r) {
      std::fill(q.begin() + r * padded + dim, q.begin() + (r + 1) * padded, 0.0F);
    }
  }
  [[nodiscard]] detail::PlainRows<float> plain() const { return {at, dim}; }
  /// Of one query row at a time; long rows in chains of 128 elements.
  [[nodiscard]] std::vector<float> expected(int rows) const {
    std::vector<float> s(static_cast<std::size_t>(rows) * tile_keys);
    NoPrefetcher none;
    for (Index r = 0; r < rows; ++r) {
      for (Index j = 0; j < tile_keys; j += 4) {
        simd::F32x16 sum[1][4] = {};
        const Index vectors = padded / simd::lanes, step = vectors > 16 ? 8 : 16;
        for (Index c = 0; c < vectors; c += step) {
          simd::F32x16 chain[1][4] = {};
          detail::add_keys<detail::FloatDotTraits, 1>(q.data() + r * padded, padded, plain(), j, c,
                                                      std::min(c + step, vectors), chain, none);
          for (int k = 0; k < 4; ++k) {
            sum[0][k] = sum[0][k] + chain[0][k];
          }
        }
        detail::store_scores<1, 4>(sum, s.data() + r * tile_keys + j);
      }
    }
    return s;
  }
};

template <int R, bool is_long = false>
void scores_in_parts(const FloatRows& rows) {
  std::vector<float> s(std::size_t{R} * tile_keys);
  NoPrefetcher none;
  detail::score_parts<R, is_long>(rows.plain(), 0, tile_keys, rows.padded / simd::lanes, rows.q.data(), rows.padded,
                                  s.data(), none);
  CHECK(s == rows.expected(R));
}

template <class T>
detail::CodedRows<T> coded(const std::uint8_t* const* rows, Index dim) {
  if constexpr (ScaledElement<T>) {
    return {rows, {rows, Element<T>::scale_offset(dim)}};
  } else {
    return {rows, dim};
  }
}

/// Every vector of a row, whole and in halves, is what decode gives.
template <class T>
bool reads_as_decoded(const std::vector<std::uint8_t>& row, Index dim) {
  using Coded = detail::CodedRows<T>;
  constexpr int step = Coded::part_step;
  std::vector<float> expected(static_cast<std::size_t>(dim)), whole(expected), halves(expected);
  Element<T>::decode(row.data(), dim, expected.data());
  const std::uint8_t* const at[1] = {row.data()};
  const Coded rows = coded<T>(at, dim);
  const auto one = rows.row(0);
  for (Index c = 0; c < dim / simd::lanes; ++c) {
    simd::store(whole.data() + c * simd::lanes, rows.load(0, c));
    float* const to = halves.data() + c * simd::lanes;
    if (c % step != 0) {
      continue;
    }
    if (c + step > dim / simd::lanes) {
      detail::store_part(to, one.template last<0>(c));
      detail::store_part(to + simd::part_lanes, one.template last<1>(c));
      continue;
    }
    simd::Part low[step], high[step];
    one.template load<0>(c, low);
    one.template load<1>(c, high);
    for (int v = 0; v < step; ++v) {
      detail::store_part(to + v * simd::lanes, low[v]);
      detail::store_part(to + v * simd::lanes + simd::part_lanes, high[v]);
    }
  }
  const std::size_t bytes = expected.size() * sizeof(float);
  return std::memcmp(whole.data(), expected.data(), bytes) == 0 &&
         std::memcmp(halves.data(), expected.data(), bytes) == 0;
}

}  // namespace

TEST_CASE("Scores in halves of vectors have the bits of whole vectors", "[attention]") {
  for (const Index dim : {1, 7, 16, 17, 40, 64, 80, 96, 128, 200}) {
    const FloatRows rows(dim);
    scores_in_parts<2>(rows);
    scores_in_parts<4>(rows);
    scores_in_parts<6>(rows);
  }
  for (const Index dim : {257, 320, 384, 500, 512}) {
    const FloatRows rows(dim);
    scores_in_parts<2, true>(rows);
    scores_in_parts<4, true>(rows);
    scores_in_parts<6, true>(rows);
  }
}

TEMPLATE_TEST_CASE("Codes become the floats of Element::decode in registers", "[attention]", Int8, Int4, Fp8E4M3) {
  if constexpr (!detail::is_coded<TestType>) {
    KVC_SKIP("this processor converts no binary16 numbers");
  } else {
    for (const Index dim : {16, 32, 48, 80, 128, 144}) {
      std::vector<std::uint8_t> row(static_cast<std::size_t>(Element<TestType>::row_size(dim)));
      for (unsigned seed = 0; seed < 40; ++seed) {
        const std::vector<float> x = random_floats(dim, seed);
        Element<TestType>::encode(x.data(), dim, row.data());
        if (seed % 2 == 1) {  // every code, also those of NaN
          const auto codes = static_cast<std::size_t>(std::is_same_v<TestType, Int4> ? dim / 2 : dim);
          for (std::size_t i = 0; i < codes; ++i) {
            row[i] = static_cast<std::uint8_t>(i + 13 * seed);
          }
        }
        CHECK(reads_as_decoded<TestType>(row, dim));
      }
      std::vector<float> x(static_cast<std::size_t>(dim), std::numeric_limits<float>::quiet_NaN());
      Element<TestType>::encode(x.data(), dim, row.data());
      CHECK(reads_as_decoded<TestType>(row, dim));
    }
  }
}

#else

TEST_CASE("Scores in halves of vectors have the bits of whole vectors", "[attention]") {
  KVC_SKIP("this target has other loops than those of part_kernels.hpp");
}

#endif
