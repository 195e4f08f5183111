// QueryTile: the arithmetic of attention, for some query rows against one tile of keys and values at a time.
//
// Prefill and decode compute here and nowhere else, so their results have the same bits. The absolute positions of the
// keys alone fix the order of operations of each row:
//
//   tile    64 positions from a multiple of 64: scores, each a chain over the dims, of long keys several; their
//           maximum, exponentials and the sum of these (simd::sum of four vectors added in pairs); then weighted
//           values, a chain over ascending positions from 0, or exact; and o = madd(o, rescale, sum). Each tile type
//           defines its accumulation order: attention/kernel/kv_tile.hpp
//   split   512 positions from a multiple of 512: tiles in ascending order into one state that starts as the identity
//   row     the states of its splits merged in ascending order from the left
//
// Rows share loads and registers, never an operation. A key that a row must not see has no effect on it, even if it is
// NaN or uninitialised: the sums of that row skip it, or both it and its weight are 0.
#pragma once

#include <algorithm>
#include <bit>
#include <cstdint>
#include <limits>
#include <type_traits>

#include "kvc/attention/kernel/kernels.hpp"
#include "kvc/attention/kernel/kv_tile_rows.hpp"
#include "kvc/attention/kernel/online_softmax.hpp"
#include "kvc/attention/kernel/row_states.hpp"
#include "kvc/attention/kernel/scratch.hpp"
#include "kvc/attention/options.hpp"
#include "kvc/core/types.hpp"
#include "kvc/simd/vec.hpp"

