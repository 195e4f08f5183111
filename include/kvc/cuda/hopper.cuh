// Instructions that only Hopper (sm_90a) has: barriers in shared memory that asynchronous copies complete (mbarrier),
// bulk copies of boxes of a tensor (TMA), matrix products of a warpgroup (wgmma), and registers that move between
// warpgroups. A host compiler that includes tests/cuda/emulate_hopper.hpp first runs the same functions on the CPU.
//
// Source: the chapters "mbarrier", "cp.async.bulk.tensor" and "Asynchronous Warpgroup Level Matrix Instructions" of the
// PTX ISA. We compared the fields of descriptors and the layouts of fragments with NVIDIA's CUTLASS
// (cute/arch/mma_sm90_desc.hpp, cute/atom/mma_traits_sm90_gmma.hpp), and the syntax of instructions with CUTLASS and
// CCCL (cuda/__ptx).
//
// Shared memory is accessed through two proxies. wgmma and bulk copies use the async proxy: they see what threads wrote
// (through the generic proxy) only after fence_async_proxy(). Threads and wgmma see what a bulk copy wrote once they
// have waited for its barrier.
#pragma once

#include <cstdint>
#include <type_traits>

#include "kvc/cuda/device.cuh"
#include "kvc/cuda/format.hpp"
#include "kvc/cuda/prefill_ptx.cuh"

#if defined(__CUDACC__)
#include <cuda.h>  // CUtensorMap; nothing of it is called, nor linked
#endif

/// Defined where these instructions can be compiled. Elsewhere kernels that use them must have an empty body.
#if defined(__CUDA_ARCH_FEAT_SM90_ALL) || !defined(__CUDACC__)
#define KVC_CUDA_HOPPER 1
#endif

