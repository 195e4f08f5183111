// ExpectedPrefix: room in a prefix cache for blocks whose rows are on their way.
#pragma once

#include <cstdint>
#include <span>

#include "kvc/core/types.hpp"
#include "kvc/policy/prefix_pin.hpp"

namespace kvc {
inline namespace v0 {

/// With several layer groups, a block that is reserved for rows of one group; or the blocks that are reserved for
/// recurrent states of one kind.
struct ExpectedBlock {
  /// The group; behind the groups, their number and that of the kind of states.
  std::int32_t column = 0;
  Pos first = 0;                      ///< position of the first row; of states, the tokens that they stand for
  Pos last = 0;                       ///< position behind the last row that is expected; of states, as `first`
  std::span<const BlockId> blocks{};  ///< one; of states, those of all layers
};

/// The full blocks of a prefix of which the first are cached, and the others are reserved for rows that come from
/// elsewhere: from a slower tier, or from a peer. Nothing finds a reserved block before `arrive` names it. The pin
/// holds all of them; `unpin` frees those that have not arrived.
struct ExpectedPrefix {
  PinId pin;
  Pos cached = 0;  ///< tokens of the prefix that are in place
  /// To be written, in order: of the tokens behind `cached`. Valid until `arrive`. With several layer groups empty: see
  /// for_each_expected.
  std::span<const BlockId> blocks{};
};

}  // namespace v0
}  // namespace kvc
