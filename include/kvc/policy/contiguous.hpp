// Contiguous: one allocation of variable size per sequence, in a fixed pool.
#pragma once

#include <algorithm>
#include <memory>
#include <optional>
#include <span>
#include <string_view>
#include <utility>
#include <vector>

#include "kvc/core/error.hpp"
#include "kvc/core/group_rule.hpp"
#include "kvc/core/limit.hpp"
#include "kvc/core/stats.hpp"
#include "kvc/core/types.hpp"
#include "kvc/policy/capabilities.hpp"
#include "kvc/policy/concept.hpp"
#include "kvc/policy/corruption.hpp"
#include "kvc/policy/detail/group_regions.hpp"
#include "kvc/policy/detail/region_list.hpp"
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
class Contiguous {
 public:
  enum class Mode { reserve, grow };
  using Fit = detail::RegionList::Fit;  ///< first: the lowest hole that is large enough; best: the smallest

  struct Config {
    Index sequences = 1;  ///< most sequences open at once
    Pos max_tokens = 0;   ///< most tokens of one sequence
    /// Slots in the pool, less than 2^31; 0 means sequences * max_tokens. With several layer groups, those in the pool of
    /// each that keeps everything. Another one has as many in proportion to what a sequence of max_tokens needs of it,
    /// and enough for one sequence; where pool_tokens is 0, enough for all.
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
      : config_(validated(config, rules)),
        rules_(rules),
        holes_(rules.is_plain() ? pool_tokens(config_) : 1, rules.is_plain() ? 2 * config_.sequences : 1) {
    if (!rules.is_plain()) {
      grouped_ = std::make_unique<detail::GroupRegions>(rules_, region_options(config_, rules_.rewind));
    }
  }

  /// The configuration. O(1).
  [[nodiscard]] const Config& config() const noexcept { return config_; }
  /// 1: the pool is one block. O(1).
  [[nodiscard]] Index blocks() const noexcept { return 1; }
  /// Slots in the pool; with several layer groups, in that of the first. O(1).
  [[nodiscard]] Pos block_tokens() const noexcept {
    return grouped_ && groups() > 0 ? grouped_->slots(0) : pool_tokens(config_);
  }

  /// Finds nothing in place. No room: config.sequences are open, or (reserve) no hole is large enough. O(holes).
  /// Throws std::invalid_argument if options.max_tokens is not between 0 and config.max_tokens.
  std::optional<Opened> try_open(std::span<const Token> prompt = {}, const OpenOptions& options = {}) {
    require_between(options.max_tokens, Pos{0}, config_.max_tokens, "options.max_tokens");
    const Pos most = options.max_tokens == 0 ? config_.max_tokens : options.max_tokens;
    const std::optional<SeqId> seq = grouped_ ? grouped_->try_open(most) : try_insert(most, Pos{0});
    if (!seq) {
      return std::nullopt;
    }
    prompt_tokens_ += static_cast<Index>(prompt.size());
    return Opened{*seq, 0};
  }

  /// No room: beyond the sequence's maximum, or (grow) no hole is large enough, or (reserve) a group that drops rows has
  /// no room for so many at once. O(holes).
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
    Sequence& s = sequences_.at(seq);
    const PosRange range = s.lengths.checked_extension(seq, count, tokens.size());
    const Pos need = range.last;
    std::span<const RowCopy> copies;
    s.committed_capacity = s.capacity;
    if (need > s.capacity && (config_.mode == Mode::reserve || need > s.most || !grow(s, need, copies))) {
      return std::nullopt;
    }
    s.lengths.reserve(range);
    return Extension{range, copies};
  }

  /// Reserves the rows of a sequence that was computed elsewhere: see RestoresSequences. O(holes).
  std::optional<Extension> try_restore(SeqId seq, const RestoreOptions& options) {
    detail::require_valid(options, rules_);
    lengths(seq).check_restore(seq);
    return grouped_ ? grouped_->try_restore(seq, options) : try_extend(seq, options.length);
  }

