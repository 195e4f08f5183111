// Rows of stored numbers as rows of floats, where a target has instructions for it. Every conversion here is exact.
#pragma once

#include <cstdint>
#include <cstring>

#include "kvc/simd/vec.hpp"

namespace kvc::inline v0 {
namespace simd {

/// Sixteen IEEE binary16 numbers at any address as floats; NaN stays NaN.
KVC_ALWAYS_INLINE F32x16 load_f16(const void* p) noexcept {
#if defined(__AVX512F__)
  return {{_mm512_maskz_cvtph_ps(0xffff, _mm256_loadu_si256(static_cast<const __m256i*>(p)))}};
#elif defined(__F16C__)
  const auto* h = static_cast<const __m128i*>(p);
  return {{_mm256_cvtph_ps(_mm_loadu_si128(h)), _mm256_cvtph_ps(_mm_loadu_si128(h + 1))}};
#elif defined(__aarch64__)
  F32x16 v;
  detail::unroll<parts>([&](auto i) __attribute__((always_inline)) {
    v.part[i] = vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16(static_cast<const std::uint16_t*>(p) + 4 * i)));
  });
  return v;
#else
  // Scaled by a power of two, the exponent of binary16 becomes that of a float, subnormal numbers included.
  std::uint16_t h[lanes];
  std::memcpy(h, p, sizeof h);
  alignas(64) float f[lanes];
  for (int l = 0; l < lanes; ++l) {
    const std::uint32_t magnitude = h[l] & 0x7fffU, sign = (h[l] & 0x8000U) << 16;
    float x;
    std::uint32_t bits = magnitude << 13;
    std::memcpy(&x, &bits, sizeof x);
    x *= 0x1p112F;
    std::memcpy(&bits, &x, sizeof x);
    bits = (magnitude >= 0x7c00U ? (magnitude << 13) | 0x7f800000U : bits) | sign;
    std::memcpy(&f[l], &bits, sizeof bits);
  }
  return load(f);
#endif
}

/// Sixteen unsigned words of 16 bits at any address.
KVC_ALWAYS_INLINE U32x16 load_u16(const void* p) noexcept {
#if defined(__AVX512F__)
  return {{reinterpret_cast<PartBits>(_mm512_maskz_cvtepu16_epi32(0xffff, _mm256_loadu_si256(static_cast<const __m256i*>(p))))}};
#else
  using Narrow [[gnu::vector_size(part_lanes * 2)]] = std::uint16_t;
  U32x16 v;
  detail::unroll<parts>([&](auto i) __attribute__((always_inline)) {
    Narrow narrow;
    std::memcpy(&narrow, static_cast<const std::byte*>(p) + i * sizeof narrow, sizeof narrow);
    v.part[i] = __builtin_convertvector(narrow, PartBits);
  });
  return v;
#endif
}

/// Sixteen bytes at any address, as unsigned or as signed numbers.
KVC_ALWAYS_INLINE U32x16 load_u8(const void* p) noexcept {
#if defined(__AVX512F__)
  return {{reinterpret_cast<PartBits>(_mm512_maskz_cvtepu8_epi32(0xffff, _mm_loadu_si128(static_cast<const __m128i*>(p))))}};
#else
  using Narrow [[gnu::vector_size(part_lanes)]] = std::uint8_t;
  U32x16 v;
  detail::unroll<parts>([&](auto i) __attribute__((always_inline)) {
    Narrow narrow;
    std::memcpy(&narrow, static_cast<const std::byte*>(p) + i * sizeof narrow, sizeof narrow);
    v.part[i] = __builtin_convertvector(narrow, PartBits);
  });
  return v;
#endif
}
KVC_ALWAYS_INLINE U32x16 load_i8(const void* p) noexcept {
#if defined(__AVX512F__)
  return {{reinterpret_cast<PartBits>(_mm512_maskz_cvtepi8_epi32(0xffff, _mm_loadu_si128(static_cast<const __m128i*>(p))))}};
#else
  using Narrow [[gnu::vector_size(part_lanes)]] = std::int8_t;
  U32x16 v;
  detail::unroll<parts>([&](auto i) __attribute__((always_inline)) {
    Narrow narrow;
    std::memcpy(&narrow, static_cast<const std::byte*>(p) + i * sizeof narrow, sizeof narrow);
    v.part[i] = reinterpret_cast<PartBits>(__builtin_convertvector(narrow, PartInts));
  });
  return v;
#endif
}

/// Sixteen bfloat16 numbers at any address as floats.
KVC_ALWAYS_INLINE F32x16 load_bf16(const void* p) noexcept { return as_floats(load_u16(p) << 16); }

}  // namespace simd
}  // namespace kvc::inline v0
