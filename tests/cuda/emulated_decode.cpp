// The decode kernels, run thread by thread on the CPU, against the definition of attention.
#include "emulate_tiles.hpp"
// (first: it stands for CUDA)

#include <algorithm>

#include "catch.hpp"
#include "decode_case.hpp"
#include "emulate_attention.hpp"
#include "kvc/element/float16.hpp"
#include "kvc/element/quantized.hpp"
#include "kvc/layout/layer_major.hpp"
#include "kvc/layout/scale_planes.hpp"
#include "kvc/policy/contiguous.hpp"
#include "kvc/policy/paged.hpp"
#include "prefill_case.hpp"
#include "random_source.hpp"

namespace {

using namespace kvc_test;
namespace cuda = kvc::cuda;

constexpr std::uint16_t poison = 0xffff;  // NaN in both formats

/// Runs the kernels as cuda::decode does, for the sequences of `tables`.
template <int D, int N, int Wide, class T, class P, class L, Format Q>
std::vector<std::uint16_t> run(DecodeCase<T, P, L, Q>& c, const kvc::BatchTables& tables,
                               const std::vector<std::uint16_t>& q, bool share, std::vector<float>* lse = nullptr) {
  std::vector<std::uint16_t> out(q.size(), poison);
  if (lse != nullptr) {
    lse->assign(static_cast<std::size_t>(tables.size() * c.query_heads()), std::nanf(""));
  }
  emulate_decode<D, N, Wide, cuda::format_in<T, L>, Q>(
      c.layer_view(), tables, static_cast<std::int32_t>(c.spec.group), reinterpret_cast<const std::byte*>(q.data()),
      reinterpret_cast<std::byte*>(out.data()), c.options(), share, lse == nullptr ? nullptr : lse->data());
  return out;
}

/// One case: output and log-sum-exp are right, and sequences have the bits that they have alone.
template <int D, int N, int Wide, class T, Format Q, class P, class L>
void check(const DecodeSpec& spec, const typename P::Config& config, float tolerance) {
  DecodeCase<T, P, L, Q> c(spec, config);
  std::vector<float> lse;
  const std::vector<std::uint16_t> out = run<D, N, Wide>(c, c.tables, c.q, true, &lse);
  std::vector<float> expected_lse;
  const float difference = largest_difference(Q, out, c.expected(&expected_lse));
  CAPTURE(spec.dim, spec.group, spec.window, difference);
  REQUIRE(difference < tolerance);
  REQUIRE(lse_difference(lse, expected_lse) < 4e-6F);
  const auto width = static_cast<std::size_t>(c.query_heads() * spec.dim);
  // Fewer of them where KVC_TEST_CASES says so.
  const auto step = static_cast<std::size_t>(std::max(1, 100 / cases_or(100)));
  for (std::size_t b = 0; b < c.sequences.size(); b += step) {
    CAPTURE(b);
    const std::vector<Pos> one(1, 1);
    const kvc::BatchTables alone =
        kvc::make_tables(c.cache.policy(), std::span(c.sequences).subspan(b, 1), std::span<const Pos>(one));
    const std::vector<std::uint16_t> q(c.q.begin() + static_cast<std::ptrdiff_t>(b * width),
                                       c.q.begin() + static_cast<std::ptrdiff_t>((b + 1) * width));
    const std::vector<std::uint16_t> same = run<D, N, Wide>(c, alone, q, false);
    REQUIRE(std::equal(same.begin(), same.end(), out.begin() + static_cast<std::ptrdiff_t>(b * width)));
  }
}

using Head = kvc::HeadMajor;
using Token = kvc::TokenMajor;

}  // namespace

TEST_CASE("emulated decode: bf16 over blocks, with empty and one-token sequences", "[cuda]") {
  check<64, 1, 4, Eigen::bfloat16, Format::bf16, kvc::Paged, Head>(
      {.group = 4, .lengths = {0, 1, 15, 16, 65, 300, 512, 513}}, {.blocks = 200, .block_tokens = 16}, 2e-2F);
}

TEST_CASE("emulated decode: f16 over blocks of seven, token-major, dim 96 of 128, group of one", "[cuda]") {
  check<128, 1, 4, Eigen::half, Format::f16, kvc::Paged, Token>({.group = 1, .dim = 96, .lengths = {0, 1, 200, 530}},
                                                                {.blocks = 200, .block_tokens = 7}, 3e-3F);
}

TEST_CASE("emulated decode: fp8 of a contiguous cache, queries in bf16 of any size", "[cuda]") {
  for (const float scale : {1.0F, 1e-6F, 1e6F}) {
    check<64, 1, 2, kvc::Fp8E4M3, Format::bf16, kvc::Contiguous, Head>(
        {.kv_heads = 1, .group = 8, .lengths = {70, 1, 600}, .query_scale = scale}, {.sequences = 3, .max_tokens = 700},
        3e-2F);
  }
}

