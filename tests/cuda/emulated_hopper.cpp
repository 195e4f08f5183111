// The prefill kernel for Hopper, run thread by thread on the CPU: its rings and barriers, boxes, descriptors and
// products, against the definition of attention.
#include "emulate_hopper.hpp"
// (first: it stands for CUDA)

#include <algorithm>
#include <limits>

#include "catch.hpp"
#include "group_case.hpp"
#include "kvc/cuda/prefill_arguments.cuh"
#include "kvc/cuda/prefill_hopper.cuh"
#include "kvc/cuda/tma_boxes.hpp"
#include "kvc/element/float16.hpp"
#include "kvc/policy/contiguous.hpp"
#include "kvc/policy/paged.hpp"
#include "prefill_case.hpp"

namespace {

using namespace kvc_test;
namespace cuda = kvc::cuda;
using kvc::Pos;

kvc_emulation::TensorMap map_of(std::byte* pool, const cuda::detail::TmaTensor& rows) {
  return {pool + rows.base, rows.extents, rows.strides, rows.box};
}

/// Runs the kernel as cuda::prefill does; `boxes` false: as it does where there are none.
template <int D, int V = D, class Case>
std::vector<std::byte> run(Case& c, const kvc::BatchTables& tables, const std::vector<std::byte>& q, bool boxes = true,
                           std::vector<float>* lse = nullptr) {
  using T = typename Case::Cache::Element;
  constexpr cuda::Format F = cuda::format_of<T>;
  using Traits = cuda::detail::HopperTraits<D, V>;
  const HostBatch batch(tables);
  std::vector<std::byte> out(c.out_bytes(tables.queries()), std::byte{0xff});  // NaN
  if (lse != nullptr) {
    lse->assign(static_cast<std::size_t>(tables.queries() * c.query_heads()), std::nanf(""));
  }
  const cuda::PrefillArguments<F> a =
      cuda::detail::prefill_arguments(c.layer_view(), batch.view, c.query_heads(), q.data(), out.data(),
                                      lse == nullptr ? nullptr : lse->data(), c.options());
  std::byte* const pool = reinterpret_cast<std::byte*>(c.cache.data());
  cuda::PrefillTensorMaps maps{};
  if (boxes) {
    maps.box = cuda::detail::tma_box_slots(a.kv.blocks, a.kv.block_slots, Traits::keys);
    const auto of = [&](const cuda::RowStrides& rows, std::int32_t dim) {
      const auto boxed = cuda::detail::tma_tensor(rows, dim, a.kv.kv_heads, a.kv.blocks, a.kv.block_slots, maps.box);
      REQUIRE(boxed);
      maps.token_major = boxed->token_major;
      return map_of(pool, *boxed);
    };
    maps.k = of(a.kv.k, a.kv.key_dim);
    maps.v = of(a.kv.v, a.kv.value_dim);
  }
  static_assert(Traits::shared_bytes + 1024 <= 227 << 10, "Hopper has no more");
  kvc_emulation::launch({3}, Traits::threads, [&] { cuda::prefill_hopper_kernel<F, D, V>(a, maps); });
  REQUIRE((batch.tile_queue.next == 0 && batch.tile_queue.blocks == 0));
  return out;
}

/// A case is right by boxes and by rows, with the same bits.
template <int D, class T, Format Q, class L = kvc::HeadMajor, class P = kvc::Paged, int V = D>
void check(const PrefillSpec& spec, const typename P::Config& config, float tolerance) {
  PrefillCase<T, P, L, Q> c(spec, config);
  std::vector<float> lse;
  const std::vector<std::byte> out = run<D, V>(c, c.tables, c.q, true, &lse);
  std::vector<float> expected_lse;
  const float difference = c.difference(out, c.expected(&expected_lse));
  CAPTURE(D, spec.key_dim, spec.group, spec.options.window, difference);
  REQUIRE(difference < tolerance);
  REQUIRE(lse_difference(lse, expected_lse) < 4e-6F);
  const bool same = run<D, V>(c, c.tables, c.q, false) == out;
  REQUIRE(same);
}

/// The same of a layer group. The bits are those of a cache that keeps everything, too.
template <int D, class T, Format Q, class L = kvc::HeadMajor, class P = kvc::Paged, int V = D>
void check_group(GroupSpec spec, const typename P::Config& config, float tolerance) {
  spec.sinks = true;
  GroupCase<T, P, L, Q> c(spec, config);
  std::vector<float> lse;
  const std::vector<std::byte> out = run<D, V>(c, c.tables, c.q, true, &lse);
  std::vector<float> expected_lse;
  const float difference = c.difference(out, c.expected(expected_lse));
  CAPTURE(D, spec.kind.window, spec.kind.chunk, difference);
  REQUIRE(difference < tolerance);
  REQUIRE(lse_difference(lse, expected_lse) < 4e-6F);
  const bool same = run<D, V>(c, c.tables, c.q, false) == out;
  REQUIRE(same);
  spec.kind.window = spec.kind.chunk = 0;
  spec.alone = spec.kind.cross_rows == 0;  // a cache has rows of its own
  GroupCase<T, kvc::Paged, kvc::HeadMajor, Q> full(spec, {.blocks = 100, .block_tokens = 16});
  const bool as_in_full = run<D, V>(full, full.tables, c.q) == out;
  REQUIRE(as_in_full);
}

/// Copies and products as late as can be, or at once.
void set_late(bool copies, bool products) {
  kvc_emulation::copies_are_late = copies;
  kvc_emulation::products_are_late = products;
}

const PrefillSpec ragged{.kv_heads = 1, .sequences = {{0, 0}, {1, 1}, {70, 70}, {9, 0}, {400, 20}}};

}  // namespace

