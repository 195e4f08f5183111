// latent_decode_kernel: decode over latent rows (multi-head latent attention), of keys whose beginning is the value.
//
// All query heads read the same row of up to 576 elements, of which the first 512 or fewer are its value. So query
// heads are the rows of a tile, and each latent row is copied to shared memory once, for scores and for values. Work
// items, partial results and their merge are those of decode_kernel, but a split is computed as a whole, never in
// halves.
//
// A thread block of eight warps takes a work item of R rows of queries, 16 or 64, and goes through tiles of 32
// positions. While one is multiplied, cp.async copies the next:
//
//   tile j arrived | copy tile j + 1 | S = Q K^T, each warp some of it | scores in shared memory | P = exp(S), O += P V
//
// For scores a warp has 16 rows and 16 positions, and some of the elements; for outputs it has the same 16 rows and
// some of their columns. Every warp of a row turns all of its scores into weights, which takes less time than to pass
// them on.
//
// The order of operations on a query row depends on its positions only: a score is the sum of four chains of products,
// each over a quarter of the elements of all panels, for both R. So a row has the same bits in every batch, and for
// both R.
#pragma once

#include <cstddef>
#include <cstdint>

#include "kvc/core/types.hpp"
#include "kvc/cuda/decode_kernel.cuh"
#include "kvc/cuda/decode_limits.hpp"
#include "kvc/cuda/decode_plan.hpp"
#include "kvc/cuda/device.cuh"
#include "kvc/cuda/format.hpp"
#include "kvc/cuda/prefill_block.cuh"
#include "kvc/cuda/prefill_ptx.cuh"
#include "kvc/cuda/prefill_shared.cuh"
#include "kvc/cuda/prefill_state.cuh"
#include "kvc/cuda/view.cuh"

