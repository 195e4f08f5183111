// HeldModel: what a prefix cache holds of each prompt for a model whose layers differ.
#pragma once

#include <string>

#include "kvc/core/group_rule.hpp"
#include "kvc/core/types.hpp"
#include "model_shape.hpp"

namespace replay {

using kvc::Index;
using kvc::Pos;

/// The layers of a model in blocks of a trace: a position stands for all tokens of a block, so windows and chunks are
/// rounded up to whole blocks.
class HeldModel {
 public:
  /// Throws std::invalid_argument if a block of the trace is too large for a policy to count its memory.
  HeldModel(const serving::ModelShape& model, Pos block_tokens);

  [[nodiscard]] const std::string& name() const noexcept { return name_; }
  [[nodiscard]] const kvc::GroupRules& rules() const noexcept { return rules_; }
  [[nodiscard]] bool has_states() const noexcept { return !rules_.states.empty(); }
  /// Blocks of the policy's pool in the memory of `capacity` blocks of the trace, all rows of all layers. 0: there is
  /// not room for one.
  [[nodiscard]] Index pool_blocks(Index capacity) const;
  /// Blocks of the trace that are computed in one pass: of 8,192 tokens, or of one block.
  [[nodiscard]] std::size_t pass_blocks() const noexcept { return pass_blocks_; }

 private:
  std::string name_;
  kvc::GroupRules rules_;
  std::size_t pass_blocks_;
};

}  // namespace replay