TEST_CASE("boxes: as many slots as are sure to lie in one block", "[cuda]") {
  using cuda::detail::tma_box_slots;
  REQUIRE(tma_box_slots(100, 16, 128) == 16);
  REQUIRE(tma_box_slots(100, 48, 128) == 16);
  REQUIRE(tma_box_slots(100, 8, 64) == 8);
  REQUIRE(tma_box_slots(100, 4, 128) == 0);
  REQUIRE(tma_box_slots(100, 7, 128) == 0);
  REQUIRE(tma_box_slots(100, 256, 128) == 128);
  REQUIRE(tma_box_slots(1, 7, 64) == 64);
  REQUIRE(tma_box_slots(1, 0, 64) == 0);
  REQUIRE(cuda::detail::tma_boxes_fit(64, kvc::max_pos));
  REQUIRE(cuda::detail::tma_boxes_fit(16, 48));
  REQUIRE_FALSE(cuda::detail::tma_boxes_fit(16, 8));
  REQUIRE_FALSE(cuda::detail::tma_boxes_fit(64, 1));
  REQUIRE_FALSE(cuda::detail::tma_boxes_fit(0, 16));
}

// Small whole numbers, so that every sum is exact, and each is told from each other.
TEST_CASE("emulated products by descriptors are those of matrices, over panels and steps of sixteen", "[cuda]") {
  constexpr int D = 256, keys = 64;
  const auto at = [](int row, int d) { return (row * 7 + d * 3) % 11 - 5; };
  std::byte* const shared = kvc_emulation::dynamic_shared();
  for (int row = 0; row < 128; ++row) {
    for (int d = 0; d < D; ++d) {
      const std::uint16_t bits = to_half(Format::f16, static_cast<float>(at(row, d)));
      std::memcpy(shared + cuda::detail::chunk_offset<128>(row, d / 8) + d % 8 * 2, &bits, 2);
    }
  }
  std::byte* const tile = shared + 128 * 2 * D;  // the first rows once more, as keys and as values
  for (int row = 0; row < keys; ++row) {
    for (int chunk = 0; chunk < D / 8; ++chunk) {
      std::memcpy(tile + cuda::detail::chunk_offset<keys>(row, chunk),
                  shared + cuda::detail::chunk_offset<128>(row, chunk), 16);
    }
  }
  std::vector<float> s(128 * keys), o(128 * D);
  for (const bool late : {false, true}) {
    set_late(true, late);
    kvc_emulation::launch({}, 256, [&] {
      using namespace cuda::detail;
      const int lane = static_cast<int>(threadIdx.x % 32U), warp = static_cast<int>(threadIdx.x / 32U);
      const int g = lane / 4, t = lane % 4;
      float scores[keys / 8][4], output[D / 8][4] = {};
      begin_scores<Format::f16, D>(
          cuda::device::shared_address(shared) + static_cast<unsigned>(warp / 4 * 64 * panel_row),
          cuda::device::shared_address(tile), scores);
      cuda::device::wgmma_wait<0>();
      std::uint32_t p[keys / 16][4];
      for (int n = 0; n < keys / 8; ++n) {
        for (int i = 0; i < 4; ++i) {
          s[static_cast<std::size_t>((16 * warp + g + 8 * (i / 2)) * keys + 8 * n + 2 * t + i % 2)] = scores[n][i];
          scores[n][i] = std::fmod(scores[n][i], 7.0F);  // f16 has it
        }
      }
      for (int i = 0; i < keys / 16; ++i) {
        pack_weights<Format::f16>(scores, i, p[i]);
      }
      begin_outputs<Format::f16, D>(cuda::device::shared_address(tile), p, output);
      cuda::device::wgmma_wait<0>();
      for (int n = 0; n < D / 8; ++n) {
        for (int i = 0; i < 4; ++i) {
          o[static_cast<std::size_t>((16 * warp + g + 8 * (i / 2)) * D + 8 * n + 2 * t + i % 2)] = output[n][i];
        }
      }
    });
    bool right = true;
    for (int row = 0; row < 128; ++row) {
      for (int key = 0; key < keys; ++key) {
        int sum = 0;
        for (int d = 0; d < D; ++d) {
          sum += at(row, d) * at(key, d);
        }
        right = right && s[static_cast<std::size_t>(row * keys + key)] == static_cast<float>(sum);
      }
      for (int d = 0; d < D; ++d) {
        int sum = 0;
        for (int key = 0; key < keys; ++key) {
          sum += static_cast<int>(s[static_cast<std::size_t>(row * keys + key)]) % 7 * at(key, d);
        }
        right = right && o[static_cast<std::size_t>(row * D + d)] == static_cast<float>(sum);
      }
    }
    REQUIRE(right);
  }
}

