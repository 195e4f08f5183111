// Receiver: takes sequences from other peers into a cache.
//
//   Receiver receiver(cache, transport);
//   for (;;) {
//     receiver.poll();                                  // between two steps of decoding, say
//     while (auto got = receiver.next()) {
//       if (got->outcome == Outcome::complete) start_decoding(got->seq, got->request, got->note);
//     }
//   }
//
// Reservation for the whole sequence is reserved before any row is asked for; where there is none the sender is refused, and
// nothing has changed. Positions whose tokens this cache has already are not asked for. Rows are received straight into
// the blocks of the pool. The sequence is committed when all have come: before that no prefix of it is matched, and
// whatever goes wrong, all that it held is freed.
//
// A peer may say anything: what is not as the protocol has it (transfer/protocol.hpp) ends that transfer, or is passed
// by, and no more memory is taken than a sequence of the pool's size justifies.
//
// Where a receive can neither end nor be cancelled (a transport between processes, a peer that has stopped in the
// middle of a message), the failure is reported at once, and the blocks are kept until the transport settles it, which
// it does at the latest when it knows that the process of that peer has ended.
//
// Threads: one at a time, with the rights of a writer to the cache while in `poll`, `cancel` and the destructor; with
// Synchronized<Policy> others may use the cache meanwhile.
#pragma once

#include <algorithm>
#include <chrono>
#include <compare>
#include <cstddef>
#include <cstdint>
#include <deque>
#include <list>
#include <map>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <variant>
#include <vector>

#include "kvc/core/error.hpp"
#include "kvc/core/types.hpp"
#include "kvc/policy/concept.hpp"
#include "kvc/transfer/offer.hpp"
#include "kvc/transfer/outbox.hpp"
#include "kvc/transfer/protocol.hpp"
#include "kvc/transfer/reservation.hpp"
#include "kvc/transfer/rows.hpp"
#include "kvc/transport/concept.hpp"

