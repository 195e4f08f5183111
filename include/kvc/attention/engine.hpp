// The engine below prefill and decode: cuts a call into work items, brings the rows of the cache to RowTile, merges.
//
// An item is (sequence, kv head, some rows of q, some keys). If the rows of a sequence fit one RowTile, as in decode,
// the keys are divided into splits so that one long sequence keeps many threads busy; the states of the splits are
// merged in a second step. Otherwise each item takes all keys of its rows. Both run the same operations on each row.
#pragma once

#include <algorithm>
#include <type_traits>
#include <vector>

#include "kvc/attention/executor.hpp"
#include "kvc/attention/options.hpp"
#include "kvc/attention/row_tile.hpp"
#include "kvc/core/view.hpp"

namespace kvc::inline v0 {
namespace detail {

/// The keys and values of one tile as rows of floats: in place where they are that already, else decoded once, for all
/// rows that read them.
template <class T>
class KvTile {
 public:
  [[nodiscard]] static constexpr Index scratch_floats(const AttentionDims& dims) noexcept {
    return (in_place(dims.key_dim) ? 0 : tile_keys * padded(dims.key_dim)) +
           (in_place(dims.value_dim) ? 0 : tile_keys * padded(dims.value_dim));
  }

  KvTile(const AttentionDims& dims, Scratch& scratch)
      : key_dim_(dims.key_dim),
        value_dim_(dims.value_dim),
        k_decoded_(in_place(key_dim_) ? nullptr : scratch.take(tile_keys * padded(key_dim_))),
        v_decoded_(in_place(value_dim_) ? nullptr : scratch.take(tile_keys * padded(value_dim_))) {}

  /// Positions [first, last) of the tile at `base`.
  template <class View>
  void load(const View& kv, Index head, Index base, Index first, Index last) {
    Index at = first - base;
    kv.for_each_run(head, PosRange{static_cast<Pos>(first), static_cast<Pos>(last)}, [&](const KvRun<T>& run) {
      KVC_ASSERT(run.first == base + at && run.first + run.rows <= last);
      for (Index r = 0; r < run.rows; ++r, ++at) {
        k_[at] = row(run.k + r * run.k_stride, key_dim_, k_decoded_, at);
        v_[at] = row(run.v + r * run.v_stride, value_dim_, v_decoded_, at);
      }
    });
    KVC_ASSERT(at == last - base);
  }

  [[nodiscard]] const float* const* k() const noexcept { return k_; }
  [[nodiscard]] const float* const* v() const noexcept { return v_; }

 private:
  /// RowTile reads whole vectors; past a row of 16 n floats there is nothing to read.
  [[nodiscard]] static constexpr bool in_place(Index dim) noexcept {
    return std::is_same_v<T, float> && dim % simd::lanes == 0;
  }

  static const float* row(const StorageOf<T>* from, Index dim, float* decoded, Index at) noexcept {
    if constexpr (std::is_same_v<T, float>) {
      if (decoded == nullptr) {
        return from;
      }
    }
    float* to = decoded + at * padded(dim);  // the scratch was zeroed, so the padding is there
    Element<T>::decode(from, dim, to);
    return to;
  }

  Index key_dim_;
  Index value_dim_;
  float* k_decoded_;
  float* v_decoded_;
  const float* k_[tile_keys];
  const float* v_[tile_keys];
};

/// One call: `sequences` views, each with `rows` rows of q one after the other.
///
///   view(b) -> const View&         b < sequences
///   first_position(b) -> Index     of the first row of sequence b
template <class ViewOf, class PositionOf>
class AttentionCall {
  using View = std::remove_cvref_t<std::invoke_result_t<ViewOf, Index>>;
  using T = typename View::Element;

 public:
  AttentionCall(const AttentionDims& dims, const AttentionOptions& options, Index sequences, Index rows, ViewOf view,
                PositionOf first_position, MatrixRef<const float> q, MatrixRef<float> out)
      : dims_(dims),
        options_(options),
        rows_(rows),
        queries_(std::clamp(tile_rows / dims.group, Index{1}, std::max(rows, Index{1}))),
        tiles_(ceil_div(rows, queries_)),
        value_pad_(padded(dims.value_dim)),
        view_(view),
        first_position_(first_position),
        q_(q),
        out_(out),
        sequences_(sequences) {}

  template <class Ex>
  void run(Ex& executor) {
    if (tiles_ == 1 && most_splits() > 1) {
      run_split(executor);
    } else {
      executor.parallel_for(sequences_ * dims_.kv_heads * tiles_, [this](Index i) {
        const Index tile = tiles_ - 1 - i % tiles_;  // the longest first: a late short item ends sooner
        run_rows(i / tiles_ / dims_.kv_heads, i / tiles_ % dims_.kv_heads, tile);
      });
    }
  }

