// CodedRows<T>: rows of codes that become floats in registers, where they are used. `is_coded<T>` says whether the
// target has that for T. The floats are those of Element<T>::decode, bit for bit.
#pragma once

#include <cstdint>
#include <cstring>
#include <type_traits>

#include "kvc/attention/kernel/kv_tile_rows.hpp"
#include "kvc/attention/kernel/part_kernels.hpp"
#include "kvc/core/types.hpp"
#include "kvc/element/quantized.hpp"
#include "kvc/simd/convert.hpp"
#include "kvc/simd/vec.hpp"

namespace kvc {
inline namespace v0 {
namespace detail {

#if defined(__AVX512VBMI__)
template <class T>
inline constexpr bool is_coded = std::is_same_v<T, Fp8E4M3>;
#elif KVC_PART_KERNELS && defined(__F16C__)
template <class T>
inline constexpr bool is_coded = std::is_same_v<T, Fp8E4M3> || std::is_same_v<T, Int8> || std::is_same_v<T, Int4>;
#elif KVC_PART_KERNELS
template <class T>
inline constexpr bool is_coded = std::is_same_v<T, Int8> || std::is_same_v<T, Int4>;
#else
template <class T>
inline constexpr bool is_coded = false;
#endif

template <class T>
struct CodedRows {
  static constexpr Index multiple = 1;  // of which the elements of a row must be one
};

#if defined(__AVX512VBMI__)

/// 64 codes at a time.
template <>
struct CodedRows<Fp8E4M3> {
  const std::uint8_t* const* rows;
  Index dim;
  static constexpr int step = 4, bytes = 64;
  static constexpr Index multiple = 1;
  using Operand = simd::F32x16;
  KVC_ALWAYS_INLINE void load(Index j, Index c, simd::F32x16 (&x)[4]) const noexcept {
    simd::load_e4m3(rows[j] + c * simd::lanes, dim - c * simd::lanes, x);
  }
};

#elif KVC_PART_KERNELS

/// Sixteen codes at a time, and eight of several rows for the loops of part_kernels.hpp.
template <>
struct CodedRows<Int8> {
  const std::uint8_t* const* rows;
  ScaleRows<Int8> scales;
  static constexpr int step = 1, part_step = 1, bytes = simd::lanes;
  static constexpr Index multiple = simd::lanes;
  using Operand = simd::F32x16;

  struct Row {
    const std::uint8_t* codes;
    simd::Part scale;
    template <int half>
    [[nodiscard]] KVC_ALWAYS_INLINE simd::Part last(Index c) const noexcept {
      return simd::load_signed_bytes(codes + c * simd::lanes + half * simd::part_lanes) * scale;
    }
    template <int half>
    KVC_ALWAYS_INLINE void load(Index c, simd::Part (&x)[1]) const noexcept {
      x[0] = last<half>(c);
    }
  };
  [[nodiscard]] KVC_ALWAYS_INLINE Row row(Index j) const noexcept {
    float scale;
    std::memcpy(&scale, scales.rows[j] + scales.offset, sizeof scale);
    return {rows[j], scale - simd::Part{}};
  }
  KVC_ALWAYS_INLINE simd::F32x16 load(Index j, Index c) const noexcept {
    const Row of = row(j);
    return {{of.last<0>(c), of.last<1>(c)}};
  }
  KVC_ALWAYS_INLINE void load(Index j, Index c, simd::F32x16 (&x)[1]) const noexcept { x[0] = load(j, c); }
};

/// The same. The two vectors of a group of 32 elements have their codes in the same bytes.
template <>
struct CodedRows<Int4> {
  const std::uint8_t* const* rows;
  ScaleRows<Int4> scales;
  static constexpr int step = 1, part_step = 2, bytes = 10;
  static constexpr Index multiple = simd::lanes;
  using Operand = simd::F32x16;

  /// The numbers of one group: code * scale + minimum.
  struct Range {
    simd::Part scale, minimum;
    KVC_ALWAYS_INLINE explicit Range(const std::uint8_t* at) noexcept {
      std::uint32_t word;
      std::memcpy(&word, at, sizeof word);
      const simd::PartBits words = word - simd::PartBits{};
      scale = reinterpret_cast<simd::Part>(words << 16);
      minimum = reinterpret_cast<simd::Part>(words & 0xffff0000U);
    }
    [[nodiscard]] KVC_ALWAYS_INLINE simd::Part operator()(const simd::PartBits& codes) const noexcept {
      return simd::madd(__builtin_convertvector(reinterpret_cast<simd::PartInts>(codes), simd::Part), scale, minimum);
    }
  };
  struct Row {
    const std::uint8_t* codes;
    const std::uint8_t* ranges;
    template <int half>
    KVC_ALWAYS_INLINE void load(Index c, simd::Part (&x)[2]) const noexcept {
      const Range range(ranges + c * 2);
      const simd::PartBits pairs = simd::load_bytes_as_words(codes + c * 8 + half * simd::part_lanes);
      x[0] = range(pairs & 15U);
      x[1] = range(pairs >> 4);
    }
    /// Of a row with an odd number of vectors, the last.
    template <int half>
    [[nodiscard]] KVC_ALWAYS_INLINE simd::Part last(Index c) const noexcept {
      return Range(ranges + c * 2)(simd::load_bytes_as_words(codes + c * 8 + half * simd::part_lanes) & 15U);
    }
  };
  [[nodiscard]] KVC_ALWAYS_INLINE Row row(Index j) const noexcept { return {rows[j], scales.rows[j] + scales.offset}; }
  KVC_ALWAYS_INLINE simd::F32x16 load(Index j, Index c) const noexcept {
    const Row of = row(j);
    const Range range(of.ranges + c / 2 * 4);
    const simd::PartBits low = simd::load_bytes_as_words(of.codes + c / 2 * 16);
    const simd::PartBits high = simd::load_bytes_as_words(of.codes + c / 2 * 16 + simd::part_lanes);
    return c % 2 == 0 ? simd::F32x16{{range(low & 15U), range(high & 15U)}}
                      : simd::F32x16{{range(low >> 4), range(high >> 4)}};
  }
  KVC_ALWAYS_INLINE void load(Index j, Index c, simd::F32x16 (&x)[1]) const noexcept { x[0] = load(j, c); }
};

#if defined(__F16C__)

/// The same. Codes for NaN are rare, and take longer.
template <>
struct CodedRows<Fp8E4M3> {
  const std::uint8_t* const* rows;
  Index elements;
  static constexpr int step = 1, part_step = 1, bytes = simd::lanes;
  static constexpr Index multiple = simd::lanes;
  using Operand = simd::F32x16;

  struct Row {
    const std::uint8_t* codes;
    bool has_nan;
    template <int half>
    [[nodiscard]] KVC_ALWAYS_INLINE simd::Part last(Index c) const noexcept {
      const std::uint8_t* const at = codes + c * simd::lanes + half * simd::part_lanes;
      return has_nan ? simd::load_e4m3_or_nan(at) : simd::load_e4m3(at);
    }
    template <int half>
    KVC_ALWAYS_INLINE void load(Index c, simd::Part (&x)[1]) const noexcept {
      x[0] = last<half>(c);
    }
  };
  [[nodiscard]] KVC_ALWAYS_INLINE Row row(Index j) const noexcept {
    return {rows[j], simd::has_e4m3_nan(rows[j], elements)};
  }
  KVC_ALWAYS_INLINE simd::F32x16 load(Index j, Index c) const noexcept {
    const std::uint8_t* const at = rows[j] + c * simd::lanes;
    if (simd::has_e4m3_nan(at)) [[unlikely]] {
      return {{simd::load_e4m3_or_nan(at), simd::load_e4m3_or_nan(at + simd::part_lanes)}};
    }
    return {{simd::load_e4m3(at), simd::load_e4m3(at + simd::part_lanes)}};
  }
  KVC_ALWAYS_INLINE void load(Index j, Index c, simd::F32x16 (&x)[1]) const noexcept { x[0] = load(j, c); }
};

#endif  // __F16C__

#endif  // KVC_PART_KERNELS

}  // namespace detail
}  // namespace v0
}  // namespace kvc
