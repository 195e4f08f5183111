// LayerMajor: a pool for each layer, as kernels that take the tensors of one layer expect.
#pragma once

#include <concepts>
#include <string>
#include <string_view>

#include "kvc/core/error.hpp"
#include "kvc/core/types.hpp"
#include "kvc/fwd.hpp"
#include "kvc/layout/layout.hpp"

namespace kvc {
inline namespace v0 {

/// All blocks of one layer, then the next layer. The keys of a layer are one tensor, and its values behind them
/// another:
///
///   LayerMajor<TokenMajor>  "NHD"   K [blocks, block_tokens, kv_heads, key_row]
///                                   V [blocks, block_tokens, kv_heads, value_row]
///   LayerMajor<HeadMajor>   "HND"   K [blocks, kv_heads, block_tokens, key_row]
///                                   V [blocks, kv_heads, block_tokens, value_row]
///
/// LayerMajor<> is the first. Order is the order of heads and slots within a block. The blocks of a layer are
/// contiguous; the layers of a block are not, so that a transfer of one block has two spans for each layer. Where layer
/// groups share the blocks of a pool, a layer cannot have a pool of its own: there each block is laid out like a pool
/// of one block.
template <class Order>
class LayerMajor {
  static_assert(std::same_as<Order, HeadMajor> || std::same_as<Order, TokenMajor>,
                "kvc: the order of a block of LayerMajor is HeadMajor (HND) or TokenMajor (NHD)");

 public:
  static constexpr std::string_view name = std::same_as<Order, HeadMajor> ? "layer-major-hnd" : "layer-major-nhd";

  /// Throws std::invalid_argument if the pool exceeds 2^60 units.
  constexpr explicit LayerMajor(const PoolExtents& extents)
      : extents_(extents),
        keys_(of_one_layer(extents, extents.key_row)),
        values_(of_one_layer(extents, extents.value_row)) {
    constexpr Index most = Index{1} << 60;
    if (extents.layers > 0 && layer_size() > most / extents.layers) {
      throw_invalid("pool size", std::to_string(extents.layers) + " x " + std::to_string(layer_size()),
                    "at most 2^60 units");
    }
  }

  /// The extents that it was made for.
  [[nodiscard]] constexpr const PoolExtents& extents() const noexcept { return extents_; }
  /// Storage units in the pool.
  [[nodiscard]] constexpr Index size() const noexcept { return extents_.layers * layer_size(); }
  /// Storage units of one block, in all layers.
  [[nodiscard]] constexpr Index block_size() const noexcept {
    return extents_.layers * (keys_.block_size() + values_.block_size());
  }
  /// Storage units of one layer: keys, then values.
  [[nodiscard]] constexpr Index layer_size() const noexcept { return keys_.size() + values_.size(); }
  /// Offset of the row of a key, in storage units. O(1).
  [[nodiscard]] constexpr Index k(BlockId block, Index layer, Index head, Pos slot) const noexcept {
    return layer * layer_size() + keys_.k(block, 0, head, slot);
  }
  /// Offset of the row of a value, in storage units. O(1).
  [[nodiscard]] constexpr Index v(BlockId block, Index layer, Index head, Pos slot) const noexcept {
    return layer * layer_size() + keys_.size() + values_.k(block, 0, head, slot);
  }
  /// Storage units from the key of one slot to that of the next.
  [[nodiscard]] constexpr Index k_stride() const noexcept { return keys_.k_stride(); }
  /// Storage units from the value of one slot to that of the next.
  [[nodiscard]] constexpr Index v_stride() const noexcept { return values_.k_stride(); }

 private:
  /// One tensor: a layer of keys alone.
  static constexpr Order of_one_layer(const PoolExtents& extents, Index row) {
    return Order(PoolExtents{extents.blocks, extents.block_tokens, 1, extents.kv_heads, row, 0});
  }

  PoolExtents extents_;
  Order keys_;
  Order values_;
};
static_assert(Layout<LayerMajor<TokenMajor>> && Layout<LayerMajor<HeadMajor>>);

}  // namespace v0
}  // namespace kvc
