// PrefixShared: paged, and sequences that begin with the same tokens share blocks.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "kvc/config.hpp"
#include "kvc/core/error.hpp"
#include "kvc/core/group_rule.hpp"
#include "kvc/core/limit.hpp"
#include "kvc/core/stats.hpp"
#include "kvc/core/types.hpp"
#include "kvc/fwd.hpp"
#include "kvc/policy/capabilities.hpp"
#include "kvc/policy/chain_hash.hpp"
#include "kvc/policy/concept.hpp"
#include "kvc/policy/corruption.hpp"
#include "kvc/policy/detail/group_members.hpp"
#include "kvc/policy/detail/grouped_prefix_shared.hpp"
#include "kvc/policy/detail/plain_or_grouped.hpp"
#include "kvc/policy/detail/plain_prefix_shared.hpp"
#include "kvc/policy/events.hpp"
#include "kvc/policy/eviction/concept.hpp"
#include "kvc/policy/eviction/reuse_hazard.hpp"
#include "kvc/policy/expected_prefix.hpp"
#include "kvc/policy/prefix_pin.hpp"
#include "kvc/policy/prefix_shared_config.hpp"

namespace kvc {
inline namespace v0 {

namespace detail {
/// Takes the place of an eviction policy in a configuration.
struct NoEviction {
  struct Config {};
};
}  // namespace detail

/// Instantiated only if an argument is not what PrefixShared needs: says which, and why. The specialisation below is
/// the policy.
template <class Eviction, class Hash, class Events>
class PrefixShared {
  static_assert(EvictionPolicy<Eviction>,
                "kvc: the first argument of PrefixShared is not an eviction policy, see "
                "kvc/policy/eviction/concept.hpp; the compiler names the missing expression.");
  static_assert(EventListener<Events>,
                "kvc: the third argument of PrefixShared is not a listener of events, see "
                "kvc/policy/events.hpp; the compiler names the missing expression.");

 public:
  using Config = PrefixSharedConfig<detail::NoEviction>;

  /// Takes what the policy takes, so that its call is not an error as well.
  explicit PrefixShared(const Config&, const GroupRules& = {}) {}
};

/// Blocks as of Paged, and sequences that begin with the same tokens share the blocks of their common prefix.
///
/// Every full block whose tokens are known enters an index when it is committed. It stays there, cached, after its last
/// sequence is closed, until it is evicted. `try_open` finds the longest cached prefix of a prompt: full blocks, and
/// the rows that match of one more block, which the first extension copies. At least one token of the prompt is left to
/// compute. Matching is exact (see PrefixIndex). Sequences of different salts share nothing. Of two sequences that
/// compute the same block at the same time, the second to commit takes the block of the first and frees its own.
///
/// A scheduler can ask for the match of a prompt (match_length) and for its admission; an operator can pin prefixes and
/// limit the cached blocks of a tenant; a router can listen to events.
///
/// With several layer groups, or one that does not keep everything, a prefix is found as far as **every** group has
/// what the next row sees: of a group that keeps everything all rows, of one with a window the last window - 1. Blocks
/// of all groups have the same bytes and lie in one pool. A group releases at commit what it does not keep; what a
/// later prompt could end with stays cached: the rows before the end of a prompt, of a sequence or of a fork, and
/// before positions where prefixes part. The rows of another input, for cross attention, are found by the salt,
/// which must name that input: a sequence without a salt starts anew, and so computes them anew. A sequence that is
/// opened with a salt whose rows are there has them, whatever is found of its prompt.
///
/// `Eviction` chooses the victims when room is needed. `Events` hears of blocks that become or cease to be matchable.
/// `Hash` is a parameter for tests: see ChainHash.
template <EvictionPolicy Eviction, class Hash, EventListener Events>
class PrefixShared<Eviction, Hash, Events>
    : public detail::GroupMembers<PrefixShared<Eviction, Hash, Events>>,
      private detail::PlainOrGrouped<detail::PlainPrefixShared<Eviction, Hash, Events>,
                                     detail::GroupedPrefixShared<Eviction, Hash, Events>> {
  using Plain = detail::PlainPrefixShared<Eviction, Hash, Events>;
  using Grouped = detail::GroupedPrefixShared<Eviction, Hash, Events>;
  using Groups = detail::GroupMembers<PrefixShared>;
  using Parts = detail::PlainOrGrouped<Plain, Grouped>;
  using Parts::access;
  using Parts::grouped_;
  using Parts::plain_;

 public:
  using Config = PrefixSharedConfig<Eviction>;

  static constexpr std::string_view name = "prefix-shared";
  static constexpr bool shares_blocks = true;

  /// Throws std::invalid_argument if a value of config or of rules is not allowed, and std::bad_alloc. O(blocks).
  explicit PrefixShared(const Config& config, const GroupRules& rules = {}, const Hash& hash = Hash{})
      : Groups(rules), config_(config) {
    require_valid(config);
    if (rules.is_plain()) {
      plain_.emplace(config, hash);
    } else {
      grouped_ = std::make_unique<Grouped>(config, rules, hash);
    }
  }
  /// With a hash of one's own. Throws as above.
  PrefixShared(const Config& config, const Hash& hash) : PrefixShared(config, GroupRules{}, hash) {}
  PrefixShared(const PrefixShared&) = delete;
  PrefixShared& operator=(const PrefixShared&) = delete;

  /// The configuration. O(1).
  [[nodiscard]] const Config& config() const noexcept { return config_; }
  /// Blocks in the pool. O(1).
  [[nodiscard]] Index blocks() const noexcept { return config_.blocks; }
  /// config().block_tokens: the slots of a block; with several groups see block_tokens(group). O(1).
  [[nodiscard]] Pos block_tokens() const noexcept { return config_.block_tokens; }
  using Groups::block_tokens;
  /// The eviction policy, for its figures.
  [[nodiscard]] const Eviction& eviction() const noexcept {
    return access([](const auto& p) -> const Eviction& { return p.eviction(); });
  }
  /// The listener: to set a callback, or to poll.
  [[nodiscard]] Events& events() noexcept {
    return access([](auto& p) -> Events& { return p.events(); });
  }

  /// How many tokens of the prompt `try_open` would find in place. Changes nothing. O(prompt.size()).
  [[nodiscard]] Pos match_length(std::span<const Token> prompt, const OpenOptions& options = {}) const {
    return access([&](const auto& p) { return p.match_length(prompt, options); });
  }
  /// Whether there is room for a prompt and `reserve` more tokens, beside config().watermark blocks. A group that drops
  /// rows needs room for those that it keeps and for one pass: config().pass_tokens. Changes nothing.
  /// O(prompt.size() + blocks of the reserve).
  [[nodiscard]] Admission admission(std::span<const Token> prompt, Pos reserve = 0,
                                    const OpenOptions& options = {}) const {
    return access([&](const auto& p) { return p.admission(prompt, reserve, options); });
  }
  /// Whether `admission` would answer Admission::now.
  [[nodiscard]] bool can_admit(std::span<const Token> prompt, Pos reserve = 0, const OpenOptions& options = {}) const {
    return admission(prompt, reserve, options) == Admission::now;
  }

  /// A sequence that begins with the cached prefix of `prompt`; `cached` < prompt.size() unless the prompt is empty.
  /// Extend it by the rest of the prompt. Takes no free block, so there is always room. O(prompt.size()).
  std::optional<Opened> try_open(std::span<const Token> prompt = {}, const OpenOptions& options = {}) {
    return access([&](auto& p) { return p.try_open(prompt, options); });
  }

  /// A prompt can find blocks later only if their tokens, and all tokens before them, are given. O(blocks taken +
  /// tokens).
  std::optional<Extension> try_extend(SeqId seq, Pos count, std::span<const Token> tokens = {}) {
    if (grouped_) [[unlikely]] {
      return grouped_->try_extend(seq, count, tokens);
    }
    return plain_->try_extend(seq, count, tokens);
  }
  /// The same, with blocks for the recurrent states after `states_at` tokens, too: see HoldsStates. They stay for later
  /// prompts as the end of a prompt does.
  std::optional<Extension> try_extend(SeqId seq, Pos count, std::span<const Token> tokens,
                                      std::span<const Pos> states_at) {
    if (grouped_) [[unlikely]] {
      return grouped_->try_extend(seq, count, tokens, states_at);
    }
    require(states_at.empty(), "states_at.size()", states_at.size(), "0: there are no recurrent layers");
    return plain_->try_extend(seq, count, tokens);
  }

  /// Reserves the rows of a sequence that was computed elsewhere, for publish_tokens after the commit: see
  /// RestoresSequences. O(blocks).
  std::optional<Extension> try_restore(SeqId seq, const RestoreOptions& options) {
    if (grouped_) {
      return grouped_->try_restore(seq, options);
    }
    detail::require_valid(options, this->group_rules());
    require(plain_->reserved(seq) == 0, "seq", seq, "an empty sequence");
    return plain_->try_extend(seq, options.length, {});
  }

  /// Full blocks become matchable. If an equal block is cached already, the sequence takes that one and frees its own:
  /// runs of the sequence that were read before are invalid. Expected O(blocks filled * block_tokens).
  void commit(SeqId seq) {
    access([&](auto& p) { p.commit(seq); });
  }
  /// Takes the reserved positions back; does nothing without an uncommitted extension. O(blocks that are freed).
  void rollback(SeqId seq) noexcept {
    access([&](auto& p) { p.rollback(seq); });
  }

  /// Names the tokens of the first committed positions of a sequence that knows none of its tokens: it was extended
  /// without them, for example because its rows must not be found before all of them are written. Full blocks become
  /// matchable as in `commit`. The tokens must be those that the rows were computed from; for blocks that are shared
  /// with other sequences, the tokens that those know. Expected O(tokens * groups). Allocates nothing with one group
  /// that keeps everything; with other groups it throws std::bad_alloc, and nothing has changed then.
  /// Throws std::invalid_argument if tokens are known already, there are more tokens than committed positions, or a
  /// shared block is cached with other tokens.
  void publish_tokens(SeqId seq, std::span<const Token> tokens) {
    access([&](auto& p) { p.publish_tokens(seq, tokens); });
  }
  /// The tokens of the first positions, as far as they are known: at most reserved(seq) of them. O(tokens).
  [[nodiscard]] std::vector<Token> known_tokens(SeqId seq) const {
    return access([&](const auto& p) { return p.known_tokens(seq); });
  }
  /// Salt::bytes() of what the sequence was opened with. Valid until it is closed.
  [[nodiscard]] const std::string& salt_bytes(SeqId seq) const {
    return access([&](const auto& p) -> const std::string& { return p.salt_bytes(seq); });
  }

  /// Shares the blocks: takes none, so there is always room. O(blocks).
  std::optional<Forked> try_fork(SeqId parent, Pos at) {
    return access([&](auto& p) { return p.try_fork(parent, at); });
  }

  /// Forgets the positions from `length` on. Throws std::invalid_argument if seq is not open, has an uncommitted
  /// extension or fewer positions, or if a group has dropped a row that the next one sees. O(blocks that are freed).
  void truncate(SeqId seq, Pos length) {
    access([&](auto& p) { p.truncate(seq, length); });
  }

  /// The cached blocks of the sequence stay, for later prompts.
  void close(SeqId seq) {
    access([&](auto& p) { p.close(seq); });
  }

  /// Protects the cached full blocks of a prefix from eviction until `unpin`; empty if there are none. Counts neither
  /// as a sequence nor as a hit. A prefix may be pinned any number of times. O(prefix.size()).
  std::optional<PrefixPin> try_pin(std::span<const Token> prefix, const Salt& salt = {}) {
    const std::optional<Opened> pinned = access([&](auto& p) { return p.try_pin(prefix, salt); });
    return pinned ? std::optional(PrefixPin{PinId(pinned->seq), pinned->cached}) : std::nullopt;
  }
  /// Throws std::invalid_argument if the pin is not valid: a pin cannot be removed twice.
  void unpin(PinId pin) {
    access([&](auto& p) { p.unpin(pin.record_); });
  }

  /// Reserves room for the full blocks of a prefix that are not cached, for rows that come from elsewhere: whoever
  /// calls it writes them, and says `arrive`. All or nothing: empty if there is no room. May evict. Counts neither as a
  /// sequence nor as a hit. With several groups, or one that drops positions, it reserves what a hit of just this
  /// length needs, in whole nodes of the index: for_each_expected names it. O(prefix.size()).
  std::optional<ExpectedPrefix> try_expect(std::span<const Token> prefix, const Salt& salt = {}) {
    return access([&](auto& p) {
      const auto expected = p.try_expect(prefix, salt);
      return expected ? std::optional(ExpectedPrefix{PinId(expected->pin), expected->cached, expected->blocks})
                      : std::nullopt;
    });
  }
  /// With several groups: f(ExpectedBlock) for each block that an expected prefix lacks, by group and position, and for
  /// the states of each kind. None with one group that keeps everything, after the arrival, or after `clear`. Views are
  /// valid during the call. Throws std::invalid_argument if the pin is not valid. O(blocks).
  template <class F>
  void for_each_expected(PinId pin, F&& f) const {
    if (grouped_) {
      grouped_->for_each_expected(pin.record_, f);
    }
  }
  /// A sequence with all positions of an expected prefix, whose rows may still be on their way: whoever opens it reads
  /// the rows of a layer once they are written. No prompt finds what it computes before publish_tokens names all of its
  /// tokens, which is right only once the prefix has arrived. Takes no block. Throws std::invalid_argument if the pin
  /// is not valid. O(blocks).
  SeqId open_expected(PinId pin) {
    return access([&](auto& p) { return p.open_expected(pin.record_); });
  }
  /// The rows of the first `length` tokens of an expected prefix are in place: their blocks become matchable. An equal
  /// block that was computed in the meantime stays, and the one that arrived is freed. False, and nothing has changed,
  /// if nothing is expected any more: all of it has arrived, or the cache was cleared, so that the rows are those of
  /// other weights. Throws std::invalid_argument if the pin is not valid, or unless `length` counts whole blocks, at
  /// least as many as before. Expected O(blocks that arrive * block_tokens).
  bool arrive(PinId pin, Pos length) {
    require(!grouped_, "groups", this->groups(), "one that keeps everything; otherwise give the tokens");
    return plain_->arrive(pin.record_, length);
  }
  /// The same of a whole prefix, with several groups, too: everything that for_each_expected named is written, and
  /// becomes matchable at once. False as above. Throws std::invalid_argument if the pin is not valid, or for another
  /// length than that of the expected prefix. Expected O(tokens * groups).
  bool arrive(PinId pin, std::span<const Token> prefix) {
    return grouped_ ? grouped_->arrive(pin.record_, prefix)
                    : plain_->arrive(pin.record_, checked_count(prefix.size(), "prefix.size()"));
  }

  /// Drops everything cached, for example after a change of weights. Open sequences keep their rows, which are not
  /// matchable any more; pins keep their blocks, which nobody finds, until `unpin`. O(blocks + sequences).
  void clear() noexcept {
    access([](auto& p) { p.clear(); });
  }

  /// f(BlockStored) for every cached block, parents before their children, each with the number of the next event: the
  /// state from which a listener starts, or starts again after it has lost events. O(cached blocks).
  template <class F>
  void for_each_cached(F&& f) const {
    access([&](const auto& p) { p.for_each_cached(f); });
  }

  /// f(CachedPrefix) for prefixes that together have all that a prompt could find, where there are several layer
  /// groups: see ListsCachedPrefixes. With one group of full attention there is none: see for_each_cached.
  template <class F>
  void for_each_cached_prefix(F&& f) const {
    if (grouped_) {
      grouped_->for_each_cached_prefix(f);
    }
  }

  /// f(NodeAdded) for every node of the index, parents before their children; none with one group that keeps
  /// everything. O(nodes).
  template <class F>
  void for_each_node(F&& f) const {
    if (grouped_) {
      grouped_->for_each_node(f);
    }
  }
  /// Of the cached states of one kind, the block behind this one; no_block behind the last one. O(1).
  [[nodiscard]] BlockId next_state_block(BlockId block) const noexcept {
    return grouped_ ? grouped_->next_state_block(block) : no_block;
  }
  /// Columns of a node of the index: groups, and behind them kinds of recurrent states: see IndexesNodes. O(1).
  [[nodiscard]] Index columns() const noexcept {
    return this->groups() + static_cast<Index>(this->group_rules().states.size());
  }
  /// Tokens of a node. O(1).
  [[nodiscard]] Pos node_tokens() const noexcept { return grouped_ ? grouped_->node_tokens() : config_.block_tokens; }
  /// Most nodes; their numbers are below it. O(1).
  [[nodiscard]] Index nodes() const noexcept { return grouped_ ? grouped_->nodes() : config_.blocks; }

  /// Logical time counts operations, except extensions within a last block. To have the durations of `Retention` in a
  /// unit of time, set it from a clock that ticks more often than operations happen, such as one of microseconds. It
  /// never goes back, and ends at 2^63.
  void set_time(std::uint64_t now) noexcept {
    access([&](auto& p) { p.set_time(now); });
  }
  /// The logical time now. O(1).
  [[nodiscard]] std::uint64_t time() const noexcept {
    return access([](const auto& p) { return p.time(); });
  }

  /// Only the pool limits an extension; opening and forking always find room.
  [[nodiscard]] LimitMet why_not_open(const OpenOptions& = {}) const noexcept { return {}; }
  /// The limit that try_extend would meet; Limit::none if it would find room. Throws as try_extend does.
  [[nodiscard]] LimitMet why_not_extend(SeqId seq, Pos count) const {
    return access([&](const auto& p) { return p.why_not_extend(seq, count); });
  }
  /// The limit that try_fork would meet; Limit::none if it would find room. Throws as try_fork does.
  [[nodiscard]] LimitMet why_not_fork(SeqId seq, Pos at) const {
    return access([&](const auto& p) { return p.why_not_fork(seq, at); });
  }

  /// Free and evictable blocks. O(1).
  [[nodiscard]] Index available() const noexcept {
    return access([](const auto& p) { return p.available(); });
  }

  /// Whether seq is the handle of an open sequence. O(1).
  [[nodiscard]] bool contains(SeqId seq) const noexcept {
    return access([&](const auto& p) { return p.contains(seq); });
  }
  /// Committed positions. Throws std::invalid_argument if seq is not open. O(1).
  [[nodiscard]] Pos length(SeqId seq) const {
    return access([&](const auto& p) { return p.length(seq); });
  }
  /// Committed and reserved positions. Throws std::invalid_argument if seq is not open. O(1).
  [[nodiscard]] Pos reserved(SeqId seq) const {
    return access([&](const auto& p) { return p.reserved(seq); });
  }
  /// The blocks of the reserved positions. Valid until the sequence is extended, committed, rolled back, truncated or
  /// closed. Throws std::invalid_argument if there are several groups, or one that drops positions: see group_blocks.
  [[nodiscard]] std::span<const BlockId> block_table(SeqId seq) const {
    require(!grouped_, "groups", this->groups(), "one that keeps everything; otherwise call group_blocks");
    return plain_->block_table(seq);
  }

  /// f(SlotRun) over the positions of range, ascending; with several groups, over those that group 0 retains. Throws
  /// std::invalid_argument unless range lies in [0, reserved(seq)). O(blocks of the range).
  template <class F>
  void for_each_run(SeqId seq, PosRange range, F&& f) const {
    if (grouped_) [[unlikely]] {
      grouped()->for_each_run(grouped()->at(seq), 0, range, f);
    } else {
      plain_->for_each_run(seq, range, f);
    }
  }
  using Groups::for_each_run;

  /// The blocks that sequences hold of one group, those that are cached, and hits lost because of it. O(blocks + table
  /// entries).
  [[nodiscard]] Stats stats(Index group) const {
    this->require_group(group);
    return grouped_ ? grouped_->stats(group) : plain_->stats();
  }

  /// f(SeqId) for every open sequence. O(sequences and pins that were ever there at once).
  template <class F>
  void for_each_sequence(F&& f) const {
    access([&](const auto& p) { p.for_each_sequence(f); });
  }

  /// Rows copied since construction, as in stats(). O(1).
  [[nodiscard]] Index copied_tokens() const noexcept {
    return access([](const auto& p) { return p.copied_tokens(); });
  }

  /// O(blocks + table entries).
  [[nodiscard]] Stats stats() const {
    return access([](const auto& p) { return p.stats(); });
  }
  /// O(blocks + table entries). Throws InvariantError.
  void verify() const {
    access([](const auto& p) { p.verify(); });
  }

 private:
  template <class>
  friend struct testing::Corruption;

  friend class detail::GroupMembers<PrefixShared>;
  [[nodiscard]] const auto* grouped() const noexcept { return grouped_ ? &grouped_->sequences() : nullptr; }

  Config config_;
};
static_assert(ExpectsPrefixes<PrefixShared<>> && IndexesNodes<PrefixShared<>> && HoldsStates<PrefixShared<>> &&
              BlockTablePolicy<PrefixShared<>> && GroupTablePolicy<PrefixShared<>> && CountsAvailable<PrefixShared<>> &&
              HasConfig<PrefixShared<>> && ListsSequences<PrefixShared<>> && MatchesPrefixes<PrefixShared<>> &&
              AdmitsRequests<PrefixShared<>> && PinsPrefixes<PrefixShared<>> && KeepsPrefixes<PrefixShared<>> &&
              ClearsCache<PrefixShared<>> && KeepsTime<PrefixShared<>> && EmitsEvents<PrefixShared<>> &&
              RestoresSequences<PrefixShared<>> && ExplainsRefusals<PrefixShared<>>);

}  // namespace v0
}  // namespace kvc
