// RowTile: the arithmetic of attention, for a handful of query rows against one tile of keys and values at a time.
//
// This is the one place where prefill and decode compute, and what makes their results the same bits. For each row the
// order of operations is fixed by the absolute positions of the keys alone:
//
//   tile    64 positions from a multiple of 64: scores by simd::dot, their largest, exponentials and their sum (simd::sum of
//           four vectors added in pairs), then o += p[j] * v[j] by madd in ascending j
//   split   1024 positions from a multiple of 1024: tiles in ascending order into one state that starts as the identity
//   row     the states of its splits merged in ascending order from the left
//
// Rows share loads and registers, never an operation. A key that a row must not see is skipped in that row's sums
// rather than multiplied by 0, so it cannot be noticed, NaN or uninitialised as it may be.
#pragma once

#include <algorithm>
#include <bit>
#include <cstdint>
#include <limits>
#include <memory>
#include <new>
#include <type_traits>
#include <utility>

#include "kvc/attention/options.hpp"
#include "kvc/attention/state.hpp"
#include "kvc/simd/dot.hpp"
#include "kvc/simd/exp.hpp"

namespace kvc::inline v0 {
namespace detail {

inline constexpr Index tile_keys = 64;  // one bit each in a word
inline constexpr Index split_keys = 1024;
inline constexpr Index tile_rows = 64;  // rows of q x heads of the group that one item works on, if the group is not larger

/// Rows are kept with a multiple of 16 numbers, filled up with zeros.
[[nodiscard]] constexpr Index padded(Index dim) noexcept { return ceil_div(dim, Index{simd::lanes}) * simd::lanes; }

/// One aligned allocation, handed out piece by piece.
class Scratch {
 public:
  static constexpr std::size_t alignment = 64;

  /// Room for `floats` floats, all zero, in pieces that are multiples of 16.
  explicit Scratch(Index floats)
      : data_(static_cast<float*>(::operator new(static_cast<std::size_t>(floats) * sizeof(float), std::align_val_t{alignment}))),
        next_(data_.get()) {
    std::fill_n(next_, floats, 0.0F);
  }
  [[nodiscard]] float* take(Index floats) noexcept { return std::exchange(next_, next_ + floats); }

