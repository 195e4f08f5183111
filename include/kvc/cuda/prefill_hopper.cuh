// The prefill kernel for Hopper, for caches of f16 and bf16: what prefill_kernel.cuh computes, by products of four
// warps together (wgmma), of keys and values that a warpgroup of their own brings.
//
// A block has three warpgroups. Two are consumers, of 64 rows of the tile of queries each; the third is the producer.
// It fills two rings in shared memory, one of tiles of keys and one of tiles of values, and a barrier in shared memory
// says of each place of a ring that it is full, another that it is empty again:
//
//   producer   K0  K1  V0  K2  V1  K3  V2  ...
//   consumer   S = Q K0 | S' = Q K1, O += P V0 | softmax of S' meanwhile | S' = Q K2, O += P' V1 | ...
//
// While the values of one tile are multiplied, the scores of the next become weights, and while one consumer does that
// the other one's products run. (Scheme of FlashAttention-3, 2024.)
//
// Where pages are multiples of eight positions, the producer's copies are bulk copies of boxes: so many rows of a block
// as a page surely holds, 64 numbers wide, by one lane each. Anywhere else its threads copy 16 bytes at a time. Either
// way the same bytes lie at the same places, so a row has the same bits.
//
// Keys that no sequence has, beyond the length, hold anything: their scores are masked. Their values become zeros, and
// of a tile that some row does not see wholly, so do values that are not finite, after they were added to the rows that
// do see them: a weight of 0 would not keep them away.
#pragma once

#include <cstddef>
#include <cstdint>

#include "kvc/core/types.hpp"
#include "kvc/cuda/device.cuh"
#include "kvc/cuda/format.hpp"
#include "kvc/cuda/hopper.cuh"
#include "kvc/cuda/prefill_block.cuh"
#include "kvc/cuda/prefill_ptx.cuh"
#include "kvc/cuda/prefill_shared.cuh"
#include "kvc/cuda/prefill_state.cuh"
#include "kvc/cuda/prefill_tile.cuh"

