// Layer groups on a device: attention in each of them against the definition, and a cache with groups beside one in
// host memory.
#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <algorithm>
#include <memory>
#include <random>
#include <type_traits>
#include <utility>
#include <vector>

#include "device_kernels.hpp"
#include "device_memory.hpp"
#include "device_test.hpp"
#include "group_case.hpp"
#include "kvc/cache.hpp"
#include "kvc/cuda/append.cuh"
#include "kvc/cuda/batch.cuh"
#include "kvc/cuda/decode.cuh"
#include "kvc/cuda/element.cuh"
#include "kvc/cuda/prefill.cuh"
#include "kvc/cuda/space.cuh"
#include "kvc/cuda/state.cuh"
#include "kvc/cuda/view.cuh"
#include "kvc/element/quantized.hpp"
#include "kvc/policy/contiguous.hpp"
#include "kvc/policy/paged.hpp"
#include "kvc/policy/prefix_shared.hpp"

namespace {

using namespace kvc_test;
namespace cuda = kvc::cuda;
using Cache = kvc::KvCache<__half, kvc::Paged, kvc::HeadMajor, cuda::DeviceSpace>;

/// A case with its pool on the device.
template <class Case>
struct GroupOnDevice {
  using T = typename Case::Cache::Element;
  explicit GroupOnDevice(Case& of)
      : c(of),
        pool(static_cast<std::size_t>(of.cache.pool_bytes())),
        sinks(of.sinks),
        batch({.sequences = static_cast<Index>(of.steps.size()) + 3,
               .blocks = 100000,
               .queries = of.tables.queries() + 5}) {
    to_device(pool.data(), of.cache.data(), pool.size());
  }
  /// Outputs and log-sum-exp of sequences [first, first + count). call(batch, tables, q, out, options, lse, stream).
  template <class Scalar, class Call>
  std::vector<std::byte> run(std::size_t first, std::size_t count, std::vector<float>& lse, Call call) {
    const kvc::BatchTables tables = c.tables_of(first, count);
    if (tables.queries() == 0) {
      return {};
    }
    Stream stream;
    const DeviceArray<std::byte> in(c.q_rows(c.tables.q_indptr[first], tables.queries())),
        out(c.out_bytes(tables.queries()));
    const DeviceArray<float> sums(static_cast<std::size_t>(tables.queries() * c.query_heads()));
    batch.upload(tables, stream);
    call(tables, reinterpret_cast<const Scalar*>(in.data()), reinterpret_cast<Scalar*>(out.data()),
         c.options(sinks.data()), sums.data(), cudaStream_t{stream});
    stream.wait();
    lse = sums.host();
    return out.host();
  }
  template <class Scalar>
  std::vector<std::byte> prefill(std::size_t first, std::size_t count, cuda::PrefillKernel kernel,
                                 std::vector<float>& lse) {
    return run<Scalar>(first, count, lse,
                       [&](const auto&, const Scalar* q, Scalar* out, const auto& options, float* sums, auto stream) {
                         cuda::prefill(c.layer_view(pool.data()), batch, c.query_heads(), q, out, options, stream, sums,
                                       {}, kernel);
                       });
  }
  template <class Scalar>
  std::vector<std::byte> decode(std::size_t first, std::size_t count, std::vector<float>& lse) {
    cuda::DecodeWork work({.sequences = static_cast<Index>(c.steps.size()),
                           .positions = 100000,
                           .query_heads = c.query_heads(),
                           .kv_heads = c.shape().kv_heads,
                           .dim = c.shape().key_dim,
                           .format = cuda::format_of<T>});
    return run<Scalar>(
        first, count, lse,
        [&](const auto& tables, const Scalar* q, Scalar* out, const auto& options, float* sums, auto stream) {
          work.upload(tables, cuda::seen_by(options), stream);
          cuda::decode(c.layer_view(pool.data()), batch, work, q, out, options, stream, sums);
          stream == nullptr ? void() : (void)cudaStreamSynchronize(stream);  // `work` ends with this function
        });
  }
  Case& c;
  cuda::DeviceBuffer pool;
  DeviceArray<float> sinks;
  cuda::Batch batch;
};

/// Right, and each sequence has the bits that it has alone. run(first, count, lse).
template <class Case, class Run>
void check_bits(const Case& c, float tolerance, const char* what, Run run) {
  std::vector<float> lse, expected_lse;
  const std::vector<std::byte> out = run(0, c.steps.size(), lse);
  const float difference = c.difference(out, c.expected(expected_lse));
  const kvc::LayerKind& kind = c.spec.kind;
  CHECK(difference < tolerance) << what << "window" << kind.window << "chunk" << kind.chunk << "kept" << kind.kept
                                << "dim" << kind.key_dim << "difference" << difference;
  CHECK(lse_difference(lse, expected_lse) < 4e-6F) << what << lse_difference(lse, expected_lse);
  for (std::size_t b = 0; b < c.steps.size(); ++b) {
    const std::vector<std::byte> same = run(b, 1, lse);
    const auto at = static_cast<std::ptrdiff_t>(c.out_bytes(c.tables.q_indptr[b]));
    CHECK(std::equal(same.begin(), same.end(), out.begin() + at)) << what << "sequence" << b << "has other bits alone";
  }
}
template <class T, class Scalar, class P, class L = kvc::HeadMajor>
void check_prefill(const GroupSpec& spec, const typename P::Config& config, float tolerance) {
  GroupCase<T, P, L, cuda::format_of<Scalar>> c(spec, config);
  GroupOnDevice device(c);
  for (const auto& [kernel, what] :
       {std::pair{cuda::PrefillKernel::best, "best"}, std::pair{cuda::PrefillKernel::warps, "by warps"},
        std::pair{cuda::PrefillKernel::plain, "plain"}}) {
    check_bits(c, tolerance, what, [&, kernel = kernel](std::size_t first, std::size_t count, std::vector<float>& lse) {
      return device.template prefill<Scalar>(first, count, kernel, lse);
    });
  }
}
template <class T, class Scalar, class P, class L = kvc::HeadMajor>
void check_decode(const GroupSpec& spec, const typename P::Config& config, float tolerance) {
  GroupCase<T, P, L, cuda::format_of<Scalar>> c(spec, config);
  GroupOnDevice device(c);
  check_bits(c, tolerance, "decode", [&](std::size_t first, std::size_t count, std::vector<float>& lse) {
    return device.template decode<Scalar>(first, count, lse);
  });
}

/// A random layer, with windows around blocks of 16.
GroupSpec random_layer(std::mt19937_64& random, bool one_row) {
  const auto between = [&](Pos low, Pos high) {
    return low + static_cast<Pos>(random() % static_cast<std::uint64_t>(high - low + 1));
  };
  GroupSpec spec;
  constexpr Pos windows[] = {0, 1, 5, 15, 16, 17, 40, 300};
  spec.kind = {.kv_heads = between(1, 2), .key_dim = between(0, 1) == 0 ? 64 : 128, .window = windows[between(0, 7)]};
  spec.kind.chunk = between(0, 2) == 0 ? between(1, 200) : 0;
  spec.kind.kept = (spec.kind.window > 0 || spec.kind.chunk > 0) && between(0, 2) == 0 ? between(1, 40) : 0;
  spec.options = options_of(spec.kind);
  spec.options.softcap = between(0, 3) == 0 ? 3.0F : 0.0F;
  spec.group = between(1, 8);
  spec.sinks = between(0, 1) == 0;
  for (Pos i = between(1, 5); i > 0; --i) {
    const Pos length = between(1, 700);
    spec.sequences.push_back({length, one_row ? 1 : between(0, std::min<Pos>(length, 90))});
  }
  spec.common = between(0, 1) == 0 ? 0 : between(1, 300);
  for (Pos i = between(0, 3); i > 0; --i) {
    spec.forks.push_back(between(1, 30));
  }
  spec.seed = random();
  return spec;
}
template <class T, class Scalar>
void check_random(std::uint64_t seed, float tolerance) {
  std::mt19937_64 random(seed);
  for (int round = 0; round < 6; ++round) {
    for (const bool one_row : {true, false}) {
      const auto check = [&]<class P, class L>(const typename P::Config& config) {
        const GroupSpec spec = random_layer(random, one_row);
        if constexpr (!std::is_same_v<T, float>) {
          if (one_row) {
            check_decode<T, Scalar, P, L>(spec, config, tolerance);
          }
        }
        check_prefill<T, Scalar, P, L>(spec, config, tolerance);
      };
      if (round % 3 == 0) {
        check.template operator()<kvc::Paged, kvc::TokenMajor>({.blocks = 1500, .block_tokens = 16});
      } else if (round % 3 == 1) {
        check.template operator()<kvc::PrefixShared<>, kvc::HeadMajor>({.blocks = 1500, .block_tokens = 16});
      } else {
        check.template operator()<kvc::Contiguous, kvc::HeadMajor>(
            {.sequences = 9, .max_tokens = 800, .pass_tokens = round % 2 == 0 ? 90 : 0});
      }
    }
  }
}

}  // namespace

