// ShortBlake2b: BLAKE2b-256 of what fits in one compression, where the compiler may use AVX2. Standard library only.
#pragma once

#if defined(__AVX2__)
#define KVC_HAVE_SHORT_BLAKE2B

#include <immintrin.h>

#include <array>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <utility>

#include "kvc/config.hpp"
#include "kvc/core/error.hpp"
#include "kvc/tier/key.hpp"

namespace kvc {
inline namespace v0 {
namespace tier {
namespace detail {

/// The hash of a message of at most 128 bytes (RFC 7693, without key, 256 bits of output). That of a library takes
/// longer for such a message: it copies a state and the message, and wipes both. Words are added, rotated and
/// combined, and nothing is looked up by them, so the time does not depend on the message.
class ShortBlake2b {
 public:
  static constexpr std::size_t most_bytes = 128;

  ShortBlake2b& add(const void* data, std::size_t bytes) noexcept {
    KVC_ASSERT(bytes <= most_bytes - size_);
    std::memcpy(reinterpret_cast<std::byte*>(message_.data()) + size_, data, bytes);
    size_ += bytes;
    return *this;
  }
  /// The hash of all that was added.
  [[nodiscard]] Digest take() const noexcept {
    constexpr long long parameters = 0x01010000 + sizeof(Digest);  // one message, not a tree; no key
    const __m256i first = _mm256_xor_si256(load(0), _mm256_setr_epi64x(parameters, 0, 0, 0));
    const __m256i end = _mm256_setr_epi64x(static_cast<long long>(size_), 0, -1, 0);  // -1: the last block
    Rows rows{first, load(4), load(0), _mm256_xor_si256(load(4), end)};
    rounds(rows, std::make_index_sequence<12>());
    const __m256i hash = _mm256_xor_si256(first, _mm256_xor_si256(rows.a, rows.c));
    Digest digest;
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(digest.bytes.data()), hash);
    return digest;
  }

 private:
  /// The state, as a matrix of 4 rows with 4 words.
  struct Rows {
    __m256i a, b, c, d;
  };
  // The first 64 bits of the fractions of the square roots of the first eight primes.
  static constexpr std::uint64_t initial[8] = {0x6a09e667f3bcc908, 0xbb67ae8584caa73b, 0x3c6ef372fe94f82b,
                                               0xa54ff53a5f1d36f1, 0x510e527fade682d1, 0x9b05688c2b3e6c1f,
                                               0x1f83d9abfb41bd6b, 0x5be0cd19137e2179};
  // Which words of the message a round takes; after ten rounds from the beginning.
  static constexpr std::uint8_t order[10][16] = {
      {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15}, {14, 10, 4, 8, 9, 15, 13, 6, 1, 12, 0, 2, 11, 7, 5, 3},
      {11, 8, 12, 0, 5, 2, 15, 13, 10, 14, 3, 6, 7, 1, 9, 4}, {7, 9, 3, 1, 13, 12, 11, 14, 2, 6, 5, 10, 4, 0, 15, 8},
      {9, 0, 5, 7, 2, 4, 10, 15, 14, 1, 11, 12, 6, 8, 3, 13}, {2, 12, 6, 10, 0, 11, 8, 3, 4, 13, 7, 5, 15, 14, 1, 9},
      {12, 5, 1, 15, 14, 13, 4, 10, 0, 7, 6, 3, 9, 2, 8, 11}, {13, 11, 7, 14, 12, 1, 3, 9, 5, 0, 15, 4, 8, 6, 2, 10},
      {6, 15, 14, 9, 11, 3, 0, 8, 12, 2, 13, 7, 1, 4, 10, 5}, {10, 2, 8, 4, 7, 6, 1, 5, 15, 11, 9, 14, 3, 12, 13, 0}};

  [[nodiscard]] static __m256i load(std::size_t word) noexcept {
    return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(initial + word));
  }
  template <std::size_t... R>
  KVC_ALWAYS_INLINE void rounds(Rows& rows, std::index_sequence<R...>) const noexcept {
    (round<R % 10>(rows), ...);
  }
  /// Mixes the columns, then the diagonals. For these the other rows are turned against b, which is the last to be
  /// known.
  template <std::size_t R>
  KVC_ALWAYS_INLINE void round(Rows& r) const noexcept {
    mix(r, words<R, 0, 2, 4, 6>(), words<R, 1, 3, 5, 7>());
    r = {_mm256_permute4x64_epi64(r.a, 0x93), r.b, _mm256_permute4x64_epi64(r.c, 0x39),
         _mm256_permute4x64_epi64(r.d, 0x4e)};
    mix(r, words<R, 14, 8, 10, 12>(), words<R, 15, 9, 11, 13>());
    r = {_mm256_permute4x64_epi64(r.a, 0x39), r.b, _mm256_permute4x64_epi64(r.c, 0x93),
         _mm256_permute4x64_epi64(r.d, 0x4e)};
  }
  KVC_ALWAYS_INLINE static void mix(Rows& r, __m256i x, __m256i y) noexcept {
    const __m256i by_24 = _mm256_setr_epi8(3, 4, 5, 6, 7, 0, 1, 2, 11, 12, 13, 14, 15, 8, 9, 10,  //
                                           3, 4, 5, 6, 7, 0, 1, 2, 11, 12, 13, 14, 15, 8, 9, 10);
    const __m256i by_16 = _mm256_setr_epi8(2, 3, 4, 5, 6, 7, 0, 1, 10, 11, 12, 13, 14, 15, 8, 9,  //
                                           2, 3, 4, 5, 6, 7, 0, 1, 10, 11, 12, 13, 14, 15, 8, 9);
    r.a = _mm256_add_epi64(_mm256_add_epi64(r.a, x), r.b);
    r.d = _mm256_shuffle_epi32(_mm256_xor_si256(r.d, r.a), 0xb1);  // to the right by 32 bits
    r.c = _mm256_add_epi64(r.c, r.d);
    r.b = _mm256_shuffle_epi8(_mm256_xor_si256(r.b, r.c), by_24);
    r.a = _mm256_add_epi64(_mm256_add_epi64(r.a, y), r.b);
    r.d = _mm256_shuffle_epi8(_mm256_xor_si256(r.d, r.a), by_16);
    r.c = _mm256_add_epi64(r.c, r.d);
    const __m256i b = _mm256_xor_si256(r.b, r.c);
    r.b = _mm256_or_si256(_mm256_srli_epi64(b, 63), _mm256_add_epi64(b, b));
  }
  template <std::size_t R, std::size_t A, std::size_t B, std::size_t C, std::size_t D>
  [[nodiscard]] KVC_ALWAYS_INLINE __m256i words() const noexcept {
    return _mm256_setr_epi64x(message_[order[R][A]], message_[order[R][B]], message_[order[R][C]],
                              message_[order[R][D]]);
  }

  std::array<long long, most_bytes / 8> message_{};  // with zeros behind it
  std::size_t size_ = 0;
};

}  // namespace detail
}  // namespace tier
}  // namespace v0
}  // namespace kvc

#endif
