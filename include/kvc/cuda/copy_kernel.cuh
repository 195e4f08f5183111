// copy_kernel: many GridCopys in one launch, for the copy-on-write copies of a step.
//
// A warp copies one contiguous span after another, so the two divisions that locate a span are paid once for its bytes.
// Lanes copy units of 16 bytes (4 or 1 where something is not aligned), four at a time.
#pragma once

#include <cstddef>
#include <cstdint>

#include "kvc/core/error.hpp"
#include "kvc/core/types.hpp"
#include "kvc/cuda/device.cuh"
#include "kvc/cuda/divisor.hpp"
#include "kvc/memory/space.hpp"

namespace kvc {
inline namespace v0 {
namespace cuda {

/// One GridCopy as the kernel takes it.
struct GridCopyJob {
  std::byte* to;
  const std::byte* from;
  Index strides[3];
  std::uint32_t spans;
  std::uint32_t units;  ///< units of one span
  Divisor inner;        ///< extents[2]
  Divisor middle;       ///< extents[1]

  /// Byte offset of a span from `from` and from `to`.
  [[nodiscard]] KVC_HOST_DEVICE constexpr Index offset(std::uint32_t span) const noexcept {
    const std::uint32_t outer = inner.quotient(span), k = span - outer * static_cast<std::uint32_t>(inner.value());
    const std::uint32_t i = middle.quotient(outer), j = outer - i * static_cast<std::uint32_t>(middle.value());
    return i * strides[0] + j * strides[1] + k * strides[2];
  }
};

/// The argument of one launch: up to `Most` jobs. Passing them by value needs no upload, so a graph may capture the
/// launch. Every launch transfers all `Most` jobs, hence a small and a large variant.
template <int Most>
struct GridCopyJobs {
  GridCopyJob jobs[Most];
};
inline constexpr int few_copy_jobs = 16;
inline constexpr int max_copy_jobs = 384;
static_assert(sizeof(GridCopyJobs<max_copy_jobs>) <= 32764, "what a kernel may take as arguments, from CUDA 12.1 on");

inline constexpr int copy_threads = 256;

/// Runs gridDim.y jobs; the warps of all thread blocks with the same blockIdx.y share the spans of that job.
template <class Unit, int Most>
__global__ void __launch_bounds__(copy_threads) copy_kernel(const __grid_constant__ GridCopyJobs<Most> all) {
  const GridCopyJob& job = all.jobs[blockIdx.y];
  constexpr std::uint32_t warps = copy_threads / 32;
  const std::uint32_t lane = threadIdx.x % 32;
  for (std::uint32_t span = blockIdx.x * warps + threadIdx.x / 32; span < job.spans; span += gridDim.x * warps) {
    const Index offset = job.offset(span);
    const Unit* const from = reinterpret_cast<const Unit*>(job.from + offset);
    Unit* const to = reinterpret_cast<Unit*>(job.to + offset);
    for (std::uint32_t first = lane; first < job.units; first += 128) {
      Unit units[4];
#pragma unroll
      for (std::uint32_t i = 0; i < 4; ++i) {
        if (first + 32 * i < job.units) {
          units[i] = device::load_streaming<Unit>(from + first + 32 * i);
        }
      }
#pragma unroll
      for (std::uint32_t i = 0; i < 4; ++i) {
        if (first + 32 * i < job.units) {
          to[first + 32 * i] = units[i];
        }
      }
    }
  }
}

namespace detail {

/// The largest unit, 16, 4 or 1 bytes, to which all of `copies` are aligned.
[[nodiscard]] inline Index unit_of(const GridCopy* first, const GridCopy* last) noexcept {
  std::uintptr_t bits = 0;
  for (; first != last; ++first) {
    bits |= reinterpret_cast<std::uintptr_t>(first->to) | reinterpret_cast<std::uintptr_t>(first->from) |
            static_cast<std::uintptr_t>(first->bytes);
    for (const Index stride : first->strides) {
      bits |= static_cast<std::uintptr_t>(stride);
    }
  }
  return bits % 16 == 0 ? 16 : bits % 4 == 0 ? 4 : 1;
}

/// The kernel's form of a copy. Throws std::invalid_argument if it has no spans, 2^31 or more, or spans of 2^31 units.
[[nodiscard]] inline GridCopyJob job_of(const GridCopy& copy, Index unit) {
  const Index spans = copy.extents[0] * copy.extents[1] * copy.extents[2];
  require_between(spans, Index{1}, Index{max_pos}, "spans of a copy");
  require_between(copy.bytes / unit, Index{1}, Index{max_pos}, "bytes of a span of a copy");
  return {copy.to,
          copy.from,
          {copy.strides[0], copy.strides[1], copy.strides[2]},
          static_cast<std::uint32_t>(spans),
          static_cast<std::uint32_t>(copy.bytes / unit),
          Divisor(static_cast<std::int32_t>(copy.extents[2])),
          Divisor(static_cast<std::int32_t>(copy.extents[1]))};
}
}  // namespace detail

}  // namespace cuda
}  // namespace v0
}  // namespace kvc
