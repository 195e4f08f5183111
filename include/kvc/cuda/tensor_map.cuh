// Tensor maps: descriptions of a tensor in device memory for bulk copies of boxes. The driver makes them; its function
// is looked up at run time, so nothing has to be linked.
#pragma once

#include <cuda.h>

#include <cstddef>
#include <cstdint>

#include "kvc/cuda/check.cuh"
#include "kvc/cuda/format.hpp"
#include "kvc/cuda/remembered.hpp"
#include "kvc/cuda/tma_boxes.hpp"

namespace kvc {
inline namespace v0 {
namespace cuda {
namespace detail {

using EncodeTiled = CUresult (*)(CUtensorMap*, CUtensorMapDataType, cuuint32_t, void*, const cuuint64_t*,
                                 const cuuint64_t*, const cuuint32_t*, const cuuint32_t*, CUtensorMapInterleave,
                                 CUtensorMapSwizzle, CUtensorMapL2promotion, CUtensorMapFloatOOBfill);

/// The driver's cuTensorMapEncodeTiled; null if it has none.
[[nodiscard]] inline EncodeTiled encode_tiled() {
  static const EncodeTiled function = [] {
    void* p = nullptr;
    cudaDriverEntryPointQueryResult found = cudaDriverEntryPointSymbolNotFound;
#if CUDART_VERSION >= 12050
    KVC_CUDA(cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &p, 12000, cudaEnableDefault, &found));
#else
    KVC_CUDA(cudaGetDriverEntryPoint("cuTensorMapEncodeTiled", &p, cudaEnableDefault, &found));
#endif
    return found == cudaDriverEntryPointSuccess ? reinterpret_cast<EncodeTiled>(p) : nullptr;
  }();
  return function;
}

/// Describes a pool's rows; false if the driver refuses the tensor. `map` must be at a multiple of 64 bytes, which its
/// type guarantees.
[[nodiscard]] inline bool make_tensor_map(CUtensorMap& map, std::byte* pool, Format format, const TmaTensor& rows) {
  const EncodeTiled encode = encode_tiled();
  if (encode == nullptr) {
    return false;
  }
  cuuint64_t extents[4], strides[3];
  cuuint32_t box[4], steps[4];
  for (std::size_t d = 0; d < 4; ++d) {
    extents[d] = rows.extents[d];
    box[d] = rows.box[d];
    steps[d] = 1;
    if (d < 3) {
      strides[d] = rows.strides[d];
    }
  }
  return encode(&map, format == Format::f16 ? CU_TENSOR_MAP_DATA_TYPE_FLOAT16 : CU_TENSOR_MAP_DATA_TYPE_BFLOAT16, 4,
                pool + rows.base, extents, strides, box, steps, CU_TENSOR_MAP_INTERLEAVE_NONE,
                CU_TENSOR_MAP_SWIZZLE_128B, CU_TENSOR_MAP_L2_PROMOTION_L2_128B,
                CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE) == CUDA_SUCCESS;
}

/// A tensor map; not `possible` if the driver refuses the tensor.
struct MadeTensorMap {
  CUtensorMap map;
  bool possible;
};
/// The map of a pool's rows, made when it is asked for the first time: a map is a function of addresses and sizes. Each
/// thread keeps 256 of them, those of 128 layers.
[[nodiscard]] inline MadeTensorMap tensor_map(std::byte* pool, Format format, const TmaTensor& rows) {
  struct Key {
    std::byte* pool;
    Format format;
    TmaTensor rows;
    bool operator==(const Key&) const = default;
  };
  thread_local RecentValues<Key, MadeTensorMap> recent(256);
  // Layers follow each other at multiples of a large power of two: its upper bits decide, too.
  auto hash = static_cast<std::uint64_t>(reinterpret_cast<std::uintptr_t>(pool + rows.base)) * 0x9e3779b97f4a7c15U;
  hash ^= hash >> 32;
  return recent.get({pool, format, rows}, static_cast<std::size_t>(hash), [&] {
    MadeTensorMap made{};
    made.possible = make_tensor_map(made.map, pool, format, rows);
    return made;
  });
}

}  // namespace detail
}  // namespace cuda
}  // namespace v0
}  // namespace kvc
