// Products of four warps together on Hopper (wgmma), for the prefill kernel.
//
// NEVER RUN ON A GPU. It is compiled for sm_90a, and runs in tests against an emulation that was written from the same
// documents: "Asynchronous Warpgroup Level Matrix Instructions" in the PTX ISA. So cuda::prefill uses it only where
// KVC_CUDA_WGMMA is defined; see prefill.cuh.
//
// What differs from multiply_tiles: operands are read from shared memory by the tensor cores themselves, through
// descriptors, so that no register and no load instruction is spent on keys and queries. Tiles lie as
// prefill_shared.cuh has them, which is the swizzle of 128 bytes that descriptors know. Rows are those of four warps,
// warp w of a warpgroup having rows 16 w .. 16 w + 15, and what a lane has of them is what it has of 16 rows of
// multiply_tiles.
//
// Of a tile of keys that not all rows see, the values are multiplied by multiply_tiles: those that are not finite have
// to be left out there.
#pragma once

#include <cstdint>

#include "kvc/cuda/device.cuh"
#include "kvc/cuda/format.hpp"
#include "kvc/cuda/prefill_ptx.cuh"
#include "kvc/cuda/prefill_shared.cuh"
#include "kvc/cuda/prefill_tile.cuh"

namespace kvc::inline v0::cuda {

namespace device {

/// Makes what this thread has copied to shared memory visible to tensor cores that read it by descriptor, once all
/// threads have met at a barrier.
__device__ __forceinline__ void publish_copies() {
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
  asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
#endif
}

/// Describes a matrix in shared memory to a product: rows of 128 bytes, of which eight begin at a multiple of 1024,
/// swizzled, and the next eight 1024 bytes further. `start` may lie within the first row, at a multiple of 32.
///
///   bits  0-13  address / 16
///        16-29  distance between panels / 16, unused here
///        32-45  distance between eights of rows / 16
///        62-63  1: swizzle of 128 bytes
[[nodiscard]] __device__ __forceinline__ std::uint64_t describe(SharedAddress start) {
#if defined(__CUDACC__)
  const std::uint64_t address = start;
#else
  const std::uint64_t address = start - shared_address(dynamic_shared());
#endif
  return (address & 0x3ffffU) >> 4 | std::uint64_t{1} << 16 | std::uint64_t{1024 >> 4} << 32 | std::uint64_t{1} << 62;
}

/// Before the first product of several, and whenever registers that they use were written.
__device__ __forceinline__ void begin_products() {
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
  asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
#endif
}
/// Waits for the products of this warpgroup.
__device__ __forceinline__ void finish_products() {
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
  asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
  asm volatile("wgmma.wait_group.sync.aligned 0;" ::: "memory");
#endif
}
/// Keeps the compiler from reading or writing a register of a product across this point.
__device__ __forceinline__ void pin(float& x) {
#if defined(__CUDACC__)
  asm volatile("" : "+f"(x)::"memory");
#else
  (void)x;
#endif
}
__device__ __forceinline__ void pin(std::uint32_t& x) {
#if defined(__CUDACC__)
  asm volatile("" : "+r"(x)::"memory");
#else
  (void)x;
#endif
}

/// The 32 sums of a lane, operands 0 to 31 of every product below: their names in the text, and the list of them.
#define KVC_WGMMA_NAMES                                                    \
  "{%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, " \
  "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31}"
#define KVC_WGMMA_ROW(c, n) "+f"(c[n][0]), "+f"(c[n][1]), "+f"(c[n][2]), "+f"(c[n][3])
#define KVC_WGMMA_SUMS(c)                                                                                   \
  KVC_WGMMA_ROW(c, 0), KVC_WGMMA_ROW(c, 1), KVC_WGMMA_ROW(c, 2), KVC_WGMMA_ROW(c, 3), KVC_WGMMA_ROW(c, 4), \
      KVC_WGMMA_ROW(c, 5), KVC_WGMMA_ROW(c, 6), KVC_WGMMA_ROW(c, 7)

/// c = a b, or c += a b if `add`, of 64 x 16 and 16 x 64 numbers. a and b^T are described: 64 rows of 16 numbers.
///
///   c  [64 x 64]  c[n][i] what c[i] is of multiply_tiles, of columns 8 n .. 8 n + 7
template <Format F>
__device__ __forceinline__ void multiply_by_warpgroup(float (*c)[4], std::uint64_t a, std::uint64_t b, bool add) {
  static_assert(F == Format::f16 || F == Format::bf16);
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
  if constexpr (F == Format::bf16) {
    asm volatile(
        "{ .reg .pred p; setp.ne.b32 p, %34, 0; wgmma.mma_async.sync.aligned.m64n64k16.f32.bf16.bf16 "
        KVC_WGMMA_NAMES ", %32, %33, p, 1, 1, 0, 0; }"
        : KVC_WGMMA_SUMS(c)
        : "l"(a), "l"(b), "r"(add ? 1 : 0));
  } else {
    asm volatile(
        "{ .reg .pred p; setp.ne.b32 p, %34, 0; wgmma.mma_async.sync.aligned.m64n64k16.f32.f16.f16 "
        KVC_WGMMA_NAMES ", %32, %33, p, 1, 1, 0, 0; }"
        : KVC_WGMMA_SUMS(c)
        : "l"(a), "l"(b), "r"(add ? 1 : 0));
  }
#elif defined(__CUDACC__)
  __trap();  // the kernel is not for this machine
#else
  kvc_emulation::multiply_by_warpgroup(F == Format::bf16, c, a, b, add);
#endif
}
/// c += a b, where a is in registers, as for multiply_tiles, and b is described: 16 rows of 64 numbers.
template <Format F>
__device__ __forceinline__ void multiply_by_warpgroup(float (*c)[4], const std::uint32_t (&a)[4], std::uint64_t b) {
  static_assert(F == Format::f16 || F == Format::bf16);
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
  if constexpr (F == Format::bf16) {
    asm volatile(
        "{ .reg .pred p; setp.ne.b32 p, %37, 0; wgmma.mma_async.sync.aligned.m64n64k16.f32.bf16.bf16 "
        KVC_WGMMA_NAMES ", {%32, %33, %34, %35}, %36, "
        "p, 1, 1, 1; }"
        : KVC_WGMMA_SUMS(c)
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(1));
  } else {
    asm volatile(
        "{ .reg .pred p; setp.ne.b32 p, %37, 0; wgmma.mma_async.sync.aligned.m64n64k16.f32.f16.f16 "
        KVC_WGMMA_NAMES ", {%32, %33, %34, %35}, %36, "
        "p, 1, 1, 1; }"
        : KVC_WGMMA_SUMS(c)
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(1));
  }
#elif defined(__CUDACC__)
  __trap();
#else
  kvc_emulation::multiply_by_warpgroup(F == Format::bf16, c, a, b);
#endif
}
#undef KVC_WGMMA_NAMES
#undef KVC_WGMMA_ROW
#undef KVC_WGMMA_SUMS

}  // namespace device

namespace detail {

/// S = Q K^T, of the warpgroup's 64 rows, which begin at q, and a tile of keys.
template <Format F, int D>
__device__ __forceinline__ void multiply_keys_by_warpgroup(SharedAddress q, SharedAddress k,
                                                           float (&s)[prefill_keys / 8][4]) {
  const auto pin_scores = [&] {
#pragma unroll
    for (int n = 0; n < prefill_keys / 8; ++n) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        device::pin(s[n][i]);
      }
    }
  };
#pragma unroll
  for (int n = 0; n < prefill_keys / 8; ++n) {
    s[n][0] = s[n][1] = s[n][2] = s[n][3] = 0.0F;
  }
  pin_scores();
  device::begin_products();
#pragma unroll
  for (int j = 0; j < D / 16; ++j) {  // a quarter of a row of panel j / 4
    const unsigned column = static_cast<unsigned>(j) % 4 * 32, panel = static_cast<unsigned>(j) / 4 * panel_row;
    device::multiply_by_warpgroup<F>(s, device::describe(q + panel * prefill_rows + column),
                                     device::describe(k + panel * prefill_keys + column), j > 0);
  }
  device::finish_products();
  pin_scores();
}

