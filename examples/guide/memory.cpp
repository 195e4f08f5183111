// Memory: how much a model needs, a pool in memory of your own, block sizes, and the pool as kernels of your own read
// it.
#include <array>
#include <cstddef>
#include <cstdio>
#include <cstdlib>
#include <vector>

#include "../usage.hpp"
#include "kvc/batch.hpp"
#include "kvc/cache.hpp"
#include "kvc/element/float16.hpp"
#include "kvc/element/quantized.hpp"
#include "kvc/interop/slots.hpp"
#include "kvc/interop/tensors.hpp"
#include "kvc/layout/layer_major.hpp"
#include "kvc/memory/borrowed_space.hpp"
#include "kvc/policy/paged.hpp"

namespace {

/// Bytes of keys and values that one token takes, before there is any pool.
template <class T>
kvc::Index bytes_per_token(const kvc::Shape& shape) {
  const kvc::Index units = kvc::Element<T>::row_size(shape.key_dim) + kvc::Element<T>::row_size(shape.value_dim);
  return shape.layers * shape.kv_heads * units * static_cast<kvc::Index>(sizeof(kvc::StorageOf<T>));
}

void size_a_pool() {
  const kvc::Shape llama_3_8b = kvc::validated({.layers = 32, .kv_heads = 8, .key_dim = 128});
  std::printf("bytes per token: bf16 %ld, int8 %ld, int4 %ld\n",
              static_cast<long>(bytes_per_token<Eigen::bfloat16>(llama_3_8b)),
              static_cast<long>(bytes_per_token<kvc::Int8>(llama_3_8b)),
              static_cast<long>(bytes_per_token<kvc::Int4>(llama_3_8b)));
  const kvc::Index memory = kvc::Index{16} << 30;  // what the weights leave
  const kvc::Pos block_tokens = 16;
  std::printf("blocks in 16 GiB: %ld\n",
              static_cast<long>(memory / (block_tokens * bytes_per_token<Eigen::bfloat16>(llama_3_8b))));
}

/// Memory of an arena that the engine owns: huge pages, shared memory, one NUMA node.
void use_own_memory() {
  using Cache = kvc::KvCache<float, kvc::Paged, kvc::HeadMajor, kvc::BorrowedSpace>;
  const kvc::Shape shape{.layers = 1, .kv_heads = 2, .key_dim = 16};
  const kvc::Paged::Config config{.blocks = 8, .block_tokens = 16};
  alignas(64) static std::array<std::byte, 1 << 16> arena;
  const kvc::Index bytes = Cache::pool_bytes(shape, config);  // before there is a cache
  Cache cache(shape, config, kvc::BorrowedSpace(arena.data(), static_cast<std::size_t>(bytes)));
  const bool inside = reinterpret_cast<std::byte*>(cache.data()) == arena.data();
  std::printf("a pool of %ld bytes lies in %s\n", static_cast<long>(bytes), inside ? "the arena" : "other memory");
}

/// Small blocks waste little and share much; large blocks are read faster and need shorter tables.
void compare_block_sizes() {
  for (const kvc::Pos block_tokens : {4, 16, 64}) {
    kvc::Paged policy({.blocks = 4096 / block_tokens, .block_tokens = block_tokens});  // a policy works without a cache
    for (kvc::Pos i = 0; i < 16; ++i) {
      const kvc::SeqId seq = policy.try_open()->seq;
      const kvc::Pos tokens = 50 + 13 * i;
      (void)policy.try_extend(seq, tokens).value();
      policy.commit(seq);
    }
    std::printf("blocks of %2d: %3ld blocks, %4.1f %% of their slots unused\n", block_tokens,
                static_cast<long>(policy.stats().blocks_referenced), 100 * policy.stats().internal_waste());
  }
}

/// A kernel of yours: it gets block tables, the pool and the layout, and nothing else of kvc.
void read_with_own_kernel() {
  using Cache = kvc::KvCache<float, kvc::Paged>;
  Cache cache({.layers = 1, .kv_heads = 1, .key_dim = 4}, {.blocks = 8, .block_tokens = 4});
  const std::array<kvc::SeqId, 2> sequences = {cache.open(), cache.open()};
  std::vector<Cache::Append> steps;
  for (std::size_t i = 0; i < sequences.size(); ++i) {
    const kvc::Pos tokens = static_cast<kvc::Pos>(5 + i);
    steps.push_back(cache.extend(sequences[i], tokens));
    std::vector<float> rows(static_cast<std::size_t>(tokens) * 4, static_cast<float>(i + 1));
    cache.write(0, steps[i], {rows.data(), tokens, 4}, {rows.data(), tokens, 4});
  }
  const kvc::BatchIndex batch = kvc::make_batch(cache, steps);  // build it after the last extend of a step
  for (std::size_t i = 0; i < sequences.size(); ++i) {
    double sum = 0;  // of the first elements of all keys
    for (std::int32_t p = 0; p < batch.seq_lens[i]; ++p) {
      const std::int32_t block =
          batch.kv_indices[static_cast<std::size_t>(batch.kv_indptr[i] + p / batch.block_tokens)];
      sum += static_cast<double>(cache.data()[cache.layout().k(kvc::BlockId{block}, 0, 0, p % batch.block_tokens)]);
    }
    std::printf("sequence %zu: %d positions, sum %.0f\n", i, batch.seq_lens[i], sum);
  }
  for (Cache::Append& step : steps) {
    cache.commit(std::move(step));
  }
}

/// What kernels of others take: the tensors of a layer, where new rows go, and the tables of the batch.
void feed_other_kernels() {
  using Cache = kvc::KvCache<float, kvc::Paged, kvc::LayerMajor<>>;  // a pool for each layer, NHD
  Cache cache({.layers = 2, .kv_heads = 2, .key_dim = 64}, {.blocks = 8, .block_tokens = 16});
  std::vector<Cache::Append> steps;
  steps.push_back(cache.extend(cache.open(), 20));
  kvc::interop::LayerTensors layer = kvc::interop::layer_tensors(cache, 1);
  const kvc::interop::DLTensor keys = layer.k.dl_tensor();                               // for whatever reads DLPack
  const std::vector<std::int64_t> slots = kvc::interop::slot_mapping(cache, steps, 32);  // padded with -1
  const kvc::BatchIndex batch = kvc::make_batch(cache, steps);
  std::printf("keys [%ld, %ld, %ld, %ld], strides [%ld, %ld, %ld, %ld]\n", static_cast<long>(keys.shape[0]),
              static_cast<long>(keys.shape[1]), static_cast<long>(keys.shape[2]), static_cast<long>(keys.shape[3]),
              static_cast<long>(keys.strides[0]), static_cast<long>(keys.strides[1]),
              static_cast<long>(keys.strides[2]), static_cast<long>(keys.strides[3]));
  std::printf("row 19 goes to slot %ld, row 20 to %ld; %ld blocks\n", static_cast<long>(slots[19]),
              static_cast<long>(slots[20]), static_cast<long>(batch.max_blocks));
}

}  // namespace

int main(int argc, char** argv) {
  return run_example(
      argc, argv, "Memory of a model, a pool in memory of your own, block sizes, and the pool for kernels of your own.",
      [] {
        size_a_pool();
        use_own_memory();
        compare_block_sizes();
        read_with_own_kernel();
        feed_other_kernels();
      });
}
