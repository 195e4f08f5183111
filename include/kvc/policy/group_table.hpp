// GroupTable: the blocks of one sequence in one layer group.
#pragma once

#include <algorithm>
#include <cstddef>
#include <span>

#include "kvc/core/retained.hpp"
#include "kvc/core/types.hpp"
#include "kvc/policy/detail/buffer.hpp"
#include "kvc/policy/detail/retained_rows.hpp"

namespace kvc {
inline namespace v0 {

/// The blocks that a sequence holds in one group: those of its kept positions, and those from some block on. Position p
/// is slot p % block_tokens of block p / block_tokens; blocks between the two parts are gone.
struct GroupBlocks {
  std::span<const BlockId> kept;  ///< blocks 0 .. kept.size() - 1
  Pos first = 0;                  ///< number of the first block of `rest`
  std::span<const BlockId> rest;  ///< blocks first .. first + rest.size() - 1
  PosRange missing{};  ///< positions that these blocks may have slots for, but no rows: see RestoresSequences
};

namespace detail {

/// The table of one group. Its memory, and the time of every operation, depend on the blocks that are there, not on
/// those that were dropped. It references nothing: BlockSource does.
class GroupTable {
 public:
  /// `slack`: positions that a block must lie before those that are retained to be dropped. `grows`: it holds rows of
  /// the sequence's own tokens, not of another input.
  GroupTable(const Retained& retained, Pos block_tokens, Pos slack, bool grows)
      : rows_(retained),
        grows_(grows),
        block_tokens_(block_tokens),
        slack_(slack),
        kept_blocks_(retained.everything() ? 0 : ceil_div(retained.kept, block_tokens)) {
    set_first(kept_blocks_);
  }

  /// Forgets everything, but not its memory.
  void clear() noexcept {
    blocks_.clear();
    gone_ = 0;
    set_first(kept_blocks_);
    count_end();
    rows_.clear();
    missing_ = {};
  }

  [[nodiscard]] Pos block_tokens() const noexcept { return block_tokens_; }
  [[nodiscard]] bool grows() const noexcept { return grows_; }
  [[nodiscard]] std::span<const BlockId> blocks() const noexcept { return blocks_.all().subspan(gone_); }
  [[nodiscard]] bool empty() const noexcept { return size() == 0; }
  [[nodiscard]] GroupBlocks group_blocks() const noexcept {
    const std::size_t kept = std::min(size(), kept_size());
    return {blocks().first(kept), first_, blocks().subspan(kept), missing_};
  }

  /// Blocks from the first position on, those that were dropped included.
  [[nodiscard]] Pos end() const noexcept { return end_; }
  /// Positions that the blocks have slots for, from the first one on.
  [[nodiscard]] Index room() const noexcept { return Index{end()} * block_tokens_; }
  /// The value of `end` after an extension to `length`. Mostly without a division: an extension takes a block or none.
  [[nodiscard]] Pos end_for(Pos length) const noexcept {
    const Index slots = room();
    if (length <= slots + block_tokens_) [[likely]] {
      return length <= slots ? end_ : end_ + 1;
    }
    return ceil_div(length, block_tokens_);
  }
  /// Rows of a sequence of `length` in the last block; 0 if it is full.
  [[nodiscard]] Pos tail_rows(Pos length) const noexcept {
    const Index slots = room();
    return length < slots ? static_cast<Pos>(length - (slots - block_tokens_)) : 0;
  }
  /// The number of the first block that is not one of the kept ones.
  [[nodiscard]] Pos first() const noexcept { return first_; }
  /// Whether a block is there.
  [[nodiscard]] bool has(Pos number) const noexcept {
    return number < std::min(kept_blocks_, end()) || (number >= first_ && number < end());
  }
  /// Whether a block that is there has the rows of all its positions that the sequence has.
  [[nodiscard]] bool is_complete(Pos number) const noexcept {
    return Index{number} * block_tokens_ >= missing_.last || (Index{number} + 1) * block_tokens_ <= missing_.first;
  }
  /// Where such a block is in the table; nullptr if it is not there, or lacks rows.
  [[nodiscard]] BlockId* find_complete(Pos number) noexcept {
    return has(number) && is_complete(number) ? &(*this)[number] : nullptr;
  }
  /// Where the last block is, if the position before `end` is in it and no row is missing; otherwise nullptr.
  [[nodiscard]] BlockId* find_last(Pos end) noexcept {
    const Index slots = room();
    return slots >= end && slots - block_tokens_ < end && end_ > first_ && missing_.empty()
               ? &blocks_[blocks_.size() - 1]
               : nullptr;
  }
  /// f(number) for the blocks that are there, ascending.
  template <class F>
  void for_each_number(F&& f) const {
    for (Pos number = 0; number < std::min(kept_blocks_, end()); ++number) {
      f(number);
    }
    for (Pos number = first_; number < end(); ++number) {
      f(number);
    }
  }
  /// The blocks among [first, last) that are there, behind those of the kept positions.
  [[nodiscard]] std::span<const BlockId> blocks_between(Pos first, Pos last) const noexcept {
    first = std::max(first, first_);
    last = std::min(last, end_);
    return first < last ? blocks().subspan(index_of(first), static_cast<std::size_t>(last - first))
                        : std::span<const BlockId>();
  }
  /// The number of the block of a position before the end of the last block. Mostly without a division: it is the last.
  [[nodiscard]] Pos number_of(Pos position) const noexcept {
    const Pos last = end() - 1;
    return position >= Index{last} * block_tokens_ ? last : position / block_tokens_;
  }
  /// A block that is there.
  [[nodiscard]] BlockId& operator[](Pos number) noexcept { return blocks_[gone_ + index_of(number)]; }
  [[nodiscard]] BlockId operator[](Pos number) const noexcept { return blocks_[gone_ + index_of(number)]; }

  // `length` is the committed length of the sequence, less the rewind reserve.

  /// Which rows are there. The table has their blocks, and may have those of earlier ones.
  [[nodiscard]] RetainedRows rows(Pos length) const noexcept {
    RetainedRows rows = rows_;
    rows.retain(length);
    return rows;
  }
  /// The least length with which `drop` has something to do.
  [[nodiscard]] Pos drops_at() const noexcept { return drops_at_; }

  /// How many of its blocks a sequence of `length` has, to which this one can be cut.
  [[nodiscard]] std::size_t size_at(Pos length) const noexcept {
    const Pos wanted = ceil_div(length, block_tokens_);
    if (wanted <= kept_blocks_) {
      return std::min(size(), static_cast<std::size_t>(wanted));
    }
    return kept_size() + static_cast<std::size_t>(std::max(std::min(end(), wanted) - first_, 0));
  }

  /// Makes room for `count` blocks more; throws std::bad_alloc.
  void reserve(Index count) {
    auto size = blocks_.size() + static_cast<std::size_t>(count);
    if (size > blocks_.capacity() && 2 * gone_ >= this->size()) {
      size -= gone_;
      close_gap();
    }
    if (size > blocks_.capacity()) {
      blocks_.reserve(std::max(size, 2 * blocks_.capacity()));
    }
  }
  /// Whether there is room for a block without `reserve`.
  [[nodiscard]] bool can_push() const noexcept { return blocks_.size() < blocks_.capacity(); }
  /// Adds a block, within the room.
  void push(BlockId block) noexcept {
    blocks_.push(block);
    ++end_;
  }
  /// Takes out the last blocks until `size` are left: f(block) for each, the last one first. f must not look at the
  /// table.
  template <class F>
  void shrink(std::size_t size, F&& f) noexcept {
    const std::span<const BlockId> all = blocks();  // in registers: f writes through pointers
    for (std::size_t i = all.size(); i-- > size;) {
      f(all[i]);
    }
    blocks_.cut(gone_ + size);
    if (size == 0) {
      close_gap();
    }
    count_end();
  }

  /// Remembers what a sequence of `length` retains, before it is cut.
  void settle(Pos length) noexcept { rows_.retain(length); }
  /// Takes out the blocks that end `slack` positions or more before what is retained: f(block) for each, ascending.
  /// O(blocks that are taken out), amortised, and with kept positions O(blocks that are there), if there are any.
  template <class F>
  void drop(Pos length, F&& f) noexcept {
    if (length < drops_at_) {
      return;
    }
    settle(length);
    const Pos kept_from = rows_.from();
    const bool is_one = kept_from - slack_ < Index{block_tokens_} * (first_ + 2);
    const Pos until = std::min(end(), is_one ? first_ + 1 : (kept_from - slack_) / block_tokens_);
    if (until <= first_) {
      return;
    }
    const std::size_t from = gone_ + kept_size();
    const auto count = static_cast<std::size_t>(until - first_);
    std::ranges::for_each(blocks_.all().subspan(from, count), f);
    if (kept_blocks_ > 0) {
      blocks_.erase(from, from + count);
    } else {
      gone_ += count;
      if (gone_ >= size()) {  // as much work as there was for what is gone
        close_gap();
      }
    }
    set_first(until);  // the end stays
  }
  /// After the sequence was cut to `length`, to which it can be cut. Blocks behind size_at(length) are popped first.
  void cut(Pos length) noexcept {
    rows_.cut(length);
    if (length <= rows_.rule().kept) {
      set_first(kept_blocks_);
      count_end();
      missing_ = {};
    }
  }
  /// Makes it the table of the first `length` positions of another one, which can be cut to there. Throws
  /// std::bad_alloc; nothing has changed then.
  ///   settled   that of `other`
  void assign(const GroupTable& other, Pos length, Pos settled) {
    const std::span<const BlockId> shared = other.blocks().first(other.size_at(length));
    blocks_.reserve(shared.size());
    blocks_.assign(shared);
    gone_ = 0;
    first_ = other.first_;
    drops_at_ = other.drops_at_;
    rows_ = other.rows(settled);
    missing_ = other.missing_;
    count_end();
    cut(length);
  }
  /// Makes it a table of these blocks. Throws std::bad_alloc; nothing has changed then.
  void assign(std::span<const BlockId> blocks) {
    blocks_.reserve(blocks.size());
    blocks_.assign(blocks);
    gone_ = 0;
    count_end();
  }
  /// Makes it the table of a sequence of `length` that has only what the next row sees, and the whole of the block that
  /// `length` lies in. The blocks are no_block, and to be set. Throws std::bad_alloc; nothing has changed then.
  void begin_at(Pos length) {
    const Pos end = ceil_div(length, block_tokens_);
    const Pos first = std::max(std::min(rows_.rule().first_seen(length) / block_tokens_, end), kept_blocks_);
    const auto count = static_cast<std::size_t>(std::min(kept_blocks_, end) + std::max(end - first, 0));
    blocks_.reserve(count);
    blocks_.assign(count, no_block);
    gone_ = 0;
    set_first(end > kept_blocks_ ? first : kept_blocks_);
    count_end();
    rows_.begin_at(length);
  }
  /// The blocks of a table that `restore` makes. O(1).
  [[nodiscard]] Index blocks_to_restore(Pos length, Pos settled, PosRange missing) const noexcept {
    const Pos end = ceil_div(length, block_tokens_);
    const Pos first = first_to_restore(end, rows_to_restore(settled, missing), missing);
    return Index{std::min(kept_blocks_, end)} + std::max(end - first, 0);
  }
  /// Makes it the table of a sequence that has the rows that one of length `settled` retains, and those of the blocks
  /// that `drop` leaves, but none of `missing`. The blocks are no_block, and to be set. Throws std::bad_alloc; nothing
  /// has changed then.
  void restore(Pos length, Pos settled, PosRange missing) {
    const RetainedRows rows = rows_to_restore(settled, missing);
    const auto count = static_cast<std::size_t>(blocks_to_restore(length, settled, missing));
    blocks_.reserve(count);
    blocks_.assign(count, no_block);
    gone_ = 0;
    set_first(first_to_restore(ceil_div(length, block_tokens_), rows, missing));
    count_end();
    rows_ = rows;
    missing_ = missing;
  }

  /// f(SlotRun) for the retained positions of `range`.
  template <class F>
  void for_each_run(PosRange range, Pos length, F&& f) const {
    const RetainedRows rows = this->rows(length);
    if (!rows.drops()) {
      runs_of(range, f);
      return;
    }
    runs_of({range.first, std::min(range.last, rows.rule().kept)}, f);
    runs_of({std::max(range.first, rows.from()), range.last}, f);
  }

 private:
  [[nodiscard]] RetainedRows rows_to_restore(Pos settled, PosRange missing) const noexcept {
    RetainedRows rows(rows_.rule());
    rows.retain(settled);
    rows.lose(missing.last);
    return rows;
  }
  /// The number of the first block behind the kept ones of a restored table that ends before number `end`.
  [[nodiscard]] Pos first_to_restore(Pos end, const RetainedRows& rows, PosRange missing) const noexcept {
    if (!rows.drops() || end <= kept_blocks_) {
      return kept_blocks_;
    }
    const Pos seen = rows.from() / block_tokens_;
    const Pos with_slack = std::max(rows.from() - slack_, 0) / block_tokens_;
    return std::max({kept_blocks_, with_slack, std::min(ceil_div(missing.last, block_tokens_), seen)});
  }
  void set_first(Pos first) noexcept {
    if (first == first_) {
      return;
    }
    first_ = first;
    const Retained& rule = rows_.rule();
    if (!rule.everything() && rule.kept < max_pos) {
      const Index gone_until = std::max((Index{first} + 1) * block_tokens_ + slack_, Index{rule.kept} + 1);
      drops_at_ = rule.sees_only_from(static_cast<Pos>(std::min(gone_until, Index{max_pos})));
    }
  }
  /// Blocks that are there.
  [[nodiscard]] std::size_t size() const noexcept { return blocks_.size() - gone_; }
  void close_gap() noexcept {
    blocks_.drop_front(gone_);
    gone_ = 0;
  }
  /// After blocks were added or taken out at the end.
  void count_end() noexcept {
    const auto size = static_cast<Pos>(this->size());
    end_ = size < kept_blocks_ ? size : first_ + (size - kept_blocks_);
  }
  [[nodiscard]] std::size_t kept_size() const noexcept { return static_cast<std::size_t>(kept_blocks_); }
  [[nodiscard]] std::size_t index_of(Pos number) const noexcept {
    return static_cast<std::size_t>(number < kept_blocks_ ? number : kept_blocks_ + number - first_);
  }
  template <class F>
  void runs_of(PosRange range, F&& f) const {
    for (Pos p = range.first; p < range.last;) {
      const Pos offset = p % block_tokens_;
      const Pos count = std::min(static_cast<Pos>(block_tokens_ - offset), static_cast<Pos>(range.last - p));
      f(SlotRun{(*this)[p / block_tokens_], offset, count, p});
      p += count;
    }
  }

  Buffer<BlockId> blocks_;
  std::size_t gone_ = 0;  // of these, the first ones that were dropped; none where there are blocks of kept positions
  RetainedRows rows_;
  bool grows_ = true;
  Pos block_tokens_ = 1;
  Pos slack_ = 0;
  Pos kept_blocks_ = 0;     // blocks of the kept positions, which are never dropped
  Pos first_ = -1;          // number of the block behind them
  Pos end_ = 0;             // number of the block behind the last one
  Pos drops_at_ = max_pos;  // with this length, less the reserve, a block can be dropped
  PosRange missing_{};      // a sequence that was restored never had these rows
};

}  // namespace detail
}  // namespace v0
}  // namespace kvc
