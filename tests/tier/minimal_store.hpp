// A minimal BlockStore: each operation takes place at once, and its completion waits in a queue.
#pragma once

#include <algorithm>
#include <cstring>
#include <deque>
#include <unordered_map>
#include <vector>

#include "kvc/tier/block_store.hpp"

namespace kvc_test {

class MinimalStore {
 public:
  using BlockKey = kvc::tier::BlockKey;
  using Completion = kvc::tier::Completion;
  using Outcome = kvc::tier::StoreOutcome;
  using RecordInfo = kvc::tier::RecordInfo;
  using Ticket = kvc::tier::Ticket;
  static constexpr bool persistent = false;

  explicit MinimalStore(std::uint64_t capacity = kvc::tier::unlimited) : capacity_(capacity) {}

  Ticket lookup(std::span<const BlockKey> keys, std::span<std::uint8_t> found) {
    kvc::tier::detail::require_lookup(keys, found);
    std::uint64_t count = 0;
    for (std::size_t i = 0; i < keys.size(); ++i) {
      found[i] = records_.contains(keys[i]) ? 1 : 0;
      count += found[i];
    }
    stats_.lookups += keys.size();
    stats_.lookups_found += count;
    return end({0, kvc::tier::StoreOperation::lookup, Outcome::done, {}, count});
  }
  Ticket read(const RecordInfo& block, std::span<const kvc::io::ByteSpan> spans, kvc::tier::PartRange parts = {}) {
    const std::uint64_t wanted = kvc::io::total_bytes(spans);
    const std::uint64_t payload = kvc::tier::detail::payload_of_read(block, wanted, parts);
    Completion ended{0, kvc::tier::StoreOperation::read, Outcome::done, {}, wanted};
    const auto found = records_.find(block.key);
    if (found == records_.end()) {
      ++stats_.missing;
      ended.outcome = Outcome::missing;
    } else if (const kvc::tier::Refusal refusal = found->second.check(block, payload);
               refusal != kvc::tier::Refusal::none) {
      ++stats_.refused;
      ended.outcome = Outcome::refused;
      ended.refusal = refusal;
    } else {
      const std::byte* from = found->second.bytes.data() + payload / block.parts * parts.within(block.parts).first;
      for (const kvc::io::ByteSpan span : spans) {
        std::copy_n(from, span.size(), span.data());
        from += span.size();
      }
      ++stats_.reads;
      stats_.bytes_read += wanted;
    }
    ended.count = ended.outcome == Outcome::done ? wanted : 0;
    return end(ended);
  }
  Ticket write(const RecordInfo& block, std::span<const kvc::io::ConstByteSpan> spans) {
    const std::uint64_t bytes = kvc::io::total_bytes(spans);
    kvc::tier::require_recordable(block, bytes);
    const auto old = records_.find(block.key);
    const std::uint64_t used = stats_.bytes - (old == records_.end() ? 0 : old->second.bytes.size());
    if (bytes > capacity_ || used > capacity_ - bytes) {
      ++stats_.full;
      return end({0, kvc::tier::StoreOperation::write, Outcome::full, {}, 0});
    }
    Record record;
    record.info = block;
    record.tokens.assign(block.tokens.begin(), block.tokens.end());
    for (const kvc::io::ConstByteSpan span : spans) {
      record.bytes.insert(record.bytes.end(), span.begin(), span.end());
    }
    records_.insert_or_assign(block.key, std::move(record));
    stats_.bytes = used + bytes;
    ++stats_.writes;
    stats_.bytes_written += bytes;
    return end({0, kvc::tier::StoreOperation::write, Outcome::done, {}, bytes});
  }
  Ticket erase(const BlockKey& key) {
    const auto found = records_.find(key);
    if (found == records_.end()) {
      ++stats_.missing;
      return end({0, kvc::tier::StoreOperation::erase, Outcome::missing, {}, 0});
    }
    stats_.bytes -= found->second.bytes.size();
    records_.erase(found);
    ++stats_.erases;
    return end({0, kvc::tier::StoreOperation::erase, Outcome::done, {}, 0});
  }
  std::optional<Completion> poll() {
    if (ended_.empty()) {
      return std::nullopt;
    }
    const Completion ended = ended_.front();
    ended_.pop_front();
    return ended;
  }
  bool cancel(Ticket ticket) {
    const auto found =
        std::find_if(ended_.begin(), ended_.end(), [&](const Completion& c) { return c.ticket == ticket; });
    if (found == ended_.end()) {
      return false;
    }
    ended_.erase(found);
    ++stats_.cancelled;
    return true;
  }
  bool wait(kvc::tier::TimePoint) { return !ended_.empty(); }
  [[nodiscard]] std::size_t under_way() const { return ended_.size(); }
  [[nodiscard]] std::uint64_t capacity() const { return capacity_; }
  [[nodiscard]] kvc::tier::StoreStats stats() const {
    kvc::tier::StoreStats now = stats_;
    now.records = records_.size();
    return now;
  }

 private:
  struct Record {
    RecordInfo info;
    std::vector<kvc::Token> tokens;
    std::vector<std::byte> bytes;
    [[nodiscard]] kvc::tier::Refusal check(const RecordInfo& block, std::uint64_t payload) const {
      RecordInfo own = info;
      own.tokens = tokens;
      return kvc::tier::compare(own, bytes.size(), block, payload);
    }
  };
  Ticket end(Completion ended) {
    ended.ticket = ++last_;
    ended_.push_back(ended);
    return ended.ticket;
  }

  std::unordered_map<BlockKey, Record, kvc::tier::BlockKeyHash> records_;
  std::deque<Completion> ended_;
  kvc::tier::StoreStats stats_;
  std::uint64_t capacity_;
  Ticket last_ = 0;
};
static_assert(kvc::tier::BlockStore<MinimalStore>);

}  // namespace kvc_test
