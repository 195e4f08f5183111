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

#include "kvc/cache.hpp"
#include "kvc/cache/one_group.hpp"
#include "kvc/config.hpp"
#include "kvc/core/error.hpp"
#include "kvc/core/types.hpp"
#include "kvc/cuda/divisor.hpp"
#include "kvc/cuda/format.hpp"
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

/// One layer of a cache whose rows have format F.
template <Format F>
struct LayerView {
  static constexpr Format format = F;

  std::byte* pool;  ///< in device memory
  RowStrides k;
  RowStrides v;
  std::int32_t kv_heads;
  std::int32_t key_dim;
  std::int32_t value_dim;
  Index blocks;       ///< blocks of the pool; 0: unknown
  Index block_slots;  ///< slots per block of the pool; 0: unknown

  /// The key of a slot in device memory.
  [[nodiscard]] KVC_HOST_DEVICE std::byte* k_row(Index block, Index head, Index slot) const noexcept {
    return pool + k.offset(block, head, slot);
  }
  /// The value of a slot in device memory.
  [[nodiscard]] KVC_HOST_DEVICE std::byte* v_row(Index block, Index head, Index slot) const noexcept {
    return pool + v.offset(block, head, slot);
  }
};

/// The block and slot of a position; the same in every layer.
struct RowLocation {
  std::int32_t block;
  std::int32_t slot;
};

/// The scalars of a batch.
struct BatchHeader {
  std::int32_t size = 0;     ///< sequences
  std::int32_t queries = 0;  ///< query rows of all sequences: q_indptr[size]
  Divisor block_tokens{};    ///< positions per entry of kv_indices
  bool has_first_slots = false;
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

  /// Block and slot of position p < seq_lens[b] of sequence b.
  [[nodiscard]] KVC_HOST_DEVICE RowLocation locate(std::int32_t b, Pos p) const noexcept {
    return locate(*header, kv_indptr[b], p);
  }
  /// The same, with values that are equal for all positions of a sequence loaded before: one load, two with
  /// first_slots.
  ///
  ///   of           *header
  ///   first_entry  kv_indptr[b]
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
///   pool   address of the pool in device memory
///   layer  0 <= layer < shape.layers, not checked
template <ElementType T, Layout L>
[[nodiscard]] LayerView<format_of<T>> layer_view(std::byte* pool, const L& layout, const Shape& shape, Index layer) {
  static_assert(format_of<T> != Format::none, "kvc/cuda has no kernels for this element type");
  constexpr auto unit = static_cast<Index>(sizeof(StorageOf<T>));
  const auto strides = [&](auto offset) {
    const Index base = offset(0, layer, 0, 0);
    return RowStrides{base * unit, (offset(1, layer, 0, 0) - base) * unit, (offset(0, layer, 1, 0) - base) * unit,
                      (offset(0, layer, 0, 1) - base) * unit};
  };
  return {pool,
          strides([&](int block, Index l, Index head, Pos slot) { return layout.k(BlockId{block}, l, head, slot); }),
          strides([&](int block, Index l, Index head, Pos slot) { return layout.v(BlockId{block}, l, head, slot); }),
          static_cast<std::int32_t>(shape.kv_heads),
          static_cast<std::int32_t>(shape.key_dim),
          static_cast<std::int32_t>(shape.value_dim),
          layout.extents().blocks,
          layout.extents().block_tokens};
}

/// A space that queues copies of rows until it is asked to launch them: DeviceSpace.
///
///   s.flush()   launches the queued copies; throws Error
template <class S>
concept QueuesCopies = Space<S> && requires(S& s) { s.flush(); };

/// One layer of a cache in device memory. Launches the cache's queued copies first: see DeviceSpace. Throws
/// std::invalid_argument if there is no such layer, or for a cache with layer groups; Error.
template <ElementType T, Policy P, Layout L, Space S>
[[nodiscard]] LayerView<format_of<T>> view(KvCache<T, P, L, S>& cache, Index layer) {
  static_assert(
      QueuesCopies<S>,
      "kvc::cuda::view is for caches in device memory: KvCache<T, Policy, Layout, kvc::cuda::DeviceSpace>, from "
      "kvc/cuda/space.cuh. For a cache in host memory call cache.view(layer, seq).");
  require_one_group(cache, "cuda::view");
  require_between(layer, Index{0}, cache.shape().layers - 1, "layer");
  cache.space().flush();
  return layer_view<T>(reinterpret_cast<std::byte*>(cache.data()), cache.layout(), cache.shape(), layer);
}

}  // namespace cuda
}  // namespace v0
}  // namespace kvc
