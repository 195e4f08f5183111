// GroupRule and GroupRules: what a policy knows of the layer groups of a model.
#pragma once

#include <vector>

#include "kvc/core/error.hpp"
#include "kvc/core/retained.hpp"
#include "kvc/core/types.hpp"

namespace kvc {
inline namespace v0 {

/// One layer group, in integers. `LayerGroups::rules` (layout/layer_groups.hpp) makes them for a model.
struct GroupRule {
  Retained retained{};  ///< the positions that it keeps
  Pos cross_rows = 0;   ///< cross attention: rows of another input, written once; 0: rows of the sequence's own tokens
  Index row_weight =
      1;          ///< memory of one position in all layers of the group, in a unit that all groups have in common
  Pos grain = 1;  ///< a block of the group holds a multiple of so many positions

  friend constexpr bool operator==(const GroupRule&, const GroupRule&) = default;
};

/// Recurrent states, such as those of Mamba or of a gated delta rule, of layers whose states have the same bytes. A
/// state is opaque, and stands for exactly so many tokens: nothing can be cut from it.
struct StateRule {
  Index layers = 1;  ///< each has a state
  Index weight = 1;  ///< memory of the state of one layer, in the unit of row_weight

  friend constexpr bool operator==(const StateRule&, const StateRule&) = default;
};

/// How a policy puts the states of one kind into blocks: that of layer i is number i % in_block of block i / in_block.
struct StateSizes {
  Index in_block = 0;  ///< states of layers in a block
  Index blocks = 0;    ///< blocks for the states of all layers
  Index pool = 0;      ///< blocks of a pool that this kind has for itself; 0: they are those of the groups
};

/// The layer groups that a policy holds, and the reserve that all of them have in common.
struct GroupRules {
  std::vector<GroupRule> groups{GroupRule{}};
  /// A sequence can be cut back by so many committed positions at any time: speculative decoding needs as many as it
  /// proposes tokens.
  Pos rewind = 0;
  /// States of recurrent layers, beside the rows of the groups.
  std::vector<StateRule> states{};

  /// Whether it is one group of full attention, which every policy can hold.
  [[nodiscard]] bool is_plain() const noexcept {
    return groups.size() == 1 && groups[0].retained.everything() && groups[0].cross_rows == 0 && groups[0].grain == 1 &&
           states.empty();
  }
};

/// Throws std::invalid_argument, naming the member, unless there is a group of tokens, or there are recurrent states
/// alone, and all values are possible.
inline void require_valid(const GroupRules& rules) {
  bool has_tokens = false;
  for (const GroupRule& rule : rules.groups) {
    require_valid(rule.retained);
    require(rule.cross_rows >= 0, "cross_rows", rule.cross_rows, "at least 0 (0: no cross attention)");
    require(rule.cross_rows == 0 || rule.retained.everything(), "cross_rows", rule.cross_rows,
            "0 in a group with a window or chunks");
    require_between(rule.row_weight, Index{1}, Index{max_pos}, "row_weight");
    require_between(rule.grain, Pos{1}, Pos{1} << 16, "grain");
    has_tokens = has_tokens || rule.cross_rows == 0;
  }
  for (const StateRule& rule : rules.states) {
    require_between(rule.layers, Index{1}, Index{max_pos}, "states.layers");
    require_between(rule.weight, Index{1}, Index{max_pos}, "states.weight");
  }
  require(has_tokens || (rules.groups.empty() && !rules.states.empty()), "groups", rules.groups.size(),
          "at least one that holds rows of the sequence's own tokens, or none beside recurrent states");
  require(rules.rewind >= 0, "rewind", rules.rewind, "at least 0");
}

}  // namespace v0
}  // namespace kvc
