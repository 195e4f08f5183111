// OperationQueue: the operations of a store whose work is done by threads. Standard library only.
#pragma once

#include <algorithm>
#include <condition_variable>
#include <cstddef>
#include <cstdint>
#include <deque>
#include <list>
#include <mutex>
#include <optional>
#include <span>
#include <utility>
#include <vector>

#include "kvc/core/types.hpp"
#include "kvc/io/byte_spans.hpp"
#include "kvc/tier/block_store.hpp"
#include "kvc/tier/key.hpp"
#include "kvc/tier/record_info.hpp"

namespace kvc {
inline namespace v0 {
namespace tier {
namespace detail {

/// An operation as it was asked for, with copies of all arguments but the bytes, the keys and the answers.
struct Operation {
  Ticket ticket = 0;
  StoreOperation kind = StoreOperation::lookup;
  RecordInfo block;  // of an erase: its key alone
  std::vector<Token> tokens;
  PartRange parts;            // within those of the block
  std::uint64_t payload = 0;  // bytes of all parts
  std::uint64_t bytes = 0;    // bytes of the spans
  std::span<const BlockKey> keys;
  std::span<std::uint8_t> found;
  std::vector<io::ByteSpan> to;
  std::vector<io::ConstByteSpan> from;

  [[nodiscard]] static Operation lookup(std::span<const BlockKey> keys, std::span<std::uint8_t> found) {
    require_lookup(keys, found);
    Operation operation;
    operation.keys = keys;
    operation.found = found;
    return operation;
  }
  [[nodiscard]] static Operation read(const RecordInfo& block, std::span<const io::ByteSpan> spans, PartRange parts) {
    const std::uint64_t bytes = io::total_bytes(spans);
    Operation operation(StoreOperation::read, block, payload_of_read(block, bytes, parts), bytes);
    operation.parts = parts.within(block.parts);
    operation.to.assign(spans.begin(), spans.end());
    return operation;
  }
  [[nodiscard]] static Operation write(const RecordInfo& block, std::span<const io::ConstByteSpan> spans) {
    const std::uint64_t bytes = io::total_bytes(spans);
    require_recordable(block, bytes);
    Operation operation(StoreOperation::write, block, bytes, bytes);
    operation.from.assign(spans.begin(), spans.end());
    return operation;
  }
  [[nodiscard]] static Operation erase(const BlockKey& key) {
    Operation operation;
    operation.kind = StoreOperation::erase;
    operation.block.key = key;
    return operation;
  }

  Operation() = default;
  Operation(StoreOperation operation, const RecordInfo& info, std::uint64_t payload_bytes, std::uint64_t span_bytes)
      : kind(operation),
        block(info),
        tokens(info.tokens.begin(), info.tokens.end()),
        payload(payload_bytes),
        bytes(span_bytes) {
    block.tokens = tokens;  // a move keeps where the tokens lie
  }
  Operation(Operation&&) = default;
  Operation& operator=(Operation&&) = default;
};

/// How an operation ended, to be given to OperationQueue::end.
struct Outcome {
  StoreOutcome outcome = StoreOutcome::failed;
  Refusal refusal = Refusal::none;
  std::uint64_t count = 0;
};

/// Operations go from the thread that calls the store to those that work for it, and their completions come back. Each
/// operation is waiting, then taken by a worker, then ended, and then gone. There may be several lanes, each with
/// workers of its own; a lookup may be given to all of them, and ends when all have ended their share of it.
class OperationQueue {
 public:
  explicit OperationQueue(std::size_t lanes = 1) : waiting_(lanes) {}

  // For the thread that calls the store.

  /// Begins an operation. Throws std::bad_alloc; nothing has begun then.
  Ticket add(Operation&& operation, std::size_t lane = 0) {
    const std::lock_guard lock(mutex_);
    std::list<Completion> spare(1);
    operation.ticket = last_ + 1;
    waiting_[lane].push_back(std::move(operation));
    return added(spare);
  }
  /// Begins a lookup of which each lane does a share. It is done if one of them is.
  Ticket add_to_all(std::span<const BlockKey> keys, std::span<std::uint8_t> found) {
    if (waiting_.size() == 1) {
      return add(Operation::lookup(keys, found));
    }
    const std::lock_guard lock(mutex_);
    std::list<Completion> spare(1);
    std::vector<std::deque<Operation>> shares(waiting_.size());  // all that needs memory comes first
    for (std::deque<Operation>& share : shares) {
      share.push_back(Operation::lookup(keys, found));
      share.back().ticket = last_ + 1;
    }
    shared_.push_back({last_ + 1, waiting_.size(), {}});
    std::size_t lane = 0;
#if KVC_HAS_EXCEPTIONS
    try {
#endif
      for (; lane < waiting_.size(); ++lane) {
        waiting_[lane].push_back(std::move(shares[lane].front()));
      }
#if KVC_HAS_EXCEPTIONS
    } catch (...) {
      while (lane > 0) {
        waiting_[--lane].pop_back();
      }
      shared_.pop_back();
      throw;
    }
#endif
    return added(spare);
  }
  [[nodiscard]] std::optional<Completion> poll() {
    const std::lock_guard lock(mutex_);
    if (ended_.empty()) {
      return std::nullopt;
    }
    const Completion ended = ended_.front();
    ended_.pop_front();
    --under_way_;
    return ended;
  }
  /// True for an operation that no worker has taken, or that has ended.
  bool cancel(Ticket ticket) {
    const std::lock_guard lock(mutex_);
    const auto is_it = [ticket](const auto& each) { return each.ticket == ticket; };
    std::size_t waiting = 0;
    for (const std::deque<Operation>& lane : waiting_) {
      waiting += static_cast<std::size_t>(std::count_if(lane.begin(), lane.end(), is_it));
    }
    const auto shared = std::find_if(shared_.begin(), shared_.end(), is_it);
    if (waiting > 0 && (shared == shared_.end() || shared->left == waiting)) {
      for (std::deque<Operation>& lane : waiting_) {
        lane.erase(std::remove_if(lane.begin(), lane.end(), is_it), lane.end());
      }
      if (shared != shared_.end()) {
        shared_.erase(shared);
      }
      spare_.pop_front();
    } else if (const auto over = std::find_if(ended_.begin(), ended_.end(), is_it); over != ended_.end()) {
      ended_.erase(over);
    } else {
      return false;
    }
    --under_way_;
    ++stats_.cancelled;
    return true;
  }
  [[nodiscard]] bool wait(TimePoint until) {
    std::unique_lock lock(mutex_);
    const auto is_over = [this] { return !ended_.empty() || under_way_ == 0; };
    if (until == TimePoint::max()) {
      news_.wait(lock, is_over);
    } else {
      news_.wait_until(lock, until, is_over);
    }
    return !ended_.empty();
  }
  [[nodiscard]] std::size_t under_way() const {
    const std::lock_guard lock(mutex_);
    return under_way_;
  }
  /// Counts of the completions; the store adds the records and the bytes that it holds.
  [[nodiscard]] StoreStats stats() const {
    const std::lock_guard lock(mutex_);
    return stats_;
  }
  /// No operation will be taken any more: workers that wait, and those that come, get none.
  void stop() {
    const std::lock_guard lock(mutex_);
    is_stopped_ = true;
    for (std::deque<Operation>& lane : waiting_) {
      lane.clear();
    }
    work_.notify_all();
  }

  // For the workers.

  /// Waits for an operation of a lane, and takes it. Nothing: the queue is stopped.
  [[nodiscard]] std::optional<Operation> take(std::size_t lane = 0) {
    std::unique_lock lock(mutex_);
    work_.wait(lock, [&] { return is_stopped_ || !waiting_[lane].empty(); });
    return take_now(lane);
  }
  /// Takes an operation of a lane, if one waits.
  [[nodiscard]] std::optional<Operation> try_take(std::size_t lane = 0) {
    const std::lock_guard lock(mutex_);
    return take_now(lane);
  }
  [[nodiscard]] bool is_stopped() const {
    const std::lock_guard lock(mutex_);
    return is_stopped_;
  }
  /// Reports the end of an operation that was taken. Its bytes are the caller's again.
  void end(const Operation& operation, Outcome how) noexcept {
    const std::lock_guard lock(mutex_);
    const auto shared = std::find_if(shared_.begin(), shared_.end(),
                                     [&](const Shared& each) { return each.ticket == operation.ticket; });
    if (shared != shared_.end()) {
      shared->sum.count += how.count;
      shared->sum.outcome = how.outcome == StoreOutcome::done ? how.outcome : shared->sum.outcome;
      if (--shared->left > 0) {
        return;
      }
      how = shared->sum;
      shared_.erase(shared);
    }
    ended_.splice(ended_.end(), spare_, spare_.begin());
    ended_.back() = {operation.ticket, operation.kind, how.outcome, how.refusal, how.count};
    count(operation, how);
    news_.notify_all();
  }

 private:
  /// A lookup that several lanes do.
  struct Shared {
    Ticket ticket;
    std::size_t left;  // lanes that have not ended it
    Outcome sum;
  };

  [[nodiscard]] std::optional<Operation> take_now(std::size_t lane) {
    std::optional<Operation> taken;
    if (!waiting_[lane].empty()) {
      taken.emplace(std::move(waiting_[lane].front()));
      waiting_[lane].pop_front();
    }
    return taken;
  }
  Ticket added(std::list<Completion>& spare) noexcept {
    spare_.splice(spare_.end(), spare);
    ++under_way_;
    waiting_.size() == 1 ? work_.notify_one() : work_.notify_all();
    return ++last_;
  }
  void count(const Operation& operation, const Outcome& how) noexcept {
    switch (how.outcome) {
      case StoreOutcome::done:
        switch (operation.kind) {
          case StoreOperation::lookup:
            stats_.lookups += operation.keys.size();
            stats_.lookups_found += how.count;
            break;
          case StoreOperation::read:
            ++stats_.reads;
            stats_.bytes_read += how.count;
            break;
          case StoreOperation::write:
            ++stats_.writes;
            stats_.bytes_written += how.count;
            break;
          case StoreOperation::erase:
            ++stats_.erases;
            break;
        }
        break;
      case StoreOutcome::missing:
        ++stats_.missing;
        break;
      case StoreOutcome::refused:
        ++stats_.refused;
        break;
      case StoreOutcome::full:
        ++stats_.full;
        break;
      case StoreOutcome::failed:
        ++stats_.failed;
        break;
    }
  }

  mutable std::mutex mutex_;
  std::condition_variable work_;                // there is an operation to take, or none will come
  std::condition_variable news_;                // an operation has ended
  std::vector<std::deque<Operation>> waiting_;  // by lane
  std::vector<Shared> shared_;
  std::list<Completion> ended_;
  std::list<Completion> spare_;  // one for each operation that has not ended: to report an end needs no memory
  StoreStats stats_;
  std::size_t under_way_ = 0;  // waiting, taken or ended
  Ticket last_ = 0;
  bool is_stopped_ = false;
};

}  // namespace detail
}  // namespace tier
}  // namespace v0
}  // namespace kvc
