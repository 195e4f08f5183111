// The rows of a sequence in a pool as the spans of a ROWS body: the same order on both sides, whatever the block sizes
// and layouts.
#pragma once

#include <algorithm>
#include <cstddef>
#include <span>
#include <vector>

#include "kvc/core/types.hpp"
#include "kvc/io/byte_spans.hpp"
#include "kvc/layout/row_spans.hpp"

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
      layout::for_each_row_span(cache.layout(), layer, order, slots_, [&](Index at, Index count) {
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

 private:
  std::vector<SlotRun> runs_;
  std::vector<layout::SlotSpan> slots_;
};

}  // namespace detail
}  // namespace transfer
}  // namespace v0
}  // namespace kvc