  /// The reserved positions count from now on. Throws std::invalid_argument if seq has no uncommitted extension.
  /// O(holes).
  void commit(SeqId seq) {
    if (grouped_) [[unlikely]] {
      grouped_->commit(seq);
      return;
    }
    Sequence& s = sequences_.at(seq);
    s.lengths.check_uncommitted(seq);
    s.lengths.commit();
    holes_.free(std::exchange(s.replaced, {}));
  }

  /// A sequence that moved returns to its place.
  void rollback(SeqId seq) noexcept {
    if (grouped_) [[unlikely]] {
      grouped_->rollback(seq);
      return;
    }
    if (Sequence* const open = sequences_.find(seq); open != nullptr && open->lengths.uncommitted) {
      Sequence& s = *open;
      shrink(s, s.replaced.size > 0 ? 0 : s.committed_capacity);
      if (s.replaced.size > 0) {
        s.start = s.replaced.start;
        s.capacity = std::exchange(s.replaced, {}).size;
      }
      s.lengths.rollback();
    }
  }

  /// Copies the rows: two contiguous sequences cannot share any. No room: as try_open.
  std::optional<Forked> try_fork(SeqId parent, Pos at) {
    if (grouped_) [[unlikely]] {
      return grouped_->try_fork(parent, at);
    }
    const Sequence& p = sequences_.at(parent);
    p.lengths.check_fork(at);
    const Pos start = p.start;
    const std::optional<SeqId> seq = try_insert(p.most, at);
    if (!seq) {
      return std::nullopt;
    }
    Sequence& s = sequences_.at(*seq);
    s.lengths.set(at);
    return Forked{*seq, copy_rows(start, s.start, at)};
  }

  /// In grow mode the slots behind the new end are free again.
  void truncate(SeqId seq, Pos length) {
    if (grouped_) [[unlikely]] {
      grouped_->truncate(seq, length);
      return;
    }
    Sequence& s = sequences_.at(seq);
    s.lengths.check_truncate(seq, length);
    s.lengths.set(length);
    if (config_.mode == Mode::grow) {
      shrink(s, std::min(s.capacity, rounded(length, s.most)));
    }
  }

  /// Forgets the sequence, and what it has reserved. Throws std::invalid_argument if seq is not open. O(holes).
  void close(SeqId seq) {
    if (grouped_) [[unlikely]] {
      grouped_->close(seq);
      return;
    }
    Sequence& s = sequences_.at(seq);
    holes_.free(s.replaced);
    shrink(s, 0);
    sequences_.erase(seq);
  }

  /// Which limit a new sequence, an extension or a fork would meet: `sequences`, `max_tokens`, `pass_tokens`, the pool,
  /// or fragmentation. O(holes).
  [[nodiscard]] LimitMet why_not_open(const OpenOptions& options = {}) const {
    require_between(options.max_tokens, Pos{0}, config_.max_tokens, "options.max_tokens");
    const Pos most = options.max_tokens == 0 ? config_.max_tokens : options.max_tokens;
    return grouped_ ? grouped_->why_not_open(most) : why_not_insert(most, 0);
  }
  /// The limit that try_extend would meet; Limit::none if it would find room. Throws as try_extend does.
  [[nodiscard]] LimitMet why_not_extend(SeqId seq, Pos count) const {
    if (grouped_) [[unlikely]] {
      const auto& s = grouped_->at(seq);
      return grouped_->why_not_extend(s, s.lengths.checked_extension(seq, count, 0));
    }
    const Sequence& s = sequences_.at(seq);
    const Pos need = s.lengths.checked_extension(seq, count, 0).last;
    if (need > s.most) {
      return {Limit::max_tokens, s.most, need};
    }
    // In grow mode only: beside its place, or in one piece elsewhere, while it has both.
    const bool fits = need <= s.capacity || holes_.largest() >= need ||
                      (s.capacity > 0 && holes_.free_at(s.start + s.capacity) >= need - s.capacity);
    return fits ? LimitMet{} : why_no_hole(need);
  }
  /// The limit that try_fork would meet; Limit::none if it would find room. Throws as try_fork does.
  [[nodiscard]] LimitMet why_not_fork(SeqId seq, Pos at) const {
    if (grouped_) [[unlikely]] {
      return grouped_->why_not_fork(seq, at);
    }
    sequences_.at(seq).lengths.check_fork(at);
    return why_not_insert(sequences_.at(seq).most, at);
  }

