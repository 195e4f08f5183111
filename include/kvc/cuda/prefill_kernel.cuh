// The prefill kernel on tensor cores, for caches of f16 and bf16: flash attention over pages.
//
// A block of threads takes one tile of queries (prefill_tile.cuh) of one kv head, and goes through the tiles of 64 keys
// that any of its rows sees: those beyond the diagonal, and before the window, are never loaded. Tiles of keys begin at
// multiples of 64.
//
// Each warp has 32 rows (16 for heads beyond 128 numbers) and all 64 keys, so that an operand read from shared memory
// serves two products. The weights never leave registers: the result of one product is laid out as the operand of the
// next. While a tile of keys is multiplied its values are on their way, and while values are multiplied the next keys:
//
//   keys j arrived | copy values j | S = Q K^T | values j arrived | copy keys j + 1 | P = exp(S) | O += P V
//
// with a barrier where something arrives, which also says that all warps are done with what is overwritten next. Where
// the rows of tile j + 2 lie is looked up meanwhile.
//
// The order of operations on a query row follows from its position alone, and no operation of a row depends on the rows
// beside it. A tile that a row does not see changes no bit of it: its weights are exactly 0, and its maximum is not
// moved. Values that are not finite are kept from rows that do not see them.
#pragma once

#include <cmath>
#include <cstddef>
#include <cstdint>

#include "kvc/core/types.hpp"
#include "kvc/cuda/device.cuh"
#include "kvc/cuda/format.hpp"
#include "kvc/cuda/prefill_ptx.cuh"
#include "kvc/cuda/prefill_shared.cuh"
#include "kvc/cuda/prefill_state.cuh"
#include "kvc/cuda/prefill_tile.cuh"
#include "kvc/cuda/prefill_wgmma.cuh"

namespace kvc::inline v0::cuda {

namespace detail {

/// How the work on a tile of queries is shared out, by the numbers of a head. Warpgroups: products are those of four
/// warps together, of 16 rows each (prefill_wgmma.cuh).
template <int D, bool Warpgroups>
struct PrefillShape {
  static constexpr int tiles = D <= 128 && !Warpgroups ? 2 : 1;  ///< of 16 rows, for each warp
  static constexpr int warps = prefill_rows / (16 * tiles);
  static constexpr int threads = 32 * warps;
  static constexpr int blocks = D <= 128 ? 2 : 1;  ///< on a multiprocessor: what registers hold
  static constexpr int row_bytes = 2 * D;
  /// The tiles of queries, keys and values, and for warpgroups what it takes to begin at a multiple of 1024.
  static constexpr int shared_bytes = (prefill_rows + 2 * prefill_keys) * row_bytes + (Warpgroups ? 1024 - 128 : 0);
};

/// Divides the rows of a warp by their sums and writes them, through the part of the tile of queries that was theirs.
template <Format F, int D, int T>
__device__ __forceinline__ void store_rows(const PrefillArguments<F>& a, const QueryTile& tile, std::int32_t kv_head,
                                           std::int32_t first_head, const RowState<D, T>& state, std::byte* q_tile) {
  constexpr int chunks = D / 8;
  const int lane = static_cast<int>(threadIdx.x % 32U), warp = static_cast<int>(threadIdx.x / 32U);
  const int first_row = 16 * T * warp;
  __syncwarp();  // no lane reads queries any more
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
    const int at = lane + 32 * i, row = first_row + at / chunks, chunk = at % chunks;
    const TileRow of = row_of_tile(a.tiles, tile, first_head, row);
    if (tile.first <= of.position && of.position < tile.last && of.head < a.group && 8 * chunk < dim) {
      const Index out_row = Index{tile.row + (of.position - tile.start)} * a.query_heads + kv_head * a.group + of.head;
      *reinterpret_cast<uint4*>(a.out + 2 * (out_row * dim + 8 * chunk)) =
          *reinterpret_cast<const uint4*>(q_tile + chunk_offset<prefill_rows>(row, chunk));
    }
  }
}

}  // namespace detail

