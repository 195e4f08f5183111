// The quantised element types: Int8, Fp8E4M3 and Int4. A row is quantised once, when it is written, and never again.
//
//   type      bytes of a row           dim 128   an element is            largest error
//   Int8      dim, padded to 4, + 4    132       code * scale             max |x| / 254
//   Fp8E4M3   dim                      128       the value of its byte    |x| / 16 from 2^-6 to 448, 2^-10 below
//   Int4      20 per 32 elements       80        code * scale + minimum   (max - min) / 30 of its group, and the
//                                                                         rounding of scale and minimum to bfloat16
#pragma once

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <string_view>

#include "kvc/core/types.hpp"
#include "kvc/element/element.hpp"

namespace kvc {
inline namespace v0 {

/// Signed bytes with one scale per row, that is per token and head.
///
///   row   dim codes (signed bytes), zeros up to a multiple of 4, scale (float, byte order of the machine)
///
/// A row with a NaN or an infinity reads back as NaN throughout. The scale is at least 2^-126: below 127 * 2^-126
/// (1.5e-36) the error of an element is up to 2^-127.
struct Int8;

/// The 8-bit floating point of 4 exponent and 3 mantissa bits, without infinities (OCP 8-bit Floating Point
/// Specification, 2023).
///
///   row   dim bytes
///
/// Storing rounds to nearest, ties to even. It keeps NaN, and gives 448, the largest value, for all that is larger.
struct Fp8E4M3;

/// Codes of four bits in groups of 32 elements. Each group has a scale and a minimum.
///
///   row   16 bytes of codes per group, then one word per group:  scale (bfloat16) | minimum (bfloat16) << 16
///
/// Byte i of the 16 of group g has the code of element 32 g + i in its low half and that of element 32 g + 16 + i in
/// its high half. Codes that pad the last group are never read. Words have the byte order of the machine.
///
/// A group with a NaN or an infinity reads back as NaN throughout, and one whose elements are all below 2^-100
/// (7.9e-31) in magnitude as 0, whose scale would otherwise vanish. Elements beyond 1.875 * 2^126 (1.6e38) in magnitude
/// are stored as that, so that no code times its scale is infinite.
struct Int4;

namespace detail {

/// A large number such that x + round_shift - round_shift is x rounded to nearest, ties to even, for |x| < 2^22.
inline constexpr float round_shift = 12582912.0F;

[[nodiscard]] inline float bf16_to_float(std::uint32_t bits) noexcept { return std::bit_cast<float>(bits << 16); }

/// The largest bfloat16 not above x, and the smallest not below it; x finite. They saturate at the largest finite
/// numbers.
[[nodiscard]] inline std::uint32_t bf16_below(float x) noexcept {
  const auto bits = std::bit_cast<std::uint32_t>(x);
  const bool exact = (bits & 0xffffU) == 0;
  const std::uint32_t up =
      (bits >> 16) + (exact || x > 0 ? 0U : 1U);  // a larger magnitude is lower for negative numbers
  return (up & 0x7fffU) == 0x7f80U ? up - 1 : up;
}
[[nodiscard]] inline std::uint32_t bf16_above(float x) noexcept { return bf16_below(-x) ^ 0x8000U; }

[[nodiscard]] inline float fp8_e4m3_to_float(std::uint8_t code) noexcept {
  const std::uint32_t magnitude = code & 0x7fU, sign = static_cast<std::uint32_t>(code & 0x80U) << 24;
  // With the exponent moved to that of a float, subnormal codes come out as 2^-7 + half their value.
  const float moved = std::bit_cast<float>((magnitude << 20) + (120U << 23));
  const float value = magnitude < 8 ? 2 * (moved - 0x1p-7F) : moved;
  const std::uint32_t bits = magnitude == 0x7fU ? 0x7fc00000U : std::bit_cast<std::uint32_t>(value);
  return std::bit_cast<float>(bits | sign);
}

[[nodiscard]] inline std::uint8_t fp8_e4m3_from_float(float x) noexcept {
  const auto bits = std::bit_cast<std::uint32_t>(x);
  const std::uint32_t sign = bits >> 24 & 0x80U, magnitude = bits & 0x7fffffffU;
  // Normal: 20 bits of the mantissa go, rounded to nearest even. Subnormal: multiples of 2^-9, rounded by an addition.
  const std::uint32_t normal = (magnitude + 0x7ffffU + (magnitude >> 20 & 1U) - (120U << 23)) >> 20;
  const float shifted = std::bit_cast<float>(magnitude) + 16384.0F;  // the unit in the last place is 2^-9
  const std::uint32_t subnormal = std::bit_cast<std::uint32_t>(shifted) - std::bit_cast<std::uint32_t>(16384.0F);
  std::uint32_t code = magnitude < (121U << 23) ? subnormal : normal;
  code = magnitude >= 0x43e00000U ? 0x7eU : code;  // 448
  code = magnitude > 0x7f800000U ? 0x7fU : code;
  return static_cast<std::uint8_t>(code | sign);
}

}  // namespace detail

/// "int8". See Int8 for the row.
template <>
struct Element<Int8> {
  using Storage = std::uint8_t;
  static constexpr std::string_view name = "int8";
  /// Bytes of a row: dim, padded to a multiple of 4, and 4 for the scale.
  [[nodiscard]] static constexpr Index row_size(Index dim) noexcept { return scale_offset(dim) + 4; }
  /// Offset of the scale in a row.
  [[nodiscard]] static constexpr Index scale_offset(Index dim) noexcept { return ceil_div(dim, Index{4}) * 4; }

  /// Stores the codes, then the scale of the row. O(dim).
  static void encode(const float* from, Index dim, Storage* to) noexcept {
    encode_parts(from, dim, to, to + scale_offset(dim));
  }
  /// Stores the codes and the scale in two places. O(dim).
  static void encode_parts(const float* from, Index dim, Storage* to, Storage* scale_to) noexcept {
    std::uint32_t largest = 0;  // as bits: magnitudes compare like integers, and NaN is above all
    for (Index d = 0; d < dim; ++d) {
      largest = std::max(largest, std::bit_cast<std::uint32_t>(from[d]) & 0x7fffffffU);
    }
    const bool finite = largest < 0x7f800000U;
    // With a scale that is not a normal number its reciprocal would be infinite, or lack precision. The largest of all
    // would be rounded up to one of which 127 times is infinite.
    constexpr float least = std::numeric_limits<float>::min(),
                    largest_of_all = std::numeric_limits<float>::max() / 127.0F;
    constexpr float most = std::bit_cast<float>(std::bit_cast<std::uint32_t>(largest_of_all) - 1U);
    const float scale = finite ? std::clamp(std::bit_cast<float>(largest) / 127.0F, least, most)
                               : std::numeric_limits<float>::quiet_NaN();
    for (Index d = 0; d < dim; ++d) {
      const float code = finite ? from[d] / scale : 0.0F;
      to[d] = static_cast<std::uint8_t>(static_cast<std::int32_t>(code + detail::round_shift - detail::round_shift));
    }
    std::fill(to + dim, to + scale_offset(dim), Storage{0});
    std::memcpy(scale_to, &scale, sizeof scale);
  }
  /// code * scale for each element. O(dim).
  static void decode(const Storage* from, Index dim, float* to) noexcept { decode_prefix(from, dim, dim, to); }
  /// The same for the first `count` of them. O(count).
  static void decode_prefix(const Storage* from, Index dim, Index count, float* to) noexcept {
    decode_parts(from, from + scale_offset(dim), count, to);
  }
  /// The same with the scale in another place. O(count).
  static void decode_parts(const Storage* from, const Storage* scale_from, Index count, float* to) noexcept {
    float scale;
    std::memcpy(&scale, scale_from, sizeof scale);
    for (Index d = 0; d < count; ++d) {
      to[d] = static_cast<float>(static_cast<std::int8_t>(from[d])) * scale;
    }
  }
  /// Half a scale, and the rounding of floats.
  [[nodiscard]] static float max_error(const float* from, Index dim) noexcept {
    return std::max(detail::max_abs(from, dim) / 254.0F, std::numeric_limits<float>::min() / 2) * 1.0001F;
  }
};
static_assert(ScaledElement<Int8>);

/// "fp8". See Fp8E4M3 for the row.
template <>
struct Element<Fp8E4M3> {
  using Storage = std::uint8_t;
  static constexpr std::string_view name = "fp8";
  static constexpr bool has_row_prefixes = true;
  /// Bytes of a row: dim.
  [[nodiscard]] static constexpr Index row_size(Index dim) noexcept { return dim; }
  /// Rounds each element to the nearest value of a byte. O(dim).
  static void encode(const float* from, Index dim, Storage* to) noexcept {
    for (Index d = 0; d < dim; ++d) {
      to[d] = detail::fp8_e4m3_from_float(from[d]);
    }
  }
  /// The value of each byte. O(dim).
  static void decode(const Storage* from, Index dim, float* to) noexcept {
    for (Index d = 0; d < dim; ++d) {
      to[d] = detail::fp8_e4m3_to_float(from[d]);
    }
  }
  /// Half a unit in the last place, or what exceeds 448.
  [[nodiscard]] static float max_error(const float* from, Index dim) noexcept {
    const float largest = detail::max_abs(from, dim);
    return std::max({largest / 16, 0x1p-10F, largest - 448});
  }
};
static_assert(ElementType<Fp8E4M3>);

/// "int4". See Int4 for the row.
template <>
struct Element<Int4> {
  using Storage = std::uint8_t;
  static constexpr std::string_view name = "int4";
  static constexpr Index group = 32;
  static constexpr float smallest = 0x1p-100F;  ///< of the largest magnitude of a group that does not read back as 0
  static constexpr float largest = 0x1.ep126F;  ///< magnitude of an element
  /// Groups of 32 elements in a row, the last one perhaps partly filled.
  [[nodiscard]] static constexpr Index groups(Index dim) noexcept { return ceil_div(dim, group); }
  /// Bytes of a row: 20 for each group.
  [[nodiscard]] static constexpr Index row_size(Index dim) noexcept { return 20 * groups(dim); }
  /// Offset of the words of scale and minimum in a row.
  [[nodiscard]] static constexpr Index scale_offset(Index dim) noexcept { return 16 * groups(dim); }

  /// Stores codes, scale and minimum of each group. O(dim).
  static void encode(const float* from, Index dim, Storage* to) noexcept {
    encode_parts(from, dim, to, to + scale_offset(dim));
  }
  /// Stores the codes, and the words of scale and minimum, in two places. O(dim).
  static void encode_parts(const float* from, Index dim, Storage* to, Storage* ranges) noexcept {
    for (Index g = 0; g < groups(dim); ++g) {
      const std::uint32_t range = encode_group(from + g * group, std::min(Index{group}, dim - g * group), to + g * 16);
      std::memcpy(ranges + 4 * g, &range, sizeof range);
    }
  }
  /// code * scale + minimum for each element. O(dim).
  static void decode(const Storage* from, Index dim, float* to) noexcept { decode_prefix(from, dim, dim, to); }
  /// The same for the first `count` of them. O(count).
  static void decode_prefix(const Storage* from, Index dim, Index count, float* to) noexcept {
    decode_parts(from, from + scale_offset(dim), count, to);
  }
  /// The same with the words of scale and minimum in another place. O(count).
  static void decode_parts(const Storage* from, const Storage* ranges, Index count, float* to) noexcept {
    for (Index d = 0; d < count; ++d) {
      const Index g = d / group, i = d % group;
      std::uint32_t range;
      std::memcpy(&range, ranges + 4 * g, sizeof range);
      const std::uint32_t code = from[g * 16 + i % 16] >> (i < 16 ? 0 : 4) & 15U;
      to[d] = static_cast<float>(code) * detail::bf16_to_float(range & 0xffffU) + detail::bf16_to_float(range >> 16);
    }
  }

  /// Half a scale and the rounding of floats; the magnitude itself below `smallest`, and what exceeds `largest`.
  [[nodiscard]] static float max_error(const float* from, Index dim) noexcept {
    float error = 0;
    for (Index g = 0; g < groups(dim); ++g) {
      const float* const x = from + g * group;
      const Index count = std::min(Index{group}, dim - g * group);
      const float magnitude = detail::max_abs(x, count);
      if (magnitude < smallest) {
        error = std::max(error, magnitude);
        continue;
      }
      const auto [least, most] = std::minmax_element(x, x + count);
      const Range range = range_of(std::clamp(*least, -largest, largest), std::clamp(*most, -largest, largest));
      error = std::max(
          error, detail::bf16_to_float(range.step) / 2 + magnitude * 0x1p-20F + std::max(magnitude - largest, 0.0F));
    }
    return error;
  }

 private:
  /// Scale and minimum of a group, as bfloat16.
  struct Range {
    std::uint32_t step, low;
    [[nodiscard]] float scale() const noexcept { return step == 0 ? 1.0F : detail::bf16_to_float(step); }
    [[nodiscard]] float minimum() const noexcept { return detail::bf16_to_float(low); }
  };
  static Range range_of(float least, float most) noexcept {
    const std::uint32_t low = detail::bf16_below(least);
    return {detail::bf16_above(most / 15 - detail::bf16_to_float(low) / 15), low};
  }

  /// Stores 16 bytes of codes; returns the word of scale and minimum.
  static std::uint32_t encode_group(const float* x, Index count, Storage* to) noexcept {
    float padded[group];
    for (Index i = 0; i < group; ++i) {
      padded[i] = x[std::min(i, count - 1)];
    }
    float least = padded[0], most = padded[0], sum = 0;
    for (const float each : padded) {
      least = std::min(least, each);
      most = std::max(most, each);
      sum += each * 0.0F;  // NaN if any is not finite
    }
    if (sum != 0.0F) {
      std::fill_n(to, 16, Storage{0});
      return 0x7fc07fc0U;
    }
    if (std::max(-least, most) < smallest) {
      std::fill_n(to, 16, Storage{0});
      return 0;
    }
    least = std::clamp(least, -largest, largest);
    most = std::clamp(most, -largest, largest);
    const Range range = range_of(least, most);
    const float minimum = range.minimum(), scale = range.scale();
    for (Index i = 0; i < 16; ++i) {
      to[i] = static_cast<Storage>(code(padded[i], scale, minimum) | code(padded[i + 16], scale, minimum) << 4);
    }
    return range.step | range.low << 16;
  }
  static std::int32_t code(float x, float scale, float minimum) noexcept {
    return static_cast<std::int32_t>(std::clamp(x / scale - minimum / scale, 0.0F, 15.0F) + 0.5F);
  }
};
static_assert(ScaledElement<Int4>);

}  // namespace v0
}  // namespace kvc
