// The host side of kvc/cuda over a runtime of the tests: what it launches, asks for, refuses and leaves behind.
#include "emulate_hopper.hpp"
// (first: it stands for CUDA)

#include <algorithm>
#include <optional>
#include <span>
#include <vector>

#include "catch.hpp"
#include "decode_case.hpp"
#include "kvc/cache.hpp"
#include "kvc/cuda/append.cuh"
#include "kvc/cuda/batch.cuh"
#include "kvc/cuda/decode.cuh"
#include "kvc/cuda/prefill.cuh"
#include "kvc/cuda/space.cuh"
#include "kvc/cuda/view.cuh"
#include "kvc/element/float16.hpp"
#include "kvc/policy/paged.hpp"

namespace kvc {
inline namespace v0 {
namespace cuda {
// Kernels that are only launched here: they do nothing. (decode_kernel of dim 64 and merge_kernel do their work.)
#define KVC_TEST_DECODE(D, N) \
  template <>                 \
  void decode_kernel<Format::bf16, Format::bf16, D, N>(const DecodeArguments<Format::bf16>, bool) {}
KVC_TEST_DECODE(64, 2)
KVC_TEST_DECODE(128, 1)
KVC_TEST_DECODE(128, 2)
KVC_TEST_DECODE(128, 4)
KVC_TEST_DECODE(192, 1)
KVC_TEST_DECODE(256, 1)
#undef KVC_TEST_DECODE
#define KVC_TEST_PREFILL(D)                                                                   \
  template <>                                                                                 \
  void prefill_kernel<Format::bf16, Format::bf16, D>(const PrefillArguments<Format::bf16>) {} \
  template <>                                                                                 \
  void prefill_hopper_kernel<Format::bf16, D>(const PrefillArguments<Format::bf16>, const PrefillTensorMaps) {}
KVC_TEST_PREFILL(64)
KVC_TEST_PREFILL(128)
KVC_TEST_PREFILL(192)
KVC_TEST_PREFILL(256)
template <>
void prefill_hopper_kernel<Format::bf16, 192, 128>(const PrefillArguments<Format::bf16>, const PrefillTensorMaps) {}
#undef KVC_TEST_PREFILL
template <>
void plain_prefill_kernel<Format::bf16, Format::bf16>(const PrefillArguments<Format::bf16>) {}
}  // namespace cuda
}  // namespace v0
}  // namespace kvc

namespace {

using namespace kvc_test;
namespace cuda = kvc::cuda;
using kvc_runtime::Runtime;
using Bf16 = Eigen::bfloat16;
using Cache = kvc::KvCache<Bf16, kvc::Paged, kvc::HeadMajor, cuda::DeviceSpace>;
using HostCase = DecodeCase<Bf16, kvc::Paged, kvc::HeadMajor, Format::bf16>;

/// A runtime that has just been started; answers that were kept are not forgotten.
Runtime& fresh() {
  Runtime& runtime = kvc_runtime::runtime();
  runtime = Runtime{};
  return runtime;
}

cuda::DecodeLimits limits_of(const HostCase& c) {
  return {.sequences = 8,
          .positions = 20000,
          .query_heads = c.query_heads(),
          .kv_heads = c.spec.kv_heads,
          .dim = c.spec.dim,
          .format = Format::bf16};
}

/// A case of decode with all that a call of it needs.
struct DecodeCall {
  explicit DecodeCall(HostCase& c)
      : host(c), batch({.sequences = 8, .blocks = 200, .queries = 8}), work(limits_of(c)), out(c.q.size()) {}

  void upload(const kvc::BatchTables& tables, bool share = true, cuda::SmallItems small = cuda::SmallItems::where_few) {
    batch.upload(tables, &stream);
    work.upload(tables, {}, &stream, share, cuda::QueryRows::last, small);
  }
  void decode() {
    cuda::decode(host.layer_view(), batch, work, reinterpret_cast<const Bf16*>(host.q.data()),
                 reinterpret_cast<Bf16*>(out.data()), {}, &stream);
  }

  HostCase& host;
  kvc_runtime::Stream stream;  // outlives what waits for it
  cuda::Batch batch;
  cuda::DecodeWork work;
  std::vector<std::uint16_t> out;
};

/// The names of launched kernels, in order.
std::vector<std::string> names(const Runtime& runtime) {
  std::vector<std::string> all;
  for (const kvc_runtime::Launch& launch : runtime.launches) {
    all.push_back(launch.name);
  }
  return all;
}

}  // namespace