namespace kvc {
inline namespace v0 {
namespace cuda {
namespace device {

#if defined(__CUDACC__)
/// The driver's description of a tensor: see tensor_map.cuh.
using TensorMap = CUtensorMap;
#else
/// Its emulation.
using TensorMap = kvc_emulation::TensorMap;
#endif

#if defined(KVC_CUDA_HOPPER)

// --- barriers in shared memory -------------------------------------------------------------------------------------
// A phase of a barrier completes when the expected number of threads have arrived and the expected number of bytes have
// been copied. Waiters tell phases apart by their parity; the first phase has parity 0.

/// A barrier: eight bytes in shared memory, aligned to 8.
using Barrier = std::uint64_t;

/// Initialises a barrier. One thread calls this, then fence_barrier_init(), before a __syncthreads of the block.
__device__ __forceinline__ void init_barrier(Barrier& barrier, unsigned arrivals) {
#if defined(__CUDACC__)
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(shared_address(&barrier)), "r"(arrivals) : "memory");
#else
  kvc_emulation::init_barrier(&barrier, arrivals);
#endif
}
/// Makes initialised barriers visible to bulk copies. Called by the thread that initialised them, after the last one.
__device__ __forceinline__ void fence_barrier_init() {
#if defined(__CUDACC__)
  asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
#endif
}
/// Arrives at the current phase of a barrier.
__device__ __forceinline__ void arrive(Barrier& barrier) {
#if defined(__CUDACC__)
  asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(shared_address(&barrier)) : "memory");
#else
  kvc_emulation::arrive_and_give_way(&barrier);
#endif
}
/// Arrives, and adds to the bytes that bulk copies must write before this phase completes.
__device__ __forceinline__ void arrive_and_expect(Barrier& barrier, unsigned bytes) {
#if defined(__CUDACC__)
  asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(shared_address(&barrier)), "r"(bytes)
               : "memory");
#else
  kvc_emulation::arrive(&barrier, bytes);
#endif
}
/// Arrives when all copies that this thread started with copy_async have completed.
__device__ __forceinline__ void arrive_after_copies(Barrier& barrier) {
#if defined(__CUDACC__)
  asm volatile("cp.async.mbarrier.arrive.noinc.shared::cta.b64 [%0];" ::"r"(shared_address(&barrier)) : "memory");
#else
  kvc_emulation::arrive_after_copies(&barrier);
#endif
}
/// Waits for the phase of this parity to complete. The phase after it must not complete before the call returns.
__device__ __forceinline__ void wait(Barrier& barrier, unsigned parity) {
#if defined(__CUDACC__)
  asm volatile(
      "{ .reg .pred done;\n"
      "KVC_WAIT: mbarrier.try_wait.parity.shared::cta.b64 done, [%0], %1;\n"
      "@done bra KVC_DONE;\n"
      "bra KVC_WAIT;\n"
      "KVC_DONE: }" ::"r"(shared_address(&barrier)),
      "r"(parity)
      : "memory");
#else
  kvc_emulation::wait(&barrier, parity);
#endif
}

/// Waits until `threads` threads, a multiple of 32, have reached named barrier `id`, 1 to 15. (__syncthreads uses 0.)
__device__ __forceinline__ void sync_named(int id, int threads) {
#if defined(__CUDACC__)
  asm volatile("barrier.sync %0, %1;" ::"r"(id), "r"(threads) : "memory");
#else
  (void)kvc_emulation::sync_named(id, threads, false);
#endif
}
/// Counts this thread as one that has reached the named barrier, without waiting for the others.
__device__ __forceinline__ void arrive_named(int id, int threads) {
#if defined(__CUDACC__)
  asm volatile("barrier.arrive %0, %1;" ::"r"(id), "r"(threads) : "memory");
#else
  kvc_emulation::arrive_named(id, threads);
#endif
}
/// Like sync_named; returns whether `condition` is true for any of the threads.
[[nodiscard]] __device__ __forceinline__ bool sync_named_any(int id, int threads, bool condition) {
#if defined(__CUDACC__)
  int any;
  asm volatile(
      "{ .reg .pred mine, any; setp.ne.b32 mine, %3, 0; barrier.red.or.pred any, %1, %2, mine; selp.b32 %0, 1, 0, any; "
      "}"
      : "=r"(any)
      : "r"(id), "r"(threads), "r"(condition ? 1 : 0)
      : "memory");
  return any != 0;
#else
  return kvc_emulation::sync_named(id, threads, condition);
#endif
}

/// Makes writes to shared memory by this thread, and writes by others that it has observed, visible to wgmma and bulk
/// copies that start later in this thread, or in threads that synchronise with it.
__device__ __forceinline__ void fence_async_proxy() {
#if defined(__CUDACC__)
  asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
#else
  kvc_emulation::fence_async_proxy();
#endif
}

/// Raises the registers per thread of this warpgroup to a multiple of 8; waits until enough are free.
template <int Registers>
__device__ __forceinline__ void acquire_registers() {
#if defined(__CUDACC__)
  asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(Registers));
#endif
}
/// Lowers the registers per thread of this warpgroup to a multiple of 8.
template <int Registers>
__device__ __forceinline__ void release_registers() {
#if defined(__CUDACC__)
  asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(Registers));
#endif
}

// --- bulk copies ---------------------------------------------------------------------------------------------------

/// Starts to copy a box of a four-dimensional tensor, beginning at coordinates `at`, to shared memory at a multiple of
/// 1024 bytes: rows of 128 bytes in the swizzle of prefill_shared.cuh, with zeros for elements outside of the tensor.
/// On completion `barrier` counts the bytes of the whole box. One thread calls this; `map` must be a kernel argument.
__device__ __forceinline__ void tma_copy_box(SharedAddress to, const TensorMap& map, const std::int32_t (&at)[4],
                                             Barrier& barrier) {
#if defined(__CUDACC__)
  asm volatile(
      "cp.async.bulk.tensor.4d.shared::cluster.global.tile.mbarrier::complete_tx::bytes [%0], [%1, {%2, %3, %4, %5}], "
      "[%6];" ::"r"(to),
      "l"(&map), "r"(at[0]), "r"(at[1]), "r"(at[2]), "r"(at[3]), "r"(shared_address(&barrier))
      : "memory");
#else
  kvc_emulation::tma_copy_box(to, map, at, &barrier);
#endif
}

// --- products of a warpgroup (wgmma) -------------------------------------------------------------------------------
// Warp w of a warpgroup holds rows 16 w .. 16 w + 15 of a 64-row result, distributed over its lanes as mma does.
// Products are asynchronous: from wgmma_fence() until wgmma_wait() for their group, nothing may touch their registers
// and shared memory.

