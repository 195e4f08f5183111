// TmaTensor: the keys or the values of a layer as a tensor of which bulk copies (TMA) take boxes. Integers on the host,
// from which tensor_map.cuh makes a tensor map.
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

/// A tensor [block, head, slot, element], or [block, slot, head, element] if token_major. Arrays list the innermost
/// dimension first.
struct TmaTensor {
  Index base;                            ///< byte offset of the first element in the pool
  std::array<std::uint64_t, 4> extents;  ///< elements, slots, heads, blocks (or heads before slots)
  std::array<std::uint64_t, 3> strides;  ///< bytes, of dimensions 1 to 3
  std::array<std::uint32_t, 4> box;      ///< 64 elements of some slots of one head of one block
  bool token_major;                      ///< heads vary faster than slots

  friend bool operator==(const TmaTensor&, const TmaTensor&) = default;
};

/// The tensor of a layer's rows with `dim` 16-bit elements and boxes of `box` slots; empty if a tensor map cannot have
/// these strides or boxes.
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
