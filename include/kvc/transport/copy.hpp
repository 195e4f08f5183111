// The copy of a body from where its sender has it to where its receiver wants it: lists of pieces, cut in whatever way.
//
// Bodies that are larger than a cache of the second level are stored around the caches where the processor can do that:
// a line that will be overwritten as a whole is then not read from memory first, which is a third of the traffic.
// (memcpy does the same, but decides by the size of one piece, and rows that change their block size are many small
// ones.)
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>

#if defined(__SSE2__)
#include <emmintrin.h>
#endif

#include "kvc/transport/concept.hpp"

namespace kvc {
inline namespace v0 {
namespace transport {
namespace detail {

inline constexpr std::uint64_t streamed_body_bytes = std::uint64_t{1} << 20;  ///< a body from here on is streamed

#if defined(__SSE2__)
/// memcpy past the caches. Visible to other threads after `streams_done`.
inline void stream(std::byte* to, const std::byte* from, std::size_t bytes) noexcept {
  constexpr std::size_t line = 64;
  constexpr std::size_t shortest = 256;  // below this it costs more than it saves
  constexpr std::size_t ahead = 4096;    // the processor's own prefetching ends with each page
  std::size_t at = 0;
  if (bytes >= shortest && reinterpret_cast<std::uintptr_t>(to) % line == 0) {
    for (; at + line <= bytes; at += line) {
      const auto* source = reinterpret_cast<const __m128i*>(from + at);
      auto* target = reinterpret_cast<__m128i*>(to + at);
      _mm_prefetch(reinterpret_cast<const char*>(from) + at + ahead, _MM_HINT_NTA);  // of any address: it cannot fault
      const __m128i a = _mm_loadu_si128(source);
      const __m128i b = _mm_loadu_si128(source + 1);
      const __m128i c = _mm_loadu_si128(source + 2);
      const __m128i d = _mm_loadu_si128(source + 3);
      _mm_stream_si128(target, a);
      _mm_stream_si128(target + 1, b);
      _mm_stream_si128(target + 2, c);
      _mm_stream_si128(target + 3, d);
    }
  }
  std::memcpy(to + at, from + at, bytes - at);
}
inline void streams_done() noexcept { _mm_sfence(); }
#else
inline void stream(std::byte* to, const std::byte* from, std::size_t bytes) noexcept { std::memcpy(to, from, bytes); }
inline void streams_done() noexcept {}
#endif

/// Copies the bytes of `from` to those of `to`, which are as many, cut in whatever way. No overlap. O(bytes + pieces).
inline void copy_body(SendSpans from, ReceiveSpans to) noexcept {
  const bool streams = total_bytes(to) >= streamed_body_bytes;
  std::size_t taken = 0;  // of the first piece of `from`
  for (std::span<std::byte> piece : to) {
    while (!piece.empty()) {
      const std::size_t count = std::min(piece.size(), from.front().size() - taken);
      if (count > 0) {
        if (streams) {
          stream(piece.data(), from.front().data() + taken, count);
        } else {
          std::memcpy(piece.data(), from.front().data() + taken, count);
        }
      }
      piece = piece.subspan(count);
      taken += count;
      if (taken == from.front().size()) {
        from = from.subspan(1);
        taken = 0;
      }
    }
  }
  if (streams) {
    streams_done();
  }
}

}  // namespace detail
}  // namespace transport
}  // namespace v0
}  // namespace kvc
