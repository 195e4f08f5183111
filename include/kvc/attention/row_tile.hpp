// RowTile: the arithmetic of attention, for some query rows against one tile of keys and values at a time.
//
// This is the one place where prefill and decode compute, and what makes their results the same bits. For each row the
// order of operations is fixed by the absolute positions of the keys alone:
//
//   tile    64 positions from a multiple of 64: scores as one chain of madd over the dims, their largest, exponentials and
//           their sum (simd::sum of four vectors added in pairs), then p[j] * v[j] added up by madd in ascending j from 0,
//           and o = madd(o, shrink, sum)
//   split   512 positions from a multiple of 512: tiles in ascending order into one state that starts as the identity
//   row     the states of its splits merged in ascending order from the left
//
// Rows share loads and registers, never an operation. A key that a row must not see is skipped in that row's sums
// rather than multiplied by 0, so it cannot be noticed, NaN or uninitialised as it may be.
#pragma once

#include <algorithm>
#include <bit>
#include <cstdint>
#include <limits>
#include <type_traits>

#include "kvc/attention/kernels.hpp"
#include "kvc/attention/options.hpp"
#include "kvc/attention/scratch.hpp"
#include "kvc/attention/state.hpp"
#include "kvc/simd/exp.hpp"

namespace kvc::inline v0 {
namespace detail {

inline constexpr Index split_keys = 512;
inline constexpr Index few_rows = 16;   // up to which keys and values are better read again than kept
inline constexpr Index tile_rows = 256;  // rows of q x heads of the group that one item of a prefill works on

/// The states of a number of rows, in memory of the caller's.
struct RowStates {
  float* o;  // [rows, padded(value_dim)]
  float* m;  // [rows]
  float* l;  // [rows]

  [[nodiscard]] static constexpr Index size(Index rows, Index value_pad) noexcept {
    return rows * value_pad + 2 * padded(rows);
  }
  [[nodiscard]] static RowStates at(float* p, Index rows, Index value_pad) noexcept {
    return {p, p + rows * value_pad, p + rows * value_pad + padded(rows)};
  }
  [[nodiscard]] AttentionState state(Index row, Index value_pad) const noexcept {
    return {{o + row * value_pad, static_cast<std::size_t>(value_pad)}, m[row], l[row]};
  }
  void reset(Index rows, Index value_pad) const noexcept {
    std::fill_n(o, rows * value_pad, 0.0F);
    std::fill_n(m, rows, -std::numeric_limits<float>::infinity());
    std::fill_n(l, rows, 0.0F);
  }
  /// (*this)[row] = (*this)[row] (+) other[row] for all rows.
  void merge(const RowStates& other, Index rows, Index value_pad) const {
    for (Index r = 0; r < rows; ++r) {
      AttentionState into = state(r, value_pad);
      kvc::merge(into, other.state(r, value_pad));
      m[r] = into.m;
      l[r] = into.l;
    }
  }
};

/// Scores  s  [64] of one row become weights exp(s - m); m and l are carried on. Only bits of `visible` count; at least one is set.
/// Returns what earlier sums over exponentials must be multiplied with; 0 visible weights leave everything as it was.
inline float soften(float* s, std::uint64_t& visible, float& m, float& l) noexcept {
  using simd::F32x16;
  constexpr float infinity = std::numeric_limits<float>::infinity();
  if (const int before = std::countr_zero(visible), after = std::countl_zero(visible); before + after > 0) {
    std::fill_n(s, before, -infinity);  // causality and window hide the ends
    std::fill_n(s + tile_keys - after, after, -infinity);
  }
  const std::uint64_t ends = ((visible - 1) & ~visible) | ~(~std::uint64_t{0} >> std::countl_zero(visible));
  for (std::uint64_t hidden = ~visible & ~ends; hidden != 0; hidden &= hidden - 1) {
    s[std::countr_zero(hidden)] = -infinity;
  }
  F32x16 x[4] = {simd::load(s), simd::load(s + 16), simd::load(s + 32), simd::load(s + 48)};
  const float tile_m = simd::max(simd::max(simd::max(x[0], x[1]), simd::max(x[2], x[3])));
  const float new_m = (m > tile_m || m != m) ? m : tile_m;
  if (new_m == -infinity) {
    visible = 0;
    return 1;
  }
  const F32x16 offset = simd::broadcast(new_m);
  for (int i = 0; i < 4; ++i) {
    x[i] = simd::exp(x[i] - offset);
    simd::store(s + i * simd::lanes, x[i]);
  }
  const float shrink = new_m == m ? 1.0F : simd::exp(m - new_m);
  m = new_m;
  l = simd::madd(l, shrink, simd::sum((x[0] + x[1]) + (x[2] + x[3])));
  return shrink;
}

/// Query rows of a work item. There are `heads` kv heads, `queries` rows of q, which may belong to several sequences, and for
/// each of both the query heads of one GQA group; they are numbered in this order, so that neighbours see nearly the same
/// keys.
class RowTile {
 public:
  /// A row of q: its number, the keys that it may see by causality and window.
  struct Query {
    Index row;
    KeyRange keys;
  };

