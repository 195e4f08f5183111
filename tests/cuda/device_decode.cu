// The decode kernels on a device, against the definition of attention, over policies, layouts and formats.
#include <cuda_bf16.h>

#include <algorithm>
#include <utility>
#include <vector>

#include "decode_case.hpp"
#include "device_decode.hpp"
#include "device_kernels.hpp"
#include "device_memory.hpp"
#include "device_test.hpp"
#include "kvc/cache.hpp"
#include "kvc/cuda/append.cuh"
#include "kvc/cuda/batch.cuh"
#include "kvc/cuda/decode.cuh"
#include "kvc/cuda/element.cuh"
#include "kvc/cuda/space.cuh"
#include "kvc/cuda/view.cuh"
#include "kvc/element/quantized.hpp"
#include "kvc/policy/contiguous.hpp"
#include "kvc/policy/paged.hpp"
#include "kvc/policy/prefix_shared.hpp"

namespace {
using namespace kvc_test;
}  // namespace

TEST(decode_bf16) { check_random<__nv_bfloat16, __nv_bfloat16>(1, 3e-2F); }
TEST(decode_f16) { check_random<__half, __half>(2, 5e-3F); }
TEST(decode_fp8_bf16) { check_random<kvc::Fp8E4M3, __nv_bfloat16>(3, 3e-2F); }
TEST(decode_fp8_f16) { check_random<kvc::Fp8E4M3, __half>(4, 5e-3F); }
TEST(decode_int8_bf16) { check_random<kvc::Int8, __nv_bfloat16>(5, 3e-2F); }
TEST(decode_int8_f16) { check_random<kvc::Int8, __half>(6, 3e-2F); }

TEST(decode_empty_and_one_token_sequences) {
  check<__nv_bfloat16, __nv_bfloat16, kvc::Paged>({.dim = 128, .lengths = {0, 1, 0, 2, 511, 512, 513, 1024}},
                                                  {.blocks = 300, .block_tokens = 16}, 3e-2F);
  check<__nv_bfloat16, __nv_bfloat16, kvc::Paged>({.dim = 128, .lengths = {0}}, {.blocks = 3, .block_tokens = 16},
                                                  3e-2F);
}

TEST(decode_a_long_sequence) {
  check<__half, __half, kvc::Paged>({.kv_heads = 1, .dim = 128, .lengths = {40000}},
                                    {.blocks = 2600, .block_tokens = 16}, 5e-3F);
}

/// Several rows of a sequence, as speculative decoding has: each has the bits that it has as the last one.
TEST(decode_every_row) {
  using Case = DecodeCase<__nv_bfloat16, kvc::Paged, kvc::HeadMajor, Format::bf16>;
  Case c({.group = 4, .dim = 128, .lengths = {1300, 514, 7, 4000}}, {.blocks = 400, .block_tokens = 16});
  constexpr Pos each = 5;
  kvc::BatchTables tables = kvc::make_tables(c.cache.policy(), std::span<const kvc::SeqId>(c.sequences),
                                             std::span<const Pos>(std::vector<Pos>(4, each)));
  const auto width = static_cast<std::size_t>(c.query_heads() * c.spec.dim);
  std::vector<std::uint16_t> q;
  while (q.size() < 4 * each * width) {
    q.insert(q.end(), c.q.begin(), c.q.end());
  }
  OnDevice<Case> device(c);
  cuda::DecodeWork work({.sequences = 4 * each,
                         .positions = 40000,
                         .query_heads = c.query_heads(),
                         .kv_heads = c.spec.kv_heads,
                         .dim = c.spec.dim,
                         .format = Format::bf16});
  cuda::Batch batch({.sequences = 4, .blocks = 400, .queries = 4 * each});
  Stream stream;
  const DeviceArray<std::uint16_t> in(q), out(q.size());
  batch.upload(tables, stream);
  work.upload(tables, {}, stream, true, cuda::QueryRows::every);
  cuda::decode(device.view(), batch, work, reinterpret_cast<const __nv_bfloat16*>(in.data()),
               reinterpret_cast<__nv_bfloat16*>(out.data()), {}, stream);
  stream.wait();
  const std::vector<std::uint16_t> all = out.host();
  for (Pos i = 0; i < each; ++i) {
    kvc::BatchTables last = c.tables;
    std::vector<std::uint16_t> rows, expected;
    for (std::size_t b = 0; b < 4; ++b) {
      last.seq_lens[b] -= each - 1 - i;
      const auto begin = static_cast<std::ptrdiff_t>((b * each + static_cast<std::size_t>(i)) * width);
      const auto end = begin + static_cast<std::ptrdiff_t>(width);
      rows.insert(rows.end(), q.begin() + begin, q.begin() + end);
      expected.insert(expected.end(), all.begin() + begin, all.begin() + end);
    }
    CHECK(run<__nv_bfloat16>(device, last, rows, true) == expected) << "row" << i;
  }
}

