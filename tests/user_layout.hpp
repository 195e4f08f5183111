// Layouts as users write them, for tests.
#pragma once

#include <string_view>

#include "kvc/layout/layout.hpp"

namespace kvc_test {

/// A minimal layout: key and value of one head and slot side by side,  [blocks, block_tokens, layers, kv_heads, K | V].
struct Interleaved {
  static constexpr std::string_view name = "interleaved";
  kvc::PoolExtents of;
  explicit Interleaved(const kvc::PoolExtents& extents) : of(extents) {}
  const kvc::PoolExtents& extents() const { return of; }
  kvc::Index row() const { return of.key_row + of.value_row; }
  kvc::Index block_size() const { return of.block_tokens * of.layers * of.kv_heads * row(); }
  kvc::Index size() const { return of.blocks * block_size(); }
  kvc::Index k(kvc::BlockId b, kvc::Index layer, kvc::Index head, kvc::Pos slot) const {
    return kvc::to_index(b) * block_size() + ((slot * of.layers + layer) * of.kv_heads + head) * row();
  }
  kvc::Index v(kvc::BlockId b, kvc::Index layer, kvc::Index head, kvc::Pos slot) const {
    return k(b, layer, head, slot) + of.key_row;
  }
  kvc::Index k_stride() const { return of.layers * of.kv_heads * row(); }
  kvc::Index v_stride() const { return k_stride(); }
};
static_assert(kvc::Layout<Interleaved>);

/// All blocks of one layer, then the next layer: blocks are not contiguous, and need not be.
struct LayersFirst : Interleaved {
  static constexpr std::string_view name = "layers first";
  using Interleaved::Interleaved;
  kvc::Index k(kvc::BlockId b, kvc::Index layer, kvc::Index head, kvc::Pos slot) const {
    return (((layer * of.blocks + kvc::to_index(b)) * of.block_tokens + slot) * of.kv_heads + head) * row();
  }
  kvc::Index v(kvc::BlockId b, kvc::Index layer, kvc::Index head, kvc::Pos slot) const {
    return k(b, layer, head, slot) + of.key_row;
  }
  kvc::Index k_stride() const { return of.kv_heads * row(); }
  kvc::Index v_stride() const { return k_stride(); }
};
static_assert(kvc::Layout<LayersFirst>);

/// Wrong: a value overwrites its key.
struct ValueIsKey : Interleaved {
  static constexpr std::string_view name = "value is key";
  using Interleaved::Interleaved;
  kvc::Index v(kvc::BlockId b, kvc::Index layer, kvc::Index head, kvc::Pos slot) const {
    return k(b, layer, head, slot);
  }
};

}  // namespace kvc_test
