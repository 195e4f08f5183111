// TokenTables: block tables that know their tokens, so that full blocks can be cached under them and found again.
// PrefixShared keeps its sequences and pins in one.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <utility>
#include <vector>

#include "kvc/config.hpp"
#include "kvc/core/error.hpp"
#include "kvc/core/scope_guard.hpp"
#include "kvc/core/types.hpp"
#include "kvc/policy/concept.hpp"
#include "kvc/policy/detail/block_tables.hpp"
#include "kvc/policy/detail/cached_blocks.hpp"
#include "kvc/policy/retention.hpp"
#include "kvc/policy/salt.hpp"

namespace kvc {
inline namespace v0 {
namespace detail {

/// The record of a sequence, or of a pin, beside its table.
template <class Parent, class SequenceContext>
struct SequenceState {
  static constexpr Pos nowhere = max_pos;

  Parent root = Parent::root(0);
  Pos unknown_from = nowhere;     // first position whose token is not known: nothing from there on is matchable
  std::size_t cached_blocks = 0;  // leading blocks that are in the index
  Pos found = 0;                  // tokens that were in place when it was opened
  Pos fills_at = nowhere;         // length at which the next block is full and can be cached
  int tenant = TenantQuota::none;
  bool is_pin = false;
  bool expects = false;  // a pin: its last blocks are reserved for rows that arrive, and their tokens are known to it
  Retention retention{};
  [[no_unique_address]] SequenceContext context{};
};

/// BlockTables whose sequences know their tokens. The tokens of a block are written to the index when its slots are
/// reserved. The block itself enters the index when it is full and committed, and all tokens from the first position to
/// its end are known. A sequence that was extended without tokens has no cached blocks from there on.
///
/// `Blocks` is a CachedBlocks.
template <class Blocks>
class TokenTables
    : public BlockTables<Blocks, SequenceState<typename Blocks::Parent, typename Blocks::SequenceContext>> {
  using Base = BlockTables<Blocks, SequenceState<typename Blocks::Parent, typename Blocks::SequenceContext>>;

 public:
  using Parent = typename Blocks::Parent;
  using State = SequenceState<Parent, typename Blocks::SequenceContext>;
  using Sequence = typename Base::Sequence;
  static constexpr Pos nowhere = State::nowhere;

  using Base::Base;

  /// Blocks that were freed for an equal one that was cached.
  [[nodiscard]] Index merges() const noexcept { return merges_; }

  // --- finding -------------------------------------------------------------------------------------------------------

  [[nodiscard]] std::size_t full_blocks(Pos length) const noexcept {
    return static_cast<std::size_t>(length / block_tokens_);
  }

  /// f(block) for the cached blocks that `tokens` begin with, the last one perhaps partly; how many tokens they hold.
  template <class F>
  [[nodiscard]] Pos match(Parent root, std::span<const Token> tokens, F&& f) const noexcept {
    const auto block_tokens = static_cast<std::size_t>(block_tokens_);
    std::size_t matched = 0;
    const Parent last = blocks_.index.find_prefix(root, tokens, [&](BlockId block) {
      f(block);
      matched += block_tokens;
    });
    const auto rest = tokens.subspan(matched, std::min(block_tokens, tokens.size() - matched));
    if (const auto partial = blocks_.index.find_longest(last, rest); partial.count > 0) {
      f(partial.block);
      matched += static_cast<std::size_t>(partial.count);
    }
    return static_cast<Pos>(matched);
  }

  /// A new sequence with a table of what is cached of `tokens`, which begin the prompt. Does not hold it yet.
  Opened open_on(std::span<const Token> prompt, std::span<const Token> tokens, const Salt& salt) {
    const Pos size = checked_count(prompt.size(), "prompt.size()");
    const SeqId seq = this->insert();
    ScopeGuard undo([&] { this->erase_empty(seq); });
    const int tenant = blocks_.quota.limited() ? blocks_.quota.acquire(salt.tenant()) : TenantQuota::none;
    ScopeGuard undo_tenant([&] { blocks_.quota.release(tenant); });
    const Parent root = blocks_.index.roots().acquire(salt);
    ScopeGuard undo_root([&] { blocks_.index.roots().release(root); });
    Sequence& s = this->at(seq);
    s.table.reserve(this->blocks_for(size));
    undo_root.dismiss();
    undo_tenant.dismiss();
    undo.dismiss();

    ++blocks_.now;
    const Pos cached = match(root, tokens, [&](BlockId block) { s.table.push_back(block); });
    s.state.root = root;
    s.state.tenant = tenant;
    s.state.found = cached;
    s.state.cached_blocks = full_blocks(cached);
    set_fills_at(s);
    s.lengths.set(cached);
    return {seq, cached};
  }
  /// The blocks that show an eviction policy where a sequence is: those that are cached, from the first on.
  [[nodiscard]] std::span<const BlockId> leading_blocks(const Sequence& s) const noexcept {
    return std::span(s.table).first(s.state.cached_blocks);
  }
  /// References the blocks that `open_on` found.
  void ref_blocks(const Sequence& s) noexcept {
    for (const BlockId block : s.table) {
      blocks_.ref(block);
    }
  }
  /// Erases a sequence, or a pin.
  void release_sequence(SeqId seq) {
    const Parent root = this->at(seq).state.root;
    const int tenant = this->at(seq).state.tenant;
    this->close(seq);
    blocks_.index.roots().release(root);
    blocks_.quota.release(tenant);
  }

  // --- tokens --------------------------------------------------------------------------------------------------------

  /// Of the committed positions, how many from the first on have known tokens.
  [[nodiscard]] static Pos known(const Sequence& s) noexcept {
    return std::min(s.lengths.committed, s.state.unknown_from);
  }
  /// How many committed positions there are from the first unknown token on.
  [[nodiscard]] static Index unknown(const Sequence& s) noexcept { return s.lengths.committed - known(s); }
  /// The tokens of the first reserved positions, as far as they are known.
  [[nodiscard]] std::vector<Token> known_tokens(const Sequence& s) const {
    std::vector<Token> tokens;
    const Pos count = std::min(s.lengths.reserved, s.state.unknown_from);
    tokens.reserve(static_cast<std::size_t>(count));
    this->for_each_run(s, {0, count}, [&](const SlotRun& run) {
      const std::span<const Token> own = cached_tokens(run);
      tokens.insert(tokens.end(), own.begin(), own.end());
    });
    return tokens;
  }

  /// Writes the tokens of reserved positions to where they will be looked up, if all before them are known too.
  void take_tokens(Sequence& s, PosRange range, std::span<const Token> tokens) noexcept {
    if (s.state.unknown_from <= range.first || range.empty()) {
      return;
    }
    if (tokens.empty()) {
      s.state.unknown_from = range.first;
      set_fills_at(s);
      return;
    }
    const Index tail = this->slots(s.table.size() - 1);  // position of the last block's first slot
    if (tokens.size() == 1) [[likely]] {
      blocks_.index.tokens(s.table.back())[static_cast<std::size_t>(range.first - tail)] = tokens.front();
    } else {
      copy_tokens(s, range, tokens);
    }
  }
  /// The tokens, at least one, of the first committed positions of a sequence that knows none: see
  /// PrefixShared::publish_tokens.
  void publish_tokens(Sequence& s, std::span<const Token> tokens) {
    const auto count = static_cast<Pos>(tokens.size());
    const auto of = [&](const SlotRun& run) {
      return tokens.subspan(static_cast<std::size_t>(run.first), static_cast<std::size_t>(run.count));
    };
    this->for_each_run(s, {0, count}, [&](const SlotRun& run) {
      require(!blocks_.index.contains(run.block) || std::ranges::equal(of(run), cached_tokens(run)), "tokens",
              run.first, "those that a shared block is cached with");
    });
    this->for_each_run(s, {0, count}, [&](const SlotRun& run) {
      if (!blocks_.index.contains(run.block)) {
        std::ranges::copy(of(run), blocks_.index.tokens(run.block).begin() + run.offset);
      }
    });
    s.state.unknown_from = count == s.lengths.committed ? nowhere : count;
    ++blocks_.now;
    cache_full_blocks(s);
  }
  /// Reserves the blocks of `tokens` behind those that `open_on` found, and remembers their tokens, for `arrive`. False
  /// if there is no room; nothing has changed then. Throws std::bad_alloc, likewise.
  bool expect(Sequence& s, std::span<const Token> tokens) {
    const PosRange range{s.lengths.committed, s.lengths.committed + static_cast<Pos>(tokens.size())};
    if (!range.empty() && !extend_by_blocks(s, range, tokens)) {
      return false;
    }
    this->commit(s);
    s.state.expects = !range.empty();
    s.state.unknown_from = range.empty() ? nowhere : range.first;
    set_fills_at(s);
    return true;
  }
  /// The rows of the first `length` positions are in place.
  void arrive(Sequence& s, Pos length) noexcept {
    s.state.expects = length < s.lengths.committed;
    s.state.unknown_from = s.state.expects ? length : nowhere;
    ++blocks_.now;
    cache_full_blocks(s);
  }
  /// After the positions from `length` on were dropped.
  void forget_unknown_from(Sequence& s, Pos length) const noexcept {
    if (s.state.unknown_from >= length) {
      s.state.unknown_from = nowhere;
    }
    set_fills_at(s);
  }
  [[nodiscard]] Pos fills_at(const Sequence& s) const noexcept {
    // Up to the first unknown position everything that is full is cached already.
    return s.state.unknown_from == nowhere
               ? static_cast<Pos>(std::min<Index>(nowhere, this->slots(s.state.cached_blocks + 1)))
               : nowhere;
  }
  void set_fills_at(Sequence& s) const noexcept { s.state.fills_at = fills_at(s); }

  // --- blocks --------------------------------------------------------------------------------------------------------

  /// As that of BlockTables; a copied tail brings its tokens.
  KVC_OUT_OF_LINE std::optional<Extension> extend_by_blocks(Sequence& s, PosRange range,
                                                            std::span<const Token> tokens) {
    std::optional<Extension> extension = Base::extend_by_blocks(s, range);
    if (extension) {
      for (const RowCopy& copy : extension->copies) {
        std::ranges::copy(blocks_.index.tokens(copy.from).first(static_cast<std::size_t>(copy.count)),
                          blocks_.index.tokens(copy.to).begin());
      }
      take_tokens(s, range, tokens);
    }
    return extension;
  }

  /// Commits, and caches what has become full.
  KVC_OUT_OF_LINE void commit_blocks(Sequence& s) noexcept {
    ++blocks_.now;
    this->commit(s);
    cache_full_blocks(s);
  }

 private:
  KVC_OUT_OF_LINE void copy_tokens(const Sequence& s, PosRange range, std::span<const Token> tokens) noexcept {
    this->for_each_run(s, range, [&](const SlotRun& run) {
      const auto from =
          tokens.subspan(static_cast<std::size_t>(run.first - range.first), static_cast<std::size_t>(run.count));
      std::ranges::copy(from, blocks_.index.tokens(run.block).begin() + run.offset);
    });
  }

  [[nodiscard]] std::span<const Token> cached_tokens(const SlotRun& run) const noexcept {
    return blocks_.index.tokens(run.block).subspan(static_cast<std::size_t>(run.offset),
                                                   static_cast<std::size_t>(run.count));
  }

  /// Enters what is full and known into the index, or takes the equal block that is there already.
  void cache_full_blocks(Sequence& s) noexcept {
    const std::size_t full = full_blocks(known(s));
    constexpr std::size_t ahead = 8;
    std::uint64_t hashes[ahead];  // of the next blocks, so that their buckets are on the way when they are looked at
    std::uint64_t hash = blocks_.index.parent_hash(
        s.state.cached_blocks == 0 ? s.state.root : Parent(s.table[s.state.cached_blocks - 1]));
    std::size_t hashed = s.state.cached_blocks;
    for (std::size_t& i = s.state.cached_blocks; i < full; ++i) {
      for (; hashed < full && hashed < i + ahead; ++hashed) {
        hash = blocks_.index.chain_hash(hash, std::as_const(blocks_.index).tokens(s.table[hashed]));
        hashes[hashed % ahead] = hash;
        blocks_.index.prefetch(hash);
      }
      const Parent parent = i == 0 ? s.state.root : Parent(s.table[i - 1]);
      const BlockId own = s.table[i];
      if (blocks_.index.is_child(own, parent)) [[unlikely]] {
        continue;  // shared with a sequence that knew its tokens before this one
      }
      const BlockId equal = blocks_.cache(s.state.context, s.state.tenant, s.state.root, own, parent, hashes[i % ahead],
                                          static_cast<Pos>(i));
      if (equal != no_block) {
        blocks_.ref(equal);
        s.table[i] = equal;
        blocks_.release(own, s.state);
        ++merges_;
      }
    }
    set_fills_at(s);
  }

  using Base::block_tokens_;
  using Base::blocks_;
  Index merges_ = 0;
};

}  // namespace detail
}  // namespace v0
}  // namespace kvc
