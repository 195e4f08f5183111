// TimedStore: a slower tier in simulated time.
#pragma once

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <deque>
#include <functional>
#include <optional>
#include <span>
#include <utility>

#include "kvc/tier/block_store.hpp"
#include "replay/counted_store.hpp"
#include "tier_spec.hpp"

namespace serving {

/// A BlockStore without bytes whose operations take time. A read begins when the reads before it have ended, and takes
/// the latency, which overlaps with reads before it, and the bytes of a block by the bandwidth; a write likewise,
/// beside the reads. Erases take the latency, and lookups where the tier is remote. A record can be found when its
/// write has ended. Evicts the least recently used record whose children are gone.
class TimedStore {
 public:
  using Completion = kvc::tier::Completion;
  using Operation = kvc::tier::StoreOperation;
  using Ticket = kvc::tier::Ticket;
  static constexpr bool persistent = false;

  /// A block of the pool, of all layer groups together, has `block_bytes` bytes in records, which stand for
  /// `model_bytes` bytes of the model. `clock` tells the time.
  TimedStore(const TierSpec& spec, Index block_bytes, double model_bytes, std::function<Time()> clock)
      : blocks_(spec.blocks * block_bytes, replay::CountedStore::Unit::bytes),
        clock_(std::move(clock)),
        latency_(spec.latency),
        lookup_(spec.remote ? spec.latency : 0),
        seconds_per_byte_(
            spec.bytes_per_second > 0 ? model_bytes / static_cast<double>(block_bytes) / spec.bytes_per_second : 0) {}

  Ticket lookup(std::span<const kvc::tier::BlockKey> keys, std::span<std::uint8_t> found) {
    (void)blocks_.lookup(keys, found);
    return begin(lookups_, clock_() + lookup_, blocks_.poll().value());
  }
  Ticket read(const kvc::tier::RecordInfo& block, std::span<const kvc::io::ByteSpan> to, kvc::tier::PartRange = {}) {
    (void)blocks_.read(block, to);
    const std::uint64_t bytes = kvc::io::total_bytes(to);
    read_free_ = std::max(read_free_, clock_() + latency_) + transfer(bytes);
    bytes_reading_ += bytes;
    return begin(reads_, read_free_, blocks_.poll().value(), {}, bytes);
  }
  Ticket write(const kvc::tier::RecordInfo& block, std::span<const kvc::io::ConstByteSpan> from) {
    const std::uint64_t bytes = kvc::io::total_bytes(from);
    write_free_ = std::max(write_free_, clock_() + latency_) + transfer(bytes);
    Completion done;
    done.operation = Operation::write;
    done.outcome = kvc::tier::StoreOutcome::done;
    kvc::tier::RecordInfo names;  // all that a store without bytes needs
    names.key = block.key;
    names.parent = block.parent;
    return begin(writes_, write_free_, done, names, bytes);
  }
  Ticket erase(const kvc::tier::BlockKey& key) {
    (void)blocks_.erase(key);
    return begin(erases_, clock_() + latency_, blocks_.poll().value());
  }
  std::optional<Completion> poll() {
    const Time now = clock_();
    for (std::deque<UnderWay>* const lane : lanes()) {
      if (lane->empty() || lane->front().end > now) {
        continue;
      }
      UnderWay first = std::move(lane->front());
      lane->pop_front();
      if (first.completion.operation == Operation::write && !blocks_.put(first.block, first.bytes)) {
        first.completion.outcome = kvc::tier::StoreOutcome::full;
      }
      forget(first);
      return first.completion;
    }
    return std::nullopt;
  }
  std::optional<kvc::tier::BlockKey> poll_evicted() { return blocks_.poll_evicted(); }
  bool cancel(Ticket ticket) {
    return std::ranges::any_of(lanes(), [&](std::deque<UnderWay>* lane) {
      return std::erase_if(*lane, [&](const UnderWay& one) {
               const bool is_it = one.completion.ticket == ticket;
               if (is_it) {
                 forget(one);
               }
               return is_it;
             }) > 0;
    });
  }
  /// Simulated time does not pass by itself: nothing comes.
  bool wait(kvc::tier::TimePoint) { return next() <= clock_(); }
  [[nodiscard]] std::size_t under_way() const {
    return lookups_.size() + erases_.size() + reads_.size() + writes_.size();
  }
  [[nodiscard]] std::uint64_t capacity() const { return blocks_.capacity(); }
  [[nodiscard]] kvc::tier::StoreStats stats() const { return blocks_.stats(); }

  /// When the next operation ends; far away if none is under way.
  [[nodiscard]] Time next() const {
    Time first = max_clock;
    for (const std::deque<UnderWay>* const lane : {&lookups_, &erases_, &reads_, &writes_}) {
      first = lane->empty() ? first : std::min(first, lane->front().end);
    }
    return first;
  }
  /// Bytes in records that are to be read.
  [[nodiscard]] std::uint64_t bytes_reading() const noexcept { return bytes_reading_; }
  [[nodiscard]] Index reading() const noexcept { return std::ssize(reads_); }
  [[nodiscard]] Index writing() const noexcept { return std::ssize(writes_); }

 private:
  struct UnderWay {
    Time end = 0;
    Completion completion{};
    kvc::tier::RecordInfo block{};  // of a write
    std::uint64_t bytes = 0;        // of a read or a write
  };
  [[nodiscard]] Time transfer(std::uint64_t bytes) const noexcept {
    return static_cast<Time>(static_cast<double>(bytes) * seconds_per_byte_ * second);
  }
  void forget(const UnderWay& operation) noexcept {
    bytes_reading_ -= operation.completion.operation == Operation::read ? operation.bytes : 0;
  }
  [[nodiscard]] std::array<std::deque<UnderWay>*, 4> lanes() noexcept {
    return {&lookups_, &erases_, &reads_, &writes_};
  }
  Ticket begin(std::deque<UnderWay>& lane, Time end, Completion completion, const kvc::tier::RecordInfo& block = {},
               std::uint64_t bytes = 0) {
    completion.ticket = ++last_;
    lane.push_back({end, completion, block, bytes});
    return last_;
  }

  replay::CountedStore blocks_;
  std::function<Time()> clock_;
  Time latency_, lookup_;
  double seconds_per_byte_;  // of a record
  std::uint64_t bytes_reading_ = 0;
  Time read_free_ = 0, write_free_ = 0;                     // when what is under way has ended
  std::deque<UnderWay> lookups_, erases_, reads_, writes_;  // each in the order in which it ends
  Ticket last_ = 0;
};
static_assert(kvc::tier::ReportsEvictions<TimedStore>);

}  // namespace serving