TEST_CASE("emulated Hopper prefill: a ragged batch with cached prefixes, early and late", "[cuda]") {
  for (const bool copies : {true, false}) {
    for (const bool last_first : {true, false}) {
      set_late(copies, last_first || !copies);
      kvc_emulation::Block::last_warp_first = last_first;
      kvc_emulation::last_copy_first = last_first;
      check<128, Eigen::bfloat16, Format::bf16>(
          {.kv_heads = 1, .key_dim = 128, .value_dim = 120, .sequences = ragged.sequences},
          {.blocks = 40, .block_tokens = 16}, 2e-2F);
    }
  }
  set_late(true, true);
}

TEST_CASE("emulated Hopper prefill: rings that go round, for each width of heads", "[cuda]") {
  PrefillSpec spec{.kv_heads = 1, .group = 8, .sequences = {{700, 3}}};
  check<64, Eigen::half, Format::f16>(spec, {.blocks = 100, .block_tokens = 8}, 3e-3F);
  spec.key_dim = spec.value_dim = 192;
  spec.sequences = {{290, 5}};
  check<192, Eigen::bfloat16, Format::bf16>(spec, {.blocks = 40, .block_tokens = 32}, 2e-2F);
  spec.value_dim = 128;
  check<192, Eigen::bfloat16, Format::bf16, kvc::HeadMajor, kvc::Paged, 128>(spec, {.blocks = 40, .block_tokens = 32},
                                                                             2e-2F);
  spec.key_dim = 200;
  spec.value_dim = 256;
  check<256, Eigen::half, Format::f16>(spec, {.blocks = 40, .block_tokens = 64}, 3e-3F);
}

