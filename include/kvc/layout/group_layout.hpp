// GroupLayout: where the rows of one layer group lie in a pool.
#pragma once

#include "kvc/core/types.hpp"
#include "kvc/layout/layout.hpp"
#include "kvc/layout/scale_planes.hpp"

namespace kvc {
inline namespace v0 {

/// The layout of the rows of one layer group. Of a cache with one group it maps as L does. Where groups have a pool in
/// common, its blocks are evenly apart, and within each the rows of the group lie as in a pool of one block. Offsets
/// and sizes count storage units; arguments are those of Layout. O(1), and does not throw.
template <Layout L>
class GroupLayout {
 public:
  /// Whether rows may have their scales elsewhere: at k_scales and v_scales, where element types have some.
  static constexpr bool has_scale_planes = ScalePlaneLayout<L>;

  /// A group that has a pool of its own, laid out by `layout`, which begins at `base`. `latent`: the value is the
  /// beginning of the key.
  GroupLayout(const L& layout, bool latent, Index base = 0)
      : layout_(layout),
        extents_(layout.extents()),
        latent_(latent),
        base_(base),
        k_block_(layout.k(BlockId{1}, 0, 0, 0) - layout.k(BlockId{0}, 0, 0, 0)),
        v_block_(layout.v(BlockId{1}, 0, 0, 0) - layout.v(BlockId{0}, 0, 0, 0)) {
    if constexpr (has_scale_planes) {
      k_scale_block_ = layout.k_scales(BlockId{1}, 0, 0, 0) - layout.k_scales(BlockId{0}, 0, 0, 0);
      v_scale_block_ = layout.v_scales(BlockId{1}, 0, 0, 0) - layout.v_scales(BlockId{0}, 0, 0, 0);
    }
  }
  /// A group with blocks of a pool that others have in common: `blocks` of them, `stride` apart. `block` is the layout
  /// of a pool of one block: each block is laid out like it, whether or not L keeps the rows of a block together.
  GroupLayout(const L& block, bool latent, Index blocks, Index stride)
      : layout_(block),
        extents_(block.extents()),
        latent_(latent),
        k_block_(stride),
        v_block_(stride),
        k_scale_block_(stride),
        v_scale_block_(stride) {
    extents_.blocks = blocks;
  }

  /// Whether the value is the beginning of the key.
  [[nodiscard]] bool latent() const noexcept { return latent_; }
  /// The layout within a block.
  [[nodiscard]] const L& layout() const noexcept { return layout_; }
  /// The rows of the group, and the blocks that may hold them.
  [[nodiscard]] const PoolExtents& extents() const noexcept { return extents_; }

  /// The offset of a key.
  [[nodiscard]] Index k(BlockId block, Index layer, Index head, Pos slot) const noexcept {
    return base_ + to_index(block) * k_block_ + layout_.k(BlockId{0}, layer, head, slot);
  }
  /// The offset of a value.
  [[nodiscard]] Index v(BlockId block, Index layer, Index head, Pos slot) const noexcept {
    return latent_ ? k(block, layer, head, slot)
                   : base_ + to_index(block) * v_block_ + layout_.v(BlockId{0}, layer, head, slot);
  }
  /// From the key of one slot to that of the next.
  [[nodiscard]] Index k_stride() const noexcept { return layout_.k_stride(); }
  /// From the value of one slot to that of the next.
  [[nodiscard]] Index v_stride() const noexcept { return latent_ ? layout_.k_stride() : layout_.v_stride(); }

  /// The offset of the scales of a key.
  [[nodiscard]] Index k_scales(BlockId block, Index layer, Index head, Pos slot) const noexcept
    requires has_scale_planes
  {
    return base_ + to_index(block) * k_scale_block_ + layout_.k_scales(BlockId{0}, layer, head, slot);
  }
  /// The offset of the scales of a value.
  [[nodiscard]] Index v_scales(BlockId block, Index layer, Index head, Pos slot) const noexcept
    requires has_scale_planes
  {
    return base_ + to_index(block) * v_scale_block_ + layout_.v_scales(BlockId{0}, layer, head, slot);
  }
  /// From the scales of the key of one slot to those of the next.
  [[nodiscard]] Index k_scale_stride() const noexcept
    requires has_scale_planes
  {
    return layout_.k_scale_stride();
  }
  /// From the scales of the value of one slot to those of the next.
  [[nodiscard]] Index v_scale_stride() const noexcept
    requires has_scale_planes
  {
    return layout_.v_scale_stride();
  }

 private:
  L layout_;
  PoolExtents extents_;
  bool latent_;
  Index base_ = 0;
  Index k_block_;  // from one block to the next
  Index v_block_;
  Index k_scale_block_ = 0;  // of a ScalePlaneLayout
  Index v_scale_block_ = 0;
};

}  // namespace v0
}  // namespace kvc
