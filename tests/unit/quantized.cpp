// Int8, Fp8E4M3 and Int4: what a row loses, and that it loses it once.
#include "kvc/element/quantized.hpp"

#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <numeric>
#include <vector>

#include "catch.hpp"
#include "element_types.hpp"
#include "kvc/cache.hpp"
#include "kvc/simd/convert.hpp"
#include "policies.hpp"
#include "random_source.hpp"

namespace unit_quantized_test {

using namespace kvc;
using kvc_test::Random;
using kvc_test::seed_or;

namespace {

constexpr float infinity = std::numeric_limits<float>::infinity();
constexpr float not_a_number = std::numeric_limits<float>::quiet_NaN();
constexpr Index dims[] = {1, 2, 3, 4, 16, 31, 32, 33, 64, 80, 100, 128, 256};

std::vector<float> numbers(Random& random, Index count, float scale, float centre = 0) {
  std::vector<float> x(static_cast<std::size_t>(count));
  for (float& each : x) {
    each = centre + random.uniform(-scale, scale);
  }
  return x;
}

/// A row as it reads back. Checks that encode stays within the row; that decode does, the address sanitizer sees.
template <class T>
std::vector<float> stored(const std::vector<float>& x) {
  const auto dim = std::ssize(x);
  const auto size = static_cast<std::size_t>(Element<T>::row_size(dim));
  std::vector<StorageOf<T>> row(size + 8, StorageOf<T>{0x5a});
  Element<T>::encode(x.data(), dim, row.data());
  CHECK(std::all_of(row.begin() + static_cast<std::ptrdiff_t>(size), row.end(), [](auto s) { return s == 0x5a; }));
  const std::vector<StorageOf<T>> exact(row.begin(), row.begin() + static_cast<std::ptrdiff_t>(size));
  std::vector<float> back(x.size());
  Element<T>::decode(exact.data(), dim, back.data());
  return back;
}

float largest(const std::vector<float>& x) {
  float result = 0;
  for (const float each : x) {
    result = std::max(result, std::abs(each));
  }
  return result;
}

bool all_nan(const std::vector<float>& x) {
  return std::all_of(x.begin(), x.end(), [](float each) { return std::isnan(each); });
}

/// The value of a code of E4M3 by the OCP specification.
float e4m3(int code) {
  const int exponent = code >> 3 & 15, mantissa = code & 7;
  if (exponent == 15 && mantissa == 7) {
    return not_a_number;
  }
  const float magnitude = exponent == 0 ? std::ldexp(static_cast<float>(mantissa) / 8, -6)
                                        : std::ldexp(1 + static_cast<float>(mantissa) / 8, exponent - 7);
  return code >= 128 ? -magnitude : magnitude;
}

int to_e4m3(float x) {
  std::uint8_t code = 0;
  Element<Fp8E4M3>::encode(&x, 1, &code);
  return code;
}

}  // namespace

// --- Int8 --------------------------------------------------------------------------------------

TEST_CASE("Int8 is off by at most half a scale", "[quantized]") {
  const std::uint64_t seed = seed_or(501);
  CAPTURE(seed);
  Random random(seed);
  for (const Index dim : dims) {
    for (const float scale : {1e-30F, 1e-3F, 1.0F, 500.0F, 1e38F}) {
      CAPTURE(dim, scale);
      const std::vector<float> x = numbers(random, dim, scale), back = stored<Int8>(x);
      const double bound = static_cast<double>(largest(x)) / 254 * 1.0001;
      for (std::size_t i = 0; i < x.size(); ++i) {
        CHECK(std::abs(static_cast<double>(back[i]) - static_cast<double>(x[i])) <= bound);
      }
    }
  }
}

TEST_CASE("Int8 keeps multiples of the scale, zeros and both ends", "[quantized]") {
  std::vector<float> x;
  for (int code = -127; code <= 127; ++code) {
    x.push_back(static_cast<float>(code) * 0.25F);
  }
  CHECK(stored<Int8>(x) == x);
  CHECK(stored<Int8>(std::vector<float>(7)) == std::vector<float>(7));
  const float most = std::numeric_limits<float>::max();
  const std::vector<float> ends = stored<Int8>({most, -most, 0});
  CHECK(ends[0] == Approx(most));
  CHECK(ends[1] == Approx(-most));
  CHECK(ends[2] == 0);
}

TEST_CASE("Int8 rounds to nearest, ties to even", "[quantized]") {
  CHECK(stored<Int8>({127, 0.5F, 1.5F, 2.5F, -0.5F, -1.5F, 3.49F, 3.51F}) ==
        std::vector<float>{127, 0, 2, 2, 0, -2, 3, 4});
}

TEST_CASE("A row of Int8 of denormals keeps its sign and size, or is zero", "[quantized]") {
  const std::vector<float> x = {1e-38F, -1e-40F, 3e-39F, 0}, back = stored<Int8>(x);
  for (std::size_t i = 0; i < x.size(); ++i) {
    CHECK(std::abs(back[i] - x[i]) <= std::numeric_limits<float>::min() / 2);
  }
}

TEST_CASE("A row of Int8 with NaN or infinity reads back as NaN", "[quantized]") {
  for (const float bad : {not_a_number, -not_a_number, infinity, -infinity}) {
    CHECK(all_nan(stored<Int8>({1, 2, bad, 3, 4})));
  }
}

TEST_CASE("A row of Int8 is codes, then the scale at a multiple of four bytes", "[quantized]") {
  CHECK(Element<Int8>::row_size(128) == 132);
  CHECK(Element<Int8>::row_size(1) == 8);
  CHECK(Element<Int8>::row_size(33) == 40);
  const float x[] = {127 * 2, -2, 64};
  std::uint8_t row[8];
  Element<Int8>::encode(x, 3, row);
  float scale;
  std::memcpy(&scale, row + 4, sizeof scale);
  CHECK(scale == 2);
  CHECK(row[0] == 127);
  CHECK(row[1] == 0xff);
  CHECK(row[2] == 32);
  CHECK(row[3] == 0);
}

// --- Fp8E4M3 -----------------------------------------------------------------------------------

TEST_CASE("Each code of Fp8E4M3 reads as the OCP specification says, and is stored as itself", "[quantized]") {
  CHECK(e4m3(0x7e) == 448);
  CHECK(e4m3(0x08) == 0x1p-6F);
  CHECK(e4m3(0x01) == 0x1p-9F);
  for (int code = 0; code < 256; ++code) {
    CAPTURE(code);
    const auto byte = static_cast<std::uint8_t>(code);
    float x = 0;
    Element<Fp8E4M3>::decode(&byte, 1, &x);
    if (std::isnan(e4m3(code))) {
      CHECK(std::isnan(x));
      CHECK(to_e4m3(x) == code);
    } else {
      CHECK(x == e4m3(code));
      CHECK(std::signbit(x) == (code >= 128));
      CHECK(to_e4m3(x) == code);
    }
  }
}

TEST_CASE("Fp8E4M3 rounds to nearest, ties to even", "[quantized]") {
  for (int code = 0; code < 0x7e; ++code) {
    CAPTURE(code);
    const float low = e4m3(code), high = e4m3(code + 1), middle = (low + high) / 2;  // exact
    const int even = code % 2 == 0 ? code : code + 1;
    for (const float sign : {1.0F, -1.0F}) {
      const int side = sign < 0 ? 128 : 0;
      CHECK(to_e4m3(sign * middle) == even + side);
      CHECK(to_e4m3(sign * std::nextafter(middle, 0.0F)) == code + side);
      CHECK(to_e4m3(sign * std::nextafter(middle, infinity)) == code + 1 + side);
    }
  }
}

TEST_CASE("Fp8E4M3 takes what is too large for its largest number", "[quantized]") {
  for (const float x : {448.0F, 449.0F, 464.0F, 480.0F, 512.0F, 1e10F, std::numeric_limits<float>::max(), infinity}) {
    CHECK(to_e4m3(x) == 0x7e);
    CHECK(to_e4m3(-x) == 0xfe);
  }
  CHECK(to_e4m3(not_a_number) == 0x7f);
  CHECK(to_e4m3(1e-40F) == 0);
  CHECK(to_e4m3(-1e-40F) == 0x80);
}

TEST_CASE("Fp8E4M3 is off by at most a sixteenth", "[quantized]") {
  const std::uint64_t seed = seed_or(502);
  CAPTURE(seed);
  Random random(seed);
  for (int i = 0; i < 20000; ++i) {
    const float x = std::ldexp(random.uniform(), random.between(-14, 8));
    const float back = e4m3(to_e4m3(x));
    CHECK(std::abs(back - x) <= std::max(std::abs(x) / 16, 0x1p-10F));
  }
}

// --- Int4 --------------------------------------------------------------------------------------

namespace {

/// Half a scale, where the scale and the minimum are rounded outwards to eight bits.
double int4_bound(const std::vector<float>& x, std::size_t at) {
  const std::size_t first = at / 32 * 32, last = std::min(x.size(), first + 32);
  float least = x[first], most = x[first];
  for (std::size_t i = first; i < last; ++i) {
    least = std::min(least, x[i]);
    most = std::max(most, x[i]);
  }
  const double minimum = static_cast<double>(least), range = static_cast<double>(most) - minimum;
  return (range + std::abs(minimum) / 128) / 30 * (1 + 1.0 / 128) * 1.0001 + 1e-6 * std::abs(minimum);
}

}  // namespace

TEST_CASE("Int4 is off by at most half a scale", "[quantized]") {
  const std::uint64_t seed = seed_or(503);
  CAPTURE(seed);
  Random random(seed);
  for (const Index dim : dims) {
    for (const float centre : {0.0F, 1.0F, -3.0F, 100.0F}) {
      for (const float scale : {1e-3F, 1.0F, 500.0F}) {
        CAPTURE(dim, centre, scale);
        const std::vector<float> x = numbers(random, dim, scale, centre), back = stored<Int4>(x);
        for (std::size_t i = 0; i < x.size(); ++i) {
          CAPTURE(i, x[i], back[i]);
          CHECK(std::abs(static_cast<double>(back[i]) - static_cast<double>(x[i])) <= int4_bound(x, i));
        }
      }
    }
  }
}

TEST_CASE("Int4 keeps constant groups of eight bits, zeros and sixteen even steps", "[quantized]") {
  for (const float constant : {0.0F, 1.0F, -1.5F, 250.0F, -0x1p-30F}) {
    CHECK(stored<Int4>(std::vector<float>(40, constant)) == std::vector<float>(40, constant));
  }
  std::vector<float> x;
  for (int i = 0; i < 32; ++i) {
    x.push_back(static_cast<float>(i % 16) * 0.5F - 3);
  }
  CHECK(stored<Int4>(x) == x);
}

TEST_CASE("A group of Int4 with NaN or infinity reads back as NaN, and the others do not", "[quantized]") {
  for (const float bad : {not_a_number, infinity, -infinity}) {
    std::vector<float> x(100, 2.0F);
    x[40] = bad;
    const std::vector<float> back = stored<Int4>(x);
    for (std::size_t i = 0; i < x.size(); ++i) {
      CAPTURE(i);
      CHECK(std::isnan(back[i]) == (i / 32 == 1));
    }
  }
}

TEST_CASE("A group of Int4 with only tiny elements reads back as 0, and the largest floats as the largest element",
          "[quantized]") {
  for (const float tiny : {0x1.fp-101F, 0x1p-126F, 0x1p-149F}) {
    std::vector<float> x(64, -tiny);
    x[3] = tiny;
    x[40] = 1;  // in the other group
    const std::vector<float> back = stored<Int4>(x);
    CHECK(std::all_of(back.begin(), back.begin() + 32, [](float each) { return each == 0; }));
    CHECK(back[40] == Approx(1).epsilon(0.01));
  }
  for (const float small : {0x1p-100F, 1e-30F}) {
    std::vector<float> x(32, small);
    x[3] = -small;
    const std::vector<float> back = stored<Int4>(x);
    for (std::size_t i = 0; i < x.size(); ++i) {
      CAPTURE(i, small, back[i]);
      CHECK(back[i] / x[i] == Approx(1).epsilon(0.2));
    }
  }
  constexpr float most = std::numeric_limits<float>::max(), largest = Element<Int4>::largest;
  std::vector<float> x(32, most);
  CHECK(stored<Int4>(x) == std::vector<float>(32, largest));
  x[5] = -most;
  const std::vector<float> back = stored<Int4>(x);
  CHECK(back[5] == -largest);
  CHECK(back[6] == largest);
}

TEST_CASE("A row of Int4 is the codes of all groups, then their ranges", "[quantized]") {
  CHECK(Element<Int4>::row_size(128) == 80);
  CHECK(Element<Int4>::row_size(1) == 20);
  CHECK(Element<Int4>::row_size(33) == 40);
  std::vector<float> x(64);
  for (std::size_t i = 0; i < 64; ++i) {
    x[i] = static_cast<float>(i % 16);
  }
  std::uint8_t row[40];
  Element<Int4>::encode(x.data(), 64, row);
  for (int i = 0; i < 32; ++i) {
    CHECK(row[i] == (i % 16) * 0x11);
  }
  std::uint32_t range;
  std::memcpy(&range, row + 32, sizeof range);
  CHECK(range == 0x3f80U);  // scale 1, minimum 0
}

// --- in a cache --------------------------------------------------------------------------------

namespace {

constexpr Shape shape{.layers = 2, .kv_heads = 2, .key_dim = 40, .value_dim = 33};

struct Rows {
  std::vector<float> k, v;
  Rows(Random& random, Pos count)
      : k(numbers(random, count * shape.kv_heads * shape.key_dim, 3)),
        v(numbers(random, count * shape.kv_heads * shape.value_dim, 3)) {}
  [[nodiscard]] MatrixRef<const float> keys(Pos count) const {
    return {k.data(), count, shape.kv_heads * shape.key_dim};
  }
  [[nodiscard]] MatrixRef<const float> values(Pos count) const {
    return {v.data(), count, shape.kv_heads * shape.value_dim};
  }
};

template <class Cache>
void append(Cache& cache, SeqId seq, Random& random, Pos count) {
  auto step = cache.extend(seq, count);
  for (Index layer = 0; layer < shape.layers; ++layer) {
    const Rows rows(random, count);
    cache.write(layer, step, rows.keys(count), rows.values(count));
  }
  cache.commit(std::move(step));
}

/// The stored bytes of positions [0, count) of all layers and heads.
template <class Cache>
std::vector<std::byte> bytes(const Cache& cache, SeqId seq, Pos count) {
  using T = typename Cache::Element;
  std::vector<std::byte> all;
  const auto add = [&](const StorageOf<T>* row, Index dim) {
    const auto* from = reinterpret_cast<const std::byte*>(row);
    all.insert(all.end(), from, from + static_cast<std::size_t>(Element<T>::row_size(dim)) * sizeof(StorageOf<T>));
  };
  for (Index layer = 0; layer < shape.layers; ++layer) {
    for (Index head = 0; head < shape.kv_heads; ++head) {
      cache.view(layer, seq).for_each_run(head, {0, count}, [&](const KvRun<T>& run) {
        for (Index i = 0; i < run.rows; ++i) {
          add(run.k + i * run.k_stride, shape.key_dim);
          add(run.v + i * run.v_stride, shape.value_dim);
        }
      });
    }
  }
  return all;
}

}  // namespace

TEMPLATE_TEST_CASE("A row is quantised once, whatever happens to its sequence", "[quantized][cache]", Int8, Fp8E4M3,
                   Int4) {
  KvCache<TestType, Paged> cache(shape, {.blocks = 60, .block_tokens = 4});
  Random random(504);
  const SeqId first = cache.open();
  append(cache, first, random, 10);
  const std::vector<std::byte> ten = bytes(cache, first, 10);
  append(cache, first, random, 1);
  append(cache, first, random, 23);
  CHECK(bytes(cache, first, 10) == ten);

  const SeqId fork = cache.fork(first, 10);  // its tail is copied when it is written to
  CHECK(bytes(cache, fork, 10) == ten);
  append(cache, fork, random, 3);
  CHECK(bytes(cache, fork, 10) == ten);
  CHECK(bytes(cache, first, 10) == ten);
  cache.truncate(fork, 5);
  append(cache, fork, random, 9);
  append(cache, first, random, 2);
  CHECK(bytes(cache, first, 10) == ten);
  const auto five = bytes(cache, first, 5);
  CHECK(bytes(cache, fork, 5) == five);
  {
    auto rolled_back = cache.extend(first, 6);
    const Rows rows(random, 6);
    cache.write(0, rolled_back, rows.keys(6), rows.values(6));
  }
  cache.close(fork);
  CHECK(bytes(cache, first, 10) == ten);
}

TEMPLATE_TEST_CASE("Rows come back from a cache as they are stored, over every policy", "[quantized][cache]",
                   kvc_test::Reserve, kvc_test::GrowFirst, kvc_test::Paged7, kvc_test::Prefix4) {
  const auto check = [&]<class T>(T*) {
    CAPTURE(Element<T>::name);
    KvCache<T, typename TestType::Policy> cache(shape, TestType::config(64, 2, 32));
    Random random(505);
    const SeqId seq = cache.open();
    constexpr Pos counts[] = {5, 1, 13};
    for (const Pos count : counts) {
      const Rows rows(random, count);
      auto step = cache.extend_without_tokens(seq, count);
      const PosRange range = step.range();
      for (Index layer = 0; layer < shape.layers; ++layer) {
        cache.write(layer, step, rows.keys(count), rows.values(count));
      }
      cache.commit(std::move(step));
      std::vector<float> k(rows.k.size()), v(rows.v.size());
      cache.gather(1, seq, range, MatrixRef<float>(k.data(), count, shape.kv_heads * shape.key_dim),
                   MatrixRef<float>(v.data(), count, shape.kv_heads * shape.value_dim));
      const auto same = [](const std::vector<float>& written, const std::vector<float>& read, Index dim) {
        for (auto at = written.begin(); at != written.end(); at += dim) {
          if (stored<T>({at, at + dim}) !=
              std::vector<float>(read.begin() + (at - written.begin()), read.begin() + (at - written.begin()) + dim)) {
            return false;
          }
        }
        return true;
      };
      CHECK(same(rows.k, k, shape.key_dim));
      CHECK(same(rows.v, v, shape.value_dim));
    }
  };
  check(static_cast<Int8*>(nullptr));
  check(static_cast<Fp8E4M3*>(nullptr));
  check(static_cast<Int4*>(nullptr));
}

TEST_CASE("fp8: codes that a processor looks up are the floats of Element::decode, in their order", "[element]") {
#if defined(__AVX512VBMI__)
  std::vector<std::uint8_t> codes(576);
  for (const kvc::Index count : {1, 15, 16, 17, 63, 64, 65, 80, 128, 129, 256, 576}) {
    for (unsigned first = 0; first < 256; first += count < 256 ? 5 : 97) {
      std::iota(codes.begin(), codes.end(), static_cast<std::uint8_t>(first));
      const auto padded = static_cast<std::size_t>(kvc::ceil_div(count, kvc::Index{16}) * 16);
      std::vector<float> expected(padded + 1, 0.0F), got(padded + 1, 7.0F);
      kvc::Element<kvc::Fp8E4M3>::decode(codes.data(), count, expected.data());
      expected.back() = 7;  // nothing is written behind the padding
      kvc::simd::decode_e4m3(codes.data(), count, got.data());
      REQUIRE(std::memcmp(got.data(), expected.data(), got.size() * sizeof(float)) == 0);
    }
  }
#else
  KVC_SKIP("this processor has no permutation of bytes");
#endif
}

}  // namespace unit_quantized_test
