// Dot products of narrow numbers: what processors have for bfloat16 and for bytes, lane by lane of four bytes.
//
//   dot_bf16    sum + a[0] * b[0] + a[1] * b[1]             two bfloat16 numbers a lane, the sum a float
//   dot_bytes   sum + a[0] * b[0] + ... + a[3] * b[3]       four unsigned by four signed bytes a lane, the sum an int32
//
// dot_bf16 exists where `has_bf16_dot` is true, dot_bytes where `has_byte_dot` is: there is no slow form of them,
// because attention is faster without them there. dot_bytes is exact, so that sums of it do not depend on their
// order; dot_bf16 rounds as the processor does (to nearest even after each of the two additions, subnormal numbers
// taken for 0).
#pragma once

#include <bit>
#include <cstdint>
#include <cstring>

#include "kvc/core/types.hpp"
#include "kvc/simd/vec.hpp"

namespace kvc {
inline namespace v0 {
namespace simd {

#if defined(__AVX512F__) && defined(__AVX512BW__) && defined(__AVX512VBMI__) && defined(__AVX512BF16__)
#define KVC_SIMD_BF16_DOT 1
#else
#define KVC_SIMD_BF16_DOT 0
#endif
#if defined(__AVX512F__) && defined(__AVX512BW__) && defined(__AVX512VNNI__)
#define KVC_SIMD_BYTE_DOT 1
#else
#define KVC_SIMD_BYTE_DOT 0
#endif
inline constexpr bool has_bf16_dot = KVC_SIMD_BF16_DOT != 0;
inline constexpr bool has_byte_dot = KVC_SIMD_BYTE_DOT != 0;

#if KVC_SIMD_BF16_DOT || KVC_SIMD_BYTE_DOT

/// The word at p, in every lane. (Words travel in arrays of float, as the rest of the working memory.)
KVC_ALWAYS_INLINE U32x16 broadcast_word(const float* p) noexcept {
  std::int32_t word;
  std::memcpy(&word, p, sizeof word);
  return {{reinterpret_cast<PartBits>(_mm512_set1_epi32(word))}};
}
/// The sixteen words at p, read and written.
KVC_ALWAYS_INLINE U32x16 load_words(const float* p) noexcept { return as_words(load(p)); }
KVC_ALWAYS_INLINE void store_words(float* p, const U32x16& x) noexcept { store(p, as_floats(x)); }

/// The register of words, and words of a register.
KVC_ALWAYS_INLINE __m512i raw(const U32x16& x) noexcept { return reinterpret_cast<__m512i>(x.part[0]); }
KVC_ALWAYS_INLINE U32x16 words(__m512i x) noexcept { return {{reinterpret_cast<PartBits>(x)}}; }

/// Bytes [0, count) at p, at most 64, then zeros; count >= 0. Reads nothing past the end.
KVC_ALWAYS_INLINE U32x16 load_bytes(const void* p, Index count) noexcept {
  if (count >= 64) [[likely]] {
    return words(_mm512_loadu_si512(p));
  }
  return words(_mm512_maskz_loadu_epi8((__mmask64{1} << count) - 1, p));
}

/// Of each quarter of 16 bytes of a and b: the lower halves, interleaved byte by byte.
KVC_ALWAYS_INLINE U32x16 interleave_low8(const U32x16& a, const U32x16& b) noexcept {
  return words(_mm512_unpacklo_epi8(raw(a), raw(b)));
}
/// The upper halves, byte by byte.
KVC_ALWAYS_INLINE U32x16 interleave_high8(const U32x16& a, const U32x16& b) noexcept {
  return words(_mm512_unpackhi_epi8(raw(a), raw(b)));
}
/// The lower halves, by two bytes.
KVC_ALWAYS_INLINE U32x16 interleave_low16(const U32x16& a, const U32x16& b) noexcept {
  return words(_mm512_unpacklo_epi16(raw(a), raw(b)));
}
/// The upper halves, by two bytes.
KVC_ALWAYS_INLINE U32x16 interleave_high16(const U32x16& a, const U32x16& b) noexcept {
  return words(_mm512_unpackhi_epi16(raw(a), raw(b)));
}
#endif

#if KVC_SIMD_BF16_DOT
/// sum + the products of two pairs of bfloat16 in each lane.
KVC_ALWAYS_INLINE F32x16 dot_bf16(const F32x16& sum, const U32x16& a, const U32x16& b) noexcept {
  return {{_mm512_dpbf16_ps(sum.part[0], reinterpret_cast<__m512bh>(raw(a)), reinterpret_cast<__m512bh>(raw(b)))}};
}

/// to[0..16) = the lanes as bfloat16, rounded to nearest, ties to even. NaN stays NaN.
KVC_ALWAYS_INLINE void store_bf16(std::uint16_t* to, const F32x16& x) noexcept {
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), reinterpret_cast<__m256i>(_mm512_cvtneps_pbh(x.part[0])));
}
#endif

#if KVC_SIMD_BYTE_DOT
KVC_ALWAYS_INLINE U32x16 operator+(const U32x16& a, const U32x16& b) noexcept {
  return words(_mm512_add_epi32(raw(a), raw(b)));
}
KVC_ALWAYS_INLINE U32x16 operator-(const U32x16& a, const U32x16& b) noexcept {
  return words(_mm512_sub_epi32(raw(a), raw(b)));
}
/// The lanes as signed numbers over 2^by, rounded down.
KVC_ALWAYS_INLINE U32x16 shift_signed(const U32x16& x, unsigned by) noexcept {
  return words(_mm512_maskz_srai_epi32(0xffff, raw(x), by));
}
/// sum + the products of four pairs of bytes in each lane, one of each pair unsigned and the other signed.
KVC_ALWAYS_INLINE U32x16 dot_bytes(const U32x16& sum, const U32x16& of_unsigned, const U32x16& of_signed) noexcept {
  return words(_mm512_dpbusd_epi32(raw(sum), raw(of_unsigned), raw(of_signed)));
}
/// The nearest integers, ties to even. |x| < 2^31
KVC_ALWAYS_INLINE U32x16 to_integers(const F32x16& x) noexcept {
  return words(_mm512_maskz_cvtps_epi32(0xffff, x.part[0]));
}
/// p[0..16) = the low bytes of the lanes.
KVC_ALWAYS_INLINE void store_low_bytes(void* p, const U32x16& x) noexcept {
  _mm_storeu_si128(static_cast<__m128i*>(p), _mm512_maskz_cvtepi32_epi8(0xffff, raw(x)));
}
/// p[0..count) = the low bytes of the first lanes; 0 <= count <= 16.
KVC_ALWAYS_INLINE void store_low_bytes(void* p, const U32x16& x, Index count) noexcept {
  _mm512_mask_cvtepi32_storeu_epi8(p, static_cast<__mmask16>((1U << count) - 1U), raw(x));
}
/// Four vectors of integers as bytes, four lanes at a time: lanes 0 to 3 of a, of b, of c, of d, then lanes 4 to 7 ...
/// Those from 0 to 255 as they are, negative ones as 0, larger ones as anything.
KVC_ALWAYS_INLINE U32x16 join_bytes(const U32x16& a, const U32x16& b, const U32x16& c, const U32x16& d) noexcept {
  const __m512i ab = _mm512_packus_epi32(raw(a), raw(b)), cd = _mm512_packus_epi32(raw(c), raw(d));
  return words(_mm512_packus_epi16(ab, cd));
}
/// 16 * (c - 8) as a signed byte for the code c in the low half of each byte, or (half 1) in the high half.
template <int half>
KVC_ALWAYS_INLINE U32x16 signed_nibbles(const U32x16& x) noexcept {
  const U32x16 high = half == 0 ? x << 4 : x;
  return words(
      _mm512_ternarylogic_epi32(raw(high), _mm512_set1_epi8(-16), _mm512_set1_epi8(-128), 0x6a));  // (x & y) ^ z
}
/// Lane 4 i + j of x in lane 4 j + i.
KVC_ALWAYS_INLINE U32x16 transpose_lanes(const U32x16& x) noexcept {
  const __m512i order = _mm512_set_epi32(15, 11, 7, 3, 14, 10, 6, 2, 13, 9, 5, 1, 12, 8, 4, 0);
  return words(_mm512_maskz_permutexvar_epi32(0xffff, order, raw(x)));
}

/// Word l % 4 of the four words at p, in lane l.
KVC_ALWAYS_INLINE U32x16 repeat_four(const void* p) noexcept {
  return words(_mm512_maskz_broadcast_i32x4(0xffff, _mm_loadu_si128(static_cast<const __m128i*>(p))));
}

/// Word l / 4 of the four words at p, in lane l.
KVC_ALWAYS_INLINE U32x16 spread_four(const void* p) noexcept {
  const __m512i order = _mm512_set_epi32(3, 3, 3, 3, 2, 2, 2, 2, 1, 1, 1, 1, 0, 0, 0, 0);
  return words(_mm512_maskz_permutexvar_epi32(0xffff, order,
                                              _mm512_zextsi128_si512(_mm_loadu_si128(static_cast<const __m128i*>(p)))));
}
#endif

}  // namespace simd
}  // namespace v0
}  // namespace kvc