namespace kvc {
inline namespace v0 {
namespace detail {

/// Query rows of one tile in prefill: rows of q x query heads of the GQA group.
inline constexpr Index query_tile_rows = 256;

/// How many rows of q and of the output to prefetch ahead. The prefetchers of the processor do not follow rows that lie
/// at a distance from one another.
inline constexpr Index rows_ahead = 8;

/// Prefetches a row that will soon be read, or written.
template <bool write = false>
KVC_ALWAYS_INLINE void prefetch_row(const float* row, Index dim) noexcept {
  for (Index d = 0; d < dim; d += simd::lanes) {
    __builtin_prefetch(row + d, write ? 1 : 0);
  }
}

/// The query rows of a work item. For each of some kv heads there are `queries` rows of q, which may belong to several
/// sequences, and for each of these the query heads of one GQA group. Rows are numbered in this order, so that
/// neighbours see nearly the same keys. The caller owns the numbers of the rows, made by `prepare`.
template <class Tile>
class QueryTile {
 public:
  /// A row of q: its number, and the keys that it may see (visible_keys).
  struct Query {
    Index row;
    VisibleKeys keys;
  };

  [[nodiscard]] static constexpr Index scratch_floats(const AttentionDims& dims, Index queries) noexcept {
    const Index rows = queries * dims.group;
    return rows * (tile_keys + Tile::weight_floats(dims.value_dim)) + Scratch::floats_for<Query>(queries) +
           Scratch::floats_for<VisibleKeys>(rows) + Scratch::floats_for<std::uint64_t>(rows) + 2 * padded(rows) +
           kernel_rows * Tile::state_floats(dims.value_dim);
  }

  /// Rows of q as the tile wants them, with the tile's part of the scale.
  ///
  ///   row(i) -> const float*   [key_dim], i < count
  ///   to                       [count, query_floats]
  ///   scaled                   [padded(key_dim)] working memory
  template <class F>
  static void prepare(const AttentionDims& dims, Index count, F row, float* scaled, float* to) {
    const float factor = Tile::scale_parts(dims.scale).of_queries;
    for (Index i = 0; i < count; ++i) {
      if (i + rows_ahead < count) {
        prefetch_row(row(i + rows_ahead), dims.key_dim);
      }
      const float* const from = row(i);
      std::transform(from, from + dims.key_dim, scaled, [factor](float x) { return x * factor; });
      Tile::prepare_query(scaled, dims.key_dim, to + i * Tile::query_floats(dims.key_dim));
    }
  }

  ///   query(i) -> Query   i < queries, called once for each in ascending order
  ///   q                   prepared rows of the first head
  ///   q_rows              rows from one head to the next
  template <class F>
  QueryTile(const AttentionDims& dims, const AttentionOptions& options, Index first_head, Index queries, F query,
            const float* q, Index q_rows, Scratch& scratch)
      : dims_(dims),
        options_(options),
        first_head_(first_head),
        queries_(queries),
        query_size_(Tile::query_floats(dims.key_dim)),
        weight_size_(Tile::weight_floats(dims.value_dim)),
        value_pad_(Tile::state_floats(dims.value_dim)),
        q_(q),
        q_rows_(q_rows),
        p_(scratch.take(queries * dims.group * tile_keys)),
        w_(scratch.take(queries * dims.group * weight_size_)),
        sums_(scratch.take(kernel_rows * value_pad_)),
        query_(scratch.template take_as<Query>(queries)),
        keys_(scratch.template take_as<VisibleKeys>(queries * dims.group)),
        visible_(scratch.template take_as<std::uint64_t>(queries * dims.group)),
        rescale_(scratch.take(padded(queries * dims.group))),
        largest_(scratch.take(padded(queries * dims.group))) {
    if (weight_size_ == 0) {
      w_ = p_;
      weight_size_ = tile_keys;
    }
    for (Index i = 0; i < queries; ++i) {
      query_[i] = query(i);
      std::fill_n(keys_ + i * dims.group, dims.group, query_[i].keys);
    }
  }

  [[nodiscard]] Index rows() const noexcept { return queries_ * dims_.group; }  ///< of one kv head

  /// Carries `states` of queries [first, last) over the tile of keys at position `base`, of kv head first_head + head.
  ///
  ///   keys     all keys of the tile that any of these queries may see, at least
  ///   next     the rows that will be read after these, or null
  ///   states   of all queries and heads, numbered as the rows are
  void attend(Index head, Index first, Index last, Index base, Tile& tile,
              const KvTileRows<typename Tile::Element>& keys, const KvTileRows<typename Tile::Element>* next,
              const RowStates& states) noexcept;

 private:
  [[nodiscard]] Index query_head(Index head, Index r) const noexcept {
    return (first_head_ + head) * dims_.group + r % dims_.group;
  }
  /// Whether queries [first, last) may see the whole tile.
  [[nodiscard]] bool see_all(Index first, Index last, Index base) const noexcept {
    return std::all_of(query_ + first, query_ + last, [base](const Query& query) {
      const auto [kept, recent] = query.keys;
      return (recent.first <= base && recent.last >= base + tile_keys) ||
             (kept.first <= base && kept.last >= base + tile_keys);
    });
  }

  /// Calls f(integral constant R, r, from, to) for blocks of R <= most rows [r, r + R) that cover [begin, end), the
  /// last first if `backwards`, with the keys [from, to) within [first, last) among which are all that a row of the
  /// block sees: all of them if `all`.
  template <int most, bool backwards = false, class F>
  KVC_ALWAYS_INLINE void scores(Index begin, Index end, Index base, Index first, Index last, bool all,
                                F f) const noexcept {
    const auto block = [&](Index r, auto count) __attribute__((always_inline)) {
      if (all) {
        f(count, r, first, last);
        return;
      }
      std::uint64_t seen = 0;
      for (Index i = r; i < r + count; ++i) {
        seen |= tile_bits(keys_[i], base);
      }
      const Index from = std::max(first, Index{std::countr_zero(seen)});
      const Index to = std::min(last, tile_keys - std::countl_zero(seen));
      if (from < to) {
        f(count, r, from, to);
      }
    };
    if constexpr (backwards) {
      for_row_blocks_backwards<most>(begin, end, block);
    } else {
      for_row_blocks<most>(begin, end, block);
    }
  }

  [[nodiscard]] static bool is_long(const Tile& tile) noexcept {
    if constexpr (Tile::has_long_rows) {
      return tile.is_long();
    } else {
      return false;
    }
  }

  /// Scores of all rows for long_pass keys at a time: there and back, so that the rows that are still in the
  /// first-level cache come first.
  KVC_ALWAYS_INLINE void scores_of_long_rows(Index begin, Index end, Index base, bool all, const float* q, Tile& tile,
                                             const KvTileRows<typename Tile::Element>& keys) const noexcept {
    if constexpr (Tile::has_long_rows) {
      const auto block = [&](auto count, Index r, Index from, Index to) __attribute__((always_inline)) {
        tile.template scores_of_long<count>(from, to, q + r * query_size_, query_size_, p_ + r * tile_keys);
      };
      for (Index at = keys.first / Tile::long_pass * Tile::long_pass; at < keys.last; at += Tile::long_pass) {
        const Index first = std::max(at, keys.first), last = std::min(at + Tile::long_pass, keys.last);
        tile.load_long_keys(at);
        if (at % (2 * Tile::long_pass) == 0) {
          scores<kernel_rows>(begin, end, base, first, last, all, block);
        } else {
          scores<kernel_rows, true>(begin, end, base, first, last, all, block);
        }
      }
    }
  }

  /// Scale, soft cap and mask of row r; which keys of the tile it sees, as bits.
  std::uint64_t mask_row(Index head, Index r, Index base, float* s) const noexcept {
    std::uint64_t visible = tile_bits(keys_[r], base);
    if (visible == 0) {
      return 0;
    }
    if (options_.softcap > 0) {
      const simd::F32x16 cap = simd::broadcast(options_.softcap);
      for (Index j = 0; j < tile_keys; j += simd::lanes) {
        simd::store(s + j, cap * simd::tanh(simd::load(s + j) / cap));
      }
    }
    if (!options_.mask.is_none()) {
      for (std::uint64_t left = visible; left != 0; left &= left - 1) {
        const Index j = std::countr_zero(left);
        const float bias = options_.mask.bias(query_head(head, r), query_[r / dims_.group].row, base + j);
        s[j] += bias;
        if (bias == -std::numeric_limits<float>::infinity()) {
          visible &= ~(std::uint64_t{1} << j);
        }
      }
    }
    return visible;
  }

  /// o = o * rescale + p v  for rows [begin, end).
  KVC_OUT_OF_LINE void values(Index begin, Index end, Tile& tile, float* o) const noexcept {
    std::uint64_t of_all = ~std::uint64_t{0};
    for (Index r = begin; r < end; ++r) {
      of_all &= visible_[r];
    }
    if constexpr (Tile::has_long_rows) {
      if (of_all == ~std::uint64_t{0} && tile.is_long()) {
        // The values of so many columns stay in the first-level cache for all rows.
        for (Index d = 0; d < tile.value_columns(); d += Tile::long_columns) {
          for_row_blocks<Tile::most_value_rows>(begin, end, [&](Index r, auto count) __attribute__((always_inline)) {
            tile.template add_long_values<decltype(count)::value>(w_ + r * weight_size_, d, o + r * value_pad_,
                                                                  rescale_ + r);
          });
        }
        return;
      }
    }
    if constexpr (Tile::most_value_rows > kernel_rows) {
      if (of_all == ~std::uint64_t{0} && end - begin > few_rows) {
        for_row_blocks<Tile::most_value_rows>(begin, end, [&](Index r, auto count) __attribute__((always_inline)) {
          tile.template add_values<decltype(count)::value>(w_ + r * weight_size_, 0, tile_keys, nullptr,
                                                           o + r * value_pad_, rescale_ + r);
        });
        return;
      }
    }
    for_row_blocks(begin, end, [&](Index r, auto count) __attribute__((always_inline)) {
      constexpr int R = decltype(count)::value;
      const float* const w = w_ + r * weight_size_;
      if (of_all == ~std::uint64_t{0}) {
        values_of_range<R>(r, 0, tile_keys, r == begin, tile, o);
        tile.prefetcher().pause();
        return;
      }
      const int first = std::countr_zero(visible_[r]);
      int least = tile_keys, most = 0;  // the first and the last end of the keys of a row
      int begin_of_any = tile_keys;
      bool simple = true;  // each row sees consecutive keys, and all begin with the same
      bool all = true;     // each row sees a key
      for (Index i = r; i < r + R; ++i) {
        const int end_of_row = tile_keys - std::countl_zero(visible_[i]);
        simple = simple && visible_[i] != 0 && std::countr_zero(visible_[i]) == first &&
                 std::popcount(visible_[i]) == end_of_row - first;
        all = all && visible_[i] != 0;
        begin_of_any = std::min(begin_of_any, std::countr_zero(visible_[i]));
        least = std::min(least, end_of_row);
        most = std::max(most, end_of_row);
      }
      if constexpr (Tile::exact_sums) {
        if (all) {
          tile.template add_values<R>(w, begin_of_any, most, o + r * value_pad_, rescale_ + r);
          tile.prefetcher().pause();
          return;
        }
        for (Index i = r; i < r + R; ++i) {
          if (visible_[i] != 0) {
            tile.template add_values<1>(w_ + i * weight_size_, std::countr_zero(visible_[i]),
                                        tile_keys - std::countl_zero(visible_[i]), o + i * value_pad_, rescale_ + i);
          }
        }
      } else if (simple && least == most) {
        values_of_range<R>(r, first, least, r == begin, tile, o);
      } else if (const int common = least / 2 * 2;
                 simple && common > first) {  // the diagonal: common keys, then the rest of each
        tile.template add_values<R>(w, first, common, nullptr, sums_, nullptr);
        for (Index i = r; i < r + R; ++i) {
          const int end_of_row = tile_keys - std::countl_zero(visible_[i]);
          tile.template add_values<1>(w_ + i * weight_size_, common, end_of_row, sums_ + (i - r) * value_pad_,
                                      o + i * value_pad_, rescale_ + i);
        }
      } else {
        for (Index i = r; i < r + R; ++i) {
          values_of_one(i, tile, o + i * value_pad_);
        }
      }
      tile.prefetcher().pause();
    });
  }

  /// The same for R rows from r on that see keys [first, last) of the tile. Values that are read for the first time are
  /// added in steps of a few positions, so that each is read whole soon after it was prefetched.
  template <int R>
  KVC_ALWAYS_INLINE void values_of_range(Index r, int first, int last, bool prefetches, Tile& tile,
                                         float* o) const noexcept {
    const float* const w = w_ + r * weight_size_;
    if constexpr (Tile::exact_sums) {
      tile.template add_values<R>(w, first, last, o + r * value_pad_, rescale_ + r);
    } else {
      const int step = prefetches ? static_cast<int>(tile.value_step()) : int{tile_keys};
      const float* start = nullptr;
      for (int from = first, to; from < last; from = to, start = sums_) {
        to = std::min(from / step * step + step, last);
        const bool done = to == last;
        tile.template add_values<R>(w, from, to, start, done ? o + r * value_pad_ : sums_,
                                    done ? rescale_ + r : nullptr);
      }
    }
  }

  /// The same for one row that sees any keys. Not used with exact sums.
  KVC_OUT_OF_LINE void values_of_one(Index r, Tile& tile, float* o) const noexcept {
    if constexpr (!Tile::exact_sums) {
      const float* start = nullptr;
      for (std::uint64_t left = visible_[r]; left != 0;) {
        const int first = std::countr_zero(left);
        const int last = std::countr_one(left >> first) + first;  // of consecutive keys
        left &= last == tile_keys ? 0 : ~std::uint64_t{0} << last;
        tile.template add_values<1>(w_ + r * weight_size_, first, last, start, left == 0 ? o : sums_,
                                    left == 0 ? rescale_ + r : nullptr);
        start = sums_;
      }
    }
  }

  const AttentionDims& dims_;
  const AttentionOptions& options_;
  Index first_head_;
  Index queries_;
  Index query_size_;
  Index weight_size_;
  Index value_pad_;
  const float* q_;  // [heads, q_rows, query_size] prepared
  Index q_rows_;
  float* p_;                // [rows, 64] scores, then weights
  float* w_;                // [rows, weight_size] encoded weights
  float* sums_;             // [kernel_rows, value_pad]
  Query* query_;            // [queries]
  VisibleKeys* keys_;       // [rows] that each may see: a copy per row saves a division in each tile
  std::uint64_t* visible_;  // [rows]
  float* rescale_;          // [rows]
  float* largest_;          // [rows] weight of the tile
};

// Not inline, so that attention/extern.hpp keeps other files from instantiating it, and with it all kernels.
template <class Tile>
void QueryTile<Tile>::attend(Index head, Index first, Index last, Index base, Tile& tile,
                             const KvTileRows<typename Tile::Element>& keys,
                             const KvTileRows<typename Tile::Element>* next, const RowStates& states) noexcept {
  const Index begin = first * dims_.group, end = last * dims_.group, offset = head * rows();
  const float* const q = q_ + head * q_rows_ * query_size_;
  const bool all = see_all(first, last, base);
  tile.set(keys, next, end - begin);
  tile.load_keys();
  if (is_long(tile)) {
    scores_of_long_rows(begin, end, base, all, q, tile, keys);
  } else if (end - begin <= few_rows) {
    scores<kernel_rows>(begin, end, base, keys.first, keys.last, all,
                        [&](auto count, Index r, Index from, Index to) __attribute__((always_inline)) {
                          tile.template scores<count>(from, to, q + r * query_size_, query_size_, p_ + r * tile_keys);
                          tile.prefetcher().pause();
                        });
  } else {
    // The keys of one pass stay in the first-level cache for all rows.
    for (Index at = keys.first / Tile::key_pass * Tile::key_pass; at < keys.last; at += Tile::key_pass) {
      scores<Tile::most_rows>(begin, end, base, std::max(at, keys.first), std::min(at + Tile::key_pass, keys.last), all,
                              [&](auto count, Index r, Index from, Index to) __attribute__((always_inline)) {
                                tile.template scores_of_many<count>(from, to, q + r * query_size_, query_size_,
                                                                    p_ + r * tile_keys);
                                tile.prefetcher().pause();
                              });
    }
  }
  tile.prefetcher().resume();
  if (all && options_.softcap <= 0 && options_.mask.is_none()) {
    std::fill(visible_ + begin, visible_ + end, ~std::uint64_t{0});
  } else {
    for (Index r = begin; r < end; ++r) {
      visible_[r] = mask_row(head, r, base, p_ + r * tile_keys);
    }
  }
  for (Index r = begin; r < end; r += simd::lanes) {
    online_softmax(p_ + r * tile_keys, visible_ + r, std::min(Index{simd::lanes}, end - r), states.m + offset + r,
                   states.l + offset + r, rescale_ + r, largest_ + r);
  }
  tile.load_values();
  for (Index r = begin; r < end; ++r) {
    if (visible_[r] != 0) {
      tile.encode_weights(p_ + r * tile_keys, largest_[r], visible_[r], w_ + r * weight_size_);
    }
  }
  values(begin, end, tile, states.o + offset * value_pad_);
}

}  // namespace detail
}  // namespace v0
}  // namespace kvc
