// Chunk: 8 elements of a cached row, as they are stored and as tensor cores multiply them.
#pragma once

#include <cstddef>
#include <cstdint>

#include "kvc/cuda/device.cuh"
#include "kvc/cuda/format.hpp"

namespace kvc {
inline namespace v0 {
namespace cuda {
namespace detail {

/// 32-bit words that hold 8 elements.
template <Format F>
inline constexpr int chunk_words = code_bytes(F) * 2;

/// 8 elements as stored. A row starts at a multiple of 16 bytes (f16, bf16), 8 (fp8, and int8 with scales in planes) or
/// 4 (int8, whose scale lies between the codes of rows). Int8 rows straddle sectors that the neighbouring rows need
/// too, so they are never streamed.
template <Format F>
struct Chunk {
  std::uint32_t words[chunk_words<F>];

  __device__ __forceinline__ void zero() {
#pragma unroll
    for (int i = 0; i < chunk_words<F>; ++i) {
      words[i] = 0;
    }
  }
  /// Streaming: no other block reads this row, so it need not stay in the cache.
  template <bool Streaming>
  __device__ __forceinline__ void load(const std::byte* row, int chunk) {
    const std::byte* const p = row + chunk * (8 * code_bytes(F));
    if constexpr (F == Format::int8) {
      words[0] = device::load_readonly<std::uint32_t>(p);
      words[1] = device::load_readonly<std::uint32_t>(p + 4);
    } else if constexpr (code_bytes(F) == 1) {
      const uint2 both = Streaming ? device::load_streaming<uint2>(p) : device::load_readonly<uint2>(p);
      words[0] = both.x;
      words[1] = both.y;
    } else {
      const uint4 all = Streaming ? device::load_streaming<uint4>(p) : device::load_readonly<uint4>(p);
      words[0] = all.x;
      words[1] = all.y;
      words[2] = all.z;
      words[3] = all.w;
    }
  }
  /// Loads this chunk and the next one of a row of bytes, 16 bytes at a multiple of 16.
  template <bool Streaming>
  __device__ __forceinline__ void load_both(const std::byte* row, int chunk, Chunk& next) {
    static_assert(code_bytes(F) == 1);
    const std::byte* const p = row + 8 * chunk;
    const uint4 all = Streaming ? device::load_streaming<uint4>(p) : device::load_readonly<uint4>(p);
    words[0] = all.x;
    words[1] = all.y;
    next.words[0] = all.z;
    next.words[1] = all.w;
  }
  /// Converts exactly to four pairs of format C, in which mma multiplies them.
  template <Format C>
  __device__ __forceinline__ void widen(std::uint32_t (&pairs)[4]) const {
    if constexpr (code_bytes(F) == 2) {
      static_assert(C == F);
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        pairs[i] = words[i];
      }
    } else {
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        std::uint32_t two[2];
        if constexpr (F == Format::fp8_e4m3) {
          device::widen_fp8(words[i], two);
        } else {
          device::widen_int8(words[i], two);
        }
#pragma unroll
        for (int j = 0; j < 2; ++j) {
          pairs[2 * i + j] = C == Format::f16 ? two[j]
                                              : device::pack<C>(device::low_of<Format::f16>(two[j]),
                                                                device::high_of<Format::f16>(two[j]));
        }
      }
    }
  }
};

}  // namespace detail
}  // namespace cuda
}  // namespace v0
}  // namespace kvc
