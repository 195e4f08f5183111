// layout::copy_rows: carries out the copies that a policy asks for.
#pragma once

#include <cstddef>
#include <span>

#include "kvc/core/types.hpp"
#include "kvc/layout/group_layout.hpp"
#include "kvc/layout/layout.hpp"
#include "kvc/memory/space.hpp"

namespace kvc {
inline namespace v0 {
namespace layout {

/// Copies rows of all layers and heads of a group from one place of a pool to another, one copy after the other.
///
///   pool      the memory of the pool, in `space`
///   layouts   one for each layer group
///   unit      bytes of a storage unit
///
/// Two calls of the space for each copy if it copies grids, four where scales lie in planes of their own. Throws what
/// the space throws.
template <Layout L, Space S>
void copy_rows(S& space, std::byte* pool, std::span<const GroupLayout<L>> layouts, Index unit,
               std::span<const RowCopy> copies) {
  // The keys, or the values:  offset(block, layer, head, slot), in storage units
  const auto copy_part = [&](const PoolExtents& extents, const RowCopy& copy, Index row_size, Index stride,
                             auto offset) {
    const Index to = offset(copy.to, 0, 0, copy.to_slot), from = offset(copy.from, 0, 0, copy.from_slot);
    const Index layer = offset(copy.to, 1, 0, copy.to_slot) - to, head = offset(copy.to, 0, 1, copy.to_slot) - to;
    kvc::copy_ranges(space, coalesced({pool + to * unit,
                                       pool + from * unit,
                                       row_size * unit,
                                       {extents.layers, extents.kv_heads, Index{copy.count}},
                                       {layer * unit, head * unit, stride * unit}}));
  };
  for (const RowCopy& copy : copies) {
    const GroupLayout<L>& layout = layouts[static_cast<std::size_t>(copy.group)];
    const PoolExtents& extents = layout.extents();
    copy_part(extents, copy, extents.key_row, layout.k_stride(),
              [&](BlockId block, Index l, Index head, Pos slot) { return layout.k(block, l, head, slot); });
    if (layout.latent()) {
      continue;
    }
    copy_part(extents, copy, extents.value_row, layout.v_stride(),
              [&](BlockId block, Index l, Index head, Pos slot) { return layout.v(block, l, head, slot); });
    if constexpr (GroupLayout<L>::has_scale_planes) {
      copy_part(extents, copy, extents.key_scales, layout.k_scale_stride(),
                [&](BlockId block, Index l, Index head, Pos slot) { return layout.k_scales(block, l, head, slot); });
      copy_part(extents, copy, extents.value_scales, layout.v_scale_stride(),
                [&](BlockId block, Index l, Index head, Pos slot) { return layout.v_scales(block, l, head, slot); });
    }
  }
}

}  // namespace layout
}  // namespace v0
}  // namespace kvc