namespace kvc {
inline namespace v0 {
namespace transfer {

struct ReceiverOptions {
  std::chrono::nanoseconds timeout = std::chrono::seconds(60);  ///< between two messages of a transfer
  std::size_t transfers = 64;                                   ///< at once; more are refused as `busy`
  /// Tokens that there should be room for beside each sequence, where the policy has `admission`.
  Pos reserve_tokens = 0;
  Retention retention{};  ///< of the sequences, for policies that look at it
};

/// A transfer that is over.
struct Received {
  Peer from;
  Id id;                  ///< the sender's
  std::uint64_t request;  ///< the number that came with the offer
  Outcome outcome;
  SeqId seq;                    ///< if complete: committed, and yours to close; otherwise no sequence
  Pos length;                   ///< positions
  Pos cached;                   ///< of these, how many were here already
  std::uint64_t bytes;          ///< of rows that came
  std::vector<std::byte> note;  ///< that came with the end
  std::string reason;           ///< of a failure, in words
};

/// The cache and the transport must outlive it.
template <class Cache, transport::Transport T>
class Receiver {
 public:
  Receiver(Cache& cache, T& transport, const ReceiverOptions& options = {})
      : cache_(&cache), transport_(&transport), options_(options), own_(detail::describe(cache)) {
    require_between(options.retention.priority, 0, 100, "options.retention.priority");
    require(options.reserve_tokens >= 0, "options.reserve_tokens", options.reserve_tokens, "at least 0");
    require(transport.channels() >= first_free_channel, "transport.channels()", transport.channels(), "at least 2");
  }
  Receiver(const Receiver&) = delete;
  Receiver& operator=(const Receiver&) = delete;
  /// Cancels what is not over. What can neither end nor be cancelled it waits for, up to a second; then it drops the
  /// peers, and leaves the blocks to sequences that nobody closes.
  ~Receiver() {
    while (!transfers_.empty()) {
      fail(transfers_.begin(), {Outcome::cancelled, "the receiver has gone"});
    }
    (void)transport::wait_for(*transport_, std::chrono::steady_clock::now() + std::chrono::seconds(1), [&] {
      (void)free_settled();
      return draining_.empty();
    });
    for (Draining& s : draining_) {
      transport_->drop(s.from);
      if (s.held.step) {
        s.held.step->release();
      }
    }
  }

  /// Takes what has come; room is reserved and sequences are committed here. True if anything has happened. Bodies of
  /// up to `most_bytes` and one message more are received: to go on with something else in between.
  bool poll(TimePoint now = std::chrono::steady_clock::now(), std::uint64_t most_bytes = ~std::uint64_t{0}) {
    bool any = outbox_.send(*transport_);
    for (auto& [key, t] : transfers_) {
      t.lost = transport_->is_lost(key.from);  // before its last messages are taken
    }
    for (std::uint64_t bytes = 0; bytes < most_bytes;) {
      std::optional<Arrival> arrival = transport_->poll(data_channel);
      if (!arrival) {
        break;
      }
      bytes += arrival->body_bytes();
      take(std::move(*arrival), now);
      any = true;
    }
    for (auto at = transfers_.begin(); at != transfers_.end();) {
      const auto next = std::next(at);
      any = progress(at, now) || any;
      at = next;
    }
    return free_settled() || any;
  }
  /// When `poll` will give something up, if nothing is heard until then.
  [[nodiscard]] TimePoint next_timeout() const {
    TimePoint next = no_deadline;
    for (const auto& [key, t] : transfers_) {
      next = std::min(next, timeout_of(t));
    }
    return next;
  }

  /// Gives up the transfers of a peer's request. Those that are over are passed by.
  void cancel(Peer from, std::uint64_t request) {
    for (auto at = transfers_.begin(); at != transfers_.end();) {
      const auto next = std::next(at);
      if (at->first.from == from && at->second.offered.request == request) {
        fail(at, {Outcome::cancelled, "by the receiver"});
      }
      at = next;
    }
  }

  /// A transfer that is over, in the order in which they ended. Of those that were refused nothing is said here.
  [[nodiscard]] std::optional<Received> next() {
    if (received_.empty()) {
      return std::nullopt;
    }
    Received received = std::move(received_.front());
    received_.pop_front();
    return received;
  }
  /// Transfers that are not over.
  [[nodiscard]] std::size_t transfers() const noexcept { return transfers_.size(); }
  /// Transfers that are over, and whose blocks are kept until the transport settles what it had begun to receive.
  [[nodiscard]] std::size_t draining() const noexcept { return draining_.size(); }

 private:
  using Ticket = typename T::Ticket;
  using Arrival = typename T::Arrival;
  using Append = typename Cache::Append;
  using Kind = detail::MessageKind;
  using HeadWriter = detail::HeadWriter;
  using Refusal = detail::Refusal;
  using Head = detail::MessageHead;

  /// What a transfer has of the cache, and of the transport.
  struct Held {
    std::vector<std::byte> offer;  // tokens and salt
    SeqId seq{};
    std::optional<Append> step;
    std::deque<Ticket> tickets;
  };
  struct Key {
    Peer from;
    Id id;
    friend auto operator<=>(const Key&, const Key&) = default;
  };
  enum class State { opening, receiving, ending };
  struct Transfer {
    State state = State::opening;
    Held held;
    detail::Offered offered;
    std::vector<Pos> layers;  // position that the next rows of each begin at
    Pos cached = 0;
    std::uint64_t bytes = 0;
    std::vector<std::byte> note;
    bool lost = false;
    TimePoint heard{};
  };
  using Transfers = std::map<Key, Transfer>;
  struct Draining {
    Peer from;
    Held held;
  };

  [[nodiscard]] TimePoint timeout_of(const Transfer& t) const noexcept {
    return options_.timeout > no_deadline - t.heard ? no_deadline : t.heard + options_.timeout;
  }

  void take(Arrival&& arrival, TimePoint now) {
    detail::HeadReader in(arrival.head());
    const std::optional<Head> head = in.take<Head>();
    if (!head || head->magic != detail::magic) {
      return;  // nobody to answer
    }
    const Key key{arrival.peer(), head->transfer};
    const auto at = transfers_.find(key);
    if (head->kind == Kind::offer) {
      if (at != transfers_.end()) {
        fail(at, {Outcome::broken, "it was offered twice"});
      } else if (std::optional<Refusal> refusal = begin(key, *head, in, std::move(arrival), now)) {
        refuse(key, *refusal);
      }
      return;
    }
    if (at == transfers_.end()) {
      return;  // it is over, and the sender does not know yet
    }
    Transfer& t = at->second;
    t.heard = now;
    if (head->kind == Kind::rows && t.state == State::receiving) {
      receive_rows(at, in, std::move(arrival));
    } else if (head->kind == Kind::end && t.state == State::receiving) {
      t.note.assign(in.rest().begin(), in.rest().end());
      const auto behind = std::find_if(t.layers.begin(), t.layers.end(), [&](Pos p) { return p != t.offered.length; });
      if (behind != t.layers.end()) {
        fail(at, {Outcome::broken, kvc::detail::concat({"it ended without all rows of layer ",
                                                        std::to_string(behind - t.layers.begin())})});
        return;
      }
      t.state = State::ending;
    } else if (head->kind == Kind::cancel) {
      fail(at, {Outcome::cancelled, "by the sender"}, false);
    } else {
      fail(at, {Outcome::broken, "the sender's message is out of turn"});
    }
  }

  /// An OFFER: checks it, and asks for its body. A refusal if it cannot be.
  std::optional<Refusal> begin(const Key& key, const Head& head, detail::HeadReader& in, Arrival&& arrival,
                               TimePoint now) {
    Transfer t;
    if (std::optional<Refusal> refusal = read_offer(head, in, arrival.body_bytes(), own_, t.offered)) {
      return refusal;
    }
    if (!detail::can_ever_hold(*cache_, t.offered.length)) {
      return Refusal{Outcome::never_fits, kvc::detail::concat({std::to_string(t.offered.length),
                                                               " positions are more than this pool allows"})};
    }
    if (transfers_.size() >= options_.transfers) {
      return Refusal{Outcome::busy,
                     kvc::detail::concat({std::to_string(transfers_.size()), " transfers are under way"})};
    }
    t.heard = now;
    t.held.offer.resize(static_cast<std::size_t>(arrival.body_bytes()));
    const auto at = transfers_.emplace(key, std::move(t)).first;
    Held& held = at->second.held;
    const std::span<std::byte> piece(held.offer);
    held.tickets.push_back(transport_->accept(std::move(arrival), std::span(&piece, piece.empty() ? 0 : 1)));
    return std::nullopt;
  }
  /// The tokens are here: takes room for the sequence. A refusal if there is none.
  std::optional<Refusal> open(Transfer& t) {
    auto reserved = detail::reserve(*cache_, t.offered, t.held.offer, options_.reserve_tokens, options_.retention);
    if (auto* refusal = std::get_if<Refusal>(&reserved)) {
      return std::move(*refusal);
    }
    auto& room = std::get<detail::Reservation<Cache>>(reserved);
    t.held.seq = room.seq;
    t.held.step.emplace(std::move(room.step));
    t.cached = room.cached;
    t.layers.assign(static_cast<std::size_t>(cache_->shape().layers), t.cached);
    t.held.offer = {};
    return std::nullopt;
  }

  void receive_rows(typename Transfers::iterator at, detail::HeadReader& in, Arrival&& arrival) {
    Transfer& t = at->second;
    const auto record = in.take<detail::RowsRecord>();
    if (!record || record->layer < 0 || static_cast<std::size_t>(record->layer) >= t.layers.size()) {
      fail(at, {Outcome::broken, "rows of a layer that is not there"});
      return;
    }
    Pos& next = t.layers[static_cast<std::size_t>(record->layer)];
    if (record->first != next || record->last <= record->first || record->last > t.offered.length) {
      fail(at, {Outcome::broken,
                kvc::detail::concat({"rows of layer ", std::to_string(record->layer),
                                     " that are not the next: expected ", std::to_string(next), ", found ",
                                     std::to_string(record->first), " to ", std::to_string(record->last)})});
      return;
    }
    const PosRange range{record->first, record->last};
    if (arrival.body_bytes() != static_cast<std::uint64_t>(range.size()) * detail::token_bytes(own_)) {
      fail(at, {Outcome::broken, "a body of rows of another size than they have"});
      return;
    }
    pieces_.clear();
    finder_.add(*cache_, cache_->data(), t.held.seq, record->layer, range, t.offered.order, t.offered.block_tokens,
                pieces_);
    t.bytes += arrival.body_bytes();
    t.held.tickets.push_back(transport_->accept(std::move(arrival), pieces_.pieces()));
    next = range.last;
  }

  /// What has been received, what follows from it, and whether it takes too long.
  bool progress(typename Transfers::iterator at, TimePoint now) {
    Transfer& t = at->second;
    bool failed = false;
    const std::size_t before = t.held.tickets.size();
    std::erase_if(t.held.tickets, [&](const Ticket& ticket) {
      const TicketState state = transport_->state(ticket);
      failed = failed || state == TicketState::failed;
      return state != TicketState::pending;
    });
    const bool any = t.held.tickets.size() != before;
    if (any) {
      t.heard = now;
    }
    if (failed && !transport_->is_lost(at->first.from)) {
      fail(at, {Outcome::cancelled, "by the sender"}, false);
      return true;
    }
    if (t.state == State::opening && !failed && t.held.tickets.empty()) {
      if (const std::optional<Refusal> refusal = open(t)) {
        refuse(at->first, *refusal);
        transfers_.erase(at);
        return true;
      }
      t.state = State::receiving;
      outbox_.add(*transport_, at->first.from, reply_channel,
                  HeadWriter(Kind::accept, at->first.id).add(detail::AcceptRecord{t.cached, 0}));
    }
    if (t.state == State::ending && !failed && t.held.tickets.empty()) {
      cache_->commit(std::move(*t.held.step));
      outbox_.add(*transport_, at->first.from, reply_channel, HeadWriter(Kind::done, at->first.id));
      report(at, Outcome::complete, {});
      return true;
    }
    if (failed || t.lost) {
      fail(at, {Outcome::peer_lost, "the sender has closed or died"}, false);
      return true;
    }
    if (now >= timeout_of(t)) {
      fail(at, {Outcome::timed_out, "nothing was heard from the sender"});
      return true;
    }
    return any;
  }

  void refuse(const Key& key, const Refusal& refusal) {
    outbox_.add(*transport_, key.from, reply_channel, refusal_head(Kind::refuse, key.id, refusal));
  }
  void fail(typename Transfers::iterator at, const Refusal& refusal, bool tell = true) {
    Held held = std::move(at->second.held);
    if (tell) {
      outbox_.add(*transport_, at->first.from, reply_channel, refusal_head(Kind::abort, at->first.id, refusal));
    }
    std::erase_if(held.tickets, [&](Ticket& ticket) { return transport_->cancel(ticket); });
    if (held.tickets.empty()) {
      free(held);
    } else {
      draining_.push_back({at->first.from, std::move(held)});
    }
    report(at, refusal.outcome, refusal.reason);
  }
  void report(typename Transfers::iterator at, Outcome outcome, std::string reason) {
    Transfer& t = at->second;
    const SeqId seq = outcome == Outcome::complete ? t.held.seq : SeqId{};
    received_.push_back({at->first.from, at->first.id, t.offered.request, outcome, seq, t.offered.length, t.cached,
                         t.bytes, std::move(t.note), std::move(reason)});
    transfers_.erase(at);
  }
  [[nodiscard]] bool is_settled(const Held& held) const {
    return std::none_of(held.tickets.begin(), held.tickets.end(),
                        [&](const Ticket& ticket) { return transport_->state(ticket) == TicketState::pending; });
  }
  /// True if there were any.
  bool free_settled() {
    return draining_.remove_if([&](Draining& s) {
      const bool settled = is_settled(s.held);
      if (settled) {
        free(s.held);
      }
      return settled;
    }) > 0;
  }
  void free(Held& held) {
    if (held.step) {
      held.step.reset();
      cache_->close(held.seq);
    }
  }

  Cache* cache_;
  T* transport_;
  ReceiverOptions options_;
  snapshot::format::DescriptionRecord own_;
  Transfers transfers_;
  std::list<Draining> draining_;
  std::deque<Received> received_;
  detail::Outbox<T> outbox_;
  detail::PieceList<std::byte> pieces_;
  detail::RowPieces finder_;
};

}  // namespace transfer
}  // namespace v0
}  // namespace kvc
