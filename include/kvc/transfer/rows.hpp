// The rows of a sequence in a pool as the spans of a ROWS body: the same order on both sides, whatever the block sizes
// and layouts.
#pragma once

#include <algorithm>
#include <cstddef>
#include <span>
#include <type_traits>
#include <vector>

#include "kvc/core/types.hpp"
#include "kvc/io/byte_spans.hpp"
#include "kvc/layout/layer_groups.hpp"
#include "kvc/layout/row_spans.hpp"
#include "kvc/policy/detail/stored_runs.hpp"

namespace kvc {
inline namespace v0 {
namespace transfer {
namespace detail {

/// Finds the spans of positions of one sequence in one layer. Keeps its buffers between calls.
class RowFinder {
 public:
  /// Adds the spans of `range` to `to`, in stored blocks of `block_tokens`. `pool` is cache.data(); Byte is const if
  /// the pool is. O(spans).
  template <class Cache, class Storage, class Byte>
  void add(const Cache& cache, Storage* pool, SeqId seq, Index layer, PosRange range, layout::RowOrder order,
           Pos block_tokens, io::SpanList<Byte>& to) {
    runs_.clear();
    cache.policy().for_each_run(seq, range, [&](const SlotRun& run) { runs_.push_back(run); });
    add_spans(cache.layout(), pool, layer, range, order, block_tokens, to);
  }
  /// The same for a layer of a layer group: adds nothing, and returns false, if the policy does not hold a row of
  /// `range` any more.
  template <class Cache, class Storage, class Byte>
  [[nodiscard]] bool add(const Cache& cache, Storage* pool, SeqId seq, LayerPlace place, PosRange range,
                         layout::RowOrder order, Pos block_tokens, io::SpanList<Byte>& to) {
    runs_.clear();
    Pos found = 0;
    kvc::detail::for_each_stored_run(cache.policy(), seq, place.group, range, [&](const SlotRun& run) {
      runs_.push_back(run);
      found += run.count;
    });
    if (found != range.size()) {
      return false;
    }
    add_spans(cache.group_layout(place.group), pool, place.layer, range, order, block_tokens, to);
    return true;
  }

 private:
  /// Of the runs that were found.
  template <class L, class Storage, class Byte>
  void add_spans(const L& of, Storage* pool, Index layer, PosRange range, layout::RowOrder order, Pos block_tokens,
                 io::SpanList<Byte>& to) {
    auto run = runs_.begin();
    for (Index first = range.first; first < range.last;) {
      const Index last = std::min<Index>(range.last, (first / block_tokens + 1) * block_tokens);
      slots_.clear();
      for (; run != runs_.end() && run->first < last; ++run) {
        const Pos begin = std::max(run->first, static_cast<Pos>(first));
        const Pos end = static_cast<Pos>(std::min<Index>(last, Index{run->first} + run->count));
        slots_.push_back({run->block, run->offset + (begin - run->first), end - begin});
        if (end < run->first + run->count) {
          break;  // the rest belongs to the next stored block
        }
      }
      layout::for_each_row_span(of, layer, order, slots_, [&](Index at, Index count) {
        const std::span<Storage> objects(pool + at, static_cast<std::size_t>(count));
        if constexpr (std::is_const_v<Byte>) {
          to.add(std::as_bytes(objects));
        } else {
          to.add(std::as_writable_bytes(objects));
        }
      });
      first = last;
    }
  }

  std::vector<SlotRun> runs_;
  std::vector<layout::SlotSpan> slots_;
};

}  // namespace detail
}  // namespace transfer
}  // namespace v0
}  // namespace kvc
