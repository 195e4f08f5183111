// Receiver: receives sequences from other peers into a cache.
//
//   transfer::Receiver receiver(cache, transport);
//   for (;;) {
//     receiver.poll();                                  // between two steps of decoding, for example
//     while (auto got = receiver.next()) {
//       if (got->outcome == transfer::Outcome::complete) start_decoding(got->seq, got->request, got->payload);
//     }
//   }
#pragma once

#include <algorithm>
#include <chrono>
#include <compare>
#include <cstddef>
#include <cstdint>
#include <deque>
#include <iterator>
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
#include "kvc/io/byte_spans.hpp"
#include "kvc/policy/capabilities.hpp"
#include "kvc/policy/concept.hpp"
#include "kvc/policy/retention.hpp"
#include "kvc/snapshot/describe.hpp"
#include "kvc/snapshot/format.hpp"
#include "kvc/transfer/layers.hpp"
#include "kvc/transfer/offer.hpp"
#include "kvc/transfer/outbox.hpp"
#include "kvc/transfer/outcome.hpp"
#include "kvc/transfer/protocol.hpp"
#include "kvc/transfer/reservation.hpp"
#include "kvc/transfer/row_sink.hpp"
#include "kvc/transfer/state_progress.hpp"
#include "kvc/transfer/stored_layers.hpp"
#include "kvc/transport/concept.hpp"

