// prefill(): floating-point operations per second of the two products, counting visible keys only.
#include <algorithm>
#include <vector>

#include "bench.hpp"
#include "kvc/cuda/prefill.cuh"
#include "kvc/cuda/space.cuh"
#include "kvc/policy/paged.hpp"

namespace {

using namespace kvc_bench;
namespace cuda = kvc::cuda;
using kvc::Pos;
using Scalar = __nv_bfloat16;
constexpr Index query_heads = 32, kv_heads = 8;

/// `batch` sequences of `positions`, of which the last `queries` have query rows, in a Batch for `limits`, or for
/// these.
void prefill(const char* name, Index batch, Pos positions, Pos queries, Index dim,
             cuda::PrefillKernel kernel = cuda::PrefillKernel::best, const cuda::PrefillBounds& limits = {0, 0}) {
  constexpr Index layers = 2;  // input sets
  cudaStream_t stream = nullptr;
  KVC_CUDA(cudaStreamCreate(&stream));
  {
    kvc::KvCache<Scalar, kvc::Paged, kvc::HeadMajor, cuda::DeviceSpace> cache(
        {.layers = layers, .kv_heads = kv_heads, .key_dim = dim},
        {.blocks = batch * ((positions + 15) / 16), .block_tokens = 16}, cuda::DeviceSpace(stream));
    fill<Format::bf16>(cache.data(), cache.layout().size() * 2, 256, stream);
    std::vector<kvc::SeqId> sequences;
    for (Index i = 0; i < batch; ++i) {
      sequences.push_back(cache.open());
    }
    for (Pos at = 0; at < positions; at += 16) {  // in turns, which scatters the blocks of a sequence
      for (const kvc::SeqId seq : sequences) {
        cache.commit(cache.extend(seq, std::min<Pos>(16, positions - at)));
      }
    }
    const std::vector<Pos> rows(sequences.size(), queries);
    const kvc::BatchTables tables =
        kvc::make_tables(cache.policy(), std::span<const kvc::SeqId>(sequences), std::span<const Pos>(rows));
    cuda::Batch of({.sequences = std::max(batch, limits.sequences),
                    .blocks = cache.policy().blocks(),
                    .queries = std::max(batch * queries, limits.queries)});
    of.upload(tables, stream);
    const auto bytes = static_cast<std::size_t>(batch * queries * query_heads * dim) * 2;
    const cuda::DeviceBuffer q(bytes), out(bytes);
    fill<Format::bf16>(q.data(), static_cast<Index>(bytes), 256, stream);
    constexpr const char* paths[] = {"plain kernel", "by warps", "by warpgroups", "by warpgroups, bulk copies"};
    std::printf("path\t%s\t%s\n", name,
                paths[static_cast<int>(cuda::prefill_path<Scalar>(cuda::view(cache, 0), kernel))]);
    const double keys = static_cast<double>(queries) * (static_cast<double>(positions) - 0.5 * (queries - 1));
    report(name, "flops", 4.0 * static_cast<double>(batch * query_heads * dim) * keys, times(stream, 20, [&](int i) {
             cuda::prefill(cuda::view(cache, i % layers), of, query_heads, reinterpret_cast<const Scalar*>(q.data()),
                           reinterpret_cast<Scalar*>(out.data()), {}, stream, nullptr, {}, kernel);
           }));
  }
  KVC_CUDA(cudaStreamDestroy(stream));
}

}  // namespace

int main() {
  prefill("prefill bf16, 16384 causal", 1, 16384, 16384, 128);
  prefill("prefill bf16, 16384 causal, by warps", 1, 16384, 16384, 128, cuda::PrefillKernel::warps);
  prefill("prefill bf16, 2048 after 14336", 1, 16384, 2048, 128);
  prefill("prefill bf16, 16 x 1024 causal", 16, 1024, 1024, 128);
  // A batch far below its limits, and few rows after a long prefix.
  prefill("prefill bf16, 512 causal", 1, 512, 512, 128);
  prefill("prefill bf16, 512 causal, limits 256 x 32", 1, 512, 512, 128, cuda::PrefillKernel::best, {256, 8192});
  prefill("prefill bf16, 8 after 8192", 1, 8200, 8, 128);
  prefill("prefill bf16, dim 64, 16384 causal", 1, 16384, 16384, 64);
  prefill("prefill bf16, dim 256, 16384 causal", 1, 16384, 16384, 256);
  return 0;
}
