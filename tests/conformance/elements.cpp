// The contract of ElementType: ours keep it, a minimal model does, and the suite rejects wrong ones.
#include <algorithm>
#include <array>
#include <cmath>
#include <cstddef>
#include <cstdint>

#include "catch.hpp"
#include "kvc/cache.hpp"
#include "kvc/element/element.hpp"
#include "kvc/element/float16.hpp"
#include "kvc/element/mixed.hpp"
#include "kvc/element/none.hpp"
#include "kvc/element/quantized.hpp"
#include "kvc/policy/paged.hpp"
#include "kvc/testing/element_conformance.hpp"

namespace {
struct Fixed;      // a minimal element type
struct Truncated;  // its error is twice the stated one
struct TooLong;    // writes one unit more than row_size
struct TooShort;   // leaves the last unit of a row of three as it was
struct Overrun;    // decodes one element more than dim
struct Unstated;   // states no error
struct NoPrefix;   // says that its rows begin with those of fewer elements, and they do not
struct Longer;     // reads more elements of a prefix than it is asked for
struct Nameless;   // no element type
}  // namespace

namespace kvc {
inline namespace v0 {

/// Multiples of 2^-8 in 32 bits, between -2^23 and 2^23.
template <>
struct Element<Fixed> {
  using Storage = std::int32_t;
  static constexpr std::string_view name = "fixed";
  static constexpr Index row_size(Index dim) { return dim; }
  static void encode(const float* from, Index dim, Storage* to) {
    for (Index d = 0; d < dim; ++d) {
      to[d] = static_cast<Storage>(std::nearbyint(std::clamp(from[d], -8388608.0F, 8388607.0F) * 256));
    }
  }
  static void decode(const Storage* from, Index dim, float* to) {
    for (Index d = 0; d < dim; ++d) {
      to[d] = static_cast<float>(from[d]) / 256;
    }
  }
  static float max_error(const float* from, Index dim) {
    const float largest = detail::max_abs(from, dim);
    return largest < 8388607 ? 0x1p-9F : INFINITY;
  }
};
static_assert(ElementType<Fixed>);

template <>
struct Element<Truncated> : Element<Fixed> {
  static void encode(const float* from, Index dim, Storage* to) {
    for (Index d = 0; d < dim; ++d) {
      to[d] = static_cast<Storage>(std::clamp(from[d], -8388608.0F, 8388607.0F) * 256);
    }
  }
};
template <>
struct Element<TooLong> : Element<Fixed> {
  static void encode(const float* from, Index dim, Storage* to) {
    Element<Fixed>::encode(from, dim, to);
    to[dim] = 0;
  }
};
template <>
struct Element<TooShort> : Element<Fixed> {
  static constexpr Index row_size(Index dim) { return dim + (dim == 3 ? 1 : 0); }
};
template <>
struct Element<Overrun> : Element<Fixed> {
  static void decode(const Storage* from, Index dim, float* to) {
    Element<Fixed>::decode(from, dim, to);
    to[dim] = 0;
  }
};
template <>
struct Element<Unstated> {
  using Storage = float;
  static constexpr std::string_view name = "unstated";
  static constexpr Index row_size(Index dim) { return dim; }
  static void encode(const float* from, Index dim, Storage* to) { std::copy_n(from, dim, to); }
  static void decode(const Storage* from, Index dim, float* to) { std::copy_n(from, dim, to); }
};
template <>
struct Element<NoPrefix> : Element<Int8> {
  static constexpr bool has_row_prefixes = true;
};
template <>
struct Element<Longer> : Element<Int8> {
  static void decode_prefix(const Storage* from, Index dim, Index count, float* to) {
    Element<Int8>::decode_prefix(from, dim, std::min(count + 1, dim), to);
  }
};
template <>
struct Element<Nameless> {
  using Storage = float;
  static constexpr Index row_size(Index dim) { return dim; }
  static void encode(const float*, Index, Storage*) {}
  static void decode(const Storage*, Index, float*) {}
};
static_assert(!ElementType<Nameless> && !ElementType<double>);

}  // namespace v0
}  // namespace kvc

namespace {
using namespace kvc;
using kvc_test::contains;
using testing::element_conformance;

using Fp8AndBf16 = Mixed<Fp8E4M3, 32, Eigen::bfloat16>;
using Int8AndBf16 = Mixed<Int8, 33, Eigen::bfloat16>;
using Int4AndFloat = Mixed<Int4, 4, float>;
using HalfAndInt8 = Mixed<Eigen::half, 7, Int8>;
}  // namespace

TEMPLATE_TEST_CASE("An element type keeps the contract", "[element][contract]", float, Eigen::half, Eigen::bfloat16,
                   Int8, Fp8E4M3, Int4, None, Fixed, Fp8AndBf16, Int8AndBf16, Int4AndFloat, HalfAndInt8) {
  element_conformance<TestType>();
}

