// BlockSizes: how many positions of each layer group a block of one size holds.
#pragma once

#include <algorithm>
#include <cstddef>
#include <numeric>
#include <utility>
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
  Pos node_tokens = 0;             ///< divides the block sizes of all groups: the grain of the prefix index
  std::vector<Pos> tokens;         ///< [groups] positions in a block
  std::vector<StateSizes> states;  ///< [kinds of states]

  /// Blocks of the states of all layers after one length.
  [[nodiscard]] Index state_blocks() const noexcept {
    Index blocks = 0;
    for (const StateSizes& kind : states) {
      blocks += kind.blocks;
    }
    return blocks;
  }
};

/// How many states of layers fit into a block, and how many blocks all of them take.
inline void add_states(BlockSizes& sizes, const GroupRules& rules) {
  Index block = 1;
  for (std::size_t g = 0; g < rules.groups.size(); ++g) {
    block = std::max(block, sizes.tokens[g] * rules.groups[g].row_weight);
  }
  for (const StateRule& rule : rules.states) {
    block = std::max(block, rule.weight);
  }
  for (const StateRule& rule : rules.states) {
    const Index in_block = std::clamp(block / rule.weight, Index{1}, rule.layers);
    sizes.states.push_back({in_block, ceil_div(rule.layers, in_block), 0});
  }
}

/// Sizes for which a block of the heaviest group holds `block_tokens` positions, and no group leaves more than 1/64 of
/// a block unused at its end. Where no grain that divides block_tokens allows that, the heaviest group's blocks hold up
/// to four times as many; where that does not either, what wastes least: less than 1 / (8 * block_tokens) of a block.
/// A block has room for the state of one layer at least: where states are large, it holds as many positions more.
/// Throws std::invalid_argument if no size below 2^31 is a multiple of a grain that divides block_tokens and of that of
/// each group. O(groups).
[[nodiscard]] inline BlockSizes block_sizes(const GroupRules& rules, Pos block_tokens) {
  constexpr double most_waste = 1.0 / 64;
  Index heaviest = 1;
  for (const GroupRule& rule : rules.groups) {
    heaviest = std::max(heaviest, rule.row_weight);
  }
  Index largest_state = 0;
  for (const StateRule& rule : rules.states) {
    largest_state = std::max(largest_state, rule.weight);
  }
  // The sizes with nodes of node_tokens positions, `parts` of them in a block of the heaviest group.
  const auto sizes_with = [&](Pos node_tokens, Index parts, double& waste) {
    BlockSizes sizes{node_tokens, {}, {}};
    Index largest = 0, smallest = max_pos;  // weight of the positions in a block
    for (const GroupRule& rule : rules.groups) {
      const Index unit = std::lcm(Index{node_tokens}, Index{rule.grain});
      if (unit > max_pos) {
        waste = 2;
        return BlockSizes{};  // no block holds a multiple of both
      }
      const Index weight = parts * node_tokens * heaviest, unit_weight = unit * rule.row_weight;
      const Index rest = weight % unit_weight;  // rounded to the nearest
      const Index units = std::max<Index>(weight / unit_weight + (rest >= unit_weight - rest ? 1 : 0), 1);
      const Index tokens = std::min(units, Index{max_pos} / unit) * unit;
      sizes.tokens.push_back(static_cast<Pos>(tokens));
      largest = std::max(largest, tokens * rule.row_weight);
      smallest = sizes.tokens.size() == 1 ? largest : std::min(smallest, tokens * rule.row_weight);
    }
    for (const StateRule& rule : rules.states) {
      if (const Index in_block = std::max(largest / rule.weight, Index{1}); in_block < rule.layers) {
        smallest = std::min(smallest, in_block * rule.weight);
      }
    }
    waste = 1.0 - static_cast<double>(smallest) / static_cast<double>(largest);
    return sizes;
  };
  BlockSizes best;
  if (rules.groups.empty()) {
    best.node_tokens = block_tokens;
    add_states(best, rules);
    return best;
  }
  double least_waste = 2;
  for (const Index factor : {1, 2, 4}) {
    for (Pos parts = 1; parts <= std::min(block_tokens, Pos{4096}); ++parts) {
      if (block_tokens % parts != 0) {
        continue;
      }
      const Pos node_tokens = block_tokens / parts;
      const Index least = std::max<Index>(block_tokens, ceil_div(largest_state, heaviest * node_tokens) * node_tokens);
      const Index size = std::min(factor * least, Index{max_pos} / node_tokens * node_tokens);
      double waste = 0;
      BlockSizes sizes = sizes_with(node_tokens, size / node_tokens, waste);
      if (waste < least_waste) {
        least_waste = waste;
        best = std::move(sizes);
      }
      if (least_waste <= most_waste) {
        add_states(best, rules);
        return best;
      }
    }
  }
  require(
      !best.tokens.empty(), "config.block_tokens", block_tokens,
      "a number with a divisor whose least common multiple with the grain of each group (tokens_per_row) is less than "
      "2^31");
  add_states(best, rules);
  return best;
}

}  // namespace detail
}  // namespace v0
}  // namespace kvc