TEST_CASE("host side: a decode is as many launches as have work and asks the driver for next to nothing", "[cuda]") {
  Runtime& runtime = fresh();
  HostCase c({.kv_heads = 1, .group = 4, .lengths = {600, 3, 0, 70}}, {.blocks = 80, .block_tokens = 16});
  DecodeCall call(c);
  call.upload(c.tables);
  call.decode();
  kvc_runtime::wait(&call.stream);
  REQUIRE(largest_difference(Format::bf16, call.out, c.expected()) < 2e-2F);
  runtime.calls.clear();
  runtime.launches.clear();
  call.decode();
  REQUIRE(names(runtime) == std::vector<std::string>{"decode_kernel", "merge_kernel"});  // no item has many rows
  REQUIRE(runtime.launches[0].grid.x == 6);                                              // as many as the device holds
  REQUIRE(runtime.launches[1].grid.x == 8 * 4 * 2);
  REQUIRE((!runtime.launches[0].dependent && runtime.launches[1].dependent));
  REQUIRE(runtime.calls_but(
              {"decode_kernel", "merge_kernel", "cudaGetDevice", "cudaGetLastError", "cudaStreamIsCapturing"}) == 0);
  REQUIRE(runtime.calls["cudaStreamIsCapturing"] == 1);
  kvc_runtime::wait(&call.stream);

  // Every row is one item: nothing is merged. No row: nothing is launched.
  HostCase small({.kv_heads = 1, .group = 4, .lengths = {512, 3, 70}}, {.blocks = 80, .block_tokens = 16});
  DecodeCall other(small);
  other.upload(small.tables, true, cuda::SmallItems::never);
  runtime.launches.clear();
  other.decode();
  REQUIRE(names(runtime) == std::vector<std::string>{"decode_kernel"});
  kvc_runtime::wait(&other.stream);
  REQUIRE(largest_difference(Format::bf16, other.out, small.expected()) < 2e-2F);
  kvc::BatchTables none;
  none.block_tokens = 16;
  other.upload(none);
  runtime.launches.clear();
  other.decode();
  REQUIRE(runtime.launches.empty());
  // In a graph, which may run with other plans, there are all three; each after the first may begin before the one
  // before it has ended.
  std::vector<std::function<void()>> graph;
  other.stream.graph = &graph;
  other.decode();
  other.stream.graph = nullptr;
  REQUIRE(names(runtime) == std::vector<std::string>{"decode_kernel", "decode_kernel", "merge_kernel"});
  REQUIRE((!runtime.launches[0].dependent && runtime.launches[1].dependent && runtime.launches[2].dependent));
}

TEST_CASE("host side: launches overlap only where the code of the kernel can wait for those before", "[cuda]") {
  fresh();
  kvc_runtime::Stream stream;
  for (const int version : {80, 90}) {
    Runtime& runtime = fresh();
    runtime.code_version = version;
    cuda::detail::PerDevice known;
    cuda::detail::launch_dependent(known, "a kernel", +[](int) {}, 1, 32, 0, &stream, 0);
    REQUIRE(runtime.launches.size() == 1);
    REQUIRE(runtime.launches[0].dependent == (version >= 90));
  }
}

TEST_CASE("host side: plans of few items are in halves, with the same bits", "[cuda]") {
  Runtime& runtime = fresh();
  HostCase c({.kv_heads = 1, .group = 4, .lengths = {600, 3, 0, 1070}}, {.blocks = 120, .block_tokens = 16});
  runtime.processors = 100;
  DecodeCall many(c);
  runtime.processors = 2;
  DecodeCall few(c);
  many.upload(c.tables);
  few.upload(c.tables);
  REQUIRE(many.work.has_small_items());
  REQUIRE(!few.work.has_small_items());
  few.decode();
  many.decode();
  kvc_runtime::wait(&few.stream);
  kvc_runtime::wait(&many.stream);
  REQUIRE(few.out == many.out);
  REQUIRE(largest_difference(Format::bf16, few.out, c.expected()) < 2e-2F);
  // The same plans by request.
  few.upload(c.tables, true, cuda::SmallItems::always);
  many.upload(c.tables, true, cuda::SmallItems::never);
  REQUIRE(few.work.has_small_items());
  REQUIRE(!many.work.has_small_items());
}

