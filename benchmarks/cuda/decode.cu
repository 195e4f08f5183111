// decode(): bytes of keys and values read per second.
#include <cstring>
#include <random>
#include <string>
#include <vector>

#include "bench.hpp"
#include "kvc/cuda/decode.cuh"
#include "kvc/cuda/decode_latent.cuh"
#include "kvc/cuda/space.cuh"
#include "kvc/element/quantized.hpp"
#include "kvc/layout/layer_groups.hpp"
#include "kvc/layout/scale_planes.hpp"
#include "kvc/policy/contiguous.hpp"
#include "kvc/policy/paged.hpp"

namespace {

using namespace kvc_bench;
namespace cuda = kvc::cuda;
using kvc::Pos;
using Scalar = __nv_bfloat16;

struct Setup {
  const char* name;
  Index batch;
  Pos positions;
  Pos prefix = 0;  ///< of the positions: shared by all
  bool share = true;
  Index layers = 2;    ///< input sets
  bool graph = false;  ///< time a graph of the decodes of all layers, as a step of generation launches them
  Pos rows = 1;        ///< query rows of each sequence
};
constexpr Index query_heads = 32, kv_heads = 8, dim = 128;

/// Sequences that grow in random turns, so that the blocks of each are scattered.
template <class Cache>
std::vector<kvc::SeqId> grow(Cache& cache, const Setup& setup) {
  std::vector<kvc::SeqId> sequences;
  kvc::SeqId root = cache.open();
  if (setup.prefix > 0) {
    cache.commit(cache.extend(root, setup.prefix));
  }
  for (Index i = 0; i < setup.batch; ++i) {
    sequences.push_back(setup.prefix > 0 ? cache.fork(root) : i == 0 ? root : cache.open());
  }
  std::mt19937 random(1);
  std::vector<std::size_t> turns;
  for (std::size_t i = 0; i < sequences.size(); ++i) {
    turns.insert(turns.end(), static_cast<std::size_t>((setup.positions - setup.prefix + 15) / 16), i);
  }
  std::shuffle(turns.begin(), turns.end(), random);
  for (const std::size_t i : turns) {
    const Pos left = setup.positions - cache.length(sequences[i]);
    cache.commit(cache.extend(sequences[i], std::min<Pos>(left, 16)));
  }
  return sequences;
}

/// Fills a pool with random rows: codes, then scales, where these lie in planes.
template <Format F, class Cache>
void fill_pool(Cache& cache, int row, cudaStream_t stream) {
  auto* const pool = reinterpret_cast<std::byte*>(cache.data());
  const Index bytes = cache.layout().size() * static_cast<Index>(sizeof(typename Cache::Storage));
  if constexpr (requires { cache.layout().k_scale_stride(); }) {
    const Index codes = cache.layout().k_scales(kvc::BlockId{0}, 0, 0, 0);
    fill<Format::fp8_e4m3>(pool, codes, row, stream);  // any codes
    fill<F>(pool + codes, bytes - codes, 4, stream);
  } else {
    fill<F>(pool, bytes, row, stream);
  }
}

template <class T, class P, class L = kvc::HeadMajor>
void run(const Setup& setup, const typename P::Config& config) {
  constexpr Format F = cuda::format_of<T>;
  cudaStream_t stream = nullptr;
  KVC_CUDA(cudaStreamCreate(&stream));
  {
    kvc::KvCache<T, P, L, cuda::DeviceSpace> cache({.layers = setup.layers, .kv_heads = kv_heads, .key_dim = dim},
                                                   config, cuda::DeviceSpace(stream));
    fill_pool<F>(cache, cuda::row_bytes(F, dim), stream);
    const std::vector<kvc::SeqId> sequences = grow(cache, setup);
    const std::vector<Pos> queries(sequences.size(), setup.rows);
    const Index rows = setup.batch * setup.rows;
    const kvc::BatchTables tables =
        kvc::make_tables(cache.policy(), std::span<const kvc::SeqId>(sequences), std::span<const Pos>(queries));
    cuda::Batch batch(
        {.sequences = setup.batch, .blocks = static_cast<Index>(tables.kv_indices.size()), .queries = rows});
    cuda::DecodeWork work({.sequences = rows,
                           .positions = rows * setup.positions,
                           .query_heads = query_heads,
                           .kv_heads = kv_heads,
                           .dim = dim,
                           .format = F});
    batch.upload(tables, stream);
    work.upload(tables, {}, stream, setup.share, cuda::QueryRows::every);
    const std::size_t row_bytes = static_cast<std::size_t>(rows * query_heads * dim) * 2;
    const cuda::DeviceBuffer q(row_bytes), out(row_bytes);
    fill<Format::bf16>(q.data(), static_cast<Index>(row_bytes), 256, stream);
    const double bytes = 2.0 * static_cast<double>(setup.batch * setup.positions * kv_heads) * cuda::row_bytes(F, dim);
    const auto decode = [&](Index layer) {
      cuda::decode(cuda::view(cache, layer), batch, work, reinterpret_cast<const Scalar*>(q.data()),
                   reinterpret_cast<Scalar*>(out.data()), {}, stream);
    };
    if (setup.graph) {
      cudaGraph_t graph = nullptr;
      cudaGraphExec_t runnable = nullptr;
      (void)cuda::view(cache, 0);  // queued copies are launched, and the stream waited for, before the capture
      KVC_CUDA(cudaStreamSynchronize(stream));
      KVC_CUDA(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal));
      for (Index layer = 0; layer < setup.layers; ++layer) {
        decode(layer);
      }
      KVC_CUDA(cudaStreamEndCapture(stream, &graph));
      KVC_CUDA(cudaGraphInstantiate(&runnable, graph, 0));
      report(setup.name, "bytes", bytes * static_cast<double>(setup.layers),
             times(stream, 30, [&](int) { KVC_CUDA(cudaGraphLaunch(runnable, stream)); }));
      KVC_CUDA(cudaGraphExecDestroy(runnable));
      KVC_CUDA(cudaGraphDestroy(graph));
    } else {
      report(setup.name, "bytes", bytes, times(stream, 30, [&](int i) { decode(i % setup.layers); }));
    }
  }
  KVC_CUDA(cudaStreamDestroy(stream));
}