namespace kvc {
inline namespace v0 {
namespace cuda {
namespace detail {

/// Sizes of tiles and thread blocks for R rows of queries.
template <int R>
struct LatentTraits {
  static_assert(R == latent_few || R == latent_many);
  static constexpr int keys = 32;  ///< of a tile
  static constexpr int warps = 8, threads = 32 * warps;
  static constexpr int row_groups = R / 16, column_groups = warps / row_groups;
  static constexpr int columns = latent_value_dim / column_groups;  ///< of the outputs of a warp
  static constexpr int chains = 4;  ///< of products that a score is the sum of: 16 columns of each panel
  static constexpr int own_chains = 2 * chains / column_groups;  ///< those of a warp
  static constexpr int parts = chains / own_chains;              ///< of a score in shared memory
  static constexpr int panels = latent_key_dim / 64;
  static constexpr int score_stride = keys + 8;  ///< four rows of eight floats hit every bank once
  static constexpr int row_bytes = 2 * latent_key_dim;
  static constexpr int tile_bytes = keys * row_bytes;
  static constexpr int shared_bytes = R * row_bytes + 2 * tile_bytes + parts * R * score_stride * 4;
  static constexpr int blocks = R == latent_few ? 2 : 1;  ///< of a multiprocessor, limited by registers
};

/// Starts to copy the query rows of an item to shared memory; rows and elements that are not there become zeros.
template <int R, Format F>
__device__ __forceinline__ void copy_latent_queries(SharedAddress to, const DecodeArguments<F>& a,
                                                    const DecodeItem& item, int kv_head) {
  constexpr int chunks = latent_key_dim / 8;
  const int rows = item.members * item.heads, dim = a.kv.key_dim;
#pragma unroll 1
  for (int at = static_cast<int>(threadIdx.x); at < R * chunks; at += LatentTraits<R>::threads) {
    const int row = at / chunks, chunk = at % chunks;
    const bool there = row < rows && 8 * chunk < dim;
    const std::byte* from = a.q;
    if (there) {
      const ItemRow of = item_row(a, item, kv_head, row);
      from += 2 * ((Index{of.member.row} * a.query_heads + of.head) * dim + 8 * chunk);
    }
    device::copy_async(to + static_cast<unsigned>(chunk_offset<R>(row, chunk)), from, there);
  }
}

/// One warp's part of the scores of a tile: of 16 rows and 16 positions, and of some chains.
template <int R, Format F>
__device__ __forceinline__ void multiply_latent_keys(SharedAddress q_tile, SharedAddress k_tile, float* scores) {
  using Traits = LatentTraits<R>;
  const int lane = static_cast<int>(threadIdx.x % 32U), warp = static_cast<int>(threadIdx.x / 32U);
  const int group = warp / Traits::column_groups, column = warp % Traits::column_groups;
  const int keys = column % 2, part = column / 2;
  const Fragments<R> q(q_tile + static_cast<unsigned>(16 * group * panel_row), true);
  const Fragments<Traits::keys> k(k_tile + static_cast<unsigned>(16 * keys * panel_row), false);
  float s[Traits::own_chains][2][4] = {};
#pragma unroll
  for (int panel = 0; panel < Traits::panels; ++panel) {
#pragma unroll
    for (int chain = 0; chain < Traits::own_chains; ++chain) {
      std::uint32_t rows[4], both[4];
      device::ldmatrix(q.at(0, panel, part * Traits::own_chains + chain), rows);
      device::ldmatrix(k.at(0, panel, part * Traits::own_chains + chain), both);
      const std::uint32_t b[2][2] = {{both[0], both[1]}, {both[2], both[3]}};
      device::mma<F>(s[chain][0], rows, b[0]);
      device::mma<F>(s[chain][1], rows, b[1]);
    }
  }
#pragma unroll
  for (int n = 0; n < 2; ++n) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      float x[2];
#pragma unroll
      for (int e = 0; e < 2; ++e) {
        x[e] = s[0][n][2 * half + e];
        if constexpr (Traits::own_chains == 4) {
          x[e] = device::add(device::add(x[e], s[1][n][2 * half + e]),
                             device::add(s[2][n][2 * half + e], s[3][n][2 * half + e]));
        }
      }
      const int row = 16 * group + 8 * half + lane / 4, position = 16 * keys + 8 * n + 2 * (lane % 4);
      *reinterpret_cast<float2*>(scores + (part * R + row) * Traits::score_stride + position) = {x[0], x[1]};
    }
  }
}

/// All scores of this warp's rows, as exponents of two: s[n] has rows g and g + 8, positions 8 n + 2t and 8 n + 2t + 1.
template <int R>
__device__ __forceinline__ void load_latent_scores(const float* scores, const ScoreScale& scale, float (&s)[1][4][4]) {
  using Traits = LatentTraits<R>;
  const int lane = static_cast<int>(threadIdx.x % 32U), warp = static_cast<int>(threadIdx.x / 32U);
  const int group = warp / Traits::column_groups;
#pragma unroll
  for (int n = 0; n < 4; ++n) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const float* const from =
          scores + (16 * group + 8 * half + lane / 4) * Traits::score_stride + 8 * n + 2 * (lane % 4);
      const auto part = [from](int i) { return *reinterpret_cast<const float2*>(from + i * R * Traits::score_stride); };
      float2 x = part(0);
      if constexpr (Traits::parts == 4) {
        const float2 y = part(1), z = part(2), w = part(3);
        x = {device::add(device::add(x.x, y.x), device::add(z.x, w.x)),
             device::add(device::add(x.y, y.y), device::add(z.y, w.y))};
      }
      const float of[2] = {x.x, x.y};
#pragma unroll
      for (int e = 0; e < 2; ++e) {
        s[0][n][2 * half + e] = device::multiply(scale.tangent != 0 ? scale.softcapped(of[e]) : of[e], scale.exponent);
      }
    }
  }
}

