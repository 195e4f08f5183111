// Decode of latent rows on a device, against the definition of attention.
#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <vector>

#include "device_memory.hpp"
#include "device_test.hpp"
#include "group_case.hpp"
#include "kvc/cuda/batch.cuh"
#include "kvc/cuda/decode_latent.cuh"
#include "kvc/cuda/element.cuh"
#include "kvc/cuda/space.cuh"
#include "kvc/policy/contiguous.hpp"
#include "kvc/policy/paged.hpp"
#include "kvc/policy/prefix_shared.hpp"

namespace {

using namespace kvc_test;
namespace cuda = kvc::cuda;

/// Right; the same bits with small items and with large ones; and each sequence has the bits that it has alone.
template <class T, class Scalar, class P, class L = kvc::HeadMajor>
void check_latent(const GroupSpec& spec, const typename P::Config& config, float tolerance) {
  constexpr Format Q = cuda::format_of<Scalar>;
  GroupCase<T, P, L, Q> c(spec, config);
  cuda::DeviceBuffer pool(static_cast<std::size_t>(c.cache.pool_bytes()));
  to_device(pool.data(), c.cache.data(), pool.size());
  const DeviceArray<float> sinks(c.sinks);
  const auto sequences = static_cast<Index>(c.steps.size());
  cuda::Batch batch({.sequences = sequences, .blocks = 100000, .queries = sequences});
  cuda::DecodeWork work({.sequences = sequences,
                         .positions = 20000,
                         .query_heads = c.query_heads(),
                         .kv_heads = c.shape().kv_heads,
                         .dim = c.shape().key_dim,
                         .format = Q,
                         .value_dim = c.shape().value_dim});
  const auto run = [&](std::size_t first, std::size_t count, cuda::SmallItems small, std::vector<float>& lse) {
    Stream stream;
    const kvc::BatchTables tables = c.tables_of(first, count);
    const DeviceArray<std::byte> in(c.q_rows(static_cast<Index>(first), static_cast<Index>(count))),
        out(c.out_bytes(static_cast<Index>(count)));
    const DeviceArray<float> sums(count * static_cast<std::size_t>(c.query_heads()));
    const kvc::AttentionOptions options = c.options(sinks.data());
    batch.upload(tables, stream);
    work.upload(tables, cuda::seen_by(options), stream, true, cuda::QueryRows::last, small);
    cuda::decode_latent(c.layer_view(pool.data()), batch, work, reinterpret_cast<const Scalar*>(in.data()),
                        reinterpret_cast<Scalar*>(out.data()), options, stream, sums.data());
    stream.wait();
    lse = sums.host();
    return out.host();
  };
  std::vector<float> lse, expected_lse;
  const std::vector<std::byte> out = run(0, c.steps.size(), cuda::SmallItems::never, lse);
  const float difference = c.difference(out, c.expected(expected_lse));
  CHECK(difference < tolerance) << "heads" << c.query_heads() << "difference" << difference;
  CHECK(lse_difference(lse, expected_lse) < 4e-6F) << lse_difference(lse, expected_lse);
  CHECK(run(0, c.steps.size(), cuda::SmallItems::always, lse) == out) << "other bits with small items";
  for (std::size_t b = 0; b < c.steps.size(); ++b) {
    const std::vector<std::byte> same = run(b, 1, cuda::SmallItems::where_few, lse);
    const auto at = static_cast<std::ptrdiff_t>(c.out_bytes(static_cast<Index>(b)));
    CHECK(std::equal(same.begin(), same.end(), out.begin() + at)) << "sequence" << b << "has other bits alone";
  }
}

}  // namespace

TEST(latent_decode) {
  GroupSpec spec;
  spec.kind = {.kv_heads = 1, .key_dim = 576, .value_dim = 512, .latent = true};
  spec.options.scale = 0.07F;
  for (const Index group : {5, 16, 40, 128}) {
    spec.group = group;
    spec.sequences = one_row_each({1, 40, 511, 512, 1300});
    check_latent<__nv_bfloat16, __nv_bfloat16, kvc::Paged>(spec, {.blocks = 300, .block_tokens = 16}, 3e-2F);
    check_latent<__half, __half, kvc::Contiguous, kvc::TokenMajor>(spec, {.sequences = 5, .max_tokens = 1400}, 5e-3F);
  }
  spec.group = 16;
  spec.common = 600;
  spec.sequences = one_row_each({700, 601, 605, 900, 1100, 610});
  check_latent<__nv_bfloat16, __nv_bfloat16, kvc::PrefixShared<>>(spec, {.blocks = 400, .block_tokens = 16}, 3e-2F);
}

TEST(latent_decode_with_a_window_and_sinks) {
  GroupSpec spec;
  spec.kind = {.kv_heads = 2, .key_dim = 192, .value_dim = 128, .window = 100, .latent = true};
  spec.options.window = 100;
  spec.options.softcap = 5.0F;
  spec.sinks = true;
  spec.group = 20;
  spec.sequences = one_row_each({1, 40, 600, 1100});
  check_latent<__half, __half, kvc::Paged>(spec, {.blocks = 300, .block_tokens = 7}, 5e-3F);
}

namespace {

/// The loop that docs/cuda.md shows. It is compiled only.
template <class Cache>
void decode_a_latent_step(Cache& cache, const kvc::cuda::Batch& batch, const kvc::BatchTables& tables,
                          const __nv_bfloat16* q, __nv_bfloat16* out, float scale, cudaStream_t stream) {
  kvc::cuda::DecodeWork work({.sequences = 256,
                              .positions = 1 << 18,
                              .query_heads = 128,
                              .kv_heads = 1,
                              .dim = 576,
                              .format = kvc::cuda::format_of<__nv_bfloat16>,
                              .value_dim = 512});
  work.upload(tables, /*seen=*/{}, stream);
  for (kvc::Index layer = 0; layer < cache.layers().layers(); ++layer) {
    kvc::cuda::decode_latent(kvc::cuda::view(cache, layer), batch, work, q, out, {.scale = scale}, stream);
  }
}
using LatentCache = kvc::KvCache<__nv_bfloat16, kvc::PrefixShared<>, kvc::HeadMajor, kvc::cuda::DeviceSpace>;
[[maybe_unused]] constexpr auto latent_step = decode_a_latent_step<LatentCache>;

}  // namespace
