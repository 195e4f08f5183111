// CUDA's 16-bit types as element types: KvCache<__nv_bfloat16, Policy, Layout, cuda::DeviceSpace> needs no Eigen. Rows
// have the same bytes as those of Eigen::half and Eigen::bfloat16.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <string_view>

#include "kvc/core/types.hpp"
#include "kvc/element/element.hpp"

namespace kvc {
inline namespace v0 {

/// Rows of IEEE binary16 numbers.
template <>
struct Element<__half> {
  using Storage = __half;
  static constexpr std::string_view name = "f16";
  /// Storage units of a row: one for each element.
  [[nodiscard]] static constexpr Index row_size(Index dim) noexcept { return dim; }
  /// Rounds each element to the nearest value, ties to even. O(dim).
  static void encode(const float* from, Index dim, Storage* to) noexcept {
    for (Index d = 0; d < dim; ++d) {
      to[d] = __float2half_rn(from[d]);
    }
  }
  /// The exact values. O(dim).
  static void decode(const Storage* from, Index dim, float* to) noexcept {
    for (Index d = 0; d < dim; ++d) {
      to[d] = __half2float(from[d]);
    }
  }
};
static_assert(ElementType<__half>);

/// Rows of bfloat16 numbers.
template <>
struct Element<__nv_bfloat16> {
  using Storage = __nv_bfloat16;
  static constexpr std::string_view name = "bf16";
  /// Storage units of a row: one for each element.
  [[nodiscard]] static constexpr Index row_size(Index dim) noexcept { return dim; }
  /// Rounds each element to the nearest value, ties to even. O(dim).
  static void encode(const float* from, Index dim, Storage* to) noexcept {
    for (Index d = 0; d < dim; ++d) {
      to[d] = __float2bfloat16_rn(from[d]);
    }
  }
  /// The exact values. O(dim).
  static void decode(const Storage* from, Index dim, float* to) noexcept {
    for (Index d = 0; d < dim; ++d) {
      to[d] = __bfloat162float(from[d]);
    }
  }
};
static_assert(ElementType<__nv_bfloat16>);

}  // namespace v0
}  // namespace kvc
