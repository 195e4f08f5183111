// The prefill kernels, run thread by thread on the CPU, against the definition of attention.
#include "emulate_tiles.hpp"
// (first: it stands for CUDA)

#include <algorithm>
#include <limits>
#include <set>

#include "catch.hpp"
#include "emulate_attention.hpp"
#include "kvc/element/float16.hpp"
#include "kvc/element/quantized.hpp"
#include "kvc/layout/scale_planes.hpp"
#include "kvc/policy/contiguous.hpp"
#include "kvc/policy/paged.hpp"
#include "prefill_case.hpp"

namespace {

using namespace kvc_test;
namespace cuda = kvc::cuda;
using kvc::Pos;

/// Runs a kernel as cuda::prefill does. D: elements of a head of the fast kernel, 0 for the plain one.
template <int D, class T, class P, class L, Format Q>
std::vector<std::byte> run(PrefillCase<T, P, L, Q>& c, const kvc::BatchTables& tables, const std::vector<std::byte>& q,
                           std::vector<float>* lse = nullptr) {
  std::vector<std::byte> out(c.out_bytes(tables.queries()), std::byte{0xff});  // NaN
  if (lse != nullptr) {
    lse->assign(static_cast<std::size_t>(tables.queries() * c.query_heads()), std::nanf(""));
  }
  emulate_prefill<D, cuda::format_in<T, L>, Q>(c.layer_view(), tables, c.query_heads(), q.data(), out.data(),
                                               c.options(), lse == nullptr ? nullptr : lse->data());
  return out;
}

/// A case is right.
template <int D, class T, Format Q, class L = kvc::HeadMajor, class P = kvc::Paged>
void check(const PrefillSpec& spec, const typename P::Config& config, float tolerance) {
  PrefillCase<T, P, L, Q> c(spec, config);
  std::vector<float> lse;
  const std::vector<std::byte> out = run<D>(c, c.tables, c.q, &lse);
  std::vector<float> expected_lse;
  const float difference = c.difference(out, c.expected(&expected_lse));
  CAPTURE(D, spec.key_dim, spec.group, spec.options.window, difference);
  REQUIRE(difference < tolerance);
  REQUIRE(lse_difference(lse, expected_lse) < 4e-6F);
}

const PrefillSpec ragged{.group = 4, .sequences = {{0, 0}, {1, 1}, {70, 70}, {9, 0}, {65, 1}, {150, 40}}};

}  // namespace

TEST_CASE("tiles of queries cover every row once, and fit their slots", "[cuda]") {
  for (const int group : {1, 3, 4, 7, 8, 31, 33, 71, 128}) {
    const cuda::PrefillTiles tiles = cuda::make_prefill_tiles(group);
    CAPTURE(group);
    REQUIRE(tiles.heads.value() * tiles.positions.value() <= cuda::prefill_rows);
    REQUIRE(tiles.heads.value() * tiles.head_tiles >= group);
    REQUIRE(tiles.heads.value() * (tiles.head_tiles - 1) < group);
    const Pos positions = tiles.positions.value();
    for (const Pos start : {0, 1, positions - 1, positions, 5 * positions + 1}) {
      for (const Pos rows : {0, 1, 2, positions, positions + 1, 3 * positions}) {
        for (const Pos before : {0, 1, positions - 1, 7}) {  // rows of sequences before
          const auto slots = (before + rows) / positions - before / positions + 2;
          Pos covered = start + rows;
          for (Pos slot = 0; slot < slots; ++slot) {
            cuda::detail::QueryTile tile;
            if (cuda::detail::tile_at(tiles, slot, start, start + rows, tile)) {
              REQUIRE(tile.begin % positions == 0);
              REQUIRE(tile.begin <= tile.first);
              REQUIRE(tile.first < tile.last);
              REQUIRE(tile.last <= tile.begin + positions);
              REQUIRE(tile.last == covered);  // from the last to the first
              covered = tile.first;
            }
          }
          REQUIRE(covered == start);
        }
      }
    }
  }
  cuda::detail::QueryTile tile;  // the last positions there can be
  REQUIRE(cuda::detail::tile_at(cuda::make_prefill_tiles(1), 0, kvc::max_pos - 1, kvc::max_pos, tile));
  REQUIRE(tile.last == kvc::max_pos);
}

