// Rows of stored elements as rows of floats, where a target has instructions for it. Every conversion here is exact.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>

#include "kvc/core/types.hpp"
#include "kvc/simd/vec.hpp"

namespace kvc {
inline namespace v0 {
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
  return {{reinterpret_cast<PartBits>(
      _mm512_maskz_cvtepu16_epi32(0xffff, _mm256_loadu_si256(static_cast<const __m256i*>(p))))}};
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

/// Sixteen bfloat16 numbers at any address as floats.
KVC_ALWAYS_INLINE F32x16 load_bf16(const void* p) noexcept {
#if defined(__AVX512VBMI__)
  // One permutation puts each number in the upper half of a word and zeros below it. Processors with VBMI permute words
  // in one operation; earlier ones take as many as for widening and shifting.
  const __m512i upper = _mm512_set_epi16(15, 0, 14, 0, 13, 0, 12, 0, 11, 0, 10, 0, 9, 0, 8, 0, 7, 0, 6, 0, 5, 0, 4, 0,
                                         3, 0, 2, 0, 1, 0, 0, 0);
  const __m512i numbers = _mm512_castsi256_si512(_mm256_loadu_si256(static_cast<const __m256i*>(p)));
  return {{_mm512_castsi512_ps(_mm512_maskz_permutexvar_epi16(0xaaaaaaaa, upper, numbers))}};
#else
  return as_floats(load_u16(p) << 16);
#endif
}

#if defined(__AVX2__) && !defined(__AVX512F__)
/// Eight unsigned bytes at any address as words.
KVC_ALWAYS_INLINE PartBits load_bytes_as_words(const void* p) noexcept {
  return reinterpret_cast<PartBits>(_mm256_cvtepu8_epi32(_mm_loadl_epi64(static_cast<const __m128i*>(p))));
}
/// Eight signed bytes at any address as floats.
KVC_ALWAYS_INLINE Part load_signed_bytes(const void* p) noexcept {
  return _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64(static_cast<const __m128i*>(p))));
}

#if defined(__F16C__)
namespace detail {
/// Eight codes of E4M3 as binary16 numbers of 1/256 of their values, subnormal ones included. Those for NaN become
/// 1.875.
KVC_ALWAYS_INLINE __m128i e4m3_as_f16(const void* p) noexcept {
  const __m128i codes = _mm_unpacklo_epi8(_mm_setzero_si128(), _mm_loadl_epi64(static_cast<const __m128i*>(p)));
  return _mm_and_si128(_mm_srai_epi16(codes, 1), _mm_set1_epi16(static_cast<short>(0xbfff)));  // one exponent bit more
}
}  // namespace detail

/// Eight codes of E4M3 at any address as floats, none of which is for NaN.
KVC_ALWAYS_INLINE Part load_e4m3(const void* p) noexcept {
  return _mm256_cvtph_ps(detail::e4m3_as_f16(p)) * (256.0F - Part{});
}
/// Any eight codes.
KVC_ALWAYS_INLINE Part load_e4m3_or_nan(const void* p) noexcept {
  const __m128i f16 = detail::e4m3_as_f16(p);
  const __m128i is_nan = _mm_cmpeq_epi16(_mm_slli_epi16(f16, 1), _mm_set1_epi16(0x7f00));
  // 0x3f80 becomes 0x7e00.
  return _mm256_cvtph_ps(_mm_add_epi16(f16, _mm_and_si128(is_nan, _mm_set1_epi16(0x3e80)))) * (256.0F - Part{});
}
/// Whether a code among sixteen is for NaN.
KVC_ALWAYS_INLINE bool has_e4m3_nan(const void* p) noexcept {
  const __m128i codes = _mm_or_si128(_mm_loadu_si128(static_cast<const __m128i*>(p)), _mm_set1_epi8(-128));
  return _mm_movemask_epi8(_mm_cmpeq_epi8(codes, _mm_set1_epi8(-1))) != 0;
}
/// Whether one among `count` is, a multiple of 16.
KVC_ALWAYS_INLINE bool has_e4m3_nan(const std::uint8_t* p, Index count) noexcept {
  __m128i is_nan = _mm_setzero_si128();
  for (Index i = 0; i < count; i += 16) {
    const __m128i codes = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p + i));
    is_nan = _mm_or_si128(is_nan, _mm_cmpeq_epi8(_mm_or_si128(codes, _mm_set1_epi8(-128)), _mm_set1_epi8(-1)));
  }
  return _mm_movemask_epi8(is_nan) != 0;
}
#endif
#endif

