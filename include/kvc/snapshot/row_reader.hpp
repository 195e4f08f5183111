// RowReader: reads the rows of one layer from a snapshot to their places in a pool.
//
// Rows of the element type of the cache are read straight to their places, whatever the block sizes and layouts. Rows
// of another element type pass through a buffer of one batch.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "kvc/core/error.hpp"
#include "kvc/core/types.hpp"
#include "kvc/element/element.hpp"
#include "kvc/element/float16.hpp"
#include "kvc/layout/row_spans.hpp"
#include "kvc/snapshot/contents.hpp"
#include "kvc/snapshot/describe.hpp"
#include "kvc/snapshot/format.hpp"
#include "kvc/snapshot/restore.hpp"
#include "kvc/snapshot/sections.hpp"

namespace kvc {
inline namespace v0 {
namespace snapshot {
namespace detail {

/// Decodes a stored row of a convertible element type to float.
using RowDecoder = void (*)(const std::byte* from, Index dim, float* to);

template <class T>
void decode_row(const std::byte* from, Index dim, float* to) {
  Element<T>::decode(reinterpret_cast<const StorageOf<T>*>(from), dim, to);  // aligned: rows are whole elements
}
/// The decoder of an element type; null for types that are not converted (the quantised ones, and unknown ones).
[[nodiscard]] inline RowDecoder row_decoder(std::string_view element) noexcept {
  return element == Element<float>::name             ? &decode_row<float>
         : element == Element<Eigen::half>::name     ? &decode_row<Eigen::half>
         : element == Element<Eigen::bfloat16>::name ? &decode_row<Eigen::bfloat16>
                                                     : nullptr;
}

/// Reports a field of the description, which is the first section.
[[noreturn]] KVC_COLD inline void refuse_description(const SectionReader& in, std::size_t field,
                                                     const std::string& expected, const std::string& found) {
  in.fail_at(sizeof(format::FileHeader) + sizeof(format::SectionHeader) + field,
             kvc::detail::concat({expected, ", found ", found}));
}
/// The order of the rows of a snapshot. Throws FormatError if it is none.
[[nodiscard]] inline layout::RowOrder order_of(const SectionReader& in, const Contents& contents) {
  for (const layout::RowOrder order : {layout::RowOrder::head_major, layout::RowOrder::token_major}) {
    if (contents.layout == layout::to_text(order)) {
      return order;
    }
  }
  refuse_description(in, offsetof(format::DescriptionRecord, layout), "layout head-major or token-major",
                     contents.layout);
}
/// How rows of a snapshot become rows of T: null if they are such. Throws FormatError if they cannot.
template <class T>
[[nodiscard]] RowDecoder decoder_of(const SectionReader& in, const Contents& contents, bool converts) {
  const std::string own(Element<T>::name);
  if (contents.element == own) {
    return nullptr;
  }
  const RowDecoder decode = row_decoder(contents.element);
  const bool convertible = decode != nullptr && row_decoder(own) != nullptr;
  if (!convertible || !converts) {
    refuse_description(in, offsetof(format::DescriptionRecord, element),
                       kvc::detail::concat({"elements ", own, convertible ? ", or LoadOptions::convert_elements" : ""}),
                       contents.element);
  }
  return decode;
}
/// Bytes of a row of `dim` elements in a snapshot that a cache of T can load.
template <class T>
[[nodiscard]] Index stored_row_bytes(const std::string& element, Index dim) {
  return element == Element<T>::name ? bytes_of_row<T>(dim) : dim * (element == Element<float>::name ? 4 : 2);
}
/// Stores a row of a snapshot in a pool. `floats` is scratch.
template <class T, class L>
void store_row(RowDecoder decode, std::span<const std::byte> from, Index dim, StorageOf<T>* pool,
               const layout::LayerRows<L>& rows, Index head, BlockId block, Pos slot, std::vector<float>& floats) {
  if (decode == nullptr) {
    rows.for_each_part(block, head, slot, [&](Index at, Index units) {
      const std::size_t bytes = static_cast<std::size_t>(units) * sizeof(StorageOf<T>);
      std::memcpy(pool + at, from.data(), bytes);
      from = from.subspan(bytes);
    });
    return;
  }
  floats.resize(static_cast<std::size_t>(dim));
  decode(from.data(), dim, floats.data());
  Element<T>::encode(floats.data(), dim, pool + rows.offset(block, head, slot));  // such types have no scales
}

/// Cache and contents must outlive it.
template <class Cache>
class RowReader {
 public:
  using T = typename Cache::Element;
  using Storage = StorageOf<T>;

  /// `decode` is null if the snapshot has the element type of the cache.
  RowReader(Cache& cache, const Contents& contents, layout::RowOrder order, RowDecoder decode)
      : cache_(&cache), c_(&contents), order_(order), decode_(decode) {
    scratch_.resize(batch_bytes);
  }

  /// Reads the rows of a layer to `targets`, in the order of Restorer::targets.
  void read(SectionReader& in, Index layer, std::span<const Target> targets) {
    for (std::size_t b = 0; b < c_->blocks.size(); ++b) {
      const auto is_own = [&](const Target& t) { return t.source == static_cast<std::int32_t>(b); };
      const auto mine = targets.first(
          static_cast<std::size_t>(std::find_if_not(targets.begin(), targets.end(), is_own) - targets.begin()));
      targets = targets.subspan(mine.size());
      const auto first_copy = std::find_if(mine.begin(), mine.end(), [](const Target& t) { return !t.first; });
      const auto firsts = mine.first(static_cast<std::size_t>(first_copy - mine.begin()));
      slots_.clear();
      Pos wanted = 0;  // the leading rows, without a gap
      for (const Target& t : firsts) {
        slots_.push_back(t.to);
        wanted += t.to.count;
      }
      const Pos rows = c_->blocks[b].rows;
      if (wanted == 0) {
        in.skip(static_cast<std::uint64_t>(rows) * c_->token_bytes());
      } else if (decode_ == nullptr && wanted == rows) {
        layout::for_each_row_span(cache_->layout(), layer, order_, slots_, [&](Index at, Index count) {
          in.add(std::as_writable_bytes(std::span(cache_->data() + at, static_cast<std::size_t>(count))));
        });
      } else {
        read_by_rows(in, layer, rows, wanted);
      }
      if (firsts.size() < mine.size()) {
        in.flush();
        for (const Target& copy : mine.subspan(firsts.size())) {
          copy_rows(layer, firsts, copy);
        }
      }
    }
    in.flush();
  }

 private:
  /// Reads row by row, in the order of the snapshot; rows from `wanted` on are discarded.
  void read_by_rows(SectionReader& in, Index layer, Pos rows, Pos wanted) {
    const Index heads = c_->shape.kv_heads;
    for (const bool keys : {true, false}) {
      const layout::LayerRows part(cache_->layout(), layer, keys);
      const auto row_bytes = static_cast<std::size_t>(keys ? c_->key_row_bytes : c_->value_row_bytes);
      const Index dim = keys ? c_->shape.key_dim : c_->shape.value_dim;
      scratch_.resize(std::max(scratch_.size(), row_bytes));
      const Index most = static_cast<Index>(scratch_.size() / row_bytes);
      Cursor at{slots_};
      for (Index next = 0; next < rows * heads;) {
        const Index count = std::min(most, rows * heads - next);
        in.add(std::span(scratch_).first(static_cast<std::size_t>(count) * row_bytes));
        in.flush();
        const std::byte* from = scratch_.data();
        for (Index i = next; i < next + count; ++i, from += row_bytes) {
          const Index head = order_ == layout::RowOrder::head_major ? i / rows : i % heads;
          const auto row = static_cast<Pos>(order_ == layout::RowOrder::head_major ? i % rows : i / heads);
          if (row < wanted) {
            const auto [block, slot] = at.find(row);
            store_row<T>(decode_, {from, row_bytes}, dim, cache_->data(), part, head, block, slot, floats_);
          }
        }
        next += count;
      }
    }
  }
  /// Finds the slot of a row; fast for ascending rows.
  struct Cursor {
    std::span<const layout::SlotSpan> slots;
    std::size_t i = 0;
    Pos begin = 0;  // row of the first slot of slots[i]
    struct Place {
      BlockId block;
      Pos slot;
    };
    [[nodiscard]] Place find(Pos row) noexcept {
      if (row < begin) {
        i = 0;
        begin = 0;
      }
      for (; row - begin >= slots[i].count; ++i) {
        begin += slots[i].count;
      }
      return {slots[i].block, slots[i].slot + (row - begin)};
    }
  };

  /// Copies rows that are in place for one sequence to another sequence that has its own.
  void copy_rows(Index layer, std::span<const Target> firsts, const Target& copy) {
    for (const Target& from : firsts) {
      const Pos begin = std::max(from.row, copy.row);
      const Pos count = std::min(from.row + from.to.count, copy.row + copy.to.count) - begin;
      if (count <= 0) {
        continue;
      }
      for (const bool keys : {true, false}) {
        const layout::LayerRows part(cache_->layout(), layer, keys);
        for (Index head = 0; head < c_->shape.kv_heads; ++head) {
          for (Pos row = begin; row < begin + count; ++row) {
            part.copy(cache_->data(), head, from.to.block, from.to.slot + row - from.row, copy.to.block,
                      copy.to.slot + row - copy.row);
          }
        }
      }
    }
  }

  Cache* cache_;
  const Contents* c_;
  layout::RowOrder order_;
  RowDecoder decode_;
  std::vector<layout::SlotSpan> slots_;
  std::vector<std::byte> scratch_;
  std::vector<float> floats_;
};

}  // namespace detail
}  // namespace snapshot
}  // namespace v0
}  // namespace kvc
