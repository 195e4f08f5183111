// Sampler: draws the next token from logits: greedy, at a temperature, or from the nucleus (top-p) at a temperature.
//
// Top-p: Holtzman et al., "The Curious Case of Neural Text Degeneration", 2020. It keeps the smallest set of most
// likely tokens whose probabilities add up to p, and draws one of them in proportion.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <random>
#include <span>
#include <vector>

#include "kvc/core/error.hpp"
#include "kvc/core/types.hpp"

namespace kvc {
inline namespace v0 {
namespace llama {

/// The parameters of a Sampler.
struct SamplerConfig {
  double temperature = 1.0;  ///< at least 0; 0: always the most likely token
  double top_p = 1.0;        ///< in (0, 1]; 1: all tokens
  std::uint64_t seed = 0;
};

/// Draws tokens. Equal seeds and logits give equal tokens on every platform: the generator and the conversion of its
/// bits to [0, 1) are fixed here, unlike those of std::uniform_real_distribution, and probabilities are summed in
/// double in the order of the ids.
class Sampler {
 public:
  /// Throws std::invalid_argument if the temperature is negative or not finite, or top_p is not in (0, 1].
  explicit Sampler(const SamplerConfig& config) : config_(config), generator_(config.seed) {
    require(std::isfinite(config.temperature) && config.temperature >= 0.0, "temperature", config.temperature,
            "a finite number, at least 0");
    require(config.top_p > 0.0 && config.top_p <= 1.0, "top_p", config.top_p, "above 0 and at most 1");
  }

  /// Draws the token for one row of logits [V]. O(V), or O(V log V) if most tokens are in the nucleus.
  /// Throws std::invalid_argument if there are no logits, or the largest of them is not finite.
  [[nodiscard]] Token operator()(std::span<const float> logits) {
    const Token best = greedy(logits);
    return config_.temperature == 0.0 ? best
                                      : draw(logits, static_cast<double>(logits[static_cast<std::size_t>(best)]));
  }

  /// The most likely token, the lowest id among equals. Throws as above.
  [[nodiscard]] static Token greedy(std::span<const float> logits) {
    require(!logits.empty(), "logits", "empty", "one number per token of the vocabulary");
    std::size_t best = 0;
    for (std::size_t i = 1; i < logits.size(); ++i) {
      if (logits[i] > logits[best] || std::isnan(logits[i])) {  // keeps a NaN, which is then reported
        best = i;
      }
    }
    require(std::isfinite(logits[best]), "the largest logit", logits[best], "finite");
    return static_cast<Token>(best);
  }

 private:
  struct Choice {
    Token token;
    double weight;  // probability times a common factor
  };

  Token draw(std::span<const float> logits, double largest) {
    choices_.clear();
    double total = 0.0;
    for (std::size_t i = 0; i < logits.size(); ++i) {
      const double weight = std::exp((static_cast<double>(logits[i]) - largest) / config_.temperature);
      choices_.push_back({static_cast<Token>(i), weight});
      total += weight;
    }
    if (config_.top_p < 1.0) {
      total = keep_nucleus(total);
    }
    const double point = static_cast<double>(generator_() >> 11U) * 0x1p-53 * total;
    double sum = 0.0;
    for (const Choice& choice : choices_) {
      sum += choice.weight;
      if (point < sum) {
        return choice.token;
      }
    }
    // Rounding left the sum below the point: the last token that can be drawn.
    return std::find_if(choices_.rbegin(), choices_.rend(), [](const Choice& c) { return c.weight > 0.0; })->token;
  }

  /// Reduces `choices_` to the nucleus, the most likely first, and returns its weight.
  double keep_nucleus(double total) {
    const double wanted = config_.top_p * total;
    // The tokens below this bound add up to less than 1 - p together, so none of them is in the nucleus, and they need
    // not be sorted. The most likely token always stays.
    const double bound = std::min(1.0, (total - wanted) / static_cast<double>(choices_.size()));
    std::erase_if(choices_, [bound](const Choice& c) { return c.weight < bound; });
    std::sort(choices_.begin(), choices_.end(), [](const Choice& a, const Choice& b) {
      return a.weight != b.weight ? a.weight > b.weight : a.token < b.token;
    });
    double sum = 0.0;
    std::size_t kept = 0;
    while (kept < choices_.size() && sum < wanted) {
      sum += choices_[kept++].weight;
    }
    choices_.resize(kept);
    return sum;
  }

  SamplerConfig config_;
  std::mt19937_64 generator_;
  std::vector<Choice> choices_;
};

}  // namespace llama
}  // namespace v0
}  // namespace kvc
