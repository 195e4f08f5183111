// Sender: sends sequences of a cache to other peers, layer by layer, while they are computed.
//
//   transfer::Sender sender(cache, transport);
//   const transfer::Id id = sender.offer({.to = 1, .seq = seq, .tokens = prompt});   // before, during or after prefill
//   for (Index layer = 0; layer < layers; ++layer) {
//     ... cache.write(layer, step, k, v);
//     sender.ready(id, layer, step.range().last);   // travels while the next layer is computed
//   }
//   sender.finish(id);                              // all rows are written
//   transport::wait_for(transport, deadline, [&] { sender.poll(); return sender.transfers() == 0; });
//   while (auto sent = sender.next()) { ... cache.commit(...); cache.close(sent->seq); }
#pragma once

#include <algorithm>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <deque>
#include <iterator>
#include <map>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "kvc/core/error.hpp"
#include "kvc/core/types.hpp"
#include "kvc/policy/salt.hpp"
#include "kvc/snapshot/describe.hpp"
#include "kvc/snapshot/format.hpp"
#include "kvc/transfer/group_offer.hpp"
#include "kvc/transfer/layers.hpp"
#include "kvc/transfer/outbox.hpp"
#include "kvc/transfer/outcome.hpp"
#include "kvc/transfer/protocol.hpp"
#include "kvc/transfer/row_source.hpp"
#include "kvc/transfer/state_progress.hpp"
#include "kvc/transfer/stored_layers.hpp"
#include "kvc/transport/concept.hpp"

