// PoolLayout: the rows of all layer groups in one pool.
#pragma once

#include <algorithm>
#include <cstddef>
#include <iterator>
#include <span>
#include <utility>
#include <vector>

#include "kvc/core/error.hpp"
#include "kvc/core/group_rule.hpp"
#include "kvc/core/types.hpp"
#include "kvc/element/element.hpp"
#include "kvc/layout/group_layout.hpp"
#include "kvc/layout/layer_groups.hpp"
#include "kvc/layout/layout.hpp"
#include "kvc/layout/scale_planes.hpp"
#include "kvc/layout/shape.hpp"
#include "kvc/layout/verify.hpp"
#include "kvc/policy/capabilities.hpp"

namespace kvc {
inline namespace v0 {

/// Storage units of the value of one head in a group: none if it is the beginning of the key.
template <ElementType T>
[[nodiscard]] Index value_row_size(const LayerGroup& group) {
  return group.latent ? 0 : Element<T>::row_size(group.shape.value_dim);
}
/// Bytes of one position in all layers of a group, stored as T.
template <ElementType T>
[[nodiscard]] Index row_bytes(const LayerGroup& group) {
  const Shape& shape = group.shape;
  return shape.layers * shape.kv_heads * (Element<T>::row_size(shape.key_dim) + value_row_size<T>(group)) *
         static_cast<Index>(sizeof(StorageOf<T>));
}

/// Where the rows of each layer group lie, and how large the pool is. With one group the pool is that of the layout L.
/// Where groups share blocks, a block has the bytes of the largest block of any group, rounded up to cache lines;
/// otherwise the pools of the groups follow one another.
template <ElementType T, Layout L>
class PoolLayout {
 public:
  /// Throws std::invalid_argument if the pool exceeds 2^60 units, InvariantError if rows of L overlap or lie outside.
  template <Policy P>
  PoolLayout(const LayerGroups& layers, const P& policy) {
    const std::span<const LayerGroup> groups = layers.groups();
    std::vector<L> own;
    for (std::size_t g = 0; g < groups.size(); ++g) {
      const Shape& shape = groups[g].shape;
      PoolExtents extents{policy.blocks(),
                          block_tokens(policy, g),
                          shape.layers,
                          shape.kv_heads,
                          Element<T>::row_size(shape.key_dim),
                          value_row_size<T>(groups[g])};
      if constexpr (ScalePlaneLayout<L>) {
        const Index key = code_size<T>(shape.key_dim);
        const Index value = groups[g].latent ? 0 : code_size<T>(shape.value_dim);
        extents.key_scales = std::exchange(extents.key_row, key) - key;
        extents.value_scales = std::exchange(extents.value_row, value) - value;
      }
      own.emplace_back(extents);
      layout::verify(own.back());
      require_whole_rows(own.back(), groups[g]);
    }
    if (own.size() == 1 && layers.states().empty()) {
      groups_.emplace_back(own[0], groups[0].latent);
      units_ = own[0].size();
      return;
    }
    constexpr Index most = Index{1} << 60;
    if constexpr (HoldsStates<P>) {
      for (std::size_t k = 0; k < layers.states().size() && Element<T>::row_size(1) > 0; ++k) {
        const Index bytes = LayerGroups::aligned_state_bytes(layers.states()[k]);
        const StateSizes sizes = policy.state_sizes(static_cast<Index>(k));
        states_.push_back({sizes.in_block, bytes, 0, lines(ceil_div(sizes.in_block * bytes, unit_bytes)), sizes.pool});
      }
    }
    if constexpr (shares_blocks<P>()) {
      Index stride = 0;
      for (L& layout : own) {
        PoolExtents block = layout.extents();  // of a pool of one block, which every block is laid out like
        block.blocks = 1;
        layout = L(block);
        stride = std::max(stride, lines(layout.size()));
      }
      for (const State& state : states_) {
        stride = std::max(stride, state.stride);
      }
      for (State& state : states_) {
        state.stride = stride;
      }
      require(stride <= most / policy.blocks(), "units in a block", stride, "at most 2^60 units in the pool");
      for (std::size_t g = 0; g < own.size(); ++g) {
        groups_.emplace_back(own[g], groups[g].latent, policy.blocks(), stride);
      }
      units_ = stride * policy.blocks();
    } else {
      for (std::size_t g = 0; g < own.size(); ++g) {
        require(own[g].size() <= most - units_, "units in the pool", units_, "at most 2^60");
        groups_.emplace_back(own[g], groups[g].latent, units_);
        units_ += lines(own[g].size());
      }
      for (State& state : states_) {
        require(state.pool == 0 || state.stride <= (most - units_) / state.pool, "units in the pool", units_,
                "at most 2^60");
        state.base = units_;
        units_ += state.stride * state.pool;
      }
    }
  }

  /// The offset of the state of a recurrent layer, in storage units. `blocks` are those of its kind. Throws
  /// std::invalid_argument for an element type that stores nothing, and for fewer blocks.
  [[nodiscard]] Index state(const StatePlace& place, std::span<const BlockId> blocks) const {
    require(!states_.empty(), "element type", Element<T>::name, "one that stores something, to read or write states");
    const State& state = states_[static_cast<std::size_t>(place.kind)];
    require(place.layer / state.in_block < std::ssize(blocks), "blocks.size()", blocks.size(),
            "those of all layers with states of this kind");
    const BlockId block = blocks[static_cast<std::size_t>(place.layer / state.in_block)];
    return state.base + to_index(block) * state.stride + place.layer % state.in_block * (state.bytes / unit_bytes);
  }
  /// Storage units in the pool.
  [[nodiscard]] Index size() const noexcept { return units_; }
  /// One for each group.
  [[nodiscard]] std::span<const GroupLayout<L>> groups() const noexcept { return groups_; }
  [[nodiscard]] const GroupLayout<L>& operator[](Index group) const noexcept {
    return groups_[static_cast<std::size_t>(group)];
  }

 private:
  /// Compressed rows lie in the slots of their tokens: these must follow one another, and be as large as one row.
  static void require_whole_rows(const L& layout, const LayerGroup& group) {
    const Index tokens = group.tokens_per_row, key = group.shape.key_dim, value = group.shape.value_dim;
    require(tokens == 1 || (Element<T>::row_size(key * tokens) == Element<T>::row_size(key) * tokens &&
                            Element<T>::row_size(value * tokens) == Element<T>::row_size(value) * tokens),
            "tokens_per_row", tokens,
            detail::concat({"1 for element type ", Element<T>::name, ": its rows have scales"}));
    require(tokens == 1 || (layout.k_stride() == Element<T>::row_size(key) &&
                            (group.latent || layout.v_stride() == Element<T>::row_size(value))),
            "tokens_per_row", tokens, "1 in a layout in which the slots of a head do not follow one another");
  }

  static constexpr Index unit_bytes = std::max<Index>(static_cast<Index>(sizeof(StorageOf<T>)), 1);
  struct State {
    Index in_block;
    Index bytes;   // from one layer to the next
    Index base;    // units
    Index stride;  // units from one block to the next
    Index pool;    // blocks of its own
  };
  /// Units, rounded up to whole cache lines.
  [[nodiscard]] static constexpr Index lines(Index units) noexcept {
    constexpr Index line = std::max<Index>(64 / static_cast<Index>(sizeof(StorageOf<T>)), 1);
    return ceil_div(units, line) * line;
  }
  /// Whether a free block of the policy P serves any group.
  template <class P>
  [[nodiscard]] static constexpr bool shares_blocks() noexcept {
    if constexpr (HoldsGroups<P>) {
      return P::shares_blocks;
    } else {
      return false;
    }
  }
  template <class P>
  [[nodiscard]] static Pos block_tokens(const P& policy, std::size_t group) {
    if constexpr (HoldsGroups<P>) {
      return policy.block_tokens(static_cast<Index>(group));
    } else {
      return policy.block_tokens();
    }
  }

  std::vector<GroupLayout<L>> groups_;
  std::vector<State> states_;  // [kinds]
  Index units_ = 0;
};

}  // namespace v0
}  // namespace kvc
