// CachedPrefix: a prefix that a policy with layer groups has cached for later prompts.
#pragma once

#include <cstdint>
#include <span>
#include <string_view>

#include "kvc/core/types.hpp"

namespace kvc {
inline namespace v0 {

/// Tokens that a prompt would be found to have in place, all of them, and where their rows and states are. Views are
/// valid during the call only.
struct CachedPrefix {
  /// Rows of one group at consecutive positions, from the first slot of a block on.
  struct Block {
    std::int32_t group;
    Pos first;  ///< position of the first row
    Pos rows;
    BlockId block;
  };
  std::string_view salt;          ///< Salt::bytes()
  std::span<const Token> tokens;  ///< at least one
  std::span<const Block> blocks;  ///< by group and position: what a hit of this length needs, and rows of other inputs
  std::span<const BlockId> states;  ///< of recurrent layers behind the last token: those of kind 0, then of kind 1, ...
};

}  // namespace v0
}  // namespace kvc
