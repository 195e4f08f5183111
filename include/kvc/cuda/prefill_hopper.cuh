// The prefill kernel for Hopper, for caches of f16 and bf16. It computes what prefill_kernel.cuh computes, with wgmma,
// on keys and values that a separate warpgroup loads.
//
// A thread block has three warpgroups: two consumers with 64 rows of the tile of queries each, and a producer. The
// producer fills two rings in shared memory, one of tiles of keys and one of tiles of values. For each stage of a ring,
// one barrier says that it is full and another that it is empty:
//
//   producer   K0  K1  V0  K2  V1  K3  V2  ...
//   consumer   S = Q K0 | S' = Q K1, O += P V0 | softmax of S' meanwhile | S' = Q K2, O += P' V1 | ...
//
// A consumer turns the scores of the next tile into weights while the values of this one are multiplied. The consumers
// take turns in starting their products, so that those of one run during the softmax of the other. (This is the scheme
// of FlashAttention-3, 2024.)
//
// There are as many thread blocks as the device holds. Each takes one tile of queries after the other from a queue in
// device memory, which is empty at the end of the launch. The producer takes the next tile, and loads its first keys
// and values, while the consumers still compute: rings and phases go on from tile to tile.
//
// If block_tokens is a multiple of 8, the producer copies boxes of a tensor (TMA): each box is 64 elements wide and has
// as many rows as are sure to lie in one block. One lane issues each box. Otherwise the threads of the producer copy 16
// bytes at a time. Both put the same bytes at the same addresses, so a row has the same bits.
//
// Beyond the length of the sequence keys may hold anything, since their scores are masked; values become zeros. In
// tiles that some row does not see wholly, values that are not finite become zeros, too, after they were added to the
// rows that do see them: the weight 0 would not suppress them.
#pragma once

#include <cstddef>
#include <cstdint>
#include <type_traits>

#include "kvc/core/types.hpp"
#include "kvc/cuda/device.cuh"
#include "kvc/cuda/format.hpp"
#include "kvc/cuda/hopper.cuh"
#include "kvc/cuda/prefill_block.cuh"
#include "kvc/cuda/prefill_ptx.cuh"
#include "kvc/cuda/prefill_shared.cuh"
#include "kvc/cuda/prefill_state.cuh"
#include "kvc/cuda/prefill_tile.cuh"
#include "kvc/cuda/view.cuh"

