// Tiles of rows in shared memory: how they are filled from a paged pool, and how operands of mma are read
// from them.
//
// A tile is rows of D elements of 16 bits, without padding, in panels of 64 elements: all rows of a panel lie one after
// the other, 128 bytes each. A row of a panel is cut in 8 chunks of 8 elements (16 bytes), and chunk c of row r lies
// where chunk c ^ (r % 8) would: so eight lanes that read the same chunk of eight consecutive rows, as ldmatrix
// does, cover all 32 banks once, and so do eight lanes that write eight chunks of one row. It is also what Hopper calls
// a swizzle of 128 bytes.
#pragma once

#include <cstddef>
#include <cstdint>

#include "kvc/core/types.hpp"
#include "kvc/cuda/divisor.hpp"
#include "kvc/cuda/prefill_ptx.cuh"
#include "kvc/cuda/prefill_tile.cuh"

namespace kvc {
inline namespace v0 {
namespace cuda {
namespace detail {

using device::SharedAddress;

/// Bytes of a row of a panel.
inline constexpr int panel_row = 128;

/// Where a chunk of a row of a tile of `Rows` rows begins, in bytes.
template <int Rows>
[[nodiscard]] KVC_HOST_DEVICE constexpr int chunk_offset(int row, int chunk) noexcept {
  return (chunk / 8 * Rows + row) * panel_row + (chunk % 8 ^ row % 8) * 16;
}

/// Operands from a tile of `Rows` rows for the lanes of a warp. What differs between lanes is computed once; a tile of
/// 16 rows and 16 columns is then a constant distance away, but for the exclusive or.
template <int Rows>
class Fragments {
 public:
  /// Lane l brings a row of matrix l / 8. Of the four matrices of 16 x 16 elements, the second is that of the lower rows
  /// where `rows_first`, else that of the upper rows and the right columns.
  __device__ __forceinline__ Fragments(SharedAddress tile, bool rows_first) {
    const auto lane = static_cast<unsigned>(threadIdx.x % 32U);
    const unsigned second = lane / 8 % 2, third = lane / 16;
    const unsigned lower = rows_first ? second : third, right = rows_first ? third : second;
    row_ = tile + (lane % 8 + 8 * lower) * panel_row;
    chunk_ = (right ^ lane % 8) * 16;
  }
  /// The address for rows 16 i .. and columns 16 j ..
  [[nodiscard]] __device__ __forceinline__ SharedAddress at(int i, int j) const {
    const auto chunk = static_cast<unsigned>(2 * j), row = static_cast<unsigned>(16 * i);
    return row_ + (chunk / 8 * Rows + row) * panel_row + (chunk_ ^ chunk % 8 * 16);
  }

 private:
  SharedAddress row_;
  unsigned chunk_;
};

/// The block tables of one sequence. For shared memory, where registers are dear, and so without a constructor.
struct SequenceBlocks {
  const Divisor* block_tokens;
  const std::int32_t* blocks;
  const std::int32_t* first_slots;  ///< null where every block begins with slot 0

  [[nodiscard]] __device__ __forceinline__ RowLocation locate(Pos p) const {
    const auto nth = static_cast<std::int32_t>(block_tokens->quotient(static_cast<std::uint32_t>(p)));
    const std::int32_t first = first_slots == nullptr ? 0 : first_slots[nth];
    return {blocks[nth], first + p - nth * block_tokens->value()};
  }
};

/// Where the rows of a tile of keys, and of its values, lie in device memory; null where there is none.
struct RowAddresses {
  const std::byte* k[prefill_keys];
  const std::byte* v[prefill_keys];
};

/// The place of one row of a tile, looked up early and stored late, so that nobody waits for the tables.
class RowLookup {
 public:
  /// Row threadIdx.x of a tile that begins at position `base`, of a sequence of `length` positions.
  __device__ __forceinline__ void begin(const SequenceBlocks& blocks, Index base, Pos length) {
    const Index position = base + static_cast<Index>(threadIdx.x);
    there_ = threadIdx.x < static_cast<unsigned>(prefill_keys) && position < length;
    location_ = there_ ? blocks.locate(static_cast<Pos>(position)) : RowLocation{0, 0};
  }
  template <Format F>
  __device__ __forceinline__ void end(const LayerView<F>& kv, std::int32_t kv_head, RowAddresses& to) const {
    if (threadIdx.x < static_cast<unsigned>(prefill_keys)) {
      to.k[threadIdx.x] = there_ ? kv.k_row(location_.block, kv_head, location_.slot) : nullptr;
      to.v[threadIdx.x] = there_ ? kv.v_row(location_.block, kv_head, location_.slot) : nullptr;
    }
  }

 private:
  RowLocation location_;
  bool there_;
};

/// Begins to copy a tile of rows, by all threads of the block: row r from address_of(r). Zeros stand for rows that are
/// not there, and for elements from `dim` on; `valid` is any address in device memory, at a multiple of 16.
template <int D, int Rows, int Threads, class AddressOf>
__device__ __forceinline__ void copy_tile(SharedAddress tile, int dim, const std::byte* valid, AddressOf address_of) {
  constexpr int chunks = D / 8;
  static_assert(D % 64 == 0 && Rows * chunks % Threads == 0);
#pragma unroll 4  // more addresses at once would take registers that scores and outputs need
  for (int i = 0; i < Rows * chunks / Threads; ++i) {
    const int at = static_cast<int>(threadIdx.x) + i * Threads;
    const int row = at / chunks, chunk = at % chunks;
    const std::byte* const from = address_of(row);
    const bool there = from != nullptr && 8 * chunk < dim;
    device::copy_async(tile + static_cast<unsigned>(chunk_offset<Rows>(row, chunk)), there ? from + 16 * chunk : valid,
                       there);
  }
}

}  // namespace detail
}  // namespace cuda
}  // namespace v0
}  // namespace kvc
