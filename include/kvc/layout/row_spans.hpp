// Row spans: the rows of a stored block in a pool, in the order in which a snapshot or a transfer has them.
//
// Within a layer, a stored block of n rows is its keys, then its values, in one of the two orders of layout/layout.hpp:
//
//   head-major    K [kv_heads, n, key_row]   V [kv_heads, n, value_row]
//   token-major   K [n, kv_heads, key_row]   V [n, kv_heads, value_row]
//
// A row is stored whole, its scales behind its codes, whether or not the pool has them in planes of their own.
// A full block between two pools of one layout and one block size is a single span.
#pragma once

#include <algorithm>
#include <span>
#include <string_view>

#include "kvc/core/types.hpp"
#include "kvc/layout/layout.hpp"

namespace kvc {
inline namespace v0 {
namespace layout {

/// The order of the rows of a stored block.
enum class RowOrder { head_major, token_major };

/// The order in which caches of a layout are saved: that of the layout if it is one of the two, else head-major.
template <Layout L>
[[nodiscard]] constexpr RowOrder row_order() noexcept {
  return std::string_view(L::name) == TokenMajor::name ? RowOrder::token_major : RowOrder::head_major;
}

/// The name of the layout that has this order.
[[nodiscard]] constexpr std::string_view to_text(RowOrder order) noexcept {
  return order == RowOrder::token_major ? TokenMajor::name : HeadMajor::name;
}

/// Consecutive slots of one block of a pool.
struct SlotSpan {
  BlockId block = no_block;
  Pos slot = 0;
  Pos count = 0;
};

/// Offsets and stride of the keys, or of the values, of one layer. Refers to the layout: a Layout or a GroupLayout.
template <class L>
class LayerRows {
 public:
  /// The keys of a layer, or its values.
  LayerRows(const L& layout, Index layer, bool keys) : layout_(&layout), layer_(layer), keys_(keys) {}
  /// Storage units of one row, without scales that lie in a plane of their own.
  [[nodiscard]] Index row_size() const noexcept {
    return keys_ ? layout_->extents().key_row : layout_->extents().value_row;
  }
  /// Storage units from the row of one slot to that of the next.
  [[nodiscard]] Index stride() const noexcept { return keys_ ? layout_->k_stride() : layout_->v_stride(); }
  /// Offset of a row, in storage units.
  [[nodiscard]] Index offset(BlockId block, Index head, Pos slot) const noexcept {
    return keys_ ? layout_->k(block, layer_, head, slot) : layout_->v(block, layer_, head, slot);
  }
  /// Storage units of the scales of a row that lie in a plane of their own.
  [[nodiscard]] Index scale_size() const noexcept {
    return keys_ ? layout_->extents().key_scales : layout_->extents().value_scales;
  }
  /// Offset of these, in storage units. Only for layouts that have such planes.
  [[nodiscard]] Index scale_offset(BlockId block, Index head, Pos slot) const noexcept {
    return keys_ ? layout_->k_scales(block, layer_, head, slot) : layout_->v_scales(block, layer_, head, slot);
  }
  /// f(offset, units) for the spans that a row consists of, in the order in which it is stored.
  template <class F>
  void for_each_part(BlockId block, Index head, Pos slot, F&& f) const {
    f(offset(block, head, slot), row_size());
    if constexpr (requires { layout_->k_scales(block, layer_, head, slot); }) {
      if (scale_size() > 0) {
        f(scale_offset(block, head, slot), scale_size());
      }
    }
  }
  /// Copies a row from one place of a pool to another.
  template <class U>
  void copy(U* pool, Index head, BlockId from, Pos from_slot, BlockId to, Pos to_slot) const {
    std::copy_n(pool + offset(from, head, from_slot), row_size(), pool + offset(to, head, to_slot));
    if constexpr (requires { layout_->k_scales(from, layer_, head, from_slot); }) {
      std::copy_n(pool + scale_offset(from, head, from_slot), scale_size(), pool + scale_offset(to, head, to_slot));
    }
  }
  /// Whether the rows of all heads of one token are adjacent, and those of the next token follow.
  [[nodiscard]] bool tokens_are_whole() const noexcept {
    const Index heads = layout_->extents().kv_heads;
    return stride() == heads * row_size() &&
           (heads == 1 || offset(BlockId{0}, 1, 0) - offset(BlockId{0}, 0, 0) == row_size());
  }

 private:
  const L* layout_;
  Index layer_;
  bool keys_;
};

namespace detail {
/// f(offset, units) for the codes and the scales of rows, row by row.
template <class L, class F>
void for_each_part_of_rows(const LayerRows<L>& rows, Index heads, RowOrder order, std::span<const SlotSpan> slots,
                           F& f) {
  const auto of_head = [&](const SlotSpan& s, Index head) {
    for (Pos i = 0; i < s.count; ++i) {
      rows.for_each_part(s.block, head, s.slot + i, f);
    }
  };
  if (order == RowOrder::head_major) {
    for (Index head = 0; head < heads; ++head) {
      for (const SlotSpan& s : slots) {
        of_head(s, head);
      }
    }
    return;
  }
  for (const SlotSpan& s : slots) {
    for (Pos i = 0; i < s.count; ++i) {
      for (Index head = 0; head < heads; ++head) {
        of_head({s.block, s.slot + i, 1}, head);
      }
    }
  }
}
}  // namespace detail

/// f(offset, units) for spans that are, in `order`, all rows of one layer in `slots`: the slots of one stored block.
/// Both count storage units. O(spans).
template <class L, class F>
void for_each_row_span(const L& layout, Index layer, RowOrder order, std::span<const SlotSpan> slots, F&& f) {
  const Index heads = layout.extents().kv_heads;
  for (const bool keys : {true, false}) {
    const LayerRows<L> part(layout, layer, keys);
    const Index row = part.row_size();
    const Index stride = part.stride();
    if (part.scale_size() > 0) {
      detail::for_each_part_of_rows(part, heads, order, slots, f);
      continue;
    }
    if (order == RowOrder::head_major) {
      for (Index head = 0; head < heads; ++head) {
        for (const SlotSpan& s : slots) {
          const Index at = part.offset(s.block, head, s.slot);
          if (stride == row) {
            f(at, s.count * row);
            continue;
          }
          for (Index i = 0; i < s.count; ++i) {
            f(at + i * stride, row);
          }
        }
      }
    } else {
      const bool whole = part.tokens_are_whole();
      for (const SlotSpan& s : slots) {
        if (whole) {
          f(part.offset(s.block, 0, s.slot), s.count * stride);
          continue;
        }
        for (Pos i = 0; i < s.count; ++i) {
          for (Index head = 0; head < heads; ++head) {
            f(part.offset(s.block, head, s.slot + i), row);
          }
        }
      }
    }
  }
}

}  // namespace layout
}  // namespace v0
}  // namespace kvc
