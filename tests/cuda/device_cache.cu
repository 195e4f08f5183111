// A cache in device memory and one in host memory: the same operations leave the same bytes.
#include <algorithm>
#include <random>

#include "decode_case.hpp"
#include "device_memory.hpp"
#include "device_test.hpp"
#include "kvc/cuda/append.cuh"
#include "kvc/cuda/batch.cuh"
#include "kvc/cuda/rows.cuh"
#include "kvc/cuda/space.cuh"
#include "kvc/element/quantized.hpp"
#include "kvc/policy/contiguous.hpp"
#include "kvc/policy/paged.hpp"
#include "kvc/policy/prefix_shared.hpp"

namespace {

using namespace kvc_test;
namespace cuda = kvc::cuda;

/// Whether both pools have the same bytes. Both begin as zeros.
template <class Host, class Device>
bool same_pools(const Host& host, const Device& device) {
  const auto bytes = static_cast<std::size_t>(host.layout().size()) * sizeof(typename Host::Storage);
  std::vector<unsigned char> there(bytes);
  KVC_CUDA(cudaDeviceSynchronize());
  KVC_CUDA(cudaMemcpy(there.data(), device.data(), bytes, cudaMemcpyDeviceToHost));
  return std::memcmp(there.data(), static_cast<const void*>(host.data()), bytes) == 0;
}

/// Random steps of a batch (extend, copies, write, commit), with forks and closed sequences between them.
template <class T, class P, class L>
void check_cache(const typename P::Config& config, std::uint64_t seed) {
  const kvc::Shape shape{.layers = 3, .kv_heads = 2, .key_dim = 64, .value_dim = 128};
  Stream stream;
  kvc::KvCache<T, P, L> host(shape, config);
  kvc::KvCache<T, P, L, cuda::DeviceSpace> device(shape, config, cuda::DeviceSpace(stream));
  const auto bytes = static_cast<std::size_t>(host.layout().size()) * sizeof(kvc::StorageOf<T>);
  std::memset(static_cast<void*>(host.data()), 0, bytes);
  KVC_CUDA(cudaMemsetAsync(device.data(), 0, bytes, stream));
  cuda::Batch batch({.sequences = 16, .blocks = 4096, .queries = 1024});
  std::mt19937_64 random(seed);
  std::normal_distribution<float> normal;
  const auto below = [&](std::size_t n) { return random() % n; };
  std::vector<kvc::SeqId> open;
  for (int step = 0; step < 40; ++step) {
    if (open.size() < 8) {
      const auto seq = host.try_open();
      CHECK(seq.has_value() == device.try_open().has_value());
      if (seq) {
        open.push_back(seq->seq);
      }
    }
    if (!open.empty() && below(2) == 0) {
      const kvc::SeqId parent = open[below(open.size())];
      const auto at = static_cast<Pos>(below(static_cast<std::size_t>(host.length(parent)) + 1));
      const auto fork = host.try_fork(parent, at);
      CHECK(fork == device.try_fork(parent, at));
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
    Index rows = 0;
    for (const kvc::SeqId seq : open) {
      const auto count = static_cast<Pos>(below(9));
      auto extended = host.try_extend_without_tokens(seq, count);
      auto there = device.try_extend_without_tokens(seq, count);
      CHECK(extended.has_value() == there.has_value());
      if (extended && there) {
        rows += count;
        steps.push_back(std::move(*extended));
        same.push_back(std::move(*there));
      }
    }
    batch.upload(device, same, stream);
    for (Index layer = 0; layer < shape.layers; ++layer) {
      std::vector<float> k(static_cast<std::size_t>(rows * 128)), v(static_cast<std::size_t>(rows * 256));
      std::generate(k.begin(), k.end(), [&] { return normal(random); });
      std::generate(v.begin(), v.end(), [&] { return normal(random); });
      const DeviceArray<float> k_there(k), v_there(v);
      cuda::write(cuda::view(device, layer), batch, kvc::MatrixRef<const float>(k_there.data(), rows, 128),
                  kvc::MatrixRef<const float>(v_there.data(), rows, 256), stream);
      Index row = 0;
      for (auto& append : steps) {
        host.write(layer, append, kvc::MatrixRef<const float>(k.data() + row * 128, append.size(), 128),
                   kvc::MatrixRef<const float>(v.data() + row * 256, append.size(), 256));
        row += append.size();
      }
      stream.wait();
    }
    for (std::size_t i = 0; i < steps.size(); ++i) {
      host.commit(std::move(steps[i]));
      device.commit(std::move(same[i]));
    }
  }
  device.space().flush();
  CHECK(same_pools(host, device));
  device.verify();
}

template <class T>
void check_policies() {
  check_cache<T, kvc::Paged, kvc::HeadMajor>({.blocks = 200, .block_tokens = 16}, 1);
  check_cache<T, kvc::Paged, kvc::TokenMajor>({.blocks = 900, .block_tokens = 5}, 2);
  check_cache<T, kvc::PrefixShared<>, kvc::HeadMajor>({.blocks = 400, .block_tokens = 8}, 3);
  check_cache<T, kvc::Contiguous, kvc::TokenMajor>(
      {.sequences = 12, .max_tokens = 300, .pool_tokens = 2000, .mode = kvc::Contiguous::Mode::grow}, 4);
}

}  // namespace

TEST(cache_f32) { check_policies<float>(); }
TEST(cache_f16) { check_policies<__half>(); }
TEST(cache_bf16) { check_policies<__nv_bfloat16>(); }
TEST(cache_fp8) { check_policies<kvc::Fp8E4M3>(); }
TEST(cache_int8) { check_policies<kvc::Int8>(); }

/// Moves rows to pinned host memory, and from there into a cache of another policy.
TEST(offload_and_restore) {
  const kvc::Shape shape{.layers = 2, .kv_heads = 4, .key_dim = 128};
  Stream stream;
  kvc::KvCache<kvc::Int8, kvc::Paged, kvc::HeadMajor, cuda::DeviceSpace> from(shape, {.blocks = 40, .block_tokens = 16},
                                                                              cuda::DeviceSpace(stream));
  kvc::KvCache<kvc::Int8, kvc::Contiguous, kvc::TokenMajor, cuda::DeviceSpace> to(
      shape, {.sequences = 2, .max_tokens = 300}, cuda::DeviceSpace(stream));
  std::mt19937_64 random(7);
  const auto pool_bytes = static_cast<std::size_t>(from.layout().size());
  std::vector<unsigned char> noise(pool_bytes);
  std::generate(noise.begin(), noise.end(), [&] { return static_cast<unsigned char>(random()); });
  KVC_CUDA(cudaMemcpyAsync(from.data(), noise.data(), pool_bytes, cudaMemcpyHostToDevice, stream));
  const kvc::SeqId a = from.open(), b = to.open();
  constexpr Pos length = 250;
  from.commit(from.extend_without_tokens(a, length));
  to.commit(to.extend_without_tokens(b, length));
  const auto row = static_cast<std::size_t>(4 * length) * static_cast<std::size_t>(cuda::row_bytes(Format::int8, 128));
  cuda::PinnedBuffer k(row), v(row), k_again(row), v_again(row);
  const std::vector<Pos> rows(1, length);
  cuda::Batch batch({.sequences = 1, .blocks = 100, .queries = length});
  for (Index layer = 0; layer < shape.layers; ++layer) {
    batch.upload(kvc::make_tables(from.policy(), std::span<const kvc::SeqId>(&a, 1), std::span<const Pos>(rows)),
                 stream);
    cuda::gather(cuda::view(from, layer), batch, k.data(), v.data(), stream);
    batch.upload(kvc::make_tables(to.policy(), std::span<const kvc::SeqId>(&b, 1), std::span<const Pos>(rows)), stream);
    cuda::scatter(cuda::view(to, layer), batch, k.data(), v.data(), stream);
    cuda::gather(cuda::view(to, layer), batch, k_again.data(), v_again.data(), stream);
    stream.wait();
    CHECK(std::memcmp(k.data(), k_again.data(), row) == 0);
    CHECK(std::memcmp(v.data(), v_again.data(), row) == 0);
    CHECK(std::memcmp(k.data(), v.data(), row) != 0);
    const auto first = from.layout().k(from.policy().block_table(a)[0], layer, 0, 0);
    CHECK(std::memcmp(k.data(), noise.data() + first, 132) == 0) << "the first row is not that of the pool";
  }
}

namespace {
/// Keeps the device busy for so many clocks, so that whatever follows on the stream waits.
__global__ void spin_kernel(long long clocks) {
  const long long start = clock64();
  while (clock64() - start < clocks) {
  }
}
}  // namespace

/// Uploads run ahead of the device: what a kernel sees is what was uploaded before it. The host is faster than the
/// device only while that spins; without, no buffer would ever be in use when it is written again.
TEST(uploads_are_not_overwritten_in_flight) {
  Stream stream;
  constexpr Index sequences = 64;
  cuda::Batch batch({.sequences = sequences, .blocks = 1 << 16, .queries = sequences});
  constexpr int rounds = 200;
  DeviceArray<std::int32_t> seen(rounds * sequences);
  bool behind = true;
  for (int round = 0; round < rounds; ++round) {
    if (round % 20 == 0) {
      spin_kernel<<<1, 1, 0, stream>>>(50'000'000);  // 25 ms and more: a round takes the host less than one
      cuda::detail::check_launch("spin_kernel");
    }
    kvc::BatchTables tables;
    tables.block_tokens = 16;
    for (int i = 0; i < sequences; ++i) {
      tables.seq_lens.push_back(round * 1000 + i);
      tables.kv_indptr.push_back(1000 * (i + 1));
      tables.q_indptr.push_back(i + 1);
    }
    tables.kv_indices.assign(1000 * sequences, round);
    batch.upload(tables, stream);
    KVC_CUDA(cudaMemcpyAsync(seen.data() + round * sequences, batch.view().seq_lens, sequences * sizeof(std::int32_t),
                             cudaMemcpyDeviceToDevice, stream));
    if (round % 20 == 1) {  // both buffers are in flight now, and the next upload has to wait for the first
      behind = behind && cudaStreamQuery(stream) == cudaErrorNotReady;
    }
  }
  CHECK(behind) << "the device was done before the third upload: nothing was tested";
  const std::vector<std::int32_t> all = seen.host();
  int wrong = 0;
  for (int i = 0; i < rounds * sequences; ++i) {
    wrong +=
        all[static_cast<std::size_t>(i)] != i / static_cast<int>(sequences) * 1000 + i % static_cast<int>(sequences)
            ? 1
            : 0;
  }
  CHECK(wrong == 0) << wrong;
}

TEST(too_large_a_pool_is_no_room) {
  bool thrown = false;
  try {
    kvc::KvCache<float, kvc::Paged, kvc::HeadMajor, cuda::DeviceSpace> cache(
        {.layers = 100, .kv_heads = 64, .key_dim = 256}, {.blocks = 1 << 22, .block_tokens = 16});
  } catch (const std::bad_alloc& error) {
    thrown = std::string(error.what()).find("cudaMallocAsync") != std::string::npos;
  }
  CHECK(thrown);
}

/// A graph must not hold copies that a step has asked for: it would repeat them at every launch.
TEST(copies_that_are_queued_are_not_captured) {
  using Cache = kvc::KvCache<__half, kvc::Paged, kvc::HeadMajor, cuda::DeviceSpace>;
  Stream stream;
  Cache cache({.layers = 1, .kv_heads = 1, .key_dim = 64}, {.blocks = 8, .block_tokens = 16},
              cuda::DeviceSpace(stream));
  const kvc::SeqId parent = cache.open();
  cache.commit(cache.extend(parent, 5));
  cudaGraph_t graph = nullptr;
  KVC_CUDA(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal));
  (void)cuda::view(cache, 0);  // without queued copies that is no operation
  const kvc::SeqId fork = cache.fork(parent);
  auto step = cache.extend(fork, 1);  // copy-on-write
  bool refused = false;
  try {
    (void)cuda::view(cache, 0);
  } catch (const std::invalid_argument&) {
    refused = true;
  }
  CHECK(refused);
  KVC_CUDA(cudaStreamEndCapture(stream, &graph));
  std::size_t nodes = 0;
  KVC_CUDA(cudaGraphGetNodes(graph, nullptr, &nodes));
  CHECK(nodes == 0) << nodes << "nodes were captured";
  KVC_CUDA(cudaGraphDestroy(graph));
  (void)cuda::view(cache, 0);  // and now they are launched
  cache.commit(std::move(step));
  stream.wait();
}
