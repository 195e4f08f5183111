// TierPolicy: how many blocks of a prefix to load from slower tiers, and how many to compute instead.
//
// To load k blocks behind the cached ones, and to compute the rest of a prompt of n tokens, takes until the first token
//
//   T(k) = max(wait, over tiers: latency + (bytes under way + bytes of the k blocks there) / bandwidth)
//        + seconds of prefill from position cached + k * block_tokens to n
//
// where the prefill cannot begin before `wait`, since others are served. The k with the smallest T is chosen. All of it
// is measured: a read tells latency and bandwidth of its tier, a prefill the speed of the model. docs/tiers.md derives
// from it at which length of a prefix loading begins to pay. Standard library only.
#pragma once

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <span>

#include "kvc/core/error.hpp"
#include "kvc/core/types.hpp"

namespace kvc {
inline namespace v0 {
namespace tier {

/// When blocks are loaded that a slower tier has.
enum class LoadRule : std::uint8_t {
  always,  ///< all of them
  never,   ///< none; slower tiers are not even asked
  cheaper  ///< as many as make the first token come soonest, by what was measured
};

/// Measures how long reads of a tier take: latency + bytes / bandwidth, where `bytes` are those of a read and of all
/// that were under way before it. A least-squares line through the last reads, older ones with less weight.
class ReadSpeed {
 public:
  /// Nothing is measured.
  ReadSpeed() = default;
  /// Known beforehand, as if it had been measured a few times. Throws std::invalid_argument unless latency >= 0 and
  /// bandwidth > 0.
  ReadSpeed(double latency_seconds, double bytes_per_second) {
    require(latency_seconds >= 0, "latency_seconds", latency_seconds, "at least 0");
    require(bytes_per_second > 0, "bytes_per_second", bytes_per_second, "more than 0");
    for (const double bytes : {0.0, bytes_per_second}) {  // of these two points, whatever the weight
      add(bytes, latency_seconds + bytes / bytes_per_second);
    }
  }
  /// A read took so long, with so many bytes under way when it began, its own included. O(1).
  void add(double bytes, double seconds) noexcept {
    for (double* sum : {&weight_, &x_, &y_, &xx_, &xy_}) {
      *sum *= forgetting;
    }
    weight_ += 1;
    x_ += bytes;
    y_ += seconds;
    xx_ += bytes * bytes;
    xy_ += bytes * seconds;
  }
  /// Whether anything was measured.
  [[nodiscard]] bool known() const noexcept { return weight_ > 0; }
  /// The seconds until the last of so many bytes is there; 0 if nothing was measured. Never negative. O(1).
  [[nodiscard]] double seconds(double bytes) const noexcept {
    if (!known()) {
      return 0;
    }
    const double spread = weight_ * xx_ - x_ * x_;
    const double slope = spread > 1e-9 * weight_ * xx_ ? (weight_ * xy_ - x_ * y_) / spread : -1;
    const double constant = (y_ - slope * x_) / weight_;
    if (slope >= 0 && constant >= 0) {
      return constant + slope * bytes;
    }
    return xx_ > 0 ? bytes * xy_ / xx_ : y_ / weight_;  // all reads alike, or noise: a line through the origin
  }

 private:
  static constexpr double forgetting = 0.98;  // half of the weight is on the last 34 reads
  double weight_ = 0, x_ = 0, y_ = 0, xx_ = 0, xy_ = 0;
};

/// Measures how long a prefill takes: seconds = a * tokens + b * (pairs of a token and one before it), since attention
/// looks back. Least squares, older prefills with less weight.
class PrefillSpeed {
 public:
  /// Nothing is measured.
  PrefillSpeed() = default;
  /// Known beforehand. Throws std::invalid_argument unless both are at least 0.
  PrefillSpeed(double seconds_per_token, double seconds_per_pair) {
    require(seconds_per_token >= 0, "seconds_per_token", seconds_per_token, "at least 0");
    require(seconds_per_pair >= 0, "seconds_per_pair", seconds_per_pair, "at least 0");
    for (const PosRange range : {PosRange{0, 1024}, PosRange{16384, 17408}}) {
      add(range, seconds_per_token * range.size() + seconds_per_pair * pairs(range));
    }
  }
  /// The positions of `range` took so long. O(1).
  void add(PosRange range, double seconds) noexcept {
    if (range.empty()) {
      return;
    }
    const double tokens = range.size(), looked_at = pairs(range);
    // Relative errors count, so that long prompts do not decide alone.
    const double weight = 1 / (tokens * tokens);
    for (double* sum : {&xx_, &xz_, &zz_, &xy_, &zy_}) {
      *sum *= forgetting;
    }
    xx_ += weight * tokens * tokens;
    xz_ += weight * tokens * looked_at;
    zz_ += weight * looked_at * looked_at;
    xy_ += weight * tokens * seconds;
    zy_ += weight * looked_at * seconds;
  }
  /// Whether anything was measured.
  [[nodiscard]] bool known() const noexcept { return xx_ > 0; }
  /// The seconds that the positions of `range` will take; infinite if nothing was measured. O(1).
  [[nodiscard]] double seconds(PosRange range) const noexcept {
    if (range.empty()) {
      return 0;
    }
    if (!known()) {
      return std::numeric_limits<double>::infinity();
    }
    const double determinant = xx_ * zz_ - xz_ * xz_;
    double per_token = xy_ / xx_, per_pair = 0;
    if (determinant > 1e-9 * xx_ * zz_) {
      const double a = (xy_ * zz_ - zy_ * xz_) / determinant, b = (zy_ * xx_ - xy_ * xz_) / determinant;
      if (a >= 0 && b >= 0) {
        per_token = a;
        per_pair = b;
      }
    }
    return per_token * range.size() + per_pair * pairs(range);
  }

 private:
  static constexpr double forgetting = 0.95;
  [[nodiscard]] static double pairs(PosRange range) noexcept {
    return (static_cast<double>(range.first) + range.last) / 2 * range.size();
  }
  double xx_ = 0, xz_ = 0, zz_ = 0, xy_ = 0, zy_ = 0;
};

/// The question to decide: the blocks of a prompt that lie behind the cached ones, as far as a tier has each of them.
struct LoadCandidate {
  Pos cached = 0;  ///< tokens in the pool: whole blocks
  Pos prompt = 0;  ///< tokens of the prompt
  Pos block_tokens = 1;
  double block_bytes = 0;
  std::span<const std::uint8_t> tiers{};    ///< [blocks] the tier that each is to be read from
  std::span<const double> bytes_under_way;  ///< [tiers] of reads that go before
};

/// Decides how much to load.
class TierPolicy {
 public:
  static constexpr std::size_t max_tiers = 8;
  /// A decision not to load anything is not followed once in so many times, for one block: a tier that has become
  /// faster is noticed.
  static constexpr std::uint32_t probe_every = 64;

  /// Loads by `rule`. Nothing is measured.
  explicit TierPolicy(LoadRule rule = LoadRule::cheaper) noexcept : rule_(rule) {}

  /// The rule.
  [[nodiscard]] LoadRule rule() const noexcept { return rule_; }
  /// The measured reads of a tier, to add to. Throws std::invalid_argument unless tier < max_tiers.
  [[nodiscard]] ReadSpeed& reads(std::size_t tier) {
    require(tier < max_tiers, "tier", tier, "less than 8");
    return reads_[tier];
  }
  /// The measured reads of a tier. Throws std::invalid_argument unless tier < max_tiers.
  [[nodiscard]] const ReadSpeed& reads(std::size_t tier) const {
    require(tier < max_tiers, "tier", tier, "less than 8");
    return reads_[tier];
  }
  /// The measured prefills, to add to.
  [[nodiscard]] PrefillSpeed& prefill() noexcept { return prefill_; }
  /// The measured prefills.
  [[nodiscard]] const PrefillSpeed& prefill() const noexcept { return prefill_; }

  /// The seconds until a prefill can begin, because others are served before: a load that is over by then costs
  /// nothing. Holds until it is set again. Throws std::invalid_argument if it is negative.
  void set_wait(double seconds) {
    require(seconds >= 0, "seconds", seconds, "at least 0");
    wait_ = seconds;
  }

  /// T(blocks) of the model above, in seconds. O(blocks).
  [[nodiscard]] double seconds_to_first_token(const LoadCandidate& candidate, std::size_t blocks) const noexcept {
    std::array<double, max_tiers> bytes{};
    for (const std::uint8_t tier : candidate.tiers.first(blocks)) {
      bytes[tier] += candidate.block_bytes;
    }
    return load_seconds(candidate, bytes) + prefill_.seconds(rest(candidate, blocks));
  }

  /// How many of the candidate's blocks to load, from the first on. `cheaper` loads all of them as long as no prefill
  /// was measured; a tier that was not measured counts as one that takes no time. O(blocks * tiers).
  [[nodiscard]] std::size_t blocks_to_load(const LoadCandidate& candidate) noexcept {
    if (rule_ == LoadRule::never || candidate.tiers.empty()) {
      return 0;
    }
    if (rule_ == LoadRule::always || !prefill_.known()) {
      return candidate.tiers.size();
    }
    std::array<double, max_tiers> bytes{};
    std::size_t best = 0;
    double least = wait_ + prefill_.seconds(rest(candidate, 0));
    for (std::size_t k = 1; k <= candidate.tiers.size(); ++k) {
      bytes[candidate.tiers[k - 1]] += candidate.block_bytes;
      const double seconds = load_seconds(candidate, bytes) + prefill_.seconds(rest(candidate, k));
      if (seconds < least) {
        least = seconds;
        best = k;
      }
    }
    return best == 0 && ++refusals_ % probe_every == 0 ? 1 : best;
  }

 private:
  [[nodiscard]] static PosRange rest(const LoadCandidate& candidate, std::size_t blocks) noexcept {
    return {candidate.cached + static_cast<Pos>(blocks) * candidate.block_tokens, candidate.prompt};
  }
  [[nodiscard]] double load_seconds(const LoadCandidate& candidate,
                                    const std::array<double, max_tiers>& bytes) const noexcept {
    double most = wait_;
    for (std::size_t t = 0; t < candidate.bytes_under_way.size(); ++t) {
      most = bytes[t] > 0 ? std::max(most, reads_[t].seconds(candidate.bytes_under_way[t] + bytes[t])) : most;
    }
    return most;
  }

  LoadRule rule_;
  std::array<ReadSpeed, max_tiers> reads_{};
  PrefillSpeed prefill_;
  double wait_ = 0;
  std::uint32_t refusals_ = 0;
};

}  // namespace tier
}  // namespace v0
}  // namespace kvc