  [[nodiscard]] static constexpr Index scratch_floats(const AttentionDims& dims, Index heads, Index queries) noexcept {
    const Index rows = queries * dims.group;
    return heads * rows * padded(dims.key_dim) + rows * tile_keys + Scratch::floats_for<Query>(queries) +
           Scratch::floats_for<std::uint64_t>(rows) + padded(rows) + kernel_rows * padded(dims.value_dim);
  }

  /// query(i) -> Query for i < queries.
  template <class F>
  RowTile(const AttentionDims& dims, const AttentionOptions& options, Index first_head, Index heads, Index queries, F query,
          MatrixRef<const float> q, Scratch& scratch)
      : dims_(dims),
        options_(options),
        first_head_(first_head),
        queries_(queries),
        key_pad_(padded(dims.key_dim)),
        value_pad_(padded(dims.value_dim)),
        q_(scratch.take(heads * queries * dims.group * key_pad_)),
        p_(scratch.take(queries * dims.group * tile_keys)),
        sums_(scratch.take(kernel_rows * value_pad_)),
        query_(scratch.take_as<Query>(queries)),
        visible_(scratch.take_as<std::uint64_t>(queries * dims.group)),
        shrink_(scratch.take(padded(queries * dims.group))) {
    for (Index i = 0; i < queries; ++i) {
      query_[i] = query(i);
    }
    for (Index head = 0; head < heads; ++head) {
      for (Index r = 0; r < queries * dims.group; ++r) {
        const float* from = q.row(query_[r / dims.group].row) + query_head(head, r) * dims.key_dim;
        std::transform(from, from + dims.key_dim, q_ + (head * queries * dims.group + r) * key_pad_,
                       [&](float x) { return x * dims.scale; });
      }
    }
  }

  [[nodiscard]] Index rows() const noexcept { return queries_ * dims_.group; }  ///< of one kv head
  [[nodiscard]] const Query& query(Index i) const noexcept { return query_[i]; }

