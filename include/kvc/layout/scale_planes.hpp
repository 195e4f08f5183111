// ScalePlanes: the scales of quantised rows in planes of their own, as kernels of others expect them.
#pragma once

#include <algorithm>
#include <array>
#include <concepts>
#include <string>
#include <string_view>

#include "kvc/core/error.hpp"
#include "kvc/core/types.hpp"
#include "kvc/fwd.hpp"
#include "kvc/layout/layout.hpp"

namespace kvc {
inline namespace v0 {

/// A Layout that keeps the scales of a row apart from its codes. Its k and v are offsets of codes. Of its extents,
/// key_row and value_row count the codes of a row, and key_scales and value_scales its scales.
///
///   expression                          | requires              | returns, does                           | complexity
///   ------------------------------------+-----------------------+-----------------------------------------+-----------
///   l.k_scales(block, layer, head,      | 0 <= argument <= its  | Index: offset of the scales of that     | O(1)
///     slot)                             | extent                | key                                     |
///   l.v_scales(block, layer, head,      | 0 <= argument <= its  | Index: offset of the scales of that     | O(1)
///     slot)                             | extent                | value                                   |
///   l.k_scale_stride(),                 |                       | Index: from the scales of one slot to   | O(1)
///     l.v_scale_stride()                |                       | those of the next                       |
///
/// All are const and do not throw. The laws of Layout hold of scales as they do of rows.
template <class L>
concept ScalePlaneLayout = Layout<L> && requires(const L layout, BlockId block, Index i, Pos slot) {
  { layout.k_scales(block, i, i, slot) } -> std::same_as<Index>;
  { layout.v_scales(block, i, i, slot) } -> std::same_as<Index>;
  { layout.k_scale_stride() } -> std::same_as<Index>;
  { layout.v_scale_stride() } -> std::same_as<Index>;
};

/// All codes of a pool, laid out by L, and behind them all scales, laid out by L too:
///
///   ScalePlanes<>                        K codes [kv_heads, block_tokens, code_size(key_dim)]    in each block
///                                        K scales [kv_heads, block_tokens, the other units]      and V alike
///   ScalePlanes<LayerMajor<TokenMajor>>  K codes [blocks, block_tokens, kv_heads, code_size(key_dim)]  of each layer
///                                        K scales [blocks, block_tokens, kv_heads, the other units]    of each layer
///
/// So a row of Int8 is dim codes in one place (padded to a multiple of 4) and a float in another, and with dims that
/// are multiples of 16 all codes begin on 16 bytes. The first scale lies on a multiple of 64 units. Element types
/// without scales are laid out as by L. Where layer groups share the blocks of a pool, each block is laid out like a
/// pool of one block: its codes, then its scales.
template <class L>
class ScalePlanes {
  static_assert(Layout<L> && !ScalePlaneLayout<L>, "kvc: ScalePlanes lays codes and scales out by a plain layout");

  static constexpr std::string_view suffix = "-scale-planes";
  static constexpr auto make_name() {
    constexpr std::string_view of_codes = L::name;
    std::array<char, of_codes.size() + suffix.size()> text{};
    std::copy(suffix.begin(), suffix.end(), std::copy(of_codes.begin(), of_codes.end(), text.begin()));
    return text;
  }
  static constexpr auto name_text = make_name();

 public:
  static constexpr std::string_view name{name_text.data(), name_text.size()};

  /// Throws std::invalid_argument if the pool exceeds 2^60 units.
  constexpr explicit ScalePlanes(const PoolExtents& extents)
      : extents_(extents),
        codes_(of_rows(extents, extents.key_row, extents.value_row)),
        scales_(of_rows(extents, extents.key_scales, extents.value_scales)) {
    constexpr Index line = 64, most = Index{1} << 60;
    base_ = scales_.size() == 0 ? codes_.size() : ceil_div(codes_.size(), line) * line;
    if (base_ > most - scales_.size()) {
      throw_invalid("pool size", std::to_string(base_) + " + " + std::to_string(scales_.size()), "at most 2^60 units");
    }
  }

  /// The extents that it was made for.
  [[nodiscard]] constexpr const PoolExtents& extents() const noexcept { return extents_; }
  /// Storage units in the pool.
  [[nodiscard]] constexpr Index size() const noexcept { return base_ + scales_.size(); }
  /// Storage units of one block, codes and scales.
  [[nodiscard]] constexpr Index block_size() const noexcept { return codes_.block_size() + scales_.block_size(); }
  /// Offset of the codes of a key, in storage units. O(1).
  [[nodiscard]] constexpr Index k(BlockId block, Index layer, Index head, Pos slot) const noexcept {
    return codes_.k(block, layer, head, slot);
  }
  /// Offset of the codes of a value, in storage units. O(1).
  [[nodiscard]] constexpr Index v(BlockId block, Index layer, Index head, Pos slot) const noexcept {
    return codes_.v(block, layer, head, slot);
  }
  /// Offset of the scales of a key, in storage units. O(1).
  [[nodiscard]] constexpr Index k_scales(BlockId block, Index layer, Index head, Pos slot) const noexcept {
    return base_ + scales_.k(block, layer, head, slot);
  }
  /// Offset of the scales of a value, in storage units. O(1).
  [[nodiscard]] constexpr Index v_scales(BlockId block, Index layer, Index head, Pos slot) const noexcept {
    return base_ + scales_.v(block, layer, head, slot);
  }
  /// Storage units from the codes of a key to those of the next slot.
  [[nodiscard]] constexpr Index k_stride() const noexcept { return codes_.k_stride(); }
  /// Storage units from the codes of a value to those of the next slot.
  [[nodiscard]] constexpr Index v_stride() const noexcept { return codes_.v_stride(); }
  /// Storage units from the scales of a key to those of the next slot.
  [[nodiscard]] constexpr Index k_scale_stride() const noexcept { return scales_.k_stride(); }
  /// Storage units from the scales of a value to those of the next slot.
  [[nodiscard]] constexpr Index v_scale_stride() const noexcept { return scales_.v_stride(); }

 private:
  static constexpr L of_rows(PoolExtents extents, Index key_row, Index value_row) {
    extents.key_row = key_row;
    extents.value_row = value_row;
    extents.key_scales = extents.value_scales = 0;
    return L(extents);
  }

  PoolExtents extents_;
  L codes_;
  L scales_;
  Index base_ = 0;  // of the scales
};
static_assert(ScalePlaneLayout<ScalePlanes<HeadMajor>> && !ScalePlaneLayout<HeadMajor>);

}  // namespace v0
}  // namespace kvc
