// CountedStore: a store of a number of blocks without bytes.
#pragma once

#include <cstdint>
#include <deque>
#include <optional>
#include <span>

#include "kvc/core/types.hpp"
#include "kvc/tier/block_store.hpp"
#include "kvc/tier/detail/record_index.hpp"

namespace replay {

/// A BlockStore that keeps the keys of so many blocks, and evicts the least recently used one whose children are gone.
class CountedStore {
 public:
  using Completion = kvc::tier::Completion;
  using Operation = kvc::tier::StoreOperation;
  using Outcome = kvc::tier::StoreOutcome;
  using Ticket = kvc::tier::Ticket;
  static constexpr bool persistent = false;
  static constexpr bool copies_at_once = true;

  explicit CountedStore(kvc::Index blocks) : blocks_(static_cast<std::size_t>(blocks)) {}

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
  Ticket write(const kvc::tier::RecordInfo& block, std::span<const kvc::io::ConstByteSpan>) {
    if (auto* const record = index_.find(block.key)) {
      index_.touch(*record);
    } else {
      if (index_.size() == blocks_) {
        auto* const victim = index_.victim();
        evicted_.push_back(victim->first);
        index_.erase(*victim);
      }
      (void)index_.insert(block.key, block.parent, {});
    }
    return end(Operation::write, Outcome::done, 0);
  }
  Ticket erase(const kvc::tier::BlockKey& key) {
    auto* const record = index_.find(key);
    if (record != nullptr) {
      index_.erase(*record);
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
  [[nodiscard]] std::uint64_t capacity() const { return blocks_; }
  [[nodiscard]] kvc::tier::StoreStats stats() const { return {.records = index_.size()}; }

 private:
  struct Nothing {};
  Ticket end(Operation operation, Outcome outcome, std::uint64_t count) {
    ended_.push_back({++last_, operation, outcome, kvc::tier::Refusal::none, count});
    return last_;
  }

  std::size_t blocks_;
  kvc::tier::detail::RecordIndex<Nothing> index_;
  std::deque<Completion> ended_;
  std::deque<kvc::tier::BlockKey> evicted_;
  Ticket last_ = 0;
};
static_assert(kvc::tier::ReportsEvictions<CountedStore>);

}  // namespace replay
