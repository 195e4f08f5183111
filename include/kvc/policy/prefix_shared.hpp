// PrefixShared: paged, and sequences that begin with the same tokens share the blocks of what they have in common.
//
// Every full block whose tokens are known is entered into an index when it is committed, and stays there, cached, after
// its last holder has gone, until its room is needed. Opening a sequence with a prompt finds the longest cached prefix:
// full blocks, and of one more block as many rows as match, which the first extend copies. At least one token of the
// prompt is left over, so that there is something to compute. Matching is exact (see PrefixIndex). Sequences with
// different salts share nothing.
//
// Two sequences that compute the same block at the same time end up sharing one: the second to commit gives up its own.
#pragma once

#include <algorithm>
#include <cstdint>
#include <optional>
#include <span>
#include <string_view>
#include <vector>

#include "kvc/core/error.hpp"
#include "kvc/core/scope.hpp"
#include "kvc/core/stats.hpp"
#include "kvc/core/types.hpp"
#include "kvc/policy/block_pool.hpp"
#include "kvc/policy/block_tables.hpp"
#include "kvc/policy/chain_hash.hpp"
#include "kvc/policy/concept.hpp"
#include "kvc/policy/eviction/lru.hpp"
#include "kvc/policy/prefix_index.hpp"

namespace kvc::inline v0 {

/// `Eviction` chooses what is given up when room is needed. `Hash` is a parameter for tests; see ChainHash.
template <EvictionPolicy Eviction = Lru, class Hash = ChainHash>
class PrefixShared {
  using Index_ = PrefixIndex<Hash>;
  using Parent = typename Index_::Parent;

 public:
  struct Config {
    Index blocks = 0;       ///< blocks in the pool, less than 2^31
    Pos block_tokens = 16;  ///< slots in a block: the grain of sharing
  };

  static constexpr std::string_view name = "prefix-shared";

  explicit PrefixShared(const Config& config, Hash hash = Hash{})
      : config_(validated(config)), blocks_(config, hash), tables_(blocks_, config.block_tokens) {}
  PrefixShared(const PrefixShared&) = delete;
  PrefixShared& operator=(const PrefixShared&) = delete;

  [[nodiscard]] const Config& config() const noexcept { return config_; }
  [[nodiscard]] Index blocks() const noexcept { return config_.blocks; }
  [[nodiscard]] Pos block_tokens() const noexcept { return config_.block_tokens; }

  /// A sequence that begins with what is cached of `prompt`; `cached` < prompt.size() unless the prompt is empty.
  /// Extend it by the rest of the prompt. Takes no block, so there is always room. O(prompt.size()).
  std::optional<Opened> try_open(std::span<const Token> prompt = {}, const OpenOptions& options = {}) {
    const SeqId seq = tables_.insert();
    detail::OnExit undo([&] { tables_.erase_empty(seq); });
    const Parent root = blocks_.index.acquire_root(options.salt);
    detail::OnExit undo_root([&] { blocks_.index.release_root(root); });
    Sequence& s = tables_.at(seq);
    s.note.root = root;
    const std::span<const Token> may_match = prompt.first(prompt.empty() ? 0 : prompt.size() - 1);
    s.table.reserve(tables_.blocks_for(checked_count(prompt.size(), "prompt.size()")));
    undo_root.dismiss();
    undo.dismiss();

    ++blocks_.now;
    const Pos cached = match(s, may_match);
    for (const BlockId block : s.table) {
      blocks_.eviction.touch(block, blocks_.now);
      blocks_.share(block);
    }
    s.lengths = {cached, cached, false};
    s.note.known = cached;
    s.note.cached_blocks = static_cast<std::size_t>(cached / config_.block_tokens);

    prompt_tokens_ += static_cast<Index>(prompt.size());
    hit_tokens_ += cached;
    hits_ += static_cast<Index>(s.note.cached_blocks);
    misses_ += static_cast<Index>(prompt.size()) / config_.block_tokens - static_cast<Index>(s.note.cached_blocks);
    return Opened{seq, cached};
  }

  /// Blocks can be matched later only if their tokens, and all before them, were given. O(blocks taken + tokens).
  std::optional<Extension> try_extend(SeqId seq, Pos count, std::span<const Token> tokens = {}) {
    std::optional<Extension> extension = tables_.try_extend(seq, count, tokens.size());
    if (extension) {
      Sequence& s = tables_.at(seq);
      if (const RowCopy& copy = extension->copy; copy.count > 0) {
        std::ranges::copy(blocks_.index.tokens(copy.from).first(static_cast<std::size_t>(copy.count)),
                          blocks_.index.tokens(copy.to).begin());
      }
      const bool all_known = s.note.known == extension->range.first && static_cast<Pos>(tokens.size()) == count;
      s.note.known_when_committed = all_known ? extension->range.last : s.note.known;
      if (all_known) {
        tables_.for_each_run(seq, extension->range, [&](const SlotRun& run) {
          const auto from = tokens.subspan(static_cast<std::size_t>(run.first - extension->range.first),
                                           static_cast<std::size_t>(run.count));
          std::ranges::copy(from, blocks_.index.tokens(run.block).begin() + run.offset);
        });
      }
    }
    return extension;
  }

