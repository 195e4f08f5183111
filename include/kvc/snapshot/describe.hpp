// The description of a cache: what a snapshot and an offer of a transfer say about the rows that follow.
#pragma once

#include <cstdint>
#include <vector>

#include "kvc/core/types.hpp"
#include "kvc/element/element.hpp"
#include "kvc/layout/layer_groups.hpp"
#include "kvc/layout/row_spans.hpp"
#include "kvc/layout/shape.hpp"
#include "kvc/snapshot/format.hpp"

namespace kvc {
inline namespace v0 {
namespace snapshot {

namespace detail {

/// Bytes of a row of `dim` elements of type T.
template <class T>
[[nodiscard]] constexpr Index bytes_of_row(Index dim) {
  return Element<T>::row_size(dim) * static_cast<Index>(sizeof(StorageOf<T>));
}

/// The groups of a cache, with rows of `row_bytes(dim)` bytes.
template <class F>
[[nodiscard]] std::vector<format::GroupRecord> describe_groups(const LayerGroups& layers, F row_bytes) {
  std::vector<format::GroupRecord> groups;
  const auto count = [](Index i) { return static_cast<std::uint64_t>(i); };
  for (const LayerGroup& g : layers.groups()) {
    groups.push_back({static_cast<std::uint32_t>(g.shape.layers), static_cast<std::uint32_t>(g.tokens_per_row - 1),
                      count(g.shape.kv_heads), count(g.shape.key_dim), count(g.shape.value_dim),
                      count(row_bytes(g.shape.key_dim)), count(g.latent ? 0 : row_bytes(g.shape.value_dim)),
                      g.retained.window, g.retained.chunk, g.retained.kept, g.cross_rows});
  }
  return groups;
}
/// Where the rows of the layers of a model are, or their states.
[[nodiscard]] inline std::vector<format::LayerRecord> describe_layers(const LayerGroups& layers) {
  std::vector<format::LayerRecord> records;
  for (Index i = 0; i < layers.layers(); ++i) {
    if (layers.is_recurrent(i)) {
      const StatePlace place = layers.state_place(i);
      records.push_back({static_cast<std::int32_t>(-1 - place.kind), static_cast<std::int32_t>(place.layer), 0});
      continue;
    }
    const LayerPlace place = layers.place(i);
    records.push_back(
        {static_cast<std::int32_t>(place.group), static_cast<std::int32_t>(place.layer), place.is_owner ? 0U : 1U});
  }
  return records;
}

}  // namespace detail

/// The description of a cache: shape of the first layer group, bytes of a row, block size and names. Of recurrent
/// layers alone the extents are 1. A longer policy name is cut to 23 characters.
template <class Cache>
[[nodiscard]] format::DescriptionRecord describe(const Cache& cache) {
  using T = typename Cache::Element;
  static_assert(kvc::Element<T>::name.size() < format::Name{}.size(),
                "the name of an element type is too long to store");
  const Shape shape = cache.layers().groups().empty() ? Shape{1, 1, 1, 1} : cache.shape();
  const auto count = [](Index i) { return static_cast<std::uint64_t>(i); };
  const auto row_bytes = [&](Index dim) { return count(detail::bytes_of_row<T>(dim)); };
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
