// The element types that every general test of attention runs over, and how far from exact arithmetic each may be.
#pragma once

#include <Eigen/Core>
#include <concepts>
#include <cstddef>
#include <cstring>
#include <vector>

#include "kvc/element/element.hpp"
#include "kvc/element/float16.hpp"
#include "kvc/element/mixed.hpp"
#include "kvc/element/quantized.hpp"

namespace kvc_test {

/// Largest difference between attention and the reference over the same stored rows, relative to the largest value.
/// Storing is no part of it: where a processor multiplies numbers of 16 or 8 bits, queries and weights are rounded to
/// such numbers too.
template <class T>
inline constexpr double attention_error = 2e-6;
template <>
inline constexpr double attention_error<Eigen::bfloat16> = 1e-2;
template <>
inline constexpr double attention_error<kvc::Int8> = 1e-3;
template <>
inline constexpr double attention_error<kvc::Fp8E4M3> = 1e-2;
template <>
inline constexpr double attention_error<kvc::Int4> = 3e-2;

/// A mixed element type, with a split that random dims lie on both sides of.
using Int8AndBf16 = kvc::Mixed<kvc::Int8, 64, Eigen::bfloat16>;

/// Storage objects whose bytes are all ones: whatever a row of them is read as, it is NaN throughout.
template <class T>
void fill_with_ones(kvc::StorageOf<T>* to, kvc::Index count) {
  std::memset(static_cast<void*>(to), 0xff, static_cast<std::size_t>(count) * sizeof(kvc::StorageOf<T>));
}

/// A row of `dim` numbers that are all `number`.
template <class T>
void fill_row(kvc::StorageOf<T>* row, kvc::Index dim, float number) {
  kvc::Element<T>::encode(std::vector<float>(static_cast<std::size_t>(dim), number).data(), dim, row);
}

}  // namespace kvc_test

// Under a sanitizer, one type of numbers and one of codes and scales: the others differ in arithmetic and in sizes.
#if defined(KVC_FLOAT_AND_INT8_ALONE)
#define KVC_OTHER_ELEMENTS kvc::Int8
#else
#define KVC_OTHER_ELEMENTS Eigen::half, Eigen::bfloat16, kvc::Int8, kvc::Fp8E4M3, kvc::Int4
#endif
#define KVC_ALL_ELEMENTS float, KVC_OTHER_ELEMENTS

namespace kvc_test {

#if defined(KVC_FLOAT_AND_INT8_ALONE)
using TypeWithPlanes = kvc::Int8;
#else
/// The element type whose scales have planes of their own where tests have one such cache.
using TypeWithPlanes = kvc::Int4;
#endif

}  // namespace kvc_test
