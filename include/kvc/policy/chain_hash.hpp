// ChainHash: the hash by which a prefix is looked up. It finds candidates only; tokens and parent are always compared.
//
// The hash of a block is computed from its own tokens alone and then joined to that of its parent with one
// multiplication, so that a processor works on the next blocks of a prompt while it waits for this one. A secret seed,
// new in each process, keeps outsiders from aiming for long probe sequences.
#pragma once

#include <bit>
#include <cstdint>
#include <random>
#include <span>

#include "kvc/core/types.hpp"

namespace kvc::inline v0 {

class ChainHash {
 public:
  explicit ChainHash(std::uint64_t seed = process_seed()) noexcept : seed_(mixed(seed ^ 0x2545f4914f6cdd1dU)) {}

  /// The hash of a prefix from that of its parent and the tokens of its last block.
  [[nodiscard]] std::uint64_t operator()(std::uint64_t parent, std::span<const Token> tokens) const noexcept {
    std::uint64_t digest = seed_ + tokens.size();
    for (const Token token : tokens) {
      digest = (std::rotl(digest, 23) ^ static_cast<std::uint32_t>(token)) * multiplier;
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
  static constexpr std::uint64_t multiplier = 0x9e3779b97f4a7c15U;  // 2^64 over the golden ratio (Knuth, TAOCP 3, 6.4)

  /// Lets every bit of the input reach the low bits, which choose the bucket.
  [[nodiscard]] static constexpr std::uint64_t mixed(std::uint64_t h) noexcept {
    h ^= h >> 32;
    h *= multiplier;
    return h ^ h >> 29;
  }

  std::uint64_t seed_;
};

}  // namespace kvc::inline v0
