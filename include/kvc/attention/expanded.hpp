// Prefill of latent rows (MLA) in expanded form: rows become the keys and values of each query head, some positions at
// a time, and the parts are merged.
//
// The row of a token is  [latent | rest],  the rest being a key with positional encoding that all heads share. With the
// up-projections W_uk and W_uv of the model, two forms of attention give the same output but for rounding:
//
//   absorbed   queries of row_dim elements meet the rows as they are, and the output, of latent_dim elements, goes
//              through W_uv: kvc::prefill and kvc::decode over the view, no code of its own
//   expanded   each row becomes, for each head, a key of key_dim elements and a value of value_dim: prefill_expanded
//
// In DeepSeek V3 a pair of a query row and a key takes 1,088 multiplications in absorbed form and 320 in expanded form.
// Expanding a row takes 131,072, in each head. So it pays for many query rows: see expansion_pays.
//
// Source of both forms: DeepSeek-V2 (2024), which calls the attention multi-head latent attention.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <span>
#include <string>

#include "kvc/attention/kernel/call_rows.hpp"
#include "kvc/attention/kernel/row_states.hpp"
#include "kvc/attention/kernel/scratch.hpp"
#include "kvc/attention/kernel/split_plan.hpp"
#include "kvc/attention/kv_view.hpp"
#include "kvc/attention/latent_expansion.hpp"
#include "kvc/attention/options.hpp"
#include "kvc/attention/output.hpp"
#include "kvc/attention/prefill.hpp"
#include "kvc/attention/state.hpp"
#include "kvc/core/error.hpp"
#include "kvc/core/matrix.hpp"
#include "kvc/core/types.hpp"
#include "kvc/element/element.hpp"
#include "kvc/parallel/executor.hpp"

