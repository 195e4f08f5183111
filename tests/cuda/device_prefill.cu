// The prefill kernels on a device, against the definition of attention and against each other, over policies, layouts,
// formats.
#include <algorithm>
#include <limits>
#include <set>

#include "device_kernels.hpp"
#include "device_memory.hpp"
#include "device_test.hpp"
#include "kvc/cuda/prefill.cuh"
#include "kvc/element/quantized.hpp"
#include "kvc/policy/contiguous.hpp"
#include "kvc/policy/paged.hpp"
#include "prefill_case.hpp"

namespace {

using namespace kvc_test;
namespace cuda = kvc::cuda;

/// The cache of a case as it is now, on the device.
template <class Case>
struct PrefillOnDevice {
  explicit PrefillOnDevice(Case& of)
      : c(of),
        pool(static_cast<std::size_t>(of.cache.layout().size()) * sizeof(typename Case::Cache::Storage)),
        batch({.sequences = static_cast<Index>(of.sequences.size()) + 3,
               .blocks = 100000,
               .queries = of.tables.queries() + 5}) {
    to_device(pool.data(), of.cache.data(), pool.size());
  }
  [[nodiscard]] auto view() const {
    return cuda::layer_view<typename Case::Cache::Element>(pool.data(), c.cache.layout(), c.cache.shape(), c.layer());
  }
  Case& c;
  cuda::DeviceBuffer pool;
  cuda::Batch batch;
};

template <class Scalar, class Case>
std::vector<std::byte> run(PrefillOnDevice<Case>& device, const kvc::BatchTables& tables,
                           const std::vector<std::byte>& q, cuda::PrefillKernel kernel = cuda::PrefillKernel::best,
                           std::vector<float>* lse = nullptr) {
  if (tables.queries() == 0) {
    return {};
  }
  Stream stream;
  const DeviceArray<std::byte> in(q), out(device.c.out_bytes(tables.queries()));
  const DeviceArray<float> sums(static_cast<std::size_t>(tables.queries() * device.c.query_heads()));
  device.batch.upload(tables, stream);
  const auto* const from = reinterpret_cast<const Scalar*>(in.data());
  auto* const to = reinterpret_cast<Scalar*>(out.data());
  const Index heads = device.c.query_heads();
  cuda::prefill(device.view(), device.batch, heads, from, to, device.c.spec.options, stream,
                lse == nullptr ? nullptr : sums.data(), {}, kernel);
  stream.wait();
  if (lse != nullptr) {
    *lse = sums.host();
  }
  return out.host();
}

/// Right, by each kernel; the same bits twice; and every sequence has the bits alone and in chunks that it has in the
/// batch.
template <class T, class Scalar, class P, class L = kvc::HeadMajor>
void check(const PrefillSpec& spec, const typename P::Config& config, float tolerance) {
  constexpr Format Q = cuda::format_of<Scalar>;
  using Case = PrefillCase<T, P, L, Q>;
  Case c(spec, config);
  PrefillOnDevice<Case> device(c);
  std::vector<float> lse, expected_lse;
  const std::vector<float> expected = c.expected(&expected_lse);
  const std::vector<std::byte> out = run<Scalar>(device, c.tables, c.q, cuda::PrefillKernel::best, &lse);
  CHECK(lse_difference(lse, expected_lse) < 4e-6F) << lse_difference(lse, expected_lse);
  const float difference = c.difference(out, expected);
  CHECK(difference < tolerance) << "dims" << spec.key_dim << spec.value_dim << "group" << spec.group << "window"
                                << spec.options.window << "causal" << spec.options.causal << "difference" << difference;
  CHECK(run<Scalar>(device, c.tables, c.q) == out) << "not the same bits twice";
  for (const auto kernel : {cuda::PrefillKernel::warps, cuda::PrefillKernel::plain}) {
    const float other = c.difference(run<Scalar>(device, c.tables, c.q, kernel, &lse), expected);
    CHECK(lse_difference(lse, expected_lse) < 4e-6F) << lse_difference(lse, expected_lse);
    CHECK(other < tolerance) << (kernel == cuda::PrefillKernel::plain ? "plain" : "by warps") << other;
  }
  for (std::size_t b = 0; b < c.sequences.size(); ++b) {
    for (const Pos rows : std::set<Pos>{c.queries[b], c.queries[b] / 3}) {
      const Index first = c.tables.q_indptr[b + 1] - rows;
      const std::vector<std::byte> same =
          run<Scalar>(device, c.tables_of({c.sequences[b]}, {rows}), c.q_rows(first, rows));
      CHECK(std::equal(same.begin(), same.end(), out.begin() + static_cast<std::ptrdiff_t>(c.out_bytes(first))))
          << "the last" << rows << "rows of sequence" << b << "have other bits alone";
    }
  }
}

template <class T, class Scalar>
void check_random(std::uint64_t seed, float tolerance) {
  std::mt19937_64 random(seed);
  const auto between = [&](Index low, Index high) {
    return low + static_cast<Index>(random() % static_cast<std::uint64_t>(high - low + 1));
  };
  for (int round = 0; round < 16; ++round) {
    constexpr Index dims[] = {64, 128, 80, 96, 192, 256};
    PrefillSpec spec{.kv_heads = between(1, 3), .group = between(1, round % 4 == 0 ? 40 : 8), .seed = random()};
    spec.key_dim = dims[between(0, 5)];
    spec.value_dim = between(0, 2) == 0 ? dims[between(0, 5)] : spec.key_dim;
    for (Index i = between(1, 5); i > 0; --i) {
      const auto length = static_cast<Pos>(between(0, 3) == 0 ? between(0, 5) : between(1, 300));
      spec.sequences.push_back({length, between(0, 1) == 0 ? length : static_cast<Pos>(between(0, length))});
    }
    spec.options.causal = round % 5 != 0;
    spec.options.window = between(0, 2) == 0 ? static_cast<Pos>(between(1, 200)) : 0;
    spec.options.softcap = between(0, 2) == 0 ? 5.0F : 0.0F;
    const Pos block_tokens = static_cast<Pos>(between(0, 1) == 0 ? 16 : between(1, 70));
    if (round % 2 == 0) {
      check<T, Scalar, kvc::Contiguous>(spec, {.sequences = 5, .max_tokens = 300}, tolerance);
    } else {
      check<T, Scalar, kvc::Paged, kvc::TokenMajor>(
          spec, {.blocks = 1600 / block_tokens + 10, .block_tokens = block_tokens}, tolerance);
    }
  }
}

}  // namespace

