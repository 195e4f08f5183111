// TmaTensor: the keys or the values of a layer as a tensor of which bulk copies take boxes. Integers on the host; what a
// tensor map is made of (tensor_map.cuh).
#pragma once

#include <array>
#include <cstdint>
#include <optional>
#include <utility>

#include "kvc/core/types.hpp"
#include "kvc/cuda/view.cuh"

namespace kvc {
inline namespace v0 {
namespace cuda {
namespace detail {

/// A tensor of four dimensions, the innermost first: elements, slots and heads in the order of their strides, blocks.
struct TmaTensor {
  Index base;                            ///< of the first element, from the beginning of the pool, in bytes
  std::array<std::uint64_t, 4> extents;  ///< in elements, slots or heads, blocks
  std::array<std::uint64_t, 3> strides;  ///< of dimensions 1 to 3, in bytes
  std::array<std::uint32_t, 4> box;      ///< 64 elements of so many slots of one head of one block
  bool token_major;                      ///< heads before slots
};

/// Rows of `dim` elements of 16 bits; empty if a tensor cannot have these strides, or there are no boxes.
[[nodiscard]] inline std::optional<TmaTensor> tma_tensor(const RowStrides& rows, int dim, Index heads, Index blocks,
                                                         Index block_slots, std::int32_t box) {
  const bool token_major = rows.slot > rows.head && heads > 1;
  const auto as_unsigned = [](Index x) { return static_cast<std::uint64_t>(x); };
  TmaTensor out{rows.base,
                {as_unsigned(dim), as_unsigned(block_slots), as_unsigned(heads), as_unsigned(blocks)},
                {as_unsigned(rows.slot), as_unsigned(rows.head), as_unsigned(rows.block)},
                {64, static_cast<std::uint32_t>(box), 1, 1},
                token_major};
  if (token_major) {
    std::swap(out.extents[1], out.extents[2]);
    std::swap(out.strides[0], out.strides[1]);
    std::swap(out.box[1], out.box[2]);
  }
  bool possible = box >= 8 && box <= 256 && rows.base % 16 == 0;
  for (const std::uint64_t stride : out.strides) {
    possible = possible && stride % 16 == 0 && stride < std::uint64_t{1} << 40;
  }
  for (const std::uint64_t extent : out.extents) {
    possible = possible && extent >= 1 && extent <= std::uint64_t{1} << 31;
  }
  if (!possible) {
    return std::nullopt;
  }
  return out;
}

}  // namespace detail
}  // namespace cuda
}  // namespace v0
}  // namespace kvc
