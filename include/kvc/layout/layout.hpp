// Layouts: where the row of a key or a value lies in the pool.
//
//   HeadMajor    K [kv_heads, block_tokens, key_row]   V [kv_heads, block_tokens, value_row]
//   TokenMajor   K [block_tokens, kv_heads, key_row]   V [block_tokens, kv_heads, value_row]
//
// In both, a block holds its layers one after the other, and a layer holds its keys, then its values, so that a block
// is contiguous. HeadMajor suits attention, which reads the rows of one head. TokenMajor is the order that many kernels
// of inference engines expect. layout/layer_major.hpp has a pool for each layer, with blocks in either order.
// layout/scale_planes.hpp has the scales of quantised rows apart from their codes.
#pragma once

#include <concepts>
#include <string>
#include <string_view>

#include "kvc/core/error.hpp"
#include "kvc/core/types.hpp"

namespace kvc {
inline namespace v0 {

/// The extents of a pool, which a layout is made for. A storage unit is one object of Element<T>::Storage.
struct PoolExtents {
  Index blocks = 0;
  Index block_tokens = 0;  ///< slots in a block
  Index layers = 0;
  Index kv_heads = 0;
  Index key_row = 0;       ///< storage units in the key of one head: Element<T>::row_size(key_dim)
  Index value_row = 0;     ///< storage units in the value of one head: Element<T>::row_size(value_dim)
  Index key_scales = 0;    ///< of a ScalePlaneLayout: storage units of the scales of a key, which key_row lacks
  Index value_scales = 0;  ///< of a ScalePlaneLayout: storage units of the scales of a value
  friend constexpr bool operator==(const PoolExtents&, const PoolExtents&) = default;
};

/// Maps (block, layer, head, slot) to an offset in the pool. All offsets and sizes count storage units.
///
///   expression                    | requires              | returns, does            | throws             | complexity
///   ------------------------------+-----------------------+--------------------------+--------------------+-----------
///   L(extents)                    | extents not negative  | a layout of that pool    | invalid_argument:  | O(1)
///                                 |                       |                          | the pool exceeds   |
///                                 |                       |                          | 2^60 units         |
///   L::name                       |                       | a name that no other     |                    |
///                                 |                       | layout has, convertible  |                    |
///                                 |                       | to std::string_view      |                    |
///   l.extents()                   |                       | the extents that it was  |                    | O(1)
///                                 |                       | made for                 |                    |
///   l.size()                      |                       | Index: units in the      |                    | O(1)
///                                 |                       | pool, at most 2^60       |                    |
///   l.block_size()                |                       | Index: units in one      |                    | O(1)
///                                 |                       | block                    |                    |
///   l.k(block, layer, head, slot) | 0 <= argument <= its  | Index: offset of the row |                    | O(1)
///                                 | extent                | of that key              |                    |
///   l.v(block, layer, head, slot) | 0 <= argument <= its  | Index: offset of the row |                    | O(1)
///                                 | extent                | of that value            |                    |
///   l.k_stride(), l.v_stride()    |                       | Index: from the row of   |                    | O(1)
///                                 |                       | one slot to that of the  |                    |
///                                 |                       | next                     |                    |
///
/// All but the constructor are const and do not throw. k and v accept one block, layer, head or slot past the last:
/// callers compute strides from it.
///
/// Laws, for all rows of the pool:
///   bounds     a row lies in [0, size())
///   disjoint   no two rows share a unit: neither two keys, nor two values, nor a key and a value
///   even       the distances from block to block, layer to layer, head to head and slot to slot are the same
///              everywhere, for k and for v: an offset is a sum of multiples of the four indices
///
/// Copies are cheap and map alike. KvCache verifies a sample of the rows when it is constructed, and
/// testing/layout_conformance.hpp all of them. A minimal layout is in tests/user_layout.hpp.
template <class L>
concept Layout = std::copyable<L> && std::constructible_from<L, const PoolExtents&> &&
                 requires(const L layout, BlockId block, Index i, Pos slot) {
                   { L::name } -> std::convertible_to<std::string_view>;
                   { layout.extents() } -> std::convertible_to<const PoolExtents&>;
                   { layout.size() } -> std::same_as<Index>;
                   { layout.block_size() } -> std::same_as<Index>;
                   { layout.k(block, i, i, slot) } -> std::same_as<Index>;
                   { layout.v(block, i, i, slot) } -> std::same_as<Index>;
                   { layout.k_stride() } -> std::same_as<Index>;
                   { layout.v_stride() } -> std::same_as<Index>;
                 };

namespace detail {

/// The part that HeadMajor and TokenMajor share: everything but the order of heads and slots.
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
      throw_invalid("pool size", std::to_string(a) + " x " + std::to_string(b), "at most 2^60 units");
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

/// The rows of one head over all slots of a block, then the next head:  K [kv_heads, block_tokens, key_row], V alike.
class HeadMajor : public detail::BlockedLayout {
 public:
  static constexpr std::string_view name = "head-major";
  using BlockedLayout::BlockedLayout;

  /// Offset of the row of a key, in storage units. O(1).
  [[nodiscard]] constexpr Index k(BlockId block, Index layer, Index head, Pos slot) const noexcept {
    return k_base(block, layer) + (head * extents().block_tokens + slot) * extents().key_row;
  }
  /// Offset of the row of a value, in storage units. O(1).
  [[nodiscard]] constexpr Index v(BlockId block, Index layer, Index head, Pos slot) const noexcept {
    return v_base(block, layer) + (head * extents().block_tokens + slot) * extents().value_row;
  }
  /// Storage units from the key of one slot to that of the next.
  [[nodiscard]] constexpr Index k_stride() const noexcept { return extents().key_row; }
  /// Storage units from the value of one slot to that of the next.
  [[nodiscard]] constexpr Index v_stride() const noexcept { return extents().value_row; }
};
static_assert(Layout<HeadMajor>);

/// The rows of all heads of one token, then the next token:  K [block_tokens, kv_heads, key_row], V alike.
class TokenMajor : public detail::BlockedLayout {
 public:
  static constexpr std::string_view name = "token-major";
  using BlockedLayout::BlockedLayout;

  /// Offset of the row of a key, in storage units. O(1).
  [[nodiscard]] constexpr Index k(BlockId block, Index layer, Index head, Pos slot) const noexcept {
    return k_base(block, layer) + (slot * extents().kv_heads + head) * extents().key_row;
  }
  /// Offset of the row of a value, in storage units. O(1).
  [[nodiscard]] constexpr Index v(BlockId block, Index layer, Index head, Pos slot) const noexcept {
    return v_base(block, layer) + (slot * extents().kv_heads + head) * extents().value_row;
  }
  /// Storage units from the key of one slot to that of the next.
  [[nodiscard]] constexpr Index k_stride() const noexcept { return extents().kv_heads * extents().key_row; }
  /// Storage units from the value of one slot to that of the next.
  [[nodiscard]] constexpr Index v_stride() const noexcept { return extents().kv_heads * extents().value_row; }
};
static_assert(Layout<TokenMajor>);

}  // namespace v0
}  // namespace kvc