TEST(prefill_bf16) { check_random<__nv_bfloat16, __nv_bfloat16>(11, 3e-2F); }
TEST(prefill_f16) { check_random<__half, __half>(12, 5e-3F); }
TEST(prefill_int8_bf16) { check_random<kvc::Int8, __nv_bfloat16>(13, 3e-2F); }
TEST(prefill_fp8_f16) { check_random<kvc::Fp8E4M3, __half>(14, 5e-3F); }
TEST(prefill_float) { check_random<float, float>(15, 1e-5F); }

/// The fast kernel is the one that runs where it was compiled for the device: on Hopper with bulk copies, unless blocks
/// are smaller than a box.
TEST(prefill_takes_the_fast_path) {
  using Case = PrefillCase<__nv_bfloat16, kvc::Paged, kvc::HeadMajor, Format::bf16>;
  using cuda::PrefillKernel, cuda::PrefillPath;
  int device = 0, major = 0;
  KVC_CUDA(cudaGetDevice(&device));
  KVC_CUDA(cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device));
  const bool hopper = major == 9 && cuda::detail::prefill_by_warpgroups;
  for (const Pos block_tokens : {16, 5}) {
    Case c({.key_dim = 128, .value_dim = 128, .sequences = {{64, 64}}}, {.blocks = 20, .block_tokens = block_tokens});
    PrefillOnDevice<Case> there(c);
    const PrefillPath path = cuda::prefill_path<__nv_bfloat16>(there.view());
    std::printf("  blocks of %d: path %d (0: plain, 1: warps, 2: warpgroups, 3: bulk copies)\n", block_tokens,
                static_cast<int>(path));
    CHECK(path == (!hopper              ? PrefillPath::warps
                   : block_tokens == 16 ? PrefillPath::bulk_copies
                                        : PrefillPath::warpgroups))
        << "blocks of" << block_tokens << "compute capability" << major;
    CHECK(cuda::prefill_path<__nv_bfloat16>(there.view(), PrefillKernel::warps) == PrefillPath::warps);
    CHECK(cuda::prefill_path<__nv_bfloat16>(there.view(), PrefillKernel::plain) == PrefillPath::plain);
  }
}

TEST(prefill_a_long_prompt) {
  check<__nv_bfloat16, __nv_bfloat16, kvc::Paged>(
      {.kv_heads = 1, .group = 4, .key_dim = 128, .value_dim = 128, .sequences = {{2500, 700}, {1, 1}, {600, 600}}},
      {.blocks = 250, .block_tokens = 16}, 3e-2F);
}

