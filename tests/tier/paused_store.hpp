// A store in front of another one: operations wait in it until the test lets them on, in any order, and may meet a
// fault.
#pragma once

#include <algorithm>
#include <cstddef>
#include <deque>
#include <functional>
#include <vector>

#include "kvc/tier/block_store.hpp"

namespace kvc_test {

/// What an operation meets.
enum class Fault {
  none,
  fails,    ///< the store cannot do it; bytes that were to be read are garbage
  lost,     ///< the record is gone
  damaged,  ///< a read finds other bytes, and refuses them
  undone    ///< it takes effect, and is reported as failed
};

template <class Inner>
class PausedStore {
 public:
  using BlockKey = kvc::tier::BlockKey;
  using Completion = kvc::tier::Completion;
  using Kind = kvc::tier::StoreOperation;
  using Outcome = kvc::tier::StoreOutcome;
  using RecordInfo = kvc::tier::RecordInfo;
  using Ticket = kvc::tier::Ticket;
  static constexpr bool persistent = Inner::persistent;

  struct Operation {
    Ticket ticket = 0;
    Kind kind = Kind::lookup;
    RecordInfo info{};
    std::vector<kvc::Token> tokens{};
    std::vector<kvc::io::ByteSpan> to{};
    std::vector<kvc::io::ConstByteSpan> from{};
    kvc::tier::PartRange parts{};
    std::span<const BlockKey> keys{};
    std::span<std::uint8_t> found{};
  };

  explicit PausedStore(Inner& store) : inner(store) {}

  Inner& inner;
  std::deque<Operation> waiting;
  bool can_cancel = true;
  bool pauses = true;  ///< false: operations go on as they are begun
  std::function<Fault(const Operation&)> fault = [](const Operation&) { return Fault::none; };

  Ticket lookup(std::span<const BlockKey> keys, std::span<std::uint8_t> found) {
    kvc::tier::detail::require_lookup(keys, found);
    return begin({.kind = Kind::lookup, .keys = keys, .found = found});
  }
  Ticket read(const RecordInfo& block, std::span<const kvc::io::ByteSpan> to, kvc::tier::PartRange parts = {}) {
    return begin({.kind = Kind::read, .info = block, .to = {to.begin(), to.end()}, .parts = parts});
  }
  Ticket write(const RecordInfo& block, std::span<const kvc::io::ConstByteSpan> from) {
    return begin({.kind = Kind::write, .info = block, .from = {from.begin(), from.end()}});
  }
  Ticket erase(const BlockKey& key) {
    RecordInfo info;
    info.key = key;
    return begin({.kind = Kind::erase, .info = info});
  }
  std::optional<Completion> poll() {
    if (ended_.empty()) {
      return std::nullopt;
    }
    const Completion first = ended_.front();
    ended_.pop_front();
    return first;
  }
  bool cancel(Ticket ticket) {
    const auto found = std::ranges::find(waiting, ticket, &Operation::ticket);
    if (!can_cancel || found == waiting.end()) {
      return false;
    }
    waiting.erase(found);
    return true;
  }
  bool wait(kvc::tier::TimePoint) {
    let_all();
    return !ended_.empty();
  }
  [[nodiscard]] std::size_t under_way() const { return waiting.size() + ended_.size(); }
  [[nodiscard]] std::uint64_t capacity() const { return inner.capacity(); }
  [[nodiscard]] kvc::tier::StoreStats stats() const { return inner.stats(); }
  std::optional<BlockKey> poll_evicted()
    requires kvc::tier::ReportsEvictions<Inner>
  {
    return inner.poll_evicted();
  }

  /// Lets one of the waiting operations on.
  void let(std::size_t number = 0) {
    Operation op = std::move(waiting[number]);
    waiting.erase(waiting.begin() + static_cast<std::ptrdiff_t>(number));
    op.info.tokens = op.tokens;
    const Fault met = fault(op);
    if (met == Fault::lost) {
      end_inner(inner.erase(op.info.key));
    }
    if (met == Fault::fails || (met == Fault::damaged && op.kind == Kind::read)) {
      for (const kvc::io::ByteSpan span : op.to) {
        std::ranges::fill(span, std::byte{0xa5});
      }
      std::ranges::fill(op.found, std::uint8_t{1});
      ended_.push_back({op.ticket, op.kind, met == Fault::fails ? Outcome::failed : Outcome::refused,
                        met == Fault::fails ? kvc::tier::Refusal::none : kvc::tier::Refusal::payload_checksum, 0});
      return;
    }
    Completion ended = end_inner(op.kind == Kind::lookup  ? inner.lookup(op.keys, op.found)
                                 : op.kind == Kind::read  ? inner.read(op.info, op.to, op.parts)
                                 : op.kind == Kind::write ? inner.write(op.info, op.from)
                                                          : inner.erase(op.info.key));
    ended.ticket = op.ticket;
    ended.outcome = met == Fault::undone ? Outcome::failed : ended.outcome;
    ended_.push_back(ended);
  }
  /// Lets on what waits, in its order. How many there were.
  std::size_t let_all() {
    const std::size_t count = waiting.size();
    while (!waiting.empty()) {
      let();
    }
    return count;
  }
  [[nodiscard]] std::size_t count(Kind kind) const {
    return static_cast<std::size_t>(std::ranges::count(waiting, kind, &Operation::kind));
  }

 private:
  Ticket begin(Operation op) {
    op.ticket = ++last_;
    op.tokens.assign(op.info.tokens.begin(), op.info.tokens.end());
    waiting.push_back(std::move(op));
    if (!pauses) {
      let_all();
    }
    return last_;
  }
  Completion end_inner(Ticket ticket) {
    Completion ended;
    (void)kvc::tier::drain(inner, kvc::tier::TimePoint::max(),
                           [&](const Completion& each) { ended = each.ticket == ticket ? each : ended; });
    return ended;
  }

  std::deque<Completion> ended_;
  Ticket last_ = 0;
};

}  // namespace kvc_test