  /// Free slots, in holes of any size, of all layer groups. O(1).
  [[nodiscard]] Index available() const noexcept { return grouped_ ? grouped_->available() : holes_.available(); }
  /// Most tokens of any sequence. O(1).
  [[nodiscard]] Pos max_tokens() const noexcept { return config_.max_tokens; }
  /// All slots of a sequence, used or not. Throws std::invalid_argument if seq is not open, or there are several layer
  /// groups, or one that drops positions. O(1).
  [[nodiscard]] SlotRun allocation(SeqId seq) const {
    require(!grouped_, "groups", groups(), "one that keeps everything");
    const Sequence& s = sequences_.at(seq);
    return {BlockId{0}, s.start, s.capacity, 0};
  }

  /// Whether seq is the handle of an open sequence. O(1).
  [[nodiscard]] bool contains(SeqId seq) const noexcept {
    return grouped_ ? grouped_->contains(seq) : sequences_.contains(seq);
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
      grouped_->for_each_run(seq, 0, range, f);
      return;
    }
    const Sequence& s = sequences_.at(seq);
    s.lengths.check_range(range);
    if (!range.empty()) {
      f(SlotRun{BlockId{0}, s.start + range.first, range.size(), range.first});
    }
  }

  /// The layer groups. O(1), as all of the following but stats.
  [[nodiscard]] const GroupRules& group_rules() const noexcept { return rules_; }
  /// How many they are.
  [[nodiscard]] Index groups() const noexcept { return static_cast<Index>(rules_.groups.size()); }
  /// Slots in the pool of one group.
  [[nodiscard]] Pos block_tokens(Index group) const {
    require_group(group);
    return grouped_ ? grouped_->slots(group) : block_tokens();
  }
  /// Positions of a group that can be read: see HoldsGroups, as for all that follow.
  [[nodiscard]] Pos positions(SeqId seq, Index group) const {
    require_group(group);
    return grouped_ ? grouped_->positions(grouped_->at(seq), group) : reserved(seq);
  }
  /// The positions of a group that the uncommitted extension reserves.
  [[nodiscard]] PosRange extension(SeqId seq, Index group) const {
    require_group(group);
    return grouped_ ? grouped_->extension(grouped_->at(seq), group) : PosRange{length(seq), reserved(seq)};
  }
  /// The smallest length to which the group lets the sequence be cut, or forked at.
  [[nodiscard]] Pos retained_from(SeqId seq, Index group) const {
    require_group(group);
    return grouped_ ? grouped_->retained_from(grouped_->at(seq), group) : (void(lengths(seq)), 0);
  }
  /// f(SlotRun) over the positions of range that the group retains, ascending: at most three runs.
  template <class F>
  void for_each_run(SeqId seq, Index group, PosRange range, F&& f) const {
    if (grouped_) [[unlikely]] {
      require_group(group);
      grouped_->for_each_run(seq, group, range, f);
    } else {
      for_each_run(seq, range, f);
    }
  }
  /// Lengths of which the sequence has recurrent states: see HoldsStates, as for the next two.
  [[nodiscard]] std::span<const Pos> state_lengths(SeqId seq) const {
    return grouped_ ? grouped_->state_lengths(grouped_->at(seq)) : (void(lengths(seq)), std::span<const Pos>());
  }
  /// Whether the sequence has states after `length` tokens when all that is reserved is committed: see HoldsStates.
  [[nodiscard]] bool keeps_state(SeqId seq, Pos length) const {
    return grouped_ ? grouped_->keeps_state(grouped_->at(seq), length) : (void(lengths(seq)), false);
  }
  /// The block of the states of one kind, of a pool of that kind. Valid until the sequence is extended, committed,
  /// truncated or closed.
  [[nodiscard]] std::span<const BlockId> state_blocks(SeqId seq, Index kind, Pos length) const {
    require(grouped_ != nullptr, "kind", kind, "none: there are no recurrent layers");
    return grouped_->state_blocks(grouped_->at(seq), kind, length);
  }
  /// How the states of one kind lie in blocks: all in one.
  [[nodiscard]] StateSizes state_sizes(Index kind) const {
    require(grouped_ != nullptr, "kind", kind, "none: there are no recurrent layers");
    return grouped_->state_sizes(kind);
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

  /// f(SeqId) for every open sequence. O(sequences that were ever open at once).
  template <class F>
  void for_each_sequence(F&& f) const {
    const auto visit = [&](SeqId seq, const auto&) { f(seq); };
    grouped_ ? grouped_->for_each_handle(visit) : sequences_.for_each_handle(visit);
  }

  /// Rows copied since construction, as in stats(). O(1).
  [[nodiscard]] Index copied_tokens() const noexcept { return grouped_ ? grouped_->copied_tokens() : copied_tokens_; }

  /// O(sequences + holes).
  [[nodiscard]] Stats stats() const {
    Stats stats;
    stats.block_tokens = 1;
    stats.prompt_tokens = prompt_tokens_;
    if (grouped_) {
      grouped_->add_to(stats);
      return stats;
    }
    stats.blocks_total = block_tokens();
    stats.blocks_free = holes_.available();
    stats.blocks_referenced = stats.blocks_total - stats.blocks_free;
    stats.largest_free_run = holes_.largest();
    stats.sequences = sequences_.size();
    sequences_.for_each([&](const Sequence& s) { stats.tokens_stored += s.lengths.committed; });
    stats.tokens_reserved = stats.blocks_referenced;
    stats.copies = copies_;
    stats.copied_tokens = copied_tokens_;
    return stats;
  }

  /// Sequences and holes tile the pool: no overlap, no gap. O(n log n). Throws InvariantError.
  void verify() const {
    if (grouped_) {
      grouped_->verify();
      return;
    }
    std::vector<detail::Region> taken;
    sequences_.for_each([&](const Sequence& s) {
      if (s.lengths.committed > s.lengths.reserved || s.lengths.reserved > s.capacity || s.capacity > s.most) {
        throw_error(InvariantError("kvc: a sequence is longer than its allocation"));
      }
      if (s.capacity > 0) {
        taken.push_back({s.start, s.capacity});
      }
      if (s.replaced.size > 0) {
        taken.push_back(s.replaced);
      }
    });
    holes_.verify(std::move(taken));
  }

 private:
  template <class>
  friend struct testing::Corruption;

  struct Sequence {
    SequenceLengths lengths;
    Pos start = 0;
    Pos capacity = 0;
    Pos most = 0;                // the most tokens of this sequence
    Pos committed_capacity = 0;  // before the uncommitted extension
    detail::Region replaced;     // its place before the uncommitted extension moved it
  };

  static Config validated(const Config& config, const GroupRules& rules) {
    require_valid(rules);
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

  [[nodiscard]] const SequenceLengths& lengths(SeqId seq) const {
    return grouped_ ? grouped_->at(seq).lengths : sequences_.at(seq).lengths;
  }
  void require_group(Index group) const { require_between(group, Index{0}, groups() - 1, "group"); }

  [[nodiscard]] Pos rounded(Pos need, Pos most) const noexcept {
    const Index up = ceil_div<Index>(need, config_.growth_tokens) * config_.growth_tokens;
    return static_cast<Pos>(std::min<Index>(up, most));
  }

  [[nodiscard]] LimitMet why_no_hole(Pos need) const noexcept {
    return holes_.available() < need ? LimitMet{Limit::pool, holes_.available(), need}
                                     : LimitMet{Limit::fragmentation, holes_.largest(), need};
  }
  [[nodiscard]] LimitMet why_not_insert(Pos most, Pos need) const noexcept {
    if (sequences_.size() >= config_.sequences) {
      return {Limit::sequences, config_.sequences, sequences_.size() + 1};
    }
    const Pos wanted = config_.mode == Mode::reserve ? most : need;
    return holes_.largest() >= wanted ? LimitMet{} : why_no_hole(wanted);
  }

  /// A new sequence with its first allocation: all of `most` (reserve), or `need` rounded up.
  std::optional<SeqId> try_insert(Pos most, Pos need) {
    if (sequences_.size() >= config_.sequences) {
      return std::nullopt;
    }
    const Pos want = config_.mode == Mode::reserve ? most : rounded(need, most);
    const std::optional<detail::Region> region =
        holes_.find(want, config_.mode == Mode::reserve ? most : need, config_.fit);
    if (!region) {
      return std::nullopt;
    }
    const SeqId seq = sequences_.insert();
    holes_.allocate(*region);
    Sequence& s = sequences_.at(seq);
    s.most = most;
    s.start = region->start;
    s.capacity = region->size;
    return seq;
  }

  /// Makes room for `need` slots, in place or elsewhere. Changes nothing if there is none.
  bool grow(Sequence& s, Pos need, std::span<const RowCopy>& copies) noexcept {
    const Pos want = rounded(need, s.most);
    if (const Pos behind = holes_.free_at(s.start + s.capacity); behind >= need - s.capacity && s.capacity > 0) {
      const Pos more = std::min(behind, want - s.capacity);
      holes_.allocate({s.start + s.capacity, more});
      s.capacity += more;
      return true;
    }
    const std::optional<detail::Region> region = holes_.find(want, need, config_.fit);
    if (!region) {
      return false;
    }
    holes_.allocate(*region);
    copies = copy_rows(s.start, region->start, s.lengths.committed);
    s.replaced = {s.start, s.capacity};
    s.start = region->start;
    s.capacity = region->size;
    return true;
  }

  void shrink(Sequence& s, Pos capacity) noexcept {
    if (capacity < s.capacity) {
      holes_.free({s.start + capacity, s.capacity - capacity});
      s.capacity = capacity;
    }
  }

  /// The list of copies that moves or forks `count` rows: empty if there are none.
  std::span<const RowCopy> copy_rows(Pos from, Pos to, Pos count) noexcept {
    if (count == 0) {
      return {};
    }
    copy_ = {BlockId{0}, BlockId{0}, from, to, count};
    ++copies_;
    copied_tokens_ += count;
    return {&copy_, 1};
  }

  Config config_;
  GroupRules rules_;
  detail::RegionList holes_;  // these three of one group that keeps everything
  SequenceTable<Sequence> sequences_;
  RowCopy copy_;                                   // of the last operation that copied rows
  std::unique_ptr<detail::GroupRegions> grouped_;  // of other groups
  Index prompt_tokens_ = 0;
  Index copies_ = 0;
  Index copied_tokens_ = 0;
};
static_assert(HoldsStates<Contiguous> && HoldsGroups<Contiguous> && CountsAvailable<Contiguous> &&
              HasConfig<Contiguous> && BoundsSequences<Contiguous> && ListsSequences<Contiguous> &&
              ExplainsRefusals<Contiguous> && RestoresSequences<Contiguous>);

}  // namespace v0
}  // namespace kvc
