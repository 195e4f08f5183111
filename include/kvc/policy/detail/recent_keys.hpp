// RecentKeys: the keys that were added last, each with a value. Eviction policies remember blocks in it that are not
// cached any more.
#pragma once

#include <bit>
#include <cstddef>
#include <cstdint>
#include <vector>

#include "kvc/core/types.hpp"

namespace kvc {
inline namespace v0 {
namespace detail {

/// A ring of records, numbered in the order in which they were added. A record that is added to a full ring replaces
/// the oldest one. A key that is added again is found under its newest record. Keys are hashes: the table relies on all
/// their bits being random. Every operation is O(1) expected and allocates nothing.
template <class Value>
class RecentKeys {
 public:
  using Number = std::uint64_t;
  static constexpr Number none = ~Number{0};

  /// Keeps at least `records` records.
  explicit RecentKeys(std::size_t records) : ring_(std::bit_ceil(records)), buckets_(2 * ring_.size(), free_bucket) {}

  [[nodiscard]] std::size_t capacity() const noexcept { return ring_.size(); }
  /// Records begin() .. end()-1 are remembered.
  [[nodiscard]] Number begin() const noexcept { return begin_; }
  [[nodiscard]] Number end() const noexcept { return end_; }
  [[nodiscard]] bool full() const noexcept { return end_ - begin_ == ring_.size(); }

  [[nodiscard]] Value& value(Number number) noexcept { return ring_[index(number)].value; }
  [[nodiscard]] const Value& value(Number number) const noexcept { return ring_[index(number)].value; }

  /// The newest record of a key, or none.
  [[nodiscard]] Number find(std::uint64_t key) const noexcept {
    const std::size_t bucket = bucket_of(key);
    return buckets_[bucket] == free_bucket ? none : number_at(buckets_[bucket]);
  }

  /// Forgets the oldest record, if there is any.
  void pop() noexcept {
    if (begin_ == end_) {
      return;
    }
    const std::size_t oldest = index(begin_);
    const std::size_t bucket = bucket_of(ring_[oldest].key);
    if (buckets_[bucket] == static_cast<std::uint32_t>(oldest)) {
      empty(bucket);
    }
    ++begin_;
  }

  Number push(std::uint64_t key, const Value& value) noexcept {
    if (full()) {
      pop();
    }
    const std::size_t bucket = bucket_of(key);
    buckets_[bucket] = static_cast<std::uint32_t>(index(end_));
    ring_[index(end_)] = {key, value};
    return end_++;
  }

  /// Forgets the record of a key: it is not found any more, and its number stays in use.
  void forget(std::uint64_t key) noexcept {
    const std::size_t bucket = bucket_of(key);
    if (buckets_[bucket] != free_bucket) {
      empty(bucket);
    }
  }

 private:
  struct Record {
    std::uint64_t key = 0;
    Value value{};
  };
  static constexpr std::uint32_t free_bucket = ~std::uint32_t{0};

  [[nodiscard]] std::size_t index(Number number) const noexcept {
    return static_cast<std::size_t>(number) & (ring_.size() - 1);
  }
  [[nodiscard]] Number number_at(std::uint32_t index_of_record) const noexcept {
    return begin_ + ((index_of_record - begin_) & (ring_.size() - 1));
  }
  [[nodiscard]] std::size_t home(std::uint64_t key) const noexcept {
    return static_cast<std::size_t>(key) & (buckets_.size() - 1);
  }
  [[nodiscard]] std::size_t next(std::size_t bucket) const noexcept { return (bucket + 1) & (buckets_.size() - 1); }

  /// The bucket that holds the key, or the free one where it belongs.
  [[nodiscard]] std::size_t bucket_of(std::uint64_t key) const noexcept {
    std::size_t i = home(key);
    while (buckets_[i] != free_bucket && ring_[buckets_[i]].key != key) {
      i = next(i);
    }
    return i;
  }

  /// Linear probing without tombstones (Knuth, TAOCP 3, 6.4, algorithm R).
  void empty(std::size_t hole) noexcept {
    const std::size_t mask = buckets_.size() - 1;
    for (std::size_t i = next(hole); buckets_[i] != free_bucket; i = next(i)) {
      const std::size_t wanted = home(ring_[buckets_[i]].key);
      if (((i - wanted) & mask) >= ((i - hole) & mask)) {
        buckets_[hole] = buckets_[i];
        hole = i;
      }
    }
    buckets_[hole] = free_bucket;
  }

  std::vector<Record> ring_;
  std::vector<std::uint32_t> buckets_;  // indices of ring_, at most half full
  Number begin_ = 0;
  Number end_ = 0;
};

}  // namespace detail
}  // namespace v0
}  // namespace kvc