TEST_CASE("host side: a graph captured with an empty batch runs with others", "[cuda]") {
  fresh();
  HostCase c({.kv_heads = 1, .group = 4, .lengths = {600, 3, 70}}, {.blocks = 80, .block_tokens = 16});
  DecodeCall call(c);
  kvc::BatchTables none;
  none.block_tokens = 16;
  call.upload(none);
  std::vector<std::function<void()>> graph;
  call.stream.graph = &graph;
  call.decode();
  REQUIRE(graph.size() == 3);
  // What needs the host at each run must not go into a graph.
  REQUIRE_THROWS_WITH(call.batch.upload(c.tables, &call.stream), contains("being captured"));
  REQUIRE_THROWS_WITH(call.work.upload(c.tables, {}, &call.stream), contains("being captured"));
  call.stream.graph = nullptr;
  REQUIRE(graph.size() == 3);
  for (const bool share : {true, false}) {
    call.upload(c.tables, share);
    std::fill(call.out.begin(), call.out.end(), std::uint16_t{0xffff});
    for (const auto& operation : graph) {
      kvc_runtime::enqueue(&call.stream, operation);
    }
    kvc_runtime::wait(&call.stream);
    REQUIRE(largest_difference(Format::bf16, call.out, c.expected()) < 2e-2F);
  }
}

TEST_CASE("host side: uploads are not overwritten in flight", "[cuda]") {
  Runtime& runtime = fresh();
  cuda::Upload upload(64);
  kvc_runtime::Stream stream;
  std::vector<int> arrived;
  for (int i = 0; i < 5; ++i) {
    std::byte* const p = upload.begin(&stream);
    std::memcpy(p, &i, sizeof i);
    upload.send(0, sizeof i, &stream);
    kvc_runtime::enqueue(&stream, [&] {  // a kernel that reads it
      int there = 0;
      std::memcpy(&there, upload.device(), sizeof there);
      arrived.push_back(there);
    });
    upload.end(&stream);
    REQUIRE(stream.waiting.size() <= 4);  // two uploads and their kernels
  }
  kvc_runtime::wait(&stream);
  REQUIRE(arrived == std::vector<int>{0, 1, 2, 3, 4});
  REQUIRE(runtime.calls["cudaEventSynchronize"] == 5);
}

TEST_CASE("host side: queued copies are refused under capture, and launched behind it", "[cuda]") {
  Runtime& runtime = fresh();
  kvc_runtime::Stream stream;
  {
    Cache cache({.kv_heads = 1, .key_dim = 64}, {.blocks = 20, .block_tokens = 16}, cuda::DeviceSpace(&stream));
    const kvc::SeqId seq = cache.open();
    cache.commit(cache.extend_without_tokens(seq, 20));
    const kvc::SeqId fork = cache.fork(seq);
    auto append = cache.extend_without_tokens(fork, 1);  // copies the block that both write to
    std::vector<std::function<void()>> graph;
    stream.graph = &graph;
    REQUIRE_THROWS_WITH(cache.space().flush(), contains("queued copies"));
    REQUIRE_THROWS_WITH(cuda::view(cache, 0), contains("queued copies"));
    REQUIRE(graph.empty());
    stream.graph = nullptr;
    REQUIRE(runtime.launches.empty());
    (void)cuda::view(cache, 0);
    REQUIRE(names(runtime) == std::vector<std::string>{"copy_kernel"});
    stream.graph = &graph;
    cache.space().flush();  // none are left
    REQUIRE(graph.empty());
    stream.graph = nullptr;
    kvc_runtime::wait(&stream);
    cache.commit(std::move(append));
  }
  REQUIRE(runtime.memory.empty());
}