namespace kvc {
inline namespace v0 {
namespace transfer {

/// A sequence to send.
struct Offer {
  Peer to = 0;
  SeqId seq{};
  /// One for each position, or none. With tokens, the receiver does not request the prefix that it has cached.
  std::span<const Token> tokens{};
  Salt salt{};
  Pos length = 0;                    ///< positions to send in the end; 0: those that are reserved now
  std::uint64_t request = 0;         ///< a number of the caller's, which the receiver reports
  TimePoint deadline = no_deadline;  ///< for the whole transfer
};

/// Limits of a sender.
struct SenderOptions {
  std::chrono::nanoseconds timeout = std::chrono::seconds(30);  ///< of waiting for a silent peer
  Index message_bytes = Index{2} << 20;  ///< size of a message of rows, about; at least one token
};

/// Sends sequences of a cache. Cache and transport must outlive it.
///
///   expression                  | does, returns                        | throws invalid_argument      | complexity
///   ----------------------------+--------------------------------------+------------------------------+---------------
///   Sender s(cache, t, options) |                                      | an option is bad, t has too  | O(layers)
///                               |                                      | few channels, or the cache   |
///                               |                                      | has more than 32 layer       |
///                               |                                      | groups                       |
///   s.offer(offer, now)         | begins a transfer, and returns its   | no such sequence or peer,    | O(tokens +
///                               | Id. Committed positions count as     | length < 1, tokens neither   | layers)
///                               | ready                                | none nor one per position,   |
///                               |                                      | or a group that does not     |
///                               |                                      | retain what follows `length` |
///                               |                                      | positions                    |
///   s.ready(id, layer, last)    | the rows of a layer before position  | no such layer, or not so     | O(transfers +
///                               | `last` are written and may be sent;  | many positions               | messages)
///                               | of a cross-attention layer all rows  |                              |
///                               | are, of a recurrent one its states   |                              |
///                               | up to there, of a reader there are   |                              |
///                               | none                                 |                              |
///   s.finish(id, payload)       | all rows are written. The payload    | payload > 488 bytes, or      | O(transfers +
///                               | travels with the end; the first new  | positions are missing        | messages)
///                               | token, for example                   |                              |
///   s.cancel(id)                | gives up a transfer                  |                              | O(messages in
///                               |                                      |                              | flight)
///   s.poll(now)                 | takes replies and sends as much as   |                              | O(transfers +
///                               | the windows allow; true if anything  |                              | messages)
///                               | happened                             |                              |
///   s.next()                    | the next finished transfer, in the   |                              | O(1)
///                               | order in which they ended, or        |                              |
///                               | nothing                              |                              |
///   s.in_flight(id)             | messages that the transport is       |                              | O(messages in
///                               | reading from the pool; 0 after the   |                              | flight)
///                               | transfer ended                       |                              |
///   s.next_timeout()            | when `poll` gives up a transfer if   |                              | O(transfers)
///                               | no message arrives until then        |                              |
///   s.transfers()               | transfers that are in progress       |                              | O(1)
///
/// `ready`, `finish` and `cancel` ignore a transfer that has ended. Nothing waits: a message that cannot be sent now is
/// sent by a later `poll`, so `poll` must be called until the transfer ends.
///
/// Rows are sent from the blocks of the pool and not copied first. While in_flight(id) is not 0, the sequence must keep
/// its rows in place: it must not be truncated or closed, nor extended or committed, unless its policy leaves rows in
/// place then (Paged does; PrefixShared may replace a block by an equal one at commit; Contiguous may move when it
/// grows). `Sent` reports that a transfer has ended. After a timeout, a transport that cannot cancel messages may still
/// read the pool, for a receiver that will not use the bytes: END follows all rows. So pool and transport must live on;
/// the sequence need not.
///
/// **Layer groups.** Of a group that drops rows only those travel that it still has when the sequence has `length`
/// positions: its kept positions, and the others from its window or chunk on, at the rewind reserve of this cache. So a
/// prompt that is computed in chunks may be committed chunk by chunk, and rows that a commit drops are never missed;
/// the rows of a window leave when its last tokens are computed. A sequence that is committed beyond `length`, or cut,
/// drops rows that were to travel: its transfer ends as cancelled, unless they have left.
///
/// **Recurrent layers.** The states of `length` travel. If the sequence has so many positions, committed or reserved,
/// when it is offered, then also those of lesser lengths that it keeps: the last 64 lengths at most. A message has the
/// state of one layer, whatever message_bytes is.
///
/// Threads: one at a time. It reads the cache as its const members do.
template <class Cache, transport::Transport T>
class Sender {
 public:
  /// Throws std::invalid_argument if an option is bad, the transport has too few channels, or the cache has more than
  /// 32 layer groups.
  Sender(const Cache& cache, T& transport, const SenderOptions& options = {})
      : cache_(&cache),
        transport_(&transport),
        options_(options),
        description_(snapshot::describe(cache)),
        rows_(cache) {
    require(options.timeout.count() >= 0, "options.timeout", options.timeout.count(), "at least 0 ns");
    require(options.message_bytes >= 1, "options.message_bytes", options.message_bytes, "at least 1");
    require(transport.channels() >= first_free_channel, "transport.channels()", transport.channels(), "at least 2");
  }
  Sender(const Sender&) = delete;
  Sender& operator=(const Sender&) = delete;
  /// Cancels the transfers in progress. Waits up to a second for messages that cannot be cancelled; then drops their
  /// peers.
  ~Sender() {
    while (!transfers_.empty()) {
      fail(transfers_.begin(), Outcome::cancelled, "the sender has gone");
    }
    (void)transport::wait_for(*transport_, std::chrono::steady_clock::now() + std::chrono::seconds(1), [&] {
      std::erase_if(abandoned_, [&](const Abandoned& a) { return is_settled(a.ticket); });
      return abandoned_.empty();
    });
    for (const Abandoned& a : abandoned_) {
      transport_->drop(a.to);
    }
  }

  /// Begins a transfer. O(tokens + layers). Throws std::invalid_argument if there is no such sequence or peer, the
  /// length is less than 1 or one to which a layer group cannot be cut any more, or the tokens are neither none nor one
  /// per position.
  Id offer(const Offer& offer, TimePoint now = std::chrono::steady_clock::now()) {
    require_between(offer.to, Peer{0}, transport_->peers() - 1, "offer.to");
    require(cache_->contains(offer.seq), "offer.seq", offer.seq, "an open sequence");
    const Pos length = offer.length == 0 ? cache_->policy().reserved(offer.seq) : offer.length;
    require(length >= 1, "offer.length", length, "at least 1");
    require(offer.tokens.empty() || offer.tokens.size() == static_cast<std::size_t>(length), "offer.tokens.size()",
            offer.tokens.size(), "0, or the length");
    require(offer.salt.bytes().size() <= detail::most_salt_bytes, "offer.salt", offer.salt.bytes().size(),
            "at most 65536 bytes");
    Transfer t;
    t.offer = offer;
    t.offer.length = length;
    const auto tokens = std::as_bytes(offer.tokens);
    const auto salt = std::as_bytes(std::span(offer.salt.bytes()));
    detail::Promised promised = rows_.describe_groups(offer.seq, length, *t.body);
    t.gone = std::move(promised.gone);
    t.states = detail::StateProgress(layers().recurrent().size(), std::move(promised.states));
    t.body->insert(t.body->end(), tokens.begin(), tokens.end());
    t.body->insert(t.body->end(), salt.begin(), salt.end());
    t.tokens = static_cast<std::int32_t>(offer.tokens.size());
    t.offer.tokens = {};
    t.rows = detail::LayerProgress(layers().size());
    rows_.all_ready(std::min(length, cache_->length(offer.seq)), t.rows);
    t.states.all_ready(std::min(length, cache_->length(offer.seq)));
    t.heard = now;
    const Id id = ++last_id_;
    advance(transfers_.emplace(id, std::move(t)).first);
    return id;
  }

  /// The rows of a layer before position `last` are written and may be sent. Throws std::invalid_argument if there is
  /// no such layer, or fewer positions.
  void ready(Id id, Index layer, Pos last) {
    require_between(layer, Index{0}, cache_->layers().layers() - 1, "layer");
    const auto at = transfers_.find(id);
    if (at == transfers_.end()) {
      return;
    }
    Transfer& t = at->second;
    require_between(last, Pos{0}, std::min(t.offer.length, cache_->policy().reserved(t.offer.seq)), "last");
    if (const std::optional<Index> stored = layers().number_of(layer); stored && last > 0) {
      t.rows.ready(*stored, layers().end(layers().place(*stored).group, last));
      send_all();
    } else if (const std::optional<Index> recurrent = layers().recurrent().number_of(layer)) {
      t.states.ready(*recurrent, last);
      send_all();
    }
  }

  /// All rows are written. Throws std::invalid_argument if positions are missing, or the payload has more than 488
  /// bytes.
  void finish(Id id, std::span<const std::byte> payload = {}) {
    require(payload.size() <= detail::max_payload_bytes, "payload.size()", payload.size(), "at most 488");
    const auto at = transfers_.find(id);
    if (at == transfers_.end()) {
      return;
    }
    Transfer& t = at->second;
    require(cache_->policy().reserved(t.offer.seq) >= t.offer.length, "finish", cache_->policy().reserved(t.offer.seq),
            "called when the sequence has all positions that were offered");
    rows_.all_ready(t.offer.length, t.rows);
    t.states.all_ready(t.offer.length);
    t.payload.assign(payload.begin(), payload.end());
    t.finished = true;
    send_all();
  }

  /// Gives up a transfer, unless it has ended.
  void cancel(Id id) {
    if (const auto at = transfers_.find(id); at != transfers_.end()) {
      fail(at, Outcome::cancelled, "by the sender");
    }
  }

  /// Takes replies, and sends as much as the windows allow; true if anything happened.
  bool poll(TimePoint now = std::chrono::steady_clock::now()) {
    bool any = false;
    for (auto& [id, t] : transfers_) {
      t.lost = transport_->is_lost(t.offer.to);  // before its last replies are taken
    }
    while (auto reply = transport_->poll(reply_channel)) {
      take(*reply, now);
      any = true;
    }
    for (auto at = transfers_.begin(); at != transfers_.end();) {
      const auto next = std::next(at);
      any = progress(at, now) || any;
      at = next;
    }
    std::erase_if(abandoned_, [&](const Abandoned& a) { return is_settled(a.ticket); });
    return send_all() || any;
  }
  /// When `poll` gives up a transfer if no message arrives until then.
  [[nodiscard]] TimePoint next_timeout() const {
    TimePoint next = no_deadline;
    for (const auto& [id, t] : transfers_) {
      next = std::min({next, t.offer.deadline, is_waiting(t) ? later(t.heard, options_.timeout) : no_deadline});
    }
    return next;
  }

  /// The next finished transfer, or nothing.
  [[nodiscard]] std::optional<Sent> next() {
    if (sent_.empty()) {
      return std::nullopt;
    }
    Sent sent = std::move(sent_.front());
    sent_.pop_front();
    return sent;
  }
  /// Transfers that are in progress.
  [[nodiscard]] std::size_t transfers() const noexcept { return transfers_.size(); }
  /// Messages of a transfer that the transport is reading from the pool.
  [[nodiscard]] std::size_t in_flight(Id id) const {
    const auto at = transfers_.find(id);
    return at == transfers_.end()
               ? 0
               : static_cast<std::size_t>(std::count_if(
                     at->second.tickets.begin(), at->second.tickets.end(),
                     [&](const Ticket& ticket) { return transport_->state(ticket) == TicketState::pending; }));
  }

 private:
  using Ticket = typename T::Ticket;
  using Kind = detail::MessageKind;
  using HeadWriter = detail::HeadWriter;

  enum class State { unsent, offered, sending, ending };
  struct Transfer {
    Offer offer;
    std::int32_t tokens = 0;
    std::shared_ptr<std::vector<std::byte>> body = std::make_shared<std::vector<std::byte>>();  // of OFFER
    detail::LayerProgress rows;
    detail::StateProgress states;
    std::vector<PosRange> gone;  // [groups] positions that are not offered
    std::vector<std::byte> payload;
    std::deque<Ticket> tickets;
    State state = State::unsent;
    bool finished = false;
    bool lost = false;
    Pos cached = 0;
    std::uint64_t bytes = 0;
    TimePoint heard{};
  };
  /// A message that could not be cancelled, and the body that it may read besides the pool.
  struct Abandoned {
    Peer to;
    Ticket ticket;
    std::shared_ptr<std::vector<std::byte>> body;
  };
  using Transfers = std::map<Id, Transfer>;

  [[nodiscard]] bool is_settled(const Ticket& ticket) const {
    return transport_->state(ticket) != TicketState::pending;
  }
  static TimePoint later(TimePoint time, std::chrono::nanoseconds by) noexcept {
    return by > no_deadline - time ? no_deadline : time + by;
  }

  [[nodiscard]] static bool is_waiting(const Transfer& t) noexcept {
    return t.state != State::sending || !t.tickets.empty() || t.finished || t.rows.next_layer() ||
           t.states.next_ready();
  }

  bool send_all() {
    bool any = outbox_.send(*transport_);
    for (bool sent = true; sent;) {  // one message of each in turn: a large transfer does not delay others
      sent = false;
      for (auto at = transfers_.begin(); at != transfers_.end();) {
        sent = advance(at++) || sent;
      }
      any = any || sent;
    }
    return any;
  }

  [[nodiscard]] const detail::StoredLayers& layers() const noexcept { return rows_.layers(); }
  [[nodiscard]] HeadWriter head(Kind kind, Id id) const { return {kind, id, layers().version()}; }

  /// Sends the next message of a transfer, or ends it. False if there is none, or the window is full.
  bool advance(typename Transfers::iterator at) {
    const Id id = at->first;
    Transfer& t = at->second;
    if (t.state == State::unsent) {
      detail::OfferRecord record{description_,
                                 t.offer.request,
                                 t.offer.length,
                                 t.tokens,
                                 static_cast<std::uint32_t>(t.offer.salt.bytes().size()),
                                 0};
      HeadWriter offer = head(Kind::offer, id).add(record);
      if (!layers().is_plain()) {
        offer.add(detail::GroupCountsRecord{static_cast<std::uint32_t>(layers().groups().size()),
                                            static_cast<std::uint32_t>(layers().model_layers().size())});
      }
      if (layers().recurrent().size() > 0) {
        offer.add(detail::StateCountsRecord{static_cast<std::uint32_t>(layers().recurrent().kinds().size()),
                                            static_cast<std::uint32_t>(t.states.offered().size())});
      }
      const std::span<const std::byte> body(*t.body);
      if (!send(t, offer, std::span(&body, body.empty() ? 0 : 1))) {
        return false;
      }
      t.state = State::offered;
      return true;
    }
    if (t.state != State::sending) {
      return false;
    }
    if (const std::optional<Index> layer = t.rows.next_layer()) {
      return send_rows(at, *layer);
    }
    if (const std::optional<Index> layer = t.states.next_ready()) {
      return send_state(at, *layer);
    }
    // Not before all rows have left: if this side gives up, its blocks are reused, and a receiver that has not taken
    // the rows yet must not commit what it finds there.
    if (t.finished && t.tickets.empty() && send(t, head(Kind::end, id).add(t.payload), {})) {
      t.state = State::ending;
      return true;
    }
    return false;
  }
  bool send_rows(typename Transfers::iterator at, Index layer) {
    Transfer& t = at->second;
    const auto part = rows_.next(t.rows, layer, options_.message_bytes);
    if (!rows_.find(t.offer.seq, part)) {
      fail(at, Outcome::cancelled,
           kvc::detail::concat({"the sequence has dropped rows of stored layer ", std::to_string(layer),
                                " at positions from ", std::to_string(part.range.first), " on"}));
      return true;
    }
    const detail::RowsRecord record{static_cast<std::int32_t>(layer), part.range.first, part.range.last, 0};
    if (!send(t, head(Kind::rows, at->first).add(record), rows_.spans())) {
      return false;
    }
    t.rows.sent(part);
    t.bytes += static_cast<std::uint64_t>(part.range.size()) * layers().token_bytes(layers().place(layer).group);
    return true;
  }
  bool send_state(typename Transfers::iterator at, Index recurrent) {
    Transfer& t = at->second;
    const Pos length = *t.states.next(recurrent);
    if (!rows_.find_state(t.offer.seq, recurrent, length)) {
      fail(at, Outcome::cancelled,
           kvc::detail::concat({"the sequence has no recurrent states of length ", std::to_string(length)}));
      return true;
    }
    const detail::SentStateRecord record{static_cast<std::int32_t>(recurrent), length};
    if (!send(t, head(Kind::state, at->first).add(record), rows_.spans())) {
      return false;
    }
    t.states.advance(recurrent);
    t.bytes += static_cast<std::uint64_t>(layers().recurrent().bytes(recurrent));
    return true;
  }
  bool send(Transfer& t, const HeadWriter& head, transport::SendSpans body) {
    if (outbox_.has(t.offer.to)) {
      return false;  // a CANCEL to this peer is still queued
    }
    std::optional<Ticket> ticket = transport_->try_send(t.offer.to, data_channel, head.bytes(), body);
    if (ticket) {
      t.tickets.push_back(std::move(*ticket));
    }
    return ticket.has_value();
  }

  /// Takes a reply. An invalid one is ignored, or ends its transfer.
  void take(const typename T::Arrival& reply, TimePoint now) {
    detail::HeadReader in(reply.head());
    const auto head = in.take<detail::MessageHead>();
    if (!head || head->magic != detail::magic) {
      return;
    }
    const auto at = transfers_.find(head->transfer);
    if (at == transfers_.end() || at->second.offer.to != reply.peer()) {
      return;
    }
    Transfer& t = at->second;
    t.heard = now;
    if (head->kind == Kind::accept && t.state == State::offered) {
      const auto record = in.take<detail::AcceptRecord>();
      if (record && 0 <= record->first && record->first < std::max(1, t.tokens) &&
          rows_.want(record->first, t.offer.length, t.gone, in, t.rows, t.states)) {
        t.cached = record->first;
        t.state = State::sending;
        return;
      }
    } else if (head->kind == Kind::refuse || head->kind == Kind::abort) {
      const detail::Refusal refusal = detail::read_refusal(in);
      fail(at, refusal.outcome, refusal.reason, false);
      return;
    } else if (head->kind == Kind::done && t.state == State::ending) {
      end(at, Outcome::complete, {});
      return;
    }
    fail(at, Outcome::broken, "the receiver's reply is out of turn");
  }

  /// Checks the messages of a transfer and its timeouts. True if anything happened.
  bool progress(typename Transfers::iterator at, TimePoint now) {
    Transfer& t = at->second;
    const std::size_t before = t.tickets.size();
    std::erase_if(t.tickets, [&](const Ticket& ticket) {
      const TicketState state = transport_->state(ticket);
      t.lost = t.lost || state == TicketState::failed;
      return state != TicketState::pending;
    });
    const bool any = t.tickets.size() != before;
    if (t.lost) {
      fail(at, Outcome::peer_lost, "the receiver has closed or died", false);
      return true;
    }
    if (any || !is_waiting(t)) {
      t.heard = now;
    }
    if (now >= t.offer.deadline || now >= later(t.heard, options_.timeout)) {
      fail(at, Outcome::timed_out,
           now >= t.offer.deadline ? "its deadline has passed" : "nothing was heard from the receiver");
      return true;
    }
    return any;
  }

  void fail(typename Transfers::iterator at, Outcome outcome, std::string reason, bool notify = true) {
    Transfer& t = at->second;
    for (Ticket& ticket : t.tickets) {
      if (!transport_->cancel(ticket)) {
        abandoned_.push_back({t.offer.to, std::move(ticket), t.body});
      }
    }
    if (notify && t.state != State::unsent) {
      outbox_.add(*transport_, t.offer.to, data_channel, head(Kind::cancel, at->first));
    }
    end(at, outcome, std::move(reason));
  }
  void end(typename Transfers::iterator at, Outcome outcome, std::string reason) {
    const Transfer& t = at->second;
    sent_.push_back(
        {at->first, t.offer.to, t.offer.seq, t.offer.request, outcome, t.cached, t.bytes, std::move(reason)});
    transfers_.erase(at);
  }

  const Cache* cache_;
  T* transport_;
  SenderOptions options_;
  snapshot::format::DescriptionRecord description_;
  detail::RowSource<Cache> rows_;
  Transfers transfers_;
  std::vector<Abandoned> abandoned_;
  std::deque<Sent> sent_;
  detail::Outbox<T> outbox_;
  Id last_id_ = 0;
};

}  // namespace transfer
}  // namespace v0
}  // namespace kvc
