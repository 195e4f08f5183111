// FrequencySketch: estimates how often each key was seen recently, whether or not its block is cached.
//
// It is a count-min sketch (G. Cormode, S. Muthukrishnan, "An improved data stream summary: the count-min sketch and
// its applications", 2005). A key has one counter of four bits in each of four rows. The lowest of the four is its
// estimate, which is too high only if the key shares all four with other keys. Counters are halved, as in TinyLFU (see
// TinyLfu), after ten additions per key that the sketch has room for: a key that was frequent once does not stay
// frequent.
#pragma once

#include <algorithm>
#include <bit>
#include <cstddef>
#include <cstdint>
#include <vector>

#include "kvc/core/types.hpp"

namespace kvc {
inline namespace v0 {
namespace detail {

/// Counts of keys. Keys are hashes: the sketch relies on all their bits being random. `add` is O(1) amortised; a
/// halving reads 8 to 16 bytes per key.
class FrequencySketch {
 public:
  static constexpr int largest = 15;

  /// A sketch with room for about so many different keys at a time.
  explicit FrequencySketch(std::size_t keys)
      : words_(std::max(least_words, std::bit_ceil(keys))), period_(10 * std::max<std::size_t>(keys, 1)) {}

  [[nodiscard]] int estimate(std::uint64_t key) const noexcept {
    std::uint64_t lowest = largest;
    for (std::size_t row = 0; row < rows; ++row) {
      const Place p = place(key, row);
      lowest = std::min(lowest, words_[p.word] >> p.shift & largest);
    }
    return static_cast<int>(lowest);
  }

  void add(std::uint64_t key) noexcept {
    for (std::size_t row = 0; row < rows; ++row) {
      const Place p = place(key, row);
      if ((words_[p.word] >> p.shift & largest) < largest) {
        words_[p.word] += std::uint64_t{1} << p.shift;
      }
    }
    if (++additions_ >= period_) {
      halve();
    }
  }

 private:
  static constexpr std::size_t rows = 4;
  static constexpr std::size_t least_words = 8;
  static constexpr std::size_t counters_per_word = 16;

  struct Place {
    std::size_t word;
    int shift;
  };
  /// Computes the hash of each row from the two halves of the key (Kirsch, Mitzenmacher, "Less hashing, same
  /// performance", 2006).
  [[nodiscard]] Place place(std::uint64_t key, std::size_t row) const noexcept {
    const std::uint64_t hash = (key & 0xffffffffU) + row * (key >> 32 | 1);
    const std::size_t words_per_row = words_.size() / rows;
    const std::size_t counter = static_cast<std::size_t>(hash) & (words_per_row * counters_per_word - 1);
    return {row * words_per_row + counter / counters_per_word, static_cast<int>(counter % counters_per_word * 4)};
  }
  void halve() noexcept {
    for (std::uint64_t& word : words_) {
      word = word >> 1 & 0x7777777777777777U;
    }
    additions_ /= 2;
  }

  std::vector<std::uint64_t> words_;  // [rows, words per row]: 16 counters each
  std::uint64_t period_;
  std::uint64_t additions_ = 0;
};

}  // namespace detail
}  // namespace v0
}  // namespace kvc
