// Attention in layer groups: windows, chunks, kept positions, sinks, latent rows and rows of another input. The kernels
// run thread by thread on the CPU, against the definition of attention, over pools in which everything that a group
// does not retain is NaN.
#include "emulate_tiles.hpp"
// (first: it stands for CUDA)

#include <algorithm>
#include <cstring>
#include <utility>

#include "catch.hpp"
#include "emulate_attention.hpp"
#include "group_case.hpp"
#include "kvc/cuda/append_kernel.cuh"
#include "kvc/cuda/rows_kernel.cuh"
#include "kvc/element/float16.hpp"
#include "kvc/element/quantized.hpp"
#include "kvc/policy/contiguous.hpp"
#include "kvc/policy/paged.hpp"
#include "kvc/policy/prefix_shared.hpp"
#include "random_source.hpp"

namespace {

using namespace kvc_test;
namespace cuda = kvc::cuda;
using kvc::LayerKind;
using kvc::Pos;
using Head = kvc::HeadMajor;
using TokenRows = kvc::TokenMajor;

/// Outputs and log-sum-exp of sequences [first, first + count) of a case, by the decode kernels for dim D.
template <int D, class Case>
std::vector<std::byte> decode(Case& c, std::size_t first, std::size_t count, bool share, std::vector<float>& lse) {
  const kvc::BatchTables tables = c.tables_of(first, count);
  std::vector<std::byte> out(c.out_bytes(tables.queries()), std::byte{0xff});
  lse.assign(static_cast<std::size_t>(tables.queries() * c.query_heads()), std::nanf(""));
  constexpr cuda::Format F = cuda::format_of<typename Case::Cache::Element>;
  emulate_decode<D, 1, D <= 128 ? 2 : 1, F, Case::query_format>(
      c.layer_view(), tables, static_cast<std::int32_t>(c.spec.group),
      c.q_rows(c.tables.q_indptr[first], tables.queries()).data(), out.data(), c.options(), share, lse.data());
  return out;
}
/// The same by the prefill kernel for dim D; 0: by the plain one.
template <int D, class Case>
std::vector<std::byte> prefill(Case& c, std::size_t first, std::size_t count, std::vector<float>& lse) {
  const kvc::BatchTables tables = c.tables_of(first, count);
  std::vector<std::byte> out(c.out_bytes(tables.queries()), std::byte{0xff});
  lse.assign(static_cast<std::size_t>(tables.queries() * c.query_heads()), std::nanf(""));
  constexpr cuda::Format F = cuda::format_of<typename Case::Cache::Element>;
  emulate_prefill<D, F, Case::query_format>(c.layer_view(), tables, c.query_heads(),
                                            c.q_rows(c.tables.q_indptr[first], tables.queries()).data(), out.data(),
                                            c.options(), lse.data());
  return out;
}

/// Outputs and log-sum-exp are right, and sequences have the bits that they have alone. run(first, count, share, lse).
template <class Case, class Run>
void require_right(Case& c, float tolerance, Run run) {
  std::vector<float> lse, expected_lse;
  const std::vector<std::byte> out = run(0, c.steps.size(), true, lse);
  const float difference = c.difference(out, c.expected(expected_lse));
  const LayerKind& kind = c.spec.kind;
  CAPTURE(kind.window, kind.chunk, kind.kept, kind.cross_rows, kind.key_dim, c.cache.policy().name, difference);
  REQUIRE(difference < tolerance);
  REQUIRE(lse_difference(lse, expected_lse) < 4e-6F);
  for (std::size_t b = 0; b < c.steps.size(); b += 2) {
    const std::vector<std::byte> same = run(b, 1, false, lse);
    const auto at = static_cast<std::ptrdiff_t>(c.out_bytes(c.tables.q_indptr[b]));
    REQUIRE(std::equal(same.begin(), same.end(), out.begin() + at));
  }
}
template <int D, class T, Format Q, class L = Head, class P = kvc::Paged>
void check_decode(const GroupSpec& spec, const typename P::Config& config, float tolerance) {
  GroupCase<T, P, L, Q> c(spec, config);
  require_right(c, tolerance, [&](std::size_t first, std::size_t count, bool share, std::vector<float>& lse) {
    return decode<D>(c, first, count, share, lse);
  });
}
template <int D, class T, Format Q, class L = Head, class P = kvc::Paged>
void check_prefill(const GroupSpec& spec, const typename P::Config& config, float tolerance) {
  GroupCase<T, P, L, Q> c(spec, config);
  require_right(c, tolerance, [&](std::size_t first, std::size_t count, bool, std::vector<float>& lse) {
    return prefill<D>(c, first, count, lse);
  });
}

/// A layer of full attention, and others by their windows, chunks and kept positions.
GroupSpec layer(Pos window, Pos chunk, Pos kept, std::vector<PrefillSequence> sequences) {
  GroupSpec spec;
  spec.kind = {.kv_heads = 1, .key_dim = 64, .window = window, .chunk = chunk, .kept = kept};
  spec.options = options_of(spec.kind);
  spec.sequences = std::move(sequences);
  return spec;
}

constexpr Pos kinds[][3] = {{1, 0, 0},   {5, 0, 0},   {16, 0, 0}, {40, 0, 0},  {600, 0, 0}, {0, 7, 0}, {0, 33, 0},
                            {0, 512, 0}, {40, 33, 0}, {20, 0, 3}, {20, 0, 16}, {7, 0, 40},  {0, 24, 5}};
/// Of these one of each sort, where the kernels take long.
constexpr Pos some_kinds[][3] = {{1, 0, 0}, {16, 0, 0}, {40, 33, 0}, {20, 0, 3}};

}  // namespace

