// What the prefill kernels take, and how the query rows of a batch are cut into tiles.
//
// A tile of queries is `positions` consecutive positions of one sequence, beginning at a multiple of that, times
// `heads` query heads of one GQA group, packed with the head as the fastest index: the heads of a position lie side by
// side in memory, and each key that a tile loads serves all of its rows. Tiles are fixed by absolute position, so that
// which rows share a tile does not depend on how a prompt was chunked, nor on the batch.
//
// Sizes of a batch are known on the device only. So tiles are numbered so that a thread block finds its own by
// itself:
//
//   tiles before sequence b = q_indptr[b] / positions + 2 b
//
// Since n rows lie in at most floor((n - 1) / positions) + 2 tiles, the numbers of a sequence are never too few, and at
// most two more than it has tiles (three if it has none): their blocks exit at once.
#pragma once

#include <cstddef>
#include <cstdint>

#include "kvc/core/types.hpp"
#include "kvc/cuda/divisor.hpp"
#include "kvc/cuda/view.cuh"

namespace kvc {
inline namespace v0 {
namespace cuda {

/// Rows of a tile of queries of the fast kernel, and keys of a tile of keys.
inline constexpr int prefill_rows = 128;
inline constexpr int prefill_keys = 64;

/// The extents of tiles of queries.
struct PrefillTiles {
  Divisor heads;            ///< query heads of a tile; the last tile of a group may have fewer
  Divisor positions;        ///< positions of a tile
  std::int32_t head_tiles;  ///< tiles for the heads of a group
};

/// At most 32 heads, so that little of a tile is left empty: a group of 71 becomes 24 + 24 + 23 heads of 5 positions.
[[nodiscard]] constexpr PrefillTiles make_prefill_tiles(std::int32_t group) noexcept {
  const std::int32_t head_tiles = (group + 31) / 32;
  const std::int32_t heads = (group + head_tiles - 1) / head_tiles;
  return {Divisor(heads), Divisor(prefill_rows / heads), head_tiles};
}

/// Slots for any batch of so many rows and sequences.
[[nodiscard]] constexpr Index max_prefill_tiles(const PrefillTiles& tiles, Index sequences, Index queries) noexcept {
  return queries / tiles.positions.value() + 2 * sequences;
}

/// Arguments of the prefill kernels.
template <Format F>
struct PrefillArguments {
  LayerView<F> kv;
  BatchView batch;
  PrefillTiles tiles;
  const std::byte* q;  ///< [queries, query_heads * key_dim]
  std::byte* out;      ///< [queries, query_heads * value_dim]
  std::int32_t query_heads;
  std::int32_t group;  ///< query heads per kv head
  float scale;
  float softcap;
  Pos window;
  bool causal;
};

namespace detail {

/// Keys [first, last) that a row at position p sees, of a sequence of `length` positions.
struct VisibleKeys {
  Pos first;
  Pos last;
  [[nodiscard]] KVC_HOST_DEVICE constexpr bool has(Pos key) const noexcept { return first <= key && key < last; }
};
[[nodiscard]] KVC_HOST_DEVICE constexpr VisibleKeys visible_keys(Pos p, Pos length, bool causal, Pos window) noexcept {
  const Pos first = window > 0 && p >= window ? p - window + 1 : 0;
  return {first, causal && p < length ? p + 1 : length};
}

/// Where a tile of queries lies: it begins at position `begin`, and has rows of positions [first, last).
struct QueryTile {
  std::int32_t sequence;
  std::int32_t row;  ///< in q, of the sequence's position `start`
  Pos start;         ///< position of the first query row of the sequence
  Pos length;        ///< positions of the sequence
  Pos begin;
  Pos first;
  Pos last;
};

/// Tile `slot` of a sequence, counted from its last one: the tiles with most keys come first. False if there is none.
[[nodiscard]] KVC_HOST_DEVICE constexpr bool tile_at(const PrefillTiles& tiles, std::int32_t slot, Pos start,
                                                     Pos length, QueryTile& tile) noexcept {
  if (length <= start) {
    return false;
  }
  const auto index = [&](Pos p) {
    return static_cast<std::int32_t>(tiles.positions.quotient(static_cast<std::uint32_t>(p)));
  };
  const std::int32_t at = index(length - 1) - slot;
  if (at < index(start)) {
    return false;
  }
  tile.start = start;
  tile.length = length;
  tile.begin = at * tiles.positions.value();
  tile.first = tile.begin > start ? tile.begin : start;
  tile.last = length - tile.begin > tiles.positions.value() ? tile.begin + tiles.positions.value() : length;
  return true;
}

/// Row r of a tile.
struct TileRow {
  Pos position;
  std::int32_t head;  ///< of the group
};
[[nodiscard]] KVC_HOST_DEVICE constexpr TileRow tile_row(const PrefillTiles& tiles, const QueryTile& tile,
                                                         std::int32_t first_head, std::int32_t r) noexcept {
  const auto position = static_cast<std::int32_t>(tiles.heads.quotient(static_cast<std::uint32_t>(r)));
  return {tile.begin + position, first_head + r - position * tiles.heads.value()};
}

}  // namespace detail

}  // namespace cuda
}  // namespace v0
}  // namespace kvc