TEST(groups_bf16) { check_random<__nv_bfloat16, __nv_bfloat16>(21, 3e-2F); }
TEST(groups_f16) { check_random<__half, __half>(22, 5e-3F); }
TEST(groups_int8) { check_random<kvc::Int8, __nv_bfloat16>(23, 3e-2F); }
TEST(groups_float) { check_random<float, float>(24, 1e-5F); }

TEST(groups_latent) {
  GroupSpec spec;
  spec.kind = {.kv_heads = 1, .key_dim = 576, .value_dim = 512, .latent = true};
  spec.options.scale = 0.07F;
  spec.group = 16;
  spec.sequences = {{1, 1}, {40, 40}, {190, 5}, {300, 1}};
  check_prefill<__nv_bfloat16, __nv_bfloat16, kvc::Paged>(spec, {.blocks = 60, .block_tokens = 16}, 3e-2F);
  check_prefill<kvc::Fp8E4M3, __half, kvc::Paged, kvc::TokenMajor>(spec, {.blocks = 60, .block_tokens = 16}, 1e-2F);
  spec.kind = {.kv_heads = 1, .key_dim = 192, .value_dim = 128, .window = 100, .latent = true};
  spec.options.window = 100;
  check_prefill<__nv_bfloat16, __nv_bfloat16, kvc::Paged>(spec, {.blocks = 60, .block_tokens = 16}, 3e-2F);
}