template <class T, class L = kvc::HeadMajor>
void paged(const Setup& setup) {
  const Index blocks = setup.batch * ((setup.positions + 15) / 16 + 1) + setup.prefix / 16 + 2;
  run<T, kvc::Paged, L>(setup, {.blocks = blocks, .block_tokens = 16});
}
/// Latent rows of 576 elements with values of 512. Few heads are limited by memory, many by products.
void latent(const Setup& setup, Index heads) {
  constexpr Index key_dim = 576, value_dim = 512;
  cudaStream_t stream = nullptr;
  KVC_CUDA(cudaStreamCreate(&stream));
  {
    kvc::LayerGroups layers;
    layers.add({.kv_heads = 1, .key_dim = key_dim, .value_dim = value_dim, .latent = true}, setup.layers);
    const Index blocks = setup.batch * ((setup.positions + 15) / 16 + 1) + 2;
    kvc::KvCache<Scalar, kvc::Paged, kvc::HeadMajor, cuda::DeviceSpace> cache(
        layers, {.blocks = blocks, .block_tokens = 16}, cuda::DeviceSpace(stream));
    fill<Format::bf16>(cache.data(), cache.pool_bytes(), 2 * key_dim, stream);
    const std::vector<kvc::SeqId> sequences = grow(cache, setup);
    const kvc::BatchTables tables = kvc::make_tables(cache.policy(), std::span<const kvc::SeqId>(sequences),
                                                     std::span<const Pos>(std::vector<Pos>(sequences.size(), 1)));
    cuda::Batch batch(
        {.sequences = setup.batch, .blocks = static_cast<Index>(tables.kv_indices.size()), .queries = setup.batch});
    cuda::DecodeWork work({.sequences = setup.batch,
                           .positions = setup.batch * setup.positions,
                           .query_heads = heads,
                           .kv_heads = 1,
                           .dim = key_dim,
                           .format = Format::bf16,
                           .value_dim = value_dim});
    batch.upload(tables, stream);
    work.upload(tables, {}, stream);
    const auto elements = static_cast<std::size_t>(setup.batch * heads);
    const cuda::DeviceBuffer q(elements * key_dim * 2), out(elements * value_dim * 2);
    fill<Format::bf16>(q.data(), static_cast<Index>(elements) * key_dim * 2, 2 * key_dim, stream);
    const auto positions = static_cast<double>(setup.batch * setup.positions);
    const auto measured = times(stream, 30, [&](int i) {
      cuda::decode_latent(cuda::view(cache, i % setup.layers), batch, work, reinterpret_cast<const Scalar*>(q.data()),
                          reinterpret_cast<Scalar*>(out.data()), {.scale = 0.07F}, stream);
    });
    heads < 64
        ? report(setup.name, "bytes", positions * key_dim * 2, measured)
        : report(setup.name, "flops", positions * static_cast<double>(2 * heads * (key_dim + value_dim)), measured);
  }
  KVC_CUDA(cudaStreamDestroy(stream));
}
template <class T>
void contiguous(const Setup& setup) {
  run<T, kvc::Contiguous>(setup, {.sequences = setup.batch, .max_tokens = setup.positions});
}

}  // namespace

