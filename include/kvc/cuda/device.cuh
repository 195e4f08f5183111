// The thin layer between kernels and hardware. All instructions that C++ cannot express are here, in prefill_ptx.cuh
// (those that only prefill needs) and in hopper.cuh (those that only Hopper has).
//
// nvcc compiles these functions to intrinsics and PTX. A host compiler that includes tests/cuda/emulate.hpp first runs
// the same functions on the CPU, so kernels can be tested without a GPU. Apart from them, kernels use __global__,
// __shared__, threadIdx, blockIdx, __syncthreads, __syncwarp, __shfl_xor_sync, __shfl_sync and __any_sync.
//
// Where bits must not depend on how a compiler contracts expressions, kernels call multiply, add and multiply_add.
#pragma once

#include <cstdint>
#include <limits>

#include "kvc/config.hpp"
#include "kvc/cuda/format.hpp"

#if defined(__CUDACC__)
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>
#elif !defined(KVC_CUDA_EMULATION)
#error "kernels of kvc/cuda are compiled by nvcc"
#endif

namespace kvc {
inline namespace v0 {
namespace cuda {
namespace device {

inline constexpr unsigned all_lanes = 0xffffffffU;
inline constexpr float minus_infinity = -std::numeric_limits<float>::infinity();
inline constexpr float log2_e = 1.4426950408889634F;

// --- scalar arithmetic

/// The float with these bits, and the bits of a float.
[[nodiscard]] __device__ __forceinline__ float from_bits(std::uint32_t bits) { return __uint_as_float(bits); }
[[nodiscard]] __device__ __forceinline__ std::uint32_t to_bits(float x) { return __float_as_uint(x); }
/// Products, sums, a * b + c with one rounding, and quotients, rounded to nearest even; never contracted.
[[nodiscard]] __device__ __forceinline__ float multiply(float a, float b) { return __fmul_rn(a, b); }
[[nodiscard]] __device__ __forceinline__ float add(float a, float b) { return __fadd_rn(a, b); }
[[nodiscard]] __device__ __forceinline__ float multiply_add(float a, float b, float c) { return __fmaf_rn(a, b, c); }
[[nodiscard]] __device__ __forceinline__ float divide(float a, float b) { return __fdiv_rn(a, b); }
/// The larger number; NaN if either is NaN, unlike fmaxf.
[[nodiscard]] __device__ __forceinline__ float maximum(float a, float b) { return a > b || a != a ? a : b; }
/// 2^x to 2 units in the last place (exp2f); 0 for -infinity.
[[nodiscard]] __device__ __forceinline__ float exp2(float x) { return exp2f(x); }
/// log2 of a number of at least 1, to 2^-22 of the larger of 1 and the result.
[[nodiscard]] __device__ __forceinline__ float fast_log2(float x) {
#if defined(__CUDACC__)
  float y;
  asm("lg2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
#else
  return log2f(x);
#endif
}
/// ln(2^m l), the log-sum-exp of a row whose weights are relative to 2^m; -infinity if l, their sum, is 0.
[[nodiscard]] __device__ __forceinline__ float log_sum_exp(float m, float l) {
  constexpr float ln_2 = 0.69314718055994531F;
  return l == 0.0F ? minus_infinity : multiply(add(m, fast_log2(l)), ln_2);
}

/// The divisor of the outputs of a row: l, the sum of its weights relative to 2^m, and the weight of its sink.
/// `sinks` are logits of all query heads, or null. 0 if l is 0: a row that sees no key has no output. (The weight of a
/// sink far above all scores is infinite, and the outputs are 0: they would be below 2^-127 of the values.)
[[nodiscard]] __device__ __forceinline__ float sink_divisor(const float* sinks, int head, float m, float l) {
  return sinks == nullptr || l == 0.0F ? l : add(l, exp2(add(multiply(sinks[head], log2_e), -m)));
}

// --- pairs of 16-bit elements in a word; the first is in the low half

/// Two floats, rounded to nearest even.
template <Format F>
[[nodiscard]] __device__ __forceinline__ std::uint32_t pack(float low, float high) {
  static_assert(F == Format::f16 || F == Format::bf16);
#if defined(__CUDACC__)
  if constexpr (F == Format::f16) {
    const __half2 pair = __floats2half2_rn(low, high);
    return *reinterpret_cast<const std::uint32_t*>(&pair);
  } else {
    const __nv_bfloat162 pair = __floats2bfloat162_rn(low, high);
    return *reinterpret_cast<const std::uint32_t*>(&pair);
  }
#else
  return kvc_emulation::to_16_bits(F == Format::bf16, low) | kvc_emulation::to_16_bits(F == Format::bf16, high) << 16;
#endif
}

/// The first element of a pair.
template <Format F>
[[nodiscard]] __device__ __forceinline__ float low_of(std::uint32_t pair) {
  static_assert(F == Format::f16 || F == Format::bf16);
  if constexpr (F == Format::bf16) {
    return from_bits(pair << 16);
  } else {
#if defined(__CUDACC__)
    return __half2float(__ushort_as_half(static_cast<unsigned short>(pair & 0xffffU)));
#else
    return kvc_emulation::from_f16(pair & 0xffffU);
#endif
  }
}
/// The second element of a pair.
template <Format F>
[[nodiscard]] __device__ __forceinline__ float high_of(std::uint32_t pair) {
  if constexpr (F == Format::bf16) {
    return from_bits(pair & 0xffff0000U);
  } else {
    return low_of<F>(pair >> 16);
  }
}
/// The pair of the low halves of two words.
[[nodiscard]] __device__ __forceinline__ std::uint32_t low_halves(std::uint32_t a, std::uint32_t b) {
  return __byte_perm(a, b, 0x5410);
}
/// The pair of the high halves of two words.
[[nodiscard]] __device__ __forceinline__ std::uint32_t high_halves(std::uint32_t a, std::uint32_t b) {
  return __byte_perm(a, b, 0x7632);
}

/// The products of two pairs of f16, rounded to f16.
[[nodiscard]] __device__ __forceinline__ std::uint32_t multiply_f16(std::uint32_t a, std::uint32_t b) {
#if defined(__CUDACC__)
  const __half2 product = __hmul2(*reinterpret_cast<const __half2*>(&a), *reinterpret_cast<const __half2*>(&b));
  return *reinterpret_cast<const std::uint32_t*>(&product);
#else
  return pack<Format::f16>(low_of<Format::f16>(a) * low_of<Format::f16>(b),
                           high_of<Format::f16>(a) * high_of<Format::f16>(b));
#endif
}
/// The differences of two pairs of f16, rounded to f16.
[[nodiscard]] __device__ __forceinline__ std::uint32_t subtract_f16(std::uint32_t a, std::uint32_t b) {
#if defined(__CUDACC__)
  const __half2 difference = __hsub2(*reinterpret_cast<const __half2*>(&a), *reinterpret_cast<const __half2*>(&b));
  return *reinterpret_cast<const std::uint32_t*>(&difference);
#else
  return pack<Format::f16>(low_of<Format::f16>(a) - low_of<Format::f16>(b),
                           high_of<Format::f16>(a) - high_of<Format::f16>(b));
#endif
}

// --- elements of one byte: four of them become two pairs of f16

/// Four Fp8E4M3 codes as f16, exactly; NaN stays NaN. Shifted into place, a code is the number divided by 2^8.
__device__ __forceinline__ void widen_fp8(std::uint32_t codes, std::uint32_t (&pairs)[2]) {
#if defined(__CUDACC__) && defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 890
  asm("{ .reg .b16 low, high; mov.b32 {low, high}, %2; cvt.rn.f16x2.e4m3x2 %0, low; cvt.rn.f16x2.e4m3x2 %1, high; }"
      : "=r"(pairs[0]), "=r"(pairs[1])
      : "r"(codes));
#else
  for (int i = 0; i < 2; ++i) {
    const std::uint32_t spread =
        __byte_perm(codes, 0, i == 0 ? 0x1404 : 0x3424);  // one code in the upper byte of each half
    const std::uint32_t magnitude = (spread & 0x7f007f00U) >> 1;
    const std::uint32_t nan = ((magnitude + 0x00800080U) & 0x40004000U) >> 14;
    pairs[i] = (multiply_f16(magnitude, 0x5c005c00U) | nan * 0x7e00U) | (spread & 0x80008000U);  // times 256
  }
#endif
}
/// Four signed bytes as f16, exactly: with its sign bit flipped, a byte is the low bits of the f16 1024 + 128 + code.
__device__ __forceinline__ void widen_int8(std::uint32_t codes, std::uint32_t (&pairs)[2]) {
  const std::uint32_t biased = codes ^ 0x80808080U;
  pairs[0] = subtract_f16(__byte_perm(biased, 0x64646464U, 0x4140), 0x64806480U);
  pairs[1] = subtract_f16(__byte_perm(biased, 0x64646464U, 0x4342), 0x64806480U);
}

/// The nearest Fp8E4M3 code, as Element<Fp8E4M3>::encode computes it.
[[nodiscard]] __device__ __forceinline__ std::uint32_t narrow_fp8(float x) {
  const std::uint32_t bits = to_bits(x), sign = bits >> 24 & 0x80U, magnitude = bits & 0x7fffffffU;
  const std::uint32_t normal = (magnitude + 0x7ffffU + (magnitude >> 20 & 1U) - (120U << 23)) >> 20;
  const std::uint32_t subnormal = to_bits(add(from_bits(magnitude), 16384.0F)) - 0x46800000U;  // the bits of 16384
  std::uint32_t code = magnitude < (121U << 23) ? subnormal : normal;
  code = magnitude >= 0x43e00000U ? 0x7eU : code;  // 448
  code = magnitude > 0x7f800000U ? 0x7fU : code;
  return code | sign;
}
/// The nearest Fp8E4M3 codes of two numbers, the first in the low byte. A NaN may lose its sign.
[[nodiscard]] __device__ __forceinline__ std::uint32_t narrow_fp8(float low, float high) {
#if defined(__CUDACC__) && defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 890
  std::uint16_t codes;
  asm("cvt.rn.satfinite.e4m3x2.f32 %0, %1, %2;" : "=h"(codes) : "f"(high), "f"(low));
  return codes;
#else
  return narrow_fp8(low) | narrow_fp8(high) << 8;
#endif
}

// --- memory

/// Loads data that is read once, so it need not stay in the caches.
template <class Word>
[[nodiscard]] __device__ __forceinline__ Word load_streaming(const void* p) {
#if defined(__CUDACC__)
  return __ldcs(static_cast<const Word*>(p));
#else
  return *static_cast<const Word*>(p);
#endif
}
/// Loads data that nobody writes while the kernel runs, and that other threads read too.
template <class Word>
[[nodiscard]] __device__ __forceinline__ Word load_readonly(const void* p) {
#if defined(__CUDACC__)
  return __ldg(static_cast<const Word*>(p));
#else
  return *static_cast<const Word*>(p);
#endif
}

/// Adds to a word in device memory that other thread blocks add to, too; returns what it was.
[[nodiscard]] __device__ __forceinline__ std::uint32_t add_atomically(std::uint32_t& word, std::uint32_t x) {
#if defined(__CUDACC__)
  return atomicAdd(&word, x);
#else
  const std::uint32_t before = word;
  word += x;
  return before;
#endif
}
/// Orders this thread's accesses to device memory before those that follow, for all threads of the device.
__device__ __forceinline__ void fence_device() {
#if defined(__CUDACC__)
  __threadfence();
#endif
}

// --- launches that overlap (launch_dependent in launch.cuh); before compute capability 9.0 none do

/// The launch that depends on this one may begin when all thread blocks of this one have called this, or ended.
__device__ __forceinline__ void release_dependents() {
#if defined(__CUDACC__) && defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
#endif
}
/// Waits for the end of the launch that this one depends on, whose writes are visible then.
__device__ __forceinline__ void wait_for_launches_before() {
#if defined(__CUDACC__)
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
#else
  kvc_emulation::wait_for_launches_before();
#endif
}

// --- warp operations
// A lane is 4 g + t with 0 <= g < 8 and 0 <= t < 4. All lanes must take part.

/// c += a b of 16-bit elements, with sums in float: mma.m16n8k16.
///
///   a  [16 x 16]  a[0] row g, columns 2t, 2t + 1;  a[1] row g + 8;  a[2], a[3] the same rows, columns 2t + 8, 2t + 9
///   b  [16 x 8]   b[0] rows 2t, 2t + 1 of column g;  b[1] rows 2t + 8, 2t + 9
///   c  [16 x 8]   c[0], c[1] row g, columns 2t, 2t + 1;  c[2], c[3] row g + 8
///
/// An entry of c depends on its row of a and its column of b only.
template <Format F>
__device__ __forceinline__ void mma(float (&c)[4], const std::uint32_t (&a)[4], const std::uint32_t (&b)[2]) {
  static_assert(F == Format::f16 || F == Format::bf16);
#if defined(__CUDACC__)
  if constexpr (F == Format::bf16) {
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, "
        "%2, %3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
  } else {
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, "
        "%3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
  }
#else
  kvc_emulation::mma(F == Format::bf16, c, a, b);
#endif
}

/// Transposes an 8 x 8 matrix of 16-bit elements: a lane passes row g, columns 2t and 2t + 1, and gets column g, rows
/// 2t and 2t + 1.
[[nodiscard]] __device__ __forceinline__ std::uint32_t transpose(std::uint32_t pair) {
#if defined(__CUDACC__)
  std::uint32_t out;
  asm volatile("movmatrix.sync.aligned.m8n8.trans.b16 %0, %1;" : "=r"(out) : "r"(pair));
  return out;
#else
  return kvc_emulation::transpose(pair);
#endif
}

/// The number of lanes for which the condition holds.
[[nodiscard]] __device__ __forceinline__ int count_lanes(bool condition) {
#if defined(__CUDACC__)
  return __popc(__ballot_sync(all_lanes, condition ? 1 : 0));
#else
  return kvc_emulation::count_lanes(condition);
#endif
}

/// The maximum over the eight lanes with the same t.
[[nodiscard]] __device__ __forceinline__ float column_max(float x) {
  for (int distance = 4; distance < 32; distance *= 2) {
    x = maximum(x, __shfl_xor_sync(all_lanes, x, distance));
  }
  return x;
}
/// The sum over the eight lanes with the same t, added as a tree.
[[nodiscard]] __device__ __forceinline__ float column_sum(float x) {
  for (int distance = 4; distance < 32; distance *= 2) {
    x = add(x, __shfl_xor_sync(all_lanes, x, distance));
  }
  return x;
}

}  // namespace device
}  // namespace cuda
}  // namespace v0
}  // namespace kvc