 private:
  /// Keys that any row of the tile may see.
  [[nodiscard]] KeyRange keys(Index b, Index tile) const {
    const Pos length = view_(b).length();
    const Index first = first_position_(b) + tile * queries_;
    const Index last = std::min(first + queries_, first_position_(b) + rows_) - 1;
    const KeyRange early = visible_keys(first, length, options_), late = visible_keys(last, length, options_);
    return {early.first, std::max(early.first, late.last)};
  }
  [[nodiscard]] static Index splits(KeyRange keys) noexcept {
    return keys.first >= keys.last ? 0 : ceil_div(keys.last, split_keys) - keys.first / split_keys;
  }
  [[nodiscard]] Index most_splits() const {
    Index most = 0;
    for (Index b = 0; b < sequences_; ++b) {
      most = std::max(most, splits(keys(b, 0)));
    }
    return most;
  }
  [[nodiscard]] RowTile row_tile(Index b, Index head, Index tile, Scratch& scratch) const {
    const Index first = tile * queries_;
    return RowTile(dims_, options_, view_(b).length(), head, b * rows_ + first, std::min(queries_, rows_ - first),
                   first_position_(b) + first, q_, scratch);
  }

  /// Carries `states`, which start as the identity, over the keys of one split.
  void run_keys(const View& kv, Index head, Index split, KeyRange keys, KvTile<T>& tile, RowTile& rows,
                const RowStates& states) const {
    const Index first = std::max(keys.first, split * split_keys), last = std::min(keys.last, (split + 1) * split_keys);
    states.reset(rows.rows(), value_pad_);
    for (Index base = first - first % tile_keys; base < last; base += tile_keys) {
      const Index lo = std::max(first, base), hi = std::min(last, base + tile_keys);
      tile.load(kv, head, base, lo, hi);
      rows.attend(base, lo - base, hi - base, tile.k(), tile.v(), states);
    }
  }

  /// All keys for some rows.
  void run_rows(Index b, Index head, Index tile) const {
    const Index count = queries_ * dims_.group;
    Scratch scratch(RowTile::scratch_floats(count, padded(dims_.key_dim)) + KvTile<T>::scratch_floats(dims_) +
                    2 * RowStates::size(count, value_pad_));
    RowTile rows = row_tile(b, head, tile, scratch);
    KvTile<T> kv(dims_, scratch);
    const RowStates total = RowStates::at(scratch.take(RowStates::size(count, value_pad_)), count, value_pad_);
    const RowStates part = RowStates::at(scratch.take(RowStates::size(count, value_pad_)), count, value_pad_);
    const KeyRange range = keys(b, tile);
    const Index first = range.first / split_keys;
    total.reset(rows.rows(), value_pad_);
    for (Index split = first; split < first + splits(range); ++split) {
      run_keys(view_(b), head, split, range, kv, rows, part);
      total.merge(part, rows.rows(), value_pad_);
    }
    rows.write(total, out_);
  }

  /// One split for all rows, for every split; then the merges. There is one row tile per sequence.
  template <class Ex>
  void run_split(Ex& executor) const {
    const Index count = rows_ * dims_.group;
    const Index state_floats = RowStates::size(count, value_pad_);
    std::vector<Index> offsets(static_cast<std::size_t>(sequences_) + 1);  // splits before sequence b
    for (Index b = 0; b < sequences_; ++b) {
      offsets[static_cast<std::size_t>(b) + 1] = offsets[static_cast<std::size_t>(b)] + splits(keys(b, 0));
    }
    const auto offset = [&](Index b) { return offsets[static_cast<std::size_t>(b)]; };
    const Index items = offset(sequences_) * dims_.kv_heads;
    std::unique_ptr<float[]> buffer(new float[static_cast<std::size_t>(items * state_floats)]);
    // The states of (b, head) lie one after the other.
    const auto states = [&](Index b, Index head, Index split) {
      const Index at = offset(b) * dims_.kv_heads + head * (offset(b + 1) - offset(b)) + split;
      return RowStates::at(buffer.get() + at * state_floats, count, value_pad_);
    };

    executor.parallel_for(items, [&](Index i) {
      const Index b = std::upper_bound(offsets.begin(), offsets.end(), i / dims_.kv_heads) - offsets.begin() - 1;
      const Index split = i / dims_.kv_heads - offset(b), head = i % dims_.kv_heads;
      Scratch scratch(RowTile::scratch_floats(count, padded(dims_.key_dim)) + KvTile<T>::scratch_floats(dims_));
      RowTile rows = row_tile(b, head, 0, scratch);
      KvTile<T> kv(dims_, scratch);
      const KeyRange range = keys(b, 0);
      run_keys(view_(b), head, range.first / split_keys + split, range, kv, rows, states(b, head, split));
    });
    executor.parallel_for(sequences_ * dims_.kv_heads, [&](Index i) {
      const Index b = i / dims_.kv_heads, head = i % dims_.kv_heads;
      Scratch scratch(RowTile::scratch_floats(count, padded(dims_.key_dim)) + state_floats);
      const RowStates total = RowStates::at(scratch.take(state_floats), count, value_pad_);
      total.reset(count, value_pad_);
      for (Index split = 0; split < offset(b + 1) - offset(b); ++split) {
        total.merge(states(b, head, split), count, value_pad_);
      }
      row_tile(b, head, 0, scratch).write(total, out_);
    });
  }

  const AttentionDims& dims_;
  const AttentionOptions& options_;
  Index rows_;     // of q per sequence
  Index queries_;  // rows of q per row tile
  Index tiles_;    // row tiles per sequence
  Index value_pad_;
  ViewOf view_;
  PositionOf first_position_;
  MatrixRef<const float> q_;
  MatrixRef<float> out_;
  Index sequences_;
};

}  // namespace detail
}  // namespace kvc::inline v0
