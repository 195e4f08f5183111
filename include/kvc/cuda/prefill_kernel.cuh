// The prefill kernel for tensor cores by warps (mma.sync), for caches of f16, bf16, fp8 and int8: flash attention over
// blocks.
//
// There are as many thread blocks as the device holds, and each takes one tile of queries (prefill_tile.cuh) of one kv
// head after the other. For each it goes through the tiles of 64 keys that some of its rows see. Tiles beyond the
// diagonal or before the window are not loaded. Tiles of keys begin at multiples of 64.
//
// Each warp has 32 rows (16 beyond dim 128) and all 64 keys, so each operand that it reads from shared memory serves
// two products. Weights stay in registers: the result of one product has the layout that the next one takes as its
// operand. The values of a tile are copied while its keys are multiplied, and the next keys while the values are
// multiplied:
//
//   keys j arrived | copy values j | S = Q K^T | values j arrived | copy keys j + 1 | P = exp(S) | O += P V
//
// There is a barrier at each arrival; after it no warp reads what the next copy overwrites. Meanwhile the block looks
// up where the rows of tile j + 2 lie.
//
// Rows of bytes become rows of 16-bit elements on their way to shared memory, which is exact: registers hold the next
// keys while keys are multiplied, and the next values while values are. The scales of Int8 rows multiply scores and
// weights in float.
//
// The order of operations on a query row depends on its position only, and no operation mixes rows. A tile that a row
// does not see changes no bit of it: its weights are exactly 0, and its maximum does not move. Values that are not
// finite do not reach rows that do not see them.
#pragma once

#include <cstddef>
#include <cstdint>
#include <type_traits>

#include "kvc/core/types.hpp"
#include "kvc/cuda/device.cuh"
#include "kvc/cuda/format.hpp"
#include "kvc/cuda/prefill_block.cuh"
#include "kvc/cuda/prefill_ptx.cuh"
#include "kvc/cuda/prefill_shared.cuh"
#include "kvc/cuda/prefill_state.cuh"
#include "kvc/cuda/prefill_tile.cuh"