  /// Full blocks become matchable. A block that an equal one was cached for in the meantime is replaced by that one:
  /// runs of the sequence that were read before may be stale after. Expected O(blocks filled * block_tokens).
  void commit(SeqId seq) {
    Sequence& s = tables_.at(seq);
    detail::require_pending(s.lengths, seq);
    ++blocks_.now;
    tables_.commit(s);
    s.note.known = s.note.known_when_committed;
    cache_full_blocks(s);
  }
  void rollback(SeqId seq) noexcept {
    ++blocks_.now;
    tables_.rollback(seq);
  }

  /// Shares the blocks: takes none, so there is always room. O(blocks).
  std::optional<Forked> try_fork(SeqId parent, Pos at) {
    const SeqId seq = tables_.fork(parent, at);
    Sequence& s = tables_.at(seq);
    s.note = tables_.at(parent).note;
    s.note.known = std::min(s.note.known, at);
    s.note.cached_blocks = std::min(s.note.cached_blocks, full_blocks(at));
    blocks_.index.share_root(s.note.root);
    return Forked{seq, {}};
  }

  void truncate(SeqId seq, Pos length) {
    ++blocks_.now;
    tables_.truncate(seq, length);
    Sequence& s = tables_.at(seq);
    s.note.known = std::min(s.note.known, length);
    s.note.cached_blocks = std::min(s.note.cached_blocks, full_blocks(length));
  }

  /// Its cached blocks stay, for later prompts.
  void close(SeqId seq) {
    const Parent root = tables_.at(seq).note.root;
    ++blocks_.now;
    tables_.close(seq);
    blocks_.index.release_root(root);
  }

  [[nodiscard]] bool contains(SeqId seq) const noexcept { return tables_.contains(seq); }
  [[nodiscard]] Pos length(SeqId seq) const { return tables_.at(seq).lengths.committed; }
  [[nodiscard]] Pos reserved(SeqId seq) const { return tables_.at(seq).lengths.reserved; }
  /// The blocks of the reserved positions. Valid until the sequence is extended, committed, truncated or closed.
  [[nodiscard]] std::span<const BlockId> block_table(SeqId seq) const { return tables_.at(seq).table; }

  template <class F>
  void for_each_run(SeqId seq, PosRange range, F&& f) const {
    tables_.for_each_run(seq, range, f);
  }

  /// O(blocks + table entries).
  [[nodiscard]] Stats stats() const {
    Stats stats;
    tables_.add_to(stats);
    stats.blocks_free = blocks_.pool.free();
    stats.blocks_cached = blocks_.eviction.size();
    stats.largest_free_run = blocks_.available();
    stats.prompt_tokens = prompt_tokens_;
    stats.hit_tokens = hit_tokens_;
    stats.hits = hits_;
    stats.misses = misses_;
    stats.merges = merges_;
    stats.evictions = blocks_.evictions;
    return stats;
  }

  /// O(blocks + table entries). Throws InvariantError.
  void verify() const {
    const std::vector<std::int32_t> holders = tables_.verify();
    blocks_.verify(holders);
    std::vector<Index> roots(blocks_.index.root_slots(), 0);
    tables_.for_each([&](const Sequence& s) {
      ++roots[s.note.root.index()];
      if (s.note.known > s.lengths.committed || s.note.cached_blocks > full_blocks(s.note.known)) {
        raise(InvariantError("kvc: a sequence knows more tokens than it has"));
      }
      for (std::size_t i = 0; i < s.note.cached_blocks; ++i) {
        if (!blocks_.index.is_child(s.table[i], i == 0 ? s.note.root : Parent(s.table[i - 1]))) {
          raise(
              InvariantError("kvc: block " + std::to_string(to_index(s.table[i])) + " of a sequence should be cached"));
        }
      }
    });
    blocks_.index.verify_roots(roots);
  }

 private:
  /// Blocks that are free, held, or cached and held by nobody.
  struct Blocks {
    BlockPool pool;
    Index_ index;
    Eviction eviction;
    std::uint64_t now = 0;
    Index evictions = 0;

    Blocks(const Config& config, const Hash& hash)
        : pool(config.blocks), index(config.blocks, config.block_tokens, hash), eviction(config.blocks) {}

    [[nodiscard]] Index size() const noexcept { return pool.size(); }
    [[nodiscard]] Index available() const noexcept { return pool.free() + eviction.size(); }

