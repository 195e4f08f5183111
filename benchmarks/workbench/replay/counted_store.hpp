// CountedStore: a store without bytes, with room for a number of blocks or of bytes.
#pragma once

#include <cstdint>
#include <deque>
#include <optional>
#include <span>

#include "kvc/core/types.hpp"
#include "kvc/tier/block_store.hpp"
#include "kvc/tier/detail/record_index.hpp"

namespace replay {

/// A BlockStore that keeps keys, and evicts the least recently used one whose children are gone.
class CountedStore {
 public:
  using Completion = kvc::tier::Completion;
  using Operation = kvc::tier::StoreOperation;
  using Outcome = kvc::tier::StoreOutcome;
  using Ticket = kvc::tier::Ticket;
  static constexpr bool persistent = false;
  static constexpr bool copies_at_once = true;

  /// What the room is counted in.
  enum class Unit : std::uint8_t { blocks, bytes };

  explicit CountedStore(kvc::Index room, Unit unit = Unit::blocks)
      : room_(static_cast<std::uint64_t>(room)), unit_(unit) {}

  Ticket lookup(std::span<const kvc::tier::BlockKey> keys, std::span<std::uint8_t> found) {
    std::uint64_t count = 0;
    for (std::size_t i = 0; i < keys.size(); ++i) {
      found[i] = index_.find(keys[i]) != nullptr ? 1 : 0;
      count += found[i];
    }
    return end(Operation::lookup, Outcome::done, count);
  }
  Ticket read(const kvc::tier::RecordInfo& block, std::span<const kvc::io::ByteSpan>, kvc::tier::PartRange = {}) {
    auto* const record = index_.find(block.key);
    if (record != nullptr) {
      index_.touch(*record);
    }
    return end(Operation::read, record != nullptr ? Outcome::done : Outcome::missing, 0);
  }
  Ticket write(const kvc::tier::RecordInfo& block, std::span<const kvc::io::ConstByteSpan> spans) {
    return end(Operation::write, put(block, kvc::io::total_bytes(spans)) ? Outcome::done : Outcome::full, 0);
  }
  /// Stores a block of so many bytes. False, and nothing has changed, if it is larger than the store.
  bool put(const kvc::tier::RecordInfo& block, std::uint64_t bytes) {
    if (auto* const record = index_.find(block.key)) {
      index_.touch(*record);
      return true;
    }
    const std::uint64_t size = unit_ == Unit::blocks ? 1 : bytes;
    if (size > room_) {
      return false;
    }
    while (used_ + size > room_) {
      auto* const victim = index_.victim();
      evicted_.push_back(victim->first);
      remove(*victim);
    }
    (void)index_.insert(block.key, block.parent, size);
    used_ += size;
    return true;
  }
  Ticket erase(const kvc::tier::BlockKey& key) {
    auto* const record = index_.find(key);
    if (record != nullptr) {
      remove(*record);
    }
    return end(Operation::erase, record != nullptr ? Outcome::done : Outcome::missing, 0);
  }
  std::optional<Completion> poll() {
    if (ended_.empty()) {
      return std::nullopt;
    }
    const Completion first = ended_.front();
    ended_.pop_front();
    return first;
  }
  std::optional<kvc::tier::BlockKey> poll_evicted() {
    if (evicted_.empty()) {
      return std::nullopt;
    }
    const kvc::tier::BlockKey key = evicted_.front();
    evicted_.pop_front();
    return key;
  }
  bool cancel(Ticket ticket) {
    return std::erase_if(ended_, [&](const Completion& e) { return e.ticket == ticket; }) > 0;
  }
  bool wait(kvc::tier::TimePoint) { return !ended_.empty(); }
  [[nodiscard]] std::size_t under_way() const { return ended_.size(); }
  [[nodiscard]] std::uint64_t capacity() const { return room_; }
  [[nodiscard]] kvc::tier::StoreStats stats() const { return {.records = index_.size(), .bytes = used_}; }

 private:
  using Index = kvc::tier::detail::RecordIndex<std::uint64_t>;
  template <class Record>
  void remove(Record& record) {
    used_ -= record.second.value;
    index_.erase(record);
  }
  Ticket end(Operation operation, Outcome outcome, std::uint64_t count) {
    ended_.push_back({++last_, operation, outcome, kvc::tier::Refusal::none, count});
    return last_;
  }

  std::uint64_t room_;
  Unit unit_;
  std::uint64_t used_ = 0;
  Index index_;  // with the room that each takes
  std::deque<Completion> ended_;
  std::deque<kvc::tier::BlockKey> evicted_;
  Ticket last_ = 0;
};
static_assert(kvc::tier::ReportsEvictions<CountedStore>);

}  // namespace replay
