// FloatTile: 64 positions of one head in float arithmetic, for every element type and every target.
//
//   keys     lane l of a sum is a chain of multiply-adds over elements l, l + 16, l + 32 ... of a row; of more than 256
//            elements, it is the sum of such chains of 128, in ascending order; a score is the fold of the lanes
//   values   a sum is a chain of multiply-adds over ascending positions
//
// Long rows (more than 256 elements, such as the 576 of MLA) are read as floats by all query rows: in place, or from
// where they were decoded once. Values that are the beginnings of the keys are read there.
//
// Rows are read as exactly the elements that kvc::Element<T>::decode gives.
#pragma once

#include <algorithm>
#include <cstdint>
#include <type_traits>

#include "kvc/attention/kernel/coded_rows.hpp"
#include "kvc/attention/kernel/float_rows.hpp"
#include "kvc/attention/kernel/kernels.hpp"
#include "kvc/attention/kernel/kv_tile_rows.hpp"
#include "kvc/attention/kernel/part_kernels.hpp"
#include "kvc/attention/kernel/scratch.hpp"
#include "kvc/attention/kernel/tile_base.hpp"
#include "kvc/attention/options.hpp"
#include "kvc/core/types.hpp"
#include "kvc/element/element.hpp"
#include "kvc/element/float16.hpp"
#include "kvc/element/quantized.hpp"
#include "kvc/simd/convert.hpp"
#include "kvc/simd/vec.hpp"

