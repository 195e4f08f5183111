// Limit: the reasons for which an operation can find no room.
#pragma once

#include <cstdint>

#include "kvc/core/types.hpp"

namespace kvc {
inline namespace v0 {

/// A limit that an operation can meet.
enum class Limit : std::uint8_t {
  none,           ///< no limit is met, or the policy does not say which
  sequences,      ///< as many sequences are open as the policy allows
  max_tokens,     ///< the sequence would have more tokens than one sequence may have
  pool,           ///< too few slots are free or evictable
  fragmentation,  ///< enough slots are free, but not in one piece
  pass_tokens     ///< more tokens at once than a layer group that drops rows has room for; fewer fit
};

/// The limit that an operation meets, and by how much: it needs more than is allowed.
///
///   limit           unit of `allowed` and `needed`
///   sequences       open sequences
///   max_tokens      tokens of the sequence
///   pool            slots, beside those that the sequence has
///   fragmentation   slots in one piece; `allowed` is the largest hole
///   pass_tokens     tokens of one extension
struct LimitMet {
  Limit limit = Limit::none;
  Index allowed = 0;
  Index needed = 0;
  Index group = -1;  ///< the layer group whose pool it is, where each has one of its own; -1 otherwise
  friend constexpr bool operator==(const LimitMet&, const LimitMet&) = default;
};

}  // namespace v0
}  // namespace kvc
