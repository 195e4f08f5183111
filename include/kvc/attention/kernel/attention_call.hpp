// The engine below prefill and decode: cuts a call into work items, brings the rows of the cache to QueryTile, merges.
//
// A prefill item is (sequence, kv head, some rows of q, all their keys). Where the rows of a sequence fit one QueryTile,
// as in decode, the keys are divided as well, so that one long sequence keeps many threads busy: an item is (sequences
// that share these keys, some kv heads, some splits of the keys). The states of the splits are merged in a second step,
// or at once where an item has all from the first on. Before both, rows of q are prepared, once for all items.
// Both run the same operations on each row.
#pragma once

#include <algorithm>
#include <type_traits>
#include <vector>

#include "kvc/attention/kernel/kv_tile.hpp"
#include "kvc/attention/kernel/query_tile.hpp"
#include "kvc/attention/kernel/sharing.hpp"
#include "kvc/attention/kernel/splits.hpp"
#include "kvc/attention/kv_view.hpp"
#include "kvc/attention/options.hpp"
#include "kvc/parallel/executor.hpp"

namespace kvc {
inline namespace v0 {
namespace detail {

/// One call: `sequences` views, each with `rows` rows of q one after the other.
///
///   view(b) -> const View&         b < sequences
///   first_position(b) -> Index     of the first row of sequence b
template <class ViewOf, class PositionOf>
class AttentionCall {
  using View = std::remove_cvref_t<std::invoke_result_t<ViewOf, Index>>;
  using T = typename View::Element;
  using Tile = KvTile<T>;
  using Rows = QueryTile<Tile>;

 public:
  AttentionCall(const AttentionDims& dims, const AttentionOptions& options, Index sequences, Index rows, ViewOf view,
                PositionOf first_position, MatrixRef<const float> q, MatrixRef<float> out)
      : dims_(dims),
        options_(options),
        rows_(rows),
        queries_(std::clamp(query_tile_rows / dims.group, Index{1}, std::max(rows, Index{1}))),
        tiles_(ceil_div(rows, queries_)),
        query_size_(Tile::query_floats(dims.key_dim)),
        value_pad_(Tile::state_floats(dims.value_dim)),
        view_(view),
        first_position_(first_position),
        q_(q),
        out_(out),
        sequences_(sequences) {}

  template <class Ex>
  void run(Ex& executor) {
    if (tiles_ == 1) {
      run_split(executor);
    } else {
      executor.parallel_for(sequences_ * dims_.kv_heads * tiles_, [this](Index i) {
        const Index tile = tiles_ - 1 - i % tiles_;  // the longest first: a late short item ends sooner
        run_rows(i / tiles_ / dims_.kv_heads, i / tiles_ % dims_.kv_heads, tile);
      });
    }
  }

 private:
  using Query = typename Rows::Query;

  /// Row i of sequence b.
  [[nodiscard]] Query query(Index b, Index i) const {
    return {b * rows_ + i, visible_keys(first_position_(b) + i, view_(b).length(), options_)};
  }
  /// Keys that any row of [first, last) of sequence b may see. (Both ends of what a row sees grow with its position.)
  [[nodiscard]] KeyRange keys(Index b, Index first, Index last) const {
    if (first >= last) {
      return {0, 0};
    }
    const KeyRange early = query(b, first).keys, late = query(b, last - 1).keys;
    return early.first < late.last ? KeyRange{early.first, late.last} : KeyRange{0, 0};
  }

  /// Rows [first, first + queries) of sequence b, those of one kv head, as kernels want them.  to [queries, group]
  void prepare(Index b, Index first, Index head, Index queries, float* scaled, float* to) const {
    const auto row = [&](Index r) {
      return q_.row(b * rows_ + first + r / dims_.group) + (head * dims_.group + r % dims_.group) * dims_.key_dim;
    };
    Rows::prepare(dims_, queries * dims_.group, row, scaled, to);
  }

  /// The finished state of a row goes to its place.  out [value_dim]
  void write(const AttentionState& state, float* out) const noexcept {
    const simd::F32x16 sum = simd::broadcast(state.l == 0 ? 1.0F : state.l);
    float* const o = state.o.data();
    Index d = 0;
    if constexpr (Tile::in_order) {
      for (; dims_.value_dim - d >= simd::lanes; d += simd::lanes) {
        simd::store(out + d, simd::load(o + d) / sum);
      }
    }
    for (Index i = d; i < value_pad_; i += simd::lanes) {
      simd::store(o + i, simd::load(o + i) / sum);
    }
    for (; dims_.value_dim - d >= 4; d += 4) {
      std::copy_n(o + Tile::output_index(d), 4, out + d);
    }
    std::copy_n(o + Tile::output_index(d), dims_.value_dim - d, out + d);
  }

  // --- prefill -------------------------------------------------------------------------------------------------------

  /// All keys for the rows of one tile.
  void run_rows(Index b, Index head, Index tile) const {
    const Index first_row = tile * queries_, queries = std::min(queries_, rows_ - first_row);
    const Index count = queries * dims_.group;
    Scratch scratch(count * query_size_ + padded(dims_.key_dim) + Rows::scratch_floats(dims_, queries) +
                    Tile::scratch_floats(dims_.key_dim, dims_.value_dim) + 2 * RowStates::size(count, value_pad_));
    float* const prepared = scratch.take(count * query_size_);
    prepare(b, first_row, head, queries, scratch.take(padded(dims_.key_dim)), prepared);
    Rows rows(
        dims_, options_, head, queries, [&](Index i) { return query(b, first_row + i); }, prepared, count, scratch);
    Tile kv(dims_.key_dim, dims_.value_dim, scratch);
    const RowStates total = RowStates::at(scratch.take(RowStates::size(count, value_pad_)), count, value_pad_);
    const RowStates part = RowStates::at(scratch.take(RowStates::size(count, value_pad_)), count, value_pad_);
    const KeyRange range = keys(b, first_row, first_row + queries);
    KvTileRows<T> located;
    total.reset(count, value_pad_);
    const Index first_split = range.first / split_keys;
    for (Index split = first_split; split * split_keys < range.last; ++split) {
      const RowStates& into = split == first_split ? total : part;  // merging into the identity changes no bit
      if (split != first_split) {
        part.reset(count, value_pad_);
      }
      const Index end = std::min(range.last, (split + 1) * split_keys);
      Index at = std::max(range.first, split * split_keys);
      for (Index base = at - at % tile_keys; base < end; base += tile_keys) {
        located.locate(view_(b), head, base, std::max(at, base) - base, std::min(end, base + tile_keys) - base);
        rows.attend(0, 0, queries, base, kv, located, nullptr, into);
      }
      if (split != first_split) {
        total.merge(part, count, value_pad_);
      }
    }
    const auto row = [&](Index r) {
      return out_.row(b * rows_ + first_row + r / dims_.group) +
             (head * dims_.group + r % dims_.group) * dims_.value_dim;
    };
    for (Index r = 0; r < count; ++r) {
      if (r + rows_ahead < count) {
        prefetch_row<true>(row(r + rows_ahead), dims_.value_dim);
      }
      write(total.state(r, value_pad_), row(r));
    }
  }

  // --- decode --------------------------------------------------------------------------------------------------------

  [[nodiscard]] SplitIndex split_index() const {
    SplitIndex index{std::vector<Index>(static_cast<std::size_t>(sequences_) + 1),
                     std::vector<Index>(static_cast<std::size_t>(sequences_))};
    for (Index b = 0; b < sequences_; ++b) {
      const auto i = static_cast<std::size_t>(b);
      const KeyRange range = keys(b, 0, rows_);
      index.first[i] = range.first / split_keys;
      index.before[i + 1] = index.before[i] + ceil_div(range.last, split_keys) - index.first[i];
    }
    return index;
  }

  /// Whether the keys of a head lie in one piece, of more than a tile, where this split begins. The first head stands
  /// for all, and the split for those after it.
  [[nodiscard]] bool lies_in_one_piece(Index b, Index split) const {
    const Index length = view_(b).length(), first = std::min(split * split_keys, length);
    Index longest = 0;
    view_(b).for_each_run(0,
                          PosRange{static_cast<Pos>(first), static_cast<Pos>(std::min(first + 2 * tile_keys, length))},
                          [&](const KvRun<T>& run) {
                            if (run.k_stride == Element<T>::row_size(dims_.key_dim)) {
                              longest = std::max(longest, run.rows);
                            }
                          });
    return longest > tile_keys;
  }

  /// What all work items of a call share.
  struct SplitCall {
    SplitIndex index;
    SharedOrder order;
    std::vector<SplitGroup> split_groups;
    float* q;          // [kv_heads, sequences in their shared order, rows, group, query_size]
    RowStates states;  // of all split_groups

    [[nodiscard]] Index slot(Index i, Index split) const {
      return index.at(order.sequence[static_cast<std::size_t>(i)], split);
    }
  };

  /// Every split for every row that reads it, then the merges.
  template <class Ex>
  void run_split(Ex& executor) const {
    constexpr Index most_rows = 512;  // of a work item: their queries and states stay in the second-level cache
    const Index count = rows_ * dims_.group;
    SplitCall call{split_index(), shared_order(sequences_, view_), {}, nullptr, {}};
    call.split_groups =
        make_split_groups(call.index, call.order, std::max(Index{1}, most_rows / count), dims_.kv_heads, count);
    const auto by_head = [&](const SplitGroup& p) {
      return lies_in_one_piece(call.order.sequence[static_cast<std::size_t>(p.first)], p.split);
    };
    const std::vector<WorkItem> items = make_work_items(call.split_groups, call.index, call.order, dims_.kv_heads,
                                                        count, most_rows, concurrency(executor), by_head);

    const Index all_rows = sequences_ * rows_ * dims_.query_heads;
    const Index all_states = call.index.before.back() * rows_ * dims_.query_heads;
    Scratch scratch(all_rows * query_size_ + RowStates::size(all_states, value_pad_));
    call.q = scratch.take(all_rows * query_size_);
    call.states = RowStates::at(scratch.take(RowStates::size(all_states, value_pad_)), all_states, value_pad_);

    executor.parallel_for(sequences_ * dims_.kv_heads, [&](Index item) {
      const Index i = item / dims_.kv_heads, head = item % dims_.kv_heads;
      Scratch scaled(padded(dims_.key_dim));
      prepare(call.order.sequence[static_cast<std::size_t>(i)], 0, head, rows_, scaled.take(padded(dims_.key_dim)),
              call.q + (head * sequences_ + i) * count * query_size_);
    });
    executor.parallel_for(static_cast<Index>(items.size()),
                          [&](Index i) { this->run(call, items[static_cast<std::size_t>(i)]); });
    merge_splits(executor, call, items);
  }

  [[nodiscard]] RowStates states_of(const SplitCall& call, const SplitGroup& split_group, Index head) const {
    const Index first = split_group.state + head * (split_group.last - split_group.first) * rows_ * dims_.group;
    return {call.states.o + first * value_pad_, call.states.m + first, call.states.l + first};
  }

  void run(const SplitCall& call, const WorkItem& item) const {
    const SplitGroup& split_group = call.split_groups[static_cast<std::size_t>(item.first)];
    const Index queries = (split_group.last - split_group.first) * rows_, count = rows_ * dims_.group;
    const auto sequence = [&](Index i) { return call.order.sequence[static_cast<std::size_t>(split_group.first + i)]; };
    const Index states = item.heads * queries * dims_.group;
    Scratch scratch(Rows::scratch_floats(dims_, queries) + Tile::scratch_floats(dims_.key_dim, dims_.value_dim) +
                    RowStates::size(states, value_pad_));
    Rows rows(
        dims_, options_, item.first_head, queries, [&](Index i) { return query(sequence(i / rows_), i % rows_); },
        call.q + (item.first_head * sequences_ + split_group.first) * count * query_size_, sequences_ * count, scratch);
    Tile kv(dims_.key_dim, dims_.value_dim, scratch);

    // While one tile is computed, the next is on its way from memory.
    const auto locate = [&](const Step& step, KvTileRows<T>& to) {
      to.locate(view_(sequence(step.first)), item.first_head + step.head, step.tile * tile_keys, step.keys.first,
                step.keys.last);
    };
    Steps steps([this](Index b) { return keys(b, 0, rows_); }, call.order, call.split_groups, item);
    KvTileRows<T> located[2];
    Step now{}, next{};
    bool more = steps.next(now);  // a split_group has a key that a row may see
    KVC_ASSERT(more);
    locate(now, located[0]);
    // m and l of this work item: in the table its rows would share cache lines with those of other threads.
    const RowStates own = RowStates::at(scratch.take(RowStates::size(states, value_pad_)), states, value_pad_);
    const auto table = [&](Index p) {
      return states_of(call, call.split_groups[static_cast<std::size_t>(p)], item.first_head);
    };
    const auto begin_split = [&](const Step& step) {  // of the rows of one head, or of all
      const bool merges = item.merges && step.split_group != item.first;
      const RowStates into = {merges ? own.o : table(step.split_group).o, own.m, own.l};
      into.from(item.by_head ? step.head * rows.rows() : 0, value_pad_)
          .reset(item.by_head ? rows.rows() : states, value_pad_);
      return into;
    };
    const auto end_split = [&](const Step& step, const RowStates& into) {
      const Index first = item.by_head ? step.head * rows.rows() : 0, count_of = item.by_head ? rows.rows() : states;
      if (item.merges && step.split_group != item.first) {
        table(item.first).from(first, value_pad_).merge(into.from(first, value_pad_), count_of, value_pad_);
      } else {
        std::copy_n(into.m + first, count_of, table(step.split_group).m + first);
        std::copy_n(into.l + first, count_of, table(step.split_group).l + first);
      }
    };

    RowStates into = begin_split(now);
    for (int current = 0; more; current = 1 - current) {
      more = steps.next(next);
      if (more) {
        locate(next, located[1 - current]);
      }
      rows.attend(now.head, now.first * rows_, now.last * rows_, now.tile * tile_keys, kv, located[current],
                  more ? &located[1 - current] : nullptr, into);
      if (!more || next.split_group != now.split_group || (item.by_head && next.head != now.head)) {
        end_split(now, into);
        if (more) {
          into = begin_split(next);
        }
      }
      now = next;
    }
  }

  /// The states of each row become its output.
  template <class Ex>
  void merge_splits(Ex& executor, const SplitCall& call, const std::vector<WorkItem>& items) const {
    const Index count = rows_ * dims_.group;
    std::vector<Index> first(static_cast<std::size_t>(call.index.before.back()));  // [slots] state of the first row
    std::vector<Index> of_head(first.size());                                      // [slots] states of a kv head
    for (const SplitGroup& p : call.split_groups) {
      for (Index i = p.first; i < p.last; ++i) {
        const auto slot = static_cast<std::size_t>(call.slot(i, p.split));
        first[slot] = p.state + (i - p.first) * count;
        of_head[slot] = (p.last - p.first) * count;
      }
    }
    // [slots, kv_heads] the splits that its state is of; those that another's is of too are not looked at
    std::vector<Index> merged(first.size() * static_cast<std::size_t>(dims_.kv_heads), 1);
    for (const WorkItem& work : items) {
      const SplitGroup& p = call.split_groups[static_cast<std::size_t>(work.first)];
      for (Index i = p.first; i < p.last && work.merges; ++i) {
        std::fill_n(merged.begin() + call.slot(i, p.split) * dims_.kv_heads + work.first_head, work.heads,
                    work.last - work.first);
      }
    }
    executor.parallel_for(sequences_ * dims_.kv_heads, [&](Index item) {
      const Index b = item / dims_.kv_heads, head = item % dims_.kv_heads;
      const Index begin = call.index.before[static_cast<std::size_t>(b)], end = begin + call.index.count(b);
      Scratch merging(value_pad_);
      AttentionState total{{merging.take(value_pad_), static_cast<std::size_t>(value_pad_)}};
      for (Index r = 0; r < count; ++r) {
        total.reset();
        for (Index slot = begin; slot < end;) {
          const auto i = static_cast<std::size_t>(slot);
          total.merge(call.states.state(first[i] + head * of_head[i] + r, value_pad_));
          slot += merged[static_cast<std::size_t>(slot * dims_.kv_heads + head)];
        }
        write(total, out_.row(b * rows_ + r / dims_.group) + (head * dims_.group + r % dims_.group) * dims_.value_dim);
      }
    });
  }

  const AttentionDims& dims_;
  const AttentionOptions& options_;
  Index rows_;     // of q per sequence
  Index queries_;  // rows of q per row tile
  Index tiles_;    // row tiles per sequence
  Index query_size_;
  Index value_pad_;
  ViewOf view_;
  PositionOf first_position_;
  MatrixRef<const float> q_;
  MatrixRef<float> out_;
  Index sequences_;
};

}  // namespace detail
}  // namespace v0
}  // namespace kvc
