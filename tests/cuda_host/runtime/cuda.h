// The part of the driver's API that kvc/cuda uses, for tests without a GPU: see cuda_runtime_api.h.
#pragma once

#include <cstdint>

#include "cuda_runtime_api.h"

enum CUresult { CUDA_SUCCESS = 0, CUDA_ERROR_INVALID_VALUE = 1 };
enum CUtensorMapDataType { CU_TENSOR_MAP_DATA_TYPE_FLOAT16, CU_TENSOR_MAP_DATA_TYPE_BFLOAT16 };
enum CUtensorMapInterleave { CU_TENSOR_MAP_INTERLEAVE_NONE };
enum CUtensorMapSwizzle { CU_TENSOR_MAP_SWIZZLE_128B };
enum CUtensorMapL2promotion { CU_TENSOR_MAP_L2_PROMOTION_L2_128B };
enum CUtensorMapFloatOOBfill { CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE };
using cuuint32_t = std::uint32_t;
using cuuint64_t = std::uint64_t;
using CUtensorMap = kvc_emulation::TensorMap;

namespace kvc_runtime {
inline CUresult encode_tiled(CUtensorMap* map, CUtensorMapDataType, cuuint32_t, void* base, const cuuint64_t* extents,
                             const cuuint64_t* strides, const cuuint32_t* box, const cuuint32_t*, CUtensorMapInterleave,
                             CUtensorMapSwizzle, CUtensorMapL2promotion, CUtensorMapFloatOOBfill) {
  ++runtime().calls["cuTensorMapEncodeTiled"];
  if (!runtime().makes_tensor_maps) {
    return CUDA_ERROR_INVALID_VALUE;
  }
  map->base = static_cast<std::byte*>(base);
  for (std::size_t d = 0; d < 4; ++d) {
    map->extents[d] = extents[d];
    map->box[d] = box[d];
    if (d < 3) {
      map->strides[d] = strides[d];
    }
  }
  return CUDA_SUCCESS;
}
}  // namespace kvc_runtime

inline cudaError_t cudaGetDriverEntryPointByVersion(const char*, void** p, unsigned, unsigned long long,
                                                    cudaDriverEntryPointQueryResult* found) {
  *p = reinterpret_cast<void*>(&kvc_runtime::encode_tiled);
  *found = cudaDriverEntryPointSuccess;
  return kvc_runtime::runtime().called("cudaGetDriverEntryPointByVersion");
}
