// The engine below prefill and decode: cuts a call into work items, brings the rows of the cache to RowTile, merges.
//
// A prefill item is (sequence, kv head, some rows of q, all their keys). Where the rows of a sequence fit one RowTile,
// as in decode, the keys are divided as well, so that one long sequence keeps many threads busy: an item is (sequences
// that share these keys, some kv heads, one split of the keys). The states of the splits are merged in a second step.
// Both run the same operations on each row.
#pragma once

#include <algorithm>
#include <type_traits>
#include <vector>

#include "kvc/attention/executor.hpp"
#include "kvc/attention/kv_tile.hpp"
#include "kvc/attention/options.hpp"
#include "kvc/attention/row_tile.hpp"
#include "kvc/attention/sharing.hpp"
#include "kvc/core/view.hpp"

namespace kvc::inline v0 {
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
  using Rows = RowTile<Tile>;

 public:
  AttentionCall(const AttentionDims& dims, const AttentionOptions& options, Index sequences, Index rows, ViewOf view,
                PositionOf first_position, MatrixRef<const float> q, MatrixRef<float> out)
      : dims_(dims),
        options_(options),
        rows_(rows),
        queries_(std::clamp(tile_rows / dims.group, Index{1}, std::max(rows, Index{1}))),
        tiles_(ceil_div(rows, queries_)),
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
      std::copy_n(o + Tile::place(d), 4, out + d);
    }
    std::copy_n(o + Tile::place(d), dims_.value_dim - d, out + d);
  }

  // --- prefill -------------------------------------------------------------------------------------------------------

  /// All keys for the rows of one tile.
  void run_rows(Index b, Index head, Index tile) const {
    const Index first_row = tile * queries_, queries = std::min(queries_, rows_ - first_row);
    const Index count = queries * dims_.group;
    Scratch scratch(Rows::scratch_floats(dims_, 1, queries) + Tile::scratch_floats(dims_.key_dim, dims_.value_dim) +
                    2 * RowStates::size(count, value_pad_));
    Rows rows(
        dims_, options_, head, 1, queries, [&](Index i) { return query(b, first_row + i); }, q_, scratch);
    Tile kv(dims_.key_dim, dims_.value_dim, scratch);
    const RowStates total = RowStates::at(scratch.take(RowStates::size(count, value_pad_)), count, value_pad_);
    const RowStates part = RowStates::at(scratch.take(RowStates::size(count, value_pad_)), count, value_pad_);
    const KeyRange range = keys(b, first_row, first_row + queries);
    TileRows<T> located;
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
        ask_for_row<true>(row(r + rows_ahead), dims_.value_dim);
      }
      write(total.state(r, value_pad_), row(r));
    }
  }

  // --- decode --------------------------------------------------------------------------------------------------------

  /// Sequences [first, last) of the shared order, which have the first tile of this split in common, or are one.
  struct Piece {
    Index split;
    Index first;
    Index last;
  };

  /// How the states of a call lie: those of all splits of sequence b one after the other.
  struct Slots {
    std::vector<Index> before;  // [B + 1] splits of the sequences before b
    std::vector<Index> first;   // [B] number of the first split of sequence b

    [[nodiscard]] Index count(Index b) const {
      return before[static_cast<std::size_t>(b) + 1] - before[static_cast<std::size_t>(b)];
    }
    [[nodiscard]] bool has(Index b, Index split) const {
      return split >= first[static_cast<std::size_t>(b)] && split < first[static_cast<std::size_t>(b)] + count(b);
    }
    [[nodiscard]] Index at(Index b, Index split) const {
      return before[static_cast<std::size_t>(b)] + split - first[static_cast<std::size_t>(b)];
    }
  };

  [[nodiscard]] Slots slots() const {
    Slots slots{std::vector<Index>(static_cast<std::size_t>(sequences_) + 1),
                std::vector<Index>(static_cast<std::size_t>(sequences_))};
    for (Index b = 0; b < sequences_; ++b) {
      const auto i = static_cast<std::size_t>(b);
      const KeyRange range = keys(b, 0, rows_);
      slots.first[i] = range.first / split_keys;
      slots.before[i + 1] = slots.before[i] + ceil_div(range.last, split_keys) - slots.first[i];
    }
    return slots;
  }

  /// Cuts all splits of all sequences into pieces of at most `most` sequences.
  [[nodiscard]] std::vector<Piece> pieces(const Slots& slots, const SharedOrder& order, Index most) const {
    Index splits = 0;
    for (Index b = 0; b < sequences_; ++b) {
      splits = std::max(splits, slots.first[static_cast<std::size_t>(b)] + slots.count(b));
    }
    std::vector<Piece> pieces;
    for (Index split = 0; split < splits; ++split) {
      const Index tile = split * (split_keys / tile_keys);
      bool open = false;  // whether the sequence before belongs to the last piece
      for (Index i = 0; i < sequences_; ++i) {
        const bool has = slots.has(order.sequence[static_cast<std::size_t>(i)], split);
        if (has && open && order.shared[static_cast<std::size_t>(i)] > tile && i - pieces.back().first < most) {
          pieces.back().last = i + 1;
        } else if (has) {
          pieces.push_back({split, i, i + 1});
        }
        open = has;
      }
    }
    return pieces;
  }

  /// One step of an item: some of its sequences, which share a tile, and one kv head.
  struct Step {
    Index tile;
    Index first;  // sequences, relative to those of the item
    Index last;
    Index head;
    KeyRange keys;  // within the tile
  };

  /// Goes through the steps of an item: tiles outside, then the sequences that share each, then the heads, in which
  /// order a block of the cache lies in memory.
  class Steps {
   public:
    Steps(const AttentionCall& call, const SharedOrder& order, const Piece& piece, Index heads)
        : call_(call),
          order_(order),
          piece_(piece),
          heads_(heads),
          step_{piece.split * (split_keys / tile_keys), 0, 0, heads, {0, 0}} {}

    /// False at the end.
    bool next(Step& step) {
      if (++step_.head >= heads_) {
        do {
          if (!next_group()) {
            return false;
          }
        } while (step_.keys.first >= step_.keys.last);
        step_.head = 0;
      }
      step = step_;
      return true;
    }

   private:
    bool next_group() {
      const Index count = piece_.last - piece_.first;
      if (step_.last == count) {
        step_.last = 0;
        if (++step_.tile == (piece_.split + 1) * (split_keys / tile_keys)) {
          return false;
        }
      }
      const Index base = step_.tile * tile_keys;
      step_.first = step_.last;
      step_.keys = {tile_keys, 0};
      do {
        const KeyRange range =
            call_.keys(order_.sequence[static_cast<std::size_t>(piece_.first + step_.last)], 0, call_.rows_);
        step_.keys.first = std::min(step_.keys.first, std::max(range.first - base, Index{0}));
        step_.keys.last = std::max(step_.keys.last, std::min(range.last - base, tile_keys));
        ++step_.last;
      } while (step_.last < count && order_.shared[static_cast<std::size_t>(piece_.first + step_.last)] > step_.tile);
      return true;
    }

    const AttentionCall& call_;
    const SharedOrder& order_;
    Piece piece_;
    Index heads_;
    Step step_;
  };

  /// One split of the keys for every row that reads them, then the merges.
  template <class Ex>
  void run_split(Ex& executor) const {
    constexpr Index most_rows = 512;  // of an item: their queries and states stay in the second-level cache
    const Index count = rows_ * dims_.group, query_heads = dims_.query_heads;
    const Slots slots = this->slots();
    const SharedOrder order = shared_order(sequences_, view_);
    const std::vector<Piece> pieces = this->pieces(slots, order, std::max(Index{1}, most_rows / count));

    // As many heads to an item as leaves every thread some items: neighbouring heads are neighbours in memory.
    const auto piece_count = static_cast<Index>(pieces.size());
    const Index threads = concurrency(executor);
    Index heads = dims_.kv_heads;
    if (threads > 1) {
      heads = std::clamp(piece_count * dims_.kv_heads / (4 * threads), Index{1}, dims_.kv_heads);
    }
    heads = std::clamp(most_rows / count, Index{1}, heads);
    const Index head_groups = ceil_div(dims_.kv_heads, heads);

    Scratch scratch(slots.before.back() * rows_ * query_heads * (value_pad_ + 2) + 48);
    StateTable table(scratch, slots.before.back() * rows_ * query_heads, value_pad_);

    executor.parallel_for(piece_count * head_groups, [&](Index i) {
      const Index first_head = i % head_groups * heads;
      run_piece(pieces[static_cast<std::size_t>(i / head_groups)], slots, order, first_head,
                std::min(heads, dims_.kv_heads - first_head), table);
    });
    executor.parallel_for(sequences_, [&](Index b) {
      Scratch merging(value_pad_);
      AttentionState total{{merging.take(value_pad_), static_cast<std::size_t>(value_pad_)}};
      for (Index row = 0; row < rows_; ++row) {
        for (Index head = 0; head < query_heads; ++head) {
          reset(total);
          for (Index split = 0; split < slots.count(b); ++split) {
            merge(total, table.state(((slots.before[static_cast<std::size_t>(b)] + split) * rows_ + row) * query_heads +
                                     head));
          }
          write(total, out_.row(b * rows_ + row) + head * dims_.value_dim);
        }
      }
    });
  }

  /// The states of a call, by split of each sequence, row and query head.
  class StateTable {
   public:
    StateTable(Scratch& scratch, Index count, Index value_pad)
        : value_pad_(value_pad),
          o_(scratch.take(count * value_pad)),
          m_(scratch.take(padded(count))),
          l_(scratch.take(padded(count))) {}
    [[nodiscard]] AttentionState state(Index i) const noexcept {
      return {{o_ + i * value_pad_, static_cast<std::size_t>(value_pad_)}, m_[i], l_[i]};
    }
    void set(Index i, const AttentionState& state) const noexcept {
      std::copy(state.o.begin(), state.o.end(), o_ + i * value_pad_);
      m_[i] = state.m;
      l_[i] = state.l;
    }

   private:
    Index value_pad_;
    float* o_;
    float* m_;
    float* l_;
  };

  void run_piece(const Piece& piece, const Slots& slots, const SharedOrder& order, Index first_head, Index heads,
                 const StateTable& table) const {
    const Index queries = (piece.last - piece.first) * rows_, count = queries * dims_.group;
    const auto sequence = [&](Index i) { return order.sequence[static_cast<std::size_t>(piece.first + i)]; };
    Scratch scratch(Rows::scratch_floats(dims_, heads, queries) + Tile::scratch_floats(dims_.key_dim, dims_.value_dim) +
                    RowStates::size(heads * count, value_pad_));
    Rows rows(
        dims_, options_, first_head, heads, queries, [&](Index i) { return query(sequence(i / rows_), i % rows_); }, q_,
        scratch);
    Tile kv(dims_.key_dim, dims_.value_dim, scratch);
    const RowStates states =
        RowStates::at(scratch.take(RowStates::size(heads * count, value_pad_)), heads * count, value_pad_);
    states.reset(heads * count, value_pad_);

    // While one tile is computed, the next is on its way from memory.
    const auto locate = [&](const Step& step, TileRows<T>& to) {
      to.locate(view_(sequence(step.first)), first_head + step.head, step.tile * tile_keys, step.keys.first,
                step.keys.last);
    };
    Steps steps(*this, order, piece, heads);
    TileRows<T> located[2];
    Step now, next;
    bool more = steps.next(now);
    if (more) {
      locate(now, located[0]);
    }
    for (int current = 0; more; current = 1 - current, now = next) {
      more = steps.next(next);
      if (more) {
        locate(next, located[1 - current]);
      }
      rows.attend(now.head, now.first * rows_, now.last * rows_, now.tile * tile_keys, kv, located[current],
                  more ? &located[1 - current] : nullptr, states);
    }

    for (Index head = 0; head < heads; ++head) {
      for (Index r = 0; r < count; ++r) {
        const Index i = r / dims_.group;
        const Index slot = (slots.at(sequence(i / rows_), piece.split) * rows_ + i % rows_) * dims_.query_heads +
                           (first_head + head) * dims_.group + r % dims_.group;
        table.set(slot, states.state(head * count + r, value_pad_));
      }
    }
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
