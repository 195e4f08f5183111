// ReuseModel: how likely prompts are to be continued, by their kind and their age, learned from earlier prompts.
#pragma once

#include <algorithm>
#include <array>
#include <bit>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <initializer_list>

#include "kvc/core/error.hpp"
#include "kvc/core/types.hpp"
#include "kvc/policy/detail/recent_keys.hpp"

namespace kvc {
inline namespace v0 {

/// The parts and parameters of ReuseModel and of ReuseHazard, for experiments. The values were
/// chosen over several traces and generated workloads, not for one: docs/eviction.md shows how much each part matters.
struct ReuseConfig {
  bool remembers_evicted = true;          ///< prompts are recognised when their blocks are computed again
  bool sizes = true;                      ///< prompts are of one size otherwise
  bool roles = true;                      ///< prompts are of one role otherwise
  bool tails = true;                      ///< last blocks are of the kind of their prompt otherwise
  double trust = 0.7;                     ///< exponent of a factor, 0 to 1: hazards are only nearly proportional
  double largest_factor = 2;              ///< and its inverse the smallest
  double prior_prompts = 5;               ///< evidence that a kind is as all others
  double doubt = 1;                       ///< standard errors by which the logarithm of a factor is moved towards 0
  int smoothing = 3;                      ///< of the hazard over ages: half octaves to each side
  bool guarded = true;                    ///< there is no guarantee otherwise
  double allowance = 1.0 / 32;            ///< hits of LRU that may be lost, as a share of the blocks, 0 to 1
  double allowance_per_hit = 1.0 / 4096;  ///< hits of LRU that may be lost, as a share of its hits, 0 to 1
};

/// Estimates the hazard of a prompt: the chance per unit of time that a prompt which ended `age` ago is continued now.
///
/// The hazard depends on the age in the same way for all prompts, up to a factor of their kind (proportional hazards:
/// Cox, "Regression models and life-tables", 1972). A kind is a size (the prompt added few, some or many blocks to the
/// known ones, compared with other prompts) and a role (it continues a remembered prompt, or not); the last blocks of
/// all prompts are a kind of their own. The factor of a kind is the product of the factors of its size, of its role,
/// and of both together; each is believed only as far as its evidence goes (see ReuseConfig::doubt).
///
/// Prompts are remembered by the keys of their last two blocks, for longer than those are cached. A later prompt that
/// contains such a block, found or computed again, is the evidence.
///
/// O(1) amortised per prompt and per key; nothing but the constructor allocates.
class ReuseModel {
 public:
  /// A key that a remembered prompt ended with, in its last block or in the one before.
  enum class Continued { nothing, tail, whole };

  static constexpr int kinds = 7;
  static constexpr int tail_kind = 3;  ///< of last blocks

  /// Remembers at least `prompts` keys. Throws std::invalid_argument, naming a value under "config.eviction" that is
  /// not allowed, and std::bad_alloc.
  ReuseModel(std::size_t prompts, const ReuseConfig& config) : config_(validated(config)), prompts_(prompts) {
    learn();
  }

  /// Records that the prompt which ended with this block, if there is one, is continued.
  Continued record_continuation(std::uint64_t key, std::uint64_t now) noexcept {
    const typename Prompts::Number number = prompts_.find(key);
    if (number == Prompts::none) {
      return Continued::nothing;
    }
    advance(now);
    stop_waiting(number, true);
    return prompts_.value(number).kind == tail_kind ? Continued::tail : Continued::whole;
  }

  /// The kind of a prompt that added so many blocks, and whether it continues a remembered one.
  [[nodiscard]] std::uint8_t kind_of(double added, bool continues) noexcept {
    const double relative = std::log2(1 + added) - mean_size_;
    const int size = !config_.sizes ? 1 : relative < -1 ? 0 : relative <= 1 ? 1 : 2;
    ++closed_;
    mean_size_ += relative / static_cast<double>(std::min<std::uint64_t>(closed_, size_memory));
    return static_cast<std::uint8_t>(config_.roles && continues ? continuing + size : size);
  }

  /// Remembers a prompt of a kind that added so many blocks; `before_last` and `last` are the keys of its last blocks.
  /// Returns whether the last block is of tail_kind.
  bool remember(std::uint64_t before_last, std::uint64_t last, std::uint8_t kind, double added,
                std::uint64_t now) noexcept {
    advance(now);
    const bool tail = config_.tails && before_last != last;
    remember_key(tail ? before_last : last, kind, std::max(1.0, added), now);
    if (tail) {
      remember_key(last, tail_kind, 1, now);
    }
    if (closed_ % prompts_per_lesson == 0) {
      learn();
    }
    if (closed_ % (memory * prompts_.capacity()) == 0) {
      forget_half();
    }
    return tail;
  }

  /// The blocks that a prompt usually adds: the geometric mean.
  [[nodiscard]] double usual_added() const noexcept { return std::exp2(mean_size_) - 1; }

  /// The hazard of a kind at an age, relative to that of others: per unit of time, about.
  [[nodiscard]] double hazard(int kind, std::uint64_t age) const noexcept {
    const std::size_t k = bucket_of(age);
    const double from = hazard_[k];
    const double to = hazard_[std::min(ages - 1, k + 1)];
    const auto begin = static_cast<double>(first_age(k));
    const auto end = static_cast<double>(first_age(k + 1));
    return factor(kind) * (from + (to - from) * std::min(1.0, (static_cast<double>(age) - begin) / (end - begin)));
  }
  /// The factor of a kind on the hazard of all.
  [[nodiscard]] double factor(int kind) const noexcept { return factors_[static_cast<std::size_t>(kind)]; }

 private:
  static constexpr int continuing = 4;  // kinds 0, 1, 2: few, some, many blocks; 4, 5, 6: of continuing prompts
  static constexpr std::uint64_t prompts_per_lesson = 16;
  static constexpr std::uint64_t memory = 8;          // evidence counts half after so many times all records
  static constexpr std::uint64_t size_memory = 1000;  // prompts in the running mean of sizes
  static constexpr std::size_t ages = 96;             // buckets of age, two to the octave

  struct Prompt {
    std::uint64_t closed = 0;
    float weight = 0;  // blocks that it added
    std::uint8_t kind = 0;
    bool waiting = false;  // for a prompt that continues it
  };
  using Prompts = detail::RecentKeys<Prompt>;
  using ByAge = std::array<double, ages>;
  using ByKind = std::array<double, kinds>;

  static const ReuseConfig& validated(const ReuseConfig& config) {
    require_between(config.trust, 0.0, 1.0, "config.eviction.trust");
    require(config.largest_factor >= 1, "config.eviction.largest_factor", config.largest_factor, "at least 1");
    require(config.prior_prompts > 0, "config.eviction.prior_prompts", config.prior_prompts, "more than 0");
    require(config.doubt >= 0, "config.eviction.doubt", config.doubt, "at least 0");
    require_between(config.allowance, 0.0, 1.0, "config.eviction.allowance");
    require_between(config.allowance_per_hit, 0.0, 1.0, "config.eviction.allowance_per_hit");
    require_between(config.smoothing, 0, static_cast<int>(ages) - 1, "config.eviction.smoothing");
    return config;
  }

  /// Bucket k holds the ages first_age(k) <= age < first_age(k + 1): 0, then two buckets to the octave.
  [[nodiscard]] static constexpr std::uint64_t first_age(std::size_t bucket) noexcept {
    if (bucket == 0) {
      return 0;
    }
    const std::uint64_t octave = std::uint64_t{1} << ((bucket - 1) / 2);
    return (bucket - 1) % 2 == 0 ? octave : octave + octave / 2;
  }
  [[nodiscard]] static constexpr std::size_t bucket_of(std::uint64_t age) noexcept {
    if (age == 0) {
      return 0;
    }
    const auto octave = static_cast<std::size_t>(std::bit_width(age)) - 1;
    const bool upper_half = octave == 0 || (age >> (octave - 1) & 1) != 0;
    return std::min(ages - 1, 1 + 2 * octave + (upper_half ? 1 : 0));
  }

  void remember_key(std::uint64_t key, std::uint8_t kind, double weight, std::uint64_t now) noexcept {
    if (const auto earlier = prompts_.find(key); earlier != Prompts::none) {
      stop_waiting(earlier, false);
    }
    if (prompts_.full()) {
      stop_waiting(prompts_.begin(), false);
    }
    prompts_.push(key, {now, static_cast<float>(weight), kind, true});
    for (typename Prompts::Number& passed : passed_) {
      passed = std::max(passed, prompts_.begin());
    }
    waiting_[kind][0] += weight;
    weight_sum_ += weight;
    ++weight_count_;
  }

  void stop_waiting(typename Prompts::Number number, bool used) noexcept {
    Prompt& prompt = prompts_.value(number);
    if (!prompt.waiting) {
      return;
    }
    prompt.waiting = false;
    std::size_t k = 0;
    while (k + 1 < ages && passed_[k] > number) {
      ++k;
    }
    const double weight = prompt.weight;
    waiting_[prompt.kind][k] -= weight;
    if (used) {
      reuses_[prompt.kind][k] += weight;
      squares_[prompt.kind] += weight * weight;
    }
  }

  /// Advances the clock: adds the time that prompts waited to their ages. O(ages), and O(1) per prompt.
  void advance(std::uint64_t now) noexcept {
    if (now == now_) {
      return;
    }
    const auto passed = static_cast<double>(now - now_);
    now_ = now;
    for (std::size_t kind = 0; kind < kinds; ++kind) {
      for (std::size_t k = 0; k < used_ages_; ++k) {
        exposure_[kind][k] += waiting_[kind][k] * passed;
      }
    }
    for (std::size_t k = 0; k < used_ages_ && k + 1 < ages; ++k) {
      if (passed_[k] == (k == 0 ? prompts_.end() : passed_[k - 1])) {
        continue;  // no prompt has this age
      }
      for (; passed_[k] < prompts_.end(); ++passed_[k]) {
        const Prompt& prompt = prompts_.value(passed_[k]);
        if (now - prompt.closed < first_age(k + 1)) {
          break;
        }
        if (prompt.waiting) {
          waiting_[prompt.kind][k] -= prompt.weight;
          waiting_[prompt.kind][k + 1] += prompt.weight;
          used_ages_ = std::max(used_ages_, k + 2);
        }
      }
    }
  }

  /// Estimates the hazard of all by age, and the factors of the kinds.
  void learn() noexcept {
    ByAge reuses{}, exposure{};
    for (std::size_t kind = 0; kind < kinds; ++kind) {
      for (std::size_t k = 0; k < used_ages_; ++k) {
        reuses[k] += reuses_[kind][k];
        exposure[k] += exposure_[kind][k];
      }
    }
    std::size_t oldest = 0;
    for (std::size_t k = 0; k < ages; ++k) {
      double used = 0, waited = 0;
      for (int shift = -config_.smoothing; shift <= config_.smoothing; ++shift) {
        const auto j = static_cast<std::ptrdiff_t>(k) + shift;
        if (j >= 0 && j < static_cast<std::ptrdiff_t>(ages)) {
          used += reuses[static_cast<std::size_t>(j)] / (1 + std::abs(shift));
          waited += exposure[static_cast<std::size_t>(j)] / (1 + std::abs(shift));
        }
      }
      hazard_[k] = (used + 1e-3) / (waited + 1);
      oldest = exposure[k] > 0 ? k : oldest;
    }
    for (std::size_t k = oldest + 1; k < ages; ++k) {  // no prompt has waited so long yet: falls as 1 / age
      hazard_[k] = hazard_[oldest] * static_cast<double>(first_age(oldest) + 1) / static_cast<double>(first_age(k) + 1);
    }
    learn_factors();
    make_non_increasing(exposure);
  }

  /// Fits the effects of size, of role, and of both together, one after the other, each to the reuses that the others
  /// do not explain.
  void learn_factors() noexcept {
    ByKind observed{}, expected{}, effect{};
    for (std::size_t kind = 0; kind < kinds; ++kind) {
      for (std::size_t k = 0; k < used_ages_; ++k) {
        observed[kind] += reuses_[kind][k];
        expected[kind] += exposure_[kind][k] * hazard_[k];
      }
    }
    const double prior = config_.prior_prompts * (weight_count_ > 0 ? weight_sum_ / weight_count_ : 1.0);
    // The logarithm of the factor that some kinds have in common; `before` is its last estimate.
    const auto fit = [&](std::initializer_list<std::size_t> common, double before) {
      double of_observed = prior, of_expected = prior, weights = 0, squares = 0;
      for (const std::size_t kind : common) {
        of_observed += observed[kind];
        of_expected += expected[kind] * std::exp(effect[kind] - before);
        weights += observed[kind];
        squares += squares_[kind];
      }
      const double events = squares > 0 ? weights * weights / squares : 0;  // as many of equal weight
      const double estimate = std::log(of_observed / of_expected);
      const double believed =
          std::copysign(std::max(0.0, std::abs(estimate) - config_.doubt / std::sqrt(events + 0.5)), estimate);
      for (const std::size_t kind : common) {
        effect[kind] += believed - before;
      }
      return believed;
    };
    fit({tail_kind}, 0);
    if (config_.roles) {
      std::array<double, 5> main{};
      for (int round = 0; round < 3; ++round) {
        main[0] = fit({0, 4}, main[0]);
        main[1] = fit({1, 5}, main[1]);
        main[2] = fit({2, 6}, main[2]);
        main[3] = fit({0, 1, 2}, main[3]);
        main[4] = fit({4, 5, 6}, main[4]);
      }
    }
    for (const std::size_t kind : {0U, 1U, 2U, 4U, 5U, 6U}) {
      fit({kind}, 0);
    }
    for (std::size_t kind = 0; kind < kinds; ++kind) {
      factors_[kind] =
          std::clamp(std::exp(effect[kind] * config_.trust), 1 / config_.largest_factor, config_.largest_factor);
    }
  }

  /// The closest non-increasing hazard (pool adjacent violators: Ayer et al., Ann. Math. Stat. 26, 1955). If the hazard
  /// rose with age, the oldest block of a list would not be the one with the lowest hazard.
  void make_non_increasing(const ByAge& exposure) noexcept {
    struct Pool {
      double events, exposure;
      std::size_t first;
    };
    std::array<Pool, ages> pools;
    std::size_t count = 0;
    for (std::size_t k = 0; k < ages; ++k) {
      const double weight = std::max(exposure[k], 1e-9);
      Pool pool{hazard_[k] * weight, weight, k};
      while (count > 0 && pools[count - 1].events * pool.exposure < pool.events * pools[count - 1].exposure) {
        --count;
        pool = {pools[count].events + pool.events, pools[count].exposure + pool.exposure, pools[count].first};
      }
      pools[count++] = pool;
    }
    for (std::size_t p = 0; p < count; ++p) {
      const std::size_t end = p + 1 < count ? pools[p + 1].first : ages;
      std::fill(hazard_.begin() + static_cast<std::ptrdiff_t>(pools[p].first),
                hazard_.begin() + static_cast<std::ptrdiff_t>(end), pools[p].events / pools[p].exposure);
    }
  }

  void forget_half() noexcept {
    for (std::size_t kind = 0; kind < kinds; ++kind) {
      for (std::size_t k = 0; k < ages; ++k) {
        reuses_[kind][k] /= 2;
        exposure_[kind][k] /= 2;
      }
      squares_[kind] /= 2;
    }
    weight_sum_ /= 2;
    weight_count_ /= 2;
  }

  ReuseConfig config_;
  Prompts prompts_;
  std::uint64_t now_ = 0;
  std::uint64_t closed_ = 0;
  std::size_t used_ages_ = 1;  // buckets that a prompt has been in
  double mean_size_ = 0;       // of log2(1 + added blocks)
  double weight_sum_ = 0;
  double weight_count_ = 0;
  std::array<typename Prompts::Number, ages> passed_{};  // prompts before this number are older than the bucket
  std::array<ByAge, kinds> waiting_{};                   // weight of the waiting prompts, by kind and age
  std::array<ByAge, kinds> reuses_{};                    // weight of those that were continued
  std::array<ByAge, kinds> exposure_{};                  // weight times waiting time
  ByKind squares_{};                                     // of the weights of those that were continued
  ByAge hazard_{};
  ByKind factors_{};
};

}  // namespace v0
}  // namespace kvc