TEST_CASE("Rows of f16 have the numbers of Eigen::half, whatever their length", "[element]") {
  using Element = kvc::Element<Eigen::half>;
  const auto bits = [](Eigen::half x) { return Eigen::numext::bit_cast<std::uint16_t>(x); };
  for (std::uint32_t first = 0; first < 65536; first += 32) {  // all numbers; between neighbours, those that round
    for (kvc::Index dim = 1; dim <= 32; dim = dim < 9 ? dim + 1 : dim + 7) {
      std::array<Eigen::half, 33> row{};
      std::array<float, 33> read{}, numbers{};
      for (std::size_t d = 0; d < 33; ++d) {
        row[d] = Eigen::numext::bit_cast<Eigen::half>(static_cast<std::uint16_t>(first + d));
      }
      Element::decode(row.data(), dim, read.data());
      for (std::size_t d = 0; d < 33; ++d) {
        const auto expected = d < static_cast<std::size_t>(dim) ? static_cast<float>(row[d]) : 0.0F;
        REQUIRE((read[d] == expected || (std::isnan(read[d]) && std::isnan(expected))));
      }
      for (const float part : {0.0F, 0.25F, 0.5F, 0.75F}) {
        for (std::size_t d = 0; d < 32; ++d) {
          const auto a = static_cast<float>(row[d]), b = static_cast<float>(row[d + 1]);
          numbers[d] = part == 0.0F ? a : a + (b - a) * part;
        }
        std::array<Eigen::half, 33> written{};
        Element::encode(numbers.data(), dim, written.data());
        for (std::size_t d = 0; d < 33; ++d) {
          const auto expected = d < static_cast<std::size_t>(dim) ? Eigen::half(numbers[d]) : Eigen::half(0.0F);
          REQUIRE((bits(written[d]) == bits(expected) ||
                   (std::isnan(numbers[d]) && std::isnan(static_cast<float>(written[d])))));
        }
      }
    }
  }
}

TEST_CASE("The error of an element type may be stated beside it", "[element][contract]") {
  element_conformance<Unstated>([](const float*, Index) { return 0.0F; });
}

TEST_CASE("An element type that breaks the contract is found", "[element][contract]") {
  REQUIRE_THROWS_WITH(element_conformance<Truncated>(), contains("where max_error is 0.00195"));
  REQUIRE_THROWS_WITH(element_conformance<TooLong>(), contains("encode writes beyond the row_size units"));
  REQUIRE_THROWS_WITH(element_conformance<TooShort>(), contains("encode leaves a part of the row as it was at dim 3"));
  REQUIRE_THROWS_WITH(element_conformance<Overrun>(), contains("decode writes beyond the dim elements"));
  REQUIRE_THROWS_WITH(element_conformance<NoPrefix>(),
                      contains("the first 1 elements are read as other numbers alone"));
  REQUIRE_THROWS_WITH(element_conformance<Longer>(), contains("decode_prefix writes beyond"));
  REQUIRE_THROWS_WITH(element_conformance<Int8>([](const float*, Index) { return 1e-6F; }),
                      contains("element type int8 breaks its contract: decode gives"));
}

TEST_CASE("A mixed row is a row of its first part and one of the rest", "[element]") {
  using Mla = Mixed<Fp8E4M3, 512, Eigen::bfloat16>;
  REQUIRE(Element<Mla>::name == "fp8:512+bf16");
  REQUIRE(Element<Mla>::row_size(576) * Index{sizeof(StorageOf<Mla>)} == 512 + 64 * 2);
  REQUIRE(Element<Mixed<Int8, 512, Eigen::bfloat16>>::row_size(576) * Index{sizeof(StorageOf<Mla>)} == 512 + 4 + 128);
  REQUIRE(Element<Int8AndBf16>::name == "int8:33+bf16");

  std::vector<float> row(40), back(40), first(33), rest(7);
  for (std::size_t d = 0; d < row.size(); ++d) {
    row[d] = static_cast<float>(d) * 0.37F - 5;
  }
  std::vector<StorageOf<Int8AndBf16>> stored(static_cast<std::size_t>(Element<Int8AndBf16>::row_size(40)));
  Element<Int8AndBf16>::encode(row.data(), 40, stored.data());
  Element<Int8AndBf16>::decode(stored.data(), 40, back.data());
  std::vector<std::uint8_t> codes(static_cast<std::size_t>(Element<Int8>::row_size(33)));
  Element<Int8>::encode(row.data(), 33, codes.data());
  Element<Int8>::decode(codes.data(), 33, first.data());
  for (std::size_t d = 0; d < rest.size(); ++d) {
    rest[d] = static_cast<float>(Eigen::bfloat16(row[33 + d]));
  }
  REQUIRE(std::equal(first.begin(), first.end(), back.begin()));
  REQUIRE(std::equal(rest.begin(), rest.end(), back.begin() + 33));
}

TEST_CASE("A cache of None counts as any other and has no memory", "[element]") {
  KvCache<None, Paged> cache({.layers = 3, .kv_heads = 2, .key_dim = 5}, {.blocks = 4, .block_tokens = 4});
  REQUIRE(cache.layout().size() == 0);
  REQUIRE(cache.bytes_per_token() == 0);
  const SeqId seq = cache.open();
  auto step = cache.extend(seq, 6);
  const std::vector<float> rows(6 * 10, 1.0F);
  cache.write(0, step, {rows.data(), 6, 10}, {rows.data(), 6, 10});
  REQUIRE_THROWS_WITH(cache.write(0, step, {rows.data(), 6, 9}, {rows.data(), 6, 10}), contains("k is [6, 9]"));
  cache.write(1, step, {rows.data(), 6, 10}, {rows.data(), 6, 10});
  cache.write(2, step, {rows.data(), 6, 10}, {rows.data(), 6, 10});
  cache.commit(std::move(step));
  const SeqId child = cache.fork(seq, 5);
  cache.commit(cache.extend(child, 2));  // copies a shared tail of no bytes
  REQUIRE(cache.length(child) == 7);
  REQUIRE(cache.stats().blocks_free == 1);
  REQUIRE_FALSE(cache.try_extend(seq, 8));
  std::vector<float> k(10), v(10);
  cache.gather(0, seq, {5, 6}, {k.data(), 1, 10}, {v.data(), 1, 10});
  REQUIRE(std::isnan(k[0]));
  REQUIRE(std::isnan(v[9]));
  cache.verify();
}
