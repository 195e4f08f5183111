// resident_blocks: the grid of kernels whose thread blocks share work until none is left; has_shared_memory: whether a
// device runs a kernel at all.
#pragma once

#include <algorithm>
#include <cstddef>

#include "kvc/cuda/check.cuh"
#include "kvc/cuda/remembered.hpp"

namespace kvc {
inline namespace v0 {
namespace cuda {
namespace detail {

/// How many thread blocks of a kernel the current device can hold at once, each with so many threads and bytes of
/// dynamic shared memory. `known` is that kernel's own. Throws Error.
template <class Kernel>
[[nodiscard]] unsigned resident_blocks(PerDevice& known, Kernel kernel, int threads, std::size_t shared_bytes = 0) {
  const int device = current_device();
  return static_cast<unsigned>(known.get(device, [&] {
    int processors = 0, blocks = 0;
    KVC_CUDA(cudaDeviceGetAttribute(&processors, cudaDevAttrMultiProcessorCount, device));
    KVC_CUDA(cudaOccupancyMaxActiveBlocksPerMultiprocessor(&blocks, kernel, threads, shared_bytes));
    return std::max(blocks, 1) * processors;
  }));
}

/// Whether the device grants a thread block so much dynamic shared memory, beside what kernels declare.
[[nodiscard]] inline bool has_shared_memory(int bytes) {
  static PerDevice known;
  const int device = current_device(), most = known.get(device, [device] {
    int granted = 0;
    KVC_CUDA(cudaDeviceGetAttribute(&granted, cudaDevAttrMaxSharedMemoryPerBlockOptin, device));
    return granted;
  });
  return bytes + (3 << 10) <= most;
}

}  // namespace detail
}  // namespace cuda
}  // namespace v0
}  // namespace kvc
