// PoolBytes: the bytes of a cache's pool that slower tiers store under one key.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "kvc/core/error.hpp"
#include "kvc/core/types.hpp"
#include "kvc/io/byte_spans.hpp"
#include "kvc/layout/layer_groups.hpp"
#include "kvc/layout/row_spans.hpp"

namespace kvc {
inline namespace v0 {
namespace tier {

/// Where in the pool a tier block lies: the rows of the tokens of one node of the index in one layer group, or the
/// states of one kind behind them. With one group that keeps everything it is a block of the pool.
struct PoolPlace {
  std::size_t column = 0;           ///< layer group; behind the groups, kind of recurrent states
  std::span<const BlockId> blocks;  ///< one; of states, those of all layers
  Pos row = 0;                      ///< of the first token, in the block
};

/// Finds the bytes of tier blocks, for a cache in memory that the CPU can access. The payload of a record is layer
/// after layer of its group, all of equal size: the parts of the record. A whole block of one group is one span under
/// HeadMajor and TokenMajor.
template <class Cache>
class PoolBytes {
 public:
  /// Throws std::invalid_argument for a group with rows of another input, or whose compressed rows are for more tokens
  /// than a node has; std::bad_alloc. O(layers * kv_heads * tokens of a block).
  explicit PoolBytes(Cache& cache) : cache_(&cache), data_(reinterpret_cast<std::byte*>(cache.data())) {
    const LayerGroups& layers = cache.layers();
    const Pos tokens = cache.policy().node_tokens();
    for (std::size_t g = 0; g < layers.groups().size(); ++g) {
      const LayerGroup& group = layers.groups()[g];
      const std::string name = "layers.groups()[" + std::to_string(g) + "]";
      require(group.cross_rows == 0, name + ".cross_rows", group.cross_rows,
              "0: tiers do not hold rows of another input");
      require(tokens % group.tokens_per_row == 0, name + ".tokens_per_row", group.tokens_per_row,
              "a divisor of the tokens of an index node: a record has whole rows");
      Column column;
      column.parts = static_cast<std::uint32_t>(group.shape.layers);
      const Pos in_block = cache.policy().block_tokens(static_cast<Index>(g));
      for (Pos row = 0; row < in_block; row += tokens) {
        add_spans(column, static_cast<Index>(g), row, tokens);
      }
      column.rows = tokens;
      columns_.push_back(std::move(column));
    }
    for (std::size_t kind = 0; kind < layers.states().size(); ++kind) {
      Column column;
      for (Index layer = 0; layer < layers.layers(); ++layer) {
        if (layers.is_recurrent(layer) && layers.state_place(layer).kind == static_cast<Index>(kind)) {
          column.layers.push_back(layer);
        }
      }
      column.parts = static_cast<std::uint32_t>(column.layers.size());
      column.bytes = column.parts * static_cast<std::size_t>(layers.states()[kind].bytes);
      columns_.push_back(std::move(column));
    }
    for (const Column& column : columns_) {
      most_bytes_ = std::max(most_bytes_, column.bytes);
      most_spans_ = std::max(most_spans_, column.layers.empty() ? column.spans.size() : column.layers.size());
    }
  }

  /// Layer groups and kinds of states.
  [[nodiscard]] std::size_t columns() const noexcept { return columns_.size(); }
  /// Bytes of a tier block.
  [[nodiscard]] std::size_t bytes(std::size_t column) const noexcept { return columns_[column].bytes; }
  /// Layers of it: parts of its record.
  [[nodiscard]] std::uint32_t parts(std::size_t column) const noexcept { return columns_[column].parts; }
  /// Most bytes of a tier block.
  [[nodiscard]] std::size_t most_bytes() const noexcept { return most_bytes_; }
  /// Most spans of a tier block.
  [[nodiscard]] std::size_t most_spans() const noexcept { return most_spans_; }

  /// f(io::ByteSpan) for the bytes of some layers [first, last) of a tier block, in order. O(spans).
  template <class F>
  void for_each(const PoolPlace& place, std::uint32_t first, std::uint32_t last, F&& f) const {
    const Column& column = columns_[place.column];
    if constexpr (requires { cache_->state(Index{}, place.blocks); }) {
      if (!column.layers.empty()) {
        for (std::uint32_t i = first; i < last; ++i) {
          const std::span<const std::byte> state = std::as_const(*cache_).state(column.layers[i], place.blocks);
          f(io::ByteSpan(const_cast<std::byte*>(state.data()), state.size()));  // of a pool that may be written
        }
        return;
      }
    }
    const std::size_t row = static_cast<std::size_t>(place.row / column.rows) * (column.parts + std::size_t{1});
    std::byte* begin = nullptr;  // neighbours in memory are one span
    std::byte* end = nullptr;
    for (std::size_t i = column.layer_at[row + first]; i < column.layer_at[row + last]; ++i) {
      const StridedSpan& span = column.spans[i];
      std::byte* const at = data_ + span.offset + to_index(place.blocks[0]) * span.stride;
      if (at != end && begin != nullptr) {
        f(io::ByteSpan(begin, end));
      }
      begin = at == end && begin != nullptr ? begin : at;
      end = at + span.bytes;
    }
    if (begin != nullptr) {
      f(io::ByteSpan(begin, end));
    }
  }
  /// The same for all layers.
  template <class F>
  void for_each(const PoolPlace& place, F&& f) const {
    for_each(place, 0, parts(place.column), f);
  }
  /// Copies the bytes of a tier block to `to`, of bytes(place.column) bytes. O(bytes).
  void copy_out(const PoolPlace& place, std::byte* to) const noexcept {
    for_each(place, [&](io::ByteSpan span) { to = std::ranges::copy(span, to).out; });
  }
  /// Copies them from `from`. O(bytes).
  void copy_in(const PoolPlace& place, const std::byte* from) const noexcept {
    for_each(place, [&](io::ByteSpan span) {
      std::copy_n(from, span.size(), span.data());
      from += span.size();
    });
  }

 private:
  struct StridedSpan {
    Index offset;
    Index bytes;
    Index stride;  // from the span of one block to that of the next
  };
  struct Column {
    std::uint32_t parts = 0;
    std::size_t bytes = 0;
    Pos rows = 1;
    std::vector<StridedSpan> spans;     // by first row, then by layer
    std::vector<std::size_t> layer_at;  // [first rows, parts + 1] of the spans
    std::vector<Index> layers;          // of states: the layers of the model
  };

  /// The spans of the tier blocks whose first token is in this row of a block.
  void add_spans(Column& column, Index group, Pos row, Pos rows) {
    constexpr auto unit = static_cast<Index>(sizeof(typename Cache::Storage));
    const auto& layout = cache_->group_layout(group);
    Index bytes = 0;
    for (Index layer = 0; layer < layout.extents().layers; ++layer) {
      column.layer_at.push_back(column.spans.size());
      const auto list = [&](BlockId block) {
        std::vector<StridedSpan> spans;
        const layout::SlotSpan span{block, row, rows};
        layout::for_each_row_span(layout, layer, layout::row_order<typename Cache::LayoutType>(), std::span(&span, 1),
                                  [&](Index offset, Index units) {
                                    if (units > 0) {
                                      spans.push_back({offset * unit, units * unit, 0});
                                    }
                                  });
        return spans;
      };
      std::vector<StridedSpan> spans = list(BlockId{0});
      const std::vector<StridedSpan> next = list(BlockId{1});
      const std::size_t first = column.spans.size();
      for (std::size_t i = 0; i < spans.size(); ++i) {
        StridedSpan& span = spans[i];
        span.stride = next[i].offset - span.offset;
        bytes += span.bytes;
        const bool follows = column.spans.size() > first && column.spans.back().stride == span.stride &&
                             column.spans.back().offset + column.spans.back().bytes == span.offset;
        if (follows) {
          column.spans.back().bytes += span.bytes;
        } else {
          column.spans.push_back(span);
        }
      }
    }
    column.layer_at.push_back(column.spans.size());
    column.bytes = static_cast<std::size_t>(bytes);
  }

  Cache* cache_;
  std::byte* data_;
  std::vector<Column> columns_;
  std::size_t most_bytes_ = 0;
  std::size_t most_spans_ = 0;
};

}  // namespace tier
}  // namespace v0
}  // namespace kvc