namespace kvc {
inline namespace v0 {
namespace cuda {

/// The keys and the values of a layer as tensors [block, head, slot, number], of which boxes are copied.
struct PrefillMaps {
  device::TensorMap k;
  device::TensorMap v;
  std::int32_t box;  ///< slots of a box: 8, 16, 32, 64 or 128; 0: there are no maps
  bool token_major;  ///< coordinates are (number, head, slot, block) rather than (number, slot, head, block)
};

namespace detail {

/// Tiles and threads, by the numbers of a head.
template <int D>
struct HopperShape {
  static constexpr int keys = D <= 128 ? 128 : 64;
  static constexpr int stages = D == 64 ? 4 : D == 192 ? 3 : 2;
  static constexpr int consumers = 256;
  static constexpr int threads = consumers + 128;
  static constexpr int row_bytes = 2 * D;
  static constexpr int tile_bytes = keys * row_bytes;
  static constexpr int panels = D / 64;
  /// Queries, the two rings, and what it takes to begin at a multiple of 1024.
  static constexpr int shared_bytes = prefill_rows * row_bytes + 2 * stages * tile_bytes + 1024 - 128;
  static constexpr int producer_registers = 40, consumer_registers = 232;
  static_assert(producer_registers * 128 + consumer_registers * consumers <= 65536);
};

/// The largest box for blocks of so many slots, and for tiles of so many keys: all slots of a page that begins at a
/// multiple of the box lie in one block. A pool of a single block is one page to a sequence.
[[nodiscard]] constexpr std::int32_t box_slots(Index blocks, Index block_slots, int keys) noexcept {
  std::int32_t box = keys;
  while (box >= 8 && blocks != 1 && block_slots % box != 0) {
    box /= 2;
  }
  return box >= 8 && block_slots > 0 ? box : 0;
}
/// Whether a batch with pages of so many positions can be read in such boxes.
[[nodiscard]] KVC_HOST_DEVICE constexpr bool boxes_fit(std::int32_t box, Pos page_tokens) noexcept {
  return box > 0 && (page_tokens == max_pos || page_tokens % box == 0);
}

#if defined(KVC_CUDA_HOPPER)

/// Which place of a ring step n uses, and the parity of its phase.
template <int Stages>
struct RingPlace {
  int stage;
  unsigned parity;
  __device__ __forceinline__ explicit RingPlace(std::int32_t n)
      : stage(static_cast<int>(n % Stages)), parity(static_cast<unsigned>(n / Stages) % 2U) {}
};

template <int Stages>
struct HopperBarriers {
  device::Barrier k_full[Stages], k_empty[Stages], v_full[Stages], v_empty[Stages];
};

/// The producer's copies of one tile of keys or of values, by boxes: lane i of one warp takes box i.
template <int D>
__device__ __forceinline__ void copy_boxes(SharedAddress to, const device::TensorMap& map, const PrefillMaps& maps,
                                           const BlockTile& tile, std::int32_t kv_head, std::int32_t j,
                                           device::Barrier& full) {
  using Shape = HopperShape<D>;
  const int lane = static_cast<int>(threadIdx.x % 32U), box = maps.box;
  const Index base = Index{j} * Shape::keys, left = tile.queries.length - base;
  const int boxes = static_cast<int>(left < Shape::keys ? (left + box - 1) / box : Shape::keys / box);
  if (lane == 0) {
    device::arrive_and_expect(full, static_cast<unsigned>(boxes * Shape::panels * box * panel_row));
  }
  __syncwarp();
  if (lane < boxes) {
    const Place place = tile.pages.place(static_cast<Pos>(base + lane * box));
#pragma unroll
    for (int panel = 0; panel < Shape::panels; ++panel) {
      const std::int32_t at[4] = {64 * panel, maps.token_major ? kv_head : place.slot,
                                  maps.token_major ? place.slot : kv_head, place.block};
      device::copy_box(to + static_cast<unsigned>((panel * Shape::keys + lane * box) * panel_row), map, at, full);
    }
  }
}

/// The same by all threads of the producer, 16 bytes at a time: a warp takes a quarter of the rows.  row_of(place)
template <int D, class RowOf>
__device__ __forceinline__ void copy_rows(SharedAddress to, int dim, const std::byte* valid, const BlockTile& tile,
                                          std::int32_t j, device::Barrier& full, RowOf row_of) {
  constexpr int keys = HopperShape<D>::keys, rows = keys / 4, chunks = D / 8;
  const int lane = static_cast<int>(threadIdx.x % 32U), warp = static_cast<int>(threadIdx.x / 32U) % 4;
  const Index position = Index{j} * keys + rows * warp + lane % rows;
  const std::byte* mine = nullptr;
  if (position < tile.queries.length) {
    mine = row_of(tile.pages.place(static_cast<Pos>(position)));
  }
#pragma unroll 2
  for (int i = 0; i < rows * chunks / 32; ++i) {
    const int at = lane + 32 * i, row = at / chunks, chunk = at % chunks;
    const auto from =
        reinterpret_cast<const std::byte*>(__shfl_sync(device::all_lanes, reinterpret_cast<std::uintptr_t>(mine), row));
    const bool there = from != nullptr && 8 * chunk < dim;
    device::copy_async(to + static_cast<unsigned>(chunk_offset<keys>(rows * warp + row, chunk)),
                       there ? from + 16 * chunk : valid, there);
  }
  device::arrive_after_copies(full);
}

/// S = Q K^T of the warpgroup's 64 rows, which begin at q, and a tile of keys: begins, and closes a group.
template <Format F, int D>
__device__ __forceinline__ void begin_scores(SharedAddress q, SharedAddress k,
                                             float (&s)[HopperShape<D>::keys / 8][4]) {
  constexpr int keys = HopperShape<D>::keys;
  device::pin(s);
  device::begin_products();
#pragma unroll
  for (int i = 0; i < D / 16; ++i) {  // a quarter of a row of panel i / 4
    const unsigned column = static_cast<unsigned>(i) % 4 * 32, panel = static_cast<unsigned>(i) / 4 * panel_row;
    device::multiply_described<F, keys>(s, device::describe(q + panel * prefill_rows + column),
                                        device::describe(k + panel * keys + column), i > 0);
  }
  device::commit_products();
}

/// O += P V: begins, and closes a group.
template <Format F, int D>
__device__ __forceinline__ void begin_outputs(SharedAddress v, std::uint32_t (&p)[HopperShape<D>::keys / 16][4],
                                              float (&o)[D / 8][4]) {
  constexpr int keys = HopperShape<D>::keys;
  device::pin(o);
  device::pin(p);
  device::begin_products();
#pragma unroll
  for (int i = 0; i < keys / 16; ++i) {
    const SharedAddress rows = v + static_cast<unsigned>(16 * i * panel_row);
    constexpr unsigned panel = keys * panel_row;
    if constexpr (D == 64 || D == 192) {
      device::multiply_described<F, 64, 0>(o, p[i], device::describe(rows));
      if constexpr (D == 192) {
        device::multiply_described<F, 64, 8>(o, p[i], device::describe(rows + panel));
        device::multiply_described<F, 64, 16>(o, p[i], device::describe(rows + 2 * panel));
      }
    } else {
      device::multiply_described<F, 128, 0>(o, p[i], device::describe(rows, panel));
      if constexpr (D == 256) {
        device::multiply_described<F, 128, 16>(o, p[i], device::describe(rows + 2 * panel, panel));
      }
    }
  }
  device::commit_products();
}

/// Makes the values of a tile fit to be multiplied with weights of 0, by both consumers together.
template <Format F, int D, class Visible>
__device__ __forceinline__ void tidy_values(std::byte* v, RowState<D, 1>& state, Pos base, Pos length,
                                            Visible visible) {
  using Shape = HopperShape<D>;
  constexpr int each = Shape::keys * D / 8 / Shape::consumers;  // chunks of a thread
  const int thread = static_cast<int>(threadIdx.x);
  bool special = false;
#pragma unroll 1
  for (int i = 0; i < each; ++i) {
    const int at = (thread + i * Shape::consumers) * 16, key = at / panel_row % Shape::keys;
    uint4& chunk = *reinterpret_cast<uint4*>(v + at);
    if (base + key >= length) {
      chunk = {0, 0, 0, 0};
    } else {
      const uint4 x = chunk;
      special = special || has_special<F>(x.x) || has_special<F>(x.y) || has_special<F>(x.z) || has_special<F>(x.w);
    }
  }
  device::publish_writes();
  if (device::meet_any(1, Shape::consumers, special)) {
    add_special<F, Shape::keys>(v, state, base, visible);
    device::meet(1, Shape::consumers);
#pragma unroll 1
    for (int i = 0; i < each; ++i) {
      uint4& chunk = *reinterpret_cast<uint4*>(v + (thread + i * Shape::consumers) * 16);
      const uint4 x = chunk;
      chunk = {without_special<F>(x.x), without_special<F>(x.y), without_special<F>(x.z), without_special<F>(x.w)};
    }
    device::publish_writes();
    device::meet(1, Shape::consumers);
  }
}

#endif  // KVC_CUDA_HOPPER

}  // namespace detail

/// gridDim as for prefill_kernel; the threads and shared memory of HopperShape. F, D: as there. Compiled for anything
/// but sm_90a it is empty.
template <Format F, int D>
__global__ void __launch_bounds__(detail::HopperShape<D>::threads, 1)
    prefill_hopper_kernel(const __grid_constant__ PrefillArguments<F> a, const __grid_constant__ PrefillMaps maps) {
#if defined(KVC_CUDA_HOPPER)
  static_assert(F == Format::f16 || F == Format::bf16);
  using Shape = detail::HopperShape<D>;
  using Ring = detail::RingPlace<Shape::stages>;
  constexpr int keys = Shape::keys;
  __shared__ detail::BlockTile found;
  __shared__ detail::HopperBarriers<Shape::stages> barriers;
  if (!detail::find_tile(a, found)) {
    return;
  }
  const detail::QueryTile& tile = found.queries;
  const detail::BlockHeads heads = detail::heads_of_block(a);
  const detail::KeyTiles tiles = detail::key_tiles<keys>(a, tile);
  const std::int32_t first = tiles.first, last = tiles.last;
  const bool by_boxes = detail::boxes_fit(maps.box, found.pages.page_tokens->value());

  std::byte* const shared =
      device::dynamic_shared() + (1024 - device::shared_address(device::dynamic_shared()) % 1024) % 1024;
  const device::SharedAddress q_tile = device::shared_address(shared);
  const device::SharedAddress k_ring = q_tile + prefill_rows * Shape::row_bytes;
  const device::SharedAddress v_ring = k_ring + Shape::stages * Shape::tile_bytes;
  const auto stage_of = [](int stage) { return static_cast<unsigned>(stage * Shape::tile_bytes); };

  if (threadIdx.x == 0) {
    for (int i = 0; i < Shape::stages; ++i) {
      device::make_barrier(barriers.k_full[i], by_boxes ? 1 : 128);
      device::make_barrier(barriers.v_full[i], by_boxes ? 1 : 128);
      device::make_barrier(barriers.k_empty[i], Shape::consumers / 32);
      device::make_barrier(barriers.v_empty[i], Shape::consumers / 32);
    }
    device::publish_barriers();
  }
  __syncthreads();

  if (threadIdx.x >= static_cast<unsigned>(Shape::consumers)) {
    device::give_registers<Shape::producer_registers>();
    if (by_boxes && threadIdx.x >= static_cast<unsigned>(Shape::consumers) + 32U) {
      return;  // one warp is enough
    }
    // Tile j to its place in a ring, once that is empty.
    const auto bring = [&](std::int32_t j, device::SharedAddress ring, device::Barrier* empty, device::Barrier* full,
                           const device::TensorMap& map, std::int32_t dim, auto row) {
      const Ring at(j - first);
      device::wait(empty[at.stage], at.parity ^ 1U);
      const device::SharedAddress to = ring + stage_of(at.stage);
      if (by_boxes) {
        detail::copy_boxes<D>(to, map, maps, found, heads.kv_head, j, full[at.stage]);
      } else {
        detail::copy_rows<D>(to, dim, a.kv.pool, found, j, full[at.stage], row);
      }
    };
    const auto bring_keys = [&](std::int32_t j) {
      bring(j, k_ring, barriers.k_empty, barriers.k_full, maps.k, a.kv.key_dim,
            [&](Place p) { return a.kv.k_row(p.block, heads.kv_head, p.slot); });
    };
    const auto bring_values = [&](std::int32_t j) {
      bring(j, v_ring, barriers.v_empty, barriers.v_full, maps.v, a.kv.value_dim,
            [&](Place p) { return a.kv.v_row(p.block, heads.kv_head, p.slot); });
    };
    bring_keys(first);
#pragma unroll 1
    for (std::int32_t j = first; j < last; ++j) {
      if (j + 1 < last) {
        bring_keys(j + 1);
      }
      bring_values(j);
    }
    return;
  }

  device::take_registers<Shape::consumer_registers>();
  const int warp = static_cast<int>(threadIdx.x / 32U), lane = static_cast<int>(threadIdx.x % 32U);
  const auto visible_to = [&](int, int half) {
    const int row = 16 * warp + 8 * half + lane / 4;
    return detail::visible_to(a, tile, detail::row_of_tile(a.tiles, tile, 0, row).position);
  };
  const auto wait_full = [&](device::Barrier& full, unsigned parity) {
    device::wait(full, parity);
    if (!by_boxes) {
      device::publish_writes();  // of the producer's threads, which this one has seen now
    }
  };
  const auto release = [&](device::Barrier& empty) {
    __syncwarp();
    if (lane == 0) {
      device::arrive(empty);
    }
  };

  detail::copy_queries<D, Shape::consumers>(q_tile, a, tile, heads);
  device::commit_copies();
  detail::RowState<D, 1> state;
  state.reset();
  const detail::ScoreScale scale(a.scale, a.softcap);
  device::wait_copies<0>();
  device::publish_writes();
  device::meet(1, Shape::consumers);

  const device::SharedAddress q = q_tile + static_cast<unsigned>(warp / 4 * 64 * detail::panel_row);
  float s[1][keys / 8][4] = {};
  std::uint32_t p[keys / 16][4];
  const auto soften = [&](std::int32_t j) {
    detail::cap(s, scale);
    return detail::is_edge<keys>(a, tile, j) ? detail::soften<true>(s, state, scale, j * keys, visible_to)
                                             : detail::soften<false>(s, state, scale, j * keys, visible_to);
  };
  const auto pack = [&] {
#pragma unroll
    for (int i = 0; i < keys / 16; ++i) {
      detail::pack_weights<F>(s[0], i, p[i]);
    }
  };
  const auto tidy = [&](std::int32_t j, const Ring& at) {
    if (detail::is_edge<keys>(a, tile, j)) {
      wait_full(barriers.v_full[at.stage], at.parity);
      detail::tidy_values<F>(shared + prefill_rows * Shape::row_bytes + (Shape::stages + at.stage) * Shape::tile_bytes,
                             state, j * keys, tile.length, visible_to);
    }
  };

  {
    wait_full(barriers.k_full[0], 0);
    detail::begin_scores<F, D>(q, k_ring, s[0]);
    device::wait_products<0>();
    device::pin(s[0]);
    release(barriers.k_empty[0]);
    (void)soften(first);
    pack();
  }
#pragma unroll 1
  for (std::int32_t j = first; j + 1 < last; ++j) {
    const Ring at(j - first), next(j + 1 - first);
    tidy(j, at);
    wait_full(barriers.k_full[next.stage], next.parity);
    detail::begin_scores<F, D>(q, k_ring + stage_of(next.stage), s[0]);
    wait_full(barriers.v_full[at.stage], at.parity);
    detail::begin_outputs<F, D>(v_ring + stage_of(at.stage), p, state.o[0]);
    device::wait_products<1>();
    device::pin(s[0]);
    release(barriers.k_empty[next.stage]);
    const detail::Shrink<1> shrink = soften(j + 1);
    device::wait_products<0>();
    device::pin(state.o[0]);
    device::pin(p);
    release(barriers.v_empty[at.stage]);
    detail::rescale(state, shrink);
    pack();
  }
  {
    const Ring at(last - 1 - first);
    tidy(last - 1, at);
    wait_full(barriers.v_full[at.stage], at.parity);
    detail::begin_outputs<F, D>(v_ring + stage_of(at.stage), p, state.o[0]);
    device::wait_products<0>();
    device::pin(state.o[0]);
  }
  device::meet(2 + warp / 4, 128);  // nobody's products read the queries of this warpgroup any more
  detail::store_rows<F>(a, tile, heads, state, shared);
#endif
}

}  // namespace cuda
}  // namespace v0
}  // namespace kvc