TEST_CASE("emulated Hopper prefill: layouts, contiguous caches, and blocks that boxes do not fit", "[cuda]") {
  PrefillSpec spec{.kv_heads = 2, .group = 3, .sequences = {{140, 12}, {20, 20}}};
  check<64, Eigen::half, Format::f16, kvc::TokenMajor>(spec, {.blocks = 40, .block_tokens = 16}, 3e-3F);
  check<64, Eigen::half, Format::f16, kvc::TokenMajor, kvc::Contiguous>(spec, {.sequences = 2, .max_tokens = 141},
                                                                        3e-3F);
  check<64, Eigen::half, Format::f16, kvc::HeadMajor, kvc::Contiguous>(spec, {.sequences = 2, .max_tokens = 141},
                                                                       3e-3F);
  PrefillCase<Eigen::half, kvc::Paged, kvc::HeadMajor, Format::f16> sevens(spec, {.blocks = 40, .block_tokens = 7});
  REQUIRE(sevens.difference(run<64>(sevens, sevens.tables, sevens.q, false), sevens.expected()) < 3e-3F);
}

TEST_CASE("emulated Hopper prefill: windows, softcap, and rows that see what comes after", "[cuda]") {
  PrefillSpec spec{.kv_heads = 1, .group = 4, .sequences = {{400, 20}}};
  for (const Pos window : {1, 150}) {
    spec.options = {.window = window, .softcap = window == 1 ? 0.0F : 1.5F};
    check<64, Eigen::half, Format::f16>(spec, {.blocks = 40, .block_tokens = 16}, 3e-3F);
  }
  spec.options = {.scale = 3.0F, .causal = false, .window = 200};
  check<64, Eigen::half, Format::f16>(spec, {.blocks = 40, .block_tokens = 16}, 4e-3F);
}

TEST_CASE("emulated Hopper prefill of layer groups: windows, chunks, sinks, latent rows and other inputs",
          "[cuda][groups]") {
  GroupSpec spec;
  const auto set = [&](const kvc::LayerKind& kind, std::vector<PrefillSequence> sequences) {
    spec.kind = kind;
    spec.options = options_of(kind);
    spec.sequences = std::move(sequences);
  };
  for (const auto& [window, chunk] : {std::pair<Pos, Pos>{1, 0}, {40, 0}, {150, 0}, {0, 33}, {50, 33}}) {
    set({.kv_heads = 1, .key_dim = 64, .window = window, .chunk = chunk}, {{1, 1}, {70, 70}, {400, 20}});
    check_group<64, Eigen::half, Format::f16>(spec, {.blocks = 100, .block_tokens = 16}, 3e-3F);
    // A ring, of which every slot is an entry, and one stretch that begins with the window.
    check_group<64, Eigen::half, Format::f16, kvc::TokenMajor, kvc::Contiguous>(
        spec, {.sequences = 3, .max_tokens = 400, .pass_tokens = 70}, 3e-3F);
    check_group<64, Eigen::half, Format::f16, kvc::HeadMajor, kvc::Contiguous>(
        spec, {.sequences = 3, .max_tokens = 400}, 3e-3F);
  }
  set({.kv_heads = 1, .key_dim = 144, .value_dim = 128, .window = 90, .latent = true}, {{200, 20}, {30, 30}});
  check_group<192, Eigen::bfloat16, Format::bf16, kvc::HeadMajor, kvc::Paged, 128>(
      spec, {.blocks = 60, .block_tokens = 16}, 2e-2F);
  set({.kv_heads = 2, .key_dim = 64, .cross_rows = 130}, {{1, 1}, {200, 150}});
  check_group<64, Eigen::half, Format::f16>(spec, {.blocks = 60, .block_tokens = 16}, 3e-3F);
}

TEST_CASE("emulated Hopper prefill: large logits lose no precision", "[cuda]") {
  for (const float deviation : {10.0F, 20.0F}) {  // see emulated_decode.cpp
    const PrefillSpec spec = large_logits(deviation);
    check<128, Eigen::bfloat16, Format::bf16>(spec, {.blocks = 13, .block_tokens = 16}, 2e-2F);
  }
}

