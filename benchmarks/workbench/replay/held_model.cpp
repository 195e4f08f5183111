#include "held_model.hpp"

#include <algorithm>
#include <cstddef>
#include <numeric>

#include "kvc/core/error.hpp"
#include "kvc/policy/detail/block_sizes.hpp"

namespace replay {
namespace {

constexpr Pos pass_tokens = 8192;

/// Windows, chunks and kept positions in blocks. A row at the beginning of a block sees the window - 1 tokens before
/// it.
kvc::Retained in_blocks(const kvc::Retained& retained, Pos block_tokens) {
  const auto blocks = [&](Pos tokens) { return kvc::ceil_div(tokens, block_tokens); };
  return {retained.window > 0 ? blocks(retained.window - 1) + 1 : 0, blocks(retained.chunk), blocks(retained.kept)};
}

}  // namespace

HeldModel::HeldModel(const serving::ModelShape& model, Pos block_tokens)
    : name_(model.name),
      rules_(model.layer_groups().rules()),
      pass_blocks_(static_cast<std::size_t>(std::max(pass_tokens / block_tokens, 1))) {
  Index unit = 0;
  for (kvc::GroupRule& group : rules_.groups) {
    group.retained = in_blocks(group.retained, block_tokens);
    group.row_weight *= block_tokens;
    unit = std::gcd(unit, group.row_weight);
  }
  // In a unit that keeps the numbers small.
  for (const kvc::StateRule& states : rules_.states) {
    unit = std::gcd(unit, states.weight);
  }
  for (kvc::GroupRule& group : rules_.groups) {
    group.row_weight /= unit;
  }
  for (kvc::StateRule& states : rules_.states) {
    states.weight /= unit;
  }
  kvc::require_valid(rules_);
}

Index HeldModel::pool_blocks(Index capacity) const {
  const kvc::detail::BlockSizes sizes = kvc::detail::block_sizes(rules_, 1);
  Index rows = 0, block = 0;
  for (std::size_t g = 0; g < rules_.groups.size(); ++g) {
    rows += rules_.groups[g].row_weight;
    block = std::max(block, sizes.tokens[g] * rules_.groups[g].row_weight);
  }
  for (std::size_t k = 0; k < rules_.states.size(); ++k) {
    block = std::max(block, sizes.states[k].in_block * rules_.states[k].weight);
  }
  return static_cast<Index>(static_cast<double>(capacity) * static_cast<double>(rows) / static_cast<double>(block));
}

}  // namespace replay
