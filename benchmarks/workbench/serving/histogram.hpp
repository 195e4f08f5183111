// Histogram: percentiles of any number of durations, in a fixed amount of memory.
//
// Values below 1024 have a bucket each, larger ones share buckets of 1/512 of their size, so a percentile is at most
// 0.2 % above the exact value (the idea is HdrHistogram's). A percentile is by nearest rank: the smallest value that at
// least p % of all values do not exceed.
#pragma once

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstdint>
#include <vector>

#include "kvc/core/types.hpp"

namespace serving {

/// Counts durations in nanoseconds, or any numbers >= 0.
class Histogram {
 public:
  /// `value` >= 0. O(1).
  void add(std::int64_t value) {
    const std::size_t bucket = bucket_of(static_cast<std::uint64_t>(value));
    if (bucket >= counts_.size()) {
      counts_.resize(bucket + 1);
    }
    ++counts_[bucket];
    ++count_;
    sum_ += static_cast<double>(value);
    most_ = std::max(most_, value);
  }

  [[nodiscard]] kvc::Index count() const noexcept { return count_; }
  [[nodiscard]] std::int64_t max() const noexcept { return most_; }
  [[nodiscard]] double mean() const noexcept { return count_ == 0 ? 0 : sum_ / static_cast<double>(count_); }

  /// 0 < percent <= 100; 0 where there are no values. O(buckets).
  [[nodiscard]] std::int64_t percentile(double percent) const {
    const auto rank =
        std::max<kvc::Index>(1, static_cast<kvc::Index>(std::ceil(percent / 100 * static_cast<double>(count_) - 1e-9)));
    kvc::Index seen = 0;
    for (std::size_t bucket = 0; bucket < counts_.size(); ++bucket) {
      seen += counts_[bucket];
      if (seen >= rank) {
        return std::min(most_, last_of(bucket));
      }
    }
    return 0;
  }

 private:
  static constexpr unsigned fine_bits = 9;
  static constexpr std::uint64_t exact = std::uint64_t{2} << fine_bits;  // 1024

  [[nodiscard]] static std::size_t bucket_of(std::uint64_t value) noexcept {
    if (value < exact) {
      return value;
    }
    const auto shift = static_cast<unsigned>(std::bit_width(value)) - (fine_bits + 1);
    return static_cast<std::size_t>((std::uint64_t{shift} << fine_bits) + (value >> shift));
  }
  /// The largest value in a bucket.
  [[nodiscard]] static std::int64_t last_of(std::size_t bucket) noexcept {
    if (bucket < exact) {
      return static_cast<std::int64_t>(bucket);
    }
    const std::size_t shift = (bucket >> fine_bits) - 1;
    const std::uint64_t upper = (bucket & ((std::size_t{1} << fine_bits) - 1)) + (std::uint64_t{1} << fine_bits) + 1;
    return static_cast<std::int64_t>((upper << shift) - 1);
  }

  std::vector<kvc::Index> counts_;
  kvc::Index count_ = 0;
  double sum_ = 0;
  std::int64_t most_ = 0;
};

}  // namespace serving
