// BlockPolicyBase: the part that is the same in every policy whose sequences are tables of blocks from one pool.
#pragma once

#include <cstdint>
#include <span>
#include <string>
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

  explicit BlockPolicyBase(const Config& config) : pool_(config.blocks), config_(config) {
    require_between(config.block_tokens, Pos{1}, max_pos, "config.block_tokens");
  }

  [[nodiscard]] const Config& config() const noexcept { return config_; }
  [[nodiscard]] Index blocks() const noexcept { return config_.blocks; }
  [[nodiscard]] Pos block_tokens() const noexcept { return config_.block_tokens; }
  [[nodiscard]] Index available() const noexcept { return pool_.available(); }

  void commit(SeqId seq) {
    sequences_.at(seq).lengths.check_uncommitted(seq);
    sequences_.at(seq).lengths.commit();
  }
  void rollback(SeqId seq) noexcept {
    if (BlockSequence* const s = sequences_.find(seq)) {
      s->lengths.rollback();
      pool_.shrink(s->table, blocks_for(s->lengths.committed));
    }
  }
  void truncate(SeqId seq, Pos length) {
    BlockSequence& s = sequences_.at(seq);
    s.lengths.check_truncate(seq, length);
    s.lengths.set(length);
    pool_.shrink(s.table, blocks_for(length));
  }
  void close(SeqId seq) {
    pool_.shrink(sequences_.at(seq).table, 0);
    sequences_.erase(seq);
  }

  [[nodiscard]] bool contains(SeqId seq) const noexcept { return sequences_.contains(seq); }
  [[nodiscard]] Pos length(SeqId seq) const { return sequences_.at(seq).lengths.committed; }
  [[nodiscard]] Pos reserved(SeqId seq) const { return sequences_.at(seq).lengths.reserved; }
  [[nodiscard]] std::span<const BlockId> block_table(SeqId seq) const { return sequences_.at(seq).table; }
  template <class F>
  void for_each_run(SeqId seq, PosRange range, F&& f) const {
    sequences_.at(seq).lengths.check_range(range);
    for_each_block_run(sequences_.at(seq).table, config_.block_tokens, range, f);
  }
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
  void verify() const {
    BlockArray<std::int32_t> references(config_.blocks, 0);
    Index referenced = 0;
    sequences_.for_each([&](const BlockSequence& s) {
      if (s.lengths.committed > s.lengths.reserved ||
          (!s.lengths.uncommitted && s.lengths.committed != s.lengths.reserved) ||
          static_cast<Index>(s.table.size()) != blocks_for(s.lengths.reserved)) {
        throw_error(InvariantError("kvc: a block table of " + std::to_string(s.table.size()) + " blocks for " +
                                   std::to_string(s.lengths.reserved) + " positions"));
      }
      for (const BlockId block : s.table) {
        referenced += references[block]++ == 0 ? 1 : 0;
      }
    });
    pool_.verify(references);
    if (referenced + pool_.available() != pool_.size()) {
      throw_error(InvariantError("kvc: blocks are neither free nor referenced"));
    }
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