TEST_CASE("emulated decode of layer groups: windows, chunks and kept positions in blocks", "[cuda][groups]") {
  const std::vector<PrefillSequence> sequences = one_row_each({1, 2, 16, 17, 65, 130, 300, 513, 700});
  for (const auto& [window, chunk, kept] : kinds) {
    check_decode<64, Eigen::half, Format::f16>(layer(window, chunk, kept, sequences),
                                               {.blocks = 200, .block_tokens = 16}, 3e-3F);
  }
  GroupSpec far = layer(30, 0, 600, one_row_each({599, 620, 640, 1300}));  // kept positions in splits of their own
  far.options.softcap = 2.0F;
  check_decode<64, Eigen::bfloat16, Format::bf16, TokenRows>(far, {.blocks = 900, .block_tokens = 7}, 2e-2F);
}

TEST_CASE("emulated decode of layer groups: a contiguous cache, whose windows are rings", "[cuda][groups]") {
  const std::vector<PrefillSequence> sequences = one_row_each({1, 17, 130, 300, 513});
  for (const auto& [window, chunk, kept] : kinds) {
    check_decode<64, Eigen::half, Format::f16, TokenRows, kvc::Contiguous>(
        layer(window, chunk, kept, sequences), {.sequences = 5, .max_tokens = 600, .pass_tokens = 29}, 3e-3F);
  }
}

TEST_CASE("emulated decode of layer groups: forks and prefix hits", "[cuda][groups]") {
  for (const auto& [window, chunk, kept] : kinds) {
    GroupSpec spec = layer(window, chunk, kept, one_row_each({560, 600, 561, 40}));
    spec.common = 550;
    spec.forks = {1, 3, 20, 1, 1};
    spec.sinks = true;
    check_decode<64, Eigen::bfloat16, Format::bf16, Head, kvc::PrefixShared<>>(
        spec, {.blocks = 400, .block_tokens = 16}, 2e-2F);
  }
  GroupSpec spec = layer(20, 0, 3, one_row_each({560, 600, 561, 40}));
  spec.common = 550;
  GroupCase<Eigen::bfloat16, kvc::PrefixShared<>, Head, Format::bf16> c(spec, {.blocks = 400, .block_tokens = 16});
  REQUIRE(c.found);
}

TEST_CASE("emulated decode of layer groups: sinks, over all formats", "[cuda][groups]") {
  GroupSpec spec = layer(300, 0, 0, one_row_each({1, 30, 700, 290, 512}));
  spec.sinks = true;
  check_decode<64, Eigen::half, Format::f16>(spec, {.blocks = 120, .block_tokens = 16}, 3e-3F);
  check_decode<64, kvc::Fp8E4M3, Format::bf16>(spec, {.blocks = 120, .block_tokens = 16}, 2e-2F);
  check_decode<64, kvc::Int8, Format::bf16>(spec, {.blocks = 120, .block_tokens = 16}, 2e-2F);
  spec.options.softcap = 3.0F;
  check_decode<64, kvc::Int8, Format::f16, TokenRows>(spec, {.blocks = 400, .block_tokens = 5}, 1e-2F);
  spec.kind.kv_heads = 2;
  spec.kind.key_dim = 128;
  spec.group = 12;
  check_decode<128, Eigen::bfloat16, Format::bf16>(spec, {.blocks = 120, .block_tokens = 16}, 2e-2F);
}