/// The descriptor of a matrix in shared memory. Its rows of 64 elements (128 bytes) have the layout of
/// prefill_shared.cuh: groups of eight rows, each at a multiple of 1024 bytes, swizzled. `start` may lie within the
/// first row, at a multiple of 32 bytes. Columns from 64 on lie `panels` bytes further; only a matrix whose rows are
/// summed over needs that.
///
///   bits  0-13  address / 16             (matrix-descriptor-encode in the PTX ISA)
///        16-29  leading dimension byte offset / 16: from 64 columns to the next 64; ignored unless rows are summed
///               over
///        32-45  stride dimension byte offset / 16: from eight rows to the next eight
///        49-51  base offset: 0, since the swizzle pattern starts at a multiple of 1024
///        62-63  1: swizzle of 128 bytes
[[nodiscard]] __device__ __forceinline__ std::uint64_t matrix_descriptor(SharedAddress start, unsigned panels = 16) {
#if defined(__CUDACC__)
  const std::uint64_t address = start;
#else
  const std::uint64_t address = start - shared_address(dynamic_shared());
#endif
  return (address & 0x3ffffU) >> 4 | std::uint64_t{panels >> 4} << 16 | std::uint64_t{1024 >> 4} << 32 |
         std::uint64_t{1} << 62;
}

/// Orders earlier writes to the registers of products before the products that follow.
__device__ __forceinline__ void wgmma_fence() {
#if defined(__CUDACC__)
  asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
#endif
}
/// Closes the current group of products.
__device__ __forceinline__ void wgmma_commit() {
#if defined(__CUDACC__)
  asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
#else
  kvc_emulation::wgmma_commit();
#endif
}
/// Waits until at most the last `InProgress` groups of this warp are still in progress.
template <int InProgress>
__device__ __forceinline__ void wgmma_wait() {
#if defined(__CUDACC__)
  asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(InProgress) : "memory");
#else
  kvc_emulation::wgmma_wait(InProgress);
#endif
}
/// Keeps the compiler from moving accesses to the registers of a product across this point.
template <int N, int M, class Word>
__device__ __forceinline__ void fence_registers(Word (&registers)[N][M]) {
#if defined(__CUDACC__)
#pragma unroll
  for (int n = 0; n < N; ++n) {
#pragma unroll
    for (int i = 0; i < M; ++i) {
      if constexpr (std::is_same_v<Word, float>) {
        asm volatile("" : "+f"(registers[n][i])::"memory");
      } else {
        asm volatile("" : "+r"(registers[n][i])::"memory");
      }
    }
  }
#else
  (void)registers;
#endif
}

#if defined(__CUDACC__)
// Operands 0 to 31, or 63, of every product are the sums of a lane: their names in the text, and the operand list.
#define KVC_SUMS_OF_8(c, n) "+f"(c[n][0]), "+f"(c[n][1]), "+f"(c[n][2]), "+f"(c[n][3])
#define KVC_SUMS_OF_64(c, n)                                                                      \
  KVC_SUMS_OF_8(c, n), KVC_SUMS_OF_8(c, n + 1), KVC_SUMS_OF_8(c, n + 2), KVC_SUMS_OF_8(c, n + 3), \
      KVC_SUMS_OF_8(c, n + 4), KVC_SUMS_OF_8(c, n + 5), KVC_SUMS_OF_8(c, n + 6), KVC_SUMS_OF_8(c, n + 7)
#define KVC_NAMES_OF_64                                                    \
  "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, " \
  "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31"
#define KVC_NAMES_OF_128                                                                              \
  KVC_NAMES_OF_64                                                                                     \
  ", %32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, %48, %49, %50, " \
  "%51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63"
// Both operands by descriptor, the second stored by its columns; operand `add` says whether to add to the sums.
#define KVC_PRODUCT(shape, type, names, a, b, add)                                                                  \
  "{ .reg .pred p; setp.ne.b32 p, " add ", 0; wgmma.mma_async.sync.aligned." shape ".f32." type "." type " {" names \
  "}, " a ", " b ", p, 1, 1, 0, 0; }"
// The first operand in registers, the second by descriptor, stored by its rows.
#define KVC_PRODUCT_OF_REGISTERS(shape, type, names, a, b)                                                             \
  "{ .reg .pred p; setp.eq.b32 p, 0, 0; wgmma.mma_async.sync.aligned." shape ".f32." type "." type " {" names "}, {" a \
  "}, " b ", p, 1, 1, 1; }"
#endif