TEST(groups_rows_of_another_input) {
  GroupSpec spec;
  spec.kind = {.kv_heads = 2, .key_dim = 128, .cross_rows = 600};
  spec.options = options_of(spec.kind);
  spec.sequences = one_row_each({1, 30, 7});
  check_decode<__half, __half, kvc::Paged>(spec, {.blocks = 300, .block_tokens = 16}, 5e-3F);
  spec.sequences = {{1, 1}, {700, 650}, {30, 10}};
  check_prefill<__half, __half, kvc::Paged>(spec, {.blocks = 300, .block_tokens = 16}, 5e-3F);
}

namespace {

/// Random steps in two caches with groups, forks between them: the bytes of both pools are the same.
template <class T, class P, class L>
void check_cache(const kvc::LayerGroups& layers, const typename P::Config& config, std::uint64_t seed) {
  Stream stream;
  kvc::KvCache<T, P, L> host(layers, config);
  kvc::KvCache<T, P, L, cuda::DeviceSpace> device(layers, config, cuda::DeviceSpace(stream));
  const auto bytes = static_cast<std::size_t>(host.pool_bytes());
  std::memset(static_cast<void*>(host.data()), 0, bytes);
  KVC_CUDA(cudaMemsetAsync(device.data(), 0, bytes, stream));
  std::vector<std::unique_ptr<cuda::Batch>> batches, writes;
  for (std::size_t g = 0; g < layers.groups().size(); ++g) {
    for (auto* all : {&batches, &writes}) {
      all->push_back(
          std::make_unique<cuda::Batch>(cuda::BatchLimits{.sequences = 16, .blocks = 8192, .queries = 1024}));
    }
  }
  std::mt19937_64 random(seed);
  std::normal_distribution<float> normal;
  const auto below = [&](std::size_t n) { return random() % n; };
  std::vector<kvc::SeqId> open;
  for (int step = 0; step < 30; ++step) {
    if (open.size() < 6) {
      open.push_back(host.open());
      CHECK(device.open() == open.back());
    }
    if (below(2) == 0) {
      const kvc::SeqId parent = open[below(open.size())];
      const auto fork = host.try_fork(parent, host.length(parent));
      CHECK(fork == device.try_fork(parent, host.length(parent)));
      if (fork) {
        open.push_back(*fork);
      }
    }
    if (open.size() > 6) {
      const std::size_t at = below(open.size());
      host.close(open[at]);
      device.close(open[at]);
      open.erase(open.begin() + static_cast<std::ptrdiff_t>(at));
    }
    std::vector<typename decltype(host)::Append> steps;
    std::vector<typename decltype(device)::Append> same;
    for (const kvc::SeqId seq : open) {
      const std::vector<kvc::Token> tokens(below(9), static_cast<kvc::Token>(step));
      steps.push_back(host.extend(seq, tokens));
      same.push_back(device.extend(seq, tokens));
    }
    for (Index g = 0; g < static_cast<Index>(layers.groups().size()); ++g) {
      const bool cross = layers.groups()[static_cast<std::size_t>(g)].cross_rows > 0;
      cross ? writes[static_cast<std::size_t>(g)]->upload_cross_rows(device, g, same, stream)
            : writes[static_cast<std::size_t>(g)]->upload(device, g, same, stream);
    }
    for (Index layer = 0; layer < layers.layers(); ++layer) {
      const kvc::LayerPlace place = layers.place(layer);
      const kvc::LayerGroup& group = layers.groups()[static_cast<std::size_t>(place.group)];
      const cuda::Batch& batch = *writes[static_cast<std::size_t>(place.group)];
      Index rows = 0;
      for (const auto& append : steps) {
        rows += host.rows_to_write(layer, append);
      }
      const Index k_width = group.shape.kv_heads * group.shape.key_dim,
                  v_width = group.latent ? 0 : group.shape.kv_heads * group.shape.value_dim;
      std::vector<float> k(static_cast<std::size_t>(rows * k_width)), v(static_cast<std::size_t>(rows * v_width));
      std::generate(k.begin(), k.end(), [&] { return normal(random); });
      std::generate(v.begin(), v.end(), [&] { return normal(random); });
      const DeviceArray<float> k_there(k), v_there(v);
      const kvc::MatrixRef<const float> keys(k_there.data(), rows, k_width), values(v_there.data(), rows, v_width);
      group.latent ? cuda::write(cuda::view(device, layer), batch, keys, stream)
                   : cuda::write(cuda::view(device, layer), batch, keys, values, stream);
      Index row = 0;
      for (auto& append : steps) {
        const Index count = host.rows_to_write(layer, append);
        const kvc::MatrixRef<const float> own(k.data() + row * k_width, count, k_width);
        group.latent
            ? host.write(layer, append, own)
            : host.write(layer, append, own, kvc::MatrixRef<const float>(v.data() + row * v_width, count, v_width));
        row += count;
      }
      stream.wait();
    }
    for (std::size_t i = 0; i < steps.size(); ++i) {
      host.commit(std::move(steps[i]));
      device.commit(std::move(same[i]));
    }
  }
  device.space().flush();
  std::vector<unsigned char> there(bytes);
  KVC_CUDA(cudaDeviceSynchronize());
  KVC_CUDA(cudaMemcpy(there.data(), device.data(), bytes, cudaMemcpyDeviceToHost));
  CHECK(std::memcmp(there.data(), static_cast<const void*>(host.data()), bytes) == 0);
  device.verify();
}

}  // namespace

