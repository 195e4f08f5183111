// The data that kernels read: one layer of a cache (LayerView), and the block tables of a batch (BatchView).
//
// Both are plain values that are passed as kernel arguments and hold device addresses. A LayerView is valid as long as
// its cache lives, since pools never move. A BatchView is valid as long as its cuda::Batch lives; its arrays change
// with each upload, ordered by the stream. So a CUDA graph may capture both.
//
// This header needs no CUDA: the address arithmetic also runs, and is tested, on the host.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "kvc/batch.hpp"
#include "kvc/cache.hpp"
#include "kvc/config.hpp"
#include "kvc/core/error.hpp"
#include "kvc/core/retained.hpp"
#include "kvc/core/types.hpp"
#include "kvc/cuda/divisor.hpp"
#include "kvc/cuda/format.hpp"
#include "kvc/element/element.hpp"
#include "kvc/layout/layer_groups.hpp"
#include "kvc/layout/shape.hpp"
#include "kvc/memory/space.hpp"

namespace kvc {
inline namespace v0 {
namespace cuda {

/// Where the keys, or the values, of one layer lie: row (block, head, slot) is at byte base + block * block_stride +
/// head * head_stride + slot * slot_stride of the pool. All strides are 64-bit and in bytes.
struct RowStrides {
  Index base;   ///< offset of block 0, head 0, slot 0 in the pool
  Index block;  ///< stride from block to block
  Index head;   ///< stride from kv head to kv head
  Index slot;   ///< stride from slot to slot of one head

  /// Offset of a row, in bytes.
  [[nodiscard]] KVC_HOST_DEVICE constexpr Index offset(Index of_block, Index of_head, Index of_slot) const noexcept {
    return base + of_block * block + of_head * head + of_slot * slot;
  }
};

/// The layer group of a layer view, for checks on the host. The defaults are those of a cache of one group.
struct LayerRule {
  Index group = 0;         ///< the tables of a batch must be those of this group
  Retained retained = {};  ///< positions that rows of the layer may see; the others may be gone
  bool latent = false;     ///< the value is the beginning of the key, and not stored
  bool cross = false;      ///< rows of another input: no row is behind another one
  bool writable = true;    ///< false: the layer reads the rows of another one
};

/// One layer of a cache whose rows have format F.
template <Format F>
struct LayerView {
  static constexpr Format format = F;

  std::byte* pool;  ///< in device memory
  RowStrides k;
  RowStrides v;  ///< in a latent layer those of k
  std::int32_t kv_heads;
  std::int32_t key_dim;
  std::int32_t value_dim;
  Index blocks;       ///< blocks of the pool; 0: unknown
  Index block_slots;  ///< slots per block of the pool; 0: unknown
  LayerRule rule{};
  RowStrides k_scales{};  ///< of int8_planes: where the scales lie
  RowStrides v_scales{};

  /// The key of a slot in device memory.
  [[nodiscard]] KVC_HOST_DEVICE std::byte* k_row(Index block, Index head, Index slot) const noexcept {
    return pool + k.offset(block, head, slot);
  }
  /// The value of a slot in device memory.
  [[nodiscard]] KVC_HOST_DEVICE std::byte* v_row(Index block, Index head, Index slot) const noexcept {
    return pool + v.offset(block, head, slot);
  }
  /// The scale of the key of a slot in device memory; of formats with scales.
  [[nodiscard]] KVC_HOST_DEVICE std::byte* k_scale(Index block, Index head, Index slot) const noexcept {
    return F == Format::int8_planes ? pool + k_scales.offset(block, head, slot)
                                    : k_row(block, head, slot) + scale_offset(key_dim);
  }
  /// The scale of the value of a slot in device memory; of formats with scales.
  [[nodiscard]] KVC_HOST_DEVICE std::byte* v_scale(Index block, Index head, Index slot) const noexcept {
    return F == Format::int8_planes ? pool + v_scales.offset(block, head, slot)
                                    : v_row(block, head, slot) + scale_offset(value_dim);
  }
};

/// Whether all rows begin at multiples of so many bytes of the pool.
[[nodiscard]] inline bool rows_begin_at(const RowStrides& rows, Index multiple) noexcept {
  return rows.base % multiple == 0 && rows.block % multiple == 0 && rows.head % multiple == 0 &&
         rows.slot % multiple == 0;
}

/// The block and slot of a position; the same in every layer.
struct RowLocation {
  std::int32_t block;
  std::int32_t slot;
};

/// Positions [start - positions, start) of a sequence have no table entry: its layer group has dropped them.
struct EntryGap {
  Pos start = 0;
  Pos positions = 0;
  /// The number of position p among those that have entries.
  [[nodiscard]] KVC_HOST_DEVICE constexpr Pos without(Pos p) const noexcept { return p >= start ? p - positions : p; }
};
/// The gap of each sequence of a batch; empty if there are none.
[[nodiscard]] inline std::vector<EntryGap> entry_gaps(const BatchTables& tables) {
  std::vector<EntryGap> gaps;
  if (tables.has_gaps()) {
    for (std::size_t i = 0; i < tables.kv_starts.size(); ++i) {
      gaps.push_back({tables.kv_starts[i], tables.seq_lens[i] - tables.kv_lens[i]});
    }
  }
  return gaps;
}

/// The scalars of a batch.
struct BatchHeader {
  std::int32_t size = 0;     ///< sequences
  std::int32_t queries = 0;  ///< query rows of all sequences: q_indptr[size]
  Divisor block_tokens{};    ///< positions per entry of kv_indices
  bool has_first_slots = false;
  bool has_gaps = false;

  BatchHeader() = default;
  /// The scalars of these tables.
  explicit BatchHeader(const BatchTables& tables)
      : size(tables.size()),
        queries(tables.queries()),
        block_tokens(tables.block_tokens),
        has_first_slots(!tables.first_slots.empty()),
        has_gaps(tables.has_gaps()) {}
};

/// The tiles of queries that a running prefill has given to its thread blocks. Zero before and after.
struct TileQueue {
  std::uint32_t next = 0;    ///< index of the next tile
  std::uint32_t blocks = 0;  ///< thread blocks that found no more
};

/// The block tables of a batch in device memory, in a form that fits every policy. Each entry stands for block_tokens
/// consecutive positions of a sequence in consecutive slots: a block of a paged policy, a whole sequence of a
/// contiguous one, and a single position of a policy that guarantees neither.
struct BatchView {
  const BatchHeader* header;
  const std::int32_t* q_indptr;    ///< [size + 1]; query rows before sequence b
  const std::int32_t* kv_indptr;   ///< [size + 1]; entries before sequence b
  const std::int32_t* kv_indices;  ///< [kv_indptr[size]]; the block of each entry
  const std::int32_t*
      first_slots;  ///< [kv_indptr[size]]; the slot of each entry's first position; only if has_first_slots
  const std::int32_t* seq_lens;  ///< [size]; positions, including those of the query rows
  const EntryGap* gaps;          ///< [size]; only if has_gaps
  TileQueue* tile_queue;

  /// The positions of sequence b without entries.
  [[nodiscard]] KVC_HOST_DEVICE EntryGap gap(const BatchHeader& of, std::int32_t b) const noexcept {
    return of.has_gaps ? gaps[b] : EntryGap{};
  }
  /// Block and slot of position p < seq_lens[b] of sequence b, which must have an entry.
  [[nodiscard]] KVC_HOST_DEVICE RowLocation locate(std::int32_t b, Pos p) const noexcept {
    return locate(*header, kv_indptr[b], gap(*header, b).without(p));
  }
  /// The same, with values that are equal for all positions of a sequence loaded before: one load, two with
  /// first_slots.
  ///
  ///   of           *header
  ///   first_entry  kv_indptr[b]
  ///   p            gap(of, b).without(position)
  [[nodiscard]] KVC_HOST_DEVICE RowLocation locate(const BatchHeader& of, std::int32_t first_entry,
                                                   Pos p) const noexcept {
    const auto nth = static_cast<std::int32_t>(of.block_tokens.quotient(static_cast<std::uint32_t>(p)));
    const Index entry = Index{first_entry} + nth;
    const std::int32_t first = of.has_first_slots ? first_slots[entry] : 0;
    return {kv_indices[entry], first + p - nth * of.block_tokens.value()};
  }
};

/// One layer of a pool with the given layout. The layout must be a sum of multiples, as HeadMajor and TokenMajor are.
///
///   pool    address of the pool in device memory
///   layout  a Layout, or a GroupLayout
///   layer   0 <= layer < shape.layers, not checked
///
/// Throws std::invalid_argument for latent rows whose beginning is not the row of fewer elements: those of Int8.
template <ElementType T, class L>
[[nodiscard]] LayerView<format_in<T, L>> layer_view(std::byte* pool, const L& layout, const Shape& shape, Index layer,
                                                    const LayerRule& rule = {}) {
  static_assert(format_in<T, L> != Format::none,
                "kvc/cuda has no kernels for this element type, or for its scales in planes");
  require(!rule.latent || RowPrefixElement<T>, "layer", "latent",
          kvc::detail::concat(
              {"one that stores values: the kernels of kvc::cuda read no latent rows of ", Element<T>::name}));
  constexpr auto unit = static_cast<Index>(sizeof(StorageOf<T>));
  const auto strides = [&](auto offset) {
    const Index base = offset(0, layer, 0, 0);
    return RowStrides{base * unit, (offset(1, layer, 0, 0) - base) * unit, (offset(0, layer, 1, 0) - base) * unit,
                      (offset(0, layer, 0, 1) - base) * unit};
  };
  LayerView<format_in<T, L>> view{
      pool,
      strides([&](int block, Index l, Index head, Pos slot) { return layout.k(BlockId{block}, l, head, slot); }),
      strides([&](int block, Index l, Index head, Pos slot) { return layout.v(BlockId{block}, l, head, slot); }),
      static_cast<std::int32_t>(shape.kv_heads),
      static_cast<std::int32_t>(shape.key_dim),
      static_cast<std::int32_t>(shape.value_dim),
      layout.extents().blocks,
      layout.extents().block_tokens,
      rule,
      {},
      {}};
  if constexpr (format_in<T, L> == Format::int8_planes) {
    view.k_scales = strides(
        [&](int block, Index l, Index head, Pos slot) { return layout.k_scales(BlockId{block}, l, head, slot); });
    view.v_scales = strides(
        [&](int block, Index l, Index head, Pos slot) { return layout.v_scales(BlockId{block}, l, head, slot); });
  }
  return view;
}

/// A space that queues copies of rows until it is asked to launch them: DeviceSpace.
///
///   s.flush()   launches the queued copies; throws Error
template <class S>
concept QueuesCopies = Space<S> && requires(S& s) { s.flush(); };

/// One layer of a cache in device memory, of the layers of the model. Launches the cache's queued copies first: see
/// DeviceSpace. Throws std::invalid_argument if there is no such layer, it is a recurrent one, or its rows are
/// compressed; Error.
template <ElementType T, Policy P, Layout L, Space S>
[[nodiscard]] LayerView<format_in<T, L>> view(KvCache<T, P, L, S>& cache, Index layer) {
  static_assert(
      QueuesCopies<S>,
      "kvc::cuda::view is for caches in device memory: KvCache<T, Policy, Layout, kvc::cuda::DeviceSpace>, from "
      "kvc/cuda/space.cuh. For a cache in host memory call cache.view(layer, seq).");
  const LayerPlace place = cache.layers().place(layer);
  const LayerGroup& group = cache.layers().groups()[static_cast<std::size_t>(place.group)];
  require(group.tokens_per_row == 1, "layer", layer,
          "one with a row for each token: the kernels of kvc::cuda read no compressed rows");
  cache.space().flush();
  return layer_view<T>(reinterpret_cast<std::byte*>(cache.data()), cache.group_layout(place.group), group.shape,
                       place.layer, {place.group, group.retained, group.latent, group.cross_rows > 0, place.is_owner});
}

namespace detail {
/// Throws std::invalid_argument unless the tables of a batch, or of its plan, are those of the layer's group. -1: none
/// are uploaded yet.
inline void require_same_group(const LayerRule& rule, Index group_of_tables) {
  require(group_of_tables == -1 || group_of_tables == rule.group, "group of the tables", group_of_tables,
          "that of the layer: " + std::to_string(rule.group));
}
/// Throws std::invalid_argument if the layer reads the rows of another one.
inline void require_writable(const LayerRule& rule) {
  require(rule.writable, "layer", "a reader", "one that stores rows: this one reads those of another layer");
}
/// Throws std::invalid_argument unless rows of the layer that see what `seen` says see nothing that its group drops.
/// (What a row of any batch needs is checked when the tables are uploaded: see Batch::upload.)
inline void require_retains(const LayerRule& rule, const Retained& seen) {
  const Retained& kept = rule.retained;
  const bool window = kept.window == 0 || (seen.window > 0 && seen.window <= kept.window) ||
                      (seen.chunk > 0 && seen.chunk <= kept.window);
  const bool chunk = kept.chunk == 0 || (seen.chunk > 0 && kept.chunk % seen.chunk == 0) || seen.window == 1;
  require(window, "window", seen.window,
          "at least 1 and at most " + std::to_string(kept.window) + ", the window of the layer's group");
  require(chunk, "chunk", seen.chunk,
          "a divisor of " + std::to_string(kept.chunk) + ", the chunk of the layer's group");
  require(kept.everything() || seen.kept <= kept.kept, "kept", seen.kept,
          "at most " + std::to_string(kept.kept) + ", that of the layer's group");
}
}  // namespace detail

}  // namespace cuda
}  // namespace v0
}  // namespace kvc
