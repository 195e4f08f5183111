// layout::verify: whether a layout keeps the laws of its contract.
#pragma once

#include <algorithm>
#include <array>
#include <cstddef>
#include <string>
#include <string_view>
#include <vector>

#include "kvc/core/error.hpp"
#include "kvc/core/types.hpp"
#include "kvc/layout/layout.hpp"
#include "kvc/layout/scale_planes.hpp"

namespace kvc {
inline namespace v0 {
namespace layout {

/// Which rows verify looks at.
enum class Sample {
  corners,  ///< the first two and the last of all blocks, layers, heads and slots: O(1)
  all       ///< every row: O(n log n) for n rows, and the memory of a table of them
};

namespace detail {

/// One row of the pool: a key or a value, or the scales of one where they lie elsewhere.
struct Row {
  Index offset;
  Index size;
  bool key;
  bool scales;
  Index block, layer, head, slot;
};

[[nodiscard]] KVC_COLD inline std::string name_of(const Row& row) {
  return kvc::detail::concat({row.scales ? "the scales of " : "", row.key ? "the key" : "the value", " of block ",
                              std::to_string(row.block), ", layer ", std::to_string(row.layer), ", head ",
                              std::to_string(row.head), ", slot ", std::to_string(row.slot)});
}

[[noreturn]] KVC_COLD inline void throw_broken(std::string_view layout, std::string_view law) {
  throw_error(InvariantError(kvc::detail::concat({"kvc: layout ", layout, ": ", law})));
}

/// Indices of [0, count) that a sample takes.
[[nodiscard]] inline std::vector<Index> sampled(Index count, Sample sample) {
  std::vector<Index> indices;
  for (Index i = 0; i < count; i = sample == Sample::all || i == 0 ? i + 1 : std::max(i + 1, count - 1)) {
    indices.push_back(i);
  }
  return indices;
}

inline void verify_disjoint(std::string_view layout, std::vector<Row>& rows) {
  std::erase_if(rows, [](const Row& row) { return row.size == 0; });
  std::sort(rows.begin(), rows.end(), [](const Row& a, const Row& b) { return a.offset < b.offset; });
  for (std::size_t i = 1; i < rows.size(); ++i) {
    if (rows[i].offset < rows[i - 1].offset + rows[i - 1].size) {
      throw_broken(layout, kvc::detail::concat({name_of(rows[i - 1]), " overlaps ", name_of(rows[i])}));
    }
  }
}

}  // namespace detail

/// Throws InvariantError, which names a row and the law that it breaks, unless the sampled rows keep the laws of
/// Layout.
template <Layout L>
void verify(const L& layout, Sample sample = Sample::corners) {
  const PoolExtents& extents = layout.extents();
  const auto fail = [](std::string_view law) { detail::throw_broken(L::name, law); };
  if (layout.size() < 0 || layout.size() > Index{1} << 60 || layout.block_size() < 0) {
    fail("its size is negative, or more than 2^60");
  }
  const std::vector<Index> blocks = detail::sampled(extents.blocks, sample),
                           layers = detail::sampled(extents.layers, sample),
                           heads = detail::sampled(extents.kv_heads, sample),
                           slots = detail::sampled(extents.block_tokens, sample);
  std::vector<detail::Row> rows;
  // The keys, or the values, or their scales:  offset(block, layer, head, slot)
  const auto add_rows = [&](bool key, bool scales, Index size, Index slot_stride, auto offset_of) {
    const auto offset = [&](Index block, Index layer, Index head, Index slot) {
      return offset_of(static_cast<BlockId>(block), layer, head, static_cast<Pos>(slot));
    };
    const Index base = offset(0, 0, 0, 0);
    const Index block_stride = offset(1, 0, 0, 0) - base, layer_stride = offset(0, 1, 0, 0) - base,
                head_stride = offset(0, 0, 1, 0) - base;
    for (const Index block : blocks) {
      for (const Index layer : layers) {
        for (const Index head : heads) {
          for (const Index slot : slots) {
            const detail::Row row{offset(block, layer, head, slot), size, key, scales, block, layer, head, slot};
            if (row.offset < 0 || row.offset + size > layout.size()) {
              fail(kvc::detail::concat({detail::name_of(row), " lies outside of the pool"}));
            }
            if (row.offset !=
                base + block * block_stride + layer * layer_stride + head * head_stride + slot * slot_stride) {
              fail(kvc::detail::concat({detail::name_of(row), " is not at an even distance from the rows before it"}));
            }
            rows.push_back(row);
          }
        }
      }
    }
  };
  add_rows(true, false, extents.key_row, layout.k_stride(), [&](auto... at) { return layout.k(at...); });
  add_rows(false, false, extents.value_row, layout.v_stride(), [&](auto... at) { return layout.v(at...); });
  if constexpr (ScalePlaneLayout<L>) {
    add_rows(true, true, extents.key_scales, layout.k_scale_stride(),
             [&](auto... at) { return layout.k_scales(at...); });
    add_rows(false, true, extents.value_scales, layout.v_scale_stride(),
             [&](auto... at) { return layout.v_scales(at...); });
  }
  detail::verify_disjoint(L::name, rows);
}

}  // namespace layout
}  // namespace v0
}  // namespace kvc
