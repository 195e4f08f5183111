// DeviceSpace: pools in the memory of a GPU. KvCache<T, Policy, Layout, cuda::DeviceSpace> is a cache there, with any
// policy.
//
// Everything happens in the order of one stream. Memory is allocated once, when the cache is constructed, and keeps its
// address: nothing is allocated in a step.
//
// Copies that a policy asks for (copy-on-write, moves) are collected and launched together, before the next thing that
// needs them: `cuda::view` and `cuda::Batch::upload` call `flush()`. Who passes `cache.data()` to kernels of their own
// calls `cache.space().flush()` first. A copy that touches what one in waiting writes or reads is launched after it.
//
// Errors: cuda::OutOfMemory (a std::bad_alloc) if there is not so much memory, cuda::Error if a call of CUDA fails.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <utility>
#include <vector>

#include "kvc/cuda/check.cuh"
#include "kvc/cuda/copy_kernel.cuh"
#include "kvc/cuda/copy_queue.hpp"
#include "kvc/memory/space.hpp"

namespace kvc {
inline namespace v0 {
namespace cuda {
class DeviceSpace {
 public:
  static constexpr bool host_accessible = false;

  /// On the current device, in the order of `stream`, which must outlive the space.
  explicit DeviceSpace(cudaStream_t stream = nullptr) : stream_(stream) {}
  DeviceSpace(DeviceSpace&&) = default;
  DeviceSpace& operator=(DeviceSpace&&) = default;

  [[nodiscard]] cudaStream_t stream() const noexcept { return stream_; }

  /// Aligned to 256 bytes. Must not be called while the stream is being captured.
  [[nodiscard]] std::byte* allocate(std::size_t bytes) {
    detail::require_no_capture(stream_, "DeviceSpace::allocate");
    void* p = nullptr;
    detail::check_allocation(cudaMallocAsync(&p, std::max<std::size_t>(bytes, 1), stream_), "cudaMallocAsync", bytes);
    return static_cast<std::byte*>(p);
  }
  void deallocate(std::byte* p, std::size_t) noexcept { detail::report(cudaFreeAsync(p, stream_), "cudaFreeAsync"); }

  /// From device memory to device memory, after all copies in waiting.
  void copy(std::byte* to, const std::byte* from, std::size_t bytes) {
    flush();
    KVC_CUDA(cudaMemcpyAsync(to, from, bytes, cudaMemcpyDeviceToDevice, stream_));
  }
  /// Will have happened when what is launched after the next `flush` begins.
  void copy(const GridCopy& copy) {
    if (copies_.conflicts(copy)) {
      flush();
    }
    copies_.push(copy);
  }
  /// Launches the copies in waiting: one launch for each 384 of them, two of which are the keys and values of one
  /// sequence.
  void flush() {
    const std::vector<GridCopy>& all = copies_.waiting();
    for (std::size_t first = 0; first < all.size(); first += max_copy_jobs) {
      const std::size_t count = std::min<std::size_t>(max_copy_jobs, all.size() - first);
      if (count <= few_copy_jobs) {
        launch<few_copy_jobs>(all.data() + first, count);
      } else {
        launch<max_copy_jobs>(all.data() + first, count);
      }
    }
    copies_.clear();
  }

 private:
  template <int Most>
  void launch(const GridCopy* copies, std::size_t count) const {
    const Index unit = detail::unit_of(copies, copies + count);
    GridCopyJobs<Most> jobs{};
    std::uint32_t most = 0;
    for (std::size_t i = 0; i < count; ++i) {
      jobs.jobs[i] = detail::job_of(copies[i], unit);
      most = std::max(most, jobs.jobs[i].spans);
    }
    constexpr std::uint32_t warps = copy_threads / 32;
    const dim3 grid(std::min<std::uint32_t>((most + warps - 1) / warps, 1024), static_cast<unsigned>(count));
    if (unit == 16) {
      copy_kernel<uint4><<<grid, copy_threads, 0, stream_>>>(jobs);
    } else if (unit == 4) {
      copy_kernel<std::uint32_t><<<grid, copy_threads, 0, stream_>>>(jobs);
    } else {
      copy_kernel<unsigned char><<<grid, copy_threads, 0, stream_>>>(jobs);
    }
    detail::check_launch("copy_kernel");
  }

  cudaStream_t stream_;
  detail::CopyQueue copies_;
};
static_assert(Space<DeviceSpace>);

}  // namespace cuda
}  // namespace v0
}  // namespace kvc
