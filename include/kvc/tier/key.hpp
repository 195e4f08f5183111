// BlockKey: the name of a block in slower tiers, the same in every process. Standard library only;
// tier/key_chain.hpp computes keys.
#pragma once

#include <array>
#include <bit>
#include <compare>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <string>

namespace kvc {
inline namespace v0 {
namespace tier {

/// 256 bits of a cryptographic hash. The default, all bits 0, is the hash of nothing known.
struct Digest {
  std::array<std::byte, 32> bytes{};

  /// 64 hexadecimal digits, in the order of the bytes.
  [[nodiscard]] std::string hex() const {
    constexpr char digits[] = "0123456789abcdef";
    std::string text;
    text.reserve(2 * bytes.size());
    for (const std::byte byte : bytes) {
      text.push_back(digits[std::to_integer<std::size_t>(byte >> 4)]);
      text.push_back(digits[std::to_integer<std::size_t>(byte & std::byte{15})]);
    }
    return text;
  }
  /// By words: a comparison byte by byte takes longer than it takes a table to find the key.
  friend constexpr bool operator==(const Digest& a, const Digest& b) noexcept {
    using Words = std::array<std::uint64_t, 4>;
    const auto x = std::bit_cast<Words>(a.bytes), y = std::bit_cast<Words>(b.bytes);
    return ((x[0] ^ y[0]) | (x[1] ^ y[1]) | (x[2] ^ y[2]) | (x[3] ^ y[3])) == 0;
  }
  friend auto operator<=>(const Digest&, const Digest&) = default;
};

/// The key of a block: a hash of the format, the salt, the layer group, and all tokens up to and with those of the
/// block (KeyChain). Processes that serve the same model find each other's blocks by it. Equal keys are not trusted:
/// whoever reads a block compares its tokens and the key of its parent as well (tier/record.hpp).
using BlockKey = Digest;

/// Hashes a key for a table in memory: a part of its bits. The keys are hashes of what a client sent, and nobody can
/// choose prompts whose keys agree in 64 bits at less than 2^32 attempts.
struct BlockKeyHash {
  /// O(1).
  [[nodiscard]] std::size_t operator()(const BlockKey& key) const noexcept {
    std::uint64_t word = 0;
    std::memcpy(&word, key.bytes.data(), sizeof word);
    return static_cast<std::size_t>(word);
  }
};

}  // namespace tier
}  // namespace v0
}  // namespace kvc