/// The rows lie beyond 2^31 elements, and beyond 2^32 bytes, of the pool.
TEST(decode_beyond_2_to_31_elements) {
  std::size_t free_bytes = 0, total = 0;
  KVC_CUDA(cudaMemGetInfo(&free_bytes, &total));
  constexpr Index layers = 2, kv_heads = 8, dim = 128, block_tokens = 16;
  constexpr Index block_elements = layers * kv_heads * dim * block_tokens * 2,
                  blocks = (Index{1} << 31) / block_elements + 64;
  constexpr std::size_t bytes = static_cast<std::size_t>(blocks * block_elements) * 2;
  if (free_bytes < bytes + (std::size_t{1} << 30)) {
    std::printf("  skipped: needs %zu bytes of device memory\n", bytes);
    return;
  }
  using Case = DecodeCase<__nv_bfloat16, kvc::Paged, kvc::HeadMajor, Format::bf16>;
  Case c({.layers = layers, .kv_heads = kv_heads, .dim = dim, .lengths = {300, 40, 600}},
         {.blocks = 64, .block_tokens = static_cast<Pos>(block_tokens)});
  // The same blocks, but the last ones of a large pool: the tables are moved, and the rows with them.
  const kvc::HeadMajor layout(kvc::PoolExtents{blocks, block_tokens, layers, kv_heads, dim, dim});
  cuda::DeviceBuffer pool(bytes);
  KVC_CUDA(cudaMemset(pool.data(), 0xff, bytes));
  const Index moved = blocks - 64;
  const auto small = static_cast<std::size_t>(c.cache.layout().size()) * 2;
  to_device(pool.data() + moved * block_elements * 2, c.cache.data(), small);
  kvc::BatchTables tables = c.tables;
  for (std::int32_t& block : tables.kv_indices) {
    block += static_cast<std::int32_t>(moved);
  }
  cuda::Batch batch({.sequences = 3, .blocks = 200, .queries = 3});
  cuda::DecodeWork work({.sequences = 3,
                         .positions = 2000,
                         .query_heads = c.query_heads(),
                         .kv_heads = kv_heads,
                         .dim = dim,
                         .format = Format::bf16});
  Stream stream;
  const DeviceArray<std::uint16_t> in(c.q), out(c.q.size());
  batch.upload(tables, stream);
  work.upload(tables, {}, stream);
  cuda::decode(cuda::layer_view<__nv_bfloat16>(pool.data(), layout, c.cache.shape(), c.layer()), batch, work,
               reinterpret_cast<const __nv_bfloat16*>(in.data()), reinterpret_cast<__nv_bfloat16*>(out.data()), {},
               stream);
  stream.wait();
  const float difference = largest_difference(Format::bf16, out.host(), c.expected());
  CHECK(difference < 3e-2F) << difference;
}

/// A graph that was captured with one batch runs with others, of other sizes, and in the middle of uploads.
TEST(decode_in_a_graph) {
  using Case = DecodeCase<__half, kvc::Paged, kvc::HeadMajor, Format::f16>;
  Case c({.dim = 128, .lengths = {700, 3, 0, 520, 1300}}, {.blocks = 300, .block_tokens = 16});
  OnDevice<Case> device(c);
  const std::vector<float> expected = c.expected();
  const DeviceArray<std::uint16_t> in(c.q), out(c.q.size());
  Stream stream;
  kvc::BatchTables none;
  none.block_tokens = 16;
  device.batch.upload(none, stream);
  device.work.upload(none, {}, stream);
  cudaGraph_t graph = nullptr;
  cudaGraphExec_t runnable = nullptr;
  KVC_CUDA(cudaStreamBeginCapture(stream, cudaStreamCaptureModeGlobal));
  cuda::decode(device.view(), device.batch, device.work, reinterpret_cast<const __half*>(in.data()),
               reinterpret_cast<__half*>(out.data()), {}, stream);
  bool refused = false;
  try {
    device.batch.upload(c.tables, stream);
  } catch (const std::invalid_argument&) {
    refused = true;
  }
  CHECK(refused) << "an upload during a capture";
  KVC_CUDA(cudaStreamEndCapture(stream, &graph));
  KVC_CUDA(cudaGraphInstantiate(&runnable, graph, 0));
  const auto width = static_cast<std::size_t>(c.query_heads() * c.spec.dim);
  for (int round = 0; round < 5; ++round) {
    for (std::size_t count = 1; count <= c.sequences.size(); ++count) {  // uploads run ahead of the device
      const std::vector<Pos> ones(count, 1);
      const kvc::BatchTables tables = kvc::make_tables(
          c.cache.policy(), std::span<const kvc::SeqId>(c.sequences).first(count), std::span<const Pos>(ones));
      device.batch.upload(tables, stream);
      device.work.upload(tables, {}, stream);
      KVC_CUDA(cudaMemsetAsync(out.data(), 0xff, out.size() * 2, stream));
      KVC_CUDA(cudaGraphLaunch(runnable, stream));
      if (count % 2 == 1) {
        const std::vector<std::uint16_t> result = out.host();
        const float difference = largest_difference(Format::f16, std::span(result).first(count * width),
                                                    std::span(expected).first(count * width));
        CHECK(difference < 5e-3F) << difference;
        CHECK(std::all_of(result.begin() + static_cast<std::ptrdiff_t>(count * width), result.end(),
                          [](std::uint16_t x) { return x == 0xffff; }))
            << "rows beyond the batch were written";
      }
    }
  }
  KVC_CUDA(cudaGraphExecDestroy(runnable));
  KVC_CUDA(cudaGraphDestroy(graph));
}

