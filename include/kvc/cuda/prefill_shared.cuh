// Tiles of rows in shared memory: copying them from the blocks of a pool, and loading operands of mma from them.
//
// A tile holds rows of D 16-bit elements without padding, in panels of 64 elements: the rows of a panel follow each
// other, 128 bytes each. A row of a panel has 8 chunks of 8 elements (16 bytes); chunk c of row r is stored at the
// place of chunk c ^ (r % 8). So eight lanes that read the same chunk of eight consecutive rows, as ldmatrix does, hit
// all 32 banks once, and so do eight lanes that write eight chunks of one row. Hopper calls this layout a swizzle of
// 128 bytes.
#pragma once

#include <cstddef>
#include <cstdint>

#include "kvc/core/types.hpp"
#include "kvc/cuda/chunk.cuh"
#include "kvc/cuda/divisor.hpp"
#include "kvc/cuda/prefill_ptx.cuh"
#include "kvc/cuda/prefill_tile.cuh"
#include "kvc/cuda/view.cuh"

namespace kvc {
inline namespace v0 {
namespace cuda {
namespace detail {

using device::SharedAddress;

/// Bytes of a row within a panel.
inline constexpr int panel_row = 128;

/// Byte offset of a chunk of a row in a tile of `Rows` rows.
template <int Rows>
[[nodiscard]] KVC_HOST_DEVICE constexpr int chunk_offset(int row, int chunk) noexcept {
  return (chunk / 8 * Rows + row) * panel_row + (chunk % 8 ^ row % 8) * 16;
}

/// Addresses of mma operands in a tile of `Rows` rows. The part that differs between lanes is computed once; the
/// address of a tile of 16 rows and 16 columns then differs by a constant, apart from the exclusive or.
template <int Rows>
class Fragments {
 public:
  /// Lane l passes the address of a row of matrix l / 8. Of the four 8 x 8 matrices of 16 x 16 elements, the second is
  /// the lower left one if `rows_first`, else the upper right one.
  __device__ __forceinline__ Fragments(SharedAddress tile, bool rows_first) {
    const auto lane = static_cast<unsigned>(threadIdx.x % 32U);
    const unsigned second = lane / 8 % 2, third = lane / 16;
    const unsigned lower = rows_first ? second : third, right = rows_first ? third : second;
    row_ = tile + (lane % 8 + 8 * lower) * panel_row;
    chunk_ = (right ^ lane % 8) * 16;
  }
  /// The address for rows from 16 i and columns from 16 j.
  [[nodiscard]] __device__ __forceinline__ SharedAddress at(int i, int j) const { return at(i, j / 4, j % 4); }
  /// The same, with the columns from 16 j of a panel on.
  [[nodiscard]] __device__ __forceinline__ SharedAddress at(int i, int panel, int j) const {
    return row_ + static_cast<unsigned>(panel * Rows + 16 * i) * panel_row + (chunk_ ^ static_cast<unsigned>(32 * j));
  }

 private:
  SharedAddress row_;
  unsigned chunk_;
};

/// The block table of one sequence. Lives in shared memory to save registers, and so has no constructor.
struct SequenceBlocks {
  const Divisor* block_tokens;
  const std::int32_t* blocks;
  const std::int32_t* first_slots;  ///< null if every entry begins with slot 0
  Pos lowest;                       ///< no row of the tile sees a position before this one, which may have no entry
  Pos gone;                         ///< positions before `lowest` without entries

  /// The place of position p >= lowest.
  [[nodiscard]] __device__ __forceinline__ RowLocation locate(Pos p) const {
    p -= gone;
    const auto nth = static_cast<std::int32_t>(block_tokens->quotient(static_cast<std::uint32_t>(p)));
    const std::int32_t first = first_slots == nullptr ? 0 : first_slots[nth];
    return {blocks[nth], first + p - nth * block_tokens->value()};
  }
};

/// Device addresses of the rows of a tile of keys and of its values, and of their scales where these are in planes;
/// null for rows that do not exist.
template <Format F>
struct RowAddresses {
  static constexpr int in_planes = F == Format::int8_planes ? prefill_keys : 1;
  const std::byte* k[prefill_keys];
  const std::byte* v[prefill_keys];
  const std::byte* k_scales[in_planes];
  const std::byte* v_scales[in_planes];
};

/// The location of one row of a tile. It is looked up early and stored late, to hide the latency of the block table.
class RowLookup {
 public:
  /// Looks up row threadIdx.x of the tile that begins at position `base` of a sequence of `length` positions. Positions
  /// that no row sees have none.
  __device__ __forceinline__ void begin(const SequenceBlocks& blocks, Index base, Pos length) {
    const Index position = base + static_cast<Index>(threadIdx.x);
    there_ = threadIdx.x < static_cast<unsigned>(prefill_keys) && position >= blocks.lowest && position < length;
    location_ = there_ ? blocks.locate(static_cast<Pos>(position)) : RowLocation{0, 0};
  }
  template <Format F>
  __device__ __forceinline__ void end(const LayerView<F>& kv, std::int32_t kv_head, RowAddresses<F>& to) const {
    if (threadIdx.x < static_cast<unsigned>(prefill_keys)) {
      to.k[threadIdx.x] = there_ ? kv.k_row(location_.block, kv_head, location_.slot) : nullptr;
      to.v[threadIdx.x] = there_ ? kv.v_row(location_.block, kv_head, location_.slot) : nullptr;
      if constexpr (F == Format::int8_planes) {
        to.k_scales[threadIdx.x] = there_ ? kv.k_scale(location_.block, kv_head, location_.slot) : nullptr;
        to.v_scales[threadIdx.x] = there_ ? kv.v_scale(location_.block, kv_head, location_.slot) : nullptr;
      }
    }
  }

 private:
  RowLocation location_;
  bool there_;
};

/// All threads of the block start to copy a tile of rows, row r from address_of(r). Rows that do not exist, and
/// elements from `dim` on, become zeros. `valid` is any valid device address, at a multiple of 16.
template <int D, int Rows, int Threads, class AddressOf>
__device__ __forceinline__ void copy_tile(SharedAddress tile, int dim, const std::byte* valid, AddressOf address_of) {
  constexpr int chunks = D / 8;
  static_assert(D % 64 == 0 && Rows * chunks % Threads == 0);
#pragma unroll 4  // more addresses at once would take registers from scores and outputs
  for (int i = 0; i < Rows * chunks / Threads; ++i) {
    const int at = static_cast<int>(threadIdx.x) + i * Threads;
    const int row = at / chunks, chunk = at % chunks;
    const std::byte* const from = address_of(row);
    const bool there = from != nullptr && 8 * chunk < dim;
    device::copy_async(tile + static_cast<unsigned>(chunk_offset<Rows>(row, chunk)), there ? from + 16 * chunk : valid,
                       there);
  }
}

/// A tile of rows of bytes on its way to shared memory, in the registers of all threads of the block. It is loaded
/// early and stored late, to hide the latency of device memory.
template <Format F, int D, int Rows, int Threads>
class CodeTile {
  static constexpr int chunks = D / 8, each = Rows * chunks / Threads;
  static_assert(code_bytes(F) == 1 && Rows * chunks % Threads == 0 && Rows <= Threads);

 public:
  /// Loads row r from address_of(r); of int8_planes its scale from plane_scales[r]. Rows that do not exist, and
  /// elements from `dim` on, become zeros.
  template <class AddressOf>
  __device__ __forceinline__ void load(int dim, AddressOf address_of, const std::byte* const* plane_scales) {
#pragma unroll
    for (int i = 0; i < each; ++i) {
      const int at = static_cast<int>(threadIdx.x) + i * Threads, chunk = at % chunks;
      const std::byte* const from = address_of(at / chunks);
      if (from != nullptr && 8 * chunk < dim) {
        codes_[i].template load<false>(from, chunk);
      } else {
        codes_[i].zero();
      }
    }
    if constexpr (is_int8(F)) {
      if (threadIdx.x < static_cast<unsigned>(Rows)) {
        const std::byte* from = address_of(static_cast<int>(threadIdx.x));
        if (from != nullptr) {
          from = F == Format::int8 ? from + scale_offset(dim) : plane_scales[threadIdx.x];
        }
        scale_ = from == nullptr ? 0.0F : device::load_readonly<float>(from);
      }
    }
  }
  /// Stores the rows in format C, exactly, and the scales of Int8 rows to `scales`.
  template <Format C>
  __device__ __forceinline__ void store(std::byte* tile, float* scales) const {
#pragma unroll
    for (int i = 0; i < each; ++i) {
      const int at = static_cast<int>(threadIdx.x) + i * Threads;
      std::uint32_t pairs[4];
      codes_[i].template widen<C>(pairs);
      *reinterpret_cast<uint4*>(tile + chunk_offset<Rows>(at / chunks, at % chunks)) = {pairs[0], pairs[1], pairs[2],
                                                                                        pairs[3]};
    }
    if constexpr (is_int8(F)) {
      if (threadIdx.x < static_cast<unsigned>(Rows)) {
        scales[threadIdx.x] = scale_;
      }
    }
  }

 private:
  Chunk<F> codes_[each];
  float scale_ = 0.0F;
};

}  // namespace detail
}  // namespace cuda
}  // namespace v0
}  // namespace kvc
