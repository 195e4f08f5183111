// PlainPrefixShared: PrefixShared with one layer group that keeps everything. The contracts are those of PrefixShared.
#pragma once

#include <algorithm>
#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "kvc/config.hpp"
#include "kvc/core/error.hpp"
#include "kvc/core/limit.hpp"
#include "kvc/core/stats.hpp"
#include "kvc/core/types.hpp"
#include "kvc/policy/capabilities.hpp"
#include "kvc/policy/chain_hash.hpp"
#include "kvc/policy/concept.hpp"
#include "kvc/policy/corruption.hpp"
#include "kvc/policy/detail/cached_blocks.hpp"
#include "kvc/policy/detail/token_tables.hpp"
#include "kvc/policy/events.hpp"
#include "kvc/policy/eviction/concept.hpp"
#include "kvc/policy/prefix_shared_config.hpp"

namespace kvc {
inline namespace v0 {

namespace detail {

template <class Eviction, class Hash, class Events>
class PlainPrefixShared {
  using Blocks = detail::CachedBlocks<Eviction, Hash, Events>;
  using Tables = detail::TokenTables<Blocks>;
  using Parent = typename Tables::Parent;
  using Sequence = typename Tables::Sequence;

 public:
  using Config = PrefixSharedConfig<Eviction>;

  /// Throws std::invalid_argument if a value of config is not allowed, and std::bad_alloc. O(blocks).
  PlainPrefixShared(const Config& config, const Hash& hash)
      : config_(config),
        blocks_(config.blocks, config.block_tokens, config.tenant_quota, config.eviction, hash),
        tables_(blocks_, config.block_tokens) {}
  PlainPrefixShared(const PlainPrefixShared&) = delete;
  PlainPrefixShared& operator=(const PlainPrefixShared&) = delete;

  /// What it was made with. O(1).
  [[nodiscard]] const Config& config() const noexcept { return config_; }
  /// Blocks in the pool. O(1).
  [[nodiscard]] Index blocks() const noexcept { return config_.blocks; }
  /// Slots in a block. O(1).
  [[nodiscard]] Pos block_tokens() const noexcept { return config_.block_tokens; }
  /// The eviction policy, for its figures.
  [[nodiscard]] const Eviction& eviction() const noexcept { return blocks_.eviction; }
  /// The listener: to set a callback, or to poll.
  [[nodiscard]] Events& events() noexcept { return blocks_.events; }

  /// How many tokens of the prompt `try_open` would find in place. Changes nothing. O(prompt.size()).
  [[nodiscard]] Pos match_length(std::span<const Token> prompt, const OpenOptions& options = {}) const {
    (void)checked_count(prompt.size(), "prompt.size()");
    const std::optional<Parent> root = blocks_.index.roots().find(options.salt);
    return root ? tables_.match(*root, all_but_one(prompt), [](BlockId) {}) : 0;
  }

  /// Whether there is room for a prompt and `reserve` more tokens, beside config().watermark blocks. Changes nothing.
  /// O(prompt.size()).
  [[nodiscard]] Admission admission(std::span<const Token> prompt, Pos reserve = 0,
                                    const OpenOptions& options = {}) const {
    const Pos size = checked_count(prompt.size(), "prompt.size()");
    require_between(reserve, Pos{0}, static_cast<Pos>(max_pos - size), "reserve");
    const auto wanted = static_cast<Index>(tables_.blocks_for(size + reserve));
    if (wanted > config_.blocks - config_.watermark) {
      return Admission::never;
    }
    Index found = 0;
    Index evictable = 0;  // found blocks that cease to be evictable when this sequence references them
    bool last_is_referenced = false;
    if (const std::optional<Parent> root = blocks_.index.roots().find(options.salt)) {
      const Pos cached = tables_.match(*root, all_but_one(prompt), [&](BlockId block) {
        ++found;
        last_is_referenced = blocks_.pool.ref_count(block) > 0;
        evictable += last_is_referenced ? 0 : 1;
      });
      if (cached % config_.block_tokens != 0 && last_is_referenced) {
        --found;  // a block that matches in part is copied, unless no other sequence references it
      }
    }
    return wanted - found + config_.watermark <= blocks_.available() - evictable ? Admission::now : Admission::later;
  }
  /// Whether `admission` would answer Admission::now.
  [[nodiscard]] bool can_admit(std::span<const Token> prompt, Pos reserve = 0, const OpenOptions& options = {}) const {
    return admission(prompt, reserve, options) == Admission::now;
  }

  /// A sequence that begins with the cached prefix of `prompt`; `cached` < prompt.size() unless the prompt is empty.
  /// Extend it by the rest of the prompt. Takes no free block, so there is always room. O(prompt.size()).
  std::optional<Opened> try_open(std::span<const Token> prompt = {}, const OpenOptions& options = {}) {
    require_between(options.retention.priority, 0, 100, "options.retention.priority");
    const auto [seq, cached] = tables_.open_on(prompt, all_but_one(prompt), options.salt);
    Sequence& s = tables_.at(seq);
    s.state.retention = options.retention;
    blocks_.eviction.on_open(s.state.context, std::span(std::as_const(s.table)).first(s.state.cached_blocks),
                             s.state.retention, blocks_.now);
    tables_.ref_blocks(s);
    ++sequences_;
    prompt_tokens_ += static_cast<Index>(prompt.size());
    hit_tokens_ += cached;
    hits_ += static_cast<Index>(s.state.cached_blocks);
    misses_ += static_cast<Index>(prompt.size()) / config_.block_tokens - static_cast<Index>(s.state.cached_blocks);
    return Opened{seq, cached};
  }

  /// A prompt can find blocks later only if their tokens, and all tokens before them, are given. O(blocks taken +
  /// tokens).
  std::optional<Extension> try_extend(SeqId seq, Pos count, std::span<const Token> tokens = {}) {
    Sequence& s = tables_.at(seq);
    const PosRange range = tables_.checked_range(s, seq, count, tokens.size());
    if (tables_.extend_in_place(s, range)) [[likely]] {
      tables_.take_tokens(s, range, tokens);
      return Extension{range, {}};
    }
    return tables_.extend_by_blocks(s, range, tokens);
  }

  /// Full blocks become matchable. If an equal block is cached already, the sequence takes that one and frees its own:
  /// runs of the sequence that were read before are invalid. Expected O(blocks filled * block_tokens).
  void commit(SeqId seq) {
    Sequence& s = tables_.at(seq);
    s.lengths.check_uncommitted(seq);
    if (s.lengths.reserved >= s.state.fills_at || tables_.has_replaced(s)) [[unlikely]] {
      tables_.commit_blocks(s);
    } else {
      s.lengths.commit();
    }
  }
  /// Takes the reserved positions back; does nothing without an uncommitted extension. O(blocks that are freed).
  void rollback(SeqId seq) noexcept {
    if (!tables_.contains(seq)) {
      return;
    }
    ++blocks_.now;
    Sequence& s = tables_.at(seq);
    tables_.rollback(seq);
    tables_.forget_unknown_from(s, s.lengths.committed);
  }

  /// Names the tokens of the first committed positions of a sequence that knows none of its tokens: it was extended
  /// without them, for example because its rows must not be found before all of them are written. Full blocks become
  /// matchable as in `commit`. The tokens must be those that the rows were computed from; for blocks that are shared
  /// with other sequences, the tokens that those know. Allocates nothing. Expected O(tokens).
  /// Throws std::invalid_argument if tokens are known already, there are more tokens than committed positions, or a
  /// shared block is cached with other tokens.
  void publish_tokens(SeqId seq, std::span<const Token> tokens) { tables_.publish_tokens(seq, tokens); }
  /// The tokens of the first positions, as far as they are known: at most reserved(seq) of them. O(tokens).
  [[nodiscard]] std::vector<Token> known_tokens(SeqId seq) const { return tables_.known_tokens(tables_.at(seq)); }
  /// Salt::bytes() of what the sequence was opened with. Valid until it is closed.
  [[nodiscard]] const std::string& salt_bytes(SeqId seq) const {
    return blocks_.index.roots().salt(tables_.at(seq).state.root);
  }

  /// Shares the blocks: takes none, so there is always room. O(blocks).
  std::optional<Forked> try_fork(SeqId parent, Pos at) {
    const SeqId seq = tables_.fork(parent, at);
    Sequence& s = tables_.at(seq);
    s.state = tables_.at(parent).state;
    s.state.unknown_from = s.state.unknown_from < at ? s.state.unknown_from : Tables::nowhere;
    s.state.cached_blocks = std::min(s.state.cached_blocks, tables_.full_blocks(at));
    tables_.set_fills_at(s);
    s.state.context = {};
    s.state.found = at;
    blocks_.index.roots().ref(s.state.root);
    blocks_.quota.ref(s.state.tenant);
    blocks_.eviction.on_open(s.state.context, std::span(std::as_const(s.table)).first(s.state.cached_blocks),
                             s.state.retention, ++blocks_.now);
    ++sequences_;
    return Forked{seq, {}};
  }

  /// Forgets the positions from `length` on. Throws std::invalid_argument if seq is not open, has an uncommitted
  /// extension or fewer positions. O(blocks that are freed).
  void truncate(SeqId seq, Pos length) {
    ++blocks_.now;
    Sequence& s = tables_.at(seq);
    tables_.truncate(seq, length);
    s.state.cached_blocks = std::min(s.state.cached_blocks, tables_.full_blocks(length));
    tables_.forget_unknown_from(s, length);
  }

  /// The cached blocks of the sequence stay, for later prompts.
  void close(SeqId seq) {
    Sequence& s = tables_.at(seq);
    require(!s.state.is_pin, "seq", seq, "an open sequence");
    ++blocks_.now;
    // A request that was opened and then postponed does not count as one.
    if (s.lengths.committed > s.state.found) {
      blocks_.eviction.on_close(s.state.context, std::span(std::as_const(s.table)).first(s.state.cached_blocks),
                                blocks_.now);
    }
    tokens_unknown_ += tables_.unknown(s);
    tables_.release_sequence(seq);
    --sequences_;
  }

  /// Protects the cached full blocks of a prefix from eviction until `unpin`; empty if there are none. Counts neither
  /// as a sequence nor as a hit. A prefix may be pinned any number of times. O(prefix.size()).
  std::optional<Opened> try_pin(std::span<const Token> prefix, const Salt& salt = {}) {
    const auto whole = prefix.size() - prefix.size() % static_cast<std::size_t>(config_.block_tokens);
    const SeqId seq = tables_.open_on(prefix, prefix.first(whole), salt).seq;
    Sequence& s = tables_.at(seq);
    s.table.resize(s.state.cached_blocks);  // without one that matches partly
    const Pos tokens = static_cast<Pos>(s.state.cached_blocks) * config_.block_tokens;
    s.lengths.set(tokens);
    if (tokens == 0) {
      tables_.release_sequence(seq);
      return std::nullopt;
    }
    tables_.ref_blocks(s);
    s.state.is_pin = true;
    ++pins_;
    return Opened{seq, tokens};
  }
  /// Throws std::invalid_argument if the pin is not valid: a pin cannot be removed twice.
  void unpin(SeqId pin) {
    require(tables_.contains(pin) && tables_.at(pin).state.is_pin, "pin", pin, "a pin that is there");
    ++blocks_.now;
    tables_.release_sequence(pin);
    --pins_;
  }

  /// Drops everything cached, for example after a change of weights. Open sequences keep their rows, which are not
  /// matchable any more; pins keep their blocks, which nobody finds, until `unpin`. O(blocks + sequences).
  void clear() noexcept {
    blocks_.clear();
    tables_.for_each([&](Sequence& s) {
      s.state.unknown_from = s.lengths.reserved > 0 ? 0 : Tables::nowhere;
      s.state.cached_blocks = 0;
      tables_.set_fills_at(s);
    });
  }

  /// f(BlockStored) for every cached block, parents before their children, each with the number of the next event: the
  /// state from which a listener starts, or starts again after it has lost events. O(cached blocks).
  template <class F>
  void for_each_cached(F&& f) const {
    blocks_.index.for_each([&](Parent root, Parent parent, BlockId block) {
      f(BlockStored{blocks_.next_event(), block, parent.is_root() ? no_block : parent.block(),
                    blocks_.index.roots().salt(root), blocks_.index.tokens(block)});
    });
  }

  /// Logical time counts operations, except extensions within a last block. To have the durations of `Retention` in a
  /// unit of time, set it from a clock that ticks more often than operations happen, such as one of microseconds. It
  /// never goes back, and ends at 2^63.
  void set_time(std::uint64_t now) noexcept {
    blocks_.now = std::max(blocks_.now, std::min(now, std::uint64_t{1} << 63));
  }
  /// The logical time now. O(1).
  [[nodiscard]] std::uint64_t time() const noexcept { return blocks_.now; }

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

  /// Free and evictable blocks. O(1).
  [[nodiscard]] Index available() const noexcept { return blocks_.available(); }

  /// Whether seq is the handle of an open sequence. O(1).
  [[nodiscard]] bool contains(SeqId seq) const noexcept {
    return tables_.contains(seq) && !tables_.at(seq).state.is_pin;
  }
  /// Committed positions. Throws std::invalid_argument if seq is not open. O(1).
  [[nodiscard]] Pos length(SeqId seq) const { return tables_.at(seq).lengths.committed; }
  /// Committed and reserved positions. Throws std::invalid_argument if seq is not open. O(1).
  [[nodiscard]] Pos reserved(SeqId seq) const { return tables_.at(seq).lengths.reserved; }
  /// The blocks of the reserved positions. Valid until the sequence is extended, committed, rolled back, truncated or
  /// closed.
  [[nodiscard]] std::span<const BlockId> block_table(SeqId seq) const { return tables_.at(seq).table; }

  /// f(SlotRun) over the positions of range, ascending. Throws std::invalid_argument unless range lies in
  /// [0, reserved(seq)). O(blocks of the range).
  template <class F>
  void for_each_run(SeqId seq, PosRange range, F&& f) const {
    tables_.for_each_run(seq, range, f);
  }

  /// f(SeqId) for every open sequence. O(sequences and pins that were ever there at once).
  template <class F>
  void for_each_sequence(F&& f) const {
    tables_.for_each_handle([&](SeqId seq, const Sequence& s) {
      if (!s.state.is_pin) {
        f(seq);
      }
    });
  }

  /// Rows copied since construction, as in stats(). O(1).
  [[nodiscard]] Index copied_tokens() const noexcept { return tables_.copied_tokens(); }

  /// O(blocks + table entries).
  [[nodiscard]] Stats stats() const {
    Stats stats;
    tables_.add_to(stats);
    stats.blocks_free = blocks_.pool.available();
    stats.blocks_cached = blocks_.eviction.size();
    stats.largest_free_run = blocks_.available();
    stats.prompt_tokens = prompt_tokens_;
    stats.hit_tokens = hit_tokens_;
    stats.hits = hits_;
    stats.misses = misses_;
    stats.merges = tables_.merges();
    stats.evictions = blocks_.evictions();
    stats.sequences = sequences_;
    stats.tokens_unknown = tokens_unknown_;
    tables_.for_each([&](const Sequence& s) { stats.tokens_unknown += s.state.is_pin ? 0 : tables_.unknown(s); });
    stats.pins = pins_;
    return stats;
  }

  /// O(blocks + table entries). Throws InvariantError.
  void verify() const {
    const BlockArray<std::int32_t> references = tables_.verify();
    std::vector<Index> roots(blocks_.index.roots().slots(), 0);
    std::vector<Index> tenants(blocks_.quota.slots(), 0);
    Index sequences = 0;
    Index pins = 0;
    tables_.for_each([&](const Sequence& s) {
      ++(s.state.is_pin ? pins : sequences);
      ++roots[s.state.root.root_index()];
      if (s.state.tenant != detail::TenantQuota::none) {
        ++tenants[static_cast<std::size_t>(s.state.tenant)];
      }
      if ((s.state.unknown_from != Tables::nowhere && s.state.unknown_from >= std::max(1, s.lengths.reserved)) ||
          s.state.cached_blocks > tables_.full_blocks(tables_.known(s)) || s.state.fills_at != tables_.fills_at(s)) {
        throw_error(InvariantError("kvc: a sequence knows more tokens than it has"));
      }
      for (std::size_t i = 0; i < s.state.cached_blocks; ++i) {
        if (!blocks_.index.is_child(s.table[i], i == 0 ? s.state.root : Parent(s.table[i - 1]))) {
          throw_error(
              InvariantError("kvc: block " + std::to_string(to_index(s.table[i])) + " of a sequence should be cached"));
        }
      }
    });
    blocks_.verify(references, tenants);
    blocks_.index.roots().verify(roots);
    if (sequences != sequences_ || pins != pins_) {
      throw_error(InvariantError("kvc: counts of sequences or pins are wrong"));
    }
  }

 private:
  template <class>
  friend struct testing::Corruption;

  [[nodiscard]] static std::span<const Token> all_but_one(std::span<const Token> prompt) noexcept {
    return prompt.first(prompt.empty() ? 0 : prompt.size() - 1);
  }

  Config config_;
  Blocks blocks_;
  Tables tables_;
  Index sequences_ = 0;
  Index pins_ = 0;
  Index tokens_unknown_ = 0;  // of closed sequences
  Index prompt_tokens_ = 0;
  Index hit_tokens_ = 0;
  Index hits_ = 0;
  Index misses_ = 0;
};

}  // namespace detail
}  // namespace v0
}  // namespace kvc