TEST_CASE("host side: errors name the call, and those that stay are reported by every call", "[cuda]") {
  Runtime& runtime = fresh();
  HostCase c({.kv_heads = 1, .group = 4, .lengths = {600}}, {.blocks = 40, .block_tokens = 16});
  {
    DecodeCall call(c);
    call.upload(c.tables);
    runtime.fails["merge_kernel"] = cudaErrorInvalidConfiguration;
    REQUIRE_THROWS_WITH(call.decode(), contains("the launch of merge_kernel") && contains("InvalidConfiguration"));
    call.decode();  // the error has gone with its report
    runtime.fails["cudaMemcpyAsync"] = cudaErrorInvalidValue;
    REQUIRE_THROWS_AS(call.batch.upload(c.tables, &call.stream), cuda::Error);
    call.batch.upload(c.tables, &call.stream);
    kvc_runtime::wait(&call.stream);
    runtime.sticky = cudaErrorIllegalAddress;
    for (int i = 0; i < 2; ++i) {
      REQUIRE_THROWS_WITH(call.decode(), contains("IllegalAddress"));
      REQUIRE_THROWS_WITH(call.batch.upload(c.tables, &call.stream), contains("IllegalAddress"));
      cudaError_t code = cudaSuccess;
      try {
        call.decode();
      } catch (const cuda::Error& error) {
        code = error.code();
      }
      REQUIRE(code == cudaErrorIllegalAddress);
    }
    runtime.sticky = cudaSuccess;  // destructors would print it
  }
  REQUIRE(runtime.memory.empty());
}

TEST_CASE("host side: no memory is an exception of its own, and nothing is left behind", "[cuda]") {
  for (const char* call : {"cudaMalloc", "cudaHostAlloc", "cudaMallocAsync"}) {
    Runtime& runtime = fresh();
    const auto make = [&] {
      cuda::Batch batch({.sequences = 8, .blocks = 200, .queries = 8});
      Cache cache({.kv_heads = 1, .key_dim = 64}, {.blocks = 20, .block_tokens = 16}, cuda::DeviceSpace(nullptr));
    };
    make();
    REQUIRE(runtime.memory.empty());
    runtime.fails[call] = cudaErrorMemoryAllocation;
    CAPTURE(call);
    REQUIRE_THROWS_AS(make(), cuda::OutOfMemory);
    REQUIRE(runtime.memory.empty());
  }
}

TEST_CASE("host side: prefill is one launch of as many thread blocks as the device holds", "[cuda]") {
  Runtime& runtime = fresh();
  kvc_runtime::Stream stream;
  cuda::Batch batch({.sequences = 256, .blocks = 10000, .queries = 8192});
  const Index dims[] = {64, 128, 192, 256};
  alignas(16) static Bf16 q[16], out[16];
  for (const Index dim : dims) {
    const Index value_dim = dim == 192 ? 128 : dim;
    Cache cache({.layers = 2, .kv_heads = 2, .key_dim = dim, .value_dim = value_dim},
                {.blocks = 20, .block_tokens = 16}, cuda::DeviceSpace(&stream));
    for (const bool maps : {true, false}) {
      runtime.makes_tensor_maps = maps;
      runtime.launches.clear();
      runtime.calls.clear();
      const Index layer = maps ? 0 : 1;  // maps are kept for each layer
      for (int i = 0; i < 2; ++i) {
        cuda::prefill(cuda::view(cache, layer), batch, 8, q, out, {}, &stream);
      }
      CAPTURE(dim, maps);
      REQUIRE(cuda::prefill_path<Bf16>(cuda::view(cache, layer)) ==
              (maps ? cuda::PrefillPath::bulk_copies : cuda::PrefillPath::warpgroups));
      REQUIRE(runtime.launches.size() == 2);
      REQUIRE(runtime.launches[1].name == "prefill_hopper_kernel");
      REQUIRE(runtime.launches[1].grid.x == 6);
      REQUIRE(runtime.launches[1].threads == 384);
      REQUIRE(runtime.launches[1].shared_bytes + 1024 <= 227 << 10);
      REQUIRE(runtime.calls["cuTensorMapEncodeTiled"] == 2);  // for two calls and a question
    }
    runtime.launches.clear();
    cuda::prefill(cuda::view(cache, 0), batch, 8, q, out, {}, &stream, nullptr, {}, cuda::PrefillKernel::warps);
    cuda::prefill(cuda::view(cache, 0), batch, 8, q, out, {.window = 20, .kept = 3}, &stream, nullptr,
                  cuda::PrefillBounds{2, 40});
    cuda::prefill(cuda::view(cache, 0), batch, 8, q, out, {}, &stream, nullptr, cuda::PrefillBounds{0, 0});
    REQUIRE(names(runtime) == std::vector<std::string>{"prefill_kernel", "plain_prefill_kernel"});
    REQUIRE((runtime.launches[1].grid.x == 40 && runtime.launches[1].grid.y == 2));
    kvc_runtime::wait(&stream);
  }
}