TEST_CASE("emulated Hopper prefill: a row has the same bits in every batch and chunk", "[cuda]") {
  PrefillCase<Eigen::bfloat16, kvc::Paged, kvc::HeadMajor, Format::bf16> c(ragged, {.blocks = 40, .block_tokens = 16});
  const std::vector<std::byte> all = run<64>(c, c.tables, c.q);
  for (const std::size_t b : {std::size_t{2}, std::size_t{4}}) {
    for (const Pos rows : {c.queries[b], c.queries[b] / 3, 1}) {
      CAPTURE(b, rows);
      const Index first = c.tables.q_indptr[b + 1] - rows;
      const std::vector<std::byte> same = run<64>(c, c.tables_of({c.sequences[b]}, {rows}), c.q_rows(first, rows));
      REQUIRE(std::equal(same.begin(), same.end(), all.begin() + static_cast<std::ptrdiff_t>(c.out_bytes(first))));
    }
  }
}

TEST_CASE("emulated Hopper prefill: what a row does not see is not noticed, infinite or NaN", "[cuda]") {
  for (const Pos window : {0, 30}) {  // with a window it is not the last tile alone that some rows see in part
    const PrefillSpec spec{.kv_heads = 1, .group = 4, .sequences = {{200, 160}}, .options = {.window = window}};
    PrefillCase<Eigen::half, kvc::Paged, kvc::HeadMajor, Format::f16> c(spec, {.blocks = 16, .block_tokens = 16});
    const std::vector<std::byte> before = run<64>(c, c.tables, c.q);
    c.value_row(0, 0, 90)[5] = Eigen::half(std::numeric_limits<float>::infinity());
    c.value_row(0, 0, 150)[6] = Eigen::half(std::numeric_limits<float>::quiet_NaN());
    c.value_row(0, 0, 196)[5] = Eigen::half(-std::numeric_limits<float>::infinity());
    const std::vector<std::byte> after = run<64>(c, c.tables, c.q);
    CAPTURE(window);
    REQUIRE(c.difference(after, c.expected()) < 3e-3F);
    const auto same = [&](Pos first, Pos last) {  // rows of these positions have the bits that they had
      const auto begin = static_cast<std::ptrdiff_t>(c.out_bytes(first - 40));
      return std::equal(before.begin() + begin, before.begin() + static_cast<std::ptrdiff_t>(c.out_bytes(last - 40)),
                        after.begin() + begin);
    };
    REQUIRE(same(40, 90));
    REQUIRE(same(120, 150) == (window > 0));
    REQUIRE_FALSE(same(90, 120));
  }
}

// That the emulation reports what it is there to report.
TEST_CASE("emulated barriers and products report misuse", "[cuda]") {
  using namespace kvc::cuda::device;
  const auto launch_one = [](const std::function<void()>& body) { kvc_emulation::launch({}, 128, body); };
  static Barrier barrier;
  set_late(true, true);
  const auto made = [](unsigned arrivals) {
    if (threadIdx.x == 0U) {
      init_barrier(barrier, arrivals);
    }
    __syncthreads();
  };
  REQUIRE_THROWS_AS(launch_one([&] {
                      made(64);
                      arrive(barrier);  // by 128: a phase too many, and one that ends twice is no error
                      if (threadIdx.x == 0U) {
                        arrive_and_expect(barrier, 16);
                      }
                    }),
                    std::logic_error);
  kvc_emulation::forget();
  REQUIRE_THROWS_AS(launch_one([&] {
                      made(1);
                      wait(barrier, 0);  // nobody arrives
                    }),
                    std::logic_error);
  kvc_emulation::forget();
  REQUIRE_THROWS_AS(launch_one([&] {
                      made(128);
                      copy_async(shared_address(dynamic_shared()) + 16 * threadIdx.x,
                                 dynamic_shared() + 4096 + 16 * threadIdx.x, true);
                      arrive_after_copies(barrier);
                      wait(barrier, 0);
                      float c[8][4];
                      wgmma<Format::f16, 64>(c, matrix_descriptor(shared_address(dynamic_shared())),
                                             matrix_descriptor(shared_address(dynamic_shared())), false);
                      wgmma_commit();
                      wgmma_wait<0>();  // without fence_async_proxy
                    }),
                    std::logic_error);
  kvc_emulation::forget();
}
