// NibbleQueryGroup: the query codes of NibbleTile.
//
// Query codes have 12 bits. Two elements a and b share a byte of stored codes, a + 16 b, and three products of bytes
// give both of them 12 bits, where two 8-bit halves of each would take four products. With signed bytes x, y, z:
//
//   256 * (x * a + y * b) + z * (a + 16 b)  =  (256 x + z) * a + (256 y + 16 z) * b
//
// The low four bits of z complete b's coefficient. Its high four bits complete a's, up to a sixteenth of a step that
// the low ones leave, which is known when a's coefficient is rounded.
//
// A code is 7.5 on average, so that the errors of the query codes of a group matter most where they add up: some codes
// are rounded the other way, so that their sum is that of the query to half a step.
#pragma once

#include <cstdint>

#include "kvc/core/types.hpp"
#include "kvc/simd/narrow.hpp"
#include "kvc/simd/vec.hpp"

#if KVC_SIMD_BYTE_DOT

namespace kvc {
inline namespace v0 {
namespace detail {

/// Codes of 12 bits for one group of 32 elements of a query: see the head of this file.
struct NibbleQueryGroup {
  static constexpr int largest_code = 1904;  ///< so that x and y are bytes whatever z is

  std::uint8_t x[16];  ///< of the elements in the low halves of bytes
  std::uint8_t y[16];  ///< of those in the high halves
  std::uint8_t z[16];  ///< of both

  /// low, high   elements for the halves of bytes, in steps; at most largest_code in magnitude
  /// count       elements that exist; the others are 0
  void encode(const simd::F32x16& low, const simd::F32x16& high, Index count) noexcept {
    using simd::to_integers;
    const simd::U32x16 b = to_integers(high), z_low = b & 15U;
    const simd::F32x16 wanted = low - to_floats(z_low) * simd::broadcast(0x1p-4F);
    simd::U32x16 a = to_integers(wanted);
    simd::F32x16 error = wanted - to_floats(a);
    // Where errors add up to more than half a step, the codes with the largest ones are rounded the other way.
    const auto exists = static_cast<__mmask16>(count >= 16 ? 0xffffU : (1U << count) - 1U);
    const float sum = simd::sum(error + (high - to_floats(b)));
    const float sign = sum < 0 ? -1.0F : 1.0F;
    error = error * simd::broadcast(sign);
    const simd::U32x16 one = to_integers(simd::broadcast(sign));
    for (float left = sum * sign; left > 0.5F; left -= 1) {
      const simd::F32x16 candidates = {{_mm512_mask_blend_ps(exists, simd::broadcast(-2.0F).part[0], error.part[0])}};
      const __mmask16 largest =
          _mm512_cmp_ps_mask(candidates.part[0], simd::broadcast(simd::max(candidates)).part[0], _CMP_EQ_OQ);
      const auto first = static_cast<__mmask16>(largest & -largest);
      a = simd::words(_mm512_mask_add_epi32(raw(a), first, raw(a), raw(one)));
      error.part[0] = _mm512_mask_sub_ps(error.part[0], first, error.part[0], simd::broadcast(1.0F).part[0]);
    }
    const simd::U32x16 eight = simd::words(_mm512_set1_epi32(8)), z_high = ((a + eight) & 15U) - eight;
    simd::store_low_bytes(x, simd::shift_signed(a - z_high, 4));
    simd::store_low_bytes(y, simd::shift_signed(b - z_low, 4) - z_high);
    simd::store_low_bytes(z, (z_high << 4) + z_low);
  }
};

}  // namespace detail
}  // namespace v0
}  // namespace kvc

#endif  // KVC_SIMD_BYTE_DOT
