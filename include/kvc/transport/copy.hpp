// copy_body: copies a body from the spans of its sender to the spans of its receiver, which may be cut differently.
//
// Bodies of at least 1 MiB are stored past the caches, where the processor can: a cache line that is
// overwritten as a whole is then not read from memory first, which saves a third of the traffic. (memcpy does the same
// for large copies, but it sees one span at a time, and rows that change their block size are many small spans.)
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <span>

#if defined(__SSE2__)
#include <emmintrin.h>
#endif

#include "kvc/transport/concept.hpp"

namespace kvc {
inline namespace v0 {
namespace transport {
namespace detail {

inline constexpr std::uint64_t streamed_body_bytes = std::uint64_t{1}
                                                     << 20;  ///< bodies of at least this size are streamed

#if defined(__SSE2__)
/// memcpy past the caches. Visible to other threads after `streams_done`.
inline void stream(std::byte* to, const std::byte* from, std::size_t bytes) noexcept {
  constexpr std::size_t line = 64;
  constexpr std::size_t shortest = 256;  // streaming shorter copies costs more than it saves
  constexpr std::size_t ahead = 4096;    // the hardware prefetcher stops at the end of a page
  std::size_t at = 0;
  if (bytes >= shortest && reinterpret_cast<std::uintptr_t>(to) % line == 0) {
    for (; at + line <= bytes; at += line) {
      const auto* source = reinterpret_cast<const __m128i*>(from + at);
      auto* target = reinterpret_cast<__m128i*>(to + at);
      _mm_prefetch(reinterpret_cast<const char*>(from) + at + ahead,
                   _MM_HINT_NTA);  // cannot fault, whatever the address
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

/// Copies the bytes of `from` to `to`. Both have the same number of bytes, and do not overlap. O(bytes + spans).
inline void copy_body(SendSpans from, ReceiveSpans to) noexcept {
  const bool streams = io::total_bytes(to) >= streamed_body_bytes;
  std::size_t taken = 0;  // bytes of the first span of `from`
  for (std::span<std::byte> span : to) {
    while (!span.empty()) {
      const std::size_t count = std::min(span.size(), from.front().size() - taken);
      if (count > 0) {
        if (streams) {
          stream(span.data(), from.front().data() + taken, count);
        } else {
          std::memcpy(span.data(), from.front().data() + taken, count);
        }
      }
      span = span.subspan(count);
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
