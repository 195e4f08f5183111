// None: the element type of a cache without keys and values.
#pragma once

#include <algorithm>
#include <cstddef>
#include <limits>
#include <string_view>

#include "kvc/core/types.hpp"
#include "kvc/element/element.hpp"

namespace kvc {
inline namespace v0 {

/// Stores nothing, in no memory:  KvCache<None, Policy>  opens, extends, commits and counts as any cache does, and its
/// pool is empty. For simulations of a policy, of a scheduler or of traffic. `write` checks its arguments and drops the
/// rows; `gather` gives NaN.
struct None;

/// "none": rows of no bytes.
template <>
struct Element<None> {
  using Storage = std::byte;
  static constexpr std::string_view name = "none";
  static constexpr bool has_row_prefixes = true;
  /// 0: nothing is stored.
  [[nodiscard]] static constexpr Index row_size(Index /*dim*/) noexcept { return 0; }
  /// Stores nothing.
  static void encode(const float* /*from*/, Index /*dim*/, Storage* /*to*/) noexcept {}
  /// NaN for each element. O(dim).
  static void decode(const Storage* /*from*/, Index dim, float* to) noexcept {
    std::fill_n(to, dim, std::numeric_limits<float>::quiet_NaN());
  }
  /// Infinity: there is no bound.
  [[nodiscard]] static float max_error(const float* /*from*/, Index /*dim*/) noexcept {
    return std::numeric_limits<float>::infinity();
  }
};
static_assert(ElementType<None>);

}  // namespace v0
}  // namespace kvc
