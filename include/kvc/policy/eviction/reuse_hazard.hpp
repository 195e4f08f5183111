// ReuseHazard: evicts the block that is least likely to be used again soon. The default of PrefixShared.
#pragma once

#include <algorithm>
#include <array>
#include <bit>
#include <cmath>
#include <cstdint>
#include <span>
#include <string_view>

#include "kvc/config.hpp"
#include "kvc/core/error.hpp"
#include "kvc/core/types.hpp"
#include "kvc/policy/block_array.hpp"
#include "kvc/policy/detail/recent_keys.hpp"
#include "kvc/policy/eviction/block_lists.hpp"
#include "kvc/policy/eviction/concept.hpp"

namespace kvc {
inline namespace v0 {

/// Evicts the block that is least likely to be used again soon, judged by the fate of prompts like the one that
/// released it. docs/eviction.md says what each part of it gains.
///
/// Nearly all reuse of a conversation is one event: the next prompt continues where this one ended. Its likelihood
/// depends on the time since then, in the same way for all prompts up to a factor, and the factor depends on the kind
/// of the prompt (proportional hazards: Cox, J. R. Stat. Soc. B 34, 1972). The kind is known when the sequence is
/// closed: whether it added few, some or many blocks to the known ones, compared with other prompts. A long new text is
/// mostly a task that is done with its answer; a short addition is mostly a turn of a conversation. The last block is a
/// kind of its own, since it often ends in text that the next prompt replaces.
///
/// Each kind has a list in the order of release. The victim is, of the oldest blocks of the lists, the one with the
/// lowest hazard (factor of the kind) * (hazard at its age). Both are learned from prompts that are remembered longer
/// than their blocks, so that the value of an evicted block counts too. Before anything is learned, and where kinds do
/// not differ, this is leaf-first LRU.
///
/// O(1) per block; about 40 bytes per block.
class ReuseHazard {
 public:
  static constexpr std::string_view name = "hazard";

  struct SequenceContext {
    Pos known = 0;            // blocks up to where an earlier prompt ended, or that were found cached
    std::uint8_t kind = 1;    // index of its list, once it is closed
    BlockId tail = no_block;  // its last block, once it is closed
  };

  /// Its parts and parameters, for experiments. The values are not fitted to a trace: docs/eviction.md shows how little
  /// they matter.
  struct Config {
    bool remembers_evicted = true;  ///< prompts are recognised when their blocks are computed again
    bool sizes = true;              ///< prompts are of one kind otherwise
    bool tails = true;              ///< last blocks are of the kind of their prompt otherwise
    double trust = 0.7;             ///< exponent of a factor, 0 to 1: hazards are only nearly proportional
    double largest_factor = 2;      ///< and its inverse the smallest
    double prior_prompts = 20;      ///< evidence that a kind is as all others
    int smoothing = 3;              ///< of the hazard over ages: half octaves to each side
  };

  /// No block is cached; the default config. Throws std::bad_alloc. O(blocks).
  explicit ReuseHazard(Index blocks) : ReuseHazard(blocks, Config{}) {}
  /// No block is cached, and nothing is learned. Throws std::invalid_argument if a value of config is not allowed, and
  /// std::bad_alloc. O(blocks).
  ReuseHazard(Index blocks, const Config& config)
      : config_(validated(config)),
        lists_(blocks, kinds),
        released_(blocks),
        keys_(blocks),
        prompts_(std::max(least_prompts, static_cast<std::size_t>(blocks) / blocks_per_prompt)) {
    learn();
  }

  /// Records that the prompt which the found blocks end is continued. O(1) amortised.
  void on_open(SequenceContext& context, std::span<const BlockId> found, const Retention&, std::uint64_t now) noexcept {
    context.known = static_cast<Pos>(found.size());
    // The prompt that this one continues ended here, or one block further, in text that has been replaced.
    for (std::size_t back = 1; back <= 2 && back <= found.size(); ++back) {
      if (record_continuation(keys_[found[found.size() - back]], now) == Continued::whole) {
        break;
      }
    }
  }

  /// A block that had to be computed may belong to a prompt that is remembered: its blocks were evicted too early.
  void on_cached(SequenceContext& context, const StoredBlock& stored, std::uint64_t now) noexcept {
    keys_[stored.block] = stored.key;
    if (config_.remembers_evicted && record_continuation(stored.key, now) != Continued::nothing) {
      context.known = std::max(context.known, stored.depth + 1);
    }
  }

  /// Chooses the kind of the sequence, and remembers its prompt. O(1) amortised.
  void on_close(SequenceContext& context, std::span<const BlockId> referenced, std::uint64_t now) noexcept {
    if (referenced.empty()) {
      return;
    }
    const auto added = static_cast<double>(std::max<Index>(0, static_cast<Index>(referenced.size()) - context.known));
    const double size = std::log2(1 + added);
    const double relative = size - mean_size_;
    context.kind = !config_.sizes ? 1 : relative < -1 ? 0 : relative <= 1 ? 1 : 2;
    ++closed_;
    mean_size_ += relative / static_cast<double>(std::min<std::uint64_t>(closed_, size_memory));

    advance(now);
    if (config_.tails && referenced.size() > 1) {
      context.tail = referenced.back();
      remember(keys_[referenced[referenced.size() - 2]], context.kind, std::max(1.0, added), now);
      remember(keys_[referenced.back()], tail_kind, 1, now);
    } else {  // a single block is the tail of nothing
      remember(keys_[referenced.back()], context.kind, std::max(1.0, added), now);
    }
    if (closed_ % prompts_per_lesson == 0) {
      learn();
    }
    if (closed_ % (memory * prompts_.capacity()) == 0) {
      forget_half();
    }
  }

  /// The block enters the list of its kind. O(1).
  void on_evictable(const SequenceContext& context, BlockId block, std::uint64_t now) noexcept {
    released_[block] = now;
    lists_.push_newest(block == context.tail ? tail_kind : context.kind, block);
    ++size_;
  }
  /// The block leaves its list. O(1).
  void on_acquired(BlockId block) noexcept {
    lists_.erase(block);
    --size_;
  }
  /// Nothing: prompts are remembered longer than their blocks.
  void on_uncached(BlockId) noexcept {}

  /// Of the oldest blocks of the lists, the one with the lowest hazard. Requires size() > 0. O(1).
  [[nodiscard]] BlockId victim(std::uint64_t now) const noexcept {
    KVC_ASSERT(size_ > 0);
    BlockId victim = no_block;
    double lowest = 0;
    for (int kind = 0; kind < kinds; ++kind) {
      const BlockId block = lists_.oldest(kind);
      if (block == no_block) {
        continue;
      }
      const double hazard = factors_[static_cast<std::size_t>(kind)] * hazard_at(now - released_[block]);
      if (victim == no_block || hazard < lowest || (hazard == lowest && released_[block] < released_[victim])) {
        lowest = hazard;
        victim = block;
      }
    }
    return victim;
  }
  /// Evictable blocks. O(1).
  [[nodiscard]] Index size() const noexcept { return size_; }

  /// The learned hazard of a kind's blocks, relative to that of all blocks.
  [[nodiscard]] double factor(int kind) const noexcept { return factors_[static_cast<std::size_t>(kind)]; }

  static constexpr int kinds = 4;  ///< prompts that added few, some or many blocks; last blocks
  static constexpr int tail_kind = 3;

 private:
  static constexpr std::size_t least_prompts = 256;
  static constexpr std::size_t blocks_per_prompt = 4;  // of the pool, per record; a prompt mostly has two
  static constexpr std::uint64_t prompts_per_lesson = 16;
  static constexpr std::uint64_t memory = 8;          // evidence counts half after so many times all records
  static constexpr std::uint64_t size_memory = 1000;  // prompts in the running mean of sizes
  static constexpr std::size_t ages = 96;             // buckets of age, two to the octave

  struct Prompt {
    std::uint64_t closed = 0;
    double weight = 0;  // blocks that it added
    std::uint8_t kind = 0;
    bool waiting = false;  // for a prompt that continues it
  };
  using Prompts = detail::RecentKeys<Prompt>;
  using ByAge = std::array<double, ages>;
  enum class Continued { nothing, tail, whole };

  static const Config& validated(const Config& config) {
    require_between(config.trust, 0.0, 1.0, "config.eviction.trust");
    require(config.largest_factor >= 1, "config.eviction.largest_factor", config.largest_factor, "at least 1");
    require(config.prior_prompts > 0, "config.eviction.prior_prompts", config.prior_prompts, "more than 0");
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

  [[nodiscard]] double hazard_at(std::uint64_t age) const noexcept {
    const std::size_t k = bucket_of(age);
    const double from = hazard_[k];
    const double to = hazard_[std::min(ages - 1, k + 1)];
    const auto begin = static_cast<double>(first_age(k));
    const auto end = static_cast<double>(first_age(k + 1));
    return from + (to - from) * std::min(1.0, (static_cast<double>(age) - begin) / (end - begin));
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

  void remember(std::uint64_t key, std::uint8_t kind, double weight, std::uint64_t now) noexcept {
    if (const auto earlier = prompts_.find(key); earlier != Prompts::none) {
      stop_waiting(earlier, false);
    }
    if (prompts_.full()) {
      stop_waiting(prompts_.begin(), false);
    }
    prompts_.push(key, {now, weight, kind, true});
    for (Prompts::Number& passed : passed_) {
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
    waiting_[prompt.kind][k] -= prompt.weight;
    if (used) {
      reuses_[prompt.kind][k] += prompt.weight;
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
      for (std::size_t k = 0; k < ages; ++k) {
        exposure_[kind][k] += waiting_[kind][k] * passed;
      }
    }
    for (std::size_t k = 0; k + 1 < ages; ++k) {
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
        }
      }
    }
  }

  /// Estimates the hazard of all by age, and the factors of the kinds.
  void learn() noexcept {
    ByAge reuses{}, exposure{};
    for (std::size_t kind = 0; kind < kinds; ++kind) {
      for (std::size_t k = 0; k < ages; ++k) {
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

    const double prior = config_.prior_prompts * (weight_count_ > 0 ? weight_sum_ / weight_count_ : 1.0);
    for (std::size_t kind = 0; kind < kinds; ++kind) {
      double observed = prior, expected = prior;
      for (std::size_t k = 0; k < ages; ++k) {
        observed += reuses_[kind][k];
        expected += exposure_[kind][k] * hazard_[k];
      }
      factors_[kind] =
          std::clamp(std::pow(observed / expected, config_.trust), 1 / config_.largest_factor, config_.largest_factor);
    }
    make_non_increasing(exposure);
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
    }
    weight_sum_ /= 2;
    weight_count_ /= 2;
  }

  Config config_;
  BlockLists lists_;
  BlockArray<std::uint64_t> released_;  // time of release
  BlockArray<std::uint64_t> keys_;
  Index size_ = 0;

  Prompts prompts_;
  std::uint64_t now_ = 0;
  std::uint64_t closed_ = 0;
  double mean_size_ = 0;  // of log2(1 + added blocks)
  double weight_sum_ = 0;
  double weight_count_ = 0;
  std::array<typename Prompts::Number, ages> passed_{};  // prompts before this number are older than the bucket
  std::array<ByAge, kinds> waiting_{};                   // weight of the waiting prompts, by kind and age
  std::array<ByAge, kinds> reuses_{};                    // weight of those that were continued
  std::array<ByAge, kinds> exposure_{};                  // weight times waiting time
  ByAge hazard_{};
  std::array<double, kinds> factors_{};
};
static_assert(EvictionPolicy<ReuseHazard>);

}  // namespace v0
}  // namespace kvc
