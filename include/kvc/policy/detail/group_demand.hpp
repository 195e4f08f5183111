// GroupDemand: how many blocks a sequence will hold in all layer groups.
#pragma once

#include <algorithm>
#include <cstddef>
#include <span>

#include "kvc/core/group_rule.hpp"
#include "kvc/core/retained.hpp"
#include "kvc/core/types.hpp"
#include "kvc/policy/detail/block_sizes.hpp"

namespace kvc {
inline namespace v0 {
namespace detail {

/// Counts for admission, by arithmetic alone. Groups hold a block more than they retain, as those of GroupTables with
/// slack do.
class GroupDemand {
 public:
  GroupDemand(const GroupRules& rules, const BlockSizes& sizes) : rules_(rules), sizes_(sizes) {}

  /// Whether a group never drops a block.
  [[nodiscard]] bool keeps(std::size_t group, Pos number) const noexcept {
    const Retained& retained = rules_.groups[group].retained;
    return retained.everything() || number < ceil_div(retained.kept, sizes_.tokens[group]);
  }
  /// A bound of peak_blocks. O(groups).
  [[nodiscard]] Index most_blocks(Pos from, Pos size, Pos pass, Pos reserve) const noexcept {
    Index prefill = states(), decode = prefill;
    for (std::size_t g = 0; g < rules_.groups.size(); ++g) {
      prefill += most_blocks(g, size, std::min(pass, static_cast<Pos>(size - from)));
      decode += most_blocks(g, size + reserve, std::min(reserve, Pos{1}));
    }
    return std::max(prefill, decode);
  }
  /// The blocks that a sequence holds at most which begins with `from` positions, is extended to `size` in passes of
  /// at most `pass` tokens, and then `reserve` times by one. Ends as soon as they are more than `room`.
  /// O((passes + blocks that `reserve` tokens take) * groups).
  ///   found   [groups] blocks that others hold: they do not count as long as the sequence has them
  [[nodiscard]] Index peak_blocks(Pos from, Pos size, Pos pass, Pos reserve, std::span<const PosRange> found,
                                  Index room) const noexcept {
    Index peak = 0;
    for (Pos length = from; length < size + reserve && peak <= room;) {
      const Pos next = length < size ? length + std::min(pass, static_cast<Pos>(size - length)) : length + 1;
      Index blocks = states(), room_until = max_pos;  // until then no group takes a block more
      for (std::size_t g = 0; g < rules_.groups.size(); ++g) {
        const GroupRule& rule = rules_.groups[g];
        const Pos tokens = sizes_.tokens[g];
        const PosRange others = found[g];
        const Pos kept_from = rule.retained.first_seen(std::max(length - rules_.rewind, 0));
        const Pos kept = rule.retained.everything() ? 0 : ceil_div(rule.retained.kept, tokens);
        const Pos first = std::max((kept_from - tokens) / tokens, kept);
        const Pos end = ceil_div(rule.cross_rows > 0 ? rule.cross_rows : next, tokens);
        blocks +=
            std::min(kept, end) + std::max(end - first, 0) - std::max(others.last - std::max(others.first, first), 0);
        room_until = rule.cross_rows > 0 ? room_until : std::min(room_until, Index{end} * tokens);
      }
      peak = std::max(peak, blocks);
      // One token after the other: between two steps that take a block, blocks can only be dropped.
      length = length < size ? next : static_cast<Pos>(room_until);
    }
    return peak;
  }

 private:
  /// Blocks of recurrent states: those that a pass begins from, those of the last whole node, and those that it writes
  /// at its end, at the end of the prompt and where prompts part. Those that are asked for beside them are not counted.
  [[nodiscard]] Index states() const noexcept { return sizes_.state_blocks() * (Index{5} + rules_.rewind); }
  /// Blocks of a group that a sequence of `length` holds at most while it is extended by `pass` tokens to it.
  [[nodiscard]] Index most_blocks(std::size_t group, Pos length, Pos pass) const noexcept {
    const GroupRule& rule = rules_.groups[group];
    const Pos tokens = sizes_.tokens[group];
    const Index all = ceil_div(rule.cross_rows > 0 ? rule.cross_rows : length, tokens);
    if (rule.retained.everything()) {
      return all;
    }
    Index rows = max_pos;
    if (rule.retained.window > 0) {
      rows = rule.retained.window;
    }
    if (rule.retained.chunk > 0) {
      rows = std::min(rows, Index{rule.retained.chunk});
    }
    return std::min(all, ceil_div(Index{rule.retained.kept}, Index{tokens}) +
                             ceil_div(rows + rules_.rewind + pass, Index{tokens}) + 2);
  }

  GroupRules rules_;
  BlockSizes sizes_;
};

}  // namespace detail
}  // namespace v0
}  // namespace kvc
