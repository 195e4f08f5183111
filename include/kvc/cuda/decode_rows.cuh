// DecodeRows: 16 T keys, or values, of one kv head in the registers of a warp. They are loaded from device memory in
// the order in which mma takes its first operand: no shared memory, no barrier, and each byte is read by one thread.
//
// A row is cut into chunks of 8 elements. A product of tiles sums over elements in any order, as long as both operands
// use the same one, and its rows may come in any order, too. With lane = 4 g + t:
//
//   keys    tile row r is position r. A lane holds chunks t, t + 4, ... of positions g and g + 8. Product 2 j + h sums
//           over elements 4 h .. 4 h + 3 of chunk j of all four t.
//   values  the operand is transposed: its rows are elements, its columns positions. A lane holds chunks g, g + 8, ...
//           of positions 2t, 2t + 1, 2t + 8, 2t + 9. In product i of chunk c of all eight g, row g is element i of that
//           of lane g, and row g + 8 is its element i + 4.
//
// Of rows of bytes a lane holds pairs of chunks that follow each other instead, 2t and 2t + 1, then these + 8 (of
// values 2g and 2g + 1, then these + 16), as far as all lanes have two: it loads both at once where rows begin at
// multiples of 16 bytes. Int8 rows with their scales between them do not, but are held alike, so that the bits are the
// same.
//
// Rows outside the range, and elements beyond the row, are zeros: memory that is not visible must have no influence,
// even if it holds NaN.
#pragma once

#include <cstddef>
#include <cstdint>

#include "kvc/core/types.hpp"
#include "kvc/cuda/chunk.cuh"
#include "kvc/cuda/device.cuh"
#include "kvc/cuda/format.hpp"

namespace kvc {
inline namespace v0 {
namespace cuda {
namespace detail {

/// Position i of a tile that a lane holds: two of the keys, four of the values.
[[nodiscard]] KVC_HOST_DEVICE constexpr int key_position(int lane, int i) noexcept { return lane / 4 + 8 * i; }
[[nodiscard]] KVC_HOST_DEVICE constexpr int value_position(int lane, int i) noexcept {
  return 2 * (lane % 4) + i % 2 + 8 * (i / 2);
}

/// Chunk j of a row that a lane holds, of keys; and of values, with so many of them in each lane.
[[nodiscard]] KVC_HOST_DEVICE constexpr int key_chunk(Format format, int lane, int j) noexcept {
  return code_bytes(format) == 1 ? 8 * (j / 2) + 2 * (lane % 4) + j % 2 : lane % 4 + 4 * j;
}
[[nodiscard]] KVC_HOST_DEVICE constexpr int value_chunk(Format format, int lane, int c, int columns) noexcept {
  return code_bytes(format) == 1 && (c | 1) < columns ? 16 * (c / 2) + 2 * (lane / 4) + c % 2 : lane / 4 + 8 * c;
}
/// Where chunk c of a query lies, so that lane t finds the one that belongs to chunk j of its keys at t + 4 j.
[[nodiscard]] KVC_HOST_DEVICE constexpr int query_place(Format format, int c) noexcept {
  return code_bytes(format) == 1 ? c % 8 / 2 + 4 * (c / 8 * 2 + c % 2) : c;
}

/// The visible positions [first, last) of a split, seen from a tile that begins at position `base` of it.
struct TileRange {
  int base;
  int first;
  int last;
  [[nodiscard]] KVC_HOST_DEVICE constexpr bool has(int position) const noexcept {
    return first <= base + position && base + position < last;
  }
  [[nodiscard]] KVC_HOST_DEVICE constexpr bool has_all(int positions) const noexcept {
    return first <= base && base + positions <= last;
  }
};

/// Keys or values. They differ in which positions of a tile, and which chunks of a row, a lane holds.
enum class RowKind { keys, values };

/// The rows of 16 T positions.
///
///   D          elements of a row, rounded up to 64, 128, 192 or 256
///   Streaming  no other block reads these rows
template <RowKind Kind, Format F, int D, int T, bool Streaming>
struct DecodeRows {
  static constexpr int positions = Kind == RowKind::keys ? 2 : 4;
  static constexpr int columns = Kind == RowKind::keys ? D / 32 : (D + 63) / 64;
  static constexpr bool pairs = code_bytes(F) == 1 && F != Format::int8;  // of chunks are loaded at once
  Chunk<F> chunks[T][positions][columns];
  float scales[T][2];  // of int8: of the positions whose scores, or weights, this lane holds

  /// Loads the rows. They lie offsets[position of the split] bytes behind `base`; `dim` elements each, a multiple of 8.
  ///
  ///   aligned       rows of bytes begin at multiples of 16 (but for int8)
  ///   plane_scales  of int8_planes: the scales of the split's positions, in shared memory
  __device__ __forceinline__ void load(const std::byte* base, const Index* offsets, TileRange range, int dim,
                                       bool aligned, const float* plane_scales) {
    if (range.has_all(16 * T) && dim == D && (!pairs || aligned)) {  // the common case: no branch per load
      load_some<true>(base, offsets, range, dim);
    } else {
      load_some<false>(base, offsets, range, dim);
    }
    if constexpr (F == Format::int8_planes) {
      const int lane = static_cast<int>(threadIdx.x % 32U);
#pragma unroll
      for (int tile = 0; tile < T; ++tile) {
#pragma unroll
        for (int i = 0; i < 2; ++i) {
          scales[tile][i] = plane_scales[range.base + 16 * tile + key_position(lane, i)];
        }
      }
    }
  }

 private:
  template <bool All>
  __device__ __forceinline__ void load_some(const std::byte* base, const Index* offsets, TileRange range, int dim) {
    const int lane = static_cast<int>(threadIdx.x % 32U);
#pragma unroll
    for (int tile = 0; tile < T; ++tile) {
#pragma unroll
      for (int i = 0; i < positions; ++i) {
        const int position = 16 * tile + (Kind == RowKind::keys ? key_position(lane, i) : value_position(lane, i));
        const bool visible = All || range.has(position);
        const std::byte* const row = base + offsets[range.base + position];
#pragma unroll
        for (int j = 0; j < columns; ++j) {
          const int chunk = Kind == RowKind::keys ? key_chunk(F, lane, j) : value_chunk(F, lane, j, columns);
          if constexpr (All && pairs) {
            if (j % 2 == 0 && j + 1 < columns) {
              chunks[tile][i][j].template load_both<Streaming>(row, chunk, chunks[tile][i][j + 1]);
            } else if (j % 2 == 0) {
              chunks[tile][i][j].template load<Streaming>(row, chunk);
            }
          } else if (All || (visible && 8 * chunk < dim)) {
            chunks[tile][i][j].template load<Streaming>(row, chunk);
          } else {
            chunks[tile][i][j].zero();
          }
        }
      }
      if constexpr (F == Format::int8) {
#pragma unroll
        for (int i = 0; i < 2; ++i) {
          const int position = 16 * tile + key_position(lane, i);
          scales[tile][i] =
              All || range.has(position)
                  ? device::load_readonly<float>(base + offsets[range.base + position] + scale_offset(dim))
                  : 0.0F;
        }
      }
    }
  }
};
template <Format F, int D, int T, bool Streaming>
using KeyRows = DecodeRows<RowKind::keys, F, D, T, Streaming>;
template <Format F, int D, int T, bool Streaming>
using ValueRows = DecodeRows<RowKind::values, F, D, T, Streaming>;

}  // namespace detail
}  // namespace cuda
}  // namespace v0
}  // namespace kvc
