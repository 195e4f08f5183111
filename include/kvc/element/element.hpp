// Element<T>: how one row of `dim` numbers is stored and read. The only place that knows what T means.
//
// A row is `row_size(dim)` consecutive `Storage` objects. For plain numbers that is the numbers themselves; a quantised
// T stores codes and scales. Arithmetic is always done in float.
#pragma once

#include <algorithm>
#include <concepts>
#include <string_view>

#include "kvc/core/types.hpp"

namespace kvc {
inline namespace v0 {

/// Specialise for a new element type:
///
///   expression                          meaning
///   using Storage                       trivially copyable unit that rows are made of
///   name                                short name, "f32"
///   row_size(dim) -> Index              Storage objects in a row of dim numbers
///   encode(from, dim, to)               store  from[0..dim)  (float) in the row at `to`
///   decode(from, dim, to)               read the row at `from` into  to[0..dim)  (float)
template <class T>
struct Element;

template <class T>
concept ElementType = std::is_trivially_copyable_v<typename Element<T>::Storage> &&
                      requires(const float* in, float* out, typename Element<T>::Storage* row, Index dim) {
                        { Element<T>::name } -> std::convertible_to<std::string_view>;
                        { Element<T>::row_size(dim) } -> std::same_as<Index>;
                        Element<T>::encode(in, dim, row);
                        Element<T>::decode(static_cast<const typename Element<T>::Storage*>(row), dim, out);
                      };

template <class T>
using StorageOf = typename Element<T>::Storage;

template <>
struct Element<float> {
  using Storage = float;
  static constexpr std::string_view name = "f32";
  [[nodiscard]] static constexpr Index row_size(Index dim) noexcept { return dim; }
  static void encode(const float* from, Index dim, Storage* to) noexcept { std::copy_n(from, dim, to); }
  static void decode(const Storage* from, Index dim, float* to) noexcept { std::copy_n(from, dim, to); }
};
static_assert(ElementType<float>);

/// One stretch of consecutive positions of one head, in memory: what attention reads.
///
///   k  rows by row_size(key_dim),    k_stride Storage objects from row to row
///   v  rows by row_size(value_dim),  v_stride Storage objects from row to row
template <class T>
struct KvRun {
  const StorageOf<T>* k;
  const StorageOf<T>* v;
  Index rows;
  Index k_stride;
  Index v_stride;
  Pos first;  ///< position of the first row in its sequence
};

}  // namespace v0
}  // namespace kvc