/// Values that are infinite or NaN reach the rows that see them, and no others.
TEST(prefill_does_not_notice_what_a_row_does_not_see) {
  using Case = PrefillCase<__half, kvc::Paged, kvc::HeadMajor, Format::f16>;
  Case c({.kv_heads = 1, .group = 4, .key_dim = 128, .value_dim = 128, .sequences = {{200, 160}}},
         {.blocks = 20, .block_tokens = 16});
  c.value_row(0, 0, 70)[5] = __float2half_rn(std::numeric_limits<float>::infinity());
  c.value_row(0, 0, 81)[6] = __float2half_rn(std::nanf(""));
  PrefillOnDevice<Case> device(c);
  const float difference = c.difference(run<__half>(device, c.tables, c.q), c.expected());
  CHECK(difference < 5e-3F) << difference;
}

/// A graph that was captured with an empty batch runs with others; rows that a batch has not are left alone.
TEST(prefill_in_a_graph) {
  using Case = PrefillCase<__nv_bfloat16, kvc::Paged, kvc::HeadMajor, Format::bf16>;
  Case c({.group = 4, .key_dim = 128, .value_dim = 128, .sequences = {{200, 50}, {64, 64}, {3, 1}, {130, 130}}},
         {.blocks = 60, .block_tokens = 16});
  PrefillOnDevice<Case> device(c);
  const std::vector<float> expected = c.expected();
  const DeviceArray<std::byte> in(c.q), out(c.out_bytes(c.tables.queries()));
  Stream stream;
  kvc::BatchTables none;
  none.block_tokens = 16;
  device.batch.upload(none, stream);
  cudaGraph_t graph = nullptr;
  cudaGraphExec_t runnable = nullptr;
  KVC_CUDA(cudaStreamBeginCapture(stream, cudaStreamCaptureModeGlobal));
  cuda::prefill(device.view(), device.batch, c.query_heads(), reinterpret_cast<const __nv_bfloat16*>(in.data()),
                reinterpret_cast<__nv_bfloat16*>(out.data()), {}, stream);
  KVC_CUDA(cudaStreamEndCapture(stream, &graph));
  KVC_CUDA(cudaGraphInstantiate(&runnable, graph, 0));
  for (std::size_t count = 1; count <= c.sequences.size(); ++count) {
    const std::vector<kvc::SeqId> some(c.sequences.begin(), c.sequences.begin() + static_cast<std::ptrdiff_t>(count));
    const std::vector<Pos> rows(c.queries.begin(), c.queries.begin() + static_cast<std::ptrdiff_t>(count));
    device.batch.upload(c.tables_of(some, rows), stream);
    KVC_CUDA(cudaMemsetAsync(out.data(), 0xff, out.size(), stream));
    KVC_CUDA(cudaGraphLaunch(runnable, stream));
    stream.wait();
    const std::vector<std::byte> all = out.host();
    const auto written = c.out_bytes(c.tables.q_indptr[count]);
    const std::vector<float> first(expected.begin(), expected.begin() + static_cast<std::ptrdiff_t>(written / 2));
    const float difference = c.difference(all, first);
    CHECK(difference < 3e-2F) << difference;
    CHECK(std::all_of(all.begin() + static_cast<std::ptrdiff_t>(written), all.end(), [](std::byte x) {
      return x == std::byte{0xff};
    })) << "rows beyond the batch were written";
  }
  KVC_CUDA(cudaGraphExecDestroy(runnable));
  KVC_CUDA(cudaGraphDestroy(graph));
}

TEST(prefill_refuses_what_does_not_fit) {
  using Case = PrefillCase<__half, kvc::Paged, kvc::HeadMajor, Format::f16>;
  Case c({.sequences = {{7, 7}}}, {.blocks = 3, .block_tokens = 16});
  PrefillOnDevice<Case> device(c);
  Stream stream;
  const DeviceArray<std::byte> in(c.q), out(c.out_bytes(7));
  device.batch.upload(c.tables, stream);
  const auto refused = [&](Index heads, std::size_t offset, const cuda::AttentionOptions& options,
                           std::optional<cuda::PrefillBounds> bounds) {
    try {
      cuda::prefill(device.view(), device.batch, heads, reinterpret_cast<const __half*>(in.data() + offset),
                    reinterpret_cast<__half*>(out.data()), options, stream, nullptr, bounds);
      return false;
    } catch (const std::invalid_argument&) {
      return true;
    }
  };
  CHECK(!refused(c.query_heads(), 0, {}, {}));
  CHECK(refused(3, 0, {}, {})) << "heads that are no multiple";
  CHECK(refused(c.query_heads(), 2, {}, {})) << "an address that is not aligned";
  CHECK(refused(c.query_heads(), 0, {.window = -1}, {})) << "a negative window";
  CHECK(refused(c.query_heads(), 0, {}, cuda::PrefillBounds{1, 1000})) << "bounds beyond the limits";
}