 private:
  struct Free {
    void operator()(float* p) const noexcept { ::operator delete(p, std::align_val_t{alignment}); }
  };
  std::unique_ptr<float, Free> data_;
  float* next_;
};

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
  for (std::uint64_t hidden = ~visible; hidden != 0; hidden &= hidden - 1) {
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

/// o[i][d] += p[i][j] * v[j][d]  for i < R rows, first <= j < last in this order, d < value_pad.
template <int R>
KVC_ALWAYS_INLINE void add_values(const float* p, const float* const* v, Index first, Index last, float* o, Index value_pad) {
  // C vectors of each row at a time: as many running sums as the target has registers for.
  constexpr int C = R == 1 ? 8 / simd::parts : 4;
  const auto columns = [&](Index d, auto count) __attribute__((always_inline)) {
    constexpr int c = decltype(count)::value;
    simd::F32x16 sum[R][c];
    simd::detail::unroll<R>([&](auto i) __attribute__((always_inline)) {
      simd::detail::unroll<c>([&](auto k) __attribute__((always_inline)) {
        sum[i][k] = simd::load(o + i * value_pad + d + k * simd::lanes);
      });
    });
    for (Index j = first; j < last; ++j) {
      simd::F32x16 x[c];
      simd::detail::unroll<c>([&](auto k) __attribute__((always_inline)) { x[k] = simd::load(v[j] + d + k * simd::lanes); });
      simd::detail::unroll<R>([&](auto i) __attribute__((always_inline)) {
        const simd::F32x16 weight = simd::broadcast(p[i * tile_keys + j]);
        simd::detail::unroll<c>([&](auto k) __attribute__((always_inline)) { sum[i][k] = simd::madd(weight, x[k], sum[i][k]); });
      });
    }
    simd::detail::unroll<R>([&](auto i) __attribute__((always_inline)) {
      simd::detail::unroll<c>([&](auto k) __attribute__((always_inline)) {
        simd::store(o + i * value_pad + d + k * simd::lanes, sum[i][k]);
      });
    });
  };
  const Index whole = value_pad - value_pad % (C * simd::lanes);
  for (Index d = 0; d < whole; d += C * simd::lanes) {
    columns(d, std::integral_constant<int, C>{});
  }
  for (Index d = whole; d < value_pad; d += simd::lanes) {
    columns(d, std::integral_constant<int, 1>{});
  }
}

/// The rows of one work item: `queries` consecutive rows of q, each with the query heads of one GQA group. They are
/// numbered query by query, so that neighbours see nearly the same keys.
class RowTile {
 public:
  [[nodiscard]] static constexpr Index scratch_floats(Index rows, Index key_pad) noexcept {
    return rows * (key_pad + tile_keys) + 2 * padded(rows) + padded(rows);
  }

  RowTile(const AttentionDims& dims, const AttentionOptions& options, Pos length, Index kv_head, Index first_row, Index queries,
          Index first_position, MatrixRef<const float> q, Scratch& scratch)
      : dims_(dims),
        options_(options),
        length_(length),
        first_head_(kv_head * dims.group),
        first_row_(first_row),
        first_position_(first_position),
        rows_(queries * dims.group),
        key_pad_(padded(dims.key_dim)),
        value_pad_(padded(dims.value_dim)),
        q_(scratch.take(rows_ * key_pad_)),
        p_(scratch.take(rows_ * tile_keys)),
        visible_(::new(scratch.take(2 * padded(rows_))) std::uint64_t[static_cast<std::size_t>(rows_)]),
        shrink_(scratch.take(padded(rows_))) {
    for (Index r = 0; r < rows_; ++r) {
      const float* from = q.row(query_row(r)) + query_head(r) * dims.key_dim;
      std::transform(from, from + dims.key_dim, q_ + r * key_pad_, [&](float x) { return x * dims.scale; });
    }
  }

  [[nodiscard]] Index rows() const noexcept { return rows_; }

  /// Carries `states` over the keys [lo, hi) of the tile at position `base`.
  ///
  ///   k, v   [64] rows of padded(key_dim), padded(value_dim) floats; only those of [lo, hi) are read
  [[gnu::noinline]] void attend(Index base, Index lo, Index hi, const float* const* k, const float* const* v,
                                const RowStates& states) noexcept {
    simd::dot_rows(
        rows_, [&](Index r) { return q_ + r * key_pad_; }, hi - lo, [&](Index j) { return k[lo + j]; }, key_pad_, p_ + lo,
        tile_keys);
    for (Index r = 0; r < rows_; ++r) {
      float* s = p_ + r * tile_keys;
      visible_[r] = mask_row(r, base, s);
      shrink_[r] = visible_[r] == 0 ? 1.0F : soften(s, visible_[r], states.m[r], states.l[r]);
    }
    constexpr int R = simd::parts == 1 ? 4 : 1;
    for (Index r = 0; r < rows_; r += R) {
      accumulate<R>(r, std::min<Index>(R, rows_ - r), v, states.o + r * value_pad_);
    }
  }

  /// The finished rows go to their places.  out [n, query_heads * value_dim]
  void write(const RowStates& states, MatrixRef<float> out) const noexcept {
    for (Index r = 0; r < rows_; ++r) {
      AttentionState state = states.state(r, value_pad_);
      state.o = state.o.first(static_cast<std::size_t>(dims_.value_dim));
      finalize(state, out.row(query_row(r)) + query_head(r) * dims_.value_dim);
    }
  }

 private:
  [[nodiscard]] Index query_row(Index r) const noexcept { return first_row_ + r / dims_.group; }
  [[nodiscard]] Index query_head(Index r) const noexcept { return first_head_ + r % dims_.group; }

  /// Soft cap and mask of row r; which keys of the tile it sees, as bits.
  std::uint64_t mask_row(Index r, Index base, float* s) const noexcept {
    const KeyRange seen = visible_keys(first_position_ + r / dims_.group, length_, options_);
    const Index first = std::clamp(seen.first - base, Index{0}, tile_keys);
    const Index last = std::clamp(seen.last - base, Index{0}, tile_keys);
    if (first >= last) {
      return 0;
    }
    std::uint64_t visible = (~std::uint64_t{0} >> (tile_keys - (last - first))) << first;
    if (options_.softcap > 0) {
      const simd::F32x16 cap = simd::broadcast(options_.softcap);
      for (Index j = 0; j < tile_keys; j += simd::lanes) {
        simd::store(s + j, cap * simd::tanh(simd::load(s + j) / cap));
      }
    }
    if (!options_.mask.is_none()) {
      for (Index j = first; j < last; ++j) {
        const float bias = options_.mask.bias(query_head(r), query_row(r), base + j);
        s[j] += bias;
        if (bias == -std::numeric_limits<float>::infinity()) {
          visible &= ~(std::uint64_t{1} << j);
        }
      }
    }
    return visible;
  }

  /// o += p v for `count` <= R rows from r on. Keys are taken in stretches that the same rows see.
  template <int R>
  void accumulate(Index r, Index count, const float* const* v, float* o) const noexcept {
    std::uint64_t any = 0;
    std::uint64_t all = ~std::uint64_t{0};
    std::uint64_t changes = 0;  // bit j: some row sees one of j - 1 and j, and not the other
    for (Index i = 0; i < count; ++i) {
      const std::uint64_t seen = visible_[r + i];
      any |= seen;
      all &= seen;
      changes |= seen ^ (seen << 1);
      if (shrink_[r + i] != 1.0F) {
        const simd::F32x16 shrink = simd::broadcast(shrink_[r + i]);
        for (Index d = 0; d < value_pad_; d += simd::lanes) {
          simd::store(o + i * value_pad_ + d, simd::load(o + i * value_pad_ + d) * shrink);
        }
      }
    }
    while (any != 0) {
      const int first = std::countr_zero(any);
      const std::uint64_t later = ~std::uint64_t{1} << first;
      const int last = std::countr_zero(changes & later);  // 64 if nothing changes any more
      if (count == R && (all >> first & 1) != 0) {
        add_values<R>(p_ + r * tile_keys, v, first, last, o, value_pad_);
      } else {
        for (Index i = 0; i < count; ++i) {
          if ((visible_[r + i] >> first & 1) != 0) {
            add_values<1>(p_ + (r + i) * tile_keys, v, first, last, o + i * value_pad_, value_pad_);
          }
        }
      }
      any &= last == tile_keys ? 0 : ~std::uint64_t{0} << last;
    }
  }

  const AttentionDims& dims_;
  const AttentionOptions& options_;
  Pos length_;
  Index first_head_;
  Index first_row_;
  Index first_position_;
  Index rows_;
  Index key_pad_;
  Index value_pad_;
  float* q_;                // [rows, key_pad] scaled
  float* p_;                // [rows, 64] scores, then weights
  std::uint64_t* visible_;  // [rows]
  float* shrink_;           // [rows]
};

}  // namespace detail
}  // namespace kvc::inline v0
