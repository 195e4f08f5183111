// Ring: positions of a sequence in a region of slots that is used over and over.
#pragma once

#include <algorithm>

#include "kvc/core/types.hpp"
#include "kvc/policy/detail/region_list.hpp"

namespace kvc {
inline namespace v0 {
namespace detail {

/// Consecutive positions, at most region.size of them at a time, in consecutive slots; the first slot follows the last.
struct Ring {
  Region region;
  Index origin = 0;  ///< a position that lies at the first slot, if it is there: not behind the first one that is

  /// How many slots behind the first one a position lies.
  [[nodiscard]] Pos offset(Pos position) const noexcept { return static_cast<Pos>((position - origin) % region.size); }
  /// f(slot, first, count) for each run of consecutive slots: at most two. Positions ascend.
  template <class F>
  void for_each_run(PosRange range, F&& f) const {
    for (Pos p = range.first; p < range.last;) {
      const Pos at = offset(p);
      const Pos count = std::min(static_cast<Pos>(region.size - at), static_cast<Pos>(range.last - p));
      f(region.start + at, p, count);
      p += count;
    }
  }
};

/// f(from_slot, to_slot, count) for the rows that have another slot in `to` than in `from`: at most three times.
template <class F>
void for_each_move(const Ring& from, const Ring& to, PosRange range, F&& f) {
  from.for_each_run(range, [&](Pos from_slot, Pos first, Pos count) {
    to.for_each_run({first, first + count}, [&](Pos to_slot, Pos p, Pos n) {
      if (const Pos slot = from_slot + (p - first); slot != to_slot) {
        f(slot, to_slot, n);
      }
    });
  });
}

}  // namespace detail
}  // namespace v0
}  // namespace kvc
