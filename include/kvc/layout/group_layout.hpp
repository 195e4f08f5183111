// GroupLayout: where the rows of one layer group lie in a pool.
#pragma once

#include "kvc/core/types.hpp"
#include "kvc/layout/layout.hpp"

namespace kvc {
inline namespace v0 {

/// The layout of the rows of one layer group. Of a cache with one group it maps as L does. Where groups have a pool in
/// common, its blocks begin at `base`, are `stride` apart, and within each the rows of the group lie as L says. Offsets
/// and sizes count storage units; arguments are those of Layout. O(1), and does not throw.
template <Layout L>
class GroupLayout {
 public:
  /// A group that has the pool of `layout` for itself. `latent`: the value is the beginning of the key.
  GroupLayout(const L& layout, bool latent)
      : layout_(layout),
        latent_(latent),
        k_block_(layout.k(BlockId{1}, 0, 0, 0) - layout.k(BlockId{0}, 0, 0, 0)),
        v_block_(layout.v(BlockId{1}, 0, 0, 0) - layout.v(BlockId{0}, 0, 0, 0)) {}
  /// A group whose blocks, each laid out as the first block of `layout`, begin at `base` and are `stride` apart.
  GroupLayout(const L& layout, bool latent, Index base, Index stride)
      : layout_(layout), latent_(latent), base_(base), k_block_(stride), v_block_(stride) {}

  /// Whether the value is the beginning of the key.
  [[nodiscard]] bool latent() const noexcept { return latent_; }
  /// The layout within a block.
  [[nodiscard]] const L& layout() const noexcept { return layout_; }
  /// The extents that it was made for.
  [[nodiscard]] const PoolExtents& extents() const noexcept { return layout_.extents(); }

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

 private:
  L layout_;
  bool latent_;
  Index base_ = 0;
  Index k_block_;  // from one block to the next
  Index v_block_;
};

}  // namespace v0
}  // namespace kvc
