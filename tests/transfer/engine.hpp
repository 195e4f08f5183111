// AnyEngine: a cache of any kind with an endpoint, a sender and a receiver, behind one interface; and Wire, which
// speaks the protocol by hand.
#pragma once

#include <chrono>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "kvc/transfer/receiver.hpp"
#include "kvc/transfer/sender.hpp"
#include "kvc/transport/in_process.hpp"
#include "snapshot/any_cache.hpp"

namespace kvc_test {

using kvc::transfer::Outcome;
using kvc::transport::InProcess;
using kvc::transport::Peer;

inline Tokens counting(Token first, int count) {
  Tokens tokens(static_cast<std::size_t>(count));
  for (Token& token : tokens) {
    token = first++;
  }
  return tokens;
}
inline kvc::transport::TimePoint now() { return std::chrono::steady_clock::now(); }

struct AnyEngine {
  virtual ~AnyEngine() = default;
  virtual AnyCache& cache() = 0;
  virtual kvc::transfer::Id offer(const kvc::transfer::Offer& offer) = 0;
  virtual void ready(kvc::transfer::Id id, Index layer, Pos last) = 0;
  virtual void finish(kvc::transfer::Id id, std::span<const std::byte> payload = {}) = 0;
  virtual void cancel_sending(kvc::transfer::Id id) = 0;
  virtual void cancel_receiving(Peer from, std::uint64_t request) = 0;
  virtual bool poll_sender(kvc::transport::TimePoint time = now()) = 0;
  virtual bool poll_receiver(kvc::transport::TimePoint time = now()) = 0;
  virtual std::optional<kvc::transfer::Sent> next_sent() = 0;
  virtual std::optional<kvc::transfer::Received> next_received() = 0;
  virtual std::size_t transfers() const = 0;
  virtual kvc::transport::InProcess::Endpoint& endpoint() = 0;

  bool poll() {
    const bool received = poll_receiver();
    return poll_sender() || received;
  }
  /// All rows of a sequence.
  kvc::transfer::Id send(Peer to, SeqId seq, std::span<const Token> tokens, const kvc::Salt& salt = {},
                         std::uint64_t request = 0) {
    kvc::transfer::Offer o;
    o.to = to;
    o.seq = seq;
    o.tokens = tokens;
    o.salt = salt;
    o.request = request;
    const kvc::transfer::Id id = offer(o);
    finish(id);
    return id;
  }
};

template <class T, class P, class L = kvc::HeadMajor>
class Engine final : public AnyEngine {
 public:
  using Cache = kvc::KvCache<T, P, L>;
  Engine(InProcess& hub, Peer self, const typename P::Config& config, const kvc::transfer::SenderOptions& sending = {},
         const kvc::transfer::ReceiverOptions& receiving = {}, const kvc::Shape& shape = snapshot_shape)
      : any_(config, shape),
        endpoint_(hub, self),
        sender_(any_.cache, endpoint_, sending),
        receiver_(any_.cache, endpoint_, receiving) {}

  AnyCache& cache() override { return any_; }
  Cache& kv() { return any_.cache; }
  kvc::transfer::Id offer(const kvc::transfer::Offer& o) override { return sender_.offer(o); }
  void ready(kvc::transfer::Id id, Index layer, Pos last) override { sender_.ready(id, layer, last); }
  void finish(kvc::transfer::Id id, std::span<const std::byte> payload = {}) override { sender_.finish(id, payload); }
  void cancel_sending(kvc::transfer::Id id) override { sender_.cancel(id); }
  void cancel_receiving(Peer from, std::uint64_t request) override { receiver_.cancel(from, request); }
  bool poll_sender(kvc::transport::TimePoint time) override { return sender_.poll(time); }
  bool poll_receiver(kvc::transport::TimePoint time) override { return receiver_.poll(time); }
  std::optional<kvc::transfer::Sent> next_sent() override { return sender_.next(); }
  std::optional<kvc::transfer::Received> next_received() override { return receiver_.next(); }
  std::size_t transfers() const override { return sender_.transfers() + receiver_.transfers(); }
  InProcess::Endpoint& endpoint() override { return endpoint_; }
  std::size_t in_flight(kvc::transfer::Id id) const { return sender_.in_flight(id); }

 private:
  CacheOf<T, P, L> any_;
  InProcess::Endpoint endpoint_;
  kvc::transfer::Sender<Cache, InProcess::Endpoint> sender_;
  kvc::transfer::Receiver<Cache, InProcess::Endpoint> receiver_;
};

// Compiled once, in any_cache.cpp.
extern template class Engine<float, kvc::Contiguous>;
extern template class Engine<float, kvc::Paged>;
extern template class Engine<float, kvc::Paged, kvc::TokenMajor>;
extern template class Engine<float, Prefixes>;

/// An engine of about `tokens` slots, with the policy of a case of policies.hpp.
template <class T, class Case, class L = kvc::HeadMajor>
std::unique_ptr<AnyEngine> make_engine(InProcess& hub, Peer self, Pos tokens = 256,
                                       kvc::transfer::SenderOptions sending = {},
                                       kvc::transfer::ReceiverOptions receiving = {},
                                       const kvc::Shape& shape = snapshot_shape) {
  return std::make_unique<Engine<T, typename Case::Policy, L>>(hub, self, Case::config(tokens, 12, 64), sending,
                                                               receiving, shape);
}

/// Messages of a few tokens, so that a sequence is many of them.
inline constexpr kvc::transfer::SenderOptions small_messages{.timeout = std::chrono::hours(1), .message_bytes = 300};

/// Polls until no engine has anything to do.
template <class... E>
void run(E&... engines) {
  while ((static_cast<int>(engines.poll()) + ...) > 0) {
  }
}

inline kvc::transfer::Sent expect_sent(AnyEngine& engine, kvc::transfer::Outcome outcome) {
  auto sent = engine.next_sent();
  REQUIRE(sent);
  INFO(sent->reason);
  REQUIRE(to_text(sent->outcome) == to_text(outcome));
  return std::move(*sent);
}
inline kvc::transfer::Received expect_received(AnyEngine& engine, kvc::transfer::Outcome outcome) {
  auto received = engine.next_received();
  REQUIRE(received);
  INFO(received->reason);
  REQUIRE(to_text(received->outcome) == to_text(outcome));
  return std::move(*received);
}

/// A peer that dies: all others lose its endpoint before its sender and receiver can say anything.
inline void die(std::unique_ptr<AnyEngine>& engine) {
  for (Peer peer = 0; peer < engine->endpoint().peers(); ++peer) {
    engine->endpoint().drop(peer);
  }
  engine.reset();
}

/// No block is referenced, and the bookkeeping is consistent.
inline void require_free(AnyEngine& engine) {
  engine.cache().verify();
  REQUIRE(engine.cache().stats().blocks_referenced == 0);
  REQUIRE(engine.cache().stats().sequences == 0);
  REQUIRE(engine.transfers() == 0);
}

}  // namespace kvc_test