TEST(cache_of_layers_that_differ) {
  kvc::LayerGroups layers;
  layers.add({.kv_heads = 2, .key_dim = 64});
  layers.add({.kv_heads = 1, .key_dim = 32, .value_dim = 16, .window = 5}, 2);
  layers.add({.kv_heads = 1, .key_dim = 16, .window = 3, .kept = 2});
  layers.add({.kv_heads = 3, .key_dim = 8, .chunk = 6});
  layers.add({.kv_heads = 1, .key_dim = 576, .value_dim = 512, .latent = true}, 2);
  kvc::LayerGroups crossed = layers;
  crossed.add({.kv_heads = 2, .key_dim = 192, .cross_rows = 7});
  check_cache<__nv_bfloat16, kvc::Paged, kvc::HeadMajor>(crossed, {.blocks = 400, .block_tokens = 4}, 31);
  check_cache<float, kvc::PrefixShared<>, kvc::TokenMajor>(layers, {.blocks = 600, .block_tokens = 4}, 32);
  check_cache<kvc::Fp8E4M3, kvc::Contiguous, kvc::HeadMajor>(layers,
                                                             {.sequences = 8, .max_tokens = 260, .pass_tokens = 9}, 33);
}

/// States are bytes on the device: written there, they are what was written, in a fork, too.
TEST(cache_with_recurrent_layers) {
  kvc::LayerGroups layers;
  layers.add({.kv_heads = 1, .key_dim = 64});
  layers.add_state(1000, 3);
  Stream stream;
  kvc::KvCache<__half, kvc::Paged, kvc::HeadMajor, cuda::DeviceSpace> cache(layers, {.blocks = 64, .block_tokens = 16},
                                                                            cuda::DeviceSpace(stream));
  const kvc::SeqId seq = cache.open();
  auto append = cache.extend(seq, std::vector<kvc::Token>(10, 1), {4});
  for (const Pos length : cache.states_to_write(append)) {
    for (Index layer = 1; layer < 4; ++layer) {
      const std::span<std::byte> state = cuda::state_to_write(cache, layer, append, length);
      KVC_CUDA(cudaMemsetAsync(state.data(), static_cast<int>(16 * layer + length), state.size(), stream));
    }
  }
  cache.commit(std::move(append));
  const kvc::SeqId fork = cache.fork(seq);
  for (Index layer = 1; layer < 4; ++layer) {
    const std::span<const std::byte> state = cuda::state(cache, layer, fork);
    std::vector<unsigned char> there(state.size());
    stream.wait();
    KVC_CUDA(cudaMemcpy(there.data(), state.data(), there.size(), cudaMemcpyDeviceToHost));
    CHECK(std::all_of(there.begin(), there.end(), [&](unsigned char x) { return x == 16 * layer + 10; })) << layer;
  }
}

