// CUDA's 16-bit types, of which tests without a GPU need the names: see cuda_runtime_api.h.
#pragma once

#include <cstdint>

struct __nv_bfloat16 {
  std::uint16_t bits;
};
inline __nv_bfloat16 __float2bfloat16_rn(float x) {
  return {static_cast<std::uint16_t>(kvc_emulation::to_16_bits(true, x))};
}
inline float __bfloat162float(__nv_bfloat16 x) { return kvc_emulation::from_16_bits(true, x.bits); }
