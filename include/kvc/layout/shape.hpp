// The shape of one cache: what a model fixes before any sequence exists.
#pragma once

#include "kvc/core/error.hpp"
#include "kvc/core/types.hpp"

namespace kvc {
inline namespace v0 {

/// layers x kv_heads rows per token: a key of key_dim and a value of value_dim elements each.
struct Shape {
  Index layers = 1;
  Index kv_heads = 1;   ///< key/value heads; query heads may be any multiple (GQA, MQA)
  Index key_dim = 0;    ///< elements in the key of one head
  Index value_dim = 0;  ///< elements in the value of one head; 0 means the same as key_dim

  friend constexpr bool operator==(const Shape&, const Shape&) = default;
};

/// The shape with its defaults filled in.
/// Throws std::invalid_argument if a count is not positive (value_dim: negative) or above 2^24, or if a token has more
/// than 2^28 elements.
[[nodiscard]] constexpr Shape validated(Shape shape) {
  constexpr Index most = Index{1} << 24;
  require_between(shape.layers, Index{1}, most, "shape.layers");
  require_between(shape.kv_heads, Index{1}, most, "shape.kv_heads");
  require_between(shape.key_dim, Index{1}, most, "shape.key_dim");
  require_between(shape.value_dim, Index{0}, most, "shape.value_dim");
  if (shape.value_dim == 0) {
    shape.value_dim = shape.key_dim;
  }
  // So that products of these counts cannot overflow. GroupRule limits the bytes, which depend on the element type.
  constexpr Index most_elements = Index{1} << 28;
  require(shape.layers * shape.kv_heads <= most_elements / (shape.key_dim + shape.value_dim), "shape.layers",
          shape.layers, "at most 2^28 elements in a token, all layers and heads together");
  return shape;
}

}  // namespace v0
}  // namespace kvc