TEST(decode_refuses_what_does_not_fit) {
  using Case = DecodeCase<__half, kvc::Paged, kvc::HeadMajor, Format::f16>;
  Case c({.dim = 64, .lengths = {7}}, {.blocks = 3, .block_tokens = 16});
  OnDevice<Case> device(c);
  Stream stream;
  const DeviceArray<std::uint16_t> in(c.q), out(c.q.size());
  device.batch.upload(c.tables, stream);
  device.work.upload(c.tables, {}, stream);
  const auto refused = [&](const cuda::AttentionOptions& options, std::size_t offset) {
    try {
      cuda::decode(device.view(), device.batch, device.work, reinterpret_cast<const __half*>(in.data() + offset),
                   reinterpret_cast<__half*>(out.data()), options, stream);
      return false;
    } catch (const std::invalid_argument&) {
      return true;
    }
  };
  CHECK(refused({.window = 5}, 0)) << "a window that was not planned for";
  CHECK(refused({.softcap = -1}, 0)) << "a negative softcap";
  CHECK(refused({}, 1)) << "an address that is not aligned";
  bool thrown = false;
  try {
    KVC_CUDA(cudaMemcpy(out.data(), nullptr, 16, cudaMemcpyDefault));
  } catch (const cuda::Error& error) {
    thrown = std::string(error.what()).find("cudaMemcpy") != std::string::npos;
  }
  CHECK(thrown) << "an error names its call";
}

/// A sequence, and its newest token.
struct Request {
  kvc::SeqId seq;
  kvc::Token token;
};

/// The loop that docs/cuda.md shows. It is compiled only: tests run its parts.
void decode_a_step(const kvc::Shape& shape, const std::vector<Request>& running, kvc::MatrixRef<const __nv_bfloat16> k,
                   kvc::MatrixRef<const __nv_bfloat16> v, kvc::MatrixRef<__nv_bfloat16> q,
                   const kvc::cuda::RopeView& rope, __nv_bfloat16* out, cudaStream_t stream) {
  using Cache = kvc::KvCache<__nv_bfloat16, kvc::PrefixShared<>, kvc::HeadMajor, kvc::cuda::DeviceSpace>;
  Cache cache(shape, {.blocks = 4096, .block_tokens = 16}, kvc::cuda::DeviceSpace(stream));
  kvc::cuda::Batch batch({.sequences = 256, .blocks = 65536, .queries = 8192});  // fixed addresses
  kvc::cuda::DecodeWork work({.sequences = 256,
                              .positions = 1 << 20,
                              .query_heads = 32,
                              .kv_heads = 8,
                              .dim = 128,
                              .format = kvc::cuda::format_of<__nv_bfloat16>});

  std::vector<Cache::Append> steps;  // a step: one token for each request
  for (const Request& request : running) {
    steps.push_back(cache.extend(request.seq, {request.token}));
  }
  work.upload(batch.upload(cache, steps, stream), /*seen=*/{}, stream);  // rows see everything

  for (kvc::Index layer = 0; layer < shape.layers; ++layer) {  // this part may be a CUDA graph
    kvc::cuda::write(kvc::cuda::view(cache, layer), batch, k, v, stream, rope, q);
    kvc::cuda::decode(kvc::cuda::view(cache, layer), batch, work, q.data(), out, {}, stream);
  }
  for (auto& step : steps) {
    cache.commit(std::move(step));
  }
}
