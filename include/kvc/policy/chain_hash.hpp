// ChainHash: the hash by which a prefix is looked up. It finds candidates only; tokens and parent are always compared.
//
// The hash of a block is computed from its own tokens alone and then joined to that of its parent with one
// multiplication, so that a processor works on the next blocks of a prompt while it waits for this one. Tokens are
// multiplied in pairs with secret keys added (NH: Black, Halevi, Krawczyk, Krovetz and Rogaway, "UMAC", CRYPTO 1999),
// which vector units do for a whole block at once. The keys, new in each process, keep outsiders from aiming for long
// probe sequences.
#pragma once

#include <algorithm>
#include <bit>
#include <cstddef>
#include <cstdint>
#include <random>
#include <span>

#include "kvc/core/types.hpp"

namespace kvc {
inline namespace v0 {

/// The hash of a chain of blocks: that of a block follows from its own tokens and the hash of its parent. The keys
/// follow from the seed, which is new in each process unless one is given. O(tokens of the block).
class ChainHash {
 public:
  /// Keys that follow from the seed: equal seeds give equal hashes.
  explicit ChainHash(std::uint64_t seed = process_seed()) noexcept {
    for (std::uint32_t& key : keys_) {
      seed += multiplier;
      key = static_cast<std::uint32_t>(mixed(mixed(seed)) >> 32);
    }
  }

  /// The hash of a prefix from that of its parent and the tokens of its last block.
  [[nodiscard]] std::uint64_t operator()(std::uint64_t parent, std::span<const Token> tokens) const noexcept {
    std::uint64_t digest = tokens.size();
    while (tokens.size() >= stripe) {
      digest = std::rotl(digest, 27) * multiplier + products(tokens.data());
      tokens = tokens.subspan(stripe);
    }
    if (!tokens.empty()) {
      Token rest[stripe] = {};
      std::copy(tokens.begin(), tokens.end(), rest);
      digest = std::rotl(digest, 27) * multiplier + products(rest);
    }
    return mixed((std::rotl(parent, 32) + digest) * multiplier);
  }

  /// One random value per process.
  [[nodiscard]] static std::uint64_t process_seed() {
    static const std::uint64_t seed = [] {
      std::random_device device;
      return std::uint64_t{device()} << 32 ^ device();
    }();
    return seed;
  }

 private:
  static constexpr std::size_t stripe = 16;
  static constexpr std::uint64_t multiplier = 0x9e3779b97f4a7c15U;  // 2^64 over the golden ratio (Knuth, TAOCP 3, 6.4)

  /// Lets every bit of the input reach the low bits, which choose the bucket.
  [[nodiscard]] static constexpr std::uint64_t mixed(std::uint64_t h) noexcept {
    h ^= h >> 32;
    h *= multiplier;
    return h ^ h >> 29;
  }

  [[nodiscard]] std::uint64_t products(const Token* tokens) const noexcept {
    std::uint64_t sum = 0;
    for (std::size_t i = 0; i < stripe; i += 2) {
      const std::uint32_t a = static_cast<std::uint32_t>(tokens[i]) + keys_[i];
      const std::uint32_t b = static_cast<std::uint32_t>(tokens[i + 1]) + keys_[i + 1];
      sum += std::uint64_t{a} * b;
    }
    return sum;
  }

  std::uint32_t keys_[stripe];
};

}  // namespace v0
}  // namespace kvc