/// gridDim.x >= prefill_slots, gridDim.y == kv_heads * head_tiles; the threads and shared memory of PrefillShape.
///
///   F  format of the cache, the queries and the output: f16 or bf16
///   D  64, 128, 192 or 256: key_dim and value_dim rounded up, both multiples of 8
///
/// The scale must be positive: the largest score is looked for before it is applied.
template <Format F, int D, bool Warpgroups = false>
__global__ void __launch_bounds__(detail::PrefillShape<D, Warpgroups>::threads,
                                  detail::PrefillShape<D, Warpgroups>::blocks)
    prefill_kernel(const __grid_constant__ PrefillArguments<F> a) {
  static_assert(F == Format::f16 || F == Format::bf16);
  using Shape = detail::PrefillShape<D, Warpgroups>;
  constexpr int T = Shape::tiles;
  __shared__ detail::QueryTile shared_tile;
  __shared__ detail::SequencePages pages;
  __shared__ detail::RowAddresses rows[2];
  const int warp = static_cast<int>(threadIdx.x / 32U), lane = static_cast<int>(threadIdx.x % 32U);
  const auto kv_head = static_cast<std::int32_t>(blockIdx.y) / a.tiles.head_tiles;
  const std::int32_t first_head =
      (static_cast<std::int32_t>(blockIdx.y) - kv_head * a.tiles.head_tiles) * a.tiles.heads.value();

  // Which tile this block takes: at most one thread finds it.
  if (threadIdx.x == 0) {
    shared_tile.last = 0;
  }
  __syncthreads();
  for (auto b = static_cast<std::int32_t>(threadIdx.x); b < a.batch.header->size; b += Shape::threads) {
    const std::int32_t row = a.batch.q_indptr[b], end = a.batch.q_indptr[b + 1];
    const auto slots_before = [&](std::int32_t queries, std::int32_t sequences) {
      return a.tiles.positions.quotient(static_cast<std::uint32_t>(queries)) +
             2U * static_cast<std::uint32_t>(sequences);
    };
    const std::uint32_t first = slots_before(row, b), slot = blockIdx.x;
    detail::QueryTile tile;
    if (first <= slot && slot < slots_before(end, b + 1)) {
      const Pos length = a.batch.seq_lens[b];
      if (detail::tile_of_slot(a.tiles, static_cast<std::int32_t>(slot - first), length - (end - row), length, tile)) {
        tile.sequence = b;
        tile.row = row;
        const Index entry = a.batch.kv_indptr[b];
        pages = {&a.batch.header->page_tokens, a.batch.kv_indices + entry,
                 a.batch.header->has_page_slots ? a.batch.page_slots + entry : nullptr};
        shared_tile = tile;
      }
    }
  }
  __syncthreads();
  const detail::QueryTile& tile = shared_tile;  // where it takes no registers
  if (tile.last == 0) {
    return;
  }

  std::byte* const shared =
      device::dynamic_shared() + (Warpgroups ? -device::shared_address(device::dynamic_shared()) % 1024 : 0);
  std::byte* const v_shared = shared + (prefill_rows + prefill_keys) * Shape::row_bytes;
  const device::SharedAddress q_tile = device::shared_address(shared);
  const device::SharedAddress k_tile = q_tile + prefill_rows * Shape::row_bytes;
  const device::SharedAddress v_tile = k_tile + prefill_keys * Shape::row_bytes;
  const auto copy_keys = [&](const detail::RowAddresses& of) {
    detail::copy_tile<D, prefill_keys, Shape::threads>(k_tile, a.kv.key_dim, a.kv.pool, [&](int r) { return of.k[r]; });
    device::commit_copies();
  };
  const auto copy_values = [&](const detail::RowAddresses& of) {
    detail::copy_tile<D, prefill_keys, Shape::threads>(v_tile, a.kv.value_dim, a.kv.pool,
                                                       [&](int r) { return of.v[r]; });
    device::commit_copies();
  };
  const auto wait_copies = [] {
    device::wait_copies<0>();
    if constexpr (Warpgroups) {
      device::publish_copies();
    }
  };

  // Tiles of keys that any row sees. What a row sees begins and ends no earlier than what the row before sees.
  const auto visible = [&](Pos p) { return detail::visible_keys(p, tile.length, a.causal, a.window); };
  const auto visible_to = [&](int i, int half) {
    const int row = 16 * (T * warp + i) + 8 * half + lane / 4;
    return visible(detail::row_of_tile(a.tiles, tile, 0, row).position);
  };
  const std::int32_t first = visible(tile.first).first / prefill_keys;
  const std::int32_t last = (visible(tile.last - 1).last - 1) / prefill_keys + 1;
  // Whether a row of the tile, there or not, misses a key of tile j because of where it is.
  const auto is_edge = [&](std::int32_t j) {
    const Index key = Index{j} * prefill_keys, past = Index{tile.begin} + a.tiles.positions.value();
    return (a.causal && key + prefill_keys - 1 > tile.begin) || (a.window > 0 && past - 1 - key >= a.window);
  };

  detail::copy_tile<D, prefill_rows, Shape::threads>(q_tile, a.kv.key_dim, a.q, [&](int r) -> const std::byte* {
    const detail::TileRow of = detail::row_of_tile(a.tiles, tile, first_head, r);
    if (of.position < tile.first || of.position >= tile.last || of.head >= a.group) {
      return nullptr;
    }
    const Index row = Index{tile.row + (of.position - tile.start)} * a.query_heads + kv_head * a.group + of.head;
    return a.q + 2 * row * a.kv.key_dim;
  });
  detail::RowLookup lookup;
  lookup.begin(pages, Index{first} * prefill_keys, tile.length);
  lookup.end(a.kv, kv_head, rows[0]);
  lookup.begin(pages, (Index{first} + 1) * prefill_keys, tile.length);
  lookup.end(a.kv, kv_head, rows[1]);
  __syncthreads();
  copy_keys(rows[0]);

  detail::RowState<D, T> state;
#pragma unroll
  for (int i = 0; i < T; ++i) {
#pragma unroll
    for (int n = 0; n < D / 8; ++n) {
      state.o[i][n][0] = state.o[i][n][1] = state.o[i][n][2] = state.o[i][n][3] = 0.0F;
    }
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      state.m[i][half] = device::minus_infinity;
      state.l[i][half] = 0.0F;
    }
  }
  const detail::ScoreScale scale(a.scale, a.softcap);
  const detail::Fragments<prefill_rows> q(q_tile + static_cast<unsigned>(16 * T * warp * detail::panel_row), true);
  const detail::Fragments<prefill_keys> k(k_tile, false), v(v_tile, true);