TEST_CASE("chunks that a warp reads or writes together lie in different banks", "[cuda]") {
  const auto check_dim = [](auto dim) {
    constexpr int Rows = 16, chunks = decltype(dim)::value / 8;
    for (int chunk = 0; chunk < chunks; ++chunk) {  // eight rows, one chunk
      std::set<int> banks;
      for (int row = 0; row < 8; ++row) {
        banks.insert(cuda::detail::chunk_offset<Rows>(row, chunk) / 16 % 8);
      }
      REQUIRE(banks.size() == 8);
    }
    std::set<int> places;  // eight chunks of one row, and no two at the same place
    for (int row = 0; row < Rows; ++row) {
      for (int first = 0; first < chunks; first += 8) {
        std::set<int> banks;
        for (int chunk = first; chunk < first + 8; ++chunk) {
          banks.insert(cuda::detail::chunk_offset<Rows>(row, chunk) / 16 % 8);
          places.insert(cuda::detail::chunk_offset<Rows>(row, chunk));
        }
        REQUIRE(banks.size() == 8);
      }
    }
    REQUIRE(places.size() == Rows * chunks);
    REQUIRE(*places.rbegin() == (Rows * chunks - 1) * 16);
  };
  check_dim(std::integral_constant<int, 64>{});
  check_dim(std::integral_constant<int, 128>{});
  check_dim(std::integral_constant<int, 192>{});
  check_dim(std::integral_constant<int, 256>{});
}

// Small whole numbers, so that every sum is exact, and each is told from each other.
TEST_CASE("emulated products of tiles in shared memory are those of matrices", "[cuda]") {
  constexpr int D = 128, keys = cuda::prefill_keys, rows = 32;
  const auto q_at = [](int row, int d) { return (row * 7 + d * 3) % 11 - 5; };
  const auto k_at = [](int key, int d) { return (key * 5 + d * 13) % 9 - 4; };
  const auto v_at = [](int key, int d) { return (key * 3 + d * 7) % 13 - 6; };
  const auto fill = [](std::byte* tile, auto tile_rows, auto at) {
    for (int row = 0; row < tile_rows; ++row) {
      for (int d = 0; d < D; ++d) {
        const std::uint16_t bits = to_half(Format::f16, static_cast<float>(at(row, d)));
        std::memcpy(tile + cuda::detail::chunk_offset<decltype(tile_rows)::value>(row, d / 8) + d % 8 * 2, &bits, 2);
      }
    }
  };
  std::byte* const shared = kvc_emulation::dynamic_shared();
  std::byte* const k_tile = shared + cuda::prefill_rows * D * 2;
  std::byte* const v_tile = k_tile + keys * D * 2;
  fill(shared, std::integral_constant<int, cuda::prefill_rows>{}, q_at);
  fill(k_tile, std::integral_constant<int, keys>{}, k_at);
  fill(v_tile, std::integral_constant<int, keys>{}, v_at);

  std::vector<float> s(cuda::prefill_rows * keys), o(cuda::prefill_rows * D);
  const auto require_products = [&](int of_rows) {
    for (int row = 0; row < of_rows; ++row) {
      for (int key = 0; key < keys; ++key) {
        int sum = 0;
        for (int d = 0; d < D; ++d) {
          sum += q_at(row, d) * k_at(key, d);
        }
        REQUIRE(s[static_cast<std::size_t>(row * keys + key)] == static_cast<float>(sum));
      }
      for (int d = 0; d < D; ++d) {
        int sum = 0;
        for (int key = 0; key < keys; ++key) {
          sum += static_cast<int>(s[static_cast<std::size_t>(row * keys + key)]) % 7 * v_at(key, d);
        }
        REQUIRE(o[static_cast<std::size_t>(row * D + d)] == static_cast<float>(sum));
      }
    }
  };
  using namespace cuda::detail;
  using kvc::cuda::device::shared_address;
  // The scores, and the outputs, that a lane holds of 16 rows from `row` on.
  const auto take_scores = [&](int row, float(&scores)[keys / 8][4]) {
    const int lane = static_cast<int>(threadIdx.x % 32U), g = lane / 4, t = lane % 4;
    for (int n = 0; n < keys / 8; ++n) {
      for (int i = 0; i < 4; ++i) {
        s[static_cast<std::size_t>((row + g + 8 * (i / 2)) * keys + 8 * n + 2 * t + i % 2)] = scores[n][i];
        scores[n][i] = std::fmod(scores[n][i], 7.0F);  // f16 has it
      }
    }
  };
  const auto take_output = [&](int row, const float(&output)[D / 8][4]) {
    const int lane = static_cast<int>(threadIdx.x % 32U), g = lane / 4, t = lane % 4;
    for (int n = 0; n < D / 8; ++n) {
      for (int i = 0; i < 4; ++i) {
        o[static_cast<std::size_t>((row + g + 8 * (i / 2)) * D + 8 * n + 2 * t + i % 2)] = output[n][i];
      }
    }
  };
  kvc_emulation::launch({}, 32, [&] {
    const Fragments<cuda::prefill_rows> q(shared_address(shared), true);
    const Fragments<keys> k(shared_address(k_tile), false), v(shared_address(v_tile), true);
    float scores[2][keys / 8][4];
    multiply_keys<Format::f16, D>(q, k, scores);
    RowState<D, 2> state{};
    take_scores(0, scores[0]);
    take_scores(16, scores[1]);
    REQUIRE_FALSE((multiply_values<Format::f16, true>(v, scores, state)));
    take_output(0, state.o[0]);
    take_output(16, state.o[1]);
  });
  require_products(rows);
}

