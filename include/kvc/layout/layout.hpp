// Layouts: (block, layer, head, slot) -> offset in the pool, in Storage objects.
//
// In both, a block holds all its layers one after the other, and a layer its keys followed by its values, so that a
// block moves as one piece. They differ in what is adjacent within a layer of a block:
//
//   HeadMajor    K [kv_heads, block_tokens, key_row]   V [kv_heads, block_tokens, value_row]
//   TokenMajor   K [block_tokens, kv_heads, key_row]   V [block_tokens, kv_heads, value_row]
//
// HeadMajor is what attention likes: the rows of one head follow one another. TokenMajor is what many kernels expect.
#pragma once

#include <concepts>
#include <limits>
#include <string_view>

#include "kvc/core/error.hpp"
#include "kvc/core/types.hpp"
#include "kvc/layout/shape.hpp"

namespace kvc {
inline namespace v0 {

/// Extents of a pool. Rows are counted in Storage objects: Element<T>::row_size(dim).
struct PoolExtents {
  Index blocks = 0;
  Index block_tokens = 0;
  Index layers = 0;
  Index kv_heads = 0;
  Index key_row = 0;
  Index value_row = 0;
};

/// Maps a place to its offset. Offsets are 64-bit throughout. Within a block layers, heads and slots are each evenly
/// spaced; k and v may be asked for one layer or head past the last, to find the distance.
template <class L>
concept Layout =
    std::constructible_from<L, const PoolExtents&> && requires(const L layout, BlockId block, Index i, Pos slot) {
      { L::name } -> std::convertible_to<std::string_view>;
      { layout.size() } -> std::same_as<Index>;        // Storage objects in the whole pool
      { layout.block_size() } -> std::same_as<Index>;  // Storage objects in one block
      { layout.k(block, i, i, slot) } -> std::same_as<Index>;
      { layout.v(block, i, i, slot) } -> std::same_as<Index>;
      { layout.k_stride() } -> std::same_as<Index>;  // from one slot to the next, same head
      { layout.v_stride() } -> std::same_as<Index>;
    };

namespace detail {

/// What the two layouts share: everything but the order of heads and slots.
class BlockedLayout {
 public:
  constexpr explicit BlockedLayout(const PoolExtents& extents) : extents_(extents) {
    k_size_ = times(times(extents.kv_heads, extents.block_tokens), extents.key_row);
    layer_size_ = k_size_ + times(times(extents.kv_heads, extents.block_tokens), extents.value_row);
    block_size_ = times(extents.layers, layer_size_);
    size_ = times(extents.blocks, block_size_);
  }

  [[nodiscard]] constexpr const PoolExtents& extents() const noexcept { return extents_; }
  [[nodiscard]] constexpr Index size() const noexcept { return size_; }
  [[nodiscard]] constexpr Index block_size() const noexcept { return block_size_; }

 protected:
  [[nodiscard]] constexpr Index k_base(BlockId block, Index layer) const noexcept {
    return to_index(block) * block_size_ + layer * layer_size_;
  }
  [[nodiscard]] constexpr Index v_base(BlockId block, Index layer) const noexcept {
    return k_base(block, layer) + k_size_;
  }

 private:
  /// A product that must stay below 2^60, so that sums and byte counts of it cannot overflow.
  static constexpr Index times(Index a, Index b) {
    constexpr Index most = Index{1} << 60;
    if (a != 0 && b > most / a) {
      throw_invalid("pool size", std::to_string(a) + " x " + std::to_string(b), "at most 2^60 elements");
    }
    return a * b;
  }

  PoolExtents extents_;
  Index k_size_;
  Index layer_size_;
  Index block_size_;
  Index size_;
};

}  // namespace detail

/// K of one head contiguous over the slots of a block, then the next head.
class HeadMajor : public detail::BlockedLayout {
 public:
  static constexpr std::string_view name = "head-major";
  using BlockedLayout::BlockedLayout;

  [[nodiscard]] constexpr Index k(BlockId block, Index layer, Index head, Pos slot) const noexcept {
    return k_base(block, layer) + (head * extents().block_tokens + slot) * extents().key_row;
  }
  [[nodiscard]] constexpr Index v(BlockId block, Index layer, Index head, Pos slot) const noexcept {
    return v_base(block, layer) + (head * extents().block_tokens + slot) * extents().value_row;
  }
  [[nodiscard]] constexpr Index k_stride() const noexcept { return extents().key_row; }
  [[nodiscard]] constexpr Index v_stride() const noexcept { return extents().value_row; }
};
static_assert(Layout<HeadMajor>);

/// All heads of one token together, then the next token.
class TokenMajor : public detail::BlockedLayout {
 public:
  static constexpr std::string_view name = "token-major";
  using BlockedLayout::BlockedLayout;

  [[nodiscard]] constexpr Index k(BlockId block, Index layer, Index head, Pos slot) const noexcept {
    return k_base(block, layer) + (slot * extents().kv_heads + head) * extents().key_row;
  }
  [[nodiscard]] constexpr Index v(BlockId block, Index layer, Index head, Pos slot) const noexcept {
    return v_base(block, layer) + (slot * extents().kv_heads + head) * extents().value_row;
  }
  [[nodiscard]] constexpr Index k_stride() const noexcept { return extents().kv_heads * extents().key_row; }
  [[nodiscard]] constexpr Index v_stride() const noexcept { return extents().kv_heads * extents().value_row; }
};
static_assert(Layout<TokenMajor>);

}  // namespace v0
}  // namespace kvc
