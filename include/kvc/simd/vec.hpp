// F32x16: sixteen floats, on the vector extension of GCC and clang.
//
// The one vector type of kvc. It is sixteen lanes wide on every target, in one, two or four registers, so that code
// written with it performs the same operations in the same order everywhere, and a result depends on the values in the
// lanes alone: not on addresses, not on the number of registers, not on how a compiler chose to combine operations. Two
// things serve that:
//
//   madd   is the only multiply-add. Where the target has a fused one it is always fused, elsewhere never, whatever
//          the compiler's setting for contraction. No `*` in kvc's kernels feeds a `+` directly.
//   sum    adds lanes in one fixed tree: lane l to l + 8, then to l + 4, l + 2, l + 1.
//
// Functions here are always inlined: a vector never passes through a call, whose convention would depend on the target.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <type_traits>
#include <utility>

#include "kvc/config.hpp"
#include "kvc/core/types.hpp"

#if !defined(__GNUC__) && !defined(__clang__)
#error "kvc/simd needs the vector extension of GCC or clang"
#endif
#if defined(__FAST_MATH__) || (defined(__FINITE_MATH_ONLY__) && __FINITE_MATH_ONLY__) || defined(__ASSOCIATIVE_MATH__)
#error \
    "kvc/attention needs IEEE arithmetic (infinities mark masked keys, sums have an order): compile without -ffast-math"
#endif

#if defined(__AVX__)
#include <immintrin.h>
#elif defined(__aarch64__)
#include <arm_neon.h>
#endif

