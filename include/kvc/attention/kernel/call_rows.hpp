// CallRows: the query rows of one call of attention, from the caller's arrays to the kernels and back.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <span>

#include "kvc/attention/kernel/kv_tile.hpp"
#include "kvc/attention/kernel/query_tile.hpp"
#include "kvc/attention/kernel/row_states.hpp"
#include "kvc/attention/kv_view.hpp"
#include "kvc/attention/options.hpp"
#include "kvc/attention/output.hpp"
#include "kvc/attention/state.hpp"
#include "kvc/core/types.hpp"
#include "kvc/simd/vec.hpp"

namespace kvc {
inline namespace v0 {
namespace detail {

/// The query rows of one sequence: [first_row, first_row + count) of q, at positions first_position, + 1, ...
struct SequenceRows {
  Index first_row;
  Index count;
  Index first_position;
};

/// The first position that a view did not hand out, whichever thread found it. Items of a call report it instead of
/// throwing, since not every executor carries exceptions out of its threads.
class MissingPosition {
 public:
  void report(Index sequence, Index position) noexcept {
    const std::uint64_t found = static_cast<std::uint64_t>(sequence) << 32 | static_cast<std::uint64_t>(position);
    std::uint64_t first = first_.load(std::memory_order_relaxed);
    while (found < first && !first_.compare_exchange_weak(first, found, std::memory_order_relaxed)) {
    }
  }
  /// Throws std::invalid_argument if one was reported.
  void throw_if_reported() const {
    if (const std::uint64_t first = first_.load(std::memory_order_relaxed); first != none) [[unlikely]] {
      throw_not_retained(static_cast<Index>(first >> 32), static_cast<Index>(first & 0xffffffffU));
    }
  }

 private:
  static constexpr std::uint64_t none = ~std::uint64_t{0};
  std::atomic<std::uint64_t> first_ = none;  // sequence and position
};

template <class View>
class CallRows {
 public:
  using T = typename View::Element;
  using Tile = KvTile<T>;
  using Query = typename QueryTile<Tile>::Query;

  ///   rows  of each view
  CallRows(const AttentionDims& dims, const AttentionOptions& options, std::span<const View> views,
           std::span<const SequenceRows> rows, MatrixRef<const float> q, const AttentionOutput& out)
      : dims_(dims), options_(options), views_(views), rows_(rows), q_(q), out_(out) {}

  [[nodiscard]] const AttentionDims& dims() const noexcept { return dims_; }
  [[nodiscard]] const AttentionOptions& options() const noexcept { return options_; }
  [[nodiscard]] Index sequences() const noexcept { return std::ssize(views_); }
  [[nodiscard]] const View& view(Index b) const noexcept { return views_[static_cast<std::size_t>(b)]; }
  [[nodiscard]] Index count(Index b) const noexcept { return rows(b).count; }
  [[nodiscard]] MissingPosition& missing() const noexcept { return missing_; }

  [[nodiscard]] Index query_size() const noexcept { return Tile::query_floats(dims_.key_dim); }
  [[nodiscard]] Index value_pad() const noexcept { return Tile::state_floats(dims_.value_dim); }

  /// Row i of sequence b.
  [[nodiscard]] Query query(Index b, Index i) const {
    return {rows(b).first_row + i, visible_keys(rows(b).first_position + i, view(b).length(), options_)};
  }
  /// Keys that any of rows [first, last) of sequence b may see.
  [[nodiscard]] VisibleKeys keys(Index b, Index first, Index last) const {
    const Index position = rows(b).first_position;
    return visible_keys(position + first, position + last, view(b).length(), options_);
  }

  /// Brings rows [first, first + queries) of sequence b, those of one kv head, into the form of the kernels.
  ///
  ///   scaled  [padded(key_dim)] working memory
  ///   to      [queries, group, query_size]
  void prepare(Index b, Index first, Index head, Index queries, float* scaled, float* to) const {
    const auto row = [&](Index r) {
      return q_.row(rows(b).first_row + first + r / dims_.group) +
             (head * dims_.group + r % dims_.group) * dims_.key_dim;
    };
    QueryTile<Tile>::prepare(dims_, queries * dims_.group, row, scaled, to);
  }

  /// Writes the rows [first, first + queries) of sequence b, those of one kv head.
  ///
  ///   states  [queries * group]; o is overwritten
  void write(Index b, Index first, Index head, Index queries, const RowStates& states) const noexcept {
    const Index count = queries * dims_.group;
    const auto row = [&](Index r) { return rows(b).first_row + first + r / dims_.group; };
    const auto query_head = [&](Index r) { return head * dims_.group + r % dims_.group; };
    for (Index r = 0; r < count; ++r) {
      if (const Index next = r + rows_ahead; next < count) {
        prefetch_row<true>(out_.row(row(next), query_head(next), dims_.value_dim), dims_.value_dim);
      }
      write_row(states.state(r, value_pad()), row(r), query_head(r));
    }
  }

  /// Writes one row and head. Overwrites state.o, padded to value_pad.
  void write_row(AttentionState state, Index row, Index query_head) const noexcept {
    float* const to = out_.row(row, query_head, dims_.value_dim);
    out_.write_sums(row, query_head, state.m, state.l);
    if (!options_.sinks.empty() && !out_.has_states()) {
      state.add_sink(options_.sinks[static_cast<std::size_t>(query_head)]);
    }
    const simd::F32x16 sum = simd::broadcast(state.l == 0 || out_.has_states() ? 1.0F : state.l);
    float* const o = state.o.data();
    Index d = 0;
    if constexpr (Tile::in_order) {
      for (; dims_.value_dim - d >= simd::lanes; d += simd::lanes) {
        simd::store(to + d, simd::load(o + d) / sum);
      }
    }
    for (Index i = d; i < value_pad(); i += simd::lanes) {
      simd::store(o + i, simd::load(o + i) / sum);
    }
    for (; dims_.value_dim - d >= 4; d += 4) {
      std::copy_n(o + Tile::output_index(d), 4, to + d);
    }
    std::copy_n(o + Tile::output_index(d), dims_.value_dim - d, to + d);
  }

 private:
  [[nodiscard]] const SequenceRows& rows(Index b) const noexcept { return rows_[static_cast<std::size_t>(b)]; }

  const AttentionDims& dims_;
  const AttentionOptions& options_;
  std::span<const View> views_;
  std::span<const SequenceRows> rows_;
  MatrixRef<const float> q_;
  AttentionOutput out_;
  mutable MissingPosition missing_;
};

}  // namespace detail
}  // namespace v0
}  // namespace kvc