namespace kvc {
inline namespace v0 {

namespace detail {

/// The expanded keys and values of one head in one split: a view of its positions alone.
class ExpandedSplit {
 public:
  using Element = float;

  ///   k  [split_keys, key_dim]     v  [split_keys, value_dim]
  ExpandedSplit(const float* k, const float* v, const LatentExtents& extents, Index first, Pos length)
      : k_(k), v_(v), key_dim_(extents.key_dim), value_dim_(extents.value_dim), first_(first), length_(length) {}

  [[nodiscard]] static Index kv_heads() noexcept { return 1; }
  [[nodiscard]] Index key_dim() const noexcept { return key_dim_; }
  [[nodiscard]] Index value_dim() const noexcept { return value_dim_; }
  [[nodiscard]] Pos length() const noexcept { return length_; }
  template <class F>
  void for_each_run(Index, PosRange range, F&& f) const {
    const Index first = std::max(Index{range.first}, first_), last = std::min(Index{range.last}, first_ + split_keys);
    if (first < last) {
      f(KvRun<float>{k_ + (first - first_) * key_dim_, v_ + (first - first_) * value_dim_, last - first, key_dim_,
                     value_dim_, static_cast<Pos>(first)});
    }
  }

 private:
  const float* k_;
  const float* v_;
  Index key_dim_;
  Index value_dim_;
  Index first_;
  Pos length_;
};
static_assert(KvView<ExpandedSplit>);

/// One sequence of a call of prefill_expanded, checked.
template <class View, class E>
class ExpandedCall {
 public:
  ///   first_row  of the sequence in q, out and the mask
  ExpandedCall(const View& kv, const E& expansion, PosRange queries, Index first_row, MatrixRef<const float> q,
               const AttentionOutput& out, const AttentionOptions& options)
      : kv_(kv),
        expansion_(expansion),
        extents_(expansion.extents()),
        heads_(expansion.heads()),
        queries_(queries),
        first_row_(first_row),
        q_(q),
        out_(out),
        options_(options),
        keys_(visible_keys(queries.first, queries.last, kv.length(), options)) {}

  template <class Ex>
  void run(Ex& executor) {
    const Index rows = queries_.size(), workers = std::min(heads_, detail::concurrency(executor));
    const Index row_pad = padded(extents_.row_dim);
    const Index work_floats = padded(split_keys * extents_.key_dim) + padded(split_keys * extents_.value_dim) +
                              RowStates::size(rows, extents_.value_dim);
    Scratch scratch(split_keys * row_pad + 2 * padded(heads_ * rows) + workers * padded(work_floats));
    latent_ = {scratch.take(split_keys * row_pad), split_keys, extents_.row_dim, row_pad};
    m_ = scratch.take(padded(heads_ * rows));
    l_ = scratch.take(padded(heads_ * rows));
    float* const work = scratch.take(workers * padded(work_floats));

    bool is_first = true;
    for_each_split(keys_, [&](Index split) {
      read_rows(split);
      executor.parallel_for(workers, [&](Index w) {
        for (Index head = w; head < heads_; head += workers) {
          attend(head, split, is_first, work + w * padded(work_floats));
        }
      });
      is_first = false;
    });
    executor.parallel_for(workers, [&](Index w) {
      for (Index head = w; head < heads_; head += workers) {
        if (is_first) {
          states(head).reset();
        }
        write(head);
      }
    });
  }

 private:
  /// f(range) for the keys of a split that a row may see.
  template <class F>
  void for_each_range(Index split, F f) const {
    for (const KeyRange& keys : {keys_.kept, keys_.recent}) {
      const KeyRange range{std::max(keys.first, split * split_keys), std::min(keys.last, (split + 1) * split_keys)};
      if (!range.empty()) {
        f(range);
      }
    }
  }

  /// The latent rows of a split, as floats, each at the place of its position.
  void read_rows(Index split) {
    using T = typename View::Element;
    for_each_range(split, [&](KeyRange range) {
      detail::for_each_run_of(kv_, 0, range, [&](const KvRun<T>& run) {
        for (Index r = 0; r < run.rows; ++r) {
          decode_key(run, r, extents_.row_dim, latent_.row(run.first + r - split * split_keys));
        }
      });
    });
  }

  /// The states of all rows in one head: o where the call writes its output.
  [[nodiscard]] AttentionStates states(Index head) const {
    const Index rows = queries_.size();
    float* const o = out_.row(first_row_, head, extents_.value_dim);
    const Index stride = rows > 1 ? out_.row(first_row_ + 1, head, extents_.value_dim) - o : extents_.value_dim;
    return {{o, rows, extents_.value_dim, stride}, {m_ + head * rows, rows, 1}, {l_ + head * rows, rows, 1}};
  }

  /// Carries the states of one head over the keys of a split.
  void attend(Index head, Index split, bool is_first, float* work) const {
    const Index rows = queries_.size(), base = split * split_keys;
    float* const k = work;
    float* const v = k + padded(split_keys * extents_.key_dim);
    float* const part = v + padded(split_keys * extents_.value_dim);
    for_each_range(split, [&](KeyRange range) {
      const Index at = range.first - base, count = range.last - range.first;
      expansion_.expand(head, MatrixRef<const float>(latent_).middle_rows(at, count),
                        {k + at * extents_.key_dim, count, extents_.key_dim},
                        {v + at * extents_.value_dim, count, extents_.value_dim});
    });

    // Of a causal call, rows before the split see nothing of it. The first split makes the states of all rows.
    const Index unseen = options_.causal && !is_first ? std::clamp(base - queries_.first, Index{0}, rows) : 0;
    const Index count = rows - unseen;
    if (count == 0) {
      return;
    }
    AttentionOptions options = options_;
    options.keys = {std::max(options.keys.first, static_cast<Pos>(base)),
                    std::min(options.keys.last, static_cast<Pos>(std::min(base + split_keys, Index{max_pos})))};
    options.mask = options_.mask.part(head, first_row_ + unseen, count);
    options.sinks = {};
    const MatrixRef<const float> q(q_.row(first_row_ + unseen) + head * extents_.key_dim, count, extents_.key_dim,
                                   q_.stride());
    const PosRange queries{queries_.first + static_cast<Pos>(unseen), queries_.last};
    const ExpandedSplit view(k, v, extents_, base, kv_.length());
    AttentionStates total = states(head);
    if (is_first) {
      prefill(view, queries, q, total, options);
      return;
    }
    const RowStates of_part = RowStates::at(part, count, extents_.value_dim);
    const AttentionStates seen{{of_part.o, count, extents_.value_dim}, {of_part.m, count, 1}, {of_part.l, count, 1}};
    prefill(view, queries, q, seen, options);
    AttentionStates{total.o.middle_rows(unseen, count), total.m.middle_rows(unseen, count),
                    total.l.middle_rows(unseen, count)}
        .merge(seen);
  }

  /// Makes the output of the states of one head.
  void write(Index head) const {
    const AttentionStates all = states(head);
    for (Index i = 0; i < queries_.size(); ++i) {
      const AttentionState state = all.state(i, 0);
      out_.write_sums(first_row_ + i, head, state.m, state.l);
      if (out_.has_states()) {
        continue;
      }
      if (options_.sinks.empty()) {
        state.write_output(state.o.data());
      } else {
        state.write_output(state.o.data(), options_.sinks[static_cast<std::size_t>(head)]);
      }
    }
  }

  const View& kv_;
  const E& expansion_;
  LatentExtents extents_;
  Index heads_;
  PosRange queries_;
  Index first_row_;
  MatrixRef<const float> q_;
  AttentionOutput out_;
  const AttentionOptions& options_;
  VisibleKeys keys_;         // that any row may see
  MatrixRef<float> latent_;  // [split_keys, row_dim] the rows of the current split
  float* m_ = nullptr;       // [heads, rows]
  float* l_ = nullptr;       // [heads, rows]
};

[[nodiscard]] constexpr PosRange positions_of(const SequenceRows& rows) noexcept {
  return {static_cast<Pos>(rows.first_position), static_cast<Pos>(rows.first_position + rows.count)};
}

/// Checks all sequences of a call before any is computed, and computes them one after the other.
///
///   rows  of each sequence: [views.size()], `count` in all
template <class View, class E, class Ex>
void prefill_expanded(std::span<const View> views, std::span<const SequenceRows> rows, Index count, const E& expansion,
                      const MatrixRef<const float>& q, const AttentionOutput& out, const AttentionOptions& options,
                      Ex& executor) {
  const LatentExtents extents = expansion.extents();
  const Index heads = expansion.heads();
  require_extents(q, count, heads * extents.key_dim, "q");
  for (std::size_t b = 0; b < views.size(); ++b) {
    const View& kv = views[b];
    require(kv.kv_heads() == 1, "kv_heads", kv.kv_heads(), "1: latent rows serve all query heads");
    require(kv.key_dim() == extents.row_dim, "key_dim of the view", kv.key_dim(),
            "row_dim of the expansion, " + std::to_string(extents.row_dim));
    const AttentionDims dims = kvc::attention_dims(ExpandedSplit(nullptr, nullptr, extents, 0, kv.length()), q,
                                                   options);  // checks the options
    out.require_fits(dims, count);
    require_retained(kv, 0, visible_keys(positions_of(rows[b]).first, positions_of(rows[b]).last, kv.length(), options),
                     static_cast<Index>(b));
  }
  for (std::size_t b = 0; b < views.size(); ++b) {
    if (rows[b].count > 0) {
      ExpandedCall<View, E>(views[b], expansion, positions_of(rows[b]), rows[b].first_row, q, out, options)
          .run(executor);
    }
  }
}

}  // namespace detail

/// Attention of the rows of one sequence over latent rows, in expanded form: as `prefill`, with these differences.
///
///   kv         one layer of latent rows of one sequence: one kv head, of row_dim elements. Its values are not read
///   expansion  makes keys and values of the rows: UpProjections, or any LatentExpansion
///   q          [n, heads * key_dim], not absorbed
///   out        [n, heads * value_dim], with or without lse, or states: see AttentionOutput. Overwritten; must not
///              overlap q, the cache or the weights
///
/// The default scale is 1 / sqrt(key_dim); the absorbed form needs the same one, named.
///
/// **Bits.** Those that `prefill` gives over a view of all keys and values expanded beforehand, if the expansion keeps
/// its law. So they depend neither on policy, layout, block size, executor nor on how a prompt is cut into passes. They
/// are not those of the absorbed form, which rounds other sums: outputs differ by about 1e-6 of the largest value, and
/// by what absorbing the queries rounds.
///
/// **Memory.** 512 positions are expanded at a time, in one head for each thread, and merged as AttentionState: they
/// stay in the second-level cache. Keys and values that a pass has expanded for itself need not be expanded again:
///
///   prefill_expanded(kv, projections, queries, q, before, {.keys = {0, cached}});      // states
///   prefill(kvc::DenseView<float>(k, v, heads), {0, n}, q, own);                       // states of the new tokens
///   before.merge(own);
///
/// **Errors.** Throws std::invalid_argument if extents or options do not fit, or if the view does not retain a key that
/// a row may see; nothing has been written then. Throws what the expansion throws, and std::bad_alloc; `out` may be
/// partly written then.
///
/// **Cost.** O(heads * (keys * projection_size + pairs * (key_dim + value_dim))), see expansion_pays.
template <KvView View, LatentExpansion E, class Ex = Sequential>
  requires Executor<Ex>
void prefill_expanded(const View& kv, const E& expansion, PosRange queries, MatrixArg<float> q,
                      const AttentionOutput& out, const AttentionOptions& options = {}, Ex&& executor = {}) {
  require(queries.size() == q.rows(), "queries", queries, "as many positions as q has rows");
  const detail::SequenceRows rows{0, q.rows(), Index{queries.first}};
  detail::prefill_expanded(std::span<const View>(&kv, 1), std::span<const detail::SequenceRows>(&rows, 1), q.rows(),
                           expansion, q.ref(), out, options, executor);
}

/// The same for a ragged batch of sequences, whose rows lie one after the other in q and out. Each row has the bits
/// that a call for its sequence alone gives. Nothing is written if anything of any sequence does not fit. Sequences are
/// computed one after the other, each by all threads: rows that they share are expanded for each.
///
///   views    one layer of each sequence, a contiguous range
///   queries  the positions of the rows of each sequence: [B], B == views.size(); may be empty
///   q        [sum of queries[b].size(), heads * key_dim]    out  as many rows
///
/// Rows of a mask are those of q.
template <KvViewRange Views, LatentExpansion E, class Ex = Sequential>
  requires Executor<Ex>
void prefill_expanded(const Views& views, const E& expansion, std::span<const PosRange> queries, MatrixArg<float> q,
                      const AttentionOutput& out, const AttentionOptions& options = {}, Ex&& executor = {}) {
  const auto all = detail::view_span(views);
  const detail::RaggedRows rows = detail::rows_at(all, queries);
  detail::prefill_expanded(all, rows.sequences(), rows.count, expansion, q.ref(), out, options, executor);
}

/// The same for rows that are the last positions of their sequences, as after `extend`: those of sequence b are
/// [q_indptr[b], q_indptr[b + 1]) of q and out, as in prefill.
///
///   q_indptr  [B + 1] ascending from 0, also known as cu_seqlens_q
template <KvViewRange Views, LatentExpansion E, class Ex = Sequential>
  requires Executor<Ex>
void prefill_expanded(const Views& views, const E& expansion, std::span<const std::int32_t> q_indptr,
                      MatrixArg<float> q, const AttentionOutput& out, const AttentionOptions& options = {},
                      Ex&& executor = {}) {
  const auto all = detail::view_span(views);
  const detail::RaggedRows rows = detail::last_rows(all, q_indptr);
  detail::prefill_expanded(all, rows.sequences(), rows.count, expansion, q.ref(), out, options, executor);
}

}  // namespace v0
}  // namespace kvc