TEST_CASE("emulated plain prefill: all formats, any extents", "[cuda]") {
  PrefillSpec spec{
      .kv_heads = 2, .group = 3, .key_dim = 13, .value_dim = 37, .sequences = {{0, 0}, {1, 1}, {40, 9}, {7, 7}}};
  check<0, float, Format::f32>(spec, {.blocks = 40, .block_tokens = 5}, 2e-6F);
  check<0, float, Format::f32, kvc::TokenMajor, kvc::Contiguous>(spec, {.sequences = 4, .max_tokens = 60}, 2e-6F);
  check<0, Eigen::half, Format::f16>(spec, {.blocks = 40, .block_tokens = 5}, 3e-3F);
  check<0, Eigen::bfloat16, Format::bf16>(spec, {.blocks = 40, .block_tokens = 5}, 2e-2F);
  check<0, kvc::Int8, Format::f32>(spec, {.blocks = 40, .block_tokens = 5}, 2e-6F);
  check<0, kvc::Fp8E4M3, Format::bf16>(spec, {.blocks = 40, .block_tokens = 5}, 2e-2F);
  spec.options = {.scale = -0.3F, .causal = false, .window = 6, .softcap = 0.7F};
  check<0, float, Format::f32>(spec, {.blocks = 40, .block_tokens = 5}, 2e-6F);
}

TEST_CASE("emulated prefill: a ragged batch with cached prefixes", "[cuda]") {
  for (const bool late : {true, false}) {
    for (const bool last_warp_first : {true, false}) {
      kvc_emulation::copies_are_late = late;
      kvc_emulation::Block::last_warp_first = last_warp_first;
      check<64, Eigen::bfloat16, Format::bf16>(ragged, {.blocks = 40, .block_tokens = 16}, 2e-2F);
    }
  }
  kvc_emulation::copies_are_late = true;
}

TEST_CASE("emulated prefill: of a contiguous cache, and of blocks of seven", "[cuda]") {
  PrefillSpec spec{.kv_heads = 1, .group = 3, .sequences = {{130, 40}, {20, 20}}};
  check<64, Eigen::half, Format::f16, kvc::TokenMajor, kvc::Contiguous>(spec, {.sequences = 2, .max_tokens = 140},
                                                                        3e-3F);
  check<64, Eigen::half, Format::f16, kvc::TokenMajor>(spec, {.blocks = 40, .block_tokens = 7}, 3e-3F);
}

TEST_CASE("emulated prefill: heads of other than 64 elements, and values of other extents than keys", "[cuda]") {
  PrefillSpec spec{.kv_heads = 1, .group = 4, .key_dim = 128, .value_dim = 96, .sequences = {{70, 33}}};
  check<128, Eigen::bfloat16, Format::bf16>(spec, {.blocks = 12, .block_tokens = 16}, 2e-2F);
  spec.key_dim = 72;
  spec.value_dim = 128;
  check<128, Eigen::half, Format::f16>(spec, {.blocks = 12, .block_tokens = 16}, 3e-3F);
  spec.key_dim = spec.value_dim = 192;
  check<192, Eigen::bfloat16, Format::bf16>(spec, {.blocks = 12, .block_tokens = 16}, 2e-2F);
  spec.key_dim = 256;
  spec.value_dim = 208;
  check<256, Eigen::half, Format::f16>(spec, {.blocks = 12, .block_tokens = 16}, 3e-3F);
}

