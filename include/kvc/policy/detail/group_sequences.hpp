// GroupSequences: what sequences of several layer groups have in common, wherever their rows lie.
#pragma once

#include <algorithm>
#include <cstddef>
#include <span>
#include <utility>

#include "kvc/config.hpp"
#include "kvc/core/error.hpp"
#include "kvc/core/group_rule.hpp"
#include "kvc/core/types.hpp"
#include "kvc/policy/detail/state_table.hpp"
#include "kvc/policy/sequence_table.hpp"

namespace kvc {
inline namespace v0 {
namespace detail {

/// The beginning of the record of a sequence.
struct GroupSequence {
  SequenceLengths lengths;
  StateTable states;        ///< of recurrent layers
  bool has_cross = false;   ///< rows of other inputs are committed
  bool adds_cross = false;  ///< the uncommitted extension reserves them

  /// Forgets everything, but not its memory.
  void reset() noexcept {
    lengths = {};
    states.clear();
    has_cross = adds_cross = false;
  }
};

/// The open sequences of a policy, and the positions that each has in each group. `Sequence` derives from
/// GroupSequence. A base of GroupTables and GroupRegions, which know where the rows lie. Members are O(1) unless they
/// say otherwise; those that take a handle throw std::invalid_argument if no such sequence is open.
template <class Sequence>
class GroupSequences {
 public:
  [[nodiscard]] const GroupRules& rules() const noexcept { return rules_; }
  [[nodiscard]] Index groups() const noexcept { return std::ssize(rules_.groups); }
  /// Whether a group holds rows of another input.
  [[nodiscard]] bool is_cross(std::size_t group) const noexcept { return rules_.groups[group].cross_rows > 0; }
  [[nodiscard]] bool has_states() const noexcept { return has_states_; }

  [[nodiscard]] KVC_ALWAYS_INLINE Sequence& at(SeqId seq) { return sequences_.at(seq); }
  [[nodiscard]] KVC_ALWAYS_INLINE const Sequence& at(SeqId seq) const { return sequences_.at(seq); }
  [[nodiscard]] bool contains(SeqId seq) const noexcept { return sequences_.contains(seq); }
  /// Open sequences.
  [[nodiscard]] Index size() const noexcept { return sequences_.size(); }
  /// f(sequence) for all open ones. O(sequences that were ever open at once), as for_each_handle.
  template <class F>
  void for_each(F&& f) const {
    sequences_.for_each(f);
  }
  template <class F>
  void for_each(F&& f) {
    sequences_.for_each(f);
  }
  /// f(SeqId, sequence) for all open ones.
  template <class F>
  void for_each_handle(F&& f) const {
    sequences_.for_each_handle(f);
  }

  /// The length by which the groups of a sequence know what they retain: the committed one, less the reserve.
  [[nodiscard]] Pos settled(const Sequence& s) const noexcept {
    return std::max(s.lengths.committed - rules_.rewind, 0);
  }
  /// The positions of a group that the uncommitted extension reserves: those of the sequence, or all rows of another
  /// input where the extension is the first.
  [[nodiscard]] PosRange extension(const Sequence& s, Index group) const noexcept {
    const Pos cross = cross_rows(group);
    return cross > 0 ? PosRange{0, s.adds_cross ? cross : 0} : PosRange{s.lengths.committed, s.lengths.reserved};
  }
  /// Positions of a group that can be read: committed and reserved ones.
  [[nodiscard]] Pos positions(const Sequence& s, Index group) const noexcept {
    const Pos cross = cross_rows(group);
    return cross > 0 ? (s.has_cross || s.adds_cross ? cross : 0) : s.lengths.reserved;
  }
  /// Positions of a group that are committed.
  [[nodiscard]] Pos committed(const Sequence& s, std::size_t group) const noexcept {
    return is_cross(group) ? (s.has_cross ? rules_.groups[group].cross_rows : 0) : s.lengths.committed;
  }
  /// Lengths of which a sequence has states, those of the uncommitted extension last.
  [[nodiscard]] std::span<const Pos> state_lengths(const Sequence& s) const noexcept { return s.states.lengths(); }
  /// Whether a sequence has states after `length` tokens when all that is reserved is committed. O(states).
  ///   grain   see KeptStates
  [[nodiscard]] bool keeps_state(const Sequence& s, Pos length, Pos grain = 0) const noexcept {
    return s.states.keeps(length, std::max(s.lengths.reserved - rules_.rewind, 0), grain);
  }

 protected:
  explicit GroupSequences(const GroupRules& rules) : rules_(rules), has_states_(!rules.states.empty()) {
    for (const GroupRule& rule : rules_.groups) {
      has_cross_groups_ = has_cross_groups_ || rule.cross_rows > 0;
    }
  }
  ~GroupSequences() = default;

  /// Throws std::invalid_argument unless the range lies in the positions of a group.
  void check_range(const Sequence& s, Index group, PosRange range) const {
    const Pos end = groups() == 0 ? s.lengths.reserved : positions(s, group);
    require(0 <= range.first && range.first <= range.last && range.last <= end, "range", range,
            "within the positions of the sequence");
  }
  /// Whether the next extension of a sequence reserves the rows of other inputs.
  [[nodiscard]] bool wants_cross(const Sequence& s) const noexcept { return has_cross_groups_ && !s.has_cross; }

  GroupRules rules_;
  SequenceTable<Sequence> sequences_;

 private:
  [[nodiscard]] Pos cross_rows(Index group) const noexcept {
    return rules_.groups[static_cast<std::size_t>(group)].cross_rows;
  }

  bool has_cross_groups_ = false;
  bool has_states_;
};

}  // namespace detail
}  // namespace v0
}  // namespace kvc
