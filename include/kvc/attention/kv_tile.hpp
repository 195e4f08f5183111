// KvTile: 64 positions of one head, brought from the rows of a cache into the form that the kernels read.
//
//   keys     across positions: number d of all 64 keys lies together, so that a score is a chain of multiply-adds and no
//            sum ever goes across a vector
//   values   rows of floats, in place where the cache holds them so
//
// Every element type is read as exactly the numbers that Element<T>::decode gives, but that Int8's scales are kept apart: they
// multiply a score, or a weight, once.
#pragma once

#include <algorithm>
#include <type_traits>

#include "kvc/attention/kernels.hpp"
#include "kvc/attention/prefetch.hpp"
#include "kvc/attention/scratch.hpp"
#include "kvc/core/half.hpp"
#include "kvc/core/quantized.hpp"
#include "kvc/core/view.hpp"
#include "kvc/simd/convert.hpp"
#include "kvc/simd/transpose.hpp"

namespace kvc::inline v0 {
namespace detail {

inline constexpr Index tile_groups = tile_keys / simd::lanes;

/// Where the rows of a tile lie.
template <class T>
struct TileRows {
  const StorageOf<T>* k[tile_keys];
  const StorageOf<T>* v[tile_keys];
  Index first = 0;          // of the rows that are there, within the tile
  Index last = 0;
  bool dense_values = true; // one after the other, without gaps, within each run
  Stretch stretches[2 * tile_keys];
  Index stretch_count = 0;

  /// Positions [base + lo, base + hi), at least one. The other pointers of the groups of 16 that hold them lead to some row of
  /// these.
  template <class View>
  void locate(const View& kv, Index head, Index base, Index lo, Index hi) {
    first = lo;
    last = hi;
    dense_values = true;
    stretch_count = 0;
    const Index k_row = Element<T>::row_size(kv.key_dim()), v_row = Element<T>::row_size(kv.value_dim());
    Index at = lo;
    kv.for_each_run(head, PosRange{static_cast<Pos>(base + lo), static_cast<Pos>(base + hi)}, [&](const KvRun<T>& run) {
      KVC_ASSERT(run.first == base + at && at + run.rows <= hi);
      for (Index r = 0; r < run.rows; ++r) {
        k[at + r] = run.k + r * run.k_stride;
        v[at + r] = run.v + r * run.v_stride;
      }
      add_stretches(run.k, run.rows, run.k_stride, k_row);
      at += run.rows;
    });
    KVC_ASSERT(at == hi);
    Index r = lo;
    kv.for_each_run(head, PosRange{static_cast<Pos>(base + lo), static_cast<Pos>(base + hi)}, [&](const KvRun<T>& run) {
      dense_values = dense_values && run.v_stride == v_row;
      add_stretches(run.v, run.rows, run.v_stride, v_row);
      r += run.rows;
    });
    std::fill(k + lo - lo % simd::lanes, k + lo, k[lo]);
    std::fill(k + hi, k + ceil_div(hi, Index{simd::lanes}) * simd::lanes, k[lo]);
  }

  /// `time`: that of the steps before the rows are read
  [[nodiscard]] Prefetch prefetch(Index time) const noexcept { return {stretches, stretches + stretch_count, time}; }

 private:
  void add_stretches(const StorageOf<T>* rows, Index count, Index stride, Index row) noexcept {
    if (stride == row) {
      row *= count;
      count = 1;
    }
    for (Index i = 0; i < count; ++i, rows += stride) {
      stretches[stretch_count++] = {reinterpret_cast<const std::byte*>(rows), reinterpret_cast<const std::byte*>(rows + row)};
    }
  }
};

/// The stored values of a tile, read as floats where they lie. Only for dims that are multiples of 16; `in_place` says for
/// which element types. Int8 gives the codes alone.
template <class T>
struct StoredValues {
  static constexpr bool in_place = std::is_same_v<T, float> || std::is_same_v<T, Eigen::half> ||
                                   std::is_same_v<T, Eigen::bfloat16> || std::is_same_v<T, Int8> || std::is_same_v<T, Int4> ||
                                   std::is_same_v<T, Fp8E4M3>;