namespace kvc {
inline namespace v0 {
namespace cuda {

namespace detail {

/// Sizes of tiles and thread blocks for head dim D. Where rows are widened, registers hold them for a while.
template <int D, Format F>
struct PrefillTraits {
  static constexpr bool widens = code_bytes(F) == 1;
  static constexpr int tiles = D <= 128 && !widens ? 2 : 1;  ///< tiles of 16 rows per warp
  static constexpr int warps = prefill_rows / (16 * tiles);
  static constexpr int threads = 32 * warps;
  /// Thread blocks per multiprocessor, limited by registers.
  static constexpr int blocks = D <= (!widens ? 128 : is_int8(F) ? 0 : 64) ? 2 : 1;
  static constexpr int row_bytes = 2 * D;
  /// The tiles of queries, of keys and of values.
  static constexpr int shared_bytes = (prefill_rows + 2 * prefill_keys) * row_bytes;
};

/// Whether the kernel takes caches of format F with queries of format Q.
[[nodiscard]] KVC_HOST_DEVICE constexpr bool has_prefill_kernel(Format F, Format Q) noexcept {
  return code_bytes(Q) == 2 && (F == Q || code_bytes(F) == 1);
}
/// The format in which weights and values are multiplied. Codes of one byte are exact in both 16-bit formats, but
/// weights that include the scale of an Int8 row may exceed the range of f16.
[[nodiscard]] KVC_HOST_DEVICE constexpr Format prefill_value_format(Format F, Format Q) noexcept {
  return is_int8(F) ? Format::bf16 : Q;
}

}  // namespace detail

/// Any grid works: the blocks share the tiles. Threads and shared memory as in PrefillTraits.
///
///   F  format of the cache: Q, fp8_e4m3 or int8
///   Q  format of the queries and the output: f16 or bf16
///   D  64, 128, 192 or 256: key_dim and value_dim, both multiples of 8, rounded up
///
/// Requires a positive scale: the kernel takes the maximum of scores before it scales them.
template <Format F, Format Q, int D>
__global__ void __launch_bounds__(detail::PrefillTraits<D, F>::threads, detail::PrefillTraits<D, F>::blocks)
    prefill_kernel(const __grid_constant__ PrefillArguments<F> a) {
  static_assert(detail::has_prefill_kernel(F, Q));
  constexpr Format V = detail::prefill_value_format(F, Q);
  using Traits = detail::PrefillTraits<D, F>;
  constexpr bool widens = Traits::widens;
  constexpr int T = Traits::tiles;
  __shared__ detail::BlockTile found;
  __shared__ detail::RowAddresses<F> rows[2];
  // What each row of the tile sees. With wider heads registers would spill for it.
  __shared__ detail::VisibleKeys visible[D == 64 ? prefill_rows : 1];
  __shared__ float scales[2][is_int8(F) ? prefill_keys : 1];  // of keys, of values
  for (;;) {
    if (!detail::take_tile(a, threadIdx.x, blockDim.x, found, [] { __syncthreads(); })) {
      return;
    }
    const detail::QueryTile& tile = found.queries;
    const detail::BlockHeads heads = found.heads;
    const int warp = static_cast<int>(threadIdx.x / 32U), lane = static_cast<int>(threadIdx.x % 32U);

    std::byte* const shared = device::dynamic_shared();
    std::byte* const k_shared = shared + prefill_rows * Traits::row_bytes;
    std::byte* const v_shared = k_shared + prefill_keys * Traits::row_bytes;
    const device::SharedAddress q_tile = device::shared_address(shared);
    const device::SharedAddress k_tile = q_tile + prefill_rows * Traits::row_bytes;
    const device::SharedAddress v_tile = k_tile + prefill_keys * Traits::row_bytes;
    std::conditional_t<widens, detail::CodeTile<widens ? F : Format::int8, D, prefill_keys, Traits::threads>, int>
        codes;
    // Starts to copy keys, or values, to shared memory, or to registers where they are widened.
    const auto copy_keys = [&](const detail::RowAddresses<F>& of) {
      const auto row = [&](int r) { return of.k[r]; };
      if constexpr (widens) {
        codes.load(a.kv.key_dim, row, of.k_scales);
      } else {
        detail::copy_tile<D, prefill_keys, Traits::threads>(k_tile, a.kv.key_dim, a.kv.pool, row);
        device::commit_copies();
      }
    };
    const auto copy_values = [&](const detail::RowAddresses<F>& of) {
      const auto row = [&](int r) { return of.v[r]; };
      if constexpr (widens) {
        codes.load(a.kv.value_dim, row, of.v_scales);
      } else {
        detail::copy_tile<D, prefill_keys, Traits::threads>(v_tile, a.kv.value_dim, a.kv.pool, row);
        device::commit_copies();
      }
    };
    const auto keys_of_row = [&](int row) {
      return detail::visible_to(a, tile, detail::tile_row(a.tiles, tile, 0, row).position);
    };
    if constexpr (D == 64) {
      if (threadIdx.x < static_cast<unsigned>(prefill_rows)) {
        visible[threadIdx.x] = keys_of_row(static_cast<int>(threadIdx.x));
      }
    }
    const auto visible_to = [&](int i, int half) {
      const int row = 16 * (T * warp + i) + 8 * half + lane / 4;
      if constexpr (D == 64) {
        return visible[row];
      } else {
        return keys_of_row(row);
      }
    };
    const auto [first, last] = detail::key_tiles<prefill_keys>(a, tile);

    detail::copy_queries<D, Traits::threads>(q_tile, a, tile, heads);
    detail::RowLookup lookup;
    lookup.begin(found.blocks, Index{first} * prefill_keys, tile.length);
    lookup.end(a.kv, heads.kv_head, rows[0]);
    lookup.begin(found.blocks, (Index{first} + 1) * prefill_keys, tile.length);
    lookup.end(a.kv, heads.kv_head, rows[1]);
    __syncthreads();
    copy_keys(rows[0]);
    if constexpr (widens) {
      device::commit_copies();  // of the queries
      codes.template store<Q>(k_shared, scales[0]);
      copy_values(rows[0]);
    }

    detail::RowState<D, T> state;
    state.reset();
    const detail::ScoreScale scale(a.scale, a.softcap);
    const detail::Fragments<prefill_rows> q(q_tile + static_cast<unsigned>(16 * T * warp * detail::panel_row), true);
    const detail::Fragments<prefill_keys> k(k_tile, false), v(v_tile, true);

#pragma unroll 1
    for (std::int32_t j = first; j < last; ++j) {
      const int buffer = (j - first) % 2;
      device::wait_copies<0>();
      __syncthreads();  // keys j are there, and no warp needs values j - 1 any more
      if constexpr (widens) {
        codes.template store<V>(v_shared, scales[1]);
        if (j + 1 < last) {
          copy_keys(rows[1 - buffer]);
        }
      } else {
        copy_values(rows[buffer]);
      }
      lookup.begin(found.blocks, (Index{j} + 2) * prefill_keys, tile.length);

      float s[T][prefill_keys / 8][4];
      detail::multiply_keys<Q, D>(q, k, s);
      if constexpr (is_int8(F)) {
        detail::scale_scores(s, scales[0]);
      }
      device::wait_copies<0>();
      __syncthreads();  // values j are there, and no warp needs keys j any more
      if (j + 1 < last) {
        if constexpr (widens) {
          codes.template store<Q>(k_shared, scales[0]);
          copy_values(rows[1 - buffer]);
        } else {
          copy_keys(rows[1 - buffer]);
        }
      }
      lookup.end(a.kv, heads.kv_head, rows[buffer]);

      detail::apply_softcap(s, scale);
      const Pos base = j * prefill_keys;
      if (detail::needs_mask<prefill_keys>(a, tile, j)) {
        detail::rescale(state, detail::online_softmax<true>(s, state, scale, base, visible_to));
        if constexpr (is_int8(F)) {
          detail::scale_weights<true>(s, scales[1], base, visible_to);
        }
        const bool special = detail::multiply_values<V, true>(v, s, state);
        if (__any_sync(device::all_lanes, special)) {
          detail::add_nonfinite<V, prefill_keys>(v_shared, state, base, visible_to);
        }
      } else {
        detail::rescale(state, detail::online_softmax<false>(s, state, scale, base, visible_to));
        if constexpr (is_int8(F)) {
          detail::scale_weights<false>(s, scales[1], base, visible_to);
        }
        detail::multiply_values<V, false>(v, s, state);
      }
    }
    __syncwarp();  // no lane reads queries any more
    detail::store_rows<Q>(a, tile, heads, state, shared);
    __syncthreads();  // the next tile overwrites what lies in shared memory
  }
}

}  // namespace cuda
}  // namespace v0
}  // namespace kvc
