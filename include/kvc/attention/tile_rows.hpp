// TileRows: where the 64 positions of a tile lie, found once for all that is done with them.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <utility>

#include "kvc/attention/kernels.hpp"
#include "kvc/core/element.hpp"
#include "kvc/core/view.hpp"

namespace kvc::inline v0 {
namespace detail {

/// A piece of memory.
struct Stretch {
  const std::byte* begin;
  const std::byte* end;
};

/// Pointers to the rows of one head.
template <class T>
struct TileRows {
  const StorageOf<T>* k[tile_keys];
  const StorageOf<T>* v[tile_keys];
  Index first = 0;  // of the rows that are there, within the tile
  Index last = 0;
  Stretch stretches[2 * tile_keys];  // the memory that they take, first that of the keys
  Index stretch_count = 0;
  Index lines = 0;  // of 64 bytes

  [[nodiscard]] Index first_group() const noexcept { return first / simd::lanes; }
  [[nodiscard]] Index last_group() const noexcept { return ceil_div(last, Index{simd::lanes}); }

  /// Positions [base + lo, base + hi), at least one. The other pointers lead to some row of these, so that reading
  /// through them is allowed.
  template <class View>
  void locate(const View& kv, Index head, Index base, Index lo, Index hi) {
    first = lo;
    last = hi;
    stretch_count = 0;
    lines = 0;
    const Index k_row = Element<T>::row_size(kv.key_dim()), v_row = Element<T>::row_size(kv.value_dim());
    Stretch of_values[tile_keys];
    Index value_stretches = 0, at = lo;
    kv.for_each_run(head, PosRange{static_cast<Pos>(base + lo), static_cast<Pos>(base + hi)}, [&](const KvRun<T>& run) {
      KVC_ASSERT(run.first == base + at && at + run.rows <= hi);
      const StorageOf<T>*key = run.k, *value = run.v;
      for (Index r = 0; r < run.rows; ++r, key += run.k_stride, value += run.v_stride) {
        k[at + r] = key;
        v[at + r] = value;
      }
      add_stretches(run.k, run.rows, run.k_stride, k_row, stretches, stretch_count);
      add_stretches(run.v, run.rows, run.v_stride, v_row, of_values, value_stretches);
      at += run.rows;
    });
    std::copy_n(of_values, value_stretches, stretches + stretch_count);
    stretch_count += value_stretches;
    KVC_ASSERT(at == hi);
    std::fill(k, k + lo, k[lo]);
    std::fill(k + hi, k + tile_keys, k[lo]);
    std::fill(v, v + lo, v[lo]);
    std::fill(v + hi, v + tile_keys, v[lo]);
  }

 private:
  void add_stretches(const StorageOf<T>* rows, Index count, Index stride, Index row, Stretch* to,
                     Index& to_count) noexcept {
    if (stride == row) {
      row *= count;
      count = 1;
    }
    lines += count * (row * Index{sizeof(StorageOf<T>)} / 64 + 1);
    for (Index i = 0; i < count; ++i, rows += stride) {
      to[to_count++] = {reinterpret_cast<const std::byte*>(rows), reinterpret_cast<const std::byte*>(rows + row)};
    }
  }
};

/// Asks for the rows of the next tile while this one is computed: a line for each that is read, in the order of
/// addresses, which the prefetchers of the processor join in. It would take no more than a few dozen requests at once,
/// so they are spread as evenly as the reading is. The first-level cache is asked to take them: what it drops before its
/// turn is still in the second.
class Ahead {
 public:
  Ahead() = default;

  /// `next` null: there is nothing to ask for.
  ///
  ///   asked   lines that reading keys and values will ask for; what the next tile has more is asked for with the
  ///           weights of `count` query rows. Where it is too small, no line is missed, but asking is less even.
  template <class T>
  Ahead(const TileRows<T>* next, Index asked, Index count) noexcept {
    if (next == nullptr) {
      return;
    }
    next_ = next->stretches;
    last_ = next->stretches + next->stretch_count;
    with_row_ = ceil_div(std::max(next->lines - asked, Index{0}), count);
    follow();
  }

  KVC_ALWAYS_INLINE void ask(Index lines) noexcept {
    for (; lines > 0 && at_ != nullptr; --lines) {
      __builtin_prefetch(at_, 0, 3);
      at_ += line;
      if (at_ >= end_) [[unlikely]] {
        follow();
      }
    }
  }
  KVC_ALWAYS_INLINE void ask_with_row() noexcept { ask(with_row_); }

  /// Where the same keys or values are read again, for other query rows.
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
  static constexpr Index line = 64;

  KVC_ALWAYS_INLINE void follow() noexcept {
    at_ = nullptr;
    if (next_ != last_) {
      at_ = reinterpret_cast<const std::byte*>(reinterpret_cast<std::uintptr_t>(next_->begin) / line * line);
      end_ = next_->end;
      ++next_;
    }
  }

  const std::byte* at_ = nullptr;  // null: there is no more
  const std::byte* end_ = nullptr;
  const Stretch* next_ = nullptr;
  const Stretch* last_ = nullptr;
  const std::byte* paused_at_ = nullptr;
  Index with_row_ = 0;
};

}  // namespace detail
}  // namespace kvc::inline v0
