// TileBase: the parts that the tiles of kv_tile.hpp share. These are the current rows, the prefetcher, and the cutting
// of a call into blocks of keys.
#pragma once

#include <algorithm>
#include <type_traits>

#include "kvc/attention/kernel/kernels.hpp"
#include "kvc/attention/kernel/kv_tile_rows.hpp"
#include "kvc/attention/kernel/part_kernels.hpp"
#include "kvc/core/types.hpp"
#include "kvc/simd/vec.hpp"

namespace kvc {
inline namespace v0 {
namespace detail {

/// Extents, the rows that are read now, and the prefetcher of those that come next.
template <class T>
class TileBase {
 public:
  using Element = T;
  static constexpr int most_value_rows = kernel_rows;

  [[nodiscard]] Prefetcher& prefetcher() noexcept { return prefetcher_; }

 protected:
  /// Elements of the row that a value is read from: those of the key where it is the beginning of one.
  [[nodiscard]] Index value_row_dim() const noexcept { return rows_->values_in_keys ? key_dim_ : value_dim_; }

  TileBase(Index key_dim, Index value_dim) noexcept : key_dim_(key_dim), value_dim_(value_dim) {}

  Index key_dim_;
  Index value_dim_;
  const KvTileRows<T>* rows_ = nullptr;
  bool once_ = false;  ///< whether so few query rows read the tile that reading it again beats keeping it
  Prefetcher prefetcher_;
};

/// The base of tiles whose sums are floats, in a fixed order: FloatTile and Bf16Tile.
template <class T>
class FloatSumTile : public TileBase<T> {
 public:
  static constexpr bool exact_sums = false;
  static constexpr bool has_long_rows = false;
  static constexpr int most_rows = packed_rows;

  void set(const KvTileRows<T>& rows, const KvTileRows<T>* next, Index count) noexcept {
    this->rows_ = &rows;
    this->once_ = count <= few_rows;
    value_step_ = this->prefetcher_.begin_tile_evenly(rows, next, this->key_dim_, this->value_dim_, count);
  }

  [[nodiscard]] Index value_step() const noexcept { return value_step_; }

 protected:
  using TileBase<T>::TileBase;

  /// set() of a tile that few query rows read, whose rows lie apart. The caller prefetches. Narrow blocks of sums read
  /// the values again for each few columns: so many at a time stay in the first-level cache, wherever they lie.
  void begin_scattered_tile(const KvTileRows<T>& rows) noexcept {
    this->rows_ = &rows;
    this->once_ = true;
    this->prefetcher_.stop();
    value_step_ = has_part_kernels ? Index{simd::lanes} : tile_keys;
  }

  /// Scores of R rows for blocks of keys that cover [first, last), from keys as they lie.
  template <class DotTraits, int R, class Keys, class Scale = UnscaledScores>
  KVC_ALWAYS_INLINE void score_blocks(const Keys& keys, Index first, Index last, Index vectors, const float* q,
                                      Index q_stride, float* s, const Scale& scale = {}) noexcept {
    Prefetcher prefetcher = this->prefetcher_;  // in registers
    score_blocks<DotTraits, R>(keys, first, last, vectors, q, q_stride, s, scale, prefetcher);
    this->prefetcher_ = prefetcher;
  }
  template <class DotTraits, int R, class Keys, class Scale, class Prefetches>
  KVC_ALWAYS_INLINE static void score_blocks(const Keys& keys, Index first, Index last, Index vectors, const float* q,
                                             Index q_stride, float* s, const Scale& scale,
                                             Prefetches& prefetcher) noexcept {
    if constexpr (DotTraits::splits_long_keys) {
      if (vectors > longest_chain) {
        blocks_of_keys<DotTraits, R, true>(keys, first, last, vectors, q, q_stride, s, scale, prefetcher);
        return;
      }
    }
    blocks_of_keys<DotTraits, R, false>(keys, first, last, vectors, q, q_stride, s, scale, prefetcher);
  }

 private:
  template <class DotTraits, int R, bool is_long, class Keys, class Scale, class Prefetches>
  KVC_ALWAYS_INLINE static void blocks_of_keys(const Keys& keys, Index first, Index last, Index vectors, const float* q,
                                               Index q_stride, float* s, const Scale& scale,
                                               Prefetches& prefetcher) noexcept {
#if KVC_PART_KERNELS
    if constexpr (R > 1) {
      static_assert(std::is_same_v<DotTraits, FloatDotTraits> && std::is_same_v<Scale, UnscaledScores>);
      score_parts<R, is_long>(keys, first, last, vectors, q, q_stride, s, prefetcher);
    } else
#endif
    {
      constexpr int K = block_keys<R>;
      for (Index j = first / K * K; j < last; j += K) {
        simd::F32x16 sum[R][K] = {};
        add_chains<is_long>(vectors, sum, [&](Index c, Index end, auto& x) __attribute__((always_inline)) {
          add_keys<DotTraits, R>(q, q_stride, keys, j, c, end, x, prefetcher);
        });
        store_scores<R, K>(sum, s + j, scale);
      }
    }
  }

  Index value_step_ = tile_keys;
};

/// The base of tiles whose sums are exact integers: ByteTile and NibbleTile. Keys lie across positions, 16 together.
///
///   Tile::score_groups<R, C>(g, q, q_stride, s)   scores of R rows and C groups of 16 keys from group g on
template <class Tile, class T>
class IntegerSumTile : public TileBase<T> {
 public:
  static constexpr bool exact_sums = true;
  static constexpr bool has_long_rows = false;
  static constexpr bool in_order = false;
  static constexpr Index key_pass = tile_keys;
  static constexpr int most_rows = kernel_rows;

  [[nodiscard]] static ScaleParts scale_parts(float scale) noexcept { return ScaleParts::in_queries(scale); }

  template <int R>
  KVC_OUT_OF_LINE void scores(Index first, Index last, const float* q, Index q_stride, float* s) noexcept {
    auto& tile = static_cast<Tile&>(*this);
    const Index end = ceil_div(last, Index{simd::lanes});
    Index g = first / simd::lanes;
    for (; end - g >= 2; g += 2) {
      tile.template score_groups<R, 2>(g, q, q_stride, s);
    }
    if (g < end) {
      tile.template score_groups<R, 1>(g, q, q_stride, s);
    }
  }
  template <int R>
  void scores_of_many(Index first, Index last, const float* q, Index q_stride, float* s) noexcept {
    scores<R>(first, last, q, q_stride, s);
  }

 protected:
  using TileBase<T>::TileBase;

  /// set() of a tile whose rows of keys and values have `row_bytes` bytes of codes together.
  void begin_tile(const KvTileRows<T>& rows, const KvTileRows<T>* next, Index count, Index row_bytes) noexcept {
    this->rows_ = &rows;
    this->once_ = count <= few_rows;
    if (this->once_ || next != nullptr) {
      const Index bytes = (rows.last - rows.first) * row_bytes;
      this->prefetcher_.begin_tile_in_bursts(rows, next, this->once_ ? bytes / ByteSpan::line : 0, count);
    }
  }
};

}  // namespace detail
}  // namespace v0
}  // namespace kvc
