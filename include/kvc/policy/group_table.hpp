// GroupTable: the blocks of one sequence in one layer group.
#pragma once

#include <algorithm>
#include <cstddef>
#include <span>
#include <vector>

#include "kvc/core/retained.hpp"
#include "kvc/core/types.hpp"

namespace kvc {
inline namespace v0 {

/// The blocks that a sequence holds in one group: those of its kept positions, and those from some block on. Position p
/// is slot p % block_tokens of block p / block_tokens; blocks between the two parts are gone.
struct GroupBlocks {
  std::span<const BlockId> kept;  ///< blocks 0 .. kept.size() - 1
  Pos first = 0;                  ///< number of the first block of `rest`
  std::span<const BlockId> rest;  ///< blocks first .. first + rest.size() - 1
};

namespace detail {

/// The table of one group. Its memory, and the time of every operation, depend on the blocks that are there, not on
/// those that were dropped. It references nothing: BlockSource does.
class GroupTable {
 public:
  GroupTable() = default;
  /// `slack`: positions that a block must lie before those that are retained to be dropped. `grows`: it holds rows of
  /// the sequence's own tokens, not of another input.
  GroupTable(const Retained& retained, Pos block_tokens, Pos slack, bool grows)
      : retained_(retained),
        grows_(grows),
        block_tokens_(block_tokens),
        slack_(slack),
        kept_blocks_(retained.everything() ? 0 : ceil_div(retained.kept, block_tokens)) {
    set_first(kept_blocks_);
  }

  /// Forgets everything, but not its memory.
  void clear() noexcept {
    blocks_.clear();
    set_first(kept_blocks_);
    kept_from_ = 0;
  }

  [[nodiscard]] Pos block_tokens() const noexcept { return block_tokens_; }
  [[nodiscard]] bool grows() const noexcept { return grows_; }
  [[nodiscard]] std::span<const BlockId> blocks() const noexcept { return blocks_; }
  [[nodiscard]] bool empty() const noexcept { return blocks_.empty(); }
  [[nodiscard]] GroupBlocks parts() const noexcept {
    const std::size_t kept = std::min(blocks_.size(), kept_size());
    return {std::span(blocks_).first(kept), first_, std::span(blocks_).subspan(kept)};
  }

  /// Blocks from the first position on, those that were dropped included.
  [[nodiscard]] Pos end() const noexcept {
    return blocks_.size() < kept_size() ? static_cast<Pos>(blocks_.size())
                                        : first_ + static_cast<Pos>(blocks_.size() - kept_size());
  }
  /// What `end` would be after an extension to `length`. Mostly without a division: an extension takes a block or none.
  [[nodiscard]] Pos end_for(Pos length) const noexcept {
    const Pos now = end();
    const Index slots = Index{now} * block_tokens_;
    if (length <= slots + block_tokens_) [[likely]] {
      return length <= slots ? now : now + 1;
    }
    return ceil_div(length, block_tokens_);
  }
  /// Rows of a sequence of `length` in the last block; 0 if it is full.
  [[nodiscard]] Pos tail_rows(Pos length) const noexcept {
    const Index slots = Index{end()} * block_tokens_;
    return length < slots ? static_cast<Pos>(length - (slots - block_tokens_)) : 0;
  }
  /// The number of the first block that is not one of the kept ones.
  [[nodiscard]] Pos first() const noexcept { return first_; }
  /// Whether a block is there.
  [[nodiscard]] bool has(Pos number) const noexcept {
    return number < std::min(kept_blocks_, end()) || (number >= first_ && number < end());
  }
  /// A block that is there.
  [[nodiscard]] BlockId& operator[](Pos number) noexcept { return blocks_[index_of(number)]; }
  [[nodiscard]] BlockId operator[](Pos number) const noexcept { return blocks_[index_of(number)]; }

  // `length` is the committed length of the sequence, less the rewind reserve.

  /// Positions in [kept, kept_from(length)) are gone, in none if that is at most kept.
  [[nodiscard]] Pos kept_from(Pos length) const noexcept { return std::max(kept_from_, retained_.first_seen(length)); }
  /// The smallest length to which the sequence can be cut, whatever it was cut to before.
  [[nodiscard]] Pos retained_from(Pos length) const noexcept { return retained_.sees_only_from(kept_from(length)); }
  /// Whether all positions that a row at `end` sees are there.
  [[nodiscard]] bool can_end_at(Pos end, Pos length) const noexcept {
    const Pos from = kept_from(length);
    return from <= retained_.kept || end <= retained_.kept || retained_.first_seen(end) >= from;
  }
  /// The least length with which `drop` has something to do.
  [[nodiscard]] Pos drops_at() const noexcept {
    return retained_.everything() ? max_pos : retained_.sees_only_from(std::max(drops_at_, retained_.kept + 1));
  }

  /// How many of its blocks a sequence of `length` has, to which this one can be cut.
  [[nodiscard]] std::size_t size_at(Pos length) const noexcept {
    const Pos wanted = ceil_div(length, block_tokens_);
    if (wanted <= kept_blocks_) {
      return std::min(blocks_.size(), static_cast<std::size_t>(wanted));
    }
    return kept_size() + static_cast<std::size_t>(std::max(std::min(end(), wanted) - first_, 0));
  }

  /// Makes room for blocks up to number `end`; throws std::bad_alloc.
  void reserve(Pos end) {
    const auto size = blocks_.size() + static_cast<std::size_t>(std::max(end - this->end(), 0));
    if (size > blocks_.capacity()) {
      blocks_.reserve(std::max(size, 2 * blocks_.capacity()));
    }
  }
  void push(BlockId block) noexcept { blocks_.push_back(block); }
  /// Takes the last block.
  [[nodiscard]] BlockId pop() noexcept {
    const BlockId block = blocks_.back();
    blocks_.pop_back();
    return block;
  }

  /// Remembers what a sequence of `length` retains, before it is cut.
  void settle(Pos length) noexcept { kept_from_ = kept_from(length); }
  /// Takes out the blocks that end `slack` positions or more before what is retained: f(number, block) for each,
  /// ascending. O(blocks that are there), if there are any.
  template <class F>
  void drop(Pos length, F&& f) noexcept {
    settle(length);
    if (kept_from_ < drops_at_) {
      return;
    }
    const bool is_one = kept_from_ - slack_ < Index{block_tokens_} * (first_ + 2);
    const Pos until = std::min(end(), is_one ? first_ + 1 : (kept_from_ - slack_) / block_tokens_);
    if (until <= first_) {
      return;
    }
    const auto from = blocks_.begin() + static_cast<std::ptrdiff_t>(kept_size());
    const auto to = from + (until - first_);
    for (auto block = from; block != to; ++block) {
      f(first_ + static_cast<Pos>(block - from), *block);
    }
    blocks_.erase(from, to);
    set_first(until);
  }
  /// After the sequence was cut to `length`, to which it can be cut. Blocks behind size_at(length) are popped first.
  void cut(Pos length) noexcept {
    if (length <= retained_.kept) {
      kept_from_ = 0;
      set_first(kept_blocks_);
    }
  }
  /// Makes it the table of the first `length` positions of another one, which can be cut to there. Throws
  /// std::bad_alloc; nothing has changed then.
  ///   settled   that of `other`
  void assign(const GroupTable& other, Pos length, Pos settled) {
    blocks_.assign(other.blocks_.begin(), other.blocks_.begin() + static_cast<std::ptrdiff_t>(other.size_at(length)));
    set_first(other.first_);
    kept_from_ = other.kept_from(settled);
    cut(length);
  }
  /// Makes it a table of these blocks. Throws std::bad_alloc; nothing has changed then.
  void assign(std::span<const BlockId> blocks) { blocks_.assign(blocks.begin(), blocks.end()); }
  /// Makes it the table of a sequence of `length` that has only what the next row sees, and the whole of the block that
  /// `length` lies in. The blocks are no_block, and to be set. Throws std::bad_alloc; nothing has changed then.
  void begin_at(Pos length) {
    const Pos end = ceil_div(length, block_tokens_);
    const Pos first = std::max(std::min(retained_.first_seen(length) / block_tokens_, end), kept_blocks_);
    blocks_.assign(static_cast<std::size_t>(std::min(kept_blocks_, end) + std::max(end - first, 0)), no_block);
    set_first(end > kept_blocks_ ? first : kept_blocks_);
    kept_from_ = length > retained_.kept ? retained_.first_seen(length) : 0;
  }

  /// f(SlotRun) for the retained positions of `range`.
  template <class F>
  void for_each_run(PosRange range, Pos length, F&& f) const {
    const Pos from = kept_from(length);
    if (from <= retained_.kept) {
      runs_of(range, f);
      return;
    }
    runs_of({range.first, std::min(range.last, retained_.kept)}, f);
    runs_of({std::max(range.first, from), range.last}, f);
  }

 private:
  void set_first(Pos first) noexcept {
    first_ = first;
    drops_at_ = static_cast<Pos>(std::min((Index{first} + 1) * block_tokens_ + slack_, Index{max_pos}));
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

  std::vector<BlockId> blocks_;
  Retained retained_{};
  bool grows_ = true;
  Pos block_tokens_ = 1;
  Pos slack_ = 0;
  Pos kept_blocks_ = 0;  // blocks of the kept positions, which are never dropped
  Pos first_ = 0;        // number of the block behind them
  Pos kept_from_ = 0;
  Pos drops_at_ = 0;  // with this kept_from() a block can be dropped
};

}  // namespace detail
}  // namespace v0
}  // namespace kvc
