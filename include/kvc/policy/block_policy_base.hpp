// BlockPolicyBase: the part that is the same in every policy whose sequences are tables of blocks from one pool.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "kvc/core/error.hpp"
#include "kvc/core/stats.hpp"
#include "kvc/core/types.hpp"
#include "kvc/policy/block_array.hpp"
#include "kvc/policy/block_pool.hpp"
#include "kvc/policy/block_runs.hpp"
#include "kvc/policy/corruption.hpp"
#include "kvc/policy/sequence_table.hpp"

namespace kvc {
inline namespace v0 {

/// The record of a sequence: its lengths, and the blocks of its reserved positions.
struct BlockSequence {
  SequenceLengths lengths;
  std::vector<BlockId> table;
};

/// All of a Policy but its decisions: a class that derives from it adds `name`, `try_open`, `try_extend` and
/// `try_fork`, and replaces any other member that it has a better way for. Every block of a table has one reference for
/// it; blocks become free with their last reference. The members keep the contract of Policy.
class BlockPolicyBase {
 public:
  struct Config {
    Index blocks = 0;       ///< blocks in the pool, 1 to 2^31 - 1
    Pos block_tokens = 16;  ///< slots in a block
  };

  /// Throws std::invalid_argument if a value of config is not allowed, and std::bad_alloc. O(blocks).
  explicit BlockPolicyBase(const Config& config) : pool_(config.blocks), config_(config) {
    require_between(config.block_tokens, Pos{1}, max_pos, "config.block_tokens");
  }

  /// The configuration. O(1).
  [[nodiscard]] const Config& config() const noexcept { return config_; }
  /// Blocks in the pool. O(1).
  [[nodiscard]] Index blocks() const noexcept { return config_.blocks; }
  /// Slots in a block. O(1).
  [[nodiscard]] Pos block_tokens() const noexcept { return config_.block_tokens; }
  /// Blocks that are free. O(1).
  [[nodiscard]] Index available() const noexcept { return pool_.available(); }

  /// The reserved positions count from now on. Throws std::invalid_argument if seq has no uncommitted extension. O(1).
  void commit(SeqId seq) {
    sequences_.at(seq).lengths.check_uncommitted(seq);
    sequences_.at(seq).lengths.commit();
  }
  /// Takes the reserved positions back; does nothing without an uncommitted extension. O(blocks that are freed).
  void rollback(SeqId seq) noexcept {
    if (BlockSequence* const s = sequences_.find(seq)) {
      s->lengths.rollback();
      pool_.shrink(s->table, blocks_for(s->lengths.committed));
    }
  }
  /// Forgets the positions from `length` on. Throws std::invalid_argument if seq is not open, has an uncommitted
  /// extension or fewer positions. O(blocks that are freed).
  void truncate(SeqId seq, Pos length) {
    BlockSequence& s = sequences_.at(seq);
    s.lengths.check_truncate(seq, length);
    s.lengths.set(length);
    pool_.shrink(s.table, blocks_for(length));
  }
  /// Forgets the sequence, and what it has reserved. Throws std::invalid_argument if seq is not open. O(its blocks).
  void close(SeqId seq) {
    pool_.shrink(sequences_.at(seq).table, 0);
    sequences_.erase(seq);
  }

  /// Whether seq is the handle of an open sequence. O(1).
  [[nodiscard]] bool contains(SeqId seq) const noexcept { return sequences_.contains(seq); }
  /// Committed positions. Throws std::invalid_argument if seq is not open. O(1).
  [[nodiscard]] Pos length(SeqId seq) const { return sequences_.at(seq).lengths.committed; }
  /// Committed and reserved positions. Throws std::invalid_argument if seq is not open. O(1).
  [[nodiscard]] Pos reserved(SeqId seq) const { return sequences_.at(seq).lengths.reserved; }
  /// The blocks of the reserved positions. Throws std::invalid_argument if seq is not open. Valid until the
  /// sequence changes. O(1).
  [[nodiscard]] std::span<const BlockId> block_table(SeqId seq) const { return sequences_.at(seq).table; }
  /// f(SlotRun) over the positions of range, ascending. Throws std::invalid_argument unless range lies in
  /// [0, reserved(seq)). O(blocks of the range).
  template <class F>
  void for_each_run(SeqId seq, PosRange range, F&& f) const {
    sequences_.at(seq).lengths.check_range(range);
    kvc::for_each_block_run(sequences_.at(seq).table, config_.block_tokens, range, f);
  }
  /// f(SeqId) for every open sequence. O(sequences that were ever open at once).
  template <class F>
  void for_each_sequence(F&& f) const {
    sequences_.for_each_handle([&](SeqId seq, const BlockSequence&) { f(seq); });
  }

  /// Counts the stored tokens of each sequence: right while sequences share no blocks.
  [[nodiscard]] Stats stats() const {
    Stats stats = pool_.stats(config_.block_tokens);
    stats.sequences = sequences_.size();
    sequences_.for_each([&](const BlockSequence& s) { stats.tokens_stored += s.lengths.committed; });
    return stats;
  }
  /// Checks every count and table. Throws InvariantError. O(blocks + table entries).
  void verify() const {
    BlockArray<std::int32_t> references(config_.blocks, 0);
    sequences_.for_each([&](const BlockSequence& s) {
      s.lengths.verify(s.table.size(), config_.block_tokens);
      for (const BlockId block : s.table) {
        ++references[block];
      }
    });
    pool_.verify(references);
  }

 protected:
  /// Blocks that so many positions need.
  [[nodiscard]] Index blocks_for(Pos length) const noexcept { return ceil_div<Index>(length, config_.block_tokens); }

  BlockPool pool_;
  SequenceTable<BlockSequence> sequences_;

 private:
  template <class>
  friend struct testing::Corruption;
  Config config_;
};

}  // namespace v0
}  // namespace kvc