/// What the kernels do not compute is refused before a launch.
TEST(groups_refuse_what_does_not_fit) {
  kvc::LayerGroups layers;
  layers.add({.kv_heads = 1, .key_dim = 64});
  layers.add({.kv_heads = 1, .key_dim = 64, .window = 20});
  layers.add_reader_of(1);
  layers.add({.kv_heads = 1, .key_dim = 64, .tokens_per_row = 4});
  layers.add_state(100);
  Stream stream;
  Cache cache(layers, {.blocks = 200, .block_tokens = 16}, cuda::DeviceSpace(stream));
  const kvc::SeqId seq = cache.open();
  cache.commit(cache.extend(seq, std::vector<kvc::Token>(90, 1)));
  std::vector<Cache::Append> steps;
  steps.push_back(cache.extend(seq, {2}));
  cuda::Batch full({.sequences = 1, .blocks = 100, .queries = 64}),
      window({.sequences = 1, .blocks = 100, .queries = 64});
  cuda::DecodeWork work(
      {.sequences = 1, .positions = 1000, .query_heads = 1, .kv_heads = 1, .dim = 64, .format = Format::f16});
  full.upload(cache, 0, steps, stream);
  const kvc::BatchTables tables = window.upload(cache, 1, steps, stream);
  const DeviceArray<__half> in(64 * 64), out(64 * 64);
  const auto refused = [](auto f) {
    try {
      f();
      return false;
    } catch (const std::invalid_argument&) {
      return true;
    }
  };
  const auto prefill = [&](Index layer, const cuda::Batch& batch, const cuda::AttentionOptions& options) {
    return refused([&] { cuda::prefill(cuda::view(cache, layer), batch, 1, in.data(), out.data(), options, stream); });
  };
  CHECK(!prefill(0, full, {}));
  CHECK(!prefill(1, window, {.window = 20}));
  CHECK(!prefill(2, window, {.window = 7}));  // a reader sees the rows of its layer
  CHECK(prefill(0, window, {})) << "tables of another group";
  CHECK(prefill(1, window, {})) << "rows that are gone";
  CHECK(prefill(1, window, {.window = 21})) << "a row that is gone";
  CHECK(refused([&] { (void)cuda::view(cache, 3); })) << "compressed rows";
  CHECK(refused([&] { (void)cuda::view(cache, 4); })) << "a recurrent layer";
  CHECK(refused([&] { window.upload(cache, 0, steps, stream); })) << "a batch of another group";
  const kvc::MatrixRef<const __half> rows(in.data(), 1, 64);
  CHECK(refused([&] { cuda::write(cuda::view(cache, 2), window, rows, rows, stream); })) << "a reader";
  CHECK(refused([&] { cuda::write(cuda::view(cache, 1), window, rows, stream); })) << "not latent";
  work.upload(tables, {.window = 20}, stream);
  const auto decode = [&](Index layer, const cuda::Batch& batch, const cuda::AttentionOptions& options) {
    return refused(
        [&] { cuda::decode(cuda::view(cache, layer), batch, work, in.data(), out.data(), options, stream); });
  };
  CHECK(!decode(1, window, {.window = 20}));
  CHECK(decode(1, window, {.window = 20, .chunk = 4})) << "a chunk that was not planned for";
  CHECK(decode(0, full, {.window = 20})) << "the plan of another group";
  CHECK(refused([&] { work.upload(tables, {.window = 21}, stream); })) << "a row that is gone";
  // A query row behind what the step adds sees rows that are gone.
  CHECK(refused([&] {
    window.upload(kvc::make_tables(cache.policy(), 1, std::span<const kvc::SeqId>(&seq, 1),
                                   std::span<const Pos>(std::vector<Pos>{40})),
                  stream);
  }));
  stream.wait();
}

/// The loop that docs/cuda.md shows. It is compiled only: tests run its parts.
void decode_a_step(Cache& cache, std::span<const Cache::Append> steps, std::vector<kvc::cuda::Batch>& batches,
                   std::vector<kvc::cuda::DecodeWork>& works, const std::vector<kvc::Pos>& windows,
                   kvc::MatrixRef<const __half> k, kvc::MatrixRef<const __half> v, const __half* q, __half* out,
                   std::span<const float> sinks, cudaStream_t stream) {
  const std::size_t groups = cache.layers().groups().size();
  for (std::size_t g = 0; g < groups; ++g) {  // a step: each group has tables of its own
    const kvc::BatchTables tables = batches[g].upload(cache, static_cast<kvc::Index>(g), steps, stream);
    works[g].upload(tables, {.window = windows[g]}, stream);
  }
  for (kvc::Index layer = 0; layer < cache.layers().layers(); ++layer) {
    const auto g = static_cast<std::size_t>(cache.layers().place(layer).group);
    const auto kv = kvc::cuda::view(cache, layer);
    kvc::cuda::write(kv, batches[g], k, v, stream);
    kvc::cuda::decode(kv, batches[g], works[g], q, out, {.window = windows[g], .sinks = sinks}, stream);
  }
}
