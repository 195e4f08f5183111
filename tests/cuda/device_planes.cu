// Caches of int8 with scales in planes on a device: written, decoded and prefilled, beside those with scales in rows.
#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <algorithm>
#include <cstring>
#include <random>
#include <type_traits>
#include <utility>
#include <vector>

#include "device_decode.hpp"
#include "device_kernels.hpp"
#include "device_memory.hpp"
#include "device_test.hpp"
#include "kvc/cache.hpp"
#include "kvc/cuda/append.cuh"
#include "kvc/cuda/batch.cuh"
#include "kvc/cuda/element.cuh"
#include "kvc/cuda/prefill.cuh"
#include "kvc/cuda/space.cuh"
#include "kvc/cuda/view.cuh"
#include "kvc/element/quantized.hpp"
#include "kvc/layout/scale_planes.hpp"
#include "kvc/policy/paged.hpp"

namespace {
using namespace kvc_test;
using Planes = kvc::ScalePlanes<kvc::HeadMajor>;
}  // namespace

TEST(planes_decode) {
  for (const Index dim : {64, 80, 128, 192, 256}) {
    const DecodeSpec spec{.group = 4, .dim = dim, .lengths = {0, 1, 300, 513, 1100}};
    const kvc::Paged::Config config{.blocks = 200, .block_tokens = 16};
    check<kvc::Int8, __nv_bfloat16, kvc::Paged, Planes>(spec, config, 3e-2F);
    using InPlanes = DecodeCase<kvc::Int8, kvc::Paged, Planes, Format::bf16>;
    using InRows = DecodeCase<kvc::Int8, kvc::Paged, kvc::HeadMajor, Format::bf16>;
    InPlanes planes(spec, config);
    InRows rows(spec, config);
    OnDevice<InPlanes> a(planes);
    OnDevice<InRows> b(rows);
    CHECK(run<__nv_bfloat16>(a, planes.tables, planes.q, true) == run<__nv_bfloat16>(b, rows.tables, rows.q, true))
        << "other bits than with scales in rows, dim" << dim;
  }
}

/// Rows that the device writes have the bytes of those that the CPU writes, and prefill reads them alike.
TEST(planes_write_and_prefill) {
  using Host = kvc::KvCache<kvc::Int8, kvc::Paged, Planes>;
  using Device = kvc::KvCache<kvc::Int8, kvc::Paged, Planes, cuda::DeviceSpace>;
  using Rows = kvc::KvCache<kvc::Int8, kvc::Paged, kvc::HeadMajor, cuda::DeviceSpace>;
  const kvc::Shape shape{.layers = 1, .kv_heads = 2, .key_dim = 128};
  const kvc::Paged::Config config{.blocks = 20, .block_tokens = 16};
  constexpr Pos length = 150;
  Stream stream;
  Host host(shape, config);
  Device device(shape, config, cuda::DeviceSpace(stream));
  Rows rows(shape, config, cuda::DeviceSpace(stream));
  std::vector<float> k(length * 256), v(k.size());
  std::mt19937 random(3);
  std::normal_distribution<float> normal;
  std::generate(k.begin(), k.end(), [&] { return normal(random); });
  std::generate(v.begin(), v.end(), [&] { return normal(random); });
  const DeviceArray<float> k_in(k), v_in(v);
  std::memset(static_cast<void*>(host.data()), 0, static_cast<std::size_t>(host.pool_bytes()));
  KVC_CUDA(cudaMemsetAsync(device.data(), 0, static_cast<std::size_t>(device.pool_bytes()), stream));
  auto expected = host.extend_without_tokens(host.open(), length);
  host.write(0, expected, kvc::MatrixRef<const float>(k.data(), length, 256),
             kvc::MatrixRef<const float>(v.data(), length, 256));
  std::vector<std::uint16_t> halves(static_cast<std::size_t>(length) * 8 * 128);
  for (std::uint16_t& x : halves) {
    x = to_half(Format::bf16, normal(random));
  }
  const DeviceArray<std::uint16_t> q(halves);
  /// The outputs of both kernels that take such caches.
  const auto run_on = [&](auto& cache) {
    auto step = cache.extend_without_tokens(cache.open(), length);
    std::vector<std::remove_reference_t<decltype(step)>> steps;
    steps.push_back(std::move(step));
    cuda::Batch batch({.sequences = 1, .blocks = 20, .queries = length});
    batch.upload(cache, steps, stream);
    const auto view = cuda::view(cache, 0);
    cuda::write(view, batch, kvc::MatrixRef<const float>(k_in.data(), length, 256),
                kvc::MatrixRef<const float>(v_in.data(), length, 256), stream);
    std::vector<std::vector<std::uint16_t>> outputs;
    for (const cuda::PrefillKernel kernel : {cuda::PrefillKernel::warps, cuda::PrefillKernel::plain}) {
      const DeviceArray<std::uint16_t> out(halves.size());
      cuda::prefill(view, batch, 8, reinterpret_cast<const __nv_bfloat16*>(q.data()),
                    reinterpret_cast<__nv_bfloat16*>(out.data()), {}, stream, nullptr, {}, kernel);
      stream.wait();
      outputs.push_back(out.host());
    }
    cache.commit(std::move(steps[0]));
    return outputs;
  };
  CHECK(run_on(device) == run_on(rows)) << "other bits than with scales in rows";
  std::vector<std::byte> bytes(static_cast<std::size_t>(device.pool_bytes()));
  KVC_CUDA(cudaMemcpy(bytes.data(), device.data(), bytes.size(), cudaMemcpyDeviceToHost));
  CHECK(std::memcmp(bytes.data(), host.data(), bytes.size()) == 0) << "other bytes than those of the CPU";
  host.commit(std::move(expected));
}
