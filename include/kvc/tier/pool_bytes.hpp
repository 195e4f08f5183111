// PoolBytes: the bytes of each block of a cache's pool, as slower tiers store them.
#pragma once

#include <algorithm>
#include <cstddef>
#include <vector>

#include "kvc/core/types.hpp"
#include "kvc/io/byte_spans.hpp"
#include "kvc/layout/row_spans.hpp"

namespace kvc {
inline namespace v0 {
namespace tier {

/// Where the rows of a block lie, for a cache with one layer group in memory that the CPU can access. A block is one
/// piece under HeadMajor and TokenMajor, and under LayerMajor one for each layer or for its keys and its values. The
/// pieces, in the order of their addresses, are the payload of its record.
template <class Cache>
class PoolBytes {
 public:
  /// Finds the pieces. Throws std::bad_alloc. O(layers * kv_heads * block_tokens).
  explicit PoolBytes(Cache& cache) : data_(reinterpret_cast<std::byte*>(cache.data())) {
    constexpr auto unit = static_cast<Index>(sizeof(typename Cache::Storage));
    const auto& layout = cache.group_layout(0);
    const Pos slots = cache.policy().block_tokens();
    const auto add = [&](BlockId block, std::vector<Piece>& pieces) {
      for (Index layer = 0; layer < layout.extents().layers; ++layer) {
        const layout::SlotSpan all{block, 0, slots};
        layout::for_each_row_span(layout, layer, layout::row_order<typename Cache::LayoutType>(), std::span(&all, 1),
                                  [&](Index offset, Index units) {
                                    if (units > 0) {
                                      pieces.push_back({offset * unit, units * unit, 0});
                                    }
                                  });
      }
    };
    std::vector<Piece> next;  // the pieces of block 1: a distance further, each
    add(BlockId{0}, pieces_);
    add(BlockId{1}, next);
    for (std::size_t i = 0; i < pieces_.size(); ++i) {
      pieces_[i].stride = next[i].offset - pieces_[i].offset;
      bytes_ += pieces_[i].bytes;
    }
    std::ranges::sort(pieces_, {}, &Piece::offset);
    std::size_t count = 0;
    for (const Piece& piece : pieces_) {
      if (count > 0 && pieces_[count - 1].offset + pieces_[count - 1].bytes == piece.offset &&
          pieces_[count - 1].stride == piece.stride) {
        pieces_[count - 1].bytes += piece.bytes;
      } else {
        pieces_[count++] = piece;
      }
    }
    pieces_.resize(count);
  }

  /// Bytes of one block.
  [[nodiscard]] std::size_t bytes() const noexcept { return static_cast<std::size_t>(bytes_); }
  /// Pieces of one block.
  [[nodiscard]] std::size_t pieces() const noexcept { return pieces_.size(); }
  /// f(io::ByteSpan) for the pieces of a block, in order. O(pieces).
  template <class F>
  void for_each(BlockId block, F&& f) const {
    for (const Piece& piece : pieces_) {
      f(io::ByteSpan(data_ + piece.offset + to_index(block) * piece.stride, static_cast<std::size_t>(piece.bytes)));
    }
  }
  /// Copies the bytes of a block to `to`, of bytes() bytes. O(bytes).
  void copy_out(BlockId block, std::byte* to) const noexcept {
    for_each(block, [&](io::ByteSpan piece) { to = std::ranges::copy(piece, to).out; });
  }

 private:
  struct Piece {
    Index offset;
    Index bytes;
    Index stride;  // from the piece of one block to that of the next
  };
  std::byte* data_;
  std::vector<Piece> pieces_;
  Index bytes_ = 0;
};

}  // namespace tier
}  // namespace v0
}  // namespace kvc