TEST_CASE("emulated prefill: groups of one, of many heads, and of more than a tile takes", "[cuda]") {
  for (const Index group : {1, 5, 33}) {
    const PrefillSpec spec{.kv_heads = 2, .group = group, .sequences = {{40, 12}, {3, 3}}};
    check<64, Eigen::half, Format::f16>(spec, {.blocks = 12, .block_tokens = 16}, 3e-3F);
  }
}

TEST_CASE("emulated prefill: windows, softcap, scales, and rows that see what comes after", "[cuda]") {
  PrefillSpec spec{.kv_heads = 1, .group = 4, .sequences = {{200, 90}, {70, 70}}};
  for (const Pos window : {1, 20, 64, 150}) {
    spec.options = {.window = window, .softcap = window == 20 ? 1.5F : 0.0F};
    check<64, Eigen::half, Format::f16>(spec, {.blocks = 40, .block_tokens = 16}, 3e-3F);
  }
  spec.options = {.scale = 3.0F, .causal = false};
  check<64, Eigen::half, Format::f16>(spec, {.blocks = 40, .block_tokens = 16}, 4e-3F);
  spec.options = {.causal = false, .window = 30};
  check<64, Eigen::half, Format::f16>(spec, {.blocks = 40, .block_tokens = 16}, 3e-3F);
}

TEST_CASE("emulated prefill: a row has the same bits in every batch and chunk, and wherever its keys lie", "[cuda]") {
  for (const Pos window : {0, 37}) {
    PrefillSpec spec = ragged;
    spec.options.window = window;
    PrefillCase<Eigen::bfloat16, kvc::Paged, kvc::HeadMajor, Format::bf16> c(spec, {.blocks = 40, .block_tokens = 16});
    const std::vector<std::byte> all = run<64>(c, c.tables, c.q);
    for (std::size_t b = 0; b < c.sequences.size(); ++b) {
      for (const Pos rows : std::set<Pos>{c.queries[b], c.queries[b] / 3, std::min(c.queries[b], 1)}) {
        CAPTURE(b, rows, window);
        const kvc::BatchTables alone = c.tables_of({c.sequences[b]}, {rows});
        const Index first = c.tables.q_indptr[b + 1] - rows;
        const std::vector<std::byte> same = run<64>(c, alone, c.q_rows(first, rows));
        REQUIRE(std::equal(same.begin(), same.end(), all.begin() + static_cast<std::ptrdiff_t>(c.out_bytes(first))));
      }
    }
    // A chunk that ends before the sequence will: the rest does not exist yet.
    const std::size_t b = 2;
    c.cache.truncate(c.sequences[b], 41);
    const std::vector<std::byte> same =
        run<64>(c, c.tables_of({c.sequences[b]}, {30}), c.q_rows(c.tables.q_indptr[b] + 11, 30));
    REQUIRE(std::equal(same.begin(), same.end(),
                       all.begin() + static_cast<std::ptrdiff_t>(c.out_bytes(c.tables.q_indptr[b] + 11))));

    PrefillCase<Eigen::bfloat16, kvc::Contiguous, kvc::TokenMajor, Format::bf16> elsewhere(
        spec, {.sequences = 6, .max_tokens = 150});
    const bool equal = run<64>(elsewhere, elsewhere.tables, elsewhere.q) == all;
    REQUIRE(equal);
  }
}

TEST_CASE("emulated prefill: what a row does not see is not noticed, infinite or NaN", "[cuda]") {
  for (const Pos window : {0, 10}) {
    const PrefillSpec spec{.kv_heads = 1, .group = 4, .sequences = {{100, 60}}, .options = {.window = window}};
    PrefillCase<Eigen::half, kvc::Paged, kvc::HeadMajor, Format::f16> c(spec, {.blocks = 12, .block_tokens = 16});
    const std::vector<std::byte> before = run<64>(c, c.tables, c.q);
    c.value_row(0, 0, 70)[5] = Eigen::half(std::numeric_limits<float>::infinity());
    c.value_row(0, 0, 80)[6] = Eigen::half(std::numeric_limits<float>::quiet_NaN());
    c.value_row(0, 0, 96)[5] = Eigen::half(-std::numeric_limits<float>::infinity());
    const std::vector<std::byte> after = run<64>(c, c.tables, c.q);
    CAPTURE(window);
    REQUIRE(c.difference(after, c.expected()) < 3e-3F);
    // Rows that do not see them have the bits that they had.
    const auto unharmed = static_cast<std::ptrdiff_t>(c.out_bytes(70 - 40));
    REQUIRE(std::equal(before.begin(), before.begin() + unharmed, after.begin()));
    const bool noticed = before != after;
    REQUIRE(noticed);
  }
}