namespace kvc {
inline namespace v0 {
namespace simd {

#if defined(__AVX512F__)
inline constexpr int part_lanes = 16;
#elif defined(__AVX__)
inline constexpr int part_lanes = 8;
#else
inline constexpr int part_lanes = 4;
#endif
inline constexpr int lanes = 16;
inline constexpr int parts = lanes / part_lanes;

/// The lanes of one register, and their bits, in which sums may wrap around.
using Part [[gnu::vector_size(part_lanes * 4)]] = float;
using PartBits [[gnu::vector_size(part_lanes * 4)]] = std::uint32_t;
using PartInts [[gnu::vector_size(part_lanes * 4)]] = std::int32_t;

/// The same type, for loads and stores at any address and of any object.
using LoosePart [[gnu::vector_size(part_lanes * 4), gnu::aligned(4), gnu::may_alias]] = float;

/// Four, eight and sixteen floats, as the compiler has them.
using F32x4 [[gnu::vector_size(16)]] = float;
using F32x8 [[gnu::vector_size(32)]] = float;
using WideF32x16 [[gnu::vector_size(64)]] = float;

/// Sixteen floats, in as many registers as the target needs.
struct F32x16 {
  Part part[parts];
};

/// The bits of sixteen floats, or sixteen words of four bytes.
struct U32x16 {
  PartBits part[parts];
};

// --- one register ----------------------------------------------------------------------------------------------------

/// a * b + c, fused exactly where the target can fuse.
KVC_ALWAYS_INLINE float madd(float a, float b, float c) noexcept {
#if defined(__FMA__) || defined(__ARM_FEATURE_FMA) || defined(__FP_FAST_FMAF)
  return __builtin_fmaf(a, b, c);
#else
  return a * b + c;
#endif
}

/// The same in every lane of a register.
KVC_ALWAYS_INLINE Part madd(Part a, Part b, Part c) noexcept {
#if defined(__AVX512F__)
  return _mm512_fmadd_ps(a, b, c);
#elif defined(__AVX__) && defined(__FMA__)
  return _mm256_fmadd_ps(a, b, c);
#elif defined(__aarch64__)
  return vfmaq_f32(c, a, b);
#elif defined(__FMA__) || defined(__ARM_FEATURE_FMA) || defined(__FP_FAST_FMAF)
  Part r{};
  for (int i = 0; i < part_lanes; ++i) {
    r[i] = __builtin_fmaf(a[i], b[i], c[i]);
  }
  return r;
#else
  return a * b + c;
#endif
}

/// The larger of each lane; NaN where either is. For vectors of any width.
template <class V>
KVC_ALWAYS_INLINE V larger(const V& a, const V& b) noexcept {
#if defined(__AVX512F__)
  if constexpr (sizeof(V) == 64) {
    return _mm512_mask_max_ps(a, _mm512_cmp_ps_mask(a, a, _CMP_ORD_Q), a, b);  // b where b is NaN
  }
#endif
#if defined(__AVX512VL__)
  if constexpr (sizeof(V) == 32) {
    return _mm256_mask_max_ps(a, _mm256_cmp_ps_mask(a, a, _CMP_ORD_Q), a, b);
  }
  if constexpr (sizeof(V) == 16) {
    return _mm_mask_max_ps(a, _mm_cmp_ps_mask(a, a, _CMP_ORD_Q), a, b);
  }
#endif
  return ((a > b) | (a != a)) ? a : b;
}

// --- sixteen lanes ---------------------------------------------------------------------------------------------------

namespace detail {
/// f(0), f(1), ... f(n - 1) with constants, one after the other: an array of vectors that is only indexed so stays in
/// registers, at any level of optimisation.
template <int n, class F>
KVC_ALWAYS_INLINE void unroll(F f) noexcept {
  [&]<int... I>(std::integer_sequence<int, I...>) __attribute__((always_inline)) {
    (f(std::integral_constant<int, I>{}), ...);
  }(std::make_integer_sequence<int, n>{});
}

/// f of the parts of the arguments.
template <class F, class... V>
KVC_ALWAYS_INLINE F32x16 map(F f, const V&... v) noexcept {
  F32x16 result;
  unroll<parts>([&](auto i) __attribute__((always_inline)) { result.part[i] = f(v.part[i]...); });
  return result;
}
}  // namespace detail

/// x in every lane.
KVC_ALWAYS_INLINE F32x16 broadcast(float x) noexcept {
  return detail::map([x]() __attribute__((always_inline)) { return x - Part{}; });
}
/// 0 in every lane.
KVC_ALWAYS_INLINE F32x16 zero() noexcept { return F32x16{}; }

/// Keeps x in a register where its every use would otherwise be a load: there are fewer of these than of
/// multiplications.
template <class V>
KVC_ALWAYS_INLINE void pin([[maybe_unused]] V& x) noexcept {
#if defined(__AVX512F__)
  asm("" : "+v"(x.part[0]));
#endif
}

/// p[0..16), at any address.
KVC_ALWAYS_INLINE F32x16 load(const float* p) noexcept {
  F32x16 v;
  detail::unroll<parts>([&](auto i) __attribute__((always_inline)) {
    v.part[i] = *reinterpret_cast<const LoosePart*>(p + i * part_lanes);
  });
  return v;
}

/// p[0..count), then zeros. Reads nothing past the end; 0 <= count <= 16.
KVC_ALWAYS_INLINE F32x16 load_partial(const float* p, Index count) noexcept {
#if defined(__AVX512F__)
  return {{_mm512_maskz_loadu_ps(static_cast<__mmask16>((1U << count) - 1U), p)}};
#else
  alignas(64) float padded[lanes] = {};
  if (count > 0) {  // else p may be null
    std::memcpy(padded, p, static_cast<std::size_t>(count) * sizeof(float));
  }
  return load(padded);
#endif
}

/// p[0..16) = the lanes, at any address.
KVC_ALWAYS_INLINE void store(float* p, const F32x16& v) noexcept {
  detail::unroll<parts>(
      [&](auto i) __attribute__((always_inline)) { *reinterpret_cast<LoosePart*>(p + i * part_lanes) = v.part[i]; });
}

/// Two floats, and stores of two and of four at any address.
using F32x2 [[gnu::vector_size(8)]] = float;
KVC_ALWAYS_INLINE void store_two(float* p, const F32x2& v) noexcept { std::memcpy(p, &v, sizeof v); }
KVC_ALWAYS_INLINE void store_four(float* p, const F32x4& v) noexcept { std::memcpy(p, &v, sizeof v); }

/// Lanes [4 i, 4 i + 4).
template <int i>
KVC_ALWAYS_INLINE F32x4 quarter(const F32x16& x) noexcept {
#if defined(__AVX512F__)
  return _mm512_maskz_extractf32x4_ps(0xf, x.part[0], i);
#else
  F32x4 four;
  std::memcpy(&four, reinterpret_cast<const std::byte*>(&x) + i * sizeof four, sizeof four);
  return four;
#endif
}

/// x where bit l of `bits` is set for lane l, elsewhere `other`.
KVC_ALWAYS_INLINE F32x16 keep(std::uint32_t bits, const F32x16& x, float other) noexcept {
#if defined(__AVX512F__)
  return {{_mm512_mask_blend_ps(static_cast<__mmask16>(bits), other - Part{}, x.part[0])}};
#else
  F32x16 result;
  detail::unroll<parts>([&](auto i) __attribute__((always_inline)) {
    PartBits of_lane;
    for (int l = 0; l < part_lanes; ++l) {
      of_lane[l] = 1U << (i * part_lanes + l);
    }
    const Part kept = x.part[i], instead = other - Part{};  // named: nvcc cannot tell the type of the choice otherwise
    result.part[i] = (bits & of_lane) != 0U ? kept : instead;
  });
  return result;
#endif
}

KVC_ALWAYS_INLINE F32x16 operator+(const F32x16& a, const F32x16& b) noexcept {
  return detail::map([](Part x, Part y) __attribute__((always_inline)) { return x + y; }, a, b);
}
KVC_ALWAYS_INLINE F32x16 operator-(const F32x16& a, const F32x16& b) noexcept {
  return detail::map([](Part x, Part y) __attribute__((always_inline)) { return x - y; }, a, b);
}
KVC_ALWAYS_INLINE F32x16 operator*(const F32x16& a, const F32x16& b) noexcept {
  return detail::map([](Part x, Part y) __attribute__((always_inline)) { return x * y; }, a, b);
}
KVC_ALWAYS_INLINE F32x16 operator/(const F32x16& a, const F32x16& b) noexcept {
  return detail::map([](Part x, Part y) __attribute__((always_inline)) { return x / y; }, a, b);
}
/// a * b + c in every lane, see madd of floats.
KVC_ALWAYS_INLINE F32x16 madd(const F32x16& a, const F32x16& b, const F32x16& c) noexcept {
  return detail::map([](Part x, Part y, Part z) __attribute__((always_inline)) { return madd(x, y, z); }, a, b, c);
}
/// The larger of both in every lane.
KVC_ALWAYS_INLINE F32x16 max(const F32x16& a, const F32x16& b) noexcept {
  return detail::map([](Part x, Part y) __attribute__((always_inline)) { return larger(x, y); }, a, b);
}

// --- words ---------------------------------------------------------------------------------------------------------

namespace detail {
/// f of the parts of words and numbers, as words or as numbers.
template <class Result, class F, class... V>
KVC_ALWAYS_INLINE Result map_to(F f, const V&... v) noexcept {
  Result result;
  unroll<parts>([&](auto i) __attribute__((always_inline)) { result.part[i] = f(v.part[i]...); });
  return result;
}
}  // namespace detail

/// The same bits as numbers.
KVC_ALWAYS_INLINE F32x16 as_floats(const U32x16& x) noexcept {
  return detail::map_to<F32x16>([](PartBits p) __attribute__((always_inline)) { return reinterpret_cast<Part>(p); }, x);
}
/// The bits of the floats.
KVC_ALWAYS_INLINE U32x16 as_words(const F32x16& x) noexcept {
  return detail::map_to<U32x16>([](Part p) __attribute__((always_inline)) { return reinterpret_cast<PartBits>(p); }, x);
}
/// The nearest floats of the words as signed integers.
KVC_ALWAYS_INLINE F32x16 to_floats(const U32x16& x) noexcept {
  return detail::map_to<F32x16>(
      [](PartBits p)
          __attribute__((always_inline)) { return __builtin_convertvector(reinterpret_cast<PartInts>(p), Part); },
      x);
}
KVC_ALWAYS_INLINE U32x16 operator&(const U32x16& x, std::uint32_t mask) noexcept {
  return detail::map_to<U32x16>([mask](PartBits p) __attribute__((always_inline)) { return p & mask; }, x);
}
KVC_ALWAYS_INLINE U32x16 operator<<(const U32x16& x, int by) noexcept {
  return detail::map_to<U32x16>([by](PartBits p) __attribute__((always_inline)) { return p << by; }, x);
}
KVC_ALWAYS_INLINE U32x16 operator>>(const U32x16& x, int by) noexcept {
  return detail::map_to<U32x16>([by](PartBits p) __attribute__((always_inline)) { return p >> by; }, x);
}
// --- across lanes ----------------------------------------------------------------------------------------------------

namespace detail {
// Lane l of the result: op(op(x[l], x[l + 8]), op(x[l + 4], x[l + 12])). One overload for each number of registers.
template <class Op>
KVC_ALWAYS_INLINE F32x4 fold(Op op, const F32x4 (&x)[4]) noexcept {
  return op(op(x[0], x[2]), op(x[1], x[3]));
}
template <class Op>
KVC_ALWAYS_INLINE F32x4 fold_eight(Op op, const F32x8& x) noexcept {
  return op(__builtin_shufflevector(x, x, 0, 1, 2, 3), __builtin_shufflevector(x, x, 4, 5, 6, 7));
}
template <class Op>
KVC_ALWAYS_INLINE F32x4 fold(Op op, const F32x8 (&x)[2]) noexcept {
  return fold_eight(op, op(x[0], x[1]));
}
template <class Op>
KVC_ALWAYS_INLINE F32x4 fold(Op op, const WideF32x16 (&x)[1]) noexcept {
  return fold_eight(op, op(__builtin_shufflevector(x[0], x[0], 0, 1, 2, 3, 4, 5, 6, 7),
                           __builtin_shufflevector(x[0], x[0], 8, 9, 10, 11, 12, 13, 14, 15)));
}

struct Add {
  template <class V>
  KVC_ALWAYS_INLINE V operator()(const V& a, const V& b) const noexcept {
    return a + b;
  }
};
struct Larger {
  template <class V>
  KVC_ALWAYS_INLINE V operator()(const V& a, const V& b) const noexcept {
    return larger(a, b);
  }
};
}  // namespace detail

/// The sum of the lanes, in the order given at the top of this file.
KVC_ALWAYS_INLINE float sum(const F32x16& x) noexcept {
  const F32x4 f = detail::fold(detail::Add{}, x.part);
  return (f[0] + f[2]) + (f[1] + f[3]);
}

namespace detail {
/// Of each of four vectors, op over the lanes as in fold and then x[l] with x[l + 2], x[0] with x[1].
template <class Op>
KVC_ALWAYS_INLINE F32x4 fold_each(Op op, const F32x16& a, const F32x16& b, const F32x16& c, const F32x16& d) noexcept {
  const F32x4 fa = fold(op, a.part), fb = fold(op, b.part), fc = fold(op, c.part), fd = fold(op, d.part);
  const F32x4 ab = op(__builtin_shufflevector(fa, fb, 0, 1, 4, 5), __builtin_shufflevector(fa, fb, 2, 3, 6, 7));
  const F32x4 cd = op(__builtin_shufflevector(fc, fd, 0, 1, 4, 5), __builtin_shufflevector(fc, fd, 2, 3, 6, 7));
  return op(__builtin_shufflevector(ab, cd, 0, 2, 4, 6), __builtin_shufflevector(ab, cd, 1, 3, 5, 7));
}
}  // namespace detail

/// The sums of four vectors; each has the same bits as sum() of that vector.
KVC_ALWAYS_INLINE F32x4 sum_each(const F32x16& a, const F32x16& b, const F32x16& c, const F32x16& d) noexcept {
  return detail::fold_each(detail::Add{}, a, b, c, d);
}

/// The largest lanes of four vectors; NaN where one is.
KVC_ALWAYS_INLINE F32x4 max_each(const F32x16& a, const F32x16& b, const F32x16& c, const F32x16& d) noexcept {
  return detail::fold_each(detail::Larger{}, a, b, c, d);
}

/// The largest lane; NaN if any is.
KVC_ALWAYS_INLINE float max(const F32x16& x) noexcept {
  const F32x4 f = detail::fold(detail::Larger{}, x.part);
  const F32x4 g = larger(f, __builtin_shufflevector(f, f, 2, 3, 0, 1));
  return larger(g, __builtin_shufflevector(g, g, 1, 0, 3, 2))[0];
}

}  // namespace simd
}  // namespace v0
}  // namespace kvc