namespace kvc {
inline namespace v0 {
namespace detail {

/// The tile of every element type without narrower arithmetic: see the head of this file.
template <class T>
class FloatTile : public FloatSumTile<T> {
  using Base = FloatSumTile<T>;
  using Base::key_dim_;
  using Base::once_;
  using Base::prefetcher_;
  using Base::rows_;
  using Base::value_dim_;

 public:
  static constexpr bool has_long_rows = true;
  static constexpr int most_value_rows = has_part_kernels ? packed_rows : kernel_rows;
  // Four query rows in the first-level cache past all keys in the second, or 8 keys, 18 KiB of 576 elements, past all
  // query rows.
  static constexpr Index long_pass = has_part_kernels ? tile_keys : 8;
  static constexpr Index long_columns = 64;  // 16 KiB of a tile
  static constexpr bool in_order = true;
  static constexpr Index key_pass = 32;
  [[nodiscard]] static constexpr Index query_floats(Index key_dim) noexcept { return padded(key_dim); }
  [[nodiscard]] static constexpr Index weight_floats(Index) noexcept { return 0; }
  [[nodiscard]] static constexpr Index state_floats(Index value_dim) noexcept { return padded(value_dim); }
  [[nodiscard]] static constexpr Index output_index(Index d) noexcept { return d; }
  [[nodiscard]] static constexpr Index scratch_floats(Index key_dim, Index value_dim) noexcept {
    return tile_keys * (padded(key_dim) + packed_floats(key_dim, value_dim) + padded(value_dim));
  }
  [[nodiscard]] static ScaleParts scale_parts(float scale) noexcept { return ScaleParts::in_queries(scale); }
  static void prepare_query(const float* q, Index key_dim, float* to) noexcept {
    std::copy_n(q, key_dim, to);
    std::fill(to + key_dim, to + padded(key_dim), 0.0F);
  }

  FloatTile(Index key_dim, Index value_dim, float /*scale*/, Scratch& scratch)
      : Base(key_dim, value_dim),
        decoded_keys_(scratch.take(tile_keys * padded(key_dim))),
        packed_(scratch.take(tile_keys * packed_floats(key_dim, value_dim))),
        decoded_values_(scratch.take(tile_keys * padded(value_dim))) {
    for (Index j = 0; j < tile_keys; ++j) {
      decoded_key_rows_[j] = decoded_keys_ + j * padded(key_dim);
      decoded_value_rows_[j] = decoded_values_ + j * padded(value_dim);
    }
  }

  void set(const KvTileRows<T>& rows, const KvTileRows<T>* next, Index count) noexcept {
    is_long_ = key_dim_ > long_key && count > kernel_rows;
    if constexpr (is_coded<T>) {
      is_in_registers_ = !is_long_ && count <= coded_rows && are_whole(key_dim_) && are_whole(value_dim_);
    }
    is_scattered_ = !is_long_ && count <= few_rows && rows.is_scattered() &&
                    (is_plain<T> || (has_part_kernels && is_in_registers_));
    if (is_scattered_) {
      this->begin_scattered_tile(rows);
      row_prefetcher_.finish();
      row_prefetcher_ = RowPrefetcher<T>(rows, next, key_dim_, value_dim_, vector_bytes());
      return;
    }
    if (!is_long_) {
      Base::set(rows, next, count);
      return;
    }
    rows_ = &rows;
    once_ = false;
    long_keys_ = decoded_key_rows_;
    long_values_ = values_in_decoded_keys() ? decoded_key_rows_ : decoded_value_rows_;
    if constexpr (std::is_same_v<T, float>) {
      long_keys_ = keys_are_decoded() ? long_keys_ : rows.k;
      long_values_ = values_in_place() ? rows.v : long_values_;
    }
    prefetcher_.stop();
    spread_ = next == nullptr ? SpreadPrefetcher<T>() : SpreadPrefetcher<T>(*next, key_dim_, value_dim_);
    const Index score_calls = ceil_div(tile_keys, long_pass) * ceil_div(count, Index{kernel_rows});
    const Index value_calls = ceil_div(value_dim_, long_columns) * ceil_div(count, Index{most_value_rows});
    const Index lines = spread_.lines();
    if constexpr (has_part_kernels) {  // in proportion to the work: calls are long, and those for scores longer
      const Index of_scores = lines * key_dim_ / (key_dim_ + value_dim_);
      lines_per_score_call_ = ceil_div(of_scores, score_calls);
      lines_per_value_call_ = ceil_div(lines - of_scores, value_calls);
    } else {
      lines_per_score_call_ = lines_per_value_call_ = ceil_div(lines, score_calls + value_calls);
    }
  }
  [[nodiscard]] bool is_long() const noexcept { return is_long_; }

  KVC_OUT_OF_LINE void load_keys() noexcept {
    if constexpr (has_part_kernels) {
      if (!once_ && !is_long_) {  // all rows read them from memory that is aligned and contiguous
        rows_->keys.prefetch();
        decode(rows_->k, key_dim_, decoded_keys_, true);
        rows_->values.prefetch();  // read after all scores
        return;
      }
    }
    if constexpr (!is_plain<T>) {
      if (is_in_registers_) {
        return;
      }
      decode(rows_->k, key_dim_, decoded_keys_, true);
    }
    if (!has_part_kernels && !once_ && !is_long_) {
      const Index first = rows_->first / simd::lanes, last = ceil_div(rows_->last, Index{simd::lanes});
      if constexpr (is_plain<T>) {
        detail::pack_keys(PlainRows<T>{rows_->k, key_dim_}, first, last, padded(key_dim_) / simd::lanes, packed_,
                          prefetcher_);
      } else {
        detail::pack_keys(DecodedRows<T>{decoded_keys_, padded(key_dim_)}, first, last, padded(key_dim_) / simd::lanes,
                          packed_, prefetcher_);
      }
    }
  }
  /// Work on keys [first, first + long_pass), before their scores.
  void load_long_keys(Index first) noexcept {
    if (is_plain<T> && keys_are_decoded()) {
      decode_range(rows_->k, key_dim_, decoded_keys_, first, first + long_pass);
    }
  }
  template <int R>
  KVC_OUT_OF_LINE void scores_of_long(Index first, Index last, const float* q, Index q_stride, float* s) noexcept {
    constexpr Index keys_of_step = R > 2 ? 2 : 4;  // of score_parts
    const Index steps = (last - first) / keys_of_step * (padded(key_dim_) / simd::lanes);
    SomeLines prefetcher(spread_, lines_per_score_call_, steps);
    Base::template score_blocks<FloatDotTraits, R>(FloatRows{long_keys_}, first, last, padded(key_dim_) / simd::lanes,
                                                   q, q_stride, s, UnscaledScores{}, prefetcher);
  }

  template <int R>
  KVC_OUT_OF_LINE void scores_of_many(Index first, Index last, const float* q, Index q_stride, float* s) noexcept {
#if KVC_PART_KERNELS
    NothingToPrefetch none;
    Base::template score_blocks<FloatDotTraits, R>(DecodedRows<T>{decoded_keys_, padded(key_dim_)}, first, last,
                                                   padded(key_dim_) / simd::lanes, q, q_stride, s, UnscaledScores{},
                                                   none);
#else
    const Index first_group = first / simd::lanes, last_group = ceil_div(last, Index{simd::lanes});
    const Index vectors = padded(key_dim_) / simd::lanes;
    score_packed<FloatDotTraits, R>(q, q_stride, packed_, first_group, last_group, vectors, s);
#endif
  }
  template <int R>
  KVC_OUT_OF_LINE void scores(Index first, Index last, const float* q, Index q_stride, float* s) noexcept {
    const Index vectors = padded(key_dim_) / simd::lanes;
    const auto read = [&](const auto& keys) __attribute__((always_inline)) {
      if (is_scattered_) {
        RowPrefetcher<T> prefetcher = row_prefetcher_;  // in registers
        Base::template score_blocks<FloatDotTraits, R>(keys, first, last, vectors, q, q_stride, s, UnscaledScores{},
                                                       prefetcher);
        row_prefetcher_ = prefetcher;
        return;
      }
      this->template score_blocks<FloatDotTraits, R>(keys, first, last, vectors, q, q_stride, s);
    };
    if constexpr (is_plain<T>) {
      read(PlainRows<T>{rows_->k, key_dim_});
    } else {
      if constexpr (is_coded<T>) {
        if (is_in_registers_) {
          read(coded_keys());
          return;
        }
      }
      this->template score_blocks<FloatDotTraits, R>(DecodedRows<T>{decoded_keys_, padded(key_dim_)}, first, last,
                                                     vectors, q, q_stride, s);
    }
  }

  void load_values() noexcept {
#if KVC_PART_KERNELS
    if (packs_values()) {
      load_packed_values();
      return;
    }
#endif
    if (!is_in_registers_ && !values_in_place() && !values_in_decoded_keys()) {
      decode(rows_->v, value_dim_, decoded_values_, false);
    }
  }
  void encode_weights(const float*, float, std::uint64_t, float*) noexcept { prefetcher_.prefetch_with_row(); }

  template <int R>
  KVC_OUT_OF_LINE void add_values(const float* p, Index first, Index last, const float* start, float* to,
                                  const float* rescale) noexcept {
#if KVC_PART_KERNELS
    if (packs_values()) {
      NothingToPrefetch none;
      const Index columns = padded(value_dim_);
      add_float_columns<R>(p, PackedValues{packed_}, first, last, start, to, rescale, columns, 0, columns, none);
      return;
    }
#endif
    if constexpr (is_plain<T>) {
      if (values_in_place() && is_scattered_) {
        RowPrefetcher<T> prefetcher = row_prefetcher_;  // in registers
        add_float_columns<R>(p, PlainRows<T>{rows_->v, value_dim_}, first, last, start, to, rescale, value_dim_, 0,
                             value_dim_, prefetcher);
        row_prefetcher_ = prefetcher;
        return;
      }
      if (values_in_place()) {
        add_float_values<R>(p, PlainRows<T>{rows_->v, value_dim_}, first, last, start, to, rescale, value_dim_,
                            prefetcher_);
        return;
      }
    }
    if constexpr (is_coded<T>) {
      if (is_in_registers_ && is_scattered_) {
        RowPrefetcher<T> prefetcher = row_prefetcher_;  // in registers
        add_float_columns<R>(p, coded_values(), first, last, start, to, rescale, padded(value_dim_), 0,
                             padded(value_dim_), prefetcher);
        row_prefetcher_ = prefetcher;
        return;
      }
      if (is_in_registers_) {
        add_float_values<R>(p, coded_values(), first, last, start, to, rescale, padded(value_dim_), prefetcher_);
        return;
      }
    }
    add_float_values<R>(p, decoded_values(), first, last, start, to, rescale, padded(value_dim_), prefetcher_);
  }

  [[nodiscard]] Index value_columns() const noexcept { return padded(value_dim_); }
  template <int R>
  KVC_OUT_OF_LINE void add_long_values(const float* p, Index from, float* to, const float* rescale) noexcept {
    constexpr Index blocks = ceil_div(long_columns / simd::lanes, Index{block_columns<R>});
    SomeLines prefetcher(spread_, lines_per_value_call_, tile_keys * blocks);
    const Index columns = padded(value_dim_);
    add_float_columns<R>(p, FloatRows{long_values_}, 0, tile_keys, nullptr, to, rescale, columns, from,
                         std::min(from + long_columns, columns), prefetcher);
  }

 private:
  /// Conversions pay off for many rows.
  [[nodiscard]] bool values_in_place() const noexcept {
    return (std::is_same_v<T, float> || (is_plain<T> && once_)) && value_dim_ % simd::lanes == 0;
  }

#if KVC_PART_KERNELS
  /// Whether all query rows read PackedValues.
  [[nodiscard]] bool packs_values() const noexcept { return !once_ && !is_long_; }
  KVC_OUT_OF_LINE void load_packed_values() noexcept {
    const auto [first, last] = rows_in_groups();
    const Index vectors = padded(value_dim_) / simd::lanes;
    if (!values_in_decoded_keys()) {
      if constexpr (is_plain<T>) {
        pack_values(PlainRows<T>{rows_->v, value_dim_}, first, last, vectors, packed_);
        return;
      }
      decode(rows_->v, value_dim_, decoded_values_, false);
    }
    pack_values(decoded_values(), first, last, vectors, packed_);
  }
#endif

  /// Elements of a row of packed_.
  [[nodiscard]] static constexpr Index packed_floats(Index key_dim, Index value_dim) noexcept {
    return padded(has_part_kernels ? value_dim : key_dim);
  }

  /// Rows of the tile in whole groups of 16: the other pointers lead to some row.
  [[nodiscard]] KeyRange rows_in_groups() const noexcept {
    return {rows_->first / simd::lanes * simd::lanes, ceil_div(rows_->last, Index{simd::lanes}) * simd::lanes};
  }

  /// Whether decoded_keys_ has the keys: long rows of floats are read in place if they fill whole vectors.
  [[nodiscard]] bool keys_are_decoded() const noexcept {
    if (!is_plain<T> || (has_part_kernels && !once_ && !is_long_)) {
      return true;
    }
    return is_long_ && !(std::is_same_v<T, float> && key_dim_ % simd::lanes == 0);
  }
  [[nodiscard]] bool values_in_decoded_keys() const noexcept { return rows_->values_in_keys && keys_are_decoded(); }
  [[nodiscard]] DecodedRows<T> decoded_values() const noexcept {
    return values_in_decoded_keys() ? DecodedRows<T>{decoded_keys_, padded(key_dim_)}
                                    : DecodedRows<T>{decoded_values_, padded(value_dim_)};
  }

  /// Of 16 elements, as the kernels count what they read.
  [[nodiscard]] static constexpr Index vector_bytes() noexcept {
    if constexpr (is_coded<T>) {
      return CodedRows<T>::bytes / CodedRows<T>::step;
    } else {
      return Index{simd::lanes * sizeof(StorageOf<T>)};
    }
  }
  /// Whether CodedRows reads rows of so many elements.
  [[nodiscard]] static bool are_whole(Index dim) noexcept { return dim % CodedRows<T>::multiple == 0; }
  [[nodiscard]] CodedRows<T> coded_keys() const noexcept {
    if constexpr (ScaledElement<T>) {
      return {rows_->k, rows_->key_scales(key_dim_)};
    } else {
      return {rows_->k, key_dim_};
    }
  }
  [[nodiscard]] CodedRows<T> coded_values() const noexcept {
    if constexpr (ScaledElement<T>) {
      return {rows_->v, rows_->value_scales(this->value_row_dim())};
    } else {
      return {rows_->v, value_dim_};
    }
  }

  void decode(const StorageOf<T>* const* rows, Index dim, float* to, [[maybe_unused]] bool keys) const noexcept {
    const auto [first, last] = rows_in_groups();
    if constexpr (has_part_kernels && is_coded<T>) {
      if (are_whole(dim)) {
        const CodedRows<T> coded = keys ? coded_keys() : coded_values();
        for (Index j = first; j < last; ++j) {
          for (Index c = 0; c < dim / simd::lanes; ++c) {
            simd::store(to + j * dim + c * simd::lanes, coded.load(j, c));
          }
        }
        return;
      }
    }
    if constexpr (ScaledElement<T>) {
      if (rows_->has_scale_planes) {
        const StorageOf<T>* const* const scales = keys ? rows_->k_scales : rows_->v_scales;
        for (Index j = first; j < last; ++j) {
          kvc::Element<T>::decode_parts(rows[j], scales[j], dim, to + j * padded(dim));
          std::fill(to + j * padded(dim) + dim, to + (j + 1) * padded(dim), 0.0F);
        }
        return;
      }
    }
    decode_range(rows, dim, to, first, last);
  }
  static void decode_range(const StorageOf<T>* const* rows, Index dim, float* to, Index first, Index last) noexcept {
    for (Index j = first; j < last; ++j) {
      decode_row(rows[j], dim, to + j * padded(dim));
    }
  }
  /// Element<T>::decode, filled up with zeros.
  static void decode_row(const StorageOf<T>* from, Index dim, float* to) noexcept {
#if defined(__AVX512VBMI__)
    if constexpr (std::is_same_v<T, Fp8E4M3>) {
      simd::decode_e4m3(from, dim, to);
      return;
    }
#endif
    kvc::Element<T>::decode(from, dim, to);
    std::fill(to + dim, to + padded(dim), 0.0F);
  }

  /// One block of query rows. Codes become floats in registers for each block; kept, they would be written to memory
  /// and read back, and a tile of them is larger than the first-level cache. For two blocks it is the other way round.
  static constexpr Index coded_rows = has_part_kernels ? few_rows : kernel_rows;

  static constexpr Index long_key = 256;  // elements. Packed keys of one pass fill the first-level cache then
  static_assert(long_key <= longest_chain * simd::lanes && kernel_rows <= few_rows);  // packed keys are one chain

  bool is_long_ = false;
  const float* const* long_keys_ = nullptr;    // [64] rows that scores_of_long reads
  const float* const* long_values_ = nullptr;  // [64] rows that add_long_values reads
  const float* decoded_key_rows_[tile_keys];
  const float* decoded_value_rows_[tile_keys];
  SpreadPrefetcher<T> spread_;  // of the next tile, while this one is long
  Index lines_per_score_call_ = 0;
  Index lines_per_value_call_ = 0;
  bool is_in_registers_ = false;     // few query rows: codes become floats where they are used
  bool is_scattered_ = false;        // few query rows read rows that lie apart, in place
  RowPrefetcher<T> row_prefetcher_;  // for these
  float* decoded_keys_;              // [64, padded(key_dim)]
  float* packed_;                    // for many rows: keys [groups][padded(key_dim)][16], or PackedValues
  float* decoded_values_;            // [64, padded(value_dim)]
};

}  // namespace detail
}  // namespace v0
}  // namespace kvc
