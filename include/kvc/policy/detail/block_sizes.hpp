// BlockSizes: how many positions of each layer group a block of one size holds.
#pragma once

#include <algorithm>
#include <cstddef>
#include <vector>

#include "kvc/core/error.hpp"
#include "kvc/core/group_rule.hpp"
#include "kvc/core/types.hpp"

namespace kvc {
inline namespace v0 {
namespace detail {

/// All blocks of a pool have the same number of bytes, so that any free block serves any group. A position of a light
/// group takes fewer bytes than one of a heavy group, so a block holds more of them.
struct BlockSizes {
  Pos node_tokens = 0;      ///< divides the block sizes of all groups: the grain of the prefix index
  std::vector<Pos> tokens;  ///< [groups] positions in a block
};

/// The most of a block that a group may leave unused at its end, where the divisors of block_tokens allow it.
inline constexpr Index most_waste_denominator = 64;

/// Sizes for which a block of the heaviest group holds about `block_tokens` positions, and no group leaves more than
/// 1/64 of a block unused at its end, if node_tokens can be chosen so. O(block_tokens * groups).
[[nodiscard]] inline BlockSizes block_sizes(const GroupRules& rules, Pos block_tokens) {
  Index heaviest = 1;
  for (const GroupRule& rule : rules.groups) {
    heaviest = std::max(heaviest, rule.row_weight);
  }
  BlockSizes best;
  double least_waste = 2;
  for (Pos parts = 1; parts <= block_tokens; ++parts) {  // nodes in a block of the heaviest group
    if (block_tokens % parts != 0) {
      continue;
    }
    const Pos node_tokens = block_tokens / parts;
    BlockSizes sizes{node_tokens, {}};
    Index block = 0;  // weight
    Index lightest = 0;
    for (const GroupRule& rule : rules.groups) {
      const Index nodes = std::max<Index>((2 * parts * heaviest + rule.row_weight) / (2 * rule.row_weight), 1);
      const Index tokens = std::min<Index>(nodes * node_tokens, max_pos / node_tokens * node_tokens);
      sizes.tokens.push_back(static_cast<Pos>(tokens));
      block = std::max(block, tokens * rule.row_weight);
      lightest = lightest == 0 ? tokens * rule.row_weight : std::min(lightest, tokens * rule.row_weight);
    }
    const double waste = 1.0 - static_cast<double>(lightest) / static_cast<double>(block);
    if (waste < least_waste) {
      least_waste = waste;
      best = sizes;
    }
    if (waste * static_cast<double>(most_waste_denominator) <= 1.0) {
      break;
    }
  }
  return best;
}

}  // namespace detail
}  // namespace v0
}  // namespace kvc