  const StorageOf<T>* const* rows;
  Index ranges;  // of Int4: bytes before scale and minimum

  StoredValues(const StorageOf<T>* const* v, Index dim) noexcept : rows(v), ranges(ceil_div(dim, Index{32}) * 16) {}

  /// Brings what `load<n>` will read of value j nearer.
  template <int n>
  KVC_ALWAYS_INLINE void approach(Index j, Index d) const noexcept {
    const auto* const from = reinterpret_cast<const std::byte*>(rows[j]) + d * Index{sizeof(StorageOf<T>)} / (std::is_same_v<T, Int4> ? 2 : 1);
    for (Index b = 0; b < n * simd::lanes * Index{sizeof(StorageOf<T>)}; b += 64) {
      __builtin_prefetch(from + b, 0, 3);
    }
  }


  template <int n>
  KVC_ALWAYS_INLINE void load(Index j, Index d, simd::F32x16 (&x)[n]) const noexcept {
    const StorageOf<T>* const row = rows[j];
#if defined(__AVX512VBMI__)
    if constexpr (std::is_same_v<T, Fp8E4M3> && n % 4 == 0) {
      simd::detail::unroll<n / 4>([&](auto k) __attribute__((always_inline)) {
        simd::F32x16 quarter[4];
        simd::load_e4m3(row + d + k * 64, quarter);
        simd::detail::unroll<4>([&](auto i) __attribute__((always_inline)) { x[k * 4 + i] = quarter[i]; });
      });
      return;
    }
#endif
    simd::detail::unroll<n>([&](auto k) __attribute__((always_inline)) {
      const Index at = d + k * simd::lanes;
      if constexpr (std::is_same_v<T, float>) {
        x[k] = simd::load(row + at);
      } else if constexpr (std::is_same_v<T, Eigen::half>) {
        x[k] = simd::load_f16(row + at);
      } else if constexpr (std::is_same_v<T, Eigen::bfloat16>) {
        x[k] = simd::load_bf16(row + at);
      } else if constexpr (std::is_same_v<T, Fp8E4M3>) {
        x[k] = simd::load_e4m3(row + at);
      } else if constexpr (std::is_same_v<T, Int8>) {
        x[k] = to_floats(simd::load_i8(row + at));
      } else if constexpr (std::is_same_v<T, Int4>) {
        std::uint32_t range;
        std::memcpy(&range, row + ranges + at / 32 * 4, sizeof range);
        const simd::U32x16 codes = simd::load_u8(row + at / 32 * 16);
        x[k] = madd(to_floats(at % 32 == 0 ? codes & 15U : codes >> 4), simd::broadcast(std::bit_cast<float>(range << 16)),
                    simd::broadcast(std::bit_cast<float>(range & 0xffff0000U)));
      }
    });
  }
};

/// Values as rows of floats.
struct DecodedValues {
  const float* const* rows;
  template <int n>
  KVC_ALWAYS_INLINE void approach(Index, Index) const noexcept {}
  template <int n>
  KVC_ALWAYS_INLINE void load(Index j, Index d, simd::F32x16 (&x)[n]) const noexcept {
    simd::detail::unroll<n>([&](auto k) __attribute__((always_inline)) { x[k] = simd::load(rows[j] + d + k * simd::lanes); });
  }
};

/// to[0..padded(dim)) = the numbers of a stored row, then zeros. Int8 with dim % 16 == 0: the codes alone.
template <class T>
KVC_ALWAYS_INLINE void decode_row(const StorageOf<T>* from, Index dim, float* to) noexcept {
  if constexpr (StoredValues<T>::in_place) {
    if (dim % simd::lanes == 0) {
      const StoredValues<T> row(&from, dim);
      Index d = 0;
      for (; dim - d >= 2 * simd::lanes; d += 2 * simd::lanes) {
        simd::F32x16 x[2];
        row.template load<2>(0, d, x);
        simd::store(to + d, x[0]);
        simd::store(to + d + simd::lanes, x[1]);
      }
      if (d < dim) {
        simd::F32x16 x[1];
        row.template load<1>(0, d, x);
        simd::store(to + d, x[0]);
      }
      return;
    }
  }
  Element<T>::decode(from, dim, to);
  std::fill(to + dim, to + padded(dim), 0.0F);
}

template <class T>
class KvTile {
 public:
  [[nodiscard]] static constexpr Index scratch_floats(Index key_dim, Index value_dim) noexcept {
    return tile_groups * group_floats(key_dim) + simd::lanes * padded(key_dim) + tile_keys * padded(value_dim) + 2 * tile_keys;
  }

