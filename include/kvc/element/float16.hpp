// Element types of 16 bits, on Eigen's: Eigen::half (IEEE binary16, "f16") and Eigen::bfloat16 ("bf16").
//
// Storing rounds to nearest, ties to even. Reading is exact.
#pragma once

#include <Eigen/Core>
#include <bit>
#include <cstdint>

#include "kvc/element/element.hpp"

namespace kvc {
inline namespace v0 {

template <>
struct Element<Eigen::half> {
  using Storage = Eigen::half;
  static constexpr std::string_view name = "f16";
  [[nodiscard]] static constexpr Index row_size(Index dim) noexcept { return dim; }
  static void encode(const float* from, Index dim, Storage* to) noexcept {
    for (Index d = 0; d < dim; ++d) {
      to[d] = Eigen::half(from[d]);
    }
  }
  static void decode(const Storage* from, Index dim, float* to) noexcept {
    for (Index d = 0; d < dim; ++d) {
      to[d] = static_cast<float>(from[d]);
    }
  }
};
static_assert(ElementType<Eigen::half>);

template <>
struct Element<Eigen::bfloat16> {
  using Storage = Eigen::bfloat16;
  static constexpr std::string_view name = "bf16";
  [[nodiscard]] static constexpr Index row_size(Index dim) noexcept { return dim; }
  static void encode(const float* from, Index dim, Storage* to) noexcept {
    for (Index d = 0; d < dim; ++d) {
      to[d] = Eigen::bfloat16(from[d]);
    }
  }
  static void decode(const Storage* from, Index dim, float* to) noexcept {
    for (Index d = 0; d < dim; ++d) {  // the upper half of a float; written so that compilers vectorise it
      to[d] = std::bit_cast<float>(static_cast<std::uint32_t>(from[d].value) << 16);
    }
  }
};
static_assert(ElementType<Eigen::bfloat16>);

}  // namespace v0
}  // namespace kvc