  /// Carries `states` of queries [first, last) over the tile of keys at position `base`, of kv head first_head + head.
  ///
  ///   tile     a KvTile that holds every key of the tile that one of these queries may see
  ///   states   of all queries and heads, numbered as the rows
  template <class Tile>
  void attend(Index head, Index first, Index last, Index base, Tile& tile, const RowStates& states, Prefetch& ahead) noexcept {
    const Index begin = first * dims_.group, end = last * dims_.group, offset = head * rows();
    const bool few = end - begin <= few_rows;
    for_one_block(end - begin, [&](auto rows) __attribute__((always_inline)) {
      // Keys go past one block of rows and need not be kept.
      for (Index g = tile.first_group(); g < tile.last_group(); ++g) {
        tile.template score_group<decltype(rows)::value>(g, q_ + (offset + begin) * key_pad_, key_pad_, p_ + begin * tile_keys, ahead);
      }
    }, [&] {
      const Index step = few ? 2 : tile_groups;
      for (Index g = tile.first_group(); g < tile.last_group(); g += step) {
        const Index next = std::min(g + step, tile.last_group());
        const float* const keys = tile.load_keys(g, next, 0, ahead);
        scores(offset, begin, end, base, g, next, keys, tile.group_size(), ahead);
      }
    });
    for (Index r = begin; r < end; ++r) {
      float* const s = p_ + r * tile_keys;
      visible_[r] = mask_row(head, r, base, tile.key_scales(), s);
      shrink_[r] = visible_[r] == 0 ? 1.0F : soften(s, visible_[r], states.m[offset + r], states.l[offset + r]);
    }
    tile.with_values(few, [&](const auto& v) __attribute__((always_inline)) {
      if (tile.value_scales() != nullptr) {
        for (Index r = begin; r < end; ++r) {
          multiply(p_ + r * tile_keys, tile.value_scales());
        }
      }
      values(begin, end, v, states.o + offset * value_pad_, ahead);
    });
  }

  /// The finished rows go to their places.  out [n, query_heads * value_dim]
  void write(Index head, const RowStates& states, MatrixRef<float> out) const noexcept {
    for (Index r = 0; r < rows(); ++r) {
      AttentionState state = states.state(head * rows() + r, value_pad_);
      state.o = state.o.first(static_cast<std::size_t>(dims_.value_dim));
      finalize(state, out.row(query_[r / dims_.group].row) + query_head(head, r) * dims_.value_dim);
    }
  }

 private:
  [[nodiscard]] Index query_head(Index head, Index r) const noexcept {
    return (first_head_ + head) * dims_.group + r % dims_.group;
  }
  /// The keys of the tile that the query of row r may see by causality and window, relative to the tile.
  [[nodiscard]] KeyRange seen(Index r, Index base) const noexcept {
    const KeyRange keys = query_[r / dims_.group].keys;
    return {std::clamp(keys.first - base, Index{0}, tile_keys), std::clamp(keys.last - base, Index{0}, tile_keys)};
  }

  static void multiply(float* s, const float* by) noexcept {
    for (Index j = 0; j < tile_keys; j += simd::lanes) {
      simd::store(s + j, simd::load(s + j) * simd::load(by + j));
    }
  }

  /// p = the scores of rows [begin, end) in those of groups [first, last) of 16 keys that a row of the block sees.
  KVC_OUT_OF_LINE void scores(Index offset, Index begin, Index end, Index base, Index first, Index last, const float* keys,
                              Index group_size, Prefetch& ahead) const noexcept {
    for_row_blocks(begin, end, [&](Index r, auto count) __attribute__((always_inline)) {
      constexpr int R = decltype(count)::value;
      KeyRange range = {tile_keys, 0};
      for (Index i = r; i < r + R; ++i) {
        const KeyRange keys_of_row = seen(i, base);
        if (keys_of_row.first < keys_of_row.last) {
          range = {std::min(range.first, keys_of_row.first), std::max(range.last, keys_of_row.last)};
        }
      }
      const Index from = std::max(first, range.first / simd::lanes), to = std::min(last, ceil_div(range.last, Index{simd::lanes}));
      if (from < to) {
        score_rows<R>(q_ + (offset + r) * key_pad_, key_pad_, keys + (from - first) * group_size, group_size, to - from,
                      dims_.key_dim, p_ + r * tile_keys + from * simd::lanes, ahead);
      }
    });
  }

