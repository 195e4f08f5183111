// GroupMembers: the members by which a policy shows its layer groups and recurrent states.
#pragma once

#include <span>

#include "kvc/core/error.hpp"
#include "kvc/core/group_rule.hpp"
#include "kvc/core/types.hpp"
#include "kvc/policy/group_table.hpp"

namespace kvc {
inline namespace v0 {
namespace detail {

/// A base class with the members of HoldsGroups and HoldsStates that read, but for `stats`: their contracts are there.
/// `Policy` derives from it and has, beside the members of a policy for one group that keeps everything, one more,
/// private with this class as a friend:
///
///   grouped() const noexcept   | a pointer to the sequences of several groups (GroupTables or GroupRegions), or
///                              | nullptr where the policy has one group that keeps everything
///
/// A policy whose own members have the names of these says `using GroupMembers::name`. O(1) unless stated otherwise.
template <class Policy>
class GroupMembers {
 public:
  /// The layer groups.
  [[nodiscard]] const GroupRules& group_rules() const noexcept { return rules_; }
  /// How many they are.
  [[nodiscard]] Index groups() const noexcept { return static_cast<Index>(rules_.groups.size()); }

  /// Slots in a block of one group. Throws std::invalid_argument if there is no such group, as all that follow do.
  [[nodiscard]] Pos block_tokens(Index group) const {
    require_group(group);
    const auto* const grouped = self().grouped();
    return grouped ? grouped->block_tokens(group) : self().block_tokens();
  }
  /// Positions of a group that can be read. Throws std::invalid_argument, too, if seq is not open, as all that follow
  /// do.
  [[nodiscard]] Pos positions(SeqId seq, Index group) const {
    require_group(group);
    const auto* const grouped = self().grouped();
    return grouped ? grouped->positions(grouped->at(seq), group) : self().reserved(seq);
  }
  /// The positions of a group that the uncommitted extension reserves.
  [[nodiscard]] PosRange extension(SeqId seq, Index group) const {
    require_group(group);
    const auto* const grouped = self().grouped();
    return grouped ? grouped->extension(grouped->at(seq), group) : PosRange{self().length(seq), self().reserved(seq)};
  }
  /// The smallest length to which the group lets the sequence be cut, or forked at.
  [[nodiscard]] Pos retained_from(SeqId seq, Index group) const {
    require_group(group);
    const auto* const grouped = self().grouped();
    return grouped ? grouped->retained_from(grouped->at(seq), group) : (void(self().length(seq)), 0);
  }
  /// The blocks of a group. Valid until the sequence is extended, committed, rolled back, truncated or closed.
  template <class P = Policy>  // which is complete when this is called
    requires(P::shares_blocks)
  [[nodiscard]] GroupBlocks group_blocks(SeqId seq, Index group) const {
    require_group(group);
    const auto* const grouped = self().grouped();
    return grouped ? grouped->group_blocks(grouped->at(seq), group) : GroupBlocks{{}, 0, self().block_table(seq)};
  }
  /// f(SlotRun) over the positions of range that the group retains, ascending. O(runs).
  template <class F>
  void for_each_run(SeqId seq, Index group, PosRange range, F&& f) const {
    if (const auto* const grouped = self().grouped()) [[unlikely]] {
      require_group(group);
      grouped->for_each_run(grouped->at(seq), group, range, f);
    } else {
      self().for_each_run(seq, range, f);
    }
  }

  /// Lengths of which the sequence has recurrent states, ascending.
  [[nodiscard]] std::span<const Pos> state_lengths(SeqId seq) const {
    const auto* const grouped = self().grouped();
    return grouped ? grouped->state_lengths(grouped->at(seq)) : (void(self().length(seq)), std::span<const Pos>());
  }
  /// Whether the sequence has states after `length` tokens when all that is reserved is committed. O(states).
  [[nodiscard]] bool keeps_state(SeqId seq, Pos length) const {
    const auto* const grouped = self().grouped();
    return grouped ? grouped->keeps_state(grouped->at(seq), length) : (void(self().length(seq)), false);
  }
  /// The blocks of the states of one kind after `length` tokens; without `shares_blocks`, of a pool of that kind. Valid
  /// as group_blocks are. Throws std::invalid_argument, too, if there is no such kind or length.
  [[nodiscard]] std::span<const BlockId> state_blocks(SeqId seq, Index kind, Pos length) const {
    const auto* const grouped = self().grouped();
    require(grouped != nullptr, "kind", kind, "none: there are no recurrent layers");
    return grouped->state_blocks(grouped->at(seq), kind, length);
  }
  /// How the states of one kind lie in blocks.
  [[nodiscard]] StateSizes state_sizes(Index kind) const {
    const auto* const grouped = self().grouped();
    require(grouped != nullptr, "kind", kind, "none: there are no recurrent layers");
    return grouped->state_sizes(kind);
  }

 protected:
  /// Throws std::invalid_argument unless the rules are possible.
  explicit GroupMembers(const GroupRules& rules) : rules_(rules) { require_valid(rules); }

  /// Throws std::invalid_argument if there is no such group.
  void require_group(Index group) const { require_between(group, Index{0}, groups() - 1, "group"); }

 private:
  [[nodiscard]] const Policy& self() const noexcept { return static_cast<const Policy&>(*this); }

  GroupRules rules_;
};

}  // namespace detail
}  // namespace v0
}  // namespace kvc
