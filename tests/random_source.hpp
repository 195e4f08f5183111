// Seeded randomness for tests: the seed is fixed unless KVC_TEST_SEED says otherwise ("random" draws one), and every
// failure prints it. How many random operations a test makes: KVC_TEST_OPERATIONS. How many percent of its usual random
// cases it tries: KVC_TEST_CASES.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <random>
#include <string>

namespace kvc_test {

/// Stands for a seed that is drawn anew in every run.
inline constexpr std::uint64_t any_seed = 0;

/// `fixed`, or what the environment asks for.
inline std::uint64_t seed_or(std::uint64_t fixed) {
  const char* text = std::getenv("KVC_TEST_SEED");
  if (text == nullptr || *text == '\0') {
    return fixed == any_seed ? std::random_device{}() : fixed;
  }
  return std::string(text) == "random" ? std::random_device{}() : std::strtoull(text, nullptr, 10);
}

/// `usual`, or what the environment asks for: the nightly preset wants more.
inline int operations_or(int usual) {
  const char* text = std::getenv("KVC_TEST_OPERATIONS");
  return text == nullptr || *text == '\0' ? usual : std::stoi(text);
}

/// `usual`, or the share of it that the environment asks for, at least one: builds that are slow want fewer.
inline int cases_or(int usual) {
  const char* text = std::getenv("KVC_TEST_CASES");
  return text == nullptr || *text == '\0' ? usual : std::max(1, usual * std::stoi(text) / 100);
}

class Random {
 public:
  explicit Random(std::uint64_t seed) : engine_(seed) {}
  /// An integer in [low, high].
  template <class I>
  I between(I low, I high) {
    return static_cast<I>(
        std::uniform_int_distribution<long long>(static_cast<long long>(low), static_cast<long long>(high))(engine_));
  }
  bool one_in(int n) { return between(1, n) == 1; }
  /// A number in [low, high). The distribution of libstdc++ gives the same, and computes two logarithms for each.
  float uniform(float low = -1, float high = 1) {
    const float x = static_cast<float>(engine_()) * 0x1p-64F;
    return (x < 1 ? x : 0x1.fffffep-1F) * (high - low) + low;
  }

 private:
  std::mt19937_64 engine_;
};

}  // namespace kvc_test
