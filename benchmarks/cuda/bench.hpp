// Shared by the benchmarks of kernels: times from events, results as lines of text, and pools of random rows.
//
// A result is one line of standard output that begins with "result", fields separated by tabs:
//   result  name  bytes|flops  amount  milliseconds (median)  least  most
#pragma once

#include <cuda_runtime.h>

#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <vector>

#include "kvc/core/types.hpp"
#include "kvc/cuda/check.cuh"
#include "kvc/cuda/format.hpp"

namespace kvc_bench {

using kvc::Index;
using kvc::cuda::Format;

/// Times in milliseconds, sorted, of `repeats` calls of f(i), each between two events, after five calls to warm up. i
/// counts up, so that f can use another set of inputs each time.
template <class F>
std::vector<float> times(cudaStream_t stream, int repeats, F f) {
  for (int i = 0; i < 5; ++i) {
    f(i);
  }
  std::vector<cudaEvent_t> events(static_cast<std::size_t>(repeats) + 1);
  for (cudaEvent_t& event : events) {
    KVC_CUDA(cudaEventCreate(&event));
  }
  KVC_CUDA(cudaEventRecord(events[0], stream));
  for (int i = 0; i < repeats; ++i) {
    f(i);
    KVC_CUDA(cudaEventRecord(events[static_cast<std::size_t>(i) + 1], stream));
  }
  KVC_CUDA(cudaStreamSynchronize(stream));
  std::vector<float> all;
  for (int i = 0; i < repeats; ++i) {
    float milliseconds = 0;
    KVC_CUDA(cudaEventElapsedTime(&milliseconds, events[static_cast<std::size_t>(i)],
                                  events[static_cast<std::size_t>(i) + 1]));
    all.push_back(milliseconds);
  }
  for (const cudaEvent_t event : events) {
    KVC_CUDA(cudaEventDestroy(event));
  }
  std::sort(all.begin(), all.end());
  return all;
}

/// Keeps the device busy for so many clocks, so that work which the host queues meanwhile starts without waiting for
/// it.
template <int = 0>
__global__ void spin_kernel(long long clocks) {
  const long long start = clock64();
  while (clock64() - start < clocks) {
  }
}
inline void spin(long long clocks, cudaStream_t stream) {
  spin_kernel<><<<1, 1, 0, stream>>>(clocks);
  kvc::cuda::detail::check_launch("spin_kernel");
}

inline void report(const char* name, const char* kind, double amount, const std::vector<float>& sorted) {
  std::printf("result\t%s\t%s\t%.0f\t%.6f\t%.6f\t%.6f\n", name, kind, amount,
              static_cast<double>(sorted[sorted.size() / 2]), static_cast<double>(sorted.front()),
              static_cast<double>(sorted.back()));
  std::fflush(stdout);
}

/// Fills a pool with random rows of `row` bytes each: finite numbers of magnitude about one.
template <Format F>
__global__ void fill_kernel(unsigned char* pool, Index bytes, int row, std::uint32_t seed) {
  const Index unit = kvc::cuda::code_bytes(F);
  for (Index i = (Index{blockIdx.x} * blockDim.x + threadIdx.x) * unit; i < bytes;
       i += Index{gridDim.x} * blockDim.x * unit) {
    auto x = static_cast<std::uint32_t>(i * 2654435761U + static_cast<std::uint32_t>(i >> 32) * 40503U + seed);
    x ^= x >> 16;
    x *= 0x7feb352dU;
    x ^= x >> 15;
    x *= 0x846ca68bU;
    x ^= x >> 16;
    if (F == Format::bf16) {
      *reinterpret_cast<unsigned short*>(pool + i) =
          static_cast<unsigned short>((x & 0x807fU) | 0x3f00U);  // +-[0.5, 1)
    } else if (F == Format::f16) {
      *reinterpret_cast<unsigned short*>(pool + i) = static_cast<unsigned short>((x & 0x83ffU) | 0x3800U);
    } else if (F == Format::fp8_e4m3) {
      pool[i] = static_cast<unsigned char>((x & 0x8fU) | 0x30U);  // +-[0.5, 2)
    } else if (F == Format::int8 && i % row >= row - 4) {
      constexpr unsigned char scale[4] = {0, 0, 0, 0x3c};  // 2^-7
      pool[i] = scale[i % row - (row - 4)];
    } else {
      pool[i] = static_cast<unsigned char>(x);
    }
  }
}

template <Format F>
void fill(void* pool, Index bytes, int row, cudaStream_t stream) {
  fill_kernel<F><<<4096, 256, 0, stream>>>(static_cast<unsigned char*>(pool), bytes, row, 12345);
  kvc::cuda::detail::check_launch("fill_kernel");
}

}  // namespace kvc_bench