    [[nodiscard]] BlockId take() noexcept {
      if (pool.free() == 0) {
        evict_end_of(eviction.victim());
      }
      return pool.take();
    }
    void share(BlockId block) noexcept {
      if (pool.holders(block) == 0) {
        eviction.erase(block);
      }
      pool.share(block);
    }
    void release(BlockId block) noexcept {
      if (pool.drop(block) > 0) {
        return;
      }
      if (index.contains(block)) {
        eviction.insert(block, now);
      } else {
        pool.give_back(block);
      }
    }
    [[nodiscard]] bool writable(BlockId block) const noexcept {
      return pool.holders(block) == 1 && !index.contains(block);
    }
    [[nodiscard]] bool reclaimable(BlockId block) const noexcept { return pool.holders(block) == 1; }
    /// Takes a block out of the index, and what is cached behind it, which nobody can hold who does not hold the block.
    void reclaim(BlockId block) noexcept {
      while (index.has_children(block)) {
        evict_end_of(index.newest_child(block));
      }
      index.erase(block);
      ++evictions;
    }

    /// Gives up an unheld block without cached children: the end of a line of descendants of `block`, or itself.
    /// Descendants of an unheld block are unheld.
    void evict_end_of(BlockId block) noexcept {
      while (index.has_children(block)) {
        block = index.newest_child(block);
      }
      eviction.erase(block);
      index.erase(block);
      pool.give_back(block);
      ++evictions;
    }

    void verify(std::span<const std::int32_t> holders) const {
      pool.verify(holders);
      index.verify();
      Index held = 0;
      Index cached = 0;
      for (std::size_t i = 0; i < holders.size(); ++i) {
        held += holders[i] > 0 ? 1 : 0;
        cached += holders[i] == 0 && index.contains(static_cast<BlockId>(i)) ? 1 : 0;
      }
      if (cached != eviction.size() || held + cached + pool.free() != pool.size()) {
        raise(InvariantError("kvc: blocks are neither free nor cached nor held"));
      }
    }
  };

  struct Note {
    Parent root = Parent::root(0);
    Pos known = 0;                  // of the committed positions, how many from the first on have known tokens
    Pos known_when_committed = 0;   // the same, once the pending extension is committed
    std::size_t cached_blocks = 0;  // leading blocks that are in the index
  };
  using Tables = detail::BlockTables<Blocks, Note>;
  using Sequence = typename Tables::Sequence;

  static const Config& validated(const Config& config) {
    require_between(config.blocks, Index{1}, Index{max_pos}, "config.blocks");
    require_between(config.block_tokens, Pos{1}, max_pos, "config.block_tokens");
    return config;
  }

  [[nodiscard]] std::size_t full_blocks(Pos length) const noexcept {
    return static_cast<std::size_t>(length / config_.block_tokens);
  }

  /// Fills the table with the cached blocks that `tokens` begin with; how many tokens they hold.
  [[nodiscard]] Pos match(Sequence& s, std::span<const Token> tokens) const noexcept {
    const auto block_tokens = static_cast<std::size_t>(config_.block_tokens);
    Parent parent = s.note.root;
    std::uint64_t hash = blocks_.index.parent_hash(parent);
    std::size_t matched = 0;
    while (tokens.size() - matched >= block_tokens) {
      const auto chunk = tokens.subspan(matched, block_tokens);
      hash = blocks_.index.chain_hash(hash, chunk);
      const BlockId block = blocks_.index.find(parent, chunk, hash);
      if (block == no_block) {
        break;
      }
      s.table.push_back(block);
      parent = Parent(block);
      matched += block_tokens;
    }
    const auto rest = tokens.subspan(matched, std::min(block_tokens, tokens.size() - matched));
    if (const auto partial = blocks_.index.find_longest(parent, rest); partial.count > 0) {
      s.table.push_back(partial.block);
      matched += static_cast<std::size_t>(partial.count);
    }
    return static_cast<Pos>(matched);
  }

  void cache_full_blocks(Sequence& s) noexcept {
    const std::size_t full = full_blocks(s.note.known);
    for (std::size_t& i = s.note.cached_blocks; i < full; ++i) {
      const Parent parent = i == 0 ? s.note.root : Parent(s.table[i - 1]);
      const BlockId own = s.table[i];
      const std::span<const Token> tokens = std::as_const(blocks_.index).tokens(own);
      const std::uint64_t hash = blocks_.index.chain_hash(parent, tokens);
      if (const BlockId other = blocks_.index.find(parent, tokens, hash); other != no_block) {
        blocks_.share(other);
        s.table[i] = other;
        blocks_.release(own);
        ++merges_;
      } else {
        blocks_.index.insert(own, parent, hash);
      }
    }
  }

  Config config_;
  Blocks blocks_;
  Tables tables_;
  Index prompt_tokens_ = 0;
  Index hit_tokens_ = 0;
  Index hits_ = 0;
  Index misses_ = 0;
  Index merges_ = 0;
};
static_assert(BlockTablePolicy<PrefixShared<>>);

}  // namespace kvc::inline v0
