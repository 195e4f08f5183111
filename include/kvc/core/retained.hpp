// Retained: which positions of a sequence the layers of a group keep.
#pragma once

#include <algorithm>

#include "kvc/core/error.hpp"
#include "kvc/core/types.hpp"

namespace kvc {
inline namespace v0 {

/// The positions that a query row sees, and so the committed ones to keep for the next row. A row at position p sees
/// the keys at positions j <= p with
///
///   j < kept,   or   p - j < window (if window > 0)  and  j >= p / chunk * chunk (if chunk > 0)
///
/// The defaults are full attention: everything is kept. AttentionOptions has members of the same names and meaning.
struct Retained {
  Pos window = 0;  ///< keys that a row sees up to and including its own position; 0: no limit
  Pos chunk = 0;   ///< a row sees no key before the last multiple of this; 0: no chunks
  Pos kept = 0;    ///< first positions that every row sees, whatever the window and the chunk

  /// Whether every position is kept for ever.
  [[nodiscard]] constexpr bool everything() const noexcept { return window == 0 && chunk == 0; }

  /// The first position that a row at `position` sees behind the kept ones. Grows with the position.
  [[nodiscard]] constexpr Pos first_seen(Pos position) const noexcept {
    Pos first = 0;
    if (window > 0 && position >= window) {
      first = position - window + 1;
    }
    if (chunk > 0) {
      first = std::max(first, static_cast<Pos>(position / chunk * chunk));
    }
    return first;
  }
  /// The first length from which on no row sees a position in [kept, from): 0 if `from` <= kept.
  [[nodiscard]] constexpr Pos sees_only_from(Pos from) const noexcept {
    if (from <= kept) {
      return 0;
    }
    Index length = max_pos;
    if (window > 0) {
      length = std::min(length, Index{from} + window - 1);
    }
    if (chunk > 0) {
      length = std::min(length, ceil_div(Index{from}, Index{chunk}) * chunk);
    }
    return static_cast<Pos>(length);
  }

  friend constexpr bool operator==(const Retained&, const Retained&) = default;
};

/// Throws std::invalid_argument, naming the member, unless all are possible.
constexpr void require_valid(const Retained& retained) {
  require(retained.window >= 0, "window", retained.window, "at least 0 (0: no window)");
  require(retained.chunk >= 0, "chunk", retained.chunk, "at least 0 (0: no chunks)");
  require(retained.kept >= 0, "kept", retained.kept, "at least 0");
  require(retained.kept == 0 || !retained.everything(), "kept", retained.kept,
          "0 where neither a window nor a chunk drops positions");
}

}  // namespace v0
}  // namespace kvc