/// O += P V for this warp's rows and columns; s holds the weights.
template <int R, Format F>
__device__ __forceinline__ void multiply_latent_values(SharedAddress tile, const float (&s)[1][4][4],
                                                       RowState<LatentTraits<R>::columns, 1>& state) {
  using Traits = LatentTraits<R>;
  const int warp = static_cast<int>(threadIdx.x / 32U), column = warp % Traits::column_groups;
  const Fragments<Traits::keys> v(
      tile + static_cast<unsigned>(column * (Traits::columns / 64) * Traits::keys * panel_row), true);
#pragma unroll
  for (int i = 0; i < Traits::keys / 16; ++i) {
    std::uint32_t p[4];
    pack_weights<F>(s[0], i, p);
#pragma unroll
    for (int j = 0; j < Traits::columns / 16; ++j) {
      std::uint32_t both[4];
      device::ldmatrix_transposed(v.at(i, j), both);
      const std::uint32_t b[2][2] = {{both[0], both[1]}, {both[2], both[3]}};
      device::mma<F>(state.o[0][2 * j], p, b[0]);
      device::mma<F>(state.o[0][2 * j + 1], p, b[1]);
    }
  }
}

/// Stores this warp's columns of the outputs of an item, or of its partial results.
template <int R, Format F>
__device__ __forceinline__ void store_latent(const DecodeArguments<F>& a, const DecodeItem& item, int kv_head,
                                             const RowState<LatentTraits<R>::columns, 1>& state) {
  using Traits = LatentTraits<R>;
  const int lane = static_cast<int>(threadIdx.x % 32U), warp = static_cast<int>(threadIdx.x / 32U);
  const int group = warp / Traits::column_groups, column = warp % Traits::column_groups;
  const int dim = a.kv.value_dim;
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const float m = state.m[0][half], l = row_sum(state.l[0][half]);
    const int row = 16 * group + 8 * half + lane / 4;
    if (row >= item.members * item.heads) {
      continue;
    }
    const ItemRow of = item_row(a, item, kv_head, row);
    const bool whole = of.member.partial < 0;
    const Index at = Index{whole ? of.member.row : of.member.partial} * a.query_heads + of.head;
    const float divisor = device::sink_divisor(a.sinks, of.head, m, l);
    const auto value = [divisor](float x) {
      return divisor == 0.0F ? 0.0F : device::divide(device::add(x, 0.0F), divisor);
    };
#pragma unroll
    for (int n = 0; n < Traits::columns / 8; ++n) {
      const int d = column * Traits::columns + 8 * n + 2 * (lane % 4);
      const float x = state.o[0][n][2 * half], y = state.o[0][n][2 * half + 1];
      if (d < dim && whole) {
        *reinterpret_cast<std::uint32_t*>(a.out + 2 * (at * dim + d)) = device::pack<F>(value(x), value(y));
      } else if (d < dim) {
        *reinterpret_cast<float2*>(a.partials + at * dim + d) = {x, y};
      }
    }
    if (column == 0 && lane % 4 == 0) {
      if (!whole) {
        *reinterpret_cast<float2*>(a.partial_sums + 2 * at) = {m, l};
      } else if (a.lse != nullptr) {
        a.lse[at] = device::log_sum_exp(m, l);
      }
    }
  }
}

}  // namespace detail

