// The decode kernel for latent rows, run thread by thread on the CPU, against the definition of attention. Everything
// that no sequence retains is NaN.
#include "emulate_tiles.hpp"
// (first: it stands for CUDA)

#include <algorithm>

#include "catch.hpp"
#include "emulate_attention.hpp"
#include "group_case.hpp"
#include "kvc/element/float16.hpp"
#include "kvc/policy/contiguous.hpp"
#include "kvc/policy/paged.hpp"
#include "kvc/policy/prefix_shared.hpp"

namespace {

using namespace kvc_test;
namespace cuda = kvc::cuda;

/// The output of sequences [first, first + count) of a case.
template <class Case>
std::vector<std::byte> decode_latent(Case& c, std::size_t first, std::size_t count, bool share, std::vector<float>& lse,
                                     cuda::QueryRows which = cuda::QueryRows::last) {
  const kvc::BatchTables tables = c.tables_of(first, count);
  const Index rows = which == cuda::QueryRows::last ? static_cast<Index>(count) : tables.queries();
  const Index first_row = which == cuda::QueryRows::last ? static_cast<Index>(first) : c.tables.q_indptr[first];
  const std::vector<std::byte> q = c.q_rows(first_row, rows);
  std::vector<std::byte> out(c.out_bytes(rows), std::byte{0xff});
  lse.assign(static_cast<std::size_t>(rows * c.query_heads()), std::nanf(""));
  emulate_latent_decode<Case::query_format>(c.layer_view(), tables, static_cast<std::int32_t>(c.spec.group), q.data(),
                                            out.data(), c.options(), share, lse.data(), which);
  return out;
}

/// One case with one query row for each sequence: output and log-sum-exp are right, and rows have the bits that they
/// have alone.
template <class T, Format Q, class P = kvc::Paged, class L = kvc::HeadMajor>
void check(const GroupSpec& spec, const typename P::Config& config, float tolerance) {
  for (const bool late : {true, false}) {
    kvc_emulation::copies_are_late = late;
    GroupCase<T, P, L, Q> c(spec, config);
    std::vector<float> lse, expected_lse, alone_lse;
    const std::vector<std::byte> out = decode_latent(c, 0, c.steps.size(), true, lse);
    const float difference = c.difference(out, c.expected(expected_lse));
    CAPTURE(spec.group, spec.options.window, late, difference);
    REQUIRE(difference < tolerance);
    REQUIRE(lse_difference(lse, expected_lse) < 4e-6F);
    for (std::size_t b = 0; b < c.steps.size() && late; b += 2) {
      const std::vector<std::byte> alone = decode_latent(c, b, 1, false, alone_lse);
      const bool same =
          std::equal(alone.begin(), alone.end(), out.begin() + static_cast<std::ptrdiff_t>(c.out_bytes(Index(b))));
      REQUIRE(same);
    }
  }
  kvc_emulation::copies_are_late = true;
}

constexpr kvc::LayerKind of_deepseek{.kv_heads = 1, .key_dim = 576, .value_dim = 512, .latent = true};

}  // namespace

TEST_CASE("emulated decode of latent rows: 576 elements, groups of one tile, of several, and of parts of one",
          "[cuda][groups]") {
  GroupSpec spec;
  spec.kind = of_deepseek;
  spec.options.scale = 0.07F;
  spec.sequences = one_row_each({1, 33, 550});
  spec.group = 16;
  check<Eigen::bfloat16, Format::bf16>(spec, {.blocks = 80, .block_tokens = 16}, 2e-2F);
  spec.group = 128;
  spec.sequences = one_row_each({70, 32});
  check<Eigen::half, Format::f16, kvc::Paged, kvc::TokenMajor>(spec, {.blocks = 80, .block_tokens = 7}, 3e-3F);
  spec.group = 5;
  check<Eigen::bfloat16, Format::bf16, kvc::Contiguous>(spec, {.sequences = 2, .max_tokens = 80}, 2e-2F);
}

TEST_CASE("emulated decode of latent rows: other dims, several kv heads, windows, sinks and a softcap",
          "[cuda][groups]") {
  GroupSpec spec;
  spec.kind = {.kv_heads = 2, .key_dim = 72, .value_dim = 56, .window = 90, .latent = true};
  spec.options.scale = 0.1F;
  spec.options.window = 90;
  spec.options.softcap = 3.0F;
  spec.sinks = true;
  spec.group = 20;
  spec.sequences = one_row_each({1, 33, 600, 530});
  check<Eigen::half, Format::f16>(spec, {.blocks = 120, .block_tokens = 16}, 3e-3F);
}

TEST_CASE("emulated decode of latent rows: shared prefixes are read once, with the same bits", "[cuda][groups]") {
  GroupSpec spec;
  spec.kind = of_deepseek;
  spec.options.scale = 0.07F;
  spec.group = 16;
  spec.common = 512;
  spec.sequences = one_row_each({513, 520, 516, 514, 560});
  check<Eigen::bfloat16, Format::bf16, kvc::PrefixShared<>>(spec, {.blocks = 120, .block_tokens = 16}, 2e-2F);
}

TEST_CASE("emulated decode of latent rows: every row of a sequence", "[cuda][groups]") {
  GroupSpec spec;
  spec.kind = of_deepseek;
  spec.options.scale = 0.07F;
  spec.group = 16;
  spec.sequences = {{530, 5}, {40, 1}, {7, 7}};
  GroupCase<Eigen::bfloat16, kvc::Paged, kvc::HeadMajor, Format::bf16> c(spec, {.blocks = 80, .block_tokens = 16});
  std::vector<float> lse, expected_lse;
  const std::vector<std::byte> out = decode_latent(c, 0, 3, true, lse, cuda::QueryRows::every);
  REQUIRE(c.difference(out, c.expected(expected_lse)) < 2e-2F);
  REQUIRE(lse_difference(lse, expected_lse) < 4e-6F);
}
