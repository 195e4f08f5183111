// Paged: a pool of blocks of equal size, and a table of blocks per sequence.
#pragma once

#include <optional>
#include <span>
#include <string_view>
#include <vector>

#include "kvc/core/error.hpp"
#include "kvc/core/limit.hpp"
#include "kvc/core/stats.hpp"
#include "kvc/core/types.hpp"
#include "kvc/policy/block_pool.hpp"
#include "kvc/policy/capabilities.hpp"
#include "kvc/policy/concept.hpp"
#include "kvc/policy/corruption.hpp"
#include "kvc/policy/detail/block_tables.hpp"

namespace kvc {
inline namespace v0 {

/// A pool of blocks of equal size, and a table of blocks per sequence (PagedAttention: Kwon et al., SOSP 2023).
///
/// No external fragmentation: any free block serves any sequence, and a sequence wastes less than one block. `fork`
/// shares blocks, at any position; the first of two sequences that extends into a shared, partly filled block copies
/// it.
class Paged {
 public:
  struct Config {
    Index blocks = 0;       ///< blocks in the pool, less than 2^31
    Pos block_tokens = 16;  ///< slots in a block
  };

  static constexpr std::string_view name = "paged";

  /// Throws std::invalid_argument if a value of config is not allowed, and std::bad_alloc. O(blocks).
  explicit Paged(const Config& config)
      : config_(config), blocks_(config.blocks), tables_(blocks_, config.block_tokens) {
    require_between(config.block_tokens, Pos{1}, max_pos, "config.block_tokens");
  }
  Paged(const Paged&) = delete;
  Paged& operator=(const Paged&) = delete;

  /// What it was made with. O(1).
  [[nodiscard]] const Config& config() const noexcept { return config_; }
  /// Blocks in the pool. O(1).
  [[nodiscard]] Index blocks() const noexcept { return config_.blocks; }
  /// Slots in a block. O(1).
  [[nodiscard]] Pos block_tokens() const noexcept { return config_.block_tokens; }

  /// Finds nothing in place. Takes no block, so there is always room. O(1).
  std::optional<Opened> try_open(std::span<const Token> prompt = {}, const OpenOptions& = {}) {
    const SeqId seq = tables_.insert();
    prompt_tokens_ += static_cast<Index>(prompt.size());
    return Opened{seq, 0};
  }

  /// O(blocks taken).
  std::optional<Extension> try_extend(SeqId seq, Pos count, std::span<const Token> tokens = {}) {
    return tables_.try_extend(seq, count, tokens.size());
  }

  /// The reserved positions count from now on. Throws std::invalid_argument if seq has no uncommitted extension. O(1).
  void commit(SeqId seq) {
    auto& s = tables_.at(seq);
    s.lengths.check_uncommitted(seq);
    tables_.commit(s);
  }
  /// Takes the reserved positions back; does nothing without an uncommitted extension. O(blocks that are freed).
  void rollback(SeqId seq) noexcept { tables_.rollback(seq); }

  /// Shares the blocks: takes none, so there is always room. O(blocks).
  std::optional<Forked> try_fork(SeqId parent, Pos at) { return Forked{tables_.fork(parent, at), {}}; }

  /// Forgets the positions from `length` on. Throws std::invalid_argument if seq is not open, has an uncommitted
  /// extension or fewer positions. O(blocks that are freed).
  void truncate(SeqId seq, Pos length) { tables_.truncate(seq, length); }
  /// Forgets the sequence, and what it has reserved. Throws std::invalid_argument if seq is not open. O(its blocks).
  void close(SeqId seq) { tables_.close(seq); }

  /// Only the pool limits an extension; opening and forking always find room.
  [[nodiscard]] LimitMet why_not_open(const OpenOptions& = {}) const noexcept { return {}; }
  /// The limit that try_extend would meet; Limit::none if it would find room. Throws as try_extend does.
  [[nodiscard]] LimitMet why_not_extend(SeqId seq, Pos count) const {
    return tables_.why_not_extend(tables_.at(seq), tables_.checked_range(tables_.at(seq), seq, count, 0));
  }
  /// The limit that try_fork would meet; Limit::none if it would find room. Throws as try_fork does.
  [[nodiscard]] LimitMet why_not_fork(SeqId seq, Pos at) const {
    tables_.at(seq).lengths.check_fork(at);
    return {};
  }

  /// Blocks that are free. O(1).
  [[nodiscard]] Index available() const noexcept { return blocks_.available(); }

  /// Whether seq is the handle of an open sequence. O(1).
  [[nodiscard]] bool contains(SeqId seq) const noexcept { return tables_.contains(seq); }
  /// Committed positions. Throws std::invalid_argument if seq is not open. O(1).
  [[nodiscard]] Pos length(SeqId seq) const { return tables_.at(seq).lengths.committed; }
  /// Committed and reserved positions. Throws std::invalid_argument if seq is not open. O(1).
  [[nodiscard]] Pos reserved(SeqId seq) const { return tables_.at(seq).lengths.reserved; }
  /// The blocks of the reserved positions. Valid until the sequence is extended, truncated or closed.
  [[nodiscard]] std::span<const BlockId> block_table(SeqId seq) const { return tables_.at(seq).table; }

  /// f(SlotRun) over the positions of range, ascending. Throws std::invalid_argument unless range lies in
  /// [0, reserved(seq)). O(blocks of the range).
  template <class F>
  void for_each_run(SeqId seq, PosRange range, F&& f) const {
    tables_.for_each_run(seq, range, f);
  }

  /// f(SeqId) for every open sequence. O(sequences that were ever open at once).
  template <class F>
  void for_each_sequence(F&& f) const {
    tables_.for_each_handle([&](SeqId seq, const auto&) { f(seq); });
  }

  /// Rows copied since construction, as in stats(). O(1).
  [[nodiscard]] Index copied_tokens() const noexcept { return tables_.copied_tokens(); }

  /// O(blocks + table entries).
  [[nodiscard]] Stats stats() const {
    Stats stats;
    tables_.add_to(stats);
    stats.blocks_free = blocks_.available();
    stats.largest_free_run = stats.blocks_free;
    stats.prompt_tokens = prompt_tokens_;
    return stats;
  }

  /// O(blocks + table entries). Throws InvariantError.
  void verify() const { blocks_.pool.verify(tables_.verify()); }

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
    [[nodiscard]] bool reclaimable(BlockId) const noexcept { return false; }  // a block with one reference is writable
    void reclaim(BlockId) noexcept {}
  };

  Config config_;
  Blocks blocks_;
  detail::BlockTables<Blocks, NoState> tables_;
  Index prompt_tokens_ = 0;
};
static_assert(BlockTablePolicy<Paged> && CountsAvailable<Paged> && HasConfig<Paged> && ListsSequences<Paged> &&
              ExplainsRefusals<Paged>);

}  // namespace v0
}  // namespace kvc
