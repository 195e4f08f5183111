// CUDA's 16-bit types, of which tests without a GPU need the names: see cuda_runtime_api.h.
#pragma once

#include <cstdint>

struct __half {
  std::uint16_t bits;
};
inline __half __float2half_rn(float x) { return {static_cast<std::uint16_t>(kvc_emulation::to_16_bits(false, x))}; }
inline float __half2float(__half x) { return kvc_emulation::from_16_bits(false, x.bits); }
