// Parts of both tensor-core prefill kernels outside of their products: they find a tile of queries, load the
// queries, determine which keys they see, and store the outputs.
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
#include "kvc/cuda/view.cuh"

namespace kvc {
inline namespace v0 {
namespace cuda {
namespace detail {

/// The kv head of a thread block's tile, and the first of the query heads within the GQA group.
struct BlockHeads {
  std::int32_t kv_head;
  std::int32_t first;
};

/// A tile of queries and the block table of its sequence. Lives in shared memory to save registers.
struct BlockTile {
  QueryTile queries;  ///< queries.last == 0: no tile is left
  SequenceBlocks blocks;
  BlockHeads heads;
  std::uint32_t index;  ///< while it is looked for
};

/// The keys that a row of a tile at position p sees.
template <Format F>
[[nodiscard]] __device__ __forceinline__ VisibleKeys visible_to(const PrefillArguments<F>& a, const QueryTile& tile,
                                                                Pos p) {
  return visible_keys(a, p, p >= tile.next_chunk ? tile.next_chunk : tile.chunk, tile.length);
}

/// Indices of tiles before those of sequence `sequences`, with so many query rows before it: see prefill_tile.cuh.
template <Format F>
[[nodiscard]] __device__ __forceinline__ std::uint32_t tiles_before(const PrefillArguments<F>& a, std::int32_t queries,
                                                                    std::int32_t sequences) {
  return a.tiles.positions.quotient(static_cast<std::uint32_t>(queries)) + 2U * static_cast<std::uint32_t>(sequences);
}

/// Looks for tile `slot` of a pair of heads, if there is one: `threads` threads call it, this one as number `thread`.
/// One of them finds it.
template <Format F>
__device__ __forceinline__ void find_tile(const PrefillArguments<F>& a, std::uint32_t slot, unsigned thread,
                                          unsigned threads, BlockTile& found) {
  for (auto b = static_cast<std::int32_t>(thread); b < a.batch.header->size; b += static_cast<std::int32_t>(threads)) {
    const std::int32_t row = a.batch.q_indptr[b], end = a.batch.q_indptr[b + 1];
    const std::uint32_t first = tiles_before(a, row, b);
    QueryTile tile;
    if (first <= slot && slot < tiles_before(a, end, b + 1)) {
      const Pos length = a.batch.seq_lens[b], rows_end = a.cross ? end - row : length;
      if (tile_at(a.tiles, static_cast<std::int32_t>(slot - first), rows_end - (end - row), rows_end, tile)) {
        tile.sequence = b;
        tile.row = row;
        tile.length = length;
        tile.chunk = chunk_of(a, tile.begin);
        tile.next_chunk = a.chunk.value() < max_pos - tile.chunk ? tile.chunk + a.chunk.value() : max_pos;
        const Index entry = a.batch.kv_indptr[b];
        const EntryGap gap = a.batch.gap(*a.batch.header, b);
        const Pos lowest = visible_to(a, tile, tile.first).first;
        found.blocks = {&a.batch.header->block_tokens, a.batch.kv_indices + entry,
                        a.batch.header->has_first_slots ? a.batch.first_slots + entry : nullptr, lowest,
                        lowest - gap.without(lowest)};
        found.queries = tile;
      }
    }
  }
}

/// Takes the next tile of the batch for this thread block; false if none is left, which ends its work. The blocks of a
/// launch share the tiles in the order of their indices, so those of one kv head are computed at the same time, and its
/// keys and values stay in the second-level cache. The last block that finds none leaves the queue as it was.
///
///   thread, threads   this thread, of those that call this together
///   sync              their barrier
template <Format F, class Sync>
[[nodiscard]] __device__ __forceinline__ bool take_tile(const PrefillArguments<F>& a, unsigned thread, unsigned threads,
                                                        BlockTile& found, Sync sync) {
  TileQueue& queue = *a.batch.tile_queue;
  const std::uint32_t slots = tiles_before(a, a.batch.header->queries, a.batch.header->size);
  if (thread == 0) {
    found.queries.last = 0;
  }
  do {
    if (thread == 0) {
      found.index = device::add_atomically(queue.next, 1);
    }
    sync();
    const std::uint32_t index = found.index;
    if (index >= slots * static_cast<std::uint32_t>(a.kv.kv_heads * a.tiles.head_tiles)) {
      if (thread == 0) {
        device::fence_device();
        if (device::add_atomically(queue.blocks, 1) + 1 == gridDim.x * gridDim.y) {
          queue = {};
        }
      }
      return false;
    }
    const auto pair = static_cast<std::int32_t>(index / slots), kv_head = pair / a.tiles.head_tiles;
    if (thread == 0) {
      found.heads = {kv_head, (pair - kv_head * a.tiles.head_tiles) * a.tiles.heads.value()};
    }
    find_tile(a, index - static_cast<std::uint32_t>(pair) * slots, thread, threads, found);
    sync();
  } while (found.queries.last == 0);
  return true;
}

/// Index of row `r` of a tile in [queries, query_heads], or -1 if the tile has no such row.
template <Format F>
[[nodiscard]] __device__ __forceinline__ Index query_row(const PrefillArguments<F>& a, const QueryTile& tile,
                                                         const BlockHeads& heads, int r) {
  const TileRow of = tile_row(a.tiles, tile, heads.first, r);
  if (of.position < tile.first || of.position >= tile.last || of.head >= a.group) {
    return -1;
  }
  return Index{tile.row + (of.position - tile.start)} * a.query_heads + heads.kv_head * a.group + of.head;
}

/// Starts to copy the queries of a tile to shared memory, by the first `Threads` threads of the block.
template <int D, int Threads, Format F>
__device__ __forceinline__ void copy_queries(SharedAddress to, const PrefillArguments<F>& a, const QueryTile& tile,
                                             const BlockHeads& heads) {
  copy_tile<D, prefill_rows, Threads>(to, a.kv.key_dim, a.q, [&](int r) -> const std::byte* {
    const Index row = query_row(a, tile, heads, r);
    return row < 0 ? nullptr : a.q + 2 * row * a.kv.key_dim;
  });
}

/// Tiles of keys [first, last) that some row of the tile of queries sees. Both ends of what a row sees grow with its
/// position, so the first and the last row decide.
struct KeyTiles {
  std::int32_t first;
  std::int32_t last;
};
template <int Keys, Format F>
[[nodiscard]] __device__ __forceinline__ KeyTiles key_tiles(const PrefillArguments<F>& a, const QueryTile& tile) {
  return {visible_to(a, tile, tile.first).first / Keys, (visible_to(a, tile, tile.last - 1).last - 1) / Keys + 1};
}
/// Whether some row of the tile, present or not, does not see all keys of tile j. Independent of the batch.
template <int Keys, Format F>
[[nodiscard]] __device__ __forceinline__ bool needs_mask(const PrefillArguments<F>& a, const QueryTile& tile,
                                                         std::int32_t j) {
  const Index key = Index{j} * Keys, past = Index{tile.begin} + a.tiles.positions.value();
  const VisibleKeys last = visible_to(a, tile, static_cast<Pos>(past < max_pos ? past - 1 : max_pos - 1));
  return (a.causal && key + Keys - 1 > tile.begin) || last.first > key || key + Keys > tile.length;
}

/// The sum of a row's weights, from the columns of its four lanes.
[[nodiscard]] __device__ __forceinline__ float row_sum(float l) {
  l = device::add(l, __shfl_xor_sync(device::all_lanes, l, 1));
  return device::add(l, __shfl_xor_sync(device::all_lanes, l, 2));
}

/// Stores the log-sum-exp of a warp's rows.
template <Format F, int D, int T>
__device__ __forceinline__ void store_lse(const PrefillArguments<F>& a, const QueryTile& tile, const BlockHeads& heads,
                                          const RowState<D, T>& state) {
  const int lane = static_cast<int>(threadIdx.x % 32U), warp = static_cast<int>(threadIdx.x / 32U);
  const float exponent = ScoreScale(a.scale, a.softcap).exponent;
#pragma unroll
  for (int i = 0; i < T; ++i) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const float l = row_sum(state.l[i][half]);
      const Index row = query_row(a, tile, heads, 16 * (T * warp + i) + 8 * half + lane / 4);
      if (row >= 0 && lane % 4 == 0) {
        a.lse[row] = device::log_sum_exp(device::multiply(state.m[i][half], exponent), l);
      }
    }
  }
}

/// Normalises the rows of a warp and stores them, and their log-sum-exp if it is wanted. They pass through the part of
/// the tile of queries that held the warp's rows, which no thread may read any more. Q: format of the output.
template <Format Q, Format F, int D, int T>
__device__ __forceinline__ void store_rows(const PrefillArguments<F>& a, const QueryTile& tile, const BlockHeads& heads,
                                           const RowState<D, T>& state, std::byte* q_tile) {
  constexpr int chunks = D / 8;
  const int lane = static_cast<int>(threadIdx.x % 32U), warp = static_cast<int>(threadIdx.x / 32U);
  const int first_row = 16 * T * warp;
  const float exponent = ScoreScale(a.scale, a.softcap).exponent;
  if (a.lse != nullptr) {
    store_lse(a, tile, heads, state);
  }
#pragma unroll
  for (int i = 0; i < T; ++i) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      float l = row_sum(state.l[i][half]);
      const int row = first_row + 16 * i + 8 * half + lane / 4;
      if (a.sinks != nullptr) {
        const std::int32_t head = tile_row(a.tiles, tile, heads.first, row).head;
        l = head < a.group ? device::sink_divisor(a.sinks, heads.kv_head * a.group + head,
                                                  device::multiply(state.m[i][half], exponent), l)
                           : l;
      }
      const float factor = l == 0.0F ? 0.0F : device::divide(1.0F, l);
#pragma unroll
      for (int n = 0; n < chunks; ++n) {
        // Adding 0 turns a -0 that came from underflow into 0, as one more tile of keys would have.
        const float low = device::add(device::multiply(state.o[i][n][2 * half], factor), 0.0F);
        const float high = device::add(device::multiply(state.o[i][n][2 * half + 1], factor), 0.0F);
        *reinterpret_cast<std::uint32_t*>(q_tile + chunk_offset<prefill_rows>(row, n) + 4 * (lane % 4)) =
            device::pack<Q>(low, high);
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
