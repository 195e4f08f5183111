// KvTileRows: the addresses of the 64 positions of a tile. Prefetcher: prefetches tiles ahead of their use.
#pragma once

#include <algorithm>
#include <bit>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <utility>

#include "kvc/attention/kernel/kernels.hpp"
#include "kvc/attention/kv_view.hpp"
#include "kvc/attention/memory_plan.hpp"
#include "kvc/attention/options.hpp"
#include "kvc/core/types.hpp"
#include "kvc/element/element.hpp"

namespace kvc {
inline namespace v0 {
namespace detail {

/// The keys of a range that lie in the tile at position `base`, one bit each.
[[nodiscard]] inline std::uint64_t tile_bits(KeyRange keys, Index base) noexcept {
  const auto within = [base](Index position) { return std::clamp(position - base, Index{0}, tile_keys); };
  const Index first = within(keys.first), last = within(keys.last);
  return first < last ? ~std::uint64_t{0} >> (tile_keys - (last - first)) << first : 0;
}
[[nodiscard]] inline std::uint64_t tile_bits(const VisibleKeys& keys, Index base) noexcept {
  return tile_bits(keys.recent, base) | tile_bits(keys.kept, base);
}

/// Consecutive bytes, and the cache lines that hold them.
struct ByteSpan {
  static constexpr Index line = 64;
  const std::byte* begin;
  const std::byte* end;

  [[nodiscard]] const std::byte* first_line() const noexcept {
    return reinterpret_cast<const std::byte*>(reinterpret_cast<std::uintptr_t>(begin) / line * line);
  }
  [[nodiscard]] Index lines() const noexcept { return ceil_div(Index{end - first_line()}, line); }
};

/// The memory of the keys of a tile, or of its values.
struct ByteSpans {
  ByteSpan of[tile_keys];
  Index count = 0;

  [[nodiscard]] Index lines() const noexcept {
    Index lines = 0;
    for (Index i = 0; i < count; ++i) {
      lines += of[i].lines();
    }
    return lines;
  }
  /// Requests all of it to the second-level cache.
  void prefetch() const noexcept {
    for (Index i = 0; i < count; ++i) {
      for (const std::byte* at = of[i].first_line(); at < of[i].end; at += ByteSpan::line) {
        __builtin_prefetch(at, 0, 2);
      }
    }
  }
  /// Those of `other`, `bytes` further on.
  void shift(const ByteSpans& other, Index bytes) noexcept {
    count = other.count;
    for (Index i = 0; i < count; ++i) {
      of[i] = {other.of[i].begin + bytes, other.of[i].end + bytes};
    }
  }
};

/// One row for each position of a tile, and the bytes from its beginning to its scales.
template <class T>
struct ScaleRows {
  const StorageOf<T>* const* rows;  ///< [64]
  Index offset;
};
/// Pointers to scales that lie in planes of their own. Element types without scales have none.
template <class T>
struct TileScales {};
template <ScaledElement T>
struct TileScales<T> {
  const StorageOf<T>* k_scales[tile_keys];
  const StorageOf<T>* v_scales[tile_keys];
  bool has_scale_planes = false;
};

/// Pointers to the rows of one head.
template <class T>
struct KvTileRows : TileScales<T> {
  const StorageOf<T>* k[tile_keys] = {};
  const StorageOf<T>* v[tile_keys] = {};
  Index first = 0;  // the rows of the tile that are there are among [first, last)
  Index last = 0;
  ByteSpans keys, values;       // values: none where they are the beginnings of the keys
  bool values_in_keys = false;  // v is k: latent rows

  [[nodiscard]] Index lines() const noexcept { return keys.lines() + values.lines(); }
  /// Whether most rows lie apart from their neighbours, as those of selected positions do.
  [[nodiscard]] bool is_scattered() const noexcept { return 2 * keys.count > last - first; }

  /// Where the scales of keys of `dim` elements are, in the rows or elsewhere.
  [[nodiscard]] ScaleRows<T> key_scales(Index dim) const noexcept
    requires ScaledElement<T>
  {
    return this->has_scale_planes ? ScaleRows<T>{this->k_scales, 0} : ScaleRows<T>{k, Element<T>::scale_offset(dim)};
  }
  /// Where the scales of values are.
  ///   dim  elements of the row that a value is read from
  [[nodiscard]] ScaleRows<T> value_scales(Index dim) const noexcept
    requires ScaledElement<T>
  {
    return this->has_scale_planes ? ScaleRows<T>{this->v_scales, 0} : ScaleRows<T>{v, Element<T>::scale_offset(dim)};
  }

  /// Finds the positions base + i of the bits i of `visible`, at least one. All other pointers are set to one of these
  /// rows, so that reading through them is allowed. Returns the first position for which the view hands out no row, in
  /// which case the rows must not be used. O(runs + 64).
  template <class View>
  [[nodiscard]] std::optional<Index> locate(const View& kv, Index head, Index base, std::uint64_t visible) {
    first = std::countr_zero(visible);
    last = tile_keys - std::countl_zero(visible);
    keys.count = 0;
    values.count = 0;
    values_in_keys = kv.value_dim() <= kv.key_dim();
    Index end = 0;  // of the pointers that are set
    for (std::uint64_t left = visible; left != 0;) {
      const Index lo = std::countr_zero(left), hi = lo + std::countr_one(left >> lo);
      left &= hi == tile_keys ? 0 : ~std::uint64_t{0} << hi;
      if (const auto missing = locate_range(kv, head, base, {lo, hi})) [[unlikely]] {
        return missing;
      }
      fill(end, lo, lo);
      end = hi;
    }
    fill(end, tile_keys, first);
    return std::nullopt;
  }

  /// The same for the next head of a view whose heads lie `distance` apart, from the rows of the head before. O(64).
  void locate_next_head(const KvTileRows& before, HeadStrides distance) noexcept {
    for (Index j = 0; j < tile_keys; ++j) {
      k[j] = before.k[j] + distance.k;
      v[j] = before.v[j] + distance.v;
    }
    first = before.first;
    last = before.last;
    keys.shift(before.keys, distance.k * Index{sizeof(StorageOf<T>)});
    values.shift(before.values, distance.v * Index{sizeof(StorageOf<T>)});
    values_in_keys = before.values_in_keys;
    if constexpr (ScaledElement<T>) {
      this->has_scale_planes = before.has_scale_planes;
      for (Index j = 0; j < tile_keys && this->has_scale_planes; ++j) {
        this->k_scales[j] = before.k_scales[j] + distance.k_scales;
        this->v_scales[j] = before.v_scales[j] + distance.v_scales;
      }
    }
  }

 private:
  /// Sets the pointers of [begin, end) to the row of position `row`.
  void fill(Index begin, Index end, Index row) noexcept {
    std::fill(k + begin, k + end, k[row]);
    std::fill(v + begin, v + end, v[row]);
    if constexpr (ScaledElement<T>) {
      if (this->has_scale_planes) {
        std::fill(this->k_scales + begin, this->k_scales + end, this->k_scales[row]);
        std::fill(this->v_scales + begin, this->v_scales + end, this->v_scales[row]);
      }
    }
  }
  template <class View>
  [[nodiscard]] std::optional<Index> locate_range(const View& kv, Index head, Index base, KeyRange range) {
    const Index key_dim = kv.key_dim(), value_dim = kv.value_dim();
    Index at = range.first;
    kv.for_each_run(head, PosRange{static_cast<Pos>(base + range.first), static_cast<Pos>(base + range.last)},
                    [&](const KvRun<T>& run) {
                      if (run.first != base + at || run.rows < 1 || run.rows > range.last - at) [[unlikely]] {
                        return;  // a gap, after which nothing is where it should be
                      }
                      point(k + at, run.k, run.rows, run.k_stride);
                      point(v + at, run.v, run.rows, run.v_stride);
                      add_spans(run.k, run.rows, run.k_stride, key_units(run, key_dim), keys);
                      if (!run.is_latent() || !values_in_keys) {
                        values_in_keys = false;
                        add_spans(run.v, run.rows, run.v_stride, value_units(run, value_dim), values);
                      }
                      if constexpr (ScaledElement<T>) {
                        this->has_scale_planes = run.has_scale_planes();
                        if (this->has_scale_planes) {
                          point(this->k_scales + at, run.k_scales, run.rows, run.k_scale_stride);
                          point(this->v_scales + at, run.v_scales, run.rows, run.v_scale_stride);
                        }
                      }
                      at += run.rows;
                    });
    return at == range.last ? std::nullopt : std::optional(base + at);
  }
  static void point(const StorageOf<T>** to, const StorageOf<T>* rows, Index count, Index stride) noexcept {
    for (Index r = 0; r < count; ++r) {
      to[r] = rows + r * stride;
    }
  }
  static void add_spans(const StorageOf<T>* rows, Index count, Index stride, Index row, ByteSpans& to) noexcept {
    if (stride == row) {
      row *= count;
      count = 1;
    }
    for (Index i = 0; i < count; ++i, rows += stride) {
      to.of[to.count++] = {reinterpret_cast<const std::byte*>(rows), reinterpret_cast<const std::byte*>(rows + row)};
    }
  }
};

/// Prefetches one cache line per line that is read, a fixed distance ahead, in address order: memory would drop most
/// requests of a burst. One instruction makes all requests, so that the prefetchers of the processor follow its stream.
/// A MemoryPlan says how far ahead, and to which cache.
class Prefetcher {
 public:
  /// From the next tile on, which must be the first.
  void set_plan(const MemoryPlan& plan) noexcept {
    planned_ = plan.lines;
    off_ = plan.level == MemoryPlan::Level::none;
    to_second_ = plan.level == MemoryPlan::Level::second;
  }

  /// About as many lines as are in flight when memory is saturated. Measured from 64 to 240: docs/performance.md.
  static constexpr Index few_lines = 104;

  /// Reading of `now` begins. Both must stay in place, `now` until the next call and `next` until it is `now`.
  ///
  ///   next        the tile that is read after it, or null
  ///   distance    lines between reading and prefetching
  ///   prefetched  lines that will be prefetched while keys and values are read; the rest of `now` is prefetched while
  ///               the weights of `rows` query rows are encoded (prefetch_with_row)
  template <class T>
  void begin_tile(const KvTileRows<T>& now, const KvTileRows<T>* next, Index distance, Index prefetched,
                  Index rows) noexcept {
    if (off_) {
      return;
    }
    resume();
    if (part_ < 2 || parts_[2] != &now.keys) {  // `now` is not the tile that was announced
      at_ = nullptr;
      part_ = 2;
    }
    parts_[0] = &now.keys;
    parts_[1] = &now.values;
    parts_[2] = next == nullptr ? nullptr : &next->keys;
    parts_[3] = next == nullptr ? nullptr : &next->values;
    part_ -= 2;
    if (at_ == nullptr) {
      span_ = -1;
      follow();
    }
    Index lead = 0;
    for (int i = 0; i < part_; ++i) {
      lead += parts_[i]->lines();
    }
    if (at_ != nullptr) {
      for (Index i = 0; i < span_; ++i) {
        lead += parts_[part_]->of[i].lines();
      }
      lead += (at_ - parts_[part_]->of[span_].first_line()) / ByteSpan::line;
    }
    with_row_ = ceil_div(std::max(now.lines() - prefetched, Index{0}), rows);
    prefetch(std::max(distance - lead, Index{0}));
  }

  /// The same for a tile whose rows are read in place, evenly, if there are few query rows, and otherwise once, before
  /// a long computation. Returns the preferred positions per call of add_values.
  template <class T>
  [[nodiscard]] Index begin_tile_evenly(const KvTileRows<T>& now, const KvTileRows<T>* next, Index key_dim,
                                        Index value_dim, Index rows) noexcept {
    if (rows > few_rows) {
      if (next != nullptr) {
        begin_tile(now, next, now.lines(), 0, rows);
      }
      return tile_keys;
    }
    const Index bytes = (now.last - now.first) * (key_dim + value_dim) * Index{sizeof(StorageOf<T>)};
    const Index ahead = distance(planned_, now);
    begin_tile(now, next, ahead, bytes / ByteSpan::line, rows);
    return ahead < now.keys.lines() ? Index{simd::lanes} : tile_keys;
  }

  /// The same for a tile that is read in bursts: a whole tile ahead, unless the plan says otherwise. `prefetched` as in
  /// begin_tile.
  template <class T>
  void begin_tile_in_bursts(const KvTileRows<T>& now, const KvTileRows<T>* next, Index prefetched,
                            Index rows) noexcept {
    begin_tile(now, next, planned_ > 0 && rows <= few_rows ? planned_ : now.lines(), prefetched, rows);
  }

  /// Nothing is prefetched, and nothing has been announced.
  void stop() noexcept {
    at_ = paused_at_ = nullptr;
    part_ = 0;
    with_row_ = 0;
  }

  KVC_ALWAYS_INLINE void prefetch(Index lines) noexcept {
    if (at_ == nullptr) {
      return;
    }
    KVC_NOT_UNROLLED
    for (; lines > 0; --lines) {
      if (to_second_) {
        __builtin_prefetch(at_, 0, 2);
      } else {
        __builtin_prefetch(at_, 0, 3);
      }
      at_ += ByteSpan::line;
      if (at_ >= end_) [[unlikely]] {
        follow();
        if (at_ == nullptr) {
          return;
        }
      }
    }
  }
  void prefetch_with_row() noexcept { prefetch(with_row_); }

  /// Until resume(), nothing is prefetched: the same keys or values are read again, for other query rows.
  void pause() noexcept {
    if (at_ != nullptr) {
      paused_at_ = std::exchange(at_, nullptr);
    }
  }
  void resume() noexcept {
    if (paused_at_ != nullptr) {
      at_ = std::exchange(paused_at_, nullptr);
    }
  }

 private:
  /// The distance where a tile is read evenly, unless one is planned. If the keys are contiguous and the first-level
  /// cache holds keys and values, that of the keys: values are prefetched while keys are read, and the next keys while
  /// values are. Otherwise as many lines as memory can have in flight.
  template <class T>
  [[nodiscard]] static Index distance(Index planned, const KvTileRows<T>& now) noexcept {
    constexpr Index most = 256;
    if (planned > 0) {
      return planned;
    }
    const Index lines = now.keys.lines();
    return now.keys.count == 1 && lines <= most ? std::max(lines, few_lines) : few_lines;
  }

  void follow() noexcept {
    at_ = nullptr;
    for (; part_ < 4 && parts_[part_] != nullptr; ++part_, span_ = -1) {
      if (++span_ < parts_[part_]->count) {
        const ByteSpan& span = parts_[part_]->of[span_];
        at_ = span.first_line();
        end_ = span.end;
        return;
      }
    }
  }

  const std::byte* at_ = nullptr;  // the next line; null: there is none
  const std::byte* end_ = nullptr;
  const ByteSpans* parts_[4] = {};  // keys and values of this tile, then of the next
  int part_ = 0;
  Index span_ = -1;
  const std::byte* paused_at_ = nullptr;
  Index with_row_ = 0;
  Index planned_ = 0;  // lines; 0: none
  bool off_ = false;
  bool to_second_ = false;
};

/// Prefetches the rows of a tile to the second-level cache, line by line: for long computations that read the tile
/// before from there. Takes some rows at a time, a line of each in turn. Rows that lie apart then wait for memory
/// together, and the processor has time to follow each of them.
template <class T>
class SpreadPrefetcher {
 public:
  SpreadPrefetcher() = default;
  /// The keys of `tile`, then its values, unless these are the beginnings of the keys.
  SpreadPrefetcher(const KvTileRows<T>& tile, Index key_dim, Index value_dim) noexcept
      : SpreadPrefetcher(tile.k, Element<T>::row_size(key_dim)) {
    if (!tile.values_in_keys) {
      values_ = tile.v;
      value_bytes_ = bytes(tile.v, Element<T>::row_size(value_dim));
    }
  }

  /// Lines that are left.
  [[nodiscard]] Index lines() const noexcept {
    return rows_ == nullptr ? 0 : tile_keys * (bytes_ + value_bytes_) / ByteSpan::line;
  }

  KVC_ALWAYS_INLINE void prefetch() noexcept {
    if (rows_ == nullptr) {
      return;
    }
    __builtin_prefetch(reinterpret_cast<const std::byte*>(rows_[row_]) + at_, 0, 2);
    if (++row_ % together == 0) {
      row_ -= together;
      at_ += ByteSpan::line;
      if (at_ >= bytes_) [[unlikely]] {
        follow();
      }
    }
  }

 private:
  using Rows = const StorageOf<T>* const*;
  static constexpr Index together = 8;  // rows; by turns, random rows took 0.74 to 0.79 ms with 4, 0.73 to 0.75 with 8

  SpreadPrefetcher(Rows rows, Index units) noexcept : rows_(rows), bytes_(bytes(rows, units)) {}

  /// Bytes from a row to the end of its last line. The rows of a tile begin alike in a line.
  [[nodiscard]] static Index bytes(Rows rows, Index units) noexcept {
    const auto begin = static_cast<Index>(reinterpret_cast<std::uintptr_t>(rows[0]) % ByteSpan::line);
    return ceil_div(begin + units * Index{sizeof(StorageOf<T>)}, Index{ByteSpan::line}) * ByteSpan::line;
  }
  void follow() noexcept {
    at_ = 0;
    row_ += together;
    if (row_ == tile_keys) {
      row_ = 0;
      rows_ = std::exchange(values_, nullptr);
      bytes_ = value_bytes_;
      value_bytes_ = 0;
    }
  }

  Rows rows_ = nullptr;  // null: nothing is left
  Index row_ = 0;
  Index at_ = 0;     // bytes behind the beginning of a row
  Index bytes_ = 0;  // of a row
  Rows values_ = nullptr;
  Index value_bytes_ = 0;
};

/// Prefetches rows that lie apart to the second-level cache, some whole rows at once: memory answers lines that are
/// neighbours faster when they are requested together, and the addresses of several pages are translated together.
template <class T>
class RowPrefetcher {
 public:
  /// Rows from the one that is read to the one that is requested, and lines of a burst: docs/performance.md.
  static constexpr Index ahead = has_part_kernels ? 32 : 2 * tile_keys;
  static constexpr Index burst = has_part_kernels ? 16 : 1;

  RowPrefetcher() = default;
  /// Reading of the keys of `now` begins, then that of its values, unless these are the beginnings of the keys, then
  /// that of `next`, which may be null. Both must stay in place.
  ///
  ///   vector_bytes  of 16 elements, as reading counts them
  RowPrefetcher(const KvTileRows<T>& now, const KvTileRows<T>* next, Index key_dim, Index value_dim,
                Index vector_bytes) noexcept
      : together_(std::max(burst / ceil_div(bytes(key_dim), ByteSpan::line), Index{1})),
        step_(together_ * ceil_div(ceil_div(key_dim, Index{simd::lanes}) * vector_bytes, ByteSpan::line)) {
    const auto add = [&](const KvTileRows<T>& tile) {
      parts_[count_++] = {tile.k, bytes(key_dim)};
      if (!tile.values_in_keys) {
        parts_[count_++] = {tile.v, bytes(value_dim)};
      }
    };
    add(now);
    rows_ = count_ * tile_keys;
    if (next != nullptr) {
      add(*next);
    }
    skip(std::min(ahead, rows_));
  }

  /// As many lines are being read: prefetches some rows whenever they make as many.
  KVC_ALWAYS_INLINE void prefetch(Index lines) noexcept {
    read_ += lines;
    if (read_ >= step_) {
      read_ -= step_;
      for (Index n = 0; n < together_; ++n) {
        prefetch_row();
      }
    }
  }
  /// All that is left of what should be requested before `next` is read.
  void finish() noexcept {
    const Index last = rows_ + std::min(ahead, rows_);
    while (next_ != end_ && part_ * tile_keys + (next_ - parts_[part_].rows) < last) {
      prefetch_row();
    }
  }

 private:
  using Rows = const StorageOf<T>* const*;
  struct Part {
    Rows rows;  // [64]
    Index row_bytes;
  };

  [[nodiscard]] static Index bytes(Index dim) noexcept {
    return Element<T>::row_size(dim) * Index{sizeof(StorageOf<T>)};
  }
  /// The next row is row `row` of all parts.
  KVC_ALWAYS_INLINE void skip(Index row) noexcept {
    part_ = row / tile_keys;
    next_ = end_ = nullptr;
    if (part_ < count_) {
      next_ = parts_[part_].rows + row % tile_keys;
      end_ = parts_[part_].rows + tile_keys;
      row_bytes_ = parts_[part_].row_bytes;
    }
  }
  KVC_ALWAYS_INLINE void prefetch_row() noexcept {
    if (next_ == end_) {
      return;
    }
    const auto* const begin = reinterpret_cast<const std::byte*>(*next_);
    const ByteSpan row{begin, begin + row_bytes_};
    KVC_NOT_UNROLLED
    for (const std::byte* line = row.first_line(); line < row.end; line += ByteSpan::line) {
      __builtin_prefetch(line, 0, 2);
    }
    if (++next_ == end_) [[unlikely]] {
      skip((part_ + 1) * tile_keys);
    }
  }

  Rows next_ = nullptr;  // the next row, of which as many follow in this part as lie before end_
  Rows end_ = nullptr;
  Index row_bytes_ = 0;
  Index read_ = 0;  // lines since the last rows
  Index together_ = 1;
  Index step_ = 1;  // lines that are read while so many rows are requested
  Index part_ = 0;
  Part parts_[4] = {};  // in the order in which they are read
  Index count_ = 0;
  Index rows_ = 0;  // of `now`
};

/// At most `lines` lines of a SpreadPrefetcher in a loop of `steps` steps. With registers of eight floats, where a call
/// has many steps, they are spread over all of these; elsewhere, one for each step. A local variable, so that it lies
/// in registers.
template <class T>
class SomeLines {
 public:
  SomeLines(SpreadPrefetcher<T>& of, Index lines, Index steps) noexcept : of_(of), own_(of), left_(lines) {
    if (has_part_kernels && lines > 0 && steps > lines) {
      between_ = std::bit_floor(static_cast<std::uint64_t>(steps / lines)) - 1;
    }
  }
  ~SomeLines() { of_ = own_; }
  SomeLines(const SomeLines&) = delete;
  SomeLines& operator=(const SomeLines&) = delete;

  KVC_ALWAYS_INLINE void prefetch(Index) noexcept {
    if constexpr (has_part_kernels) {
      if ((++step_ & between_) != 0) {
        return;
      }
    }
    if (left_ > 0) {
      --left_;
      own_.prefetch();
    }
  }

 private:
  SpreadPrefetcher<T>& of_;
  SpreadPrefetcher<T> own_;
  Index left_;
  std::uint64_t step_ = 0;
  std::uint64_t between_ = 0;  // steps from one line to the next without one; all bits below a power of two
};

}  // namespace detail
}  // namespace v0
}  // namespace kvc
