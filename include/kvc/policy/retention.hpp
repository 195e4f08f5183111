// Retention: how much the caller wants the cached blocks of a sequence to stay.
#pragma once

#include <cstdint>

namespace kvc {
inline namespace v0 {

/// How long the blocks of a sequence should stay cached after the sequence is closed. The eviction policy `Priority`
/// uses it; all other eviction policies ignore it.
struct Retention {
  static constexpr int default_priority = 35;
  static constexpr std::uint64_t forever = ~std::uint64_t{0};

  int priority = default_priority;  ///< 0 (evicted first) to 100 (evicted last)
  std::uint64_t duration =
      forever;  ///< in logical time, from the release of the block; then the default priority holds

  friend constexpr bool operator==(const Retention&, const Retention&) = default;
};

}  // namespace v0
}  // namespace kvc
