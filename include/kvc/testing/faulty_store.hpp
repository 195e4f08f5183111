// FaultyStore: a BlockStore that goes wrong in every way that its contract allows, for tests of what uses stores.
#pragma once

#include <algorithm>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <random>
#include <span>
#include <utility>
#include <vector>

#include "kvc/core/error.hpp"
#include "kvc/core/types.hpp"
#include "kvc/io/byte_spans.hpp"
#include "kvc/tier/block_store.hpp"
#include "kvc/tier/key.hpp"
#include "kvc/tier/record_info.hpp"

namespace kvc {
inline namespace v0 {
namespace testing {

/// How often a FaultyStore goes wrong: chances between 0 and 1, of each operation. The default is never.
struct Faults {
  double fails = 0;          ///< ends as `failed`; nothing was done, or, of one in two writes and erases, all was
  double full = 0;           ///< a write ends as `full`
  double loses = 0;          ///< a write is `done`, and the record is gone a moment later, as if evicted
  double vanishes = 0;       ///< a read or a lookup finds that the record has just gone
  double corrupts = 0;       ///< a read fills its spans with damaged bytes, and ends as `refused`
  double denies_cancel = 0;  ///< a cancel that could have been is false
  std::uint32_t delay = 0;   ///< an operation takes place after up to so many calls of `poll`, in any order
  std::uint64_t seed = 1;    ///< equal seeds and calls give equal faults
};

/// Wraps a store, and does to its callers whatever the contract of BlockStore lets a store do: operations take place
/// late and out of order, fail, find nothing, or find damage. An operation touches its bytes when it takes place, at a
/// call of `poll` or `wait` or never, so that a caller who uses them too early is noticed. One thread, and no clock:
/// all follows from the seed. What it fulfils: BlockStore; where all chances are 0, the whole contract.
template <tier::BlockStore S>
class FaultyStore {
  using Outcome = tier::StoreOutcome;
  using Operation = tier::StoreOperation;

 public:
  static constexpr bool persistent = S::persistent;

  /// Goes wrong as `faults` says, and calls `store` otherwise. `store` must outlive this, and nobody else use it.
  FaultyStore(S& store, const Faults& chances) : faults(chances), store_(&store), random_(chances.seed) {}

  /// The chances; they may be changed between operations.
  Faults faults;

  /// See BlockStore.
  [[nodiscard]] tier::Ticket lookup(std::span<const tier::BlockKey> keys, std::span<std::uint8_t> found) {
    tier::detail::require_lookup(keys, found);
    Pending operation = begin(Operation::lookup);
    operation.keys = keys;
    operation.found = found;
    return add(std::move(operation));
  }
  /// See BlockStore.
  [[nodiscard]] tier::Ticket read(const tier::RecordInfo& block, std::span<const io::ByteSpan> spans,
                                  tier::PartRange parts = {}) {
    (void)tier::detail::payload_of_read(block, io::total_bytes(spans), parts);
    Pending operation = begin(Operation::read, block);
    operation.to.assign(spans.begin(), spans.end());
    operation.parts = parts;
    return add(std::move(operation));
  }
  /// See BlockStore.
  [[nodiscard]] tier::Ticket write(const tier::RecordInfo& block, std::span<const io::ConstByteSpan> spans) {
    tier::require_recordable(block, io::total_bytes(spans));
    Pending operation = begin(Operation::write, block);
    operation.from.assign(spans.begin(), spans.end());
    return add(std::move(operation));
  }
  /// See BlockStore.
  [[nodiscard]] tier::Ticket erase(const tier::BlockKey& key) {
    Pending operation = begin(Operation::erase);
    operation.block.key = key;
    return add(std::move(operation));
  }

  /// See BlockStore. Each call brings the operations under way one step nearer to their end.
  [[nodiscard]] std::optional<tier::Completion> poll() {
    ++now_;
    std::vector<std::size_t> due;
    for (std::size_t i = 0; i < pending_.size(); ++i) {
      if (pending_[i].due <= now_) {
        due.push_back(i);
      }
    }
    if (due.empty()) {
      return std::nullopt;
    }
    const std::size_t chosen = faults.delay == 0 ? due.front() : due[random_() % due.size()];
    Pending operation = std::move(pending_[chosen]);
    pending_.erase(pending_.begin() + static_cast<std::ptrdiff_t>(chosen));
    return perform(operation);
  }
  /// See BlockStore. An operation that has not taken place never will.
  bool cancel(tier::Ticket ticket) {
    const auto found =
        std::find_if(pending_.begin(), pending_.end(), [&](const Pending& each) { return each.ticket == ticket; });
    if (found == pending_.end() || happens(faults.denies_cancel)) {
      return false;
    }
    pending_.erase(found);
    ++cancelled_;
    return true;
  }
  /// See BlockStore. Does not wait: lets as many steps pass as the next end is away.
  [[nodiscard]] bool wait(tier::TimePoint) {
    const auto next = std::min_element(pending_.begin(), pending_.end(),
                                       [](const Pending& a, const Pending& b) { return a.due < b.due; });
    if (next == pending_.end()) {
      return false;
    }
    now_ = std::max(now_, next->due);
    return true;
  }
  /// See BlockStore.
  [[nodiscard]] std::size_t under_way() const noexcept { return pending_.size(); }
  /// That of the store behind it.
  [[nodiscard]] std::uint64_t capacity() const { return store_->capacity(); }
  /// Those of the store behind it, and the faults.
  [[nodiscard]] tier::StoreStats stats() const {
    tier::StoreStats now = store_->stats();
    now.failed += failed_;
    now.full += full_;
    now.refused += refused_;
    now.cancelled += cancelled_;
    return now;
  }

 private:
  struct Pending {
    tier::Ticket ticket = 0;
    std::uint64_t due = 0;
    Operation operation = Operation::lookup;
    tier::RecordInfo block;
    std::vector<Token> tokens;
    tier::PartRange parts;
    std::span<const tier::BlockKey> keys;
    std::span<std::uint8_t> found;
    std::vector<io::ByteSpan> to;
    std::vector<io::ConstByteSpan> from;
  };

  [[nodiscard]] bool happens(double chance) {
    return chance > 0 && static_cast<double>(random_() >> 11) * 0x1p-53 < chance;
  }
  [[nodiscard]] Pending begin(Operation operation, const tier::RecordInfo& block = {}) const {
    Pending pending;
    pending.operation = operation;
    pending.block = block;
    pending.block.tokens = {};
    pending.tokens.assign(block.tokens.begin(), block.tokens.end());
    return pending;
  }
  tier::Ticket add(Pending&& operation) {
    operation.ticket = last_ + 1;
    operation.due = now_ + (faults.delay == 0 ? 0 : random_() % (faults.delay + std::uint64_t{1}));
    pending_.push_back(std::move(operation));
    return ++last_;
  }

  /// Lets the store do one operation, and waits for it.
  template <class F>
  tier::Completion of_store(F&& call) {
    const tier::Ticket ticket = call();
    tier::Completion ended;
    (void)tier::drain(*store_, tier::TimePoint::max(),
                      [&](const tier::Completion& each) { ended = each.ticket == ticket ? each : ended; });
    return ended;
  }
  void remove(const tier::BlockKey& key) {
    (void)of_store([&] { return store_->erase(key); });
  }

  tier::Completion perform(Pending& operation) {
    operation.block.tokens = operation.tokens;
    const bool fails = happens(faults.fails);
    const bool has_effect =
        !fails || (operation.operation != Operation::read && operation.operation != Operation::lookup && happens(0.5));
    tier::Completion ended;
    ended.outcome = Outcome::failed;
    if (has_effect) {
      ended = of_store([&] { return begin_in_store(operation); });
    }
    if (operation.operation == Operation::write && ended.outcome == Outcome::done && happens(faults.loses)) {
      remove(operation.block.key);
    }
    if (operation.operation == Operation::read && ended.outcome == Outcome::done && happens(faults.corrupts)) {
      for (const io::ByteSpan span : operation.to) {
        for (std::byte& byte : span) {
          byte ^= std::byte{0xa5};
        }
      }
      ended.outcome = Outcome::refused;
      ended.refusal = tier::Refusal::payload_checksum;
      ended.count = 0;
      ++refused_;
    }
    if (fails) {
      ended.outcome = Outcome::failed;
      ended.refusal = tier::Refusal::none;
      ended.count = 0;
      ++failed_;
    } else if (is_full_) {
      ended.outcome = Outcome::full;
      ended.count = 0;
      ++full_;
    }
    is_full_ = false;
    ended.ticket = operation.ticket;
    ended.operation = operation.operation;
    return ended;
  }
  tier::Ticket begin_in_store(Pending& operation) {
    switch (operation.operation) {
      case Operation::lookup:
        if (!operation.keys.empty() && happens(faults.vanishes)) {
          remove(operation.keys[random_() % operation.keys.size()]);
        }
        return store_->lookup(operation.keys, operation.found);
      case Operation::read:
        if (happens(faults.vanishes)) {
          remove(operation.block.key);
        }
        return store_->read(operation.block, operation.to, operation.parts);
      case Operation::write:
        is_full_ = happens(faults.full);
        if (is_full_) {
          return store_->lookup({}, {});
        }
        return store_->write(operation.block, operation.from);
      case Operation::erase:
        break;
    }
    return store_->erase(operation.block.key);
  }

  S* store_;
  std::mt19937_64 random_;
  std::vector<Pending> pending_;
  std::uint64_t now_ = 0;  // calls of poll
  std::uint64_t failed_ = 0, full_ = 0, refused_ = 0, cancelled_ = 0;
  bool is_full_ = false;
  tier::Ticket last_ = 0;
};

}  // namespace testing
}  // namespace v0
}  // namespace kvc
