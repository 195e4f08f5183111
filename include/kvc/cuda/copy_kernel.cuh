// Many GridCopys in one launch: the copy-on-write copies of a step.
//
// A warp takes one piece after the other, so that the two divisions that find a piece are paid once for its bytes, and
// its lanes copy units of 16 bytes (4 or 1, where something is not aligned), four at a time.
#pragma once

#include <cstddef>
#include <cstdint>

#include "kvc/core/error.hpp"
#include "kvc/cuda/device.cuh"
#include "kvc/cuda/divisor.hpp"
#include "kvc/memory/space.hpp"

namespace kvc {
inline namespace v0 {
namespace cuda {

/// One GridCopy with what the kernel needs worked out.
struct GridCopyJob {
  std::byte* to;
  const std::byte* from;
  Index strides[3];
  std::uint32_t pieces;
  std::uint32_t units;  ///< in a piece
  Divisor inner;        ///< extents[2]
  Divisor middle;       ///< extents[1]

  /// How far behind `from` and `to` a piece lies.
  [[nodiscard]] KVC_HOST_DEVICE constexpr Index offset(std::uint32_t piece) const noexcept {
    const std::uint32_t outer = inner.quotient(piece), k = piece - outer * static_cast<std::uint32_t>(inner.value());
    const std::uint32_t i = middle.quotient(outer), j = outer - i * static_cast<std::uint32_t>(middle.value());
    return i * strides[0] + j * strides[1] + k * strides[2];
  }
};

/// What one launch takes along as its argument: no upload, so that a capture may hold it. Up to `Most` jobs; every
/// launch pays for all of them, so there is a small form.
template <int Most>
struct GridCopyJobs {
  GridCopyJob jobs[Most];
};
inline constexpr int copy_jobs_few = 16;
inline constexpr int copy_jobs_most = 384;
static_assert(sizeof(GridCopyJobs<copy_jobs_most>) <= 32764, "what a kernel may take as arguments, from CUDA 12.1 on");

inline constexpr int copy_threads = 256;

/// gridDim.y jobs; the warps of all blockIdx.x share the pieces of job blockIdx.y.
template <class Unit, int Most>
__global__ void __launch_bounds__(copy_threads) copy_kernel(const __grid_constant__ GridCopyJobs<Most> all) {
  const GridCopyJob& job = all.jobs[blockIdx.y];
  constexpr std::uint32_t warps = copy_threads / 32;
  const std::uint32_t lane = threadIdx.x % 32;
  for (std::uint32_t piece = blockIdx.x * warps + threadIdx.x / 32; piece < job.pieces; piece += gridDim.x * warps) {
    const Index offset = job.offset(piece);
    const Unit* const from = reinterpret_cast<const Unit*>(job.from + offset);
    Unit* const to = reinterpret_cast<Unit*>(job.to + offset);
    for (std::uint32_t first = lane; first < job.units; first += 128) {
      Unit held[4];
#pragma unroll
      for (std::uint32_t i = 0; i < 4; ++i) {
        if (first + 32 * i < job.units) {
          held[i] = device::load_once<Unit>(from + first + 32 * i);
        }
      }
#pragma unroll
      for (std::uint32_t i = 0; i < 4; ++i) {
        if (first + 32 * i < job.units) {
          to[first + 32 * i] = held[i];
        }
      }
    }
  }
}

namespace detail {

/// Bytes of the units in which all of `copies` can go: 16, 4 or 1.
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

/// A job of the kernel. The pieces of one copy, and the units of one piece, must be fewer than 2^31.
[[nodiscard]] inline GridCopyJob job_of(const GridCopy& copy, Index unit) {
  const Index pieces = copy.extents[0] * copy.extents[1] * copy.extents[2];
  require_between(pieces, Index{1}, Index{max_pos}, "pieces of a copy");
  require_between(copy.bytes / unit, Index{1}, Index{max_pos}, "bytes of a piece of a copy");
  return {copy.to,
          copy.from,
          {copy.strides[0], copy.strides[1], copy.strides[2]},
          static_cast<std::uint32_t>(pieces),
          static_cast<std::uint32_t>(copy.bytes / unit),
          Divisor(static_cast<std::int32_t>(copy.extents[2])),
          Divisor(static_cast<std::int32_t>(copy.extents[1]))};
}
}  // namespace detail

}  // namespace cuda
}  // namespace v0
}  // namespace kvc
