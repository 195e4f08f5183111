// The arguments of the prefill kernels, and how the query rows of a batch are cut into tiles.
//
// A tile of queries covers `positions` consecutive positions of one sequence, starting at a multiple of that number,
// times `heads` query heads of one GQA group. The head is the fastest index: the heads of a position are adjacent in
// memory, and each key serves all rows of the tile. Tiles are fixed by absolute position, so which rows share a tile
// depends neither on how a prompt was chunked nor on the batch.
//
// The sizes of a batch are known on the device only, so each thread block takes an index and finds its tile from it:
//
//   index of the first tile of sequence b = q_indptr[b] / positions + 2 b
//
// n rows lie in at most floor((n - 1) / positions) + 2 tiles. So every tile has an index, and each sequence has at most
// two indices without a tile (three if it has no rows), which are passed over. For each pair of a kv head and a tile of
// heads these indices follow each other.
#pragma once

#include <cstddef>
#include <cstdint>

#include "kvc/core/types.hpp"
#include "kvc/cuda/divisor.hpp"
#include "kvc/cuda/view.cuh"

namespace kvc {
inline namespace v0 {
namespace cuda {

/// Rows of a tile of queries, and keys of a tile of keys, of the kernel by warps.
inline constexpr int prefill_rows = 128;
inline constexpr int prefill_keys = 64;

/// The shape of tiles of queries for one GQA group size.
struct PrefillTiles {
  Divisor heads;            ///< query heads per tile; the last tile of a group may have fewer
  Divisor positions;        ///< positions per tile
  std::int32_t head_tiles;  ///< tiles that cover the heads of a group
};

/// Tiles of at most 32 heads, balanced to waste few rows: a group of 71 becomes 24 + 24 + 23 heads of 5 positions.
[[nodiscard]] constexpr PrefillTiles make_prefill_tiles(std::int32_t group) noexcept {
  const std::int32_t head_tiles = (group + 31) / 32;
  const std::int32_t heads = (group + head_tiles - 1) / head_tiles;
  return {Divisor(heads), Divisor(prefill_rows / heads), head_tiles};
}

/// An upper bound of tile indices for any batch of so many sequences and query rows.
[[nodiscard]] constexpr Index max_prefill_tiles(const PrefillTiles& tiles, Index sequences, Index queries) noexcept {
  return queries / tiles.positions.value() + 2 * sequences;
}

/// Arguments of all prefill kernels.
template <Format F>
struct PrefillArguments {
  LayerView<F> kv;
  BatchView batch;
  PrefillTiles tiles;
  const std::byte* q;  ///< [queries, query_heads * key_dim]
  std::byte* out;      ///< [queries, query_heads * value_dim]
  float* lse;          ///< [queries, query_heads] natural logarithms, or null
  const float* sinks;  ///< [query_heads] logits, or null
  std::int32_t query_heads;
  std::int32_t group;  ///< query heads per kv head
  float scale;
  float softcap;
  Pos back;       ///< positions before its own that a row sees: those of the window, or max_pos
  Divisor chunk;  ///< max_pos: no chunks
  Pos kept;       ///< the plain kernel only
  bool causal;
  bool cross;  ///< keys of another input: rows are numbered from 0, and see all keys
};

namespace detail {

/// Keys [first, last) that a row sees.
struct VisibleKeys {
  Pos first;
  Pos last;
  [[nodiscard]] KVC_HOST_DEVICE constexpr bool has(Pos key) const noexcept { return first <= key && key < last; }
};
/// The first position of the chunk of position p.
template <Format F>
[[nodiscard]] KVC_HOST_DEVICE constexpr Pos chunk_of(const PrefillArguments<F>& a, Pos p) noexcept {
  return static_cast<Pos>(a.chunk.quotient(static_cast<std::uint32_t>(p))) * a.chunk.value();
}
/// The keys that a row at position p sees, without kept positions, in a sequence of `length` positions, by its window
/// and by its chunk, which begins at `chunk`.
template <Format F>
[[nodiscard]] KVC_HOST_DEVICE constexpr VisibleKeys visible_keys(const PrefillArguments<F>& a, Pos p, Pos chunk,
                                                                 Pos length) noexcept {
  return {p - a.back > chunk ? p - a.back : chunk, a.causal && p < length ? p + 1 : length};
}

/// A tile of queries. It begins at position `begin`; rows exist for positions [first, last).
struct QueryTile {
  std::int32_t sequence;
  std::int32_t row;  ///< index in q of the row at position `start`
  Pos start;         ///< position of the sequence's first query row
  Pos length;        ///< positions of the sequence, or rows of the other input: keys
  Pos begin;
  Pos first;
  Pos last;
  Pos chunk;       ///< where the chunk of position `begin` begins
  Pos next_chunk;  ///< and the next one; a tile has rows of no third one
};

/// Tile `slot` of a sequence with rows at positions [start, length), counted from its end, since the last tiles have
/// most keys. False if there is none.
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

/// Position and head of row r of a tile.
struct TileRow {
  Pos position;
  std::int32_t head;  ///< within the group
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
