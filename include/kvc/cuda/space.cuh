// DeviceSpace: pools in the memory of a GPU. KvCache<T, Policy, Layout, cuda::DeviceSpace> is a cache there, with any
// policy.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <utility>
#include <vector>

#include "kvc/core/types.hpp"
#include "kvc/cuda/check.cuh"
#include "kvc/cuda/copy_kernel.cuh"
#include "kvc/cuda/copy_queue.hpp"
#include "kvc/cuda/launch.cuh"
#include "kvc/memory/space.hpp"

namespace kvc {
inline namespace v0 {
namespace cuda {
/// Device memory for pools, a Space (see memory/space.hpp) that orders everything by one stream.
///
/// A cache allocates its pool once, at construction; the address never changes, and a step allocates nothing. Copies
/// that a policy asks for (copy-on-write, moves) are collected and launched together before work that may need them:
/// cuda::view and cuda::Batch::upload call flush(). A caller who passes cache.data() to kernels of its own calls
/// cache.space().flush() first.
///
/// Throws cuda::OutOfMemory (a std::bad_alloc) if the device has too little memory, cuda::Error if a call of CUDA
/// fails.
class DeviceSpace {
 public:
  static constexpr bool host_accessible = false;

  /// Uses the device that is current now. `stream` must outlive the space.
  explicit DeviceSpace(cudaStream_t stream = nullptr) : stream_(stream) {}
  DeviceSpace(DeviceSpace&&) = default;
  DeviceSpace& operator=(DeviceSpace&&) = default;

  /// The stream of its copies.
  [[nodiscard]] cudaStream_t stream() const noexcept { return stream_; }

  /// Memory aligned to 256 bytes, not initialised. Throws std::invalid_argument while the stream is being captured.
  [[nodiscard]] std::byte* allocate(std::size_t bytes) {
    detail::require_no_capture(stream_, "DeviceSpace::allocate");
    void* p = nullptr;
    detail::check_allocation(cudaMallocAsync(&p, std::max<std::size_t>(bytes, 1), stream_), "cudaMallocAsync", bytes);
    return static_cast<std::byte*>(p);
  }
  /// Frees memory that `allocate` returned, after the work on the stream.
  void deallocate(std::byte* p, std::size_t) noexcept { detail::report(cudaFreeAsync(p, stream_), "cudaFreeAsync"); }

  /// Copies within device memory, after all queued copies.
  void copy(std::byte* to, const std::byte* from, std::size_t bytes) {
    flush();
    KVC_CUDA(cudaMemcpyAsync(to, from, bytes, cudaMemcpyDeviceToDevice, stream_));
  }
  /// Adds a queued copy: it precedes whatever is launched on the stream after the next flush(). Copies that conflict
  /// are launched in the order of their calls.
  void copy(const GridCopy& copy) {
    if (copies_.conflicts(copy)) {
      flush();
    }
    copies_.push(copy);
  }
  /// Launches all queued copies, up to 384 per launch. (A sequence has two: keys and values.)
  /// Throws std::invalid_argument if there are any while the stream is being captured, since a graph would repeat them
  /// at every launch; they stay queued then. Throws Error if a launch fails.
  void flush() {
    const std::vector<GridCopy>& all = copies_.queued();
    if (all.empty()) {
      return;
    }
    detail::require_no_capture(stream_, "queued copies");
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
      detail::launch("copy_kernel", copy_kernel<uint4, Most>, grid, copy_threads, 0, stream_, jobs);
    } else if (unit == 4) {
      detail::launch("copy_kernel", copy_kernel<std::uint32_t, Most>, grid, copy_threads, 0, stream_, jobs);
    } else {
      detail::launch("copy_kernel", copy_kernel<unsigned char, Most>, grid, copy_threads, 0, stream_, jobs);
    }
  }

  cudaStream_t stream_;
  detail::CopyQueue copies_;
};
static_assert(Space<DeviceSpace>);

}  // namespace cuda
}  // namespace v0
}  // namespace kvc
