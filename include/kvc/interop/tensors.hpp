// The keys and values of one layer as tensors, for kernels of others: address, sizes, strides and element type.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <type_traits>
#include <vector>

#include "kvc/batch.hpp"
#include "kvc/cache.hpp"
#include "kvc/core/error.hpp"
#include "kvc/core/types.hpp"
#include "kvc/element/element.hpp"
#include "kvc/interop/dlpack.hpp"
#include "kvc/layout/group_layout.hpp"
#include "kvc/layout/layer_groups.hpp"
#include "kvc/layout/shape.hpp"

namespace kvc {
inline namespace v0 {
namespace interop {

/// The order of the axes of a layer's tensors. The memory is the same; strides say where it lies.
enum class Axes {
  nhd,  ///< [blocks, block_tokens, kv_heads, row]
  hnd   ///< [blocks, kv_heads, block_tokens, row]
};

/// The element type of a pool for DLPack: f32, f16, bf16 and fp8 by their types, all others as bytes of a row, in which
/// codes and scales lie as element/quantized.hpp says. Codes of int8 without scales among them are signed bytes.
template <ElementType T>
[[nodiscard]] constexpr DLDataType data_type() noexcept {
  constexpr std::string_view name = Element<T>::name;
  constexpr auto bits = static_cast<std::uint8_t>(8 * sizeof(StorageOf<T>));
  if constexpr (name == "f32" || name == "f16") {
    return {DLDataTypeCode::floating_point, bits};
  } else if constexpr (name == "bf16") {
    return {DLDataTypeCode::bfloat, bits};
  } else if constexpr (name == "fp8") {
    return {DLDataTypeCode::float8_e4m3fn, bits};
  } else {
    static_assert(sizeof(StorageOf<T>) <= 8, "kvc: this element type has a storage unit that no DLDataType stands for");
    return {DLDataTypeCode::unsigned_integer, bits};
  }
}

/// The keys, or the values, of one layer. It refers to the pool, and is valid as long as the cache is.
struct Tensor {
  void* data = nullptr;                   ///< the row of block 0, head 0, slot 0
  std::array<std::int64_t, 4> shape{};    ///< in the order of the axes, in storage units
  std::array<std::int64_t, 4> strides{};  ///< in storage units
  DLDataType dtype{};
  DLDevice device{};
  bool read_only = false;

  /// The same as a DLTensor. It refers to the arrays of this object.
  [[nodiscard]] DLTensor dl_tensor() noexcept {
    return {data, device, static_cast<std::int32_t>(shape.size()), dtype, shape.data(), strides.data(), 0};
  }
  /// The same as a managed tensor of its own, which whoever receives it frees by its deleter. The pool stays the
  /// cache's, which must live until then. Throws std::bad_alloc.
  [[nodiscard]] DLManagedTensorVersioned* managed() const {
    struct Managed {
      DLManagedTensorVersioned tensor;
      Tensor of;
    };
    auto made = std::make_unique<Managed>(Managed{{}, *this});
    made->tensor = {dlpack_version, made.get(),
                    [](DLManagedTensorVersioned* self) { delete static_cast<Managed*>(self->manager_ctx); },
                    read_only ? dlpack_read_only : 0, made->of.dl_tensor()};
    return &made.release()->tensor;
  }
  /// The strides for a kernel that takes them in 32 bits, and multiplies them in 64. Throws std::invalid_argument that
  /// names the stride that does not fit.
  [[nodiscard]] std::array<std::int32_t, 4> strides_32() const {
    std::array<std::int32_t, 4> narrow{};
    for (std::size_t i = 0; i < strides.size(); ++i) {
      require(strides[i] <= max_pos, kvc::detail::concat({"stride of axis ", std::to_string(i)}), strides[i],
              "at most 2^31 - 1, for a kernel with strides of 32 bits");
      narrow[i] = static_cast<std::int32_t>(strides[i]);
    }
    return narrow;
  }
  /// Throws std::invalid_argument unless a kernel can count all offsets of the tensor in 32 bits.
  void require_offsets_of_32_bits() const {
    std::int64_t last = 0;
    for (std::size_t i = 0; i < shape.size(); ++i) {
      last += shape[i] > 0 ? (shape[i] - 1) * strides[i] : 0;
    }
    require(last <= max_pos, "last offset of the tensor", last,
            "at most 2^31 - 1, for a kernel with offsets of 32 bits");
  }
};

/// The tensors of a layer. Of a latent layer, whose values are the first elements of its keys, k and v have one
/// address.
struct LayerTensors {
  Tensor k;
  Tensor v;
  Tensor k_scales{};  ///< of a layout with scale planes, for element types with scales; else without data
  Tensor v_scales{};
};

namespace detail {
/// The keys, or the values, of a layer of a group, of `dim` elements in `row` storage units.
template <class T, class L, class Address>
[[nodiscard]] Tensor layer_tensor(const GroupLayout<L>& layout, Index layer, Axes axes, Index row, Address address) {
  const auto& extents = layout.extents();
  const Index first = address(0, layer, 0, 0);
  const Index block = address(1, layer, 0, 0) - first, head = address(0, layer, 1, 0) - first,
              slot = address(0, layer, 0, 1) - first;
  Tensor tensor;
  const bool nhd = axes == Axes::nhd;
  tensor.shape = {extents.blocks, nhd ? extents.block_tokens : extents.kv_heads,
                  nhd ? extents.kv_heads : extents.block_tokens, row};
  tensor.strides = {block, nhd ? slot : head, nhd ? head : slot, 1};
  tensor.dtype = data_type<T>();
  return tensor;
}
/// Scales as words of 32 bits: floats of Int8, and others as bits.
template <class T>
[[nodiscard]] Tensor as_words(Tensor bytes) {
  constexpr std::int64_t units = 4 / static_cast<std::int64_t>(sizeof(StorageOf<T>));
  bytes.shape[3] /= units;
  for (std::size_t i = 0; i < 3; ++i) {
    bytes.strides[i] /= units;
  }
  bytes.dtype = {
      std::string_view(Element<T>::name) == "int8" ? DLDataTypeCode::floating_point : DLDataTypeCode::unsigned_integer,
      32};
  return bytes;
}
/// Where a model layer is, among those that have a row for each token.
template <class Cache>
[[nodiscard]] LayerPlace place_of(const Cache& cache, Index layer) {
  const LayerPlace place = cache.layers().place(layer);
  const Pos tokens = cache.layers().groups()[static_cast<std::size_t>(place.group)].tokens_per_row;
  require(tokens == 1, "layer", layer, "one with a row for each token");
  return place;
}
}  // namespace detail

/// The keys and values of one layer of the model, for kernels of others.
///
///   cache    const: the tensors are read-only
///   device   where the pool lies, if not in the memory of the CPU
///
/// Element (block, slot, head, d) of k is element d of the key in that place: rows of f32, f16, bf16 and fp8 have
/// key_dim elements, others row_size(key_dim) bytes. Where scales lie in planes of their own, k and v are the codes,
/// code_size(key_dim) bytes, and k_scales and v_scales have, in the same axes, a float for each row of int8, and for a
/// row of int4 a word of scale and minimum for each group of 32 elements, as 32-bit unsigned. A position is in
/// block `kv_indices[entry]` of the batch's tables. Throws std::invalid_argument if there is no such layer, or it has
/// compressed rows or a recurrent state. O(1).
template <class Cache>
[[nodiscard]] LayerTensors layer_tensors(Cache& cache, Index layer, Axes axes = Axes::nhd, DLDevice device = {}) {
  using T = typename Cache::Element;
  const LayerPlace place = detail::place_of(cache, layer);
  const auto& layout = cache.group_layout(place.group);
  const Shape& shape = cache.shape(place.group);
  constexpr bool has_scale_planes = ScaledElement<T> && std::remove_cvref_t<decltype(layout)>::has_scale_planes;
  const auto units = [](Index dim) { return has_scale_planes ? code_size<T>(dim) : Element<T>::row_size(dim); };
  // Of storage units at the places that offset(block, layer, head, slot) gives, `row` of them in a row.
  const auto make = [&](Index row, auto offset) {
    const auto at = [&](int b, Index l, Index h, Pos s) { return offset(BlockId{b}, l, h, s); };
    Tensor tensor = detail::layer_tensor<T>(layout, place.layer, axes, row, at);
    tensor.data = const_cast<StorageOf<T>*>(cache.data() + at(0, place.layer, 0, 0));
    tensor.device = device;
    tensor.read_only = std::is_const_v<Cache>;
    return tensor;
  };
  LayerTensors tensors{make(units(shape.key_dim), [&](auto... at) { return layout.k(at...); }),
                       make(units(shape.value_dim), [&](auto... at) { return layout.v(at...); })};
  if constexpr (has_scale_planes) {
    tensors.k_scales = detail::as_words<T>(make(Element<T>::row_size(shape.key_dim) - units(shape.key_dim),
                                                [&](auto... at) { return layout.k_scales(at...); }));
    tensors.v_scales = detail::as_words<T>(make(Element<T>::row_size(shape.value_dim) - units(shape.value_dim),
                                                [&](auto... at) { return layout.v_scales(at...); }));
    if constexpr (std::string_view(Element<T>::name) == "int8") {
      tensors.k.dtype = tensors.v.dtype = {DLDataTypeCode::signed_integer, 8};
    }
  }
  return tensors;
}

/// Addresses of the rows of block-table entries, for kernels that take pointers to blocks.
struct BlockPointers {
  std::vector<void*> k;  ///< [entries]; the key of head 0 in the first slot of an entry
  std::vector<void*> v;  ///< [entries]; its value
};

/// The blocks of one layer by their addresses, in the order of tables.kv_indices; kv_indptr says which are whose. Slots
/// and heads are as far apart as the strides of layer_tensors say. Throws std::invalid_argument as layer_tensors does,
/// and if a block is not one of the pool, or the first slot of an entry is not one of a block. O(entries).
template <class Cache>
  requires(!std::is_const_v<Cache>)
[[nodiscard]] BlockPointers block_pointers(Cache& cache, Index layer, const BatchTables& tables) {
  const LayerPlace place = detail::place_of(cache, layer);
  const auto& layout = cache.group_layout(place.group);
  require(tables.first_slots.empty() || tables.first_slots.size() == tables.kv_indices.size(),
          "tables.first_slots.size()", tables.first_slots.size(), "0 or the number of entries");
  BlockPointers pointers;
  for (std::size_t e = 0; e < tables.kv_indices.size(); ++e) {
    const std::int32_t block = tables.kv_indices[e];
    require(block >= 0 && block < layout.extents().blocks, "block", block, "one of the pool");
    const Pos slot = tables.first_slots.empty() ? 0 : tables.first_slots[e];
    require(slot >= 0 && slot < layout.extents().block_tokens, "first slot", slot, "one of a block");
    pointers.k.push_back(cache.data() + layout.k(BlockId{block}, place.layer, 0, slot));
    pointers.v.push_back(cache.data() + layout.v(BlockId{block}, place.layer, 0, slot));
  }
  return pointers;
}

}  // namespace interop
}  // namespace v0
}  // namespace kvc
