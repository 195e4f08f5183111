// Format: how the rows of an element type lie in memory, as a value, so that it can be a template argument of kernels.
//
// Kernels do not know Eigen, and a cache of Eigen::bfloat16 holds the same bytes as one of __nv_bfloat16. So kernels
// know formats only. The format of an element type follows from the name and the storage size in Element<T>.
#pragma once

#include <concepts>
#include <cstdint>

#include "kvc/config.hpp"
#include "kvc/core/types.hpp"
#include "kvc/element/element.hpp"
#include "kvc/element/quantized.hpp"
#include "kvc/layout/scale_planes.hpp"

namespace kvc {
inline namespace v0 {
namespace cuda {

/// How the elements of a row are stored.
enum class Format : std::uint8_t {
  none,         ///< no kernel reads it
  f32,          ///< float
  f16,          ///< IEEE binary16
  bf16,         ///< the upper half of a float
  fp8_e4m3,     ///< Fp8E4M3
  int8,         ///< Int8: codes, then at the next multiple of four bytes the scale of the row (float)
  int8_planes,  ///< Int8 in a layout of ScalePlanes: the codes in one place, the scale in another
};

/// The format of the rows of Element<T>; Format::none if kernels do not read such rows.
template <ElementType T>
inline constexpr Format format_of = Element<T>::name == "f32" && sizeof(StorageOf<T>) == 4    ? Format::f32
                                    : Element<T>::name == "f16" && sizeof(StorageOf<T>) == 2  ? Format::f16
                                    : Element<T>::name == "bf16" && sizeof(StorageOf<T>) == 2 ? Format::bf16
                                    : std::same_as<T, Fp8E4M3>                                ? Format::fp8_e4m3
                                    : std::same_as<T, Int8>                                   ? Format::int8
                                                                                              : Format::none;

/// The format of the rows of Element<T> in a layout, or a GroupLayout, L.
template <ElementType T, class L>
inline constexpr Format format_in = [] {
  constexpr bool planes = ScaledElement<T> && requires(const L& layout) { layout.k_scale_stride(); };
  return planes && format_of<T> == Format::int8 ? Format::int8_planes : planes ? Format::none : format_of<T>;
}();

/// Whether elements are codes of int8, and each row has a scale.
[[nodiscard]] KVC_HOST_DEVICE constexpr bool is_int8(Format format) noexcept {
  return format == Format::int8 || format == Format::int8_planes;
}

/// Bytes of one element, without the scale.
[[nodiscard]] KVC_HOST_DEVICE constexpr int code_bytes(Format format) noexcept {
  return format == Format::f32 ? 4 : format == Format::f16 || format == Format::bf16 ? 2 : 1;
}

/// Byte offset of the scale in an Int8 row.
[[nodiscard]] KVC_HOST_DEVICE constexpr int scale_offset(int dim) noexcept { return (dim + 3) / 4 * 4; }

/// Bytes of a row of dim elements, with its scale.
[[nodiscard]] KVC_HOST_DEVICE constexpr int row_bytes(Format format, int dim) noexcept {
  return is_int8(format) ? scale_offset(dim) + 4 : dim * code_bytes(format);
}
static_assert(row_bytes(format_of<Int8>, 13) == Element<Int8>::row_size(13));
static_assert(row_bytes(format_of<Fp8E4M3>, 13) == Element<Fp8E4M3>::row_size(13));
static_assert(row_bytes(format_of<float>, 13) == 4 * Element<float>::row_size(13));

}  // namespace cuda
}  // namespace v0
}  // namespace kvc
