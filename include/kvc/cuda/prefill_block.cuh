// What a block of either prefill kernel on tensor cores does around its products: it finds its tile of queries, brings
// the queries to shared memory, knows which keys they see, and takes the outputs away.
#pragma once

#include <cstddef>
#include <cstdint>

#include "kvc/core/types.hpp"
#include "kvc/cuda/device.cuh"
#include "kvc/cuda/format.hpp"
#include "kvc/cuda/prefill_ptx.cuh"
#include "kvc/cuda/prefill_shared.cuh"
#include "kvc/cuda/prefill_state.cuh"
#include "kvc/cuda/prefill_tile.cuh"

namespace kvc {
inline namespace v0 {
namespace cuda {
namespace detail {

/// A tile of queries, and the block tables of its sequence: for shared memory, where they take no registers.
struct BlockTile {
  QueryTile queries;
  SequenceBlocks blocks;
};

/// Which tile this block takes. By all of its threads; false if there is none.
template <Format F>
[[nodiscard]] __device__ __forceinline__ bool find_tile(const PrefillArguments<F>& a, BlockTile& found) {
  if (threadIdx.x == 0) {
    found.queries.last = 0;
  }
  __syncthreads();
  for (auto b = static_cast<std::int32_t>(threadIdx.x); b < a.batch.header->size;
       b += static_cast<std::int32_t>(blockDim.x)) {  // at most one thread finds it
    const std::int32_t row = a.batch.q_indptr[b], end = a.batch.q_indptr[b + 1];
    const auto tiles_before = [&](std::int32_t queries, std::int32_t sequences) {
      return a.tiles.positions.quotient(static_cast<std::uint32_t>(queries)) +
             2U * static_cast<std::uint32_t>(sequences);
    };
    const std::uint32_t first = tiles_before(row, b), slot = blockIdx.x;
    QueryTile tile;
    if (first <= slot && slot < tiles_before(end, b + 1)) {
      const Pos length = a.batch.seq_lens[b];
      if (tile_at(a.tiles, static_cast<std::int32_t>(slot - first), length - (end - row), length, tile)) {
        tile.sequence = b;
        tile.row = row;
        const Index entry = a.batch.kv_indptr[b];
        found.blocks = {&a.batch.header->block_tokens, a.batch.kv_indices + entry,
                        a.batch.header->has_first_slots ? a.batch.first_slots + entry : nullptr};
        found.queries = tile;
      }
    }
  }
  __syncthreads();
  return found.queries.last != 0;
}

/// The heads of this block: its kv head, and the first of its query heads within the group.
struct BlockHeads {
  std::int32_t kv_head;
  std::int32_t first;
};
template <Format F>
[[nodiscard]] __device__ __forceinline__ BlockHeads heads_of_block(const PrefillArguments<F>& a) {
  const auto y = static_cast<std::int32_t>(blockIdx.y), kv_head = y / a.tiles.head_tiles;
  return {kv_head, (y - kv_head * a.tiles.head_tiles) * a.tiles.heads.value()};
}

/// Row `r` of a tile in [queries, query_heads], or -1 if there is none.
template <Format F>
[[nodiscard]] __device__ __forceinline__ Index query_row(const PrefillArguments<F>& a, const QueryTile& tile,
                                                         const BlockHeads& heads, int r) {
  const TileRow of = tile_row(a.tiles, tile, heads.first, r);
  if (of.position < tile.first || of.position >= tile.last || of.head >= a.group) {
    return -1;
  }
  return Index{tile.row + (of.position - tile.start)} * a.query_heads + heads.kv_head * a.group + of.head;
}

/// Begins to copy the queries of a tile, by `Threads` threads from the first on.
template <int D, int Threads, Format F>
__device__ __forceinline__ void copy_queries(SharedAddress to, const PrefillArguments<F>& a, const QueryTile& tile,
                                             const BlockHeads& heads) {
  copy_tile<D, prefill_rows, Threads>(to, a.kv.key_dim, a.q, [&](int r) -> const std::byte* {
    const Index row = query_row(a, tile, heads, r);
    return row < 0 ? nullptr : a.q + 2 * row * a.kv.key_dim;
  });
}

/// The keys that a row at position p sees.
template <Format F>
[[nodiscard]] __device__ __forceinline__ VisibleKeys visible_to(const PrefillArguments<F>& a, const QueryTile& tile,
                                                                Pos p) {
  return visible_keys(p, tile.length, a.causal, a.window);
}

/// Tiles of keys [first, last) that any row sees. What a row sees begins and ends no earlier than what the row before
/// sees.
struct KeyTiles {
  std::int32_t first;
  std::int32_t last;
};
template <int Keys, Format F>
[[nodiscard]] __device__ __forceinline__ KeyTiles key_tiles(const PrefillArguments<F>& a, const QueryTile& tile) {
  return {visible_to(a, tile, tile.first).first / Keys, (visible_to(a, tile, tile.last - 1).last - 1) / Keys + 1};
}
/// Whether a row of the tile, there or not, does not see all keys of tile j. So it does not depend on the batch.
template <int Keys, Format F>
[[nodiscard]] __device__ __forceinline__ bool needs_mask(const PrefillArguments<F>& a, const QueryTile& tile,
                                                         std::int32_t j) {
  const Index key = Index{j} * Keys, past = Index{tile.begin} + a.tiles.positions.value();
  return (a.causal && key + Keys - 1 > tile.begin) || (a.window > 0 && past - 1 - key >= a.window) ||
         key + Keys > tile.length;
}

/// Divides the rows of a warp by their sums and writes them, through the part of the tile of queries that was theirs,
/// which nobody may read any more.
template <Format F, int D, int T>
__device__ __forceinline__ void store_rows(const PrefillArguments<F>& a, const QueryTile& tile, const BlockHeads& heads,
                                           const RowState<D, T>& state, std::byte* q_tile) {
  constexpr int chunks = D / 8;
  const int lane = static_cast<int>(threadIdx.x % 32U), warp = static_cast<int>(threadIdx.x / 32U);
  const int first_row = 16 * T * warp;
#pragma unroll
  for (int i = 0; i < T; ++i) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      float l = state.l[i][half];
      l = device::add(l, __shfl_xor_sync(device::all_lanes, l, 1));
      l = device::add(l, __shfl_xor_sync(device::all_lanes, l, 2));
      const float factor = l == 0.0F ? 0.0F : device::divide(1.0F, l);
      const int row = first_row + 16 * i + 8 * half + lane / 4;
#pragma unroll
      for (int n = 0; n < chunks; ++n) {
        // Adding 0 makes a -0 that came of tiny numbers one with 0, as a further tile would have made it.
        const float low = device::add(device::multiply(state.o[i][n][2 * half], factor), 0.0F);
        const float high = device::add(device::multiply(state.o[i][n][2 * half + 1], factor), 0.0F);
        *reinterpret_cast<std::uint32_t*>(q_tile + chunk_offset<prefill_rows>(row, n) + 4 * (lane % 4)) =
            device::pack<F>(low, high);
      }
    }
  }
  __syncwarp();
  const int dim = a.kv.value_dim;
#pragma unroll 4
  for (int i = 0; i < 16 * T * chunks / 32; ++i) {
    const int at = lane + 32 * i, r = first_row + at / chunks, chunk = at % chunks;
    const Index row = query_row(a, tile, heads, r);
    if (row >= 0 && 8 * chunk < dim) {
      *reinterpret_cast<uint4*>(a.out + 2 * (row * dim + 8 * chunk)) =
          *reinterpret_cast<const uint4*>(q_tile + chunk_offset<prefill_rows>(r, chunk));
    }
  }
}

}  // namespace detail
}  // namespace cuda
}  // namespace v0
}  // namespace kvc