int main() {
  paged<Scalar>({"decode bf16, 64 x 8192, paged 16", 64, 8192});
  contiguous<Scalar>({"decode bf16, 64 x 8192, contiguous", 64, 8192});
  paged<kvc::Fp8E4M3>({"decode fp8, 64 x 8192, paged 16", 64, 8192});
  paged<kvc::Int8>({"decode int8, 64 x 8192, paged 16", 64, 8192});
  paged<kvc::Int8, kvc::ScalePlanes<kvc::HeadMajor>>({"decode int8, 64 x 8192, scales in planes", 64, 8192});
  latent({"decode latent bf16, 64 x 8192, 16 heads", 64, 8192}, 16);
  latent({"decode latent bf16, 64 x 8192, 128 heads", 64, 8192}, 128);
  paged<Scalar>({"decode bf16, 1 x 131072, paged 16", 1, 131072});
  paged<Scalar>({"decode bf16, 1 x 8192, paged 16", 1, 8192, 0, true, 16});
  paged<Scalar>({"decode bf16, 256 x 1024, paged 16", 256, 1024});
  // As speculative decoding has them; the same rows by prefill are in prefill.cu. Bytes are counted once for all rows.
  paged<Scalar>({"decode bf16, 8 rows after 8192", 1, 8200, 0, true, 16, false, 8});
  paged<Scalar>({"decode bf16, 64 share 8192, read once", 64, 8208, 8192, true, 8});
  paged<Scalar>({"decode bf16, 64 share 8192, each by itself", 64, 8208, 8192, false, 8});
  paged<Scalar>({"decode bf16, 1 x 8192, 32 layers in a graph", 1, 8192, 0, true, 32, true});
  paged<Scalar>({"decode bf16, 8 x 1024, 32 layers in a graph", 8, 1024, 0, true, 32, true});
  // With 32 layers the blocks of one layer are 2 MiB apart: each lies in another page of the device's memory.
  paged<Scalar>({"decode bf16, 16 x 8192, paged 16, 2 layers", 16, 8192});
  paged<Scalar>({"decode bf16, 16 x 8192, paged 16, 32 layers", 16, 8192, 0, true, 32});
  return 0;
}
