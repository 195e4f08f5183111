// Mixed: an element type whose first elements are stored in one way and whose others in another. For latent rows (MLA):
// the latent in 8 bits, and the key with positional encoding behind it, which quantisation hurts more, in 16.
//
//   type                                  bytes of a row of 576 elements
//   Mixed<Fp8E4M3, 512, Eigen::bfloat16>  640
//   Mixed<Int8, 512, Eigen::bfloat16>     644
//   Eigen::bfloat16                       1152
#pragma once

#include <algorithm>
#include <array>
#include <cstddef>
#include <string_view>

#include "kvc/core/types.hpp"
#include "kvc/element/element.hpp"

namespace kvc {
inline namespace v0 {

/// The first `split` elements of a row stored as First, the others as Rest. A cache of latent layers whose value_dim is
/// `split` reads the value as a row of First.
///
///   row   the row of First of min(dim, split) elements, zeros up to a multiple of the larger alignment of both, and if
///         dim > split the row of Rest of the other elements, padded alike
///
/// Attention computes in floats. Layers with rows of at most `split` elements store them as First.
template <ElementType First, Index split, ElementType Rest>
struct Mixed;

namespace detail {
/// "fp8:512+bf16"
template <class First, Index split, class Rest>
[[nodiscard]] consteval auto mixed_name() {
  constexpr std::string_view first = Element<First>::name, rest = Element<Rest>::name;
  constexpr std::size_t digits = [] {
    std::size_t count = 1;
    for (Index n = split; n >= 10; n /= 10) {
      ++count;
    }
    return count;
  }();
  std::array<char, first.size() + 1 + digits + 1 + rest.size()> name{};
  auto to = std::ranges::copy(first, name.begin()).out;
  *to = ':';
  to += static_cast<std::ptrdiff_t>(digits);
  Index left = split;
  for (std::size_t i = 0; i < digits; ++i, left /= 10) {
    *(to - static_cast<std::ptrdiff_t>(i)) = static_cast<char>('0' + left % 10);
  }
  *++to = '+';
  std::ranges::copy(rest, ++to);
  return name;
}
template <class First, Index split, class Rest>
inline constexpr auto mixed_name_of = mixed_name<First, split, Rest>();
}  // namespace detail

/// See Mixed for the row.
template <ElementType First, Index split, ElementType Rest>
struct Element<Mixed<First, split, Rest>> {
  static_assert(split >= 1, "kvc: the first part of a mixed row has at least 1 element");

  /// Bytes that are aligned for both parts.
  struct alignas(std::max(alignof(StorageOf<First>), alignof(StorageOf<Rest>))) Storage {
    std::byte bytes[std::max(alignof(StorageOf<First>), alignof(StorageOf<Rest>))];
  };
  static constexpr std::string_view name{detail::mixed_name_of<First, split, Rest>.data(),
                                         detail::mixed_name_of<First, split, Rest>.size()};

  /// Units of both parts.
  [[nodiscard]] static constexpr Index row_size(Index dim) noexcept {
    return units<First>(std::min(dim, split)) + (dim > split ? units<Rest>(dim - split) : 0);
  }
  /// Stores both parts. O(dim).
  static void encode(const float* from, Index dim, Storage* to) noexcept {
    encode_part<First>(from, std::min(dim, split), to);
    if (dim > split) {
      encode_part<Rest>(from + split, dim - split, to + units<First>(split));
    }
  }
  /// Reads both parts. O(dim).
  static void decode(const Storage* from, Index dim, float* to) noexcept { decode_prefix(from, dim, dim, to); }
  /// The same for the first `count` elements. O(count), for parts that say how.
  static void decode_prefix(const Storage* from, Index dim, Index count, float* to) noexcept {
    kvc::decode_prefix<First>(part<First>(from), std::min(dim, split), std::min(count, split), to);
    if (count > split) {
      kvc::decode_prefix<Rest>(part<Rest>(from + units<First>(split)), dim - split, count - split, to + split);
    }
  }
  /// The larger of both parts.
  [[nodiscard]] static float max_error(const float* from, Index dim) noexcept
    requires requires(Index n) {
      Element<First>::max_error(from, n);
      Element<Rest>::max_error(from, n);
    }
  {
    const float error = Element<First>::max_error(from, std::min(dim, split));
    return dim > split ? std::max(error, Element<Rest>::max_error(from + split, dim - split)) : error;
  }

 private:
  static constexpr Index unit = Index{sizeof(Storage)};

  template <class T>
  [[nodiscard]] static constexpr Index bytes(Index dim) noexcept {
    return Element<T>::row_size(dim) * Index{sizeof(StorageOf<T>)};
  }
  template <class T>
  [[nodiscard]] static constexpr Index units(Index dim) noexcept {
    return ceil_div(bytes<T>(dim), unit);
  }
  template <class T>
  [[nodiscard]] static const StorageOf<T>* part(const Storage* at) noexcept {
    return reinterpret_cast<const StorageOf<T>*>(at);
  }
  template <class T>
  static void encode_part(const float* from, Index dim, Storage* to) noexcept {
    Element<T>::encode(from, dim, reinterpret_cast<StorageOf<T>*>(to));
    std::fill(reinterpret_cast<std::byte*>(to) + bytes<T>(dim), reinterpret_cast<std::byte*>(to + units<T>(dim)),
              std::byte{0});
  }
};

}  // namespace v0
}  // namespace kvc