  KvTile(Index key_dim, Index value_dim, Scratch& scratch)
      : key_dim_(key_dim),
        value_dim_(value_dim),
        keys_(scratch.take(tile_groups * group_floats(key_dim))),
        decoded_keys_(scratch.take(simd::lanes * padded(key_dim))),
        decoded_values_(scratch.take(tile_keys * padded(value_dim))),
        key_scales_(scratch.take(tile_keys)),
        value_scales_(scratch.take(tile_keys)) {}

  /// The steps of a tile whose keys and values go past one block of `rows` rows.
  [[nodiscard]] static constexpr Index time(Index key_dim, Index value_dim, Index rows) noexcept {
    const Index words = Element<T>::row_size(key_dim) * Index{sizeof(StorageOf<T>)} / 4;
    const Index key_step = key_time * (std::is_same_v<T, Int8> || std::is_same_v<T, Int4> ? 2 : 1);
    return tile_groups * words * key_step + tile_groups * key_dim * rows + tile_keys * padded(value_dim) / simd::lanes * rows * value_time / 2;
  }

  /// The tile that is read from now on. The rows must outlive that.
  void set(const TileRows<T>& rows) noexcept { rows_ = &rows; }
  [[nodiscard]] Index first_group() const noexcept { return rows_->first / simd::lanes; }
  [[nodiscard]] Index last_group() const noexcept { return ceil_div(rows_->last, Index{simd::lanes}); }

  /// Loads groups [first, last) of 16 keys; returns where the first is: number d of its key j is at [16 d + j], and the next
  /// group is group_size() floats on. Numbers of keys that are not there are arbitrary. Groups keep their places as long as
  /// no other is loaded to `place`, 0 to 3.
  [[nodiscard]] const float* load_keys(Index first, Index last, Index place, Prefetch& ahead) noexcept {
    for (Index g = first; g < last; ++g) {
      load_group(g, keys_ + (place + g - first) * group_size(), ahead);
    }
    return keys_ + place * group_size();
  }
  [[nodiscard]] Index group_size() const noexcept { return group_floats(key_dim_); }

  /// Scores of R rows against the 16 keys of group g: what score_rows gives, bit for bit, with keys that are not kept.
  template <int R>
  KVC_OUT_OF_LINE void score_group(Index g, const float* q, Index q_stride, float* s, Prefetch& ahead) noexcept {
    simd::F32x16 sum[R] = {};
    visit_keys(g, ahead, [&](Index d, const simd::F32x16& x) __attribute__((always_inline)) {
      simd::detail::unroll<R>([&](auto i) __attribute__((always_inline)) {
        sum[i] = simd::madd(simd::broadcast(q[i * q_stride + d]), x, sum[i]);
      });
    });
    simd::detail::unroll<R>([&](auto i) __attribute__((always_inline)) {
      simd::store(s + i * tile_keys + g * simd::lanes, sum[i]);
    });
  }

  /// What scores have to be multiplied with: [64], or null.
  [[nodiscard]] const float* key_scales() const noexcept { return std::is_same_v<T, Int8> ? key_scales_ : nullptr; }

