// RegionList: the free memory of a pool in which regions have any size.
#pragma once

#include <algorithm>
#include <cstddef>
#include <iterator>
#include <optional>
#include <string>
#include <vector>

#include "kvc/core/error.hpp"
#include "kvc/core/types.hpp"

namespace kvc {
inline namespace v0 {
namespace detail {

/// Slots start .. start + size - 1 of a pool.
struct Region {
  Pos start = 0;
  Pos size = 0;
};

/// The holes of a pool, in the order of their addresses. Adjacent holes are joined, so there are at most (allocated
/// regions + 1) of them. Every operation is linear in the number of holes.
class RegionList {
 public:
  enum class Fit { first, best };

  /// One hole of `size` slots. At most `regions` regions may be allocated at a time; memory for them is taken here.
  RegionList(Pos size, Index regions) : size_(size), free_(size) {
    holes_.reserve(static_cast<std::size_t>(std::min<Index>(regions, size)) + 1);
    holes_.push_back({0, size});
  }

  [[nodiscard]] Index available() const noexcept { return free_; }
  [[nodiscard]] Index largest() const noexcept {
    Pos most = 0;
    for (const Region& hole : holes_) {
      most = std::max(most, hole.size);
    }
    return most;
  }

  /// A region of `want` slots that is free. If no hole is so large, the largest hole, provided that it has at least
  /// `need` slots. An empty region fits anywhere.
  [[nodiscard]] std::optional<Region> find(Pos want, Pos need, Fit fit) const noexcept {
    if (want == 0) {
      return Region{0, 0};
    }
    const Region* found = nullptr;
    const Region* largest = nullptr;
    for (const Region& hole : holes_) {
      if (hole.size >= want && (found == nullptr || (fit == Fit::best && hole.size < found->size))) {
        found = &hole;
      }
      if (largest == nullptr || hole.size > largest->size) {
        largest = &hole;
      }
    }
    if (found != nullptr) {
      return Region{found->start, want};
    }
    if (largest != nullptr && largest->size >= need) {
      return *largest;
    }
    return std::nullopt;
  }

  /// Free slots from `start` on, without a gap.
  [[nodiscard]] Pos free_at(Pos start) const noexcept {
    const auto hole = from(start);
    return hole != holes_.end() && hole->start == start ? hole->size : 0;
  }

  /// Allocates a region at the beginning of a hole: one that `find` or `free_at` returned.
  void allocate(Region region) noexcept {
    if (region.size == 0) {
      return;
    }
    const auto hole = from(region.start);
    KVC_ASSERT(hole != holes_.end() && hole->start == region.start && hole->size >= region.size);
    free_ -= region.size;
    if (hole->size == region.size) {
      holes_.erase(hole);
    } else {
      *hole = {region.start + region.size, hole->size - region.size};
    }
  }

  /// Frees a region, and joins it with the holes beside it.
  void free(Region region) noexcept {
    if (region.size == 0) {
      return;
    }
    free_ += region.size;
    auto next = from(region.start);
    const bool joins_next = next != holes_.end() && region.start + region.size == next->start;
    const bool joins_previous =
        next != holes_.begin() && std::prev(next)->start + std::prev(next)->size == region.start;
    if (joins_previous && joins_next) {
      std::prev(next)->size += region.size + next->size;
      holes_.erase(next);
    } else if (joins_previous) {
      std::prev(next)->size += region.size;
    } else if (joins_next) {
      *next = {region.start, region.size + next->size};
    } else {
      KVC_ASSERT(holes_.size() < holes_.capacity());
      holes_.insert(next, region);
    }
  }

  /// Checks that the regions `taken` and the holes tile the pool, and that no two holes touch. Throws InvariantError.
  void verify(std::vector<Region> taken) const {
    Index total = 0;
    for (std::size_t i = 0; i < holes_.size(); ++i) {
      total += holes_[i].size;
      if (holes_[i].size <= 0 || (i > 0 && holes_[i - 1].start + holes_[i - 1].size >= holes_[i].start)) {
        throw_error(InvariantError("kvc: holes are empty, touch or are out of order"));
      }
    }
    if (total != free_) {
      throw_error(InvariantError("kvc: the holes do not add up to the free slots"));
    }
    taken.insert(taken.end(), holes_.begin(), holes_.end());
    std::sort(taken.begin(), taken.end(), [](const Region& a, const Region& b) { return a.start < b.start; });
    Pos end = 0;
    for (const Region& region : taken) {
      if (region.start != end) {
        throw_error(InvariantError("kvc: allocations overlap or leave a gap at slot " + std::to_string(end)));
      }
      end += region.size;
    }
    if (end != size_) {
      throw_error(
          InvariantError("kvc: allocations end at slot " + std::to_string(end) + " of " + std::to_string(size_)));
    }
  }

 private:
  /// The first hole that starts at `start` or later.
  [[nodiscard]] std::vector<Region>::iterator from(Pos start) noexcept {
    return std::lower_bound(holes_.begin(), holes_.end(), start, [](const Region& h, Pos s) { return h.start < s; });
  }
  [[nodiscard]] std::vector<Region>::const_iterator from(Pos start) const noexcept {
    return std::lower_bound(holes_.begin(), holes_.end(), start, [](const Region& h, Pos s) { return h.start < s; });
  }

  Pos size_;
  Index free_;
  std::vector<Region> holes_;
};

}  // namespace detail
}  // namespace v0
}  // namespace kvc
