// BlockTables: sequences as tables of blocks of equal size, with sharing and copy-on-write. Paged and PrefixShared are
// made of it; they differ in the source of their blocks.
#pragma once

#include <algorithm>
#include <concepts>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "kvc/config.hpp"
#include "kvc/core/error.hpp"
#include "kvc/core/limit.hpp"
#include "kvc/core/scope_guard.hpp"
#include "kvc/core/stats.hpp"
#include "kvc/core/types.hpp"
#include "kvc/policy/block_array.hpp"
#include "kvc/policy/block_runs.hpp"
#include "kvc/policy/concept.hpp"
#include "kvc/policy/sequence_table.hpp"

namespace kvc {
inline namespace v0 {
namespace detail {

/// The source of blocks: they are allocated from it and released to it. In the table, `s` is a source, `c` a const one,
/// `b` a block of it, `state` the state of a sequence. No expression throws. All but `reclaim` are O(1), amortised.
///
///   expression          | requires            | returns and effects
///   --------------------|---------------------|-------------------------------------------------------------
///   c.size()            |                     | blocks in all
///   c.available()       |                     | blocks that `allocate` can give, one after the other
///   s.allocate()        | c.available() > 0   | a free or evicted block, with a reference count of 1
///   s.ref(b)            | b is not free       | adds a reference
///   s.ref_referenced(b) | b has a reference   | as ref(b)
///   s.release(b, state) | b has a reference   | removes a reference, which the sequence with this state had
///   c.writable(b)       | b has a reference   | whether it has no other, and its slots may be overwritten
///   c.reclaimable(b)    | b has a reference   | whether `reclaim` makes it writable
///   s.reclaim(b)        | c.reclaimable(b)    | makes b writable; takes no block, c.available() stays
template <class B, class State>
concept BlockSource = requires(B blocks, const B c, BlockId block, const State& state) {
  { c.size() } noexcept -> std::same_as<Index>;
  { c.available() } noexcept -> std::same_as<Index>;
  { blocks.allocate() } noexcept -> std::same_as<BlockId>;
  { blocks.ref(block) } noexcept;
  { blocks.ref_referenced(block) } noexcept;
  { blocks.release(block, state) } noexcept;
  { c.writable(block) } noexcept -> std::same_as<bool>;
  { c.reclaimable(block) } noexcept -> std::same_as<bool>;
  { blocks.reclaim(block) } noexcept;
};

/// The open sequences with their block tables. Position p of a sequence is slot p % block_tokens of block table[p /
/// block_tokens]. A table covers exactly the reserved positions. Only its last block can be partly filled, and only a
/// sequence that is the only one to reference it writes to it: try_extend copies a shared tail first. The replaced
/// block stays referenced until commit or rollback, so that a rollback can restore it.
///
/// `State` is what a policy keeps for each sequence beside its table.
template <class Blocks, class State>
  requires BlockSource<Blocks, State>
class BlockTables {
 public:
  struct Sequence {
    SequenceLengths lengths;
    std::vector<BlockId> table;
    BlockId replaced = no_block;  // shared tail that the uncommitted extension has copied
    State state{};
    void reset() noexcept {
      lengths = {};
      table.clear();
      replaced = no_block;
      state = {};
    }
  };

  BlockTables(Blocks& blocks, Pos block_tokens) : blocks_(blocks), block_tokens_(block_tokens) {}

  [[nodiscard]] SeqId insert() { return sequences_.insert(); }
  [[nodiscard]] Sequence& at(SeqId seq) { return sequences_.at(seq); }
  [[nodiscard]] const Sequence& at(SeqId seq) const { return sequences_.at(seq); }
  [[nodiscard]] bool contains(SeqId seq) const noexcept { return sequences_.contains(seq); }
  [[nodiscard]] Index size() const noexcept { return sequences_.size(); }

  /// O(count / block_tokens).
  std::optional<Extension> try_extend(SeqId seq, Pos count, std::size_t tokens) {
    Sequence& s = sequences_.at(seq);
    const PosRange range = checked_range(s, seq, count, tokens);
    return extend_in_place(s, range) ? Extension{range, {}} : extend_by_blocks(s, range);
  }

  /// The steps of try_extend, for a policy that does more between them. The positions that an extension would take.
  [[nodiscard]] PosRange checked_range(const Sequence& s, SeqId seq, Pos count, std::size_t tokens) const {
    return s.lengths.checked_extension(seq, count, tokens);
  }
  /// Reserves a range that fits into the last block, if that is writable; false if it does not. This is the usual case
  /// of decoding, and needs no division.
  bool extend_in_place(Sequence& s, PosRange range) noexcept {
    if (range.last > slots(s.table.size()) || (range.first < range.last && !blocks_.writable(s.table.back()))) {
      return false;
    }
    s.lengths.reserve(range);
    return true;
  }
  KVC_OUT_OF_LINE std::optional<Extension> extend_by_blocks(Sequence& s, PosRange range) {
    const std::size_t blocks = blocks_for(range.last);
    const Index more = static_cast<Index>(blocks - s.table.size());
    bool copies_tail = tail_rows(range.first) > 0 && !blocks_.writable(s.table.back());
    // A tail that no other sequence references need not be copied: without room for a copy it is reclaimed.
    const bool reclaims = copies_tail && more + 1 > blocks_.available() && blocks_.reclaimable(s.table.back());
    copies_tail = copies_tail && !reclaims;
    if (more + (copies_tail ? 1 : 0) > blocks_.available()) {
      return std::nullopt;
    }
    grow_capacity(s.table, blocks);  // the last thing that can fail
    std::span<const RowCopy> copies;
    if (reclaims) {
      blocks_.reclaim(s.table.back());
    }
    if (copies_tail) {
      s.replaced = s.table.back();
      s.table.back() = blocks_.allocate();
      copy_ = {s.replaced, s.table.back(), 0, 0, tail_rows(range.first)};
      copies = {&copy_, 1};
      ++copies_;
      copied_tokens_ += copy_.count;
    }
    while (s.table.size() < blocks) {
      s.table.push_back(blocks_.allocate());
    }
    s.lengths.reserve(range);
    return Extension{range, copies};
  }

  /// The reason for which extend_by_blocks has no room for this range, if it has none.
  [[nodiscard]] LimitMet why_not_extend(const Sequence& s, PosRange range) const noexcept {
    const auto more = static_cast<Index>(blocks_for(range.last)) - static_cast<Index>(s.table.size());
    const bool copies_tail = range.first < range.last && tail_rows(range.first) > 0 &&
                             !blocks_.writable(s.table.back()) &&
                             !(more + 1 > blocks_.available() && blocks_.reclaimable(s.table.back()));
    const Index needed = std::max<Index>(more, 0) + (copies_tail ? 1 : 0);
    if (needed <= blocks_.available()) {
      return {};
    }
    return {Limit::pool, blocks_.available() * block_tokens_, needed * block_tokens_};
  }

  /// Whether commit will release a block.
  [[nodiscard]] static bool has_replaced(const Sequence& s) noexcept { return s.replaced != no_block; }
  void commit(Sequence& s) noexcept {
    s.lengths.commit();
    if (has_replaced(s)) [[unlikely]] {
      blocks_.release(s.replaced, s.state);
      s.replaced = no_block;
    }
  }

  void rollback(SeqId seq) noexcept {
    if (!sequences_.contains(seq) || !sequences_.at(seq).lengths.uncommitted) {
      return;
    }
    Sequence& s = sequences_.at(seq);
    release_from(s, blocks_for(s.lengths.committed));
    if (s.replaced != no_block) {
      blocks_.release(s.table.back(), s.state);
      s.table.back() = s.replaced;
      s.replaced = no_block;
    }
    s.lengths.rollback();
  }

  /// A new sequence that shares the blocks of the first `at` positions. O(at / block_tokens).
  SeqId fork(SeqId parent, Pos at) {
    sequences_.at(parent).lengths.check_fork(at);
    const SeqId seq = sequences_.insert();
    ScopeGuard undo([&] { sequences_.erase(seq); });
    const Sequence& p = sequences_.at(parent);
    Sequence& s = sequences_.at(seq);
    const std::size_t blocks = blocks_for(at);
    grow_capacity(s.table, blocks);
    undo.dismiss();
    // Where the parent has copied its tail for an uncommitted extension, the committed rows are in both; share what
    // will stay.
    s.table.assign(p.table.begin(), p.table.begin() + static_cast<std::ptrdiff_t>(blocks));
    for (const BlockId block : s.table) {
      blocks_.ref_referenced(block);
    }
    s.lengths.set(at);
    return seq;
  }

  /// O(blocks released).
  void truncate(SeqId seq, Pos length) {
    Sequence& s = sequences_.at(seq);
    s.lengths.check_truncate(seq, length);
    release_from(s, blocks_for(length));
    s.lengths.set(length);
  }

  /// O(blocks).
  void close(SeqId seq) {
    require(sequences_.contains(seq), "seq", seq, "an open sequence");
    rollback(seq);
    release_from(sequences_.at(seq), 0);
    sequences_.erase(seq);
  }

  /// Takes back an `insert`. The sequence must hold no block.
  void erase_empty(SeqId seq) noexcept { sequences_.erase(seq); }

  /// One run per block that the range touches.
  template <class F>
  void for_each_run(SeqId seq, PosRange range, F&& f) const {
    const Sequence& s = sequences_.at(seq);
    s.lengths.check_range(range);
    for_each_run(s, range, f);
  }
  template <class F>
  void for_each_run(const Sequence& s, PosRange range, F&& f) const {
    kvc::for_each_block_run(s.table, block_tokens_, range, f);
  }

  [[nodiscard]] Index copied_tokens() const noexcept { return copied_tokens_; }

  /// Fills in the figures of sequences and of their blocks. O(blocks + table entries).
  void add_to(Stats& stats) const {
    BlockArray<Pos> filled(blocks_.size(), -1);
    sequences_.for_each([&](const Sequence& s) {
      for (std::size_t i = 0; i < s.table.size(); ++i) {
        const Index rows = Index{s.lengths.committed} - static_cast<Index>(i) * block_tokens_;
        Pos& most = filled[s.table[i]];
        most = std::max(most, static_cast<Pos>(std::clamp<Index>(rows, 0, block_tokens_)));
      }
      if (s.replaced != no_block) {
        Pos& most = filled[s.replaced];
        most = std::max(most, tail_rows(s.lengths.committed));
      }
    });
    for (const Pos rows : filled.values()) {
      if (rows >= 0) {
        ++stats.blocks_referenced;
        stats.tokens_stored += rows;
      }
    }
    stats.block_tokens = block_tokens_;
    stats.blocks_total = blocks_.size();
    stats.tokens_reserved = stats.blocks_referenced * block_tokens_;
    stats.sequences = sequences_.size();
    stats.copies = copies_;
    stats.copied_tokens = copied_tokens_;
  }

  /// Checks each sequence against its own counts; returns the references to each block. Throws InvariantError.
  [[nodiscard]] BlockArray<std::int32_t> verify() const {
    BlockArray<std::int32_t> references(blocks_.size(), 0);
    sequences_.for_each([&](const Sequence& s) {
      s.lengths.verify(s.table.size(), block_tokens_);
      if (!s.lengths.uncommitted && s.replaced != no_block) {
        throw_error(
            InvariantError("kvc: a sequence without an uncommitted extension holds the block that one replaced"));
      }
      for (const BlockId block : s.table) {
        ++references[block];
      }
      if (s.replaced != no_block) {
        ++references[s.replaced];
      }
    });
    return references;
  }

  /// Slots of so many blocks.
  [[nodiscard]] Index slots(std::size_t blocks) const noexcept { return static_cast<Index>(blocks) * block_tokens_; }

  template <class F>
  void for_each(F&& f) const {
    sequences_.for_each(f);
  }
  template <class F>
  void for_each_handle(F&& f) const {
    sequences_.for_each_handle(f);
  }
  template <class F>
  void for_each(F&& f) {
    sequences_.for_each(f);
  }

  [[nodiscard]] std::size_t blocks_for(Pos length) const noexcept {
    return static_cast<std::size_t>(ceil_div(length, block_tokens_));
  }

 private:
  [[nodiscard]] Pos tail_rows(Pos length) const noexcept { return length % block_tokens_; }

  /// As reserve, but growing by a factor: a sequence extended one token at a time must not reallocate at each block.
  static void grow_capacity(std::vector<BlockId>& table, std::size_t blocks) {
    if (blocks > table.capacity()) {
      table.reserve(std::max(blocks, 2 * table.capacity()));
    }
  }

  /// Releases the last block first: of a prefix that stays cached, the end is then evicted before the beginning.
  void release_from(Sequence& s, std::size_t blocks) noexcept {
    while (s.table.size() > blocks) {
      const BlockId block = s.table.back();
      s.table.pop_back();
      blocks_.release(block, s.state);
    }
  }

  SequenceTable<Sequence> sequences_;
  RowCopy copy_;  // of the last extension that copied a tail
  Index copies_ = 0;
  Index copied_tokens_ = 0;

 protected:
  Blocks& blocks_;
  Pos block_tokens_;
};

}  // namespace detail
}  // namespace v0
}  // namespace kvc
