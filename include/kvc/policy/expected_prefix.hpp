// ExpectedPrefix: room in a prefix cache for blocks whose rows are on their way.
#pragma once

#include <span>

#include "kvc/core/types.hpp"
#include "kvc/policy/prefix_pin.hpp"

namespace kvc {
inline namespace v0 {

/// The full blocks of a prefix of which the first are cached, and the others are reserved for rows that come from
/// elsewhere: from a slower tier, or from a peer. Nothing finds a reserved block before `arrive` names it. The pin holds
/// all of them; `unpin` frees those that have not arrived.
struct ExpectedPrefix {
  PinId pin;
  Pos cached = 0;                     ///< tokens of the prefix that are in place
  std::span<const BlockId> blocks{};  ///< to be written, in order: of the tokens behind `cached`. Valid until `arrive`
};

}  // namespace v0
}  // namespace kvc