/// c = a b, or c += a b if `add`, for 64 x 16 and 16 x N elements. The descriptors are those of a and of b transposed,
/// both with rows of 16 elements.
///
///   c  [N / 8][4]; c[n] holds columns 8 n .. 8 n + 7, distributed over lanes as mma does
template <Format F, int N>
__device__ __forceinline__ void wgmma(float (&c)[N / 8][4], std::uint64_t a, std::uint64_t b, bool add) {
  static_assert(F == Format::f16 || F == Format::bf16);
  static_assert(N == 64 || N == 128);
#if defined(__CUDACC__)
  if constexpr (F == Format::bf16 && N == 64) {
    asm volatile(KVC_PRODUCT("m64n64k16", "bf16", KVC_NAMES_OF_64, "%32", "%33", "%34")
                 : KVC_SUMS_OF_64(c, 0)
                 : "l"(a), "l"(b), "r"(add ? 1 : 0));
  } else if constexpr (F == Format::bf16) {
    asm volatile(KVC_PRODUCT("m64n128k16", "bf16", KVC_NAMES_OF_128, "%64", "%65", "%66")
                 : KVC_SUMS_OF_64(c, 0), KVC_SUMS_OF_64(c, 8)
                 : "l"(a), "l"(b), "r"(add ? 1 : 0));
  } else if constexpr (N == 64) {
    asm volatile(KVC_PRODUCT("m64n64k16", "f16", KVC_NAMES_OF_64, "%32", "%33", "%34")
                 : KVC_SUMS_OF_64(c, 0)
                 : "l"(a), "l"(b), "r"(add ? 1 : 0));
  } else {
    asm volatile(KVC_PRODUCT("m64n128k16", "f16", KVC_NAMES_OF_128, "%64", "%65", "%66")
                 : KVC_SUMS_OF_64(c, 0), KVC_SUMS_OF_64(c, 8)
                 : "l"(a), "l"(b), "r"(add ? 1 : 0));
  }
#else
  kvc_emulation::wgmma(F == Format::bf16, N, c, a, b, add);
#endif
}
/// c += a b for 64 x 16 and 16 x N elements. a is in registers, as mma takes it; b is described: 16 rows of N elements.
/// The sums begin at c[First].
template <Format F, int N, int First, int Columns>
__device__ __forceinline__ void wgmma(float (&c)[Columns][4], const std::uint32_t (&a)[4], std::uint64_t b) {
  static_assert(F == Format::f16 || F == Format::bf16);
  static_assert(N == 64 || N == 128);
#if defined(__CUDACC__)
  if constexpr (F == Format::bf16 && N == 64) {
    asm volatile(KVC_PRODUCT_OF_REGISTERS("m64n64k16", "bf16", KVC_NAMES_OF_64, "%32, %33, %34, %35", "%36")
                 : KVC_SUMS_OF_64(c, First)
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b));
  } else if constexpr (F == Format::bf16) {
    asm volatile(KVC_PRODUCT_OF_REGISTERS("m64n128k16", "bf16", KVC_NAMES_OF_128, "%64, %65, %66, %67", "%68")
                 : KVC_SUMS_OF_64(c, First), KVC_SUMS_OF_64(c, First + 8)
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b));
  } else if constexpr (N == 64) {
    asm volatile(KVC_PRODUCT_OF_REGISTERS("m64n64k16", "f16", KVC_NAMES_OF_64, "%32, %33, %34, %35", "%36")
                 : KVC_SUMS_OF_64(c, First)
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b));
  } else {
    asm volatile(KVC_PRODUCT_OF_REGISTERS("m64n128k16", "f16", KVC_NAMES_OF_128, "%64, %65, %66, %67", "%68")
                 : KVC_SUMS_OF_64(c, First), KVC_SUMS_OF_64(c, First + 8)
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b));
  }
#else
  kvc_emulation::wgmma(F == Format::bf16, N, c + First, a, b);
#endif
}

#if defined(__CUDACC__)
#undef KVC_SUMS_OF_8
#undef KVC_SUMS_OF_64
#undef KVC_NAMES_OF_64
#undef KVC_NAMES_OF_128
#undef KVC_PRODUCT
#undef KVC_PRODUCT_OF_REGISTERS
#endif

#endif  // KVC_CUDA_HOPPER

}  // namespace device
}  // namespace cuda
}  // namespace v0
}  // namespace kvc