#pragma unroll 1
  for (std::int32_t j = first; j < last; ++j) {
    const int buffer = (j - first) % 2;
    wait_copies();
    __syncthreads();  // keys j are there, and all are done with values j - 1
    copy_values(rows[buffer]);
    lookup.begin(pages, (Index{j} + 2) * prefill_keys, tile.length);

    float s[T][prefill_keys / 8][4];
    if constexpr (Warpgroups) {
      detail::multiply_keys_by_warpgroup<F, D>(q_tile + static_cast<unsigned>(warp / 4 * 64 * detail::panel_row),
                                               k_tile, s[0]);
    } else {
      detail::multiply_keys<F, D>(q, k, s);
    }
    wait_copies();
    __syncthreads();  // values j are there, and all are done with keys j
    if (j + 1 < last) {
      copy_keys(rows[1 - buffer]);
    }
    lookup.end(a.kv, kv_head, rows[buffer]);

    if (a.softcap > 0) {
#pragma unroll
      for (int i = 0; i < T; ++i) {
#pragma unroll
        for (int n = 0; n < prefill_keys / 8; ++n) {
#pragma unroll
          for (int e = 0; e < 4; ++e) {
            s[i][n][e] = scale.soften(s[i][n][e]);
          }
        }
      }
    }
    const Pos base = j * prefill_keys;
    if (is_edge(j) || Index{base} + prefill_keys > tile.length) {
      detail::soften<true>(s, state, scale, base, visible_to);
      const bool special = detail::multiply_values<F, true>(v, s, state);
      if (__any_sync(device::all_lanes, special)) {
        detail::add_special<F>(v_shared, state, base, visible_to);
      }
    } else {
      detail::soften<false>(s, state, scale, base, visible_to);
      if constexpr (Warpgroups) {
        detail::multiply_values_by_warpgroup<F, D>(v_tile, s[0], state.o[0]);
      } else {
        detail::multiply_values<F, false>(v, s, state);
      }
    }
  }
  detail::store_rows<F>(a, tile, kv_head, first_head, state, shared);
}

}  // namespace kvc::inline v0::cuda