  /// Scale, soft cap and mask of row r; which keys of the tile it sees, as bits.
  std::uint64_t mask_row(Index head, Index r, Index base, const float* key_scales, float* s) const noexcept {
    const auto [first, last] = seen(r, base);
    if (first >= last) {
      return 0;
    }
    std::uint64_t visible = (~std::uint64_t{0} >> (tile_keys - (last - first))) << first;
    if (key_scales != nullptr) {
      multiply(s, key_scales);
    }
    if (options_.softcap > 0) {
      const simd::F32x16 cap = simd::broadcast(options_.softcap);
      for (Index j = 0; j < tile_keys; j += simd::lanes) {
        simd::store(s + j, cap * simd::tanh(simd::load(s + j) / cap));
      }
    }
    if (!options_.mask.is_none()) {
      for (Index j = first; j < last; ++j) {
        const float bias = options_.mask.bias(query_head(head, r), query_[r / dims_.group].row, base + j);
        s[j] += bias;
        if (bias == -std::numeric_limits<float>::infinity()) {
          visible &= ~(std::uint64_t{1} << j);
        }
      }
    }
    return visible;
  }

  /// o = o * shrink + p v  for rows [begin, end).
  template <class Values>
  KVC_OUT_OF_LINE void values(Index begin, Index end, const Values& v, float* o, Prefetch& ahead) const noexcept {
    for_row_blocks(begin, end, [&](Index r, auto count) __attribute__((always_inline)) {
      constexpr int R = decltype(count)::value;
      const int first = std::countr_zero(visible_[r]);
      int least = tile_keys, most = 0;  // where their stretches of keys end
      bool simple = true;               // each sees one stretch of keys, and all begin together
      for (Index i = r; i < r + R; ++i) {
        const int end_of_row = tile_keys - std::countl_zero(visible_[i]);
        simple = simple && visible_[i] != 0 && std::countr_zero(visible_[i]) == first &&
                 std::popcount(visible_[i]) == end_of_row - first;
        least = std::min(least, end_of_row);
        most = std::max(most, end_of_row);
      }
      if (simple && least == most) {
        add_values<R>(p_ + r * tile_keys, v, first, least, nullptr, o + r * value_pad_, shrink_ + r, value_pad_, ahead);
      } else if (simple) {  // the diagonal: common keys, then the rest of each
        add_values<R>(p_ + r * tile_keys, v, first, least, nullptr, sums_, nullptr, value_pad_, ahead);
        for (Index i = r; i < r + R; ++i) {
          finish_one(i, v, least, tile_keys - std::countl_zero(visible_[i]), sums_ + (i - r) * value_pad_, o + i * value_pad_);
        }
      } else {
        for (Index i = r; i < r + R; ++i) {
          values_of_one(i, v, o + i * value_pad_);
        }
      }
    });
  }

  template <class Values>
  KVC_OUT_OF_LINE void finish_one(Index r, const Values& v, Index first, Index last, const float* start, float* o) const noexcept {
    Prefetch none;
    add_values<1>(p_ + r * tile_keys, v, first, last, start, o, shrink_ + r, value_pad_, none);
  }

  /// The same for one row, whatever it sees.
  template <class Values>
  KVC_OUT_OF_LINE void values_of_one(Index r, const Values& v, float* o) const noexcept {
    Prefetch none;
    const float* start = nullptr;
    for (std::uint64_t left = visible_[r]; left != 0;) {
      const int first = std::countr_zero(left);
      const int last = std::countr_one(left >> first) + first;  // of this stretch of keys
      left &= last == tile_keys ? 0 : ~std::uint64_t{0} << last;
      add_values<1>(p_ + r * tile_keys, v, first, last, start, left == 0 ? o : sums_, left == 0 ? shrink_ + r : nullptr,
                    value_pad_, none);
      start = sums_;
    }
  }

  const AttentionDims& dims_;
  const AttentionOptions& options_;
  Index first_head_;
  Index queries_;
  Index key_pad_;
  Index value_pad_;
  float* q_;                // [heads, rows, key_pad] scaled
  float* p_;                // [rows, 64] scores, then weights
  float* sums_;             // [kernel_rows, value_pad]
  Query* query_;            // [queries]
  std::uint64_t* visible_;  // [rows]
  float* shrink_;           // [rows]
};

}  // namespace detail
}  // namespace kvc::inline v0