TEST_CASE("emulated decode: a policy without block tables", "[cuda]") {
  check<64, 1, 2, Eigen::half, Format::f16, Untabled, Head>(
      {.kv_heads = 1, .lengths = {3, 600}, .prefix = 520, .sharers = {1, 9}}, {.blocks = 400, .block_tokens = 5},
      3e-3F);
}

TEST_CASE("emulated decode: fp8 with queries in f16, dim 128", "[cuda]") {
  check<128, 1, 1, kvc::Fp8E4M3, Format::f16, kvc::Paged, Head>(
      {.kv_heads = 1, .group = 2, .dim = 128, .lengths = {33, 700}}, {.blocks = 60, .block_tokens = 16}, 3e-3F);
}

TEST_CASE("emulated decode: int8, whose rows are not aligned, dim 104 of 128", "[cuda]") {
  check<128, 1, 2, kvc::Int8, Format::bf16, kvc::Paged, Head>({.group = 4, .dim = 104, .lengths = {1, 31, 520}},
                                                              {.blocks = 60, .block_tokens = 16}, 2e-2F);
  check<64, 1, 2, kvc::Int8, Format::f16, kvc::Paged, Token>({.kv_heads = 3, .group = 3, .lengths = {64, 7}},
                                                             {.blocks = 60, .block_tokens = 3}, 1e-2F);
}

// Whether scales lie in rows or in planes, and whether rows are loaded 16 bytes at a time, changes no bit.
TEST_CASE("emulated decode: int8 with scales in planes has the bits of int8 with scales in rows", "[cuda]") {
  const auto both = [](const DecodeSpec& spec, auto dim, const kvc::Paged::Config& config) {
    constexpr int D = decltype(dim)::value;
    using Planes = kvc::ScalePlanes<kvc::HeadMajor>;
    check<D, 1, D <= 128 ? 2 : 1, kvc::Int8, Format::bf16, kvc::Paged, Planes>(spec, config, 2e-2F);
    DecodeCase<kvc::Int8, kvc::Paged, Planes, Format::bf16> planes(spec, config);
    DecodeCase<kvc::Int8, kvc::Paged, kvc::HeadMajor, Format::bf16> rows(spec, config);
    REQUIRE(planes.q == rows.q);
    REQUIRE(run<D, 1, 1>(planes, planes.tables, planes.q, true) == run<D, 1, 1>(rows, rows.tables, rows.q, true));
  };
  both({.group = 4, .lengths = {1, 31, 520}}, std::integral_constant<int, 64>{}, {.blocks = 60, .block_tokens = 16});
  both({.kv_heads = 1, .group = 3, .dim = 128, .lengths = {300, 64}}, std::integral_constant<int, 128>{},
       {.blocks = 60, .block_tokens = 16});
  both({.kv_heads = 1, .group = 3, .dim = 104, .lengths = {90}}, std::integral_constant<int, 128>{},
       {.blocks = 60, .block_tokens = 7});
  both({.kv_heads = 1, .group = 3, .dim = 192, .lengths = {90}}, std::integral_constant<int, 192>{},
       {.blocks = 60, .block_tokens = 16});
  both({.kv_heads = 1, .group = 3, .dim = 256, .lengths = {90}}, std::integral_constant<int, 256>{},
       {.blocks = 60, .block_tokens = 16});
  check<64, 1, 2, kvc::Int8, Format::f16, kvc::Contiguous, kvc::ScalePlanes<kvc::LayerMajor<kvc::TokenMajor>>>(
      {.kv_heads = 1, .group = 8, .lengths = {70, 1}}, {.sequences = 2, .max_tokens = 100}, 1e-2F);
}

TEST_CASE("emulated decode: dims 192 and 256", "[cuda]") {
  check<192, 1, 1, Eigen::bfloat16, Format::bf16, kvc::Paged, Head>(
      {.kv_heads = 1, .group = 5, .dim = 192, .lengths = {40, 1}}, {.blocks = 60, .block_tokens = 16}, 2e-2F);
  check<256, 1, 1, Eigen::half, Format::f16, kvc::Paged, Head>({.kv_heads = 1, .group = 8, .dim = 256, .lengths = {90}},
                                                               {.blocks = 60, .block_tokens = 16}, 3e-3F);
}

TEST_CASE("emulated decode: groups of more heads than a tile has columns", "[cuda]") {
  check<64, 2, 4, Eigen::bfloat16, Format::bf16, kvc::Paged, Head>({.kv_heads = 1, .group = 12, .lengths = {100, 1}},
                                                                   {.blocks = 60, .block_tokens = 16}, 2e-2F);
  check<64, 4, 4, Eigen::bfloat16, Format::bf16, kvc::Paged, Head>({.kv_heads = 1, .group = 71, .lengths = {100, 520}},
                                                                   {.blocks = 60, .block_tokens = 16}, 2e-2F);
}

