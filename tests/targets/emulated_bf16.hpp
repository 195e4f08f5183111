// The instructions of AVX-512 BF16 in those of AVX-512, for processors without them: included before everything else,
// so that kvc compiles as for a processor that has them. As in the manual: sums and products of bfloat16 numbers round
// to nearest even after each addition, the upper number of a pair first; subnormal numbers count as 0.
#pragma once

#if defined(__AVX512BF16__)

#include <immintrin.h>

namespace kvc_test {

inline __attribute__((always_inline)) __m512 flush_subnormal(__m512 x) {
  const __mmask16 subnormal = _mm512_fpclass_ps_mask(x, 0x20);
  return reinterpret_cast<__m512>(_mm512_mask_and_epi32(reinterpret_cast<__m512i>(x), subnormal,
                                                        reinterpret_cast<__m512i>(x),
                                                        _mm512_set1_epi32(static_cast<int>(0x80000000U))));
}

inline __attribute__((always_inline)) __m512 dpbf16(__m512 sum, __m512bh a, __m512bh b) {
  const __m512i upper = _mm512_set1_epi32(static_cast<int>(0xffff0000U));
  const auto high = [upper](__m512bh x) __attribute__((always_inline)) {
    return flush_subnormal(
        reinterpret_cast<__m512>(_mm512_maskz_and_epi32(0xffff, reinterpret_cast<__m512i>(x), upper)));
  };
  const auto low = [](__m512bh x) __attribute__((always_inline)) {
    return flush_subnormal(reinterpret_cast<__m512>(_mm512_maskz_slli_epi32(0xffff, reinterpret_cast<__m512i>(x), 16)));
  };
  const __m512 first = flush_subnormal(_mm512_fmadd_ps(high(a), high(b), flush_subnormal(sum)));
  return flush_subnormal(_mm512_fmadd_ps(low(a), low(b), first));
}

/// The bits of the lanes as bfloat16, in words.
inline __attribute__((always_inline)) __m512i bf16_bits(__m512 x) {
  const auto bits = reinterpret_cast<__m512i>(flush_subnormal(x));
  const __m512i upper = _mm512_maskz_srli_epi32(0xffff, bits, 16);
  const __m512i odd = _mm512_maskz_and_epi32(0xffff, upper, _mm512_set1_epi32(1));
  const __m512i half = _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff));
  const __m512i rounded = _mm512_maskz_srli_epi32(0xffff, _mm512_add_epi32(bits, half), 16);
  return _mm512_mask_or_epi32(rounded, _mm512_cmp_ps_mask(x, x, _CMP_UNORD_Q), upper, _mm512_set1_epi32(0x40));
}

inline __attribute__((always_inline)) __m256bh cvtneps_pbh(__m512 x) {
  return reinterpret_cast<__m256bh>(_mm512_maskz_cvtepi32_epi16(0xffff, bf16_bits(x)));
}

inline __attribute__((always_inline)) __m512bh cvtne2ps_pbh(__m512 high, __m512 low) {
  const __m256i of_low = _mm512_maskz_cvtepi32_epi16(0xffff, bf16_bits(low));
  const __m256i of_high = _mm512_maskz_cvtepi32_epi16(0xffff, bf16_bits(high));
  return reinterpret_cast<__m512bh>(_mm512_mask_broadcast_i64x4(_mm512_zextsi256_si512(of_low), 0xf0, of_high));
}

}  // namespace kvc_test

#define _mm512_dpbf16_ps kvc_test::dpbf16
#define _mm512_cvtneps_pbh kvc_test::cvtneps_pbh
#define _mm512_cvtne2ps_pbh kvc_test::cvtne2ps_pbh

#endif  // __AVX512BF16__