namespace kvc {
inline namespace v0 {
namespace cuda {

/// The keys and values of a layer as tensors [block, head, slot, element] for the kernel to copy boxes of.
struct PrefillTensorMaps {
  device::TensorMap k;
  device::TensorMap v;
  std::int32_t box;  ///< slots of a box: 8, 16, 32, 64 or 128; 0: no maps
  bool token_major;  ///< coordinates are (element, head, slot, block) rather than (element, slot, head, block)
};

namespace detail {

/// Sizes of tiles, rings and thread blocks for keys of D elements and values of V.
template <int D, int V = D>
struct HopperTraits {
  static constexpr int keys = V <= 128 ? 128 : 64;
  static constexpr int stages = D == 64 ? 4 : D == 192 && V == 192 ? 3 : 2;
  static constexpr int consumers = 256;
  static constexpr int threads = consumers + 128;
  static constexpr int q_bytes = prefill_rows * 2 * D;                  ///< of a tile of queries
  static constexpr int k_bytes = keys * 2 * D, v_bytes = keys * 2 * V;  ///< of a stage
  /// Queries, two rings, and padding up to a multiple of 1024.
  static constexpr int shared_bytes = q_bytes + stages * (k_bytes + v_bytes) + 1024 - 128;
  static constexpr int producer_registers = 40, consumer_registers = 232;
  static constexpr bool take_turns = V <= 128;  ///< beyond, products take so long that softmax hides behind them
  static_assert(producer_registers * 128 + consumer_registers * consumers <= 168 * threads, "those of the launch");
};

/// Slots of the largest box, for blocks of `block_slots` slots and tiles of `keys` keys: a run of slots that begins at
/// a multiple of it lies in one block. 0 if that is less than 8. A pool of a single block holds whole sequences.
[[nodiscard]] constexpr std::int32_t tma_box_slots(Index blocks, Index block_slots, int keys) noexcept {
  std::int32_t box = keys;
  while (box >= 8 && blocks != 1 && block_slots % box != 0) {
    box /= 2;
  }
  return box >= 8 && block_slots > 0 ? box : 0;
}
/// Whether boxes of so many slots can read a batch whose table entries stand for `block_tokens` positions.
[[nodiscard]] KVC_HOST_DEVICE constexpr bool tma_boxes_fit(std::int32_t box, Pos block_tokens) noexcept {
  return box > 0 && (block_tokens == max_pos || block_tokens % box == 0);
}

#if defined(KVC_CUDA_HOPPER)

/// The stage of a ring that step n uses, and the parity of its phase.
template <int Stages>
struct RingPlace {
  int stage;
  unsigned parity;
  __device__ __forceinline__ explicit RingPlace(std::int32_t n)
      : stage(static_cast<int>(n % Stages)), parity(static_cast<unsigned>(n / Stages) % 2U) {}
};

/// Tiles of queries that the producer may have looked up, with the one that is computed.
inline constexpr int taken_tiles = 2;

/// A tile of queries as the producer hands it to the consumers. Lives in shared memory.
struct TakenTile {
  BlockTile tile;
  KeyTiles keys;
  std::int32_t first_step;  ///< step of the rings that has tile 0 of the keys
};

template <int Stages>
struct HopperBarriers {
  device::Barrier k_full[Stages], k_empty[Stages], v_full[Stages], v_empty[Stages];
  device::Barrier tile_full[taken_tiles], tile_empty[taken_tiles];
};

/// Named barriers: of all consumers, of the warpgroup of each, of the producer, and of each consumer's turn.
inline constexpr int of_consumers = 1, of_consumer = 2, of_producer = 4, of_turn = 5;

/// Where the box of positions from p on lies. Where no row sees the first of them, that may be before the first slot of
/// the pool, whose rows are zeros; where no row sees any, it is the place of the first box that some row sees.
__device__ __forceinline__ RowLocation box_location(const SequenceBlocks& blocks, Pos p, int box) {
  const Pos first = blocks.lowest - p >= box ? blocks.lowest & -box : p;  // box is a power of two
  const Pos inside = first > blocks.lowest ? first : blocks.lowest;
  RowLocation location = blocks.locate(inside);
  location.slot -= inside - first;
  return location;
}

/// The producer copies one tile of `Keys` keys or values, of D elements, as boxes: lane i of one warp issues box i.
template <int D, int Keys>
__device__ __forceinline__ void tma_copy_boxes(SharedAddress to, const device::TensorMap& map,
                                               const PrefillTensorMaps& maps, const BlockTile& tile,
                                               std::int32_t kv_head, std::int32_t j, device::Barrier& full) {
  const int lane = static_cast<int>(threadIdx.x % 32U), box = maps.box;
  const Index base = Index{j} * Keys, left = tile.queries.length - base;
  const int boxes = static_cast<int>(left < Keys ? (left + box - 1) / box : Keys / box);
  if (lane == 0) {
    device::arrive_and_expect(full, static_cast<unsigned>(boxes * D / 64 * box * panel_row));
  }
  __syncwarp();
  if (lane < boxes) {
    const RowLocation location = box_location(tile.blocks, static_cast<Pos>(base + lane * box), box);
#pragma unroll
    for (int panel = 0; panel < D / 64; ++panel) {
      const std::int32_t at[4] = {64 * panel, maps.token_major ? kv_head : location.slot,
                                  maps.token_major ? location.slot : kv_head, location.block};
      device::tma_copy_box(to + static_cast<unsigned>((panel * Keys + lane * box) * panel_row), map, at, full);
    }
  }
}

/// All threads of the producer copy one tile, 16 bytes at a time: each warp a quarter of the rows, from
/// row_of(location).
template <int D, int Keys, class RowOf>
__device__ __forceinline__ void copy_rows(SharedAddress to, int dim, const std::byte* valid, const BlockTile& tile,
                                          std::int32_t j, device::Barrier& full, RowOf row_of) {
  constexpr int rows = Keys / 4, chunks = D / 8;
  const int lane = static_cast<int>(threadIdx.x % 32U), warp = static_cast<int>(threadIdx.x / 32U) % 4;
  const Index position = Index{j} * Keys + rows * warp + lane % rows;
  const std::byte* mine = nullptr;
  if (position >= tile.blocks.lowest && position < tile.queries.length) {
    mine = row_of(tile.blocks.locate(static_cast<Pos>(position)));
  }
#pragma unroll 2
  for (int i = 0; i < rows * chunks / 32; ++i) {
    const int at = lane + 32 * i, row = at / chunks, chunk = at % chunks;
    const auto from =
        reinterpret_cast<const std::byte*>(__shfl_sync(device::all_lanes, reinterpret_cast<std::uintptr_t>(mine), row));
    const bool there = from != nullptr && 8 * chunk < dim;
    device::copy_async(to + static_cast<unsigned>(chunk_offset<Keys>(rows * warp + row, chunk)),
                       there ? from + 16 * chunk : valid, there);
  }
  device::arrive_after_copies(full);
}

/// Starts S = Q K^T for a tile of keys and the 64 rows of this warpgroup, which begin at q; one group of products.
template <Format F, int D, int C>
__device__ __forceinline__ void begin_scores(SharedAddress q, SharedAddress k, float (&s)[C][4]) {
  constexpr int keys = 8 * C;
  device::fence_registers(s);
  device::wgmma_fence();
#pragma unroll
  for (int i = 0; i < D / 16; ++i) {  // 16 columns of panel i / 4
    const unsigned column = static_cast<unsigned>(i) % 4 * 32, panel = static_cast<unsigned>(i) / 4 * panel_row;
    device::wgmma<F, keys>(s, device::matrix_descriptor(q + panel * prefill_rows + column),
                           device::matrix_descriptor(k + panel * keys + column), i > 0);
  }
  device::wgmma_commit();
}

/// Starts O += P V; one group of products.
template <Format F, int D, int C>
__device__ __forceinline__ void begin_outputs(SharedAddress v, std::uint32_t (&p)[C][4], float (&o)[D / 8][4]) {
  constexpr int keys = 16 * C;
  device::fence_registers(o);
  device::fence_registers(p);
  device::wgmma_fence();
#pragma unroll
  for (int i = 0; i < keys / 16; ++i) {
    const SharedAddress rows = v + static_cast<unsigned>(16 * i * panel_row);
    constexpr unsigned panel = keys * panel_row;
    if constexpr (D == 64 || D == 192) {
      device::wgmma<F, 64, 0>(o, p[i], device::matrix_descriptor(rows));
      if constexpr (D == 192) {
        device::wgmma<F, 64, 8>(o, p[i], device::matrix_descriptor(rows + panel));
        device::wgmma<F, 64, 16>(o, p[i], device::matrix_descriptor(rows + 2 * panel));
      }
    } else {
      device::wgmma<F, 128, 0>(o, p[i], device::matrix_descriptor(rows, panel));
      if constexpr (D == 256) {
        device::wgmma<F, 128, 16>(o, p[i], device::matrix_descriptor(rows + 2 * panel, panel));
      }
    }
  }
  device::wgmma_commit();
}

/// Clears the values of a tile that must not be multiplied by a weight of 0. Both consumers call it together.
template <Format F, int Keys, int D, class Visible>
__device__ __forceinline__ void clear_hidden_values(std::byte* v, RowState<D, 1>& state, Pos base, Pos length,
                                                    Visible visible) {
  using Traits = HopperTraits<D>;
  constexpr int each = Keys * D / 8 / Traits::consumers;  // chunks per thread
  const int thread = static_cast<int>(threadIdx.x);
  bool special = false;
#pragma unroll 1
  for (int i = 0; i < each; ++i) {
    const int at = (thread + i * Traits::consumers) * 16, key = at / panel_row % Keys;
    uint4& chunk = *reinterpret_cast<uint4*>(v + at);
    if (base + key >= length) {
      chunk = {0, 0, 0, 0};
    } else {
      const uint4 x = chunk;
      special =
          special || has_nonfinite<F>(x.x) || has_nonfinite<F>(x.y) || has_nonfinite<F>(x.z) || has_nonfinite<F>(x.w);
    }
  }
  device::fence_async_proxy();
  if (device::sync_named_any(of_consumers, Traits::consumers, special)) {
    add_nonfinite<F, Keys>(v, state, base, visible);
    device::sync_named(of_consumers, Traits::consumers);
#pragma unroll 1
    for (int i = 0; i < each; ++i) {
      uint4& chunk = *reinterpret_cast<uint4*>(v + (thread + i * Traits::consumers) * 16);
      const uint4 x = chunk;
      chunk = {zero_nonfinite<F>(x.x), zero_nonfinite<F>(x.y), zero_nonfinite<F>(x.z), zero_nonfinite<F>(x.w)};
    }
    device::fence_async_proxy();
    device::sync_named(of_consumers, Traits::consumers);
  }
}

#endif  // KVC_CUDA_HOPPER

}  // namespace detail

/// Any grid works: the blocks share the tiles. Threads and shared memory as in HopperTraits. The body is empty unless
/// compiled for sm_90a.
///
///   F  format of the cache, the queries and the output: f16 or bf16
///   D  64, 128, 192 or 256: key_dim, a multiple of 8, rounded up
///   V  D, or 128 if D is 192 (DeepSeek's heads): the same of value_dim
template <Format F, int D, int V = D>
__global__ void __launch_bounds__(detail::HopperTraits<D, V>::threads, 1)
    prefill_hopper_kernel(const __grid_constant__ PrefillArguments<F> a,
                          const __grid_constant__ PrefillTensorMaps maps) {
#if defined(KVC_CUDA_HOPPER)
  static_assert(F == Format::f16 || F == Format::bf16);
  static_assert(V == D || (V == 128 && D == 192));
  using Traits = detail::HopperTraits<D, V>;
  using Ring = detail::RingPlace<Traits::stages>;
  constexpr int keys = Traits::keys;
  __shared__ detail::TakenTile taken[detail::taken_tiles];
  __shared__ detail::HopperBarriers<Traits::stages> barriers;
  const bool by_tma = detail::tma_boxes_fit(maps.box, a.batch.header->block_tokens.value());

  std::byte* const shared =
      device::dynamic_shared() + (1024 - device::shared_address(device::dynamic_shared()) % 1024) % 1024;
  const device::SharedAddress q_tile = device::shared_address(shared);
  const device::SharedAddress k_ring = q_tile + Traits::q_bytes;
  const device::SharedAddress v_ring = k_ring + Traits::stages * Traits::k_bytes;
  const auto k_stage = [&](int stage) { return k_ring + static_cast<unsigned>(stage * Traits::k_bytes); };
  const auto v_stage = [&](int stage) { return v_ring + static_cast<unsigned>(stage * Traits::v_bytes); };

  if (threadIdx.x == 0) {
    for (int i = 0; i < Traits::stages; ++i) {
      device::init_barrier(barriers.k_full[i], by_tma ? 1 : 128);
      device::init_barrier(barriers.v_full[i], by_tma ? 1 : 128);
      device::init_barrier(barriers.k_empty[i], Traits::consumers / 32);
      device::init_barrier(barriers.v_empty[i], Traits::consumers / 32);
    }
    for (int i = 0; i < detail::taken_tiles; ++i) {
      device::init_barrier(barriers.tile_full[i], 1);
      device::init_barrier(barriers.tile_empty[i], Traits::consumers / 32);
    }
    device::fence_barrier_init();
  }
  __syncthreads();

  if (threadIdx.x >= static_cast<unsigned>(Traits::consumers)) {
    device::release_registers<Traits::producer_registers>();
    const unsigned thread = threadIdx.x - static_cast<unsigned>(Traits::consumers);
    std::int32_t step = 0;  // of the rings
#pragma unroll 1
    for (std::int32_t nth = 0;; ++nth) {
      const detail::RingPlace<detail::taken_tiles> place(nth);
      detail::TakenTile& next = taken[place.stage];
      detail::BlockTile& found = next.tile;
      if (thread == 0) {
        device::wait(barriers.tile_empty[place.stage], place.parity ^ 1U);
      }
      const bool is_tile = detail::take_tile(a, thread, Traits::threads - Traits::consumers, found, [] {
        device::sync_named(detail::of_producer, Traits::threads - Traits::consumers);
      });
      const detail::KeyTiles tiles = is_tile ? detail::key_tiles<keys>(a, found.queries) : detail::KeyTiles{0, 0};
      if (thread == 0) {
        next.keys = tiles;
        next.first_step = step - tiles.first;
        device::arrive(barriers.tile_full[place.stage]);
      }
      if (!is_tile) {
        return;
      }
      const std::int32_t kv_head = found.heads.kv_head;
      // Loads tile j to its stage of a ring as soon as that is empty.
      const auto produce = [&](std::int32_t j, auto elements, auto stage_at, device::Barrier* empty,
                               device::Barrier* full, const device::TensorMap& map, std::int32_t dim, auto row) {
        constexpr int of = decltype(elements)::value;
        const Ring at(step + j - tiles.first);
        device::wait(empty[at.stage], at.parity ^ 1U);
        const device::SharedAddress to = stage_at(at.stage);
        if (by_tma) {
          detail::tma_copy_boxes<of, keys>(to, map, maps, found, kv_head, j, full[at.stage]);
        } else {
          detail::copy_rows<of, keys>(to, dim, a.kv.pool, found, j, full[at.stage], row);
        }
      };
      const auto produce_keys = [&](std::int32_t j) {
        produce(j, std::integral_constant<int, D>{}, k_stage, barriers.k_empty, barriers.k_full, maps.k, a.kv.key_dim,
                [&](RowLocation p) { return a.kv.k_row(p.block, kv_head, p.slot); });
      };
      const auto produce_values = [&](std::int32_t j) {
        produce(j, std::integral_constant<int, V>{}, v_stage, barriers.v_empty, barriers.v_full, maps.v, a.kv.value_dim,
                [&](RowLocation p) { return a.kv.v_row(p.block, kv_head, p.slot); });
      };
      if (!by_tma || thread < 32U) {  // one warp suffices for boxes
#pragma unroll 1
        for (std::int32_t j = tiles.first; j <= tiles.last; ++j) {
          if (j < tiles.last) {
            produce_keys(j);
          }
          if (j > tiles.first) {
            produce_values(j - 1);
          }
        }
      }
      step += tiles.last - tiles.first;
    }
  }

  device::acquire_registers<Traits::consumer_registers>();
  const int warp = static_cast<int>(threadIdx.x / 32U), lane = static_cast<int>(threadIdx.x % 32U);
  const int consumer = warp / 4;
  const detail::ScoreScale scale(a.scale, a.softcap);
  const auto wait_full = [&](device::Barrier& full, unsigned parity) {
    device::wait(full, parity);
    if (!by_tma) {
      device::fence_async_proxy();  // for the writes of the producer's threads, observed through the barrier
    }
  };
  const auto release = [&](device::Barrier& empty) {
    __syncwarp();
    if (lane == 0) {
      device::arrive(empty);
    }
  };
  if (Traits::take_turns && consumer == 1) {
    device::arrive_named(detail::of_turn, Traits::consumers);  // the other one begins
  }

#pragma unroll 1
  for (std::int32_t nth = 0;; ++nth) {
    const detail::RingPlace<detail::taken_tiles> place(nth);
    const detail::TakenTile& found = taken[place.stage];
    device::wait(barriers.tile_full[place.stage], place.parity);
    const detail::QueryTile& tile = found.tile.queries;
    if (tile.last == 0) {
      release(barriers.tile_empty[place.stage]);
      break;
    }
    const detail::BlockHeads& heads = found.tile.heads;
    const auto ring_of = [&](std::int32_t j) { return Ring(found.first_step + j); };
    const auto visible_to = [&](int, int half) {
      const int row = 16 * warp + 8 * half + lane / 4;
      return detail::visible_to(a, tile, detail::tile_row(a.tiles, tile, 0, row).position);
    };

    detail::copy_queries<D, Traits::consumers>(q_tile, a, tile, heads);
    device::commit_copies();
    detail::RowState<V, 1> state;
    state.reset();
    device::wait_copies<0>();
    device::fence_async_proxy();
    device::sync_named(detail::of_consumers, Traits::consumers);

    const device::SharedAddress q = q_tile + static_cast<unsigned>(consumer * 64 * detail::panel_row);
    float s[1][keys / 8][4] = {};
    std::uint32_t p[keys / 16][4];
    const auto softmax = [&](std::int32_t j) {
      detail::apply_softcap(s, scale);
      return detail::needs_mask<keys>(a, tile, j)
                 ? detail::online_softmax<true>(s, state, scale, j * keys, visible_to)
                 : detail::online_softmax<false>(s, state, scale, j * keys, visible_to);
    };
    const auto pack = [&] {
#pragma unroll
      for (int i = 0; i < keys / 16; ++i) {
        detail::pack_weights<F>(s[0], i, p[i]);
      }
    };
    const auto clear_hidden = [&](std::int32_t j, const Ring& at) {
      if (detail::needs_mask<keys>(a, tile, j)) {
        wait_full(barriers.v_full[at.stage], at.parity);
        detail::clear_hidden_values<F, keys>(
            shared + Traits::q_bytes + Traits::stages * Traits::k_bytes + at.stage * Traits::v_bytes, state, j * keys,
            tile.length, visible_to);
      }
    };

    {
      const Ring at = ring_of(found.keys.first);
      wait_full(barriers.k_full[at.stage], at.parity);
      detail::begin_scores<F, D>(q, k_stage(at.stage), s[0]);
      device::wgmma_wait<0>();
      device::fence_registers(s[0]);
      release(barriers.k_empty[at.stage]);
      (void)softmax(found.keys.first);
      pack();
    }
#pragma unroll 1
    for (std::int32_t j = found.keys.first; j + 1 < found.keys.last; ++j) {
      const Ring at = ring_of(j), next = ring_of(j + 1);
      clear_hidden(j, at);
      if (Traits::take_turns) {
        device::sync_named(detail::of_turn + consumer, Traits::consumers);
      }
      wait_full(barriers.k_full[next.stage], next.parity);
      detail::begin_scores<F, D>(q, k_stage(next.stage), s[0]);
      wait_full(barriers.v_full[at.stage], at.parity);
      detail::begin_outputs<F, V>(v_stage(at.stage), p, state.o[0]);
      if (Traits::take_turns) {
        device::arrive_named(detail::of_turn + 1 - consumer, Traits::consumers);
      }
      device::wgmma_wait<1>();
      device::fence_registers(s[0]);
      release(barriers.k_empty[next.stage]);
      const detail::RescaleFactors<1> factors = softmax(j + 1);
      device::wgmma_wait<0>();
      device::fence_registers(state.o[0]);
      device::fence_registers(p);
      release(barriers.v_empty[at.stage]);
      detail::rescale(state, factors);
      pack();
    }
    {
      const std::int32_t last = found.keys.last - 1;
      const Ring at = ring_of(last);
      clear_hidden(last, at);
      wait_full(barriers.v_full[at.stage], at.parity);
      detail::begin_outputs<F, V>(v_stage(at.stage), p, state.o[0]);
      device::wgmma_wait<0>();
      device::fence_registers(state.o[0]);
      release(barriers.v_empty[at.stage]);
    }
    device::sync_named(detail::of_consumer + consumer, 128);  // no product reads this warpgroup's queries any more
    detail::store_rows<F>(a, tile, heads, state, shared);
    release(barriers.tile_empty[place.stage]);
    device::sync_named(detail::of_consumers, Traits::consumers);  // the outputs have left the place of the queries
  }
  if (Traits::take_turns && consumer == 0) {
    device::sync_named(detail::of_turn, Traits::consumers);  // the last turn is nobody's
  }
#endif
}

}  // namespace cuda
}  // namespace v0
}  // namespace kvc