/// Computes the items of one list, with R rows of queries each. Any grid works: the blocks share items and kv heads.
/// Threads and shared memory as in LatentTraits.
///
///   F     format of the cache, the queries and the output: f16 or bf16
///   R     16 or 64
///   wide  which of the two lists
///
/// key_dim and value_dim are multiples of 8 up to 576 and 512. The plan is not in halves.
template <Format F, int R>
__global__ void __launch_bounds__(detail::LatentTraits<R>::threads, detail::LatentTraits<R>::blocks)
    latent_decode_kernel(const __grid_constant__ DecodeArguments<F> a, bool wide) {
  static_assert(F == Format::f16 || F == Format::bf16);
  using Traits = detail::LatentTraits<R>;
  __shared__ Index offsets[split_positions];  // of rows in the pool; -1: not visible
  std::byte* const shared = device::dynamic_shared();
  const device::SharedAddress q_tile = device::shared_address(shared);
  const device::SharedAddress ring = q_tile + static_cast<unsigned>(R * Traits::row_bytes);
  float* const scores = reinterpret_cast<float*>(shared + R * Traits::row_bytes + 2 * Traits::tile_bytes);
  const detail::ScoreScale scale(a.scale, a.softcap);
  detail::ScoreScale unit(1.0F, 0.0F);
  unit.exponent = 1.0F;  // load_latent_scores has multiplied by it
  const int kv_heads = a.kv.kv_heads, works = a.plan.counts[wide ? 1 : 0] * kv_heads;
  device::release_dependents();

#pragma unroll 1
  for (int work = static_cast<int>(blockIdx.x); work < works; work += static_cast<int>(gridDim.x)) {
    const int kv_head = work % kv_heads;
    const DecodeItem item = (wide ? a.plan.wide : a.plan.narrow)[work / kv_heads];
    const Pos split = item.first / split_positions * split_positions;
    __syncthreads();  // the item before is done with the shared memory
    detail::copy_latent_queries<R>(q_tile, a, item, kv_head);
    const EntryGap gap = a.batch.gap(*a.batch.header, item.sequence);
    const std::int32_t first_entry = a.batch.kv_indptr[item.sequence];
    for (int at = static_cast<int>(threadIdx.x); at < split_positions; at += Traits::threads) {
      const Pos position = split + at;
      Index offset = -1;
      if (item.first <= position && position < item.last) {
        const RowLocation of = a.batch.locate(*a.batch.header, first_entry, gap.without(position));
        offset = a.kv.k.offset(of.block, kv_head, of.slot);
      }
      offsets[at] = offset;
    }
    __syncthreads();
    const auto copy = [&](int j, device::SharedAddress to) {
      detail::copy_tile<latent_key_dim, Traits::keys, Traits::threads>(
          to, a.kv.key_dim, a.kv.pool, [&](int row) -> const std::byte* {
            const Index offset = offsets[j * Traits::keys + row];
            return offset < 0 ? nullptr : a.kv.pool + offset;
          });
      device::commit_copies();
    };
    const int begin = (item.first - split) / Traits::keys, end = (item.last - split - 1) / Traits::keys + 1;
    const auto visible = [&](int, int) { return detail::VisibleKeys{item.first, item.last}; };
    detail::RowState<Traits::columns, 1> state;
    state.reset();
    copy(begin, ring);
#pragma unroll 1
    for (int j = begin; j < end; ++j) {
      const unsigned buffer = static_cast<unsigned>(j - begin) % 2U;
      const device::SharedAddress tile = ring + buffer * static_cast<unsigned>(Traits::tile_bytes);
      device::wait_copies<0>();
      __syncthreads();  // tile j is there, and no warp needs tile j - 1 or its scores any more
      if (j + 1 < end) {
        copy(j + 1, ring + (1U - buffer) * static_cast<unsigned>(Traits::tile_bytes));
      }
      detail::multiply_latent_keys<R, F>(q_tile, tile, scores);
      __syncthreads();
      float s[1][4][4];
      detail::load_latent_scores<R>(scores, scale, s);
      detail::rescale(state, detail::online_softmax<true>(s, state, unit, split + j * Traits::keys, visible));
      detail::multiply_latent_values<R, F>(tile, s, state);
    }
    detail::store_latent<R>(a, item, kv_head, state);
  }
  // This launch ends after those that it depends on, so what depends on it need wait for no other.
  device::wait_for_launches_before();
}

}  // namespace cuda
}  // namespace v0
}  // namespace kvc