TEST_CASE("emulated prefill: rows of bytes become 16-bit elements in shared memory", "[cuda]") {
  for (const bool last_warp_first : {true, false}) {
    kvc_emulation::Block::last_warp_first = last_warp_first;
    check<64, kvc::Fp8E4M3, Format::f16>(ragged, {.blocks = 40, .block_tokens = 16}, 3e-3F);
    check<64, kvc::Int8, Format::f16, kvc::TokenMajor>(ragged, {.blocks = 90, .block_tokens = 7}, 2e-2F);
  }
  PrefillSpec spec{.kv_heads = 2, .group = 3, .key_dim = 72, .value_dim = 104, .sequences = {{130, 40}, {20, 20}}};
  spec.options = {.window = 50, .softcap = 1.5F};
  check<128, kvc::Fp8E4M3, Format::bf16>(spec, {.blocks = 20, .block_tokens = 16}, 2e-2F);
  check<128, kvc::Int8, Format::bf16, kvc::TokenMajor, kvc::Contiguous>(spec, {.sequences = 2, .max_tokens = 140},
                                                                        2e-2F);
  // Scales in planes change no bit.
  using Planes = kvc::ScalePlanes<kvc::HeadMajor>;
  PrefillCase<kvc::Int8, kvc::Paged, Planes, Format::bf16> planes(spec, {.blocks = 20, .block_tokens = 16});
  PrefillCase<kvc::Int8, kvc::Paged, kvc::HeadMajor, Format::bf16> rows(spec, {.blocks = 20, .block_tokens = 16});
  REQUIRE(planes.q == rows.q);
  const bool same = run<128>(planes, planes.tables, planes.q) == run<128>(rows, rows.tables, rows.q);
  const bool same_plain = run<0>(planes, planes.tables, planes.q) == run<0>(rows, rows.tables, rows.q);
  REQUIRE((same && same_plain));
}

TEST_CASE("emulated prefill: scales of rows that a row does not see are not noticed, even NaN", "[cuda]") {
  const PrefillSpec spec{.kv_heads = 1, .group = 4, .sequences = {{100, 60}}};
  PrefillCase<kvc::Int8, kvc::Paged, kvc::HeadMajor, Format::f16> c(spec, {.blocks = 12, .block_tokens = 16});
  const std::vector<std::byte> before = run<64>(c, c.tables, c.q);
  const std::vector<std::byte> alone = run<64>(c, c.tables_of(c.sequences, {20}), c.q_rows(40, 20));
  REQUIRE(std::equal(alone.begin(), alone.end(), before.begin() + static_cast<std::ptrdiff_t>(c.out_bytes(40))));
  const float nan = std::numeric_limits<float>::quiet_NaN();
  std::memcpy(c.value_row(0, 0, 70) + 64, &nan, 4);
  const std::vector<std::byte> after = run<64>(c, c.tables, c.q);
  REQUIRE(c.difference(after, c.expected()) < 2e-2F);
  const auto unharmed = static_cast<std::ptrdiff_t>(c.out_bytes(70 - 40));
  REQUIRE(std::equal(before.begin(), before.begin() + unharmed, after.begin()));
  const bool noticed = before != after;
  REQUIRE(noticed);
}

TEST_CASE("emulated prefill: large logits lose no precision", "[cuda]") {
  for (const float deviation : {10.0F, 20.0F}) {  // see the same test of decode
    const PrefillSpec spec = large_logits(deviation);
    check<128, Eigen::bfloat16, Format::bf16>(spec, {.blocks = 13, .block_tokens = 16}, 2e-2F);
    check<128, Eigen::half, Format::f16>(spec, {.blocks = 13, .block_tokens = 16}, 3e-3F);
    check<0, kvc::Int8, Format::bf16>(spec, {.blocks = 13, .block_tokens = 16}, 2e-2F);
    check<128, kvc::Int8, Format::bf16>(spec, {.blocks = 13, .block_tokens = 16},
                                        3e-2F);  // weights times scales are bf16
  }
}
