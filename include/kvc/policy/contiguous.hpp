// Contiguous: one allocation of variable size per sequence, in a fixed pool.
#pragma once

#include <memory>
#include <optional>
#include <span>
#include <string_view>
#include <utility>

#include "kvc/config.hpp"
#include "kvc/core/error.hpp"
#include "kvc/core/group_rule.hpp"
#include "kvc/core/limit.hpp"
#include "kvc/core/stats.hpp"
#include "kvc/core/types.hpp"
#include "kvc/policy/capabilities.hpp"
#include "kvc/policy/concept.hpp"
#include "kvc/policy/corruption.hpp"
#include "kvc/policy/detail/group_members.hpp"
#include "kvc/policy/detail/group_regions.hpp"
#include "kvc/policy/detail/plain_or_grouped.hpp"
#include "kvc/policy/detail/plain_regions.hpp"
#include "kvc/policy/detail/region_list.hpp"
#include "kvc/policy/detail/region_sizes.hpp"
#include "kvc/policy/open_options.hpp"
#include "kvc/policy/restore_options.hpp"
#include "kvc/policy/sequence_table.hpp"

namespace kvc {
inline namespace v0 {

/// One allocation of consecutive slots per sequence, in a pool that is a single block of `pool_tokens` slots. The
/// simplest policy, and the fastest to read: a sequence is one run. Its costs depend on the mode:
///
///   reserve   takes the maximum length at open. Never moves a sequence; wastes the slots that a sequence never uses.
///   grow      takes the slots that are needed. Grows a sequence in place if the slots behind it are free, and moves it
///             to a larger hole otherwise; a sequence that moves has both places until its extension is committed.
///             Leaves holes: slots may be free while no hole is large enough (Limit::fragmentation).
///
/// In stats(), a block is one slot.
///
/// With several layer groups, or one that does not keep everything, each group has a pool of its own, and does not lend
/// slots to another one. A group that drops rows keeps them in a ring: kept positions lie in front, and the slot of a
/// row that no query sees any more is used again. During an extension the rows before it that are retained and all of
/// its own have to be there. So a sequence needs of such a group at most
///
///   kept + min(window, chunk) - 1 + rewind + pass_tokens   slots, and never more than its most tokens.
///
///   reserve   takes these slots at open. A larger extension finds no room (Limit::pass_tokens) unless it fits all the
///             same, as the first ones of a sequence do.
///   grow      takes what an extension needs, and at commit frees what is not retained, but for a multiple of
///             growth_tokens that has room for another extension like it. A ring that moves, or grows while its rows
///             wrap, is copied: RowCopy::group is its group.
class Contiguous : public detail::GroupMembers<Contiguous>,
                   private detail::PlainOrGrouped<detail::PlainRegions, detail::GroupRegions> {
 public:
  enum class Mode { reserve, grow };
  using Fit = detail::RegionList::Fit;  ///< first: the lowest hole that is large enough; best: the smallest

  struct Config {
    Index sequences = 1;  ///< most sequences open at once
    Pos max_tokens = 0;   ///< most tokens of one sequence
    /// Slots in the pool, less than 2^31; 0 means sequences * max_tokens. With several layer groups, those in the pool
    /// of each that keeps everything. Another one has as many in proportion to what a sequence of max_tokens needs of
    /// it, and enough for one sequence; where pool_tokens is 0, enough for all.
    Index pool_tokens = 0;
    Mode mode = Mode::reserve;
    Fit fit = Fit::first;
    Pos growth_tokens = 16;  ///< grow mode: allocations are rounded up to a multiple of this where there is room
    /// Most tokens of one extension, for layer groups that drop rows; 0 means max_tokens, with which such a group takes
    /// no fewer slots than others. Without such groups it has no effect. In grow mode it only sizes the pools.
    Pos pass_tokens = 0;
    /// Recurrent layers: the most lengths of which one sequence has states, those of the extension included; 0 means as
    /// many as a sequence needs that asks for none beside its ends: 2 and the reserve for speculation.
    Pos states = 0;
  };

  static constexpr std::string_view name = "contiguous";
  static constexpr bool shares_blocks = false;

  /// Throws std::invalid_argument if a value of config or of rules is not allowed, and std::bad_alloc. O(sequences).
  explicit Contiguous(const Config& config, const GroupRules& rules = {})
      : GroupMembers(rules), config_(validated(config, rules)) {
    if (rules.is_plain()) {
      plain_.emplace(pool_tokens(config_), region_options(config_, 0));
    } else {
      grouped_ = std::make_unique<detail::GroupRegions>(rules, region_options(config_, rules.rewind));
    }
  }

  /// The configuration. O(1).
  [[nodiscard]] const Config& config() const noexcept { return config_; }
  /// 1: the pool is one block. O(1).
  [[nodiscard]] Index blocks() const noexcept { return 1; }
  /// Slots in the pool; with several layer groups, in that of the first. O(1).
  [[nodiscard]] Pos block_tokens() const noexcept {
    return grouped_ && groups() > 0 ? grouped_->block_tokens(0) : pool_tokens(config_);
  }
  using GroupMembers::block_tokens;

  /// Finds nothing in place. No room: config.sequences are open, or (reserve) no hole is large enough. O(holes).
  /// Throws std::invalid_argument if options.max_tokens is not between 0 and config.max_tokens.
  std::optional<Opened> try_open(std::span<const Token> prompt = {}, const OpenOptions& options = {}) {
    const Pos most = checked_most(options);
    const std::optional<SeqId> seq = access([&](auto& p) { return p.try_open(most); });
    if (!seq) {
      return std::nullopt;
    }
    prompt_tokens_ += static_cast<Index>(prompt.size());
    return Opened{*seq, 0};
  }

  /// No room: beyond the sequence's maximum, or (grow) no hole is large enough, or (reserve) a group that drops rows
  /// has no room for so many at once. O(holes).
  std::optional<Extension> try_extend(SeqId seq, Pos count, std::span<const Token> tokens = {}) {
    return try_extend(seq, count, tokens, {});
  }
  /// The same, with room for the recurrent states after `states_at` tokens, too: see HoldsStates. Throws
  /// std::invalid_argument, too, if the sequence would have states of more than config.states lengths.
  std::optional<Extension> try_extend(SeqId seq, Pos count, std::span<const Token> tokens,
                                      std::span<const Pos> states_at) {
    if (grouped_) [[unlikely]] {
      return grouped_->try_extend(seq, grouped_->at(seq).lengths.checked_extension(seq, count, tokens.size()),
                                  states_at);
    }
    require(states_at.empty(), "states_at.size()", states_at.size(), "0: there are no recurrent layers");
    return plain_->try_extend(seq, count, tokens.size());
  }

  /// Reserves the rows of a sequence that was computed elsewhere: see RestoresSequences. O(holes).
  std::optional<Extension> try_restore(SeqId seq, const RestoreOptions& options) {
    detail::require_valid(options, group_rules());
    lengths(seq).check_restore(seq);
    return grouped_ ? grouped_->try_restore(seq, options) : try_extend(seq, options.length);
  }

  /// The reserved positions count from now on. Throws std::invalid_argument if seq has no uncommitted extension.
  /// O(holes).
  void commit(SeqId seq) {
    access([&](auto& p) { p.commit(seq); });
  }
  /// A sequence that moved returns to its place. O(holes).
  void rollback(SeqId seq) noexcept {
    access([&](auto& p) { p.rollback(seq); });
  }
  /// Copies the rows: two contiguous sequences cannot share any. No room: as try_open. O(holes).
  std::optional<Forked> try_fork(SeqId parent, Pos at) {
    return access([&](auto& p) { return p.try_fork(parent, at); });
  }
  /// Forgets the positions from `length` on; in grow mode the slots behind the new end are free again. Throws
  /// std::invalid_argument if seq is not open, has an uncommitted extension or fewer positions, or if a group has
  /// dropped a row that the next one sees. O(holes).
  void truncate(SeqId seq, Pos length) {
    access([&](auto& p) { p.truncate(seq, length); });
  }
  /// Forgets the sequence, and what it has reserved. Throws std::invalid_argument if seq is not open. O(holes).
  void close(SeqId seq) {
    access([&](auto& p) { p.close(seq); });
  }

  /// Which limit a new sequence, an extension or a fork would meet: `sequences`, `max_tokens`, `pass_tokens`, the pool,
  /// or fragmentation. O(holes).
  [[nodiscard]] LimitMet why_not_open(const OpenOptions& options = {}) const {
    const Pos most = checked_most(options);
    return access([&](const auto& p) { return p.why_not_open(most); });
  }
  /// The limit that try_extend would meet; Limit::none if it would find room. Throws as try_extend does.
  [[nodiscard]] LimitMet why_not_extend(SeqId seq, Pos count) const {
    if (grouped_) [[unlikely]] {
      const auto& s = grouped_->at(seq);
      return grouped_->why_not_extend(s, s.lengths.checked_extension(seq, count, 0));
    }
    return plain_->why_not_extend(seq, count);
  }
  /// The limit that try_fork would meet; Limit::none if it would find room. Throws as try_fork does.
  [[nodiscard]] LimitMet why_not_fork(SeqId seq, Pos at) const {
    return access([&](const auto& p) { return p.why_not_fork(seq, at); });
  }

  /// Free slots, in holes of any size, of all layer groups. O(1).
  [[nodiscard]] Index available() const noexcept {
    return access([](const auto& p) { return p.available(); });
  }
  /// Most tokens of any sequence. O(1).
  [[nodiscard]] Pos max_tokens() const noexcept { return config_.max_tokens; }
  /// All slots of a sequence, used or not. Throws std::invalid_argument if seq is not open, or there are several layer
  /// groups, or one that drops positions. O(1).
  [[nodiscard]] SlotRun allocation(SeqId seq) const {
    require(!grouped_, "groups", groups(), "one that keeps everything");
    const detail::PlainRegions::Sequence& s = plain_->at(seq);
    return {BlockId{0}, s.start, s.capacity, 0};
  }

  /// Whether seq is the handle of an open sequence. O(1).
  [[nodiscard]] bool contains(SeqId seq) const noexcept {
    return access([&](const auto& p) { return p.contains(seq); });
  }
  /// Committed positions. Throws std::invalid_argument if seq is not open. O(1).
  [[nodiscard]] Pos length(SeqId seq) const { return lengths(seq).committed; }
  /// Committed and reserved positions. Throws std::invalid_argument if seq is not open. O(1).
  [[nodiscard]] Pos reserved(SeqId seq) const { return lengths(seq).reserved; }

  /// f(SlotRun) with one run, unless the range is empty; with several groups, with at most three, over the positions
  /// that group 0 retains. O(1).
  template <class F>
  void for_each_run(SeqId seq, PosRange range, F&& f) const {
    if (grouped_) [[unlikely]] {
      grouped_->for_each_run(grouped_->at(seq), 0, range, f);
    } else {
      plain_->for_each_run(seq, range, f);
    }
  }
  using GroupMembers::for_each_run;

  /// f(SeqId) for every open sequence. O(sequences that were ever open at once).
  template <class F>
  void for_each_sequence(F&& f) const {
    access([&](const auto& p) { p.for_each_handle([&](SeqId seq, const auto&) { f(seq); }); });
  }

  /// Rows copied since construction, as in stats(). O(1).
  [[nodiscard]] Index copied_tokens() const noexcept {
    return access([](const auto& p) { return p.copied_tokens(); });
  }
  /// O(sequences + holes).
  [[nodiscard]] Stats stats() const {
    Stats stats;
    stats.block_tokens = 1;
    stats.prompt_tokens = prompt_tokens_;
    access([&](const auto& p) { p.add_to(stats); });
    return stats;
  }
  /// The pool of one group, and its rows. O(sequences + holes).
  [[nodiscard]] Stats stats(Index group) const {
    require_group(group);
    if (!grouped_) {
      return stats();
    }
    Stats stats;
    stats.block_tokens = 1;
    stats.sequences = grouped_->size();
    grouped_->add_to(stats, group);
    return stats;
  }
  /// Sequences and holes tile the pool of each group: no overlap, no gap. O(n log n). Throws InvariantError.
  void verify() const {
    access([](const auto& p) { p.verify(); });
  }

 private:
  template <class>
  friend struct testing::Corruption;

  static Config validated(const Config& config, const GroupRules& rules) {
    require_between(config.sequences, Index{1}, Index{max_pos}, "config.sequences");
    require_between(config.max_tokens, Pos{1}, max_pos, "config.max_tokens");
    require_between(config.growth_tokens, Pos{1}, max_pos, "config.growth_tokens");
    require_between(config.pass_tokens, Pos{0}, max_pos, "config.pass_tokens");
    require(config.states == 0 || config.states >= rules.rewind + 2, "config.states", config.states,
            "0, or at least 2 and the reserve for speculation");
    if (!rules.is_plain() && config.pool_tokens == 0) {
      return config;  // the pool of each group has a size of its own
    }
    require_between(config.pool_tokens == 0 ? config.sequences * config.max_tokens : config.pool_tokens, Index{1},
                    Index{max_pos},
                    config.pool_tokens == 0 ? "config.sequences * config.max_tokens" : "config.pool_tokens");
    return config;
  }
  static Pos pool_tokens(const Config& config) noexcept {
    return static_cast<Pos>(config.pool_tokens == 0 ? config.sequences * config.max_tokens : config.pool_tokens);
  }
  static detail::RegionOptions region_options(const Config& config, Pos rewind) noexcept {
    return {.reserves = config.mode == Mode::reserve,
            .fit = config.fit,
            .sequences = config.sequences,
            .max_tokens = config.max_tokens,
            .pass_tokens = config.pass_tokens == 0 ? config.max_tokens : config.pass_tokens,
            .pool_tokens = config.pool_tokens,
            .growth_tokens = config.growth_tokens,
            .states = config.states == 0 ? Index{rewind} + 2 : config.states};
  }
  /// The most tokens of a sequence that is opened so.
  [[nodiscard]] Pos checked_most(const OpenOptions& options) const {
    require_between(options.max_tokens, Pos{0}, config_.max_tokens, "options.max_tokens");
    return options.max_tokens == 0 ? config_.max_tokens : options.max_tokens;
  }

  friend class detail::GroupMembers<Contiguous>;
  [[nodiscard]] const detail::GroupRegions* grouped() const noexcept { return grouped_.get(); }
  [[nodiscard]] const SequenceLengths& lengths(SeqId seq) const {
    return grouped_ ? grouped_->at(seq).lengths : plain_->at(seq).lengths;
  }

  Config config_;
  Index prompt_tokens_ = 0;
};
static_assert(HoldsStates<Contiguous> && HoldsGroups<Contiguous> && CountsAvailable<Contiguous> &&
              HasConfig<Contiguous> && BoundsSequences<Contiguous> && ListsSequences<Contiguous> &&
              ExplainsRefusals<Contiguous> && RestoresSequences<Contiguous>);

}  // namespace v0
}  // namespace kvc