/// O += P V; s holds the weights.
template <Format F, int D>
__device__ __forceinline__ void multiply_values_by_warpgroup(SharedAddress v, const float (&s)[prefill_keys / 8][4],
                                                             float (&o)[D / 8][4]) {
  std::uint32_t a[prefill_keys / 16][4];
#pragma unroll
  for (int i = 0; i < prefill_keys / 16; ++i) {
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      a[i][2 * h] = device::pack<F>(s[2 * i + h][0], s[2 * i + h][1]);
      a[i][2 * h + 1] = device::pack<F>(s[2 * i + h][2], s[2 * i + h][3]);
    }
  }
  const auto pin_all = [&] {
#pragma unroll
    for (int n = 0; n < D / 8; ++n) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        device::pin(o[n][i]);
      }
    }
#pragma unroll
    for (int i = 0; i < prefill_keys / 16; ++i) {
#pragma unroll
      for (int w = 0; w < 4; ++w) {
        device::pin(a[i][w]);
      }
    }
  };
  pin_all();
  device::begin_products();
#pragma unroll
  for (int i = 0; i < prefill_keys / 16; ++i) {
#pragma unroll
    for (int panel = 0; panel < D / 64; ++panel) {
      const auto row = static_cast<unsigned>(panel * prefill_keys + 16 * i);
      device::multiply_by_warpgroup<F>(o + 8 * panel, a[i], device::describe(v + row * panel_row));
    }
  }
  device::finish_products();
  pin_all();
}

}  // namespace detail

}  // namespace kvc::inline v0::cuda