TEST_CASE("emulated decode: windows and softcap", "[cuda]") {
  for (const Pos window : {1, 100, 512, 700}) {
    check<64, 1, 2, Eigen::half, Format::f16, kvc::Paged, Head>({.kv_heads = 1,
                                                                 .group = 4,
                                                                 .lengths = {1, 90, 650, 1300},
                                                                 .window = window,
                                                                 .softcap = window == 100 ? 2.0F : 0.0F},
                                                                {.blocks = 200, .block_tokens = 16}, 3e-3F);
  }
}

TEST_CASE("emulated decode: shared prefixes are read once, with the same bits", "[cuda]") {
  const DecodeSpec spec{.kv_heads = 1,
                        .group = 4,
                        .lengths = {600, 3},
                        .prefix = 1030,
                        .sharers = {0, 1, 40, 600, 5, 9, 2, 3, 17, 1, 1, 1}};
  check<64, 1, 4, Eigen::bfloat16, Format::bf16, kvc::Paged, Head>(spec, {.blocks = 500, .block_tokens = 16}, 2e-2F);
  DecodeSpec windowed = spec;
  windowed.window = 1100;
  check<64, 1, 4, Eigen::half, Format::f16, kvc::Paged, Head>(windowed, {.blocks = 500, .block_tokens = 16}, 3e-3F);
  check<64, 1, 1, kvc::Int8, Format::bf16, kvc::Paged, Head>(spec, {.blocks = 500, .block_tokens = 16}, 2e-2F);
}

TEST_CASE("emulated decode: every row of a sequence, each with the bits that it has as the last one", "[cuda]") {
  for (const Pos window : {0, 700}) {
    const PrefillSpec spec{.kv_heads = 1,
                           .group = 4,
                           .sequences = {{1300, 9}, {514, 4}, {7, 7}, {40, 0}, {600, 1}},
                           .options = {.window = window}};
    PrefillCase<Eigen::bfloat16, kvc::Paged, Head, Format::bf16> c(spec, {.blocks = 200, .block_tokens = 16});
    std::vector<float> lse(static_cast<std::size_t>(c.tables.queries() * c.query_heads()), std::nanf(""));
    const auto decode = [&](const kvc::BatchTables& tables, const std::vector<std::byte>& q, float* sums,
                            cuda::QueryRows which) {
      std::vector<std::byte> out(q.size(), std::byte{0xff});
      emulate_decode<64, 1, 4, Format::bf16, Format::bf16>(c.layer_view(), tables, 4, q.data(), out.data(), c.options(),
                                                           true, sums, which);
      return out;
    };
    const std::vector<std::byte> out = decode(c.tables, c.q, lse.data(), cuda::QueryRows::every);
    std::vector<float> expected_lse;
    CAPTURE(window);
    REQUIRE(c.difference(out, c.expected(&expected_lse)) < 2e-2F);
    REQUIRE(lse_difference(lse, expected_lse) < 4e-6F);
    for (const std::size_t b : {std::size_t{0}, std::size_t{1}, std::size_t{2}}) {
      for (Pos i = 0; i < c.queries[b]; i += 3) {
        kvc::BatchTables alone = c.tables_of({c.sequences[b]}, {1});
        alone.seq_lens[0] -= c.queries[b] - 1 - i;  // as if the rows behind did not exist yet
        const Index row = c.tables.q_indptr[b] + i;
        const std::vector<std::byte> same = decode(alone, c.q_rows(row, 1), nullptr, cuda::QueryRows::last);
        CAPTURE(b, i);
        REQUIRE(std::equal(same.begin(), same.end(), out.begin() + static_cast<std::ptrdiff_t>(c.out_bytes(row))));
      }
    }
  }
}

// The scale of dim 128 is not a power of two. Multiplied into the queries before they are 16-bit elements, it would add
// a relative error of 2^-9 to logits of up to 80. The log-sum-exp, which is not rounded, would show that.
TEST_CASE("emulated decode: large logits lose no precision", "[cuda]") {
  for (const float deviation : {10.0F, 20.0F}) {
    const DecodeSpec spec{
        .kv_heads = 1, .group = 8, .dim = 128, .lengths = {200, 90}, .query_scale = deviation, .seed = 5};
    check<128, 1, 1, Eigen::bfloat16, Format::bf16, kvc::Paged, Head>(spec, {.blocks = 30, .block_tokens = 16}, 2e-2F);
    check<128, 1, 1, Eigen::half, Format::f16, kvc::Paged, Head>(spec, {.blocks = 30, .block_tokens = 16}, 3e-3F);
    check<128, 1, 1, kvc::Fp8E4M3, Format::f16, kvc::Paged, Head>(spec, {.blocks = 30, .block_tokens = 16}, 3e-3F);
    check<128, 1, 1, kvc::Int8, Format::bf16, kvc::Paged, Head>(spec, {.blocks = 30, .block_tokens = 16}, 2e-2F);
  }
}
