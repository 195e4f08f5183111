// AttentionCall: one call of prefill or decode, cut into work items that an executor runs.
//
// There are two kinds of items, which run the same operations on each row, so that results have the same bits:
//
//   TileItem   some rows of one sequence, one kv head, all keys that they see: for sequences with many rows
//   WorkItem   all rows of some sequences, some kv heads, some splits of their keys, so that one long sequence keeps
//              many threads busy, and a shared prefix is read once: for sequences with few rows (split_call.hpp)
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "kvc/attention/kernel/call_rows.hpp"
#include "kvc/attention/kernel/kv_tile_rows.hpp"
#include "kvc/attention/kernel/row_states.hpp"
#include "kvc/attention/kernel/split_call.hpp"
#include "kvc/attention/kv_view.hpp"
#include "kvc/attention/options.hpp"
#include "kvc/attention/output.hpp"
#include "kvc/core/types.hpp"
#include "kvc/parallel/executor.hpp"

#ifdef KVC_ATTENTION_IS_COMPILED  // defined where a program links the CMake target kvc::attention
#include "kvc/attention/extern.hpp"
#endif

namespace kvc {
inline namespace v0 {
namespace detail {

template <class View>
class AttentionCall {
  using Rows = CallRows<View>;
  using Tile = typename Rows::Tile;

 public:
  ///   rows  those of each view
  AttentionCall(const AttentionDims& dims, const AttentionOptions& options, std::span<const View> views,
                std::span<const SequenceRows> rows, MatrixRef<const float> q, const AttentionOutput& out)
      : rows_(dims, options, views, rows, q, out), tile_queries_(std::max(query_tile_rows / dims.group, Index{1})) {}

  /// Throws std::invalid_argument if a view does not retain a key that a row may see; outputs may be partly written
  /// then.
  template <class Ex>
  void run(Ex& executor) {
    const std::vector<Index> few = sequences_of_few_rows();
    const std::vector<TileItem> tiles = tile_items();
    const Index tile_count = std::ssize(tiles);
    if (few.empty()) {
      executor.parallel_for(tile_count, [&](Index i) { run_tile(tiles[static_cast<std::size_t>(i)]); });
      rows_.missing().throw_if_reported();
      return;
    }
    SplitCall<View> splits(rows_, few, concurrency(executor));
    executor.parallel_for(splits.query_items(), [&](Index i) { splits.prepare(i); });
    if (tile_count == 0) {
      splits.time_work([&] { executor.parallel_for(splits.work_items(), [&](Index i) { splits.work(i); }); });
    } else {
      executor.parallel_for(tile_count + splits.work_items(), [&](Index i) {
        i < tile_count ? run_tile(tiles[static_cast<std::size_t>(i)]) : splits.work(i - tile_count);
      });
    }
    rows_.missing().throw_if_reported();
    executor.parallel_for(splits.query_items(), [&](Index i) { splits.merge(i); });
  }

 private:
  /// Rows [first_row, first_row + queries) of a sequence, and one kv head.
  struct TileItem {
    Index sequence;
    Index head;
    Index first_row;
    Index queries;
  };

  [[nodiscard]] std::vector<Index> sequences_of_few_rows() const {
    std::vector<Index> few;
    for (Index b = 0; b < rows_.sequences(); ++b) {
      if (rows_.count(b) > 0 && rows_.count(b) <= tile_queries_) {
        few.push_back(b);
      }
    }
    return few;
  }

  /// Those of all other sequences. The last rows of a sequence, which see most keys, come first: a late short item ends
  /// sooner.
  [[nodiscard]] std::vector<TileItem> tile_items() const {
    std::vector<TileItem> items;
    for (Index b = 0; b < rows_.sequences(); ++b) {
      const Index count = rows_.count(b);
      if (count <= tile_queries_) {
        continue;
      }
      for (Index head = 0; head < rows_.dims().kv_heads; ++head) {
        for (Index tile = ceil_div(count, tile_queries_); tile-- > 0;) {
          const Index first = tile * tile_queries_;
          items.push_back({b, head, first, std::min(tile_queries_, count - first)});
        }
      }
    }
    return items;
  }

  void run_tile(const TileItem& item) const {
    const AttentionDims& dims = rows_.dims();
    const Index count = item.queries * dims.group, value_pad = rows_.value_pad();
    Scratch scratch(count * rows_.query_size() + padded(dims.key_dim) +
                    QueryTile<Tile>::scratch_floats(dims, item.queries) +
                    Tile::scratch_floats(dims.key_dim, dims.value_dim) + 2 * RowStates::size(count, value_pad));
    float* const prepared = scratch.take(count * rows_.query_size());
    rows_.prepare(item.sequence, item.first_row, item.head, item.queries, scratch.take(padded(dims.key_dim)), prepared);
    QueryTile<Tile> queries(
        dims, rows_.options(), item.head, item.queries,
        [&](Index i) { return rows_.query(item.sequence, item.first_row + i); }, prepared, count, scratch);
    Tile kv(dims.key_dim, dims.value_dim, dims.scale, scratch);
    const RowStates total = RowStates::at(scratch.take(RowStates::size(count, value_pad)), count, value_pad);
    const RowStates part = RowStates::at(scratch.take(RowStates::size(count, value_pad)), count, value_pad);

    const VisibleKeys keys = rows_.keys(item.sequence, item.first_row, item.first_row + item.queries);
    total.reset(count, value_pad);
    bool is_first = true;
    for_each_split(keys, [&](Index split) {
      if (std::exchange(is_first, false)) {  // merging into the identity changes no bit
        attend_split(item, keys, split, queries, kv, total);
      } else {
        part.reset(count, value_pad);
        attend_split(item, keys, split, queries, kv, part);
        total.merge(part, count, value_pad);
      }
    });
    rows_.write(item.sequence, item.first_row, item.head, item.queries, total);
  }

  /// Carries the states over the keys of one split.
  void attend_split(const TileItem& item, const VisibleKeys& keys, Index split, QueryTile<Tile>& queries, Tile& kv,
                    const RowStates& states) const {
    KvTileRows<typename View::Element> located;
    for (Index base = split * split_keys; base < (split + 1) * split_keys; base += tile_keys) {
      const std::uint64_t visible = tile_bits(keys, base);
      if (visible == 0) {
        continue;
      }
      if (const auto gap = located.locate(rows_.view(item.sequence), item.head, base, visible)) {
        rows_.missing().report(item.sequence, *gap);
        return;
      }
      queries.attend(0, 0, item.queries, base, kv, located, nullptr, states);
    }
  }

  Rows rows_;
  Index tile_queries_;  // rows of q per query tile
};

/// The call for a batch of sequences, checked.
///
///   rows   of each view
///   count  rows of q, in all
template <class View, class Ex>
void attend(std::span<const View> views, std::span<const SequenceRows> rows, Index count, MatrixRef<const float> q,
            const AttentionOutput& out, const AttentionOptions& options, Ex& executor) {
  require(q.rows() == count, "q rows", q.rows(), "the number of query rows of all views, " + std::to_string(count));
  if (views.empty()) {
    return;
  }
  const AttentionDims dims = kvc::attention_dims(views.front(), q, options);
  for (const View& view : views) {
    require(view.kv_heads() == dims.kv_heads, "kv_heads of a view", view.kv_heads(), "that of the first view");
    require(view.key_dim() == dims.key_dim, "key_dim of a view", view.key_dim(), "that of the first view");
    require(view.value_dim() == dims.value_dim, "value_dim of a view", view.value_dim(), "that of the first view");
  }
  out.require_fits(dims, q.rows());
  AttentionCall<View>(dims, options, views, rows, q, out).run(executor);
}

}  // namespace detail
}  // namespace v0
}  // namespace kvc
