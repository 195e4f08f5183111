// The element types of 16 bits: Eigen::half and Eigen::bfloat16.
#pragma once

#include <Eigen/Core>
#include <algorithm>
#include <bit>
#include <cstdint>
#include <limits>
#include <string_view>

#include "kvc/core/types.hpp"
#include "kvc/element/element.hpp"

#if defined(__F16C__)
#include <immintrin.h>
#endif

namespace kvc {
inline namespace v0 {

/// "f16", IEEE binary16. Storing rounds to nearest, ties to even, and gives infinity from 65520 on; reading is exact.
template <>
struct Element<Eigen::half> {
  using Storage = Eigen::half;
  static constexpr std::string_view name = "f16";
  static constexpr bool has_row_prefixes = true;
  /// Storage units of a row: one for each element.
  [[nodiscard]] static constexpr Index row_size(Index dim) noexcept { return dim; }
  /// Rounds each element to the nearest value, ties to even. O(dim).
  static void encode(const float* from, Index dim, Storage* to) noexcept {
    Index d = 0;
#if defined(__F16C__)  // by eight: compilers do not vectorise the conversions of Eigen
    for (const Index whole = dim / 8 * 8; d < whole; d += 8) {
      _mm_storeu_si128(reinterpret_cast<__m128i*>(to + d),
                       _mm256_cvtps_ph(_mm256_loadu_ps(from + d), _MM_FROUND_TO_NEAREST_INT));
    }
#endif
    for (; d < dim; ++d) {
      to[d] = Eigen::half(from[d]);
    }
  }
  /// The exact values. O(dim).
  static void decode(const Storage* from, Index dim, float* to) noexcept {
    Index d = 0;
#if defined(__F16C__)
    for (const Index whole = dim / 8 * 8; d < whole; d += 8) {
      _mm256_storeu_ps(to + d, _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(from + d))));
    }
#endif
    for (; d < dim; ++d) {
      to[d] = static_cast<float>(from[d]);
    }
  }
  /// Half a unit in the last place.
  [[nodiscard]] static float max_error(const float* from, Index dim) noexcept {
    const float largest = detail::max_abs(from, dim);
    return largest < 65520.0F ? std::max(largest * 0x1p-11F, 0x1p-25F) : std::numeric_limits<float>::infinity();
  }
};
static_assert(ElementType<Eigen::half>);

/// "bf16", the upper half of a float. Storing rounds to nearest, ties to even; reading is exact.
template <>
struct Element<Eigen::bfloat16> {
  using Storage = Eigen::bfloat16;
  static constexpr std::string_view name = "bf16";
  static constexpr bool has_row_prefixes = true;
  /// Storage units of a row: one for each element.
  [[nodiscard]] static constexpr Index row_size(Index dim) noexcept { return dim; }
  /// Rounds each element to the nearest value, ties to even. O(dim).
  static void encode(const float* from, Index dim, Storage* to) noexcept {
    for (Index d = 0; d < dim; ++d) {
      to[d] = Eigen::bfloat16(from[d]);
    }
  }
  /// The exact values. O(dim).
  static void decode(const Storage* from, Index dim, float* to) noexcept {
    for (Index d = 0; d < dim; ++d) {  // the upper half of a float; written so that compilers vectorise it
      to[d] = std::bit_cast<float>(static_cast<std::uint32_t>(from[d].value) << 16);
    }
  }
  /// Half a unit in the last place.
  [[nodiscard]] static float max_error(const float* from, Index dim) noexcept {
    const float largest = detail::max_abs(from, dim);
    return largest < 0x1.ffp127F ? std::max(largest * 0x1p-8F, 0x1p-134F) : std::numeric_limits<float>::infinity();
  }
};
static_assert(ElementType<Eigen::bfloat16>);

}  // namespace v0
}  // namespace kvc
