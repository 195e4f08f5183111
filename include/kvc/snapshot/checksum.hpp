// The checksum of snapshots and of slower tiers: XXH3, 64 bits. Needs the header of xxHash 0.8 or later (Debian:
// libxxhash-dev); there is nothing to link.
//
// The code of the header is for the processors that the compiler builds for. A program that defines
// KVC_XXHASH_DISPATCH, in all of its sources, and links libxxhash has the code for the processor it runs on, with the
// same results: several times as fast as that of a build for any x86-64 processor.
//
// It detects damage by disks, memories and interrupted copies. It is no signature: anybody can make a file with right
// checksums and wrong contents, so a reader checks everything as if there were no checksum.
#pragma once

#if !__has_include(<xxhash.h>)
#error "kvc/snapshot needs xxhash.h of xxHash 0.8 (Debian: libxxhash-dev), which was not found, or do not include it"
#endif

#if defined(KVC_XXHASH_DISPATCH)
#ifndef XXH_STATIC_LINKING_ONLY
#define XXH_STATIC_LINKING_ONLY  // the state of a sum is a member
#endif
#include <xxh_x86dispatch.h>
#else
#ifndef XXH_INLINE_ALL
#define XXH_INLINE_ALL
#endif
#if defined(__GNUC__) && !defined(__clang__) && defined(__AVX512F__) && !defined(XXH_VECTOR)
#define XXH_VECTOR XXH_AVX2  // as fast; g++ 12 warns of uninitialised values in its own header of AVX-512
#endif
#include <xxhash.h>
#endif

#include <cstddef>
#include <cstdint>
#include <span>

namespace kvc {
inline namespace v0 {
namespace snapshot {
namespace detail {

/// XXH3_64bits with seed 0, updated span by span.
class Checksum {
 public:
  Checksum() noexcept { reset(); }
  void reset() noexcept { (void)XXH3_64bits_reset(&state_); }
  void add(std::span<const std::byte> bytes) noexcept { (void)XXH3_64bits_update(&state_, bytes.data(), bytes.size()); }
  [[nodiscard]] std::uint64_t value() const noexcept { return XXH3_64bits_digest(&state_); }

  [[nodiscard]] static std::uint64_t of(std::span<const std::byte> bytes) noexcept {
    return XXH3_64bits(bytes.data(), bytes.size());
  }

 private:
  XXH3_state_t state_;
};

}  // namespace detail
}  // namespace snapshot
}  // namespace v0
}  // namespace kvc
