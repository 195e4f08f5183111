// Element<T>: how one row of `dim` elements is stored and read. Nothing else in kvc knows what T means.
//
//   element/element.hpp     float
//   element/float16.hpp     Eigen::half, Eigen::bfloat16
//   element/quantized.hpp   Int8, Fp8E4M3, Int4
//   element/mixed.hpp       Mixed: the first elements of a row stored in one way, the others in another
//   element/none.hpp        None, which stores nothing
#pragma once

#include <algorithm>
#include <cmath>
#include <concepts>
#include <cstddef>
#include <string_view>
#include <type_traits>
#include <vector>

#include "kvc/core/types.hpp"

namespace kvc {
inline namespace v0 {

/// The trait that defines an element type: specialise it for a type of your own, as ElementType describes. T itself is
/// only a name, and may be an incomplete type.
template <class T>
struct Element;

/// A type T with a specialisation E = Element<T>. A row is the key or the value of one head at one position: `dim`
/// elements, stored in row_size(dim) consecutive objects of E::Storage. Arithmetic happens in float.
///
///   expression               | requires                    | returns, does                       | throws | complexity
///   -------------------------+-----------------------------+-------------------------------------+--------+-----------
///   E::Storage               | trivially copyable          | the unit of storage                 |        |
///   E::name                  |                             | a name that no other element type   |        |
///                            |                             | has, "f32", convertible to          |        |
///                            |                             | std::string_view                    |        |
///   E::row_size(dim)         | dim >= 1                    | Index: storage units of a row, at   |        | O(1)
///                            |                             | least 0                             |        |
///   E::encode(from, dim, to) | from [dim] float,           | stores from[0, dim) in the row at   |        | O(dim)
///                            | to [row_size(dim)] Storage  | `to`                                |        |
///   E::decode(from, dim, to) | from [row_size(dim)]        | reads the row at `from` into to[0,  |        | O(dim)
///                            | Storage, to [dim] float     | dim)                                |        |
///   E::max_error(from, dim)  | from [dim] float, finite    | optional: float, a bound of         |        | O(dim)
///                            |                             | |decode(encode(from))[d] - from[d]| |        |
///                            |                             | over all d; infinity if there is    |        |
///                            |                             | none                                |        |
///   E::decode_prefix(from,   | from [row_size(dim)]        | optional: reads the first `count`   |        | O(count)
///     dim, count, to)        | Storage, to [count] float,  | elements of a row of `dim`. Without |        |
///                            | 1 <= count <= dim           | it all of them are read             |        |
///
/// All functions are static, and none throws. `from` and `to` do not overlap, and have the alignment of their types
/// only.
///
/// Laws:
///   bounds         encode writes the row_size(dim) units of the row, all of them, and nothing else
///   deterministic  equal elements give equal bytes
///   accurate       the errors of a row are within max_error
///   prefixes       the first elements of a row are the same numbers, to the bit, read alone and with the others
///
/// testing/element_conformance.hpp checks the laws. A minimal element type is in tests/conformance/elements.cpp.
template <class T>
concept ElementType = std::is_trivially_copyable_v<typename Element<T>::Storage> &&
                      requires(const float* in, float* out, typename Element<T>::Storage* row, Index dim) {
                        { Element<T>::name } -> std::convertible_to<std::string_view>;
                        { Element<T>::row_size(dim) } -> std::same_as<Index>;
                        Element<T>::encode(in, dim, row);
                        Element<T>::decode(static_cast<const typename Element<T>::Storage*>(row), dim, out);
                      };

/// An element type whose rows begin with the rows of fewer elements: the first row_size(n) units of a row of more than
/// n elements are the row of its first n. Kernels that know nothing of latent rows read their values so. Says so by a
/// constant of Element<T>:
///
///   E::has_row_prefixes      | true
template <class T>
concept RowPrefixElement = ElementType<T> && requires { requires Element<T>::has_row_prefixes; };

/// The unit of storage of an element type.
template <class T>
using StorageOf = typename Element<T>::Storage;

/// An element type whose rows are codes, followed by their scales, so that a layout may keep the scales in planes of
/// their own (layout/scale_planes.hpp). E is Element<T>:
///
///   expression               | requires                      | returns, does                  | throws | complexity
///   -------------------------+-------------------------------+--------------------------------+--------+-----------
///   E::scale_offset(dim)     | dim >= 1                      | Index: units of the codes. The |        | O(1)
///                            |                               | scales of a row lie there, and |        |
///                            |                               | take the other units           |        |
///   E::encode_parts(from,    | from [dim] float,             | stores a row whose codes and   |        | O(dim)
///     dim, codes, scales)    | codes [scale_offset(dim)],    | scales lie in two places       |        |
///                            | scales [the other units]      |                                |        |
///   E::decode_parts(codes,   | such a row of `count` or more | reads its first `count`        |        | O(count)
///     scales, count, to)     | elements, to [count] float    | elements                       |        |
///
/// Law: encode and decode are these two, with scales = codes + scale_offset(dim).
template <class T>
concept ScaledElement = ElementType<T> && requires(const float* in, float* out, StorageOf<T>* row, Index dim) {
  { Element<T>::scale_offset(dim) } -> std::same_as<Index>;
  Element<T>::encode_parts(in, dim, row, row);
  Element<T>::decode_parts(static_cast<const StorageOf<T>*>(row), static_cast<const StorageOf<T>*>(row), dim, out);
};

/// Storage units of the codes of a row: all of them for element types without scales.
template <ElementType T>
[[nodiscard]] constexpr Index code_size(Index dim) noexcept {
  if constexpr (ScaledElement<T>) {
    return Element<T>::scale_offset(dim);
  } else {
    return Element<T>::row_size(dim);
  }
}

/// Reads the first `count` elements of a row of `dim`: the value of a latent row.
///
///   from  [row_size(dim)]     to  [count], 1 <= count <= dim
///
/// O(count) for types that say how, O(dim) and an allocation for others.
template <ElementType T>
void decode_prefix(const StorageOf<T>* from, Index dim, Index count, float* to) {
  if constexpr (RowPrefixElement<T>) {
    Element<T>::decode(from, count, to);
  } else if constexpr (requires { Element<T>::decode_prefix(from, dim, count, to); }) {
    Element<T>::decode_prefix(from, dim, count, to);
  } else {
    std::vector<float> all(static_cast<std::size_t>(dim));
    Element<T>::decode(from, dim, all.data());
    std::copy_n(all.data(), count, to);
  }
}

namespace detail {
/// The largest |from[d]|; elements are finite.
[[nodiscard]] inline float max_abs(const float* from, Index dim) noexcept {
  float largest = 0;
  for (Index d = 0; d < dim; ++d) {
    largest = std::max(largest, std::abs(from[d]));
  }
  return largest;
}
}  // namespace detail

/// "f32": elements are stored as they are.
template <>
struct Element<float> {
  using Storage = float;
  static constexpr std::string_view name = "f32";
  static constexpr bool has_row_prefixes = true;
  /// Storage units of a row: one for each element.
  [[nodiscard]] static constexpr Index row_size(Index dim) noexcept { return dim; }
  /// Copies the row. O(dim).
  static void encode(const float* from, Index dim, Storage* to) noexcept { std::copy_n(from, dim, to); }
  /// Copies the row. O(dim).
  static void decode(const Storage* from, Index dim, float* to) noexcept { std::copy_n(from, dim, to); }
  /// 0: elements are stored as they are.
  [[nodiscard]] static float max_error(const float* /*from*/, Index /*dim*/) noexcept { return 0; }
};
static_assert(ElementType<float>);

/// A run: the rows of consecutive positions of one head, evenly spaced in memory. Attention reads a view run by run.
///
///   k  [rows, row_size(key_dim)]    k_stride storage units from row to row
///   v  [rows, row_size(value_dim)]  v_stride storage units from row to row
///
/// The scales of an element type that has some (ScaledElement) may lie in planes of their own. Then k and v are the
/// codes, [rows, code_size(key_dim)] and [rows, code_size(value_dim)], and k_scales and v_scales are not null:
///
///   k_scales  [rows, row_size(key_dim) - code_size(key_dim)]        k_scale_stride storage units from row to row
///   v_scales  [rows, row_size(value_dim) - code_size(value_dim)]    v_scale_stride storage units from row to row
///
/// Where keys and values are in the same place, with the same stride, the rows are latent: the value of each is the
/// first value_dim elements of its key, and value_dim is at most key_dim.
template <class T>
struct KvRun {
  const StorageOf<T>* k;
  const StorageOf<T>* v;
  Index rows;
  Index k_stride;
  Index v_stride;
  Pos first;                               ///< position of the first row in its sequence
  const StorageOf<T>* k_scales = nullptr;  ///< null: at the end of each row
  const StorageOf<T>* v_scales = nullptr;
  Index k_scale_stride = 0;
  Index v_scale_stride = 0;

  /// Whether each value is the beginning of its key.
  [[nodiscard]] constexpr bool is_latent() const noexcept { return v == k && v_stride == k_stride; }
  /// Whether the scales lie in planes of their own.
  [[nodiscard]] constexpr bool has_scale_planes() const noexcept { return k_scales != nullptr; }
  /// `count` of its rows, from row `i` on, as the positions from `position` on.
  [[nodiscard]] constexpr KvRun part(Index i, Index count, Pos position) const noexcept {
    KvRun run{k + i * k_stride, v + i * v_stride, count, k_stride, v_stride, position};
    if (has_scale_planes()) {
      run.k_scales = k_scales + i * k_scale_stride;
      run.v_scales = v_scales + i * v_scale_stride;
      run.k_scale_stride = k_scale_stride;
      run.v_scale_stride = v_scale_stride;
    }
    return run;
  }
};

namespace detail {
/// Storage units of the keys of a run, without scales that lie elsewhere.
template <ElementType T>
[[nodiscard]] constexpr Index key_units(const KvRun<T>& run, Index key_dim) noexcept {
  return run.has_scale_planes() ? code_size<T>(key_dim) : Element<T>::row_size(key_dim);
}
/// Those of the values.
template <ElementType T>
[[nodiscard]] constexpr Index value_units(const KvRun<T>& run, Index value_dim) noexcept {
  return run.has_scale_planes() ? code_size<T>(value_dim) : Element<T>::row_size(value_dim);
}
/// Reads the key of row i of a run.  to [key_dim]
template <ElementType T>
void decode_key(const KvRun<T>& run, Index i, Index key_dim, float* to) {
  if constexpr (ScaledElement<T>) {
    if (run.has_scale_planes()) {
      Element<T>::decode_parts(run.k + i * run.k_stride, run.k_scales + i * run.k_scale_stride, key_dim, to);
      return;
    }
  }
  Element<T>::decode(run.k + i * run.k_stride, key_dim, to);
}
/// Reads the value of row i of a run.  to [value_dim]
template <ElementType T>
void decode_value(const KvRun<T>& run, Index i, Index key_dim, Index value_dim, float* to) {
  if constexpr (ScaledElement<T>) {
    if (run.has_scale_planes()) {
      Element<T>::decode_parts(run.v + i * run.v_stride, run.v_scales + i * run.v_scale_stride, value_dim, to);
      return;
    }
  }
  if (run.is_latent() && value_dim < key_dim) {
    decode_prefix<T>(run.k + i * run.k_stride, key_dim, value_dim, to);
  } else {
    Element<T>::decode(run.v + i * run.v_stride, value_dim, to);
  }
}
}  // namespace detail

}  // namespace v0
}  // namespace kvc