  /// f(values) with the values of the tile: where they are, if they are read once and that is possible; else decoded.
  template <class F>
  KVC_ALWAYS_INLINE void with_values(bool once, F f) noexcept {
    if constexpr (std::is_same_v<T, Int8>) {
      for (Index j = rows_->first; j < rows_->last; ++j) {
        std::memcpy(value_scales_ + j, rows_->v[j] + ceil_div(value_dim_, Index{4}) * 4, sizeof(float));
      }
    }
    if constexpr (StoredValues<T>::in_place) {
      if (value_dim_ % simd::lanes == 0 && (once || (std::is_same_v<T, float> && rows_->dense_values))) {
        f(StoredValues<T>(rows_->v, value_dim_));
        return;
      }
    }
    for (Index j = rows_->first; j < rows_->last; ++j) {
      values_[j] = decoded_values_ + j * padded(value_dim_);
      decode_row<T>(rows_->v[j], value_dim_, decoded_values_ + j * padded(value_dim_));
    }
    f(DecodedValues{values_});
  }
  /// What weights have to be multiplied with: [64], or null. Valid within with_values.
  [[nodiscard]] const float* value_scales() const noexcept {
    return std::is_same_v<T, Int8> && value_dim_ % simd::lanes == 0 ? value_scales_ : nullptr;
  }

 private:
  /// Whole groups of Int4.
  [[nodiscard]] static constexpr Index group_floats(Index dim) noexcept { return ceil_div(dim, Index{32}) * 32 * simd::lanes; }

  /// Sixteen rows.
  KVC_OUT_OF_LINE void load_group(Index g, float* to, Prefetch& ahead) noexcept {
    visit_keys(g, ahead, [to](Index d, const simd::F32x16& x) __attribute__((always_inline)) { simd::store(to + d * simd::lanes, x); });
  }

  /// f(d, x) for numbers d of the keys of a group, in ascending order. More than key_dim for some types, up to the next 32.
  template <class F>
  KVC_ALWAYS_INLINE void visit_keys(Index g, Prefetch& prefetch, F f) noexcept {
    using simd::F32x16, simd::U32x16;
    Prefetch ahead = prefetch;  // in registers
    const StorageOf<T>* const* const rows = rows_->k + g * simd::lanes;
    approach(g + 1);
    if constexpr (std::is_same_v<T, float>) {
      simd::for_each_column(rows, 0, key_dim_, [&](Index d, const U32x16& x) __attribute__((always_inline)) {
        f(d, as_floats(x));
        ahead.step(key_time);
      });
    } else if constexpr (std::is_same_v<T, Eigen::bfloat16>) {
      if (key_dim_ % 2 == 0) {
        visit_halves(rows, ahead, f);
      } else {
        visit_decoded(rows, ahead, f);
      }
    } else if constexpr (std::is_same_v<T, Int8>) {
      const Index words = ceil_div(key_dim_, Index{4});
      simd::for_each_column(rows, words, words + 1, [&](Index, const U32x16& x) __attribute__((always_inline)) {
        simd::store(key_scales_ + g * simd::lanes, as_floats(x));
      });
      simd::for_each_column(rows, 0, words, [&](Index c, const U32x16& x) __attribute__((always_inline)) {
        f(4 * c, to_floats(shift_signed(x << 24, 24)));
        f(4 * c + 1, to_floats(shift_signed(x << 16, 24)));
        f(4 * c + 2, to_floats(shift_signed(x << 8, 24)));
        f(4 * c + 3, to_floats(shift_signed(x, 24)));
        ahead.step(2 * key_time);
      });
    } else if constexpr (std::is_same_v<T, Int4>) {
      const Index groups = Element<Int4>::groups(key_dim_);
      simd::for_each_column(rows, 4 * groups, 5 * groups, [&](Index c, const U32x16& x) __attribute__((always_inline)) {
        const Index i = c - 4 * groups;
        simd::store(decoded_keys_ + i * 2 * simd::lanes, as_floats(x << 16));
        simd::store(decoded_keys_ + (i * 2 + 1) * simd::lanes, as_floats(x & 0xffff0000U));
      });
      simd::for_each_four_columns(rows, 0, 4 * groups, [&](Index c, const F32x16 (&x)[4]) __attribute__((always_inline)) {
        const F32x16 scale = simd::load(decoded_keys_ + c / 4 * 2 * simd::lanes);
        const F32x16 least = simd::load(decoded_keys_ + (c / 4 * 2 + 1) * simd::lanes);
        simd::detail::unroll<32>([&](auto i) __attribute__((always_inline)) {
          constexpr int word = i % 16 / 4, shift = 8 * (i % 4) + i / 16 * 4;
          f(c * 8 + i, simd::madd(to_floats((as_words(x[word]) >> shift) & 15U), scale, least));
        });
        ahead.step(8 * key_time);
      });
    } else {
#if defined(__AVX512VBMI__)
      if constexpr (std::is_same_v<T, Fp8E4M3>) {
        if (key_dim_ % 64 == 0) {  // by way of bfloat16, which is exact
          auto* const decoded = reinterpret_cast<std::uint16_t*>(decoded_keys_);
          const std::uint16_t* halves[simd::lanes];
          for (int l = 0; l < simd::lanes; ++l) {
            halves[l] = decoded + l * key_dim_;
            for (Index d = 0; d < key_dim_; d += 64) {
              simd::convert_e4m3(rows[l] + d, decoded + l * key_dim_ + d);
            }
            ahead.step(4 * key_time);
          }
          visit_halves(halves, ahead, f);
          prefetch = ahead;
          return;
        }
      }
#endif
      visit_decoded(rows, ahead, f);
    }
    prefetch = ahead;
  }

