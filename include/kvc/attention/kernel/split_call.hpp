// SplitCall: sequences with few query rows, as in decode, whose keys are split among threads.
//
// A call has three steps, and the items of a step run in parallel. `prepare` converts rows of q into the form of the
// kernels, `work` computes the states of rows over some splits, `merge` merges the states of each row in ascending
// order and writes the result.
#pragma once

#include <algorithm>
#include <bit>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "kvc/attention/kernel/call_rows.hpp"
#include "kvc/attention/kernel/kv_tile_rows.hpp"
#include "kvc/attention/kernel/row_states.hpp"
#include "kvc/attention/kernel/scratch.hpp"
#include "kvc/attention/kernel/shared_order.hpp"
#include "kvc/attention/kernel/splits.hpp"
#include "kvc/attention/kv_view.hpp"
#include "kvc/attention/memory_plan.hpp"
#include "kvc/attention/memory_plan_choice.hpp"
#include "kvc/attention/options.hpp"
#include "kvc/attention/state.hpp"
#include "kvc/core/types.hpp"
#include "kvc/element/element.hpp"

namespace kvc {
inline namespace v0 {
namespace detail {

template <class View>
class SplitCall {
  using Rows = CallRows<View>;
  using T = typename View::Element;
  using Tile = typename Rows::Tile;
  using Query = typename Rows::Query;

 public:
  /// Plans the call.
  ///
  ///   sequences  those of `rows` that it is for, each of which has rows
  ///   threads    that run the items at the same time
  SplitCall(const Rows& rows, const std::vector<Index>& sequences, Index threads)
      : rows_(rows),
        batch_(make_batch(rows, sequences)),
        queries_(queries_of(rows, batch_)),
        groups_(make_split_groups(batch_, most_rows, dims().kv_heads, dims().group)),
        plan_(choose_plan(threads)),
        items_(make_work_items(groups_, batch_, dims().kv_heads, most_rows, threads,
                               [this](const SplitGroup& g) { return is_by_head(g); })),
        scratch_(query_floats() + RowStates::size(state_count(), value_pad())),
        q_(scratch_.take(query_floats())),
        states_(RowStates::at(scratch_.take(RowStates::size(state_count(), value_pad())), state_count(), value_pad())),
        parts_(row_parts()) {}
  SplitCall(const SplitCall&) = delete;
  SplitCall& operator=(const SplitCall&) = delete;

  /// Items of `prepare` and of `merge`.
  [[nodiscard]] Index query_items() const noexcept { return batch_.size() * dims().kv_heads; }
  [[nodiscard]] Index work_items() const noexcept { return std::ssize(items_); }

  void prepare(Index item) const {
    const Index i = item / dims().kv_heads, head = item % dims().kv_heads;
    Scratch scaled(padded(dims().key_dim));
    rows_.prepare(batch_.sequence(i), 0, head, batch_.queries(i, i + 1), scaled.take(padded(dims().key_dim)),
                  prepared(head, i));
  }

  /// Runs f(), which runs all work items and nothing else. Its time may decide the MemoryPlan of later calls.
  template <class F>
  void time_work(F f) const {
    if (plan_.entry < 0) {
      f();
      return;
    }
    const auto start = std::chrono::steady_clock::now();
    f();
    MemoryPlanChooser::instance().add(plan_, std::chrono::steady_clock::now() - start);
  }

  void work(Index item) const { ItemWork(*this, items_[static_cast<std::size_t>(item)]).run(); }

  void merge(Index item) const {
    const Index i = item / dims().kv_heads, head = item % dims().kv_heads;
    const Index begin = batch_.splits.begin(i), end = begin + batch_.splits.count(i);
    const Index first_query = batch_.queries_before(i), count = batch_.queries(i, i + 1) * dims().group;
    Scratch merging(value_pad());
    AttentionState total{{merging.take(value_pad()), static_cast<std::size_t>(value_pad())}};
    for (Index r = 0; r < count; ++r) {
      total.reset();
      for (Index n = begin; n < end;) {
        const RowParts& part = parts_[static_cast<std::size_t>(n * dims().kv_heads + head)];
        total.merge(states_.state(part.state + r, value_pad()));
        n += part.splits;
      }
      const Index row = queries_[static_cast<std::size_t>(first_query + r / dims().group)].row;
      rows_.write_row(total, row, head * dims().group + r % dims().group);
    }
  }

 private:
  /// Query rows of a work item in all its heads, whose queries and states stay in the second-level cache.
  static constexpr Index most_rows = 512;

  /// The states of one split, or of several from it on, of a sequence and kv head.
  struct RowParts {
    Index state;       // of its first row
    Index splits = 1;  // that the state is of
  };

  /// A work item while a thread computes it.
  class ItemWork {
   public:
    ItemWork(const SplitCall& call, const WorkItem& item)
        : call_(call),
          item_(item),
          group_(call.groups_[static_cast<std::size_t>(item.first_group)]),
          first_query_(call.batch_.queries_before(group_.first)),
          states_(item.heads * group_.rows),
          scratch_(QueryTile<Tile>::scratch_floats(call.dims(), queries()) +
                   Tile::scratch_floats(call.dims().key_dim, call.dims().value_dim) +
                   RowStates::size(states_, call.value_pad())),
          rows_(
              call.dims(), call.rows_.options(), item.first_head, queries(),
              [&](Index i) { return call.queries_[static_cast<std::size_t>(first_query_ + i)]; },
              call.prepared(item.first_head, group_.first), std::ssize(call.queries_) * call.dims().group, scratch_),
          kv_(call.dims().key_dim, call.dims().value_dim, call.dims().scale, scratch_),
          own_(RowStates::at(scratch_.take(RowStates::size(states_, call.value_pad())), states_, call.value_pad())) {
      kv_.prefetcher().set_plan(call.plan_.plan);
    }

    void run() {
      Steps steps(call_.batch_, call_.groups_, item_);
      KvTileRows<T> located[2];  // while one tile is computed, the next is on its way from memory
      Step now{}, next{};
      bool more = steps.next(now);  // a split group has a key that a row may see
      KVC_ASSERT(more);
      if (!locate(now, located[0])) {
        return;
      }
      begin_split(now);
      for (int current = 0; more; current = 1 - current) {
        more = steps.next(next);
        if (more && !locate_next(now, located[current], next, located[1 - current])) {
          return;
        }
        rows_.attend(now.head, queries_before(now.first), queries_before(now.last), now.tile * tile_keys, kv_,
                     located[current], more ? &located[1 - current] : nullptr, into_);
        if (!more || next.group != now.group || (item_.by_head && next.head != now.head)) {
          end_split(now);
          if (more) {
            begin_split(next);
          }
        }
        now = next;
      }
    }

   private:
    [[nodiscard]] Index queries() const { return call_.batch_.queries(group_.first, group_.last); }
    /// Rows of q of the sequences of this item before i.
    [[nodiscard]] Index queries_before(Index i) const { return call_.batch_.queries_before(i) - first_query_; }

    /// False, and reported, if the view lacks a key of the step.
    bool locate(const Step& step, KvTileRows<T>& to) const {
      const Index b = call_.batch_.sequence(step.first);
      const auto gap = to.locate(call_.rows_.view(b), item_.first_head + step.head, step.tile * tile_keys, step.keys);
      if (gap) [[unlikely]] {
        call_.rows_.missing().report(call_.first_to_see(*gap, step), *gap);
      }
      return !gap;
    }

    /// The same after `now`, whose rows are `located`.
    bool locate_next(const Step& now, const KvTileRows<T>& located, const Step& next, KvTileRows<T>& to) const {
      if constexpr (EvenHeadsView<View>) {
        if (next.head == now.head + 1 && next.tile == now.tile && next.first == now.first && next.last == now.last) {
          to.locate_next_head(located, call_.rows_.view(call_.batch_.sequence(next.first)).head_strides());
          return true;
        }
      }
      return locate(next, to);
    }

    // Rows of one head, or of all, whose states are carried on at the same time.
    [[nodiscard]] Index first_state(const Step& step) const { return item_.by_head ? step.head * group_.rows : 0; }
    [[nodiscard]] Index state_count() const { return item_.by_head ? group_.rows : states_; }
    /// Whether the states of a split go to those of the first.
    [[nodiscard]] bool merges(const Step& step) const { return item_.merges && step.group != item_.first_group; }
    /// The states of a split group in the table of the call, from the first head of this item on.
    [[nodiscard]] RowStates table(Index group) const {
      const SplitGroup& g = call_.groups_[static_cast<std::size_t>(group)];
      return call_.states_.from(g.state + item_.first_head * g.rows, call_.value_pad());
    }

    void begin_split(const Step& step) {
      // m and l are kept here: in the table, rows would share cache lines with those of other threads.
      into_ = {merges(step) ? own_.o : table(step.group).o, own_.m, own_.l};
      into_.from(first_state(step), call_.value_pad()).reset(state_count(), call_.value_pad());
    }
    void end_split(const Step& step) const {
      const Index first = first_state(step), pad = call_.value_pad();
      if (merges(step)) {
        table(item_.first_group).from(first, pad).merge(into_.from(first, pad), state_count(), pad);
      } else {
        std::copy_n(into_.m + first, state_count(), table(step.group).m + first);
        std::copy_n(into_.l + first, state_count(), table(step.group).l + first);
      }
    }

    const SplitCall& call_;
    const WorkItem& item_;
    const SplitGroup& group_;  // the first: all have the same sequences
    Index first_query_;        // of the batch
    Index states_;
    Scratch scratch_;
    QueryTile<Tile> rows_;
    Tile kv_;
    RowStates own_;
    RowStates into_ = {};  // of the split that is computed
  };

  [[nodiscard]] const AttentionDims& dims() const noexcept { return rows_.dims(); }
  [[nodiscard]] Index value_pad() const noexcept { return rows_.value_pad(); }
  [[nodiscard]] Index query_floats() const noexcept {
    return std::ssize(queries_) * dims().query_heads * rows_.query_size();
  }
  [[nodiscard]] Index state_count() const noexcept {
    return groups_.empty() ? 0 : groups_.back().state + groups_.back().rows * dims().kv_heads;
  }
  /// The prepared rows of the i-th sequence.
  [[nodiscard]] float* prepared(Index head, Index i) const noexcept {
    const Index row = (head * std::ssize(queries_) + batch_.queries_before(i)) * dims().group;
    return q_ + row * rows_.query_size();
  }

  [[nodiscard]] static SplitBatch make_batch(const Rows& rows, const std::vector<Index>& sequences) {
    const auto count = std::ssize(sequences);
    const auto number = [&](Index i) { return sequences[static_cast<std::size_t>(i)]; };
    SplitBatch batch;
    batch.order = shared_order(count, [&](Index i) -> const View& { return rows.view(number(i)); });
    batch.first_query.push_back(0);
    for (Index& b : batch.order.sequence) {
      b = number(b);
      batch.keys.push_back(rows.keys(b, 0, rows.count(b)));
      batch.first_query.push_back(batch.first_query.back() + rows.count(b));
    }
    batch.splits = SplitIndex(count, [&](Index i) { return batch.keys[static_cast<std::size_t>(i)]; });
    return batch;
  }
  /// The rows of q of all sequences, in the shared order.
  [[nodiscard]] static std::vector<Query> queries_of(const Rows& rows, const SplitBatch& batch) {
    std::vector<Query> queries;
    queries.reserve(static_cast<std::size_t>(batch.first_query.back()));
    for (const Index b : batch.order.sequence) {
      for (Index i = 0; i < rows.count(b); ++i) {
        queries.push_back(rows.query(b, i));
      }
    }
    return queries;
  }

  /// The first sequence of a step that may see a position, which one of them does.
  [[nodiscard]] Index first_to_see(Index position, const Step& step) const {
    Index i = step.first;
    while (i + 1 < step.last && tile_bits(batch_.keys[static_cast<std::size_t>(i)], position) % 2 == 0) {
      ++i;
    }
    return batch_.sequence(i);
  }

  /// Positions of a head that are contiguous, about, where this split of the i-th sequence begins; 2 * tile_keys at
  /// most. The first head stands for all, and the split for those after it.
  struct RunLengths {
    Index longest = 0;
    Index mean = 0;
  };
  [[nodiscard]] RunLengths run_lengths(Index i, Index split) const {
    const View& view = rows_.view(batch_.sequence(i));
    const Index length = view.length(), first = std::min(split * split_keys, length);
    const Index last = std::min(first + 2 * tile_keys, length);
    RunLengths runs;
    Index count = 0;
    view.for_each_run(0, PosRange{static_cast<Pos>(first), static_cast<Pos>(last)}, [&](const KvRun<T>& run) {
      const bool together = run.k_stride == key_units(run, dims().key_dim);
      runs.longest = together ? std::max(runs.longest, run.rows) : runs.longest;
      count += together ? 1 : run.rows;
    });
    runs.mean = count > 0 ? (last - first) / count : 0;
    return runs;
  }

  /// Whether the work on a group goes one head after the other.
  [[nodiscard]] bool is_by_head(const SplitGroup& g) const {
    switch (plan_.plan.heads) {
      case MemoryPlan::Heads::in_turn:
        return false;
      case MemoryPlan::Heads::one_by_one:
        return true;
      case MemoryPlan::Heads::by_layout:
        break;
    }
    return run_lengths(g.first, g.split).longest > tile_keys;
  }

  [[nodiscard]] MemoryPlanChooser::Use choose_plan(Index threads) const {
    if (const auto& plan = rows_.options().memory_plan) {
      return {*plan};
    }
    if (groups_.empty()) {
      return {};
    }
    // Plans are for rows that are read from memory and used once.
    const SplitGroup& first = groups_.front();
    const bool once = std::ranges::all_of(groups_, [](const SplitGroup& g) { return g.rows <= few_rows; });
    if (!once) {
      return {};
    }
    const Index row = Element<T>::row_size(dims().key_dim) + Element<T>::row_size(dims().value_dim);
    Index positions = 0;
    for (const SplitGroup& g : groups_) {
      const auto within = [&](KeyRange keys) {
        const Index begin = g.split * split_keys;
        return std::max(std::min(keys.last, begin + split_keys) - std::max(keys.first, begin), Index{0});
      };
      const VisibleKeys& keys = batch_.keys[static_cast<std::size_t>(g.first)];
      positions += within(keys.kept) + within(keys.recent);
    }
    static_assert(MemoryPlanKind::most_run == 2 * tile_keys);
    const auto mean = static_cast<std::uint64_t>(run_lengths(first.first, first.split).mean);
    const auto run = static_cast<Index>(std::bit_floor(mean + mean / 2));  // some blocks are neighbours
    const MemoryPlanKind kind{
        .element = std::string(Element<T>::name),  // a variable: nvcc 13 loses a bracket of an argument
        .run = run,
        .kv_heads = dims().kv_heads,
        .key_dim = dims().key_dim,
        .value_dim = dims().value_dim,
        .parallel = threads > 1};
    return MemoryPlanChooser::instance().use(kind, positions * dims().kv_heads * row * Index{sizeof(StorageOf<T>)});
  }

  /// [splits, kv_heads] where each is found. Splits whose states were merged into those of an earlier one are not
  /// looked at.
  [[nodiscard]] std::vector<RowParts> row_parts() const {
    std::vector<RowParts> parts(static_cast<std::size_t>(batch_.splits.total() * dims().kv_heads));
    const auto part = [&](Index i, Index split, Index head) -> RowParts& {
      return parts[static_cast<std::size_t>(batch_.splits.number(i, split) * dims().kv_heads + head)];
    };
    for (const SplitGroup& g : groups_) {
      for (Index i = g.first; i < g.last; ++i) {
        for (Index head = 0; head < dims().kv_heads; ++head) {
          part(i, g.split, head) = {g.state + head * g.rows + batch_.queries(g.first, i) * dims().group};
        }
      }
    }
    for (const WorkItem& item : items_) {
      const SplitGroup& g = groups_[static_cast<std::size_t>(item.first_group)];
      for (Index i = g.first; i < g.last && item.merges; ++i) {
        for (Index head = item.first_head; head < item.first_head + item.heads; ++head) {
          part(i, g.split, head).splits = item.last_group - item.first_group;
        }
      }
    }
    return parts;
  }

  const Rows& rows_;
  SplitBatch batch_;
  std::vector<Query> queries_;
  std::vector<SplitGroup> groups_;
  MemoryPlanChooser::Use plan_;
  std::vector<WorkItem> items_;
  Scratch scratch_;
  float* q_;          // [kv_heads, queries, group, query_size]
  RowStates states_;  // of all split groups
  std::vector<RowParts> parts_;
};

}  // namespace detail
}  // namespace v0
}  // namespace kvc
