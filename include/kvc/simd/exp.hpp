// exp and tanh of sixteen floats.
//
// exp: Cody and Waite's reduction (Software Manual for the Elementary Functions, 1980): x = k ln 2 + r with |r| <= ln 2
// / 2, where k ln 2 is subtracted in two parts so that r keeps its low bits; then e^r by a polynomial, and k added to
// the exponent. The polynomials are minimax fits in the relative error (Remez exchange), with the first terms held at
// their exact values.
//
// Largest errors found against double arithmetic over every float in [-87.3365, 0] (tanh: [-20, 0]):
//   exp    0.93 ulp fused, 1.28 ulp not fused, for -87.3365 <= x <= 88.72
//   tanh   1.37 ulp either way
#pragma once

#include <limits>

#include "kvc/simd/vec.hpp"

namespace kvc {
inline namespace v0 {
namespace simd {

namespace detail {

KVC_ALWAYS_INLINE Part constant(float x) noexcept { return x - Part{}; }

/// e^x. With `up_to_zero` x must not be above 0, which spares a comparison.
template <bool up_to_zero = false>
KVC_ALWAYS_INLINE Part exp(Part x) noexcept {
#if defined(__AVX512F__)
  if constexpr (!up_to_zero) {
    x = _mm512_maskz_min_ps(0xffff, constant(89.0F), x);  // infinite already; NaN stays NaN
  }
#endif
  // Adding 1.5 * 2^23 rounds to an integer, which is then found in the low bits.
  const Part shifter = constant(12582912.0F);
  const Part shifted = madd(x, constant(1.44269504F), shifter);
  const Part k = shifted - shifter;
  const Part r = madd(k, constant(-0.00174093056F), madd(k, constant(-0x1.62p-1F), x));

  Part p = constant(0.00138146073F);
  p = madd(p, r, constant(0.00836871700F));
  p = madd(p, r, constant(0.0416683879F));
  p = madd(p, r, constant(0.166665206F));
  p = madd(p, r, constant(0.499999934F));
  p = madd(p, r, constant(1.0F));
  p = madd(p, r, constant(1.0F));

  const Part lowest = constant(-87.33654F);  // below it the result is below the normal numbers
#if defined(__AVX512F__)
  return _mm512_maskz_scalef_ps(_mm512_cmp_ps_mask(x, lowest, _CMP_NLT_UQ), p, k);  // NaN and infinity come out of p
#else
  Part result = reinterpret_cast<Part>(reinterpret_cast<PartBits>(p) + (reinterpret_cast<PartBits>(shifted) << 23));
  result = x < lowest ? Part{} : result;
  if constexpr (!up_to_zero) {
    result = x > constant(88.72283F) ? constant(std::numeric_limits<float>::infinity()) : result;
  }
  return x != x ? x : result;
#endif
}

KVC_ALWAYS_INLINE Part tanh(Part x) noexcept {
  const Part square = x * x;
  Part p = constant(-0.00570498432F);
  p = madd(p, square, constant(0.0206390846F));
  p = madd(p, square, constant(-0.0537397142F));
  p = madd(p, square, constant(0.133314422F));
  p = madd(p, square, constant(-0.333332819F));
  const Part small = madd(p * square, x, x);

  const Part magnitude = x < Part{} ? -x : x;
  const Part tail = constant(1.0F) - constant(2.0F) / (exp(magnitude + magnitude) + constant(1.0F));
  const Part large = x < Part{} ? -tail : tail;
  return magnitude < constant(0.625F) ? small : large;  // NaN takes the second way, where it stays NaN
}

}  // namespace detail

/// e^x in each lane. 0 for x < -87.33654 (so for -infinity), infinity for x > 88.72283, NaN for NaN; exp(0) is exactly
/// 1.
KVC_ALWAYS_INLINE F32x16 exp(const F32x16& x) noexcept {
  return detail::map([](Part p) __attribute__((always_inline)) { return detail::exp(p); }, x);
}

/// The same, bit for bit, where no lane is above 0.
KVC_ALWAYS_INLINE F32x16 exp_up_to_zero(const F32x16& x) noexcept {
  return detail::map([](Part p) __attribute__((always_inline)) { return detail::exp<true>(p); }, x);
}

/// e^x, the same bits as in a vector.
KVC_ALWAYS_INLINE float exp(float x) noexcept { return detail::exp(detail::constant(x))[0]; }

/// Hyperbolic tangent in each lane; within [-1, 1], NaN for NaN.
KVC_ALWAYS_INLINE F32x16 tanh(const F32x16& x) noexcept {
  return detail::map([](Part p) __attribute__((always_inline)) { return detail::tanh(p); }, x);
}

}  // namespace simd
}  // namespace v0
}  // namespace kvc
