// The description of a cache: what a snapshot and an offer of a transfer say about the rows that follow.
#pragma once

#include <cstdint>

#include "kvc/core/types.hpp"
#include "kvc/element/element.hpp"
#include "kvc/layout/row_spans.hpp"
#include "kvc/layout/shape.hpp"
#include "kvc/snapshot/format.hpp"

namespace kvc {
inline namespace v0 {
namespace snapshot {

/// The description of a cache: shape, bytes of a row, block size and names. A longer policy name is cut to 23
/// characters.
template <class Cache>
[[nodiscard]] format::DescriptionRecord describe(const Cache& cache) {
  using T = typename Cache::Element;
  static_assert(kvc::Element<T>::name.size() < format::Name{}.size(),
                "the name of an element type is too long to store");
  const Shape& shape = cache.shape();
  const auto count = [](Index i) { return static_cast<std::uint64_t>(i); };
  const auto row_bytes = [&](Index dim) {
    return count(kvc::Element<T>::row_size(dim) * static_cast<Index>(sizeof(StorageOf<T>)));
  };
  return {count(shape.layers),
          count(shape.kv_heads),
          count(shape.key_dim),
          count(shape.value_dim),
          row_bytes(shape.key_dim),
          row_bytes(shape.value_dim),
          static_cast<std::uint32_t>(cache.policy().block_tokens()),
          0,
          format::to_name(kvc::Element<T>::name),
          format::to_name(layout::to_text(layout::row_order<typename Cache::LayoutType>())),
          format::to_name(Cache::PolicyType::name)};
}

}  // namespace snapshot
}  // namespace v0
}  // namespace kvc