TEST_CASE("emulated decode of layer groups: rows of another input", "[cuda][groups]") {
  GroupSpec spec = layer(0, 0, 0, one_row_each({1, 30, 5}));
  spec.kind.cross_rows = 530;
  spec.options = options_of(spec.kind);
  check_decode<64, Eigen::half, Format::f16>(spec, {.blocks = 200, .block_tokens = 16}, 3e-3F);
}

TEST_CASE("emulated prefill of layer groups: windows, chunks and kept positions", "[cuda][groups]") {
  const std::vector<PrefillSequence> sequences{{1, 1}, {70, 40}, {9, 0}, {130, 1}, {200, 20}};
  for (const auto& [window, chunk, kept] : kinds) {
    GroupSpec spec = layer(window, chunk, kept, sequences);
    check_prefill<0, float, Format::f32>(spec, {.blocks = 200, .block_tokens = 16}, 3e-6F);
    check_prefill<0, float, Format::f32, TokenRows, kvc::Contiguous>(
        spec, {.sequences = 5, .max_tokens = 200, .pass_tokens = 40}, 3e-6F);
    if (kept == 0 && chunk != 7) {  // the fast kernel takes no others
      check_prefill<64, Eigen::half, Format::f16>(spec, {.blocks = 200, .block_tokens = 16}, 3e-3F);
      check_prefill<64, kvc::Int8, Format::f16, TokenRows>(spec, {.blocks = 400, .block_tokens = 7}, 2e-2F);
    }
  }
}

TEST_CASE("emulated prefill of layer groups: sinks, softcap, forks and prefix hits", "[cuda][groups]") {
  for (const auto& [window, chunk, kept] : some_kinds) {
    GroupSpec spec = layer(window, chunk, kept, {{150, 30}, {200, 7}, {181, 20}});
    spec.common = 140;
    spec.forks = {1, 3, 20};
    spec.sinks = true;
    spec.options.softcap = window == 16 ? 2.0F : 0.0F;
    check_prefill<0, Eigen::half, Format::f16, Head, kvc::PrefixShared<>>(spec, {.blocks = 400, .block_tokens = 16},
                                                                          3e-3F);
    if (kept == 0) {
      check_prefill<64, Eigen::bfloat16, Format::bf16, Head, kvc::PrefixShared<>>(
          spec, {.blocks = 400, .block_tokens = 16}, 2e-2F);
    }
  }
  GroupSpec spec = layer(20, 0, 0, {{150, 30}, {40, 40}});
  spec.sinks = true;
  spec.group = 35;  // two tiles of heads
  check_prefill<64, kvc::Fp8E4M3, Format::bf16>(spec, {.blocks = 80, .block_tokens = 16}, 2e-2F);
}

TEST_CASE("emulated prefill of layer groups: rows of another input", "[cuda][groups]") {
  GroupSpec spec = layer(0, 0, 0, {{1, 1}, {30, 30}, {200, 150}});  // more rows than keys, and fewer
  spec.kind.cross_rows = 70;
  spec.options = options_of(spec.kind);
  check_prefill<0, float, Format::f32>(spec, {.blocks = 80, .block_tokens = 16}, 3e-6F);
  check_prefill<64, Eigen::half, Format::f16>(spec, {.blocks = 80, .block_tokens = 16}, 3e-3F);
}

TEST_CASE("emulated attention of latent rows", "[cuda][groups]") {
  GroupSpec spec;
  spec.kind = {.kv_heads = 1, .key_dim = 144, .value_dim = 128, .latent = true};
  spec.options.scale = 0.1F;
  spec.group = 16;
  spec.sequences = {{1, 1}, {40, 40}, {90, 5}, {100, 1}};
  check_prefill<0, float, Format::f32>(spec, {.blocks = 40, .block_tokens = 16}, 3e-6F);
  check_prefill<192, Eigen::bfloat16, Format::bf16>(spec, {.blocks = 40, .block_tokens = 16}, 2e-2F);
  spec.kind.window = 21;
  spec.options.window = 21;
  spec.sinks = true;
  check_prefill<0, kvc::Fp8E4M3, Format::bf16, TokenRows>(spec, {.blocks = 40, .block_tokens = 16}, 2e-2F);
  check_prefill<192, Eigen::half, Format::f16, Head, kvc::Contiguous>(
      spec, {.sequences = 4, .max_tokens = 100, .pass_tokens = 40}, 3e-3F);
  spec.kind = {.kv_heads = 1, .key_dim = 576, .value_dim = 512, .latent = true};  // that of DeepSeek
  spec.options = {};
  spec.options.scale = 0.07F;
  spec.sequences = one_row_each({1, 33, 70});
  check_prefill<0, Eigen::bfloat16, Format::bf16>(spec, {.blocks = 40, .block_tokens = 16}, 2e-2F);
  // Keys alone, as many elements of them as of values.
  spec.kind = {.kv_heads = 1, .key_dim = 128, .latent = true};
  spec.sequences = one_row_each({1, 33, 600});
  check_decode<128, Eigen::bfloat16, Format::bf16>(spec, {.blocks = 80, .block_tokens = 16}, 2e-2F);
}

