// write() and copy-on-write: bytes read and written per second.
#include <string>
#include <vector>

#include "bench.hpp"
#include "kvc/cuda/append.cuh"
#include "kvc/cuda/batch.cuh"
#include "kvc/cuda/space.cuh"
#include "kvc/element/quantized.hpp"
#include "kvc/policy/paged.hpp"

namespace {

using namespace kvc_bench;
namespace cuda = kvc::cuda;
using kvc::Pos;
using Scalar = __nv_bfloat16;
constexpr Index kv_heads = 8, dim = 128;

template <class T>
void append(const char* name, Index sequences, Pos tokens, bool rotated) {
  constexpr Format F = cuda::format_of<T>;
  constexpr Index layers = 2;
  cudaStream_t stream = nullptr;
  KVC_CUDA(cudaStreamCreate(&stream));
  {
    kvc::KvCache<T, kvc::Paged, kvc::HeadMajor, cuda::DeviceSpace> cache(
        {.layers = layers, .kv_heads = kv_heads, .key_dim = dim},
        {.blocks = sequences * ((tokens + 15) / 16), .block_tokens = 16}, cuda::DeviceSpace(stream));
    std::vector<typename decltype(cache)::Append> steps;
    for (Index i = 0; i < sequences; ++i) {
      steps.push_back(cache.extend(cache.open(), tokens));
    }
    cuda::Batch batch({.sequences = sequences, .blocks = cache.policy().blocks(), .queries = sequences * tokens});
    (void)batch.upload(cache, steps, stream);
    const Index rows = sequences * tokens, width = kv_heads * dim;
    const std::size_t bytes = static_cast<std::size_t>(rows * width) * 2;
    const cuda::DeviceBuffer k(bytes), v(bytes), table(static_cast<std::size_t>(tokens * dim) * 4);
    fill<Format::bf16>(k.data(), static_cast<Index>(bytes), 256, stream);
    fill<Format::bf16>(v.data(), static_cast<Index>(bytes), 256, stream);
    KVC_CUDA(cudaMemsetAsync(table.data(), 0, table.size(), stream));
    const auto* const angles = reinterpret_cast<const float*>(table.data());
    const cuda::RopeView rope{rotated ? cuda::RopePairing::half_split : cuda::RopePairing::none, dim, angles, angles};
    const double moved = 2.0 * static_cast<double>(rows * kv_heads) * (dim * 2 + cuda::row_bytes(F, dim));
    report(name, "bytes", moved, times(stream, 20, [&](int i) {
             cuda::write(cuda::view(cache, i % layers), batch,
                         kvc::MatrixRef<const Scalar>(reinterpret_cast<const Scalar*>(k.data()), rows, width),
                         kvc::MatrixRef<const Scalar>(reinterpret_cast<const Scalar*>(v.data()), rows, width), stream,
                         rope);
           }));
  }
  KVC_CUDA(cudaStreamDestroy(stream));
}

/// Extends forks with a partly filled last block in one step. Their copies take one or a few launches.
void copy_on_write() {
  constexpr Index sequences = 64, layers = 32;
  cudaStream_t stream = nullptr;
  KVC_CUDA(cudaStreamCreate(&stream));
  {
    kvc::KvCache<Scalar, kvc::Paged, kvc::HeadMajor, cuda::DeviceSpace> cache(
        {.layers = layers, .kv_heads = kv_heads, .key_dim = dim}, {.blocks = 4 * sequences, .block_tokens = 16},
        cuda::DeviceSpace(stream));
    fill<Format::bf16>(cache.data(), cache.layout().size() * 2, 256, stream);
    std::vector<kvc::SeqId> parents, forks;
    for (Index i = 0; i < sequences; ++i) {
      parents.push_back(cache.open());
      cache.commit(cache.extend(parents.back(), 15));
      forks.push_back(cache.fork(parents.back()));
    }
    const double bytes = 2.0 * static_cast<double>(sequences * layers * kv_heads) * 15 * dim * 2 * 2;
    cudaEvent_t before = nullptr, after = nullptr;
    KVC_CUDA(cudaEventCreate(&before));
    KVC_CUDA(cudaEventCreate(&after));
    std::vector<float> all;
    for (int i = 0; i < 25; ++i) {
      std::vector<decltype(cache)::Append> steps;  // rolled back at the end: the same copies come again
      for (const kvc::SeqId seq : forks) {
        steps.push_back(cache.extend(seq, 1));
      }
      spin(2'000'000, stream);  // a millisecond: the copies are queued before it ends, so the CPU is not timed
      KVC_CUDA(cudaEventRecord(before, stream));
      cache.space().flush();
      KVC_CUDA(cudaEventRecord(after, stream));
      KVC_CUDA(cudaEventSynchronize(after));
      float milliseconds = 0;
      KVC_CUDA(cudaEventElapsedTime(&milliseconds, before, after));
      if (i >= 5) {
        all.push_back(milliseconds);
      }
    }
    std::sort(all.begin(), all.end());
    report("copy-on-write, 64 forks, 32 layers", "bytes", bytes, all);
    KVC_CUDA(cudaEventDestroy(before));
    KVC_CUDA(cudaEventDestroy(after));
  }
  KVC_CUDA(cudaStreamDestroy(stream));
}

}  // namespace

int main() {
  append<Scalar>("append bf16, 64 x 1024", 64, 1024, false);
  append<Scalar>("append bf16 with rope, 64 x 1024", 64, 1024, true);
  append<kvc::Fp8E4M3>("append fp8, 64 x 1024", 64, 1024, false);
  append<kvc::Int8>("append int8, 64 x 1024", 64, 1024, false);
  append<Scalar>("append bf16, 256 x 1", 256, 1, false);
  copy_on_write();
  return 0;
}