namespace kvc {
inline namespace v0 {
namespace transfer {

/// Limits of a receiver.
struct ReceiverOptions {
  std::chrono::nanoseconds timeout = std::chrono::seconds(60);  ///< between two messages of a transfer
  std::size_t transfers = 64;                                   ///< at once; more are refused as `busy`
  Pos reserve_tokens = 0;  ///< tokens that must also have room at admission, if the policy admits requests
  Retention retention{};   ///< of the received sequences, for policies that use it
};

/// Receives sequences into a cache. Cache and transport must outlive it.
///
///   expression                    | does, returns                          | throws                   | complexity
///   ------------------------------+----------------------------------------+--------------------------+---------------
///   Receiver r(cache, t, options) |                                        | invalid_argument: an     | O(layers)
///                                 |                                        | option or the number of  |
///                                 |                                        | channels is bad, or the  |
///                                 |                                        | cache has layer groups   |
///                                 |                                        | that its policy cannot   |
///                                 |                                        | restore, or more than 32 |
///   r.poll(now, most_bytes)       | takes messages, reserves room,         |                          | O(transfers +
///                                 | commits; true if anything happened.    |                          | messages)
///                                 | Receives bodies of up to most_bytes,   |                          |
///                                 | and the message that exceeds them      |                          |
///   r.next()                      | the next finished transfer, in the     |                          | O(1)
///                                 | order in which they ended, or nothing. |                          |
///                                 | Refused offers are not reported        |                          |
///   r.cancel(peer, request)       | gives up the transfers of a peer's     |                          | O(transfers)
///                                 | request; ignores finished ones         |                          |
///   r.next_timeout()              | when `poll` gives up a transfer if no  |                          | O(transfers)
///                                 | message arrives until then             |                          |
///   r.transfers(), r.draining()   | transfers that are in progress; failed |                          | O(1)
///                                 | ones whose blocks are still in use     |                          |
///
/// Room for the whole sequence is reserved before the first row is requested. If there is none, the offer is refused
/// and nothing has changed. Positions whose tokens this cache has already are not requested. Rows arrive straight in
/// the blocks of the pool. The sequence is committed when all have arrived: before that no prompt matches a prefix of
/// it, and a failure frees everything.
///
/// **Layer groups.** The layers of both caches must be the same: kinds, order, and which layer reads which; rewind
/// reserves may differ. A sequence takes the blocks that one of its length holds, and not more while it arrives. Of
/// what PrefixShared finds of its tokens, in all groups at once, whole blocks are not requested: in a block that is
/// found in part the rows travel. Its tokens are published after the commit, so that prompts find it: to its end, if
/// the sender has the rows from the first of the block of this cache that the end lies in. A receiver with a larger
/// reserve than the sender's can go back as far as the sender could.
///
/// **Recurrent layers.** Of the offered states those travel that a sequence of its length keeps here, but for those
/// that were found in place with its tokens.
///
/// Messages of peers are not trusted: one that violates the protocol (transfer/protocol.hpp) ends its transfer or is
/// ignored, and no message makes a receiver allocate more than the description of a sequence of the pool's
/// size needs, or, where all groups drop rows, as many bytes as the pool has.
///
/// Some receives can neither end nor be cancelled: over a transport between processes, from a peer that stopped in the
/// middle of a message. Such a failure is reported at once, and the blocks stay reserved (`draining`) until the
/// transport settles the receive; at the latest when it knows that the process of the peer has ended.
///
/// Threads: one at a time. `poll`, `cancel` and the destructor have the rights of a writer to the cache; with
/// Synchronized<Policy> others may use the cache meanwhile.
template <class Cache, transport::Transport T>
class Receiver {
 public:
  /// Throws std::invalid_argument if an option or the number of channels is bad, or the cache has layer groups that its
  /// policy cannot restore (RestoresSequences), or more than 32.
  Receiver(Cache& cache, T& transport, const ReceiverOptions& options = {})
      : cache_(&cache), transport_(&transport), options_(options), own_(snapshot::describe(cache)), rows_(cache) {
    require(options.timeout.count() >= 0, "options.timeout", options.timeout.count(), "at least 0 ns");
    require_between(options.retention.priority, 0, 100, "options.retention.priority");
    require(options.reserve_tokens >= 0, "options.reserve_tokens", options.reserve_tokens, "at least 0");
    require(transport.channels() >= first_free_channel, "transport.channels()", transport.channels(), "at least 2");
  }
  Receiver(const Receiver&) = delete;
  Receiver& operator=(const Receiver&) = delete;
  /// Cancels the transfers in progress. Waits up to a second for receives that cannot be cancelled; then drops their
  /// peers, and leaves their blocks to sequences that nobody closes.
  ~Receiver() {
    while (!transfers_.empty()) {
      fail(transfers_.begin(), {Outcome::cancelled, "the receiver has gone"});
    }
    (void)transport::wait_for(*transport_, std::chrono::steady_clock::now() + std::chrono::seconds(1), [&] {
      (void)free_settled();
      return draining_.empty();
    });
    for (Draining& d : draining_) {
      transport_->drop(d.from);
      if (d.resources.step) {
        d.resources.step->release();
      }
    }
  }

  /// Takes messages, reserves room, commits; true if anything happened. Receives bodies of up to most_bytes, and the
  /// message that exceeds them.
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
  /// When `poll` gives up a transfer if no message arrives until then.
  [[nodiscard]] TimePoint next_timeout() const {
    TimePoint next = no_deadline;
    for (const auto& [key, t] : transfers_) {
      next = std::min(next, timeout_of(t));
    }
    return next;
  }

  /// Gives up the transfers of a peer's request; ignores finished ones.
  void cancel(Peer from, std::uint64_t request) {
    for (auto at = transfers_.begin(); at != transfers_.end();) {
      const auto next = std::next(at);
      if (at->first.from == from && at->second.offered.request == request) {
        fail(at, {Outcome::cancelled, "by the receiver"});
      }
      at = next;
    }
  }

  /// The next finished transfer, or nothing.
  [[nodiscard]] std::optional<Received> next() {
    if (received_.empty()) {
      return std::nullopt;
    }
    Received received = std::move(received_.front());
    received_.pop_front();
    return received;
  }
  /// Transfers that are in progress.
  [[nodiscard]] std::size_t transfers() const noexcept { return transfers_.size(); }
  /// Failed transfers whose blocks are still in use.
  [[nodiscard]] std::size_t draining() const noexcept { return draining_.size(); }

 private:
  using Policy = typename Cache::PolicyType;
  using Ticket = typename T::Ticket;
  using Arrival = typename T::Arrival;
  using Append = typename Cache::Append;
  using Kind = detail::MessageKind;
  using HeadWriter = detail::HeadWriter;
  using Refusal = detail::Refusal;
  using Head = detail::MessageHead;

  /// Resources of the cache and of the transport that a transfer uses.
  struct Resources {
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
    Resources resources;
    detail::Offered offered;
    std::vector<detail::WantedRows> wanted;  // [groups]
    std::vector<Pos> layers;                 // [stored layers] first position of the next rows
    std::uint64_t wanted_states = 0;         // of the offered ones: see WantedStatesRecord
    detail::StateProgress states;
    std::vector<Token> tokens;  // to publish when it is committed
    Pos cached = 0;
    std::uint64_t bytes = 0;
    std::vector<std::byte> payload;
    bool lost = false;
    TimePoint heard{};
  };
  using Transfers = std::map<Key, Transfer>;
  struct Draining {
    Peer from;
    Resources resources;
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
      return;  // it has ended, and the sender does not know yet
    }
    Transfer& t = at->second;
    t.heard = now;
    if (head->kind == Kind::rows && t.state == State::receiving) {
      receive_rows(at, in, std::move(arrival));
    } else if (head->kind == Kind::state && t.state == State::receiving) {
      receive_state(at, in, std::move(arrival));
    } else if (head->kind == Kind::end && t.state == State::receiving) {
      t.payload.assign(in.rest().begin(), in.rest().end());
      for (Index layer = 0; layer < layers().size(); ++layer) {
        if (t.layers[static_cast<std::size_t>(layer)] != wanted(t, layer).end) {
          fail(at,
               {Outcome::broken, kvc::detail::concat({"it ended without all rows of layer ", std::to_string(layer)})});
          return;
        }
      }
      if (const std::optional<Index> layer = t.states.next_missing()) {
        fail(at, {Outcome::broken,
                  kvc::detail::concat({"it ended without all states of recurrent layer ", std::to_string(*layer)})});
        return;
      }
      t.state = State::ending;
    } else if (head->kind == Kind::cancel) {
      fail(at, {Outcome::cancelled, "by the sender"}, false);
    } else {
      fail(at, {Outcome::broken, "the sender's message is out of turn"});
    }
  }

  /// Checks an OFFER and accepts its body. Returns a refusal if it is invalid.
  std::optional<Refusal> begin(const Key& key, const Head& head, detail::HeadReader& in, Arrival&& arrival,
                               TimePoint now) {
    Transfer t;
    if (std::optional<Refusal> refusal = read_offer(head, in, arrival.body_bytes(), own_, layers(), t.offered)) {
      return refusal;
    }
    if (!rows_.can_ever_hold(t.offered)) {
      return Refusal{Outcome::never_fits, kvc::detail::concat({std::to_string(t.offered.length),
                                                               " positions are more than this pool allows"})};
    }
    if (transfers_.size() >= options_.transfers) {
      return Refusal{Outcome::busy,
                     kvc::detail::concat({std::to_string(transfers_.size()), " transfers are in progress"})};
    }
    t.heard = now;
    t.resources.offer.resize(static_cast<std::size_t>(arrival.body_bytes()));
    const auto at = transfers_.emplace(key, std::move(t)).first;
    Resources& resources = at->second.resources;
    const io::ByteSpan body(resources.offer);
    resources.tickets.push_back(transport_->accept(std::move(arrival), std::span(&body, body.empty() ? 0 : 1)));
    return std::nullopt;
  }
  /// Reserves room for the sequence; its tokens have arrived. Returns a refusal if there is none.
  std::optional<Refusal> open(Transfer& t) {
    auto reserved = rows_.reserve(t.offered, t.resources.offer, options_.reserve_tokens, options_.retention);
    if (auto* refusal = std::get_if<Refusal>(&reserved)) {
      return std::move(*refusal);
    }
    auto& room = std::get<detail::Reservation<Cache>>(reserved);
    t.resources.seq = room.seq;
    t.resources.step.emplace(std::move(room.step));
    t.cached = room.cached;
    t.wanted = std::move(room.wanted);
    t.tokens = std::move(room.tokens);
    t.wanted_states = room.states;
    t.states = detail::StateProgress(layers().recurrent().size(), std::move(t.offered.states));
    [[maybe_unused]] const bool are_offered = t.states.want(t.wanted_states);
    KVC_ASSERT(are_offered);
    for (Index layer = 0; layer < layers().size(); ++layer) {
      t.layers.push_back(wanted(t, layer).begin());
    }
    t.resources.offer = {};
    return std::nullopt;
  }
  [[nodiscard]] const detail::StoredLayers& layers() const noexcept { return rows_.layers(); }
  /// The rows to receive of a stored layer.
  [[nodiscard]] const detail::WantedRows& wanted(const Transfer& t, Index layer) const noexcept {
    return t.wanted[static_cast<std::size_t>(layers().place(layer).group)];
  }

  void receive_rows(typename Transfers::iterator at, detail::HeadReader& in, Arrival&& arrival) {
    Transfer& t = at->second;
    const auto record = in.take<detail::RowsRecord>();
    if (!record || record->layer < 0 || static_cast<std::size_t>(record->layer) >= t.layers.size()) {
      fail(at, {Outcome::broken, "rows of a layer that does not exist"});
      return;
    }
    Pos& next = t.layers[static_cast<std::size_t>(record->layer)];
    const detail::WantedRows& rows = wanted(t, record->layer);
    if (record->first != next || record->last <= record->first || record->last > rows.range_end(next)) {
      fail(at, {Outcome::broken,
                kvc::detail::concat({"rows of layer ", std::to_string(record->layer),
                                     " that are not the next: expected ", std::to_string(next), ", found ",
                                     std::to_string(record->first), " to ", std::to_string(record->last)})});
      return;
    }
    const PosRange range{record->first, record->last};
    if (arrival.body_bytes() !=
        static_cast<std::uint64_t>(range.size()) * layers().token_bytes(layers().place(record->layer).group)) {
      fail(at, {Outcome::broken, "a body of another size than its rows"});
      return;
    }
    t.bytes += arrival.body_bytes();
    t.resources.tickets.push_back(
        transport_->accept(std::move(arrival), rows_.find(t.resources.seq, record->layer, range, t.offered)));
    next = rows.next(range.last);
  }

  void receive_state(typename Transfers::iterator at, detail::HeadReader& in, Arrival&& arrival) {
    Transfer& t = at->second;
    const auto record = in.take<detail::SentStateRecord>();
    if (!record || record->layer < 0 || record->layer >= layers().recurrent().size() ||
        t.states.next(record->layer) != std::optional(Pos{record->length})) {
      fail(at, {Outcome::broken, "a recurrent state that is not the next"});
      return;
    }
    if (arrival.body_bytes() != static_cast<std::uint64_t>(layers().recurrent().bytes(record->layer))) {
      fail(at, {Outcome::broken, "a body of another size than its state"});
      return;
    }
    t.bytes += arrival.body_bytes();
    t.resources.tickets.push_back(
        transport_->accept(std::move(arrival), rows_.find_state(t.resources.seq, record->layer, record->length)));
    t.states.advance(record->layer);
  }

  /// Advances a transfer by the bodies that have arrived, and checks its timeout. True if anything happened.
  bool progress(typename Transfers::iterator at, TimePoint now) {
    Transfer& t = at->second;
    bool failed = false;
    const std::size_t before = t.resources.tickets.size();
    std::erase_if(t.resources.tickets, [&](const Ticket& ticket) {
      const TicketState state = transport_->state(ticket);
      failed = failed || state == TicketState::failed;
      return state != TicketState::pending;
    });
    const bool any = t.resources.tickets.size() != before;
    if (any) {
      t.heard = now;
    }
    if (failed && !transport_->is_lost(at->first.from)) {
      fail(at, {Outcome::cancelled, "by the sender"}, false);
      return true;
    }
    if (t.state == State::opening && !failed && t.resources.tickets.empty()) {
      if (const std::optional<Refusal> refusal = open(t)) {
        refuse(at->first, *refusal);
        transfers_.erase(at);
        return true;
      }
      t.state = State::receiving;
      outbox_.add(*transport_, at->first.from, reply_channel, acceptance(at->first.id, t));
    }
    if (t.state == State::ending && !failed && t.resources.tickets.empty()) {
      complete(at);
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

  [[nodiscard]] HeadWriter acceptance(Id id, const Transfer& t) const {
    HeadWriter head(Kind::accept, id, layers().version());
    head.add(detail::AcceptRecord{t.cached, 0});
    rows_.add_wanted(t.wanted, t.wanted_states, head);
    return head;
  }
  void complete(typename Transfers::iterator at) {
    Transfer& t = at->second;
    cache_->commit(std::move(*t.resources.step));
    outbox_.add(*transport_, at->first.from, reply_channel, HeadWriter(Kind::done, at->first.id, layers().version()));
    const SeqId seq = t.resources.seq;
    const std::vector<Token> tokens = std::move(t.tokens);
    report(at, Outcome::complete, {});
    if constexpr (KnowsTokens<Policy>) {
      if (!tokens.empty()) {
        cache_->publish_tokens(seq, tokens);
      }
    }
  }
  void refuse(const Key& key, const Refusal& refusal) {
    outbox_.add(*transport_, key.from, reply_channel, refusal_head(Kind::refuse, key.id, refusal, layers().version()));
  }
  void fail(typename Transfers::iterator at, const Refusal& refusal, bool notify = true) {
    Resources resources = std::move(at->second.resources);
    if (notify) {
      outbox_.add(*transport_, at->first.from, reply_channel,
                  refusal_head(Kind::abort, at->first.id, refusal, layers().version()));
    }
    std::erase_if(resources.tickets, [&](Ticket& ticket) { return transport_->cancel(ticket); });
    if (resources.tickets.empty()) {
      free(resources);
    } else {
      draining_.push_back({at->first.from, std::move(resources)});
    }
    report(at, refusal.outcome, refusal.reason);
  }
  void report(typename Transfers::iterator at, Outcome outcome, std::string reason) {
    Transfer& t = at->second;
    const SeqId seq = outcome == Outcome::complete ? t.resources.seq : SeqId{};
    received_.push_back({at->first.from, at->first.id, t.offered.request, outcome, seq, t.offered.length, t.cached,
                         t.bytes, std::move(t.payload), std::move(reason)});
    transfers_.erase(at);
  }
  [[nodiscard]] bool is_settled(const Resources& resources) const {
    return std::none_of(resources.tickets.begin(), resources.tickets.end(),
                        [&](const Ticket& ticket) { return transport_->state(ticket) == TicketState::pending; });
  }
  /// True if it freed any.
  bool free_settled() {
    return draining_.remove_if([&](Draining& d) {
      const bool settled = is_settled(d.resources);
      if (settled) {
        free(d.resources);
      }
      return settled;
    }) > 0;
  }
  void free(Resources& resources) {
    if (resources.step) {
      resources.step.reset();
      cache_->close(resources.seq);
    }
  }

  Cache* cache_;
  T* transport_;
  ReceiverOptions options_;
  snapshot::format::DescriptionRecord own_;
  detail::RowSink<Cache> rows_;
  Transfers transfers_;
  std::list<Draining> draining_;
  std::deque<Received> received_;
  detail::Outbox<T> outbox_;
};

}  // namespace transfer
}  // namespace v0
}  // namespace kvc