#if defined(__AVX512VBMI__)
namespace detail {
/// The two bytes of the bfloat16 that each code of E4M3 without its sign stands for.
struct E4M3Bytes {
  alignas(64) std::uint8_t low[128];
  alignas(64) std::uint8_t high[128];
};
[[nodiscard]] constexpr E4M3Bytes e4m3_bytes() noexcept {
  E4M3Bytes bytes{};
  for (unsigned code = 0; code < 128; ++code) {
    unsigned exponent = code >> 3, mantissa = code & 7U;
    unsigned bits = (exponent + 120U) << 7 | mantissa << 4;
    if (code == 127) {
      bits = 0x7fc0;
    } else if (code == 0) {
      bits = 0;
    } else if (exponent == 0) {  // normal as a bfloat16
      exponent = 121;
      for (; mantissa < 8; mantissa <<= 1) {
        --exponent;
      }
      bits = exponent << 7 | (mantissa & 7U) << 4;
    }
    bytes.low[code] = static_cast<std::uint8_t>(bits & 0xffU);
    bytes.high[code] = static_cast<std::uint8_t>(bits >> 8);
  }
  return bytes;
}
inline constexpr E4M3Bytes e4m3_table = e4m3_bytes();

/// 64 codes, looked up: the low and the high bytes of their bfloat16, which is exact.
KVC_ALWAYS_INLINE void look_up_e4m3(__m512i codes, __m512i& low, __m512i& high) noexcept {
  const auto half = [](const std::uint8_t* bytes) __attribute__((always_inline)) { return _mm512_load_si512(bytes); };
  low = _mm512_permutex2var_epi8(half(e4m3_table.low), codes, half(e4m3_table.low + 64));
  high = _mm512_permutex2var_epi8(half(e4m3_table.high), codes, half(e4m3_table.high + 64));
  high = _mm512_ternarylogic_epi32(high, codes, _mm512_set1_epi8(-128), 0xf8);  // high | (codes & sign)
}

/// Where each byte comes from so that decode_e4m3 leaves codes in their order: unpacking takes bytes by eights of each
/// 16, and makes of each pair one float of each of two vectors.
struct E4M3Order {
  alignas(64) std::uint8_t from[64];
};
[[nodiscard]] constexpr E4M3Order e4m3_order() noexcept {
  E4M3Order order{};
  for (unsigned i = 0; i < 64; ++i) {
    const unsigned quarter = i / 16, half = i / 8 % 2, pair = i / 2 % 4, odd = i % 2;
    order.from[i] = static_cast<std::uint8_t>(32 * half + 16 * odd + 4 * quarter + pair);
  }
  return order;
}
inline constexpr E4M3Order e4m3_in_order = e4m3_order();
}  // namespace detail

/// The floats of the first `count` <= 64 codes of E4M3 at `from`, then zeros: 16 to a vector, in their order.
KVC_ALWAYS_INLINE void load_e4m3(const std::uint8_t* from, Index count, F32x16 (&x)[4]) noexcept {
  const __m512i order = _mm512_load_si512(detail::e4m3_in_order.from);
  const __m512i codes =
      count >= 64 ? _mm512_loadu_si512(from) : _mm512_maskz_loadu_epi8(~__mmask64{0} >> (64 - count), from);
  __m512i low, high;
  detail::look_up_e4m3(_mm512_maskz_permutexvar_epi8(~__mmask64{0}, order, codes), low, high);
  const __m512i pairs[2] = {_mm512_unpacklo_epi8(low, high), _mm512_unpackhi_epi8(low, high)};
  const __m512i upper = _mm512_set1_epi32(-65536);
  detail::unroll<2>([&](auto i) __attribute__((always_inline)) {
    x[2 * i].part[0] = _mm512_castsi512_ps(_mm512_maskz_slli_epi32(0xffff, pairs[i], 16));
    x[2 * i + 1].part[0] = _mm512_castsi512_ps(_mm512_and_si512(pairs[i], upper));
  });
}

/// The floats of `count` codes of E4M3, filled up with zeros to a multiple of 16.
KVC_ALWAYS_INLINE void decode_e4m3(const std::uint8_t* from, Index count, float* to) noexcept {
  for (Index d = 0; d < count; d += 64) {
    F32x16 x[4];
    load_e4m3(from + d, count - d, x);
    detail::unroll<4>([&](auto i) __attribute__((always_inline)) {
      if (count - d > i * lanes) {
        store(to + d + i * lanes, x[i]);
      }
    });
  }
}
#endif

}  // namespace simd
}  // namespace v0
}  // namespace kvc