// The rows are the same ones, and a row of the window sees the same of them. So the sums are taken in the same order,
// whether or not what it does not see is stored.
TEST_CASE("emulated attention: a layer group gives the bits of a cache that keeps everything", "[cuda][groups]") {
  for (const auto& [window, chunk, kept] : some_kinds) {
    for (const bool one_row : {true, false}) {
      GroupSpec spec =
          layer(window, chunk, kept,
                one_row ? one_row_each({1, 17, 130, 700}) : std::vector<PrefillSequence>{{70, 70}, {200, 40}});
      spec.sinks = true;
      GroupSpec full = spec;
      full.kind.window = full.kind.chunk = full.kind.kept = 0;
      full.alone = true;
      using T = Eigen::bfloat16;
      GroupCase<T, kvc::Paged, Head, Format::bf16> a(spec, {.blocks = 200, .block_tokens = 16});
      GroupCase<T, kvc::Contiguous, TokenRows, Format::bf16> b(full, {.sequences = 4, .max_tokens = 700});
      REQUIRE(a.q == b.q);
      std::vector<float> lse, same_lse;
      CAPTURE(window, chunk, kept, one_row);
      const auto require_same = [&](const std::vector<std::byte>& x, const std::vector<std::byte>& y) {
        const bool equal = x == y, equal_lse = lse == same_lse;
        REQUIRE(equal);
        REQUIRE(equal_lse);
      };
      const std::size_t n = a.steps.size();
      require_same(prefill<0>(a, 0, n, lse), prefill<0>(b, 0, n, same_lse));
      if (kept == 0) {
        require_same(prefill<64>(a, 0, n, lse), prefill<64>(b, 0, n, same_lse));
      }
      if (one_row) {
        require_same(decode<64>(a, 0, n, true, lse), decode<64>(b, 0, n, true, same_lse));
      }
    }
  }
}