  /// Rows of bfloat16, an even number each.
  template <class Half, class F>
  KVC_ALWAYS_INLINE void visit_halves(const Half* const* rows, Prefetch& ahead, F f) noexcept {
    simd::for_each_column(rows, 0, key_dim_ / 2, [&](Index c, const simd::U32x16& x) __attribute__((always_inline)) {
      f(2 * c, as_floats(x << 16));
      f(2 * c + 1, as_floats(x & 0xffff0000U));
      ahead.step(key_time);
    });
  }

  template <class F>
  KVC_ALWAYS_INLINE void visit_decoded(const StorageOf<T>* const* rows, Prefetch& ahead, F f) noexcept {
    const Index stride = padded(key_dim_);
    const float* decoded[simd::lanes];
    for (int l = 0; l < simd::lanes; ++l) {
      decoded[l] = decoded_keys_ + l * stride;
      decode_row<T>(rows[l], key_dim_, decoded_keys_ + l * stride);
      ahead.step(4 * key_time);
    }
    simd::for_each_column(decoded, 0, key_dim_, [&](Index d, const simd::U32x16& x) __attribute__((always_inline)) {
      f(d, as_floats(x));
      ahead.step(key_time);
    });
  }

  /// Brings the rows of a group that will be read next from the second-level cache to the first.
  KVC_ALWAYS_INLINE void approach(Index g) const noexcept {
    if (g < last_group()) {
      const Index bytes = Element<T>::row_size(key_dim_) * Index{sizeof(StorageOf<T>)};
      for (int l = 0; l < simd::lanes; ++l) {
        for (Index b = 0; b < bytes; b += 64) {
          __builtin_prefetch(reinterpret_cast<const std::byte*>(rows_->k[g * simd::lanes + l]) + b, 0, 3);
        }
      }
    }
  }

  Index key_dim_;
  Index value_dim_;
  const TileRows<T>* rows_ = nullptr;
  float* keys_;
  float* decoded_keys_;  // [16, padded(key_dim)] rows; of Int4: scale and minimum [groups, 2, 16]
  float* decoded_values_;
  float* key_scales_;
  float* value_scales_;
  const float* values_[tile_keys];
};

}  // namespace detail
}  // namespace kvc::inline v0
