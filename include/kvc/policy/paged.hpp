// Paged: a pool of blocks of equal size, and a table of blocks per sequence.
#pragma once

#include <memory>
#include <optional>
#include <span>
#include <string_view>
#include <vector>

#include "kvc/core/error.hpp"
#include "kvc/core/group_rule.hpp"
#include "kvc/core/limit.hpp"
#include "kvc/core/stats.hpp"
#include "kvc/core/types.hpp"
#include "kvc/policy/block_pool.hpp"
#include "kvc/policy/capabilities.hpp"
#include "kvc/policy/concept.hpp"
#include "kvc/policy/corruption.hpp"
#include "kvc/policy/detail/block_tables.hpp"
#include "kvc/policy/detail/group_members.hpp"
#include "kvc/policy/detail/group_tables.hpp"
#include "kvc/policy/open_options.hpp"
#include "kvc/policy/restore_options.hpp"
#include "kvc/policy/sequence_table.hpp"

namespace kvc {
inline namespace v0 {

/// A pool of blocks of equal size, and a table of blocks per sequence (PagedAttention: Kwon et al., SOSP 2023).
///
/// No external fragmentation: any free block serves any sequence, and a sequence wastes less than one block. `fork`
/// shares blocks, at any position; the first of two sequences that extends into a shared, partly filled block copies
/// it.
///
/// With several layer groups, or one that does not keep everything, each sequence has a table for each group. All
/// blocks have the same bytes, so that any free block serves any group: a block holds at least `block_tokens` positions
/// of the group with the largest rows, and more of the others. block_tokens(group) is the number of each: see Config.
class Paged : public detail::GroupMembers<Paged> {
 public:
  struct Config {
    Index blocks = 0;  ///< blocks in the pool, less than 2^31
    /// Slots in a block. With several groups: of the one with the largest rows, at least. That group gets up to four
    /// times as many where no group shall leave more than 1/64 of a block unused, and a multiple where the state of a
    /// recurrent layer takes more than a block: see block_tokens(group).
    Pos block_tokens = 16;
  };

  static constexpr std::string_view name = "paged";
  static constexpr bool shares_blocks = true;

  /// Throws std::invalid_argument if a value of config or of rules is not allowed, and std::bad_alloc. O(blocks).
  explicit Paged(const Config& config, const GroupRules& rules = {})
      : GroupMembers(rules), config_(config), blocks_(config.blocks), tables_(blocks_, config.block_tokens) {
    require_between(config.block_tokens, Pos{1}, max_pos, "config.block_tokens");
    if (!rules.is_plain()) {
      grouped_ = std::make_unique<Grouped>(blocks_, rules, detail::block_sizes(rules, config.block_tokens), false);
    }
  }
  Paged(const Paged&) = delete;
  Paged& operator=(const Paged&) = delete;

  /// The configuration. O(1).
  [[nodiscard]] const Config& config() const noexcept { return config_; }
  /// Blocks in the pool. O(1).
  [[nodiscard]] Index blocks() const noexcept { return config_.blocks; }
  /// config().block_tokens: the slots of a block; with several groups see block_tokens(group). O(1).
  [[nodiscard]] Pos block_tokens() const noexcept { return config_.block_tokens; }
  using GroupMembers::block_tokens;

  /// Finds nothing in place. Takes no block, so there is always room. O(1).
  std::optional<Opened> try_open(std::span<const Token> prompt = {}, const OpenOptions& = {}) {
    const SeqId seq = grouped_ ? grouped_->insert() : tables_.insert();
    prompt_tokens_ += static_cast<Index>(prompt.size());
    return Opened{seq, 0};
  }

  /// O(blocks taken).
  std::optional<Extension> try_extend(SeqId seq, Pos count, std::span<const Token> tokens = {}) {
    if (grouped_) [[unlikely]] {
      return grouped_->try_extend(seq, count, tokens.size());
    }
    return tables_.try_extend(seq, count, tokens.size());
  }
  /// The same, with blocks for the recurrent states after `states_at` tokens, too: see HoldsStates.
  std::optional<Extension> try_extend(SeqId seq, Pos count, std::span<const Token> tokens,
                                      std::span<const Pos> states_at) {
    if (grouped_) [[unlikely]] {
      return grouped_->try_extend(seq, count, tokens.size(), states_at);
    }
    require(states_at.empty(), "states_at.size()", states_at.size(), "0: there are no recurrent layers");
    return tables_.try_extend(seq, count, tokens.size());
  }

  /// Reserves the rows of a sequence that was computed elsewhere: see RestoresSequences. O(blocks).
  std::optional<Extension> try_restore(SeqId seq, const RestoreOptions& options) {
    if (grouped_) {
      return grouped_->try_restore(seq, options);
    }
    detail::require_valid(options, group_rules());
    lengths(seq).check_restore(seq);
    return tables_.try_extend(seq, options.length, 0);
  }

  /// The reserved positions count from now on. Throws std::invalid_argument if seq has no uncommitted extension. O(1).
  void commit(SeqId seq) {
    if (grouped_) [[unlikely]] {
      grouped_->commit(seq);
      return;
    }
    auto& s = tables_.at(seq);
    s.lengths.check_uncommitted(seq);
    tables_.commit(s);
  }
  /// Takes the reserved positions back; does nothing without an uncommitted extension. O(blocks that are freed).
  void rollback(SeqId seq) noexcept { grouped_ ? grouped_->rollback(seq) : tables_.rollback(seq); }

  /// Shares the blocks: takes none, so there is always room. O(blocks).
  std::optional<Forked> try_fork(SeqId parent, Pos at) {
    return Forked{grouped_ ? grouped_->fork(parent, at) : tables_.fork(parent, at), {}};
  }

  /// Forgets the positions from `length` on. Throws std::invalid_argument if seq is not open, has an uncommitted
  /// extension or fewer positions. O(blocks that are freed).
  void truncate(SeqId seq, Pos length) { grouped_ ? grouped_->truncate(seq, length) : tables_.truncate(seq, length); }
  /// Forgets the sequence, and what it has reserved. Throws std::invalid_argument if seq is not open. O(its blocks).
  void close(SeqId seq) { grouped_ ? grouped_->close(seq) : tables_.close(seq); }

  /// Only the pool limits an extension; opening and forking always find room.
  [[nodiscard]] LimitMet why_not_open(const OpenOptions& = {}) const noexcept { return {}; }
  /// The limit that try_extend would meet; Limit::none if it would find room. Throws as try_extend does.
  [[nodiscard]] LimitMet why_not_extend(SeqId seq, Pos count) const {
    if (grouped_) [[unlikely]] {
      const Grouped::Sequence& s = grouped_->at(seq);
      return grouped_->why_not_extend(s, s.lengths.checked_extension(seq, count, 0), config_.block_tokens);
    }
    return tables_.why_not_extend(tables_.at(seq), tables_.checked_range(tables_.at(seq), seq, count, 0));
  }
  /// The limit that try_fork would meet; Limit::none if it would find room. Throws as try_fork does.
  [[nodiscard]] LimitMet why_not_fork(SeqId seq, Pos at) const {
    lengths(seq).check_fork(at);
    if (grouped_) [[unlikely]] {
      grouped_->require_retained(grouped_->at(seq), at, "at");
    }
    return {};
  }

  /// Blocks that are free. O(1).
  [[nodiscard]] Index available() const noexcept { return blocks_.available(); }

  /// Whether seq is the handle of an open sequence. O(1).
  [[nodiscard]] bool contains(SeqId seq) const noexcept {
    return grouped_ ? grouped_->contains(seq) : tables_.contains(seq);
  }
  /// Committed positions. Throws std::invalid_argument if seq is not open. O(1).
  [[nodiscard]] Pos length(SeqId seq) const { return lengths(seq).committed; }
  /// Committed and reserved positions. Throws std::invalid_argument if seq is not open. O(1).
  [[nodiscard]] Pos reserved(SeqId seq) const { return lengths(seq).reserved; }
  /// The blocks of the reserved positions. Valid until the sequence is extended, truncated or closed. Throws
  /// std::invalid_argument if there are several groups, or one that drops positions: see group_blocks.
  [[nodiscard]] std::span<const BlockId> block_table(SeqId seq) const {
    require(!grouped_, "groups", groups(), "one that keeps everything; otherwise call group_blocks");
    return tables_.at(seq).table;
  }

  /// f(SlotRun) over the positions of range, ascending; with several groups, over those that group 0 retains. Throws
  /// std::invalid_argument unless range lies in [0, reserved(seq)). O(blocks of the range).
  template <class F>
  void for_each_run(SeqId seq, PosRange range, F&& f) const {
    if (grouped_) [[unlikely]] {
      grouped_->for_each_run(grouped_->at(seq), 0, range, f);
    } else {
      tables_.for_each_run(seq, range, f);
    }
  }
  using GroupMembers::for_each_run;

  /// The blocks that sequences hold of one group, and their rows. O(blocks + table entries).
  [[nodiscard]] Stats stats(Index group) const {
    require_group(group);
    if (!grouped_) {
      return stats();
    }
    Stats stats;
    stats.block_tokens = block_tokens(group);
    stats.sequences = grouped_->size();
    grouped_->add_to(stats, group);
    return stats;
  }

  /// f(SeqId) for every open sequence. O(sequences that were ever open at once).
  template <class F>
  void for_each_sequence(F&& f) const {
    const auto visit = [&](SeqId seq, const auto&) { f(seq); };
    grouped_ ? grouped_->for_each_handle(visit) : tables_.for_each_handle(visit);
  }

  /// Rows copied since construction, as in stats(). O(1).
  [[nodiscard]] Index copied_tokens() const noexcept {
    return grouped_ ? grouped_->copied_tokens() : tables_.copied_tokens();
  }

  /// O(blocks + table entries).
  [[nodiscard]] Stats stats() const {
    Stats stats;
    stats.block_tokens = config_.block_tokens;
    grouped_ ? grouped_->add_to(stats) : tables_.add_to(stats);
    stats.blocks_free = blocks_.available();
    stats.largest_free_run = stats.blocks_free;
    stats.prompt_tokens = prompt_tokens_;
    return stats;
  }

  /// O(blocks + table entries). Throws InvariantError.
  void verify() const { blocks_.pool.verify(grouped_ ? grouped_->verify() : tables_.verify()); }

 private:
  template <class>
  friend struct testing::Corruption;

  struct NoState {};
  struct Blocks {
    BlockPool pool;
    explicit Blocks(Index blocks) : pool(blocks) {}
    [[nodiscard]] Index size() const noexcept { return pool.size(); }
    [[nodiscard]] Index available() const noexcept { return pool.available(); }
    [[nodiscard]] BlockId allocate() noexcept { return pool.allocate(); }
    void ref(BlockId block) noexcept { pool.ref(block); }
    void ref_referenced(BlockId block) noexcept { pool.ref(block); }
    void release(BlockId block, const NoState&) noexcept {
      if (pool.unref(block) == 0) {
        pool.free(block);
      }
    }
    [[nodiscard]] bool writable(BlockId block) const noexcept { return pool.ref_count(block) == 1; }
    [[nodiscard]] bool unshared(BlockId block) const noexcept { return pool.ref_count(block) == 1; }
    [[nodiscard]] bool is_private(BlockId block) const noexcept { return unshared(block); }
    [[nodiscard]] bool writable(BlockId block, Pos /*rows*/) const noexcept { return writable(block); }
    [[nodiscard]] bool reclaimable(BlockId) const noexcept { return false; }  // a block with one reference is writable
    [[nodiscard]] bool reclaimable(BlockId, Pos /*rows*/) const noexcept { return false; }
    void reclaim(BlockId) noexcept {}
  };
  using Grouped = detail::GroupTables<Blocks, NoState>;

  [[nodiscard]] const SequenceLengths& lengths(SeqId seq) const {
    return grouped_ ? grouped_->at(seq).lengths : tables_.at(seq).lengths;
  }
  friend class detail::GroupMembers<Paged>;
  [[nodiscard]] const Grouped* grouped() const noexcept { return grouped_.get(); }

  Config config_;
  Blocks blocks_;
  detail::BlockTables<Blocks, NoState> tables_;  // of one group that keeps everything
  std::unique_ptr<Grouped> grouped_;             // of other groups
  Index prompt_tokens_ = 0;
};
static_assert(HoldsStates<Paged> && BlockTablePolicy<Paged> && GroupTablePolicy<Paged> && CountsAvailable<Paged> &&
              HasConfig<Paged> && ListsSequences<Paged> && ExplainsRefusals<Paged> && RestoresSequences<Paged>);

}  // namespace v0
}  // namespace kvc