namespace {

/// A step of a random batch, written by the append kernel to the pool of one cache and by the CPU to that of another.
template <class T, Format I, class P, class L>
void check_append(const kvc::LayerGroups& layers, const typename P::Config& config, std::uint64_t seed) {
  using Cache = kvc::KvCache<T, P, L>;
  Cache expected(layers, config), cache(layers, config);
  for (Cache* each : {&expected, &cache}) {
    std::memset(static_cast<void*>(each->data()), 0xab, static_cast<std::size_t>(each->pool_bytes()));
  }
  Random random(seed);
  std::vector<kvc::SeqId> sequences;
  for (int i = 0; i < 3; ++i) {
    sequences.push_back(expected.open());
    REQUIRE(cache.open() == sequences.back());
  }
  for (int step = 0; step < 8; ++step) {
    std::vector<typename Cache::Append> appends, others;
    for (const kvc::SeqId seq : sequences) {
      const std::vector<kvc::Token> tokens(random.between<std::size_t>(0, 9), 5);
      appends.push_back(cache.extend(seq, tokens));
      others.push_back(expected.extend(seq, tokens));
    }
    for (Index layer = 0; layer < layers.layers(); ++layer) {
      const kvc::LayerPlace place = layers.place(layer);
      const kvc::LayerGroup& group = layers.groups()[static_cast<std::size_t>(place.group)];
      kvc::BatchTables tables = kvc::make_tables(cache, place.group, appends);
      for (std::size_t i = 0; i < appends.size(); ++i) {  // as Batch::upload_cross_rows
        tables.q_indptr[i + 1] = tables.q_indptr[i] + expected.rows_to_write(layer, others[i]);
      }
      const HostBatch batch(tables);
      const Index k_width = group.shape.kv_heads * group.shape.key_dim,
                  v_width = group.shape.kv_heads * group.shape.value_dim;
      const auto rows = [&](Index width) {
        std::vector<float> x(static_cast<std::size_t>(tables.queries() * width));
        for (float& each : x) {
          each = half_to_float(Format::bf16, to_half(Format::bf16, random.uniform(-3, 3)));
        }
        return x;
      };
      const std::vector<float> k = rows(k_width), v = rows(v_width);
      const auto as_input = [](const std::vector<float>& x) {
        std::vector<std::byte> out(x.size() * static_cast<std::size_t>(cuda::code_bytes(I)));
        for (std::size_t i = 0; i < x.size(); ++i) {
          put_element(I, out, static_cast<Index>(i), x[i]);
        }
        return out;
      };
      const std::vector<std::byte> k_in = as_input(k), v_in = as_input(v);
      constexpr Format F = cuda::format_of<T>;
      const auto view = cuda::layer_view<T>(reinterpret_cast<std::byte*>(cache.data()), cache.group_layout(place.group),
                                            group.shape, place.layer);
      const auto launch = [&](const cuda::AppendArguments<F>& a) {
        kvc_emulation::launch({2}, cuda::detail::rows_threads, [&] {
          a.kv.key_dim <= 128 && a.kv.value_dim <= 128 ? cuda::append_kernel<I, F, true>(a)
                                                       : cuda::append_kernel<I, F, false>(a);
        });
      };
      if (group.latent) {
        for (std::int32_t head = 0; head < group.shape.kv_heads; ++head) {
          launch(cuda::detail::latent_append_arguments<I>(view, batch.view, k_in.data(), k_width, head));
        }
      } else {
        launch({view, batch.view, k_in.data(), v_in.data(), nullptr, k_width, v_width, 0, 0, {}});
      }
      for (std::size_t i = 0; i < appends.size(); ++i) {
        const Index first = tables.q_indptr[i], count = tables.q_indptr[i + 1] - first;
        const kvc::MatrixRef<const float> keys(k.data() + first * k_width, count, k_width),
            values(v.data() + first * v_width, count, v_width);
        group.latent ? expected.write(layer, others[i], keys) : expected.write(layer, others[i], keys, values);
      }
      // Gathered, the rows are those that were written; of a latent layer there are keys alone.
      if constexpr (I == F) {
        auto of = view;
        of.value_dim = group.latent ? 0 : of.value_dim;
        std::vector<std::byte> k_out(k_in.size()), v_out(group.latent ? 0 : v_in.size());
        const cuda::RowsArguments<F> a{of, batch.view, k_out.data(), v_out.data(), true};
        kvc_emulation::launch({2}, cuda::detail::rows_threads, [&] { cuda::rows_kernel<F, std::uint32_t>(a); });
        REQUIRE(k_out == k_in);
        REQUIRE((group.latent || v_out == v_in));
      }
    }
    for (std::size_t i = 0; i < appends.size(); ++i) {
      cache.commit(std::move(appends[i]));
      expected.commit(std::move(others[i]));
    }
    REQUIRE(std::memcmp(static_cast<const void*>(expected.data()), static_cast<const void*>(cache.data()),
                        static_cast<std::size_t>(cache.pool_bytes())) == 0);
  }
}

}  // namespace

TEST_CASE("emulated append to layer groups: the bytes of the CPU", "[cuda][groups]") {
  kvc::LayerGroups layers;
  layers.add({.kv_heads = 2, .key_dim = 64});
  layers.add({.kv_heads = 1, .key_dim = 32, .value_dim = 16, .window = 5}, 2);
  layers.add({.kv_heads = 1, .key_dim = 16, .window = 3, .kept = 2});
  layers.add({.kv_heads = 3, .key_dim = 8, .chunk = 6});
  layers.add({.kv_heads = 2, .key_dim = 192, .cross_rows = 7});
  kvc::LayerGroups latent;
  latent.add({.kv_heads = 1, .key_dim = 576, .value_dim = 512, .latent = true}, 2);
  latent.add({.kv_heads = 2, .key_dim = 48, .value_dim = 32, .window = 3, .latent = true});
  latent.add({.kv_heads = 1, .key_dim = 128, .latent = true});
  for (const kvc::LayerGroups& each : {layers, latent}) {
    const kvc::Paged::Config paged{.blocks = 60, .block_tokens = 4};
    const kvc::Contiguous::Config contiguous{.sequences = 3, .max_tokens = 90, .pass_tokens = 9};
    check_append<Eigen::bfloat16, Format::bf16, kvc::Paged, Head>(each, paged, 1);
    check_append<float, Format::f32, kvc::Contiguous, TokenRows>(each, contiguous, 2);
    check_append<kvc::Fp8E4M3, Format::f32, kvc::PrefixShared<>, TokenRows>(each, {.blocks = 60, .block_tokens = 4}, 3);
    check_append<Eigen::half, Format::f32, kvc::Contiguous, Head>(each, contiguous, 4);
  }
  check_append<kvc::Int8, Format::f32, kvc::Paged, Head>(layers, {.blocks = 60, .block_tokens = 4}, 5);
}
