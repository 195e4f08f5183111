// Instructions that prefill needs beyond device.cuh: addresses in shared memory, asynchronous copies to it, and loads
// of 8 x 8 matrices from it. A host compiler that includes tests/cuda/emulate_tiles.hpp first runs them on the CPU.
#pragma once

#include <cstddef>
#include <cstdint>

#include "kvc/cuda/device.cuh"

namespace kvc {
inline namespace v0 {
namespace cuda {
namespace device {

// --- shared memory -------------------------------------------------------------------------------------------------

/// The dynamic shared memory of a launch, aligned to 128 bytes.
[[nodiscard]] __device__ __forceinline__ std::byte* dynamic_shared() {
#if defined(__CUDACC__)
  extern __shared__ __align__(128) std::byte kvc_dynamic_shared[];
  return kvc_dynamic_shared;
#else
  return kvc_emulation::dynamic_shared();
#endif
}

#if defined(__CUDACC__)
/// A byte address in shared memory.
using SharedAddress = std::uint32_t;
#else
/// Its emulation: an address in host memory.
using SharedAddress = std::uintptr_t;
#endif
/// The shared-memory address of a pointer into shared memory.
[[nodiscard]] __device__ __forceinline__ SharedAddress shared_address(const void* p) {
#if defined(__CUDACC__)
  return static_cast<SharedAddress>(__cvta_generic_to_shared(p));
#else
  return reinterpret_cast<SharedAddress>(p);
#endif
}

// --- asynchronous copies from device memory to shared memory -------------------------------------------------------

/// Starts to copy 16 bytes; or to write zeros, without reading, if not `there`. Both addresses are multiples of 16, and
/// `from` must be valid in either case. The copy bypasses the first-level cache.
__device__ __forceinline__ void copy_async(SharedAddress to, const std::byte* from, bool there) {
#if defined(__CUDACC__)
  asm volatile("cp.async.cg.shared.global.L2::128B [%0], [%1], 16, %2;"
               :
               : "r"(to), "l"(__cvta_generic_to_global(from)), "r"(there ? 16 : 0)
               : "memory");
#else
  kvc_emulation::copy_async(to, from, there);
#endif
}
/// Closes a group of copies: all that this thread has started since the last group.
__device__ __forceinline__ void commit_copies() {
#if defined(__CUDACC__)
  asm volatile("cp.async.commit_group;" ::: "memory");
#else
  kvc_emulation::commit_copies();
#endif
}
/// Waits until at most the last `InProgress` groups of this thread are still in progress. A barrier then makes what it
/// copied visible to other threads.
template <int InProgress>
__device__ __forceinline__ void wait_copies() {
#if defined(__CUDACC__)
  asm volatile("cp.async.wait_group %0;" ::"n"(InProgress) : "memory");
#else
  kvc_emulation::wait_copies(InProgress);
#endif
}

// --- 8 x 8 matrices of 16-bit elements, for the whole warp ----------------------------------------------------------

/// Loads four matrices. Lane 8 i + r passes the address of row r of matrix i, 16 bytes at a multiple of 16. Lane 4 g +
/// t gets row g, columns 2t and 2t + 1, of matrix i in out[i]. (ldmatrix.x4)
__device__ __forceinline__ void ldmatrix(SharedAddress row, std::uint32_t (&out)[4]) {
#if defined(__CUDACC__)
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(out[0]), "=r"(out[1]), "=r"(out[2]), "=r"(out[3])
               : "r"(row)
               : "memory");
#else
  kvc_emulation::ldmatrix(row, out, false);
#endif
}
/// Loads four transposed matrices: lane 4 g + t gets column g, rows 2t and 2t + 1. (ldmatrix.x4.trans)
__device__ __forceinline__ void ldmatrix_transposed(SharedAddress row, std::uint32_t (&out)[4]) {
#if defined(__CUDACC__)
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(out[0]), "=r"(out[1]), "=r"(out[2]), "=r"(out[3])
               : "r"(row)
               : "memory");
#else
  kvc_emulation::ldmatrix(row, out, true);
#endif
}

// --- single instructions for functions of a float ------------------------------------------------------------------

/// 2^x to 2 units in the last place; subnormal results are 0. Exactly 1 for 0, and 0 for -infinity.
[[nodiscard]] __device__ __forceinline__ float fast_exp2(float x) {
#if defined(__CUDACC__)
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
#else
  return exp2f(x);
#endif
}
/// 1 / x to 1 unit in the last place; 0 for infinity.
[[nodiscard]] __device__ __forceinline__ float fast_reciprocal(float x) {
#if defined(__CUDACC__)
  float y;
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
#else
  return 1.0F / x;
#endif
}

}  // namespace device
}  // namespace cuda
}  // namespace v0
}  // namespace kvc
