// The contract of a transport (transport/concept.hpp) as cases that any implementation passes: three peers, each in a
// thread or process of its own, run the same function, each for its part.
#pragma once

#include <algorithm>
#include <chrono>
#include <cstddef>
#include <cstring>
#include <deque>
#include <functional>
#include <optional>
#include <span>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "checks.hpp"
#include "kvc/transport/concept.hpp"
#include "random_source.hpp"

namespace kvc_test {

/// The configuration of the transports.
inline constexpr int contract_peers = 3;
inline constexpr int contract_channels = 2;
inline constexpr int contract_window_messages = 6;
inline constexpr int contract_window_bytes = 5000;

template <kvc::transport::Transport T>
class Contract {
 public:
  /// `transport` is open when a case begins; a case may close it.
  Contract(std::optional<T>& transport, Checks& checks) : transport_(transport), checks_(checks) {}

  struct Case {
    const char* name;
    void (Contract::*run)();
  };
  static std::vector<Case> cases() {
    return {{"order", &Contract::order},           {"bodies", &Contract::bodies},
            {"window", &Contract::window},         {"discarding", &Contract::discarding},
            {"cancelling", &Contract::cancelling}, {"to itself", &Contract::to_itself},
            {"waiting", &Contract::waiting},       {"closing", &Contract::closing},
            {"dropping", &Contract::dropping},     {"arguments", &Contract::arguments}};
  }

 private:
  using Ticket = typename T::Ticket;
  using Arrival = typename T::Arrival;
  using Bytes = std::vector<std::byte>;

  [[nodiscard]] T& t() { return *transport_; }
  [[nodiscard]] int self() { return t().self(); }
  void expect(bool ok, const std::string& what) { checks_.expect(ok, what); }

  static std::span<const std::byte> bytes(const std::string& text) { return std::as_bytes(std::span(text)); }
  static std::string text(std::span<const std::byte> b) { return {reinterpret_cast<const char*>(b.data()), b.size()}; }

  /// Bytes that are a function of a number.
  static Bytes body_of(int number, std::size_t size) {
    Random random(static_cast<std::uint64_t>(number));
    Bytes all(size);
    for (std::byte& b : all) {
      b = static_cast<std::byte>(random.between(0, 255));
    }
    return all;
  }
  /// Cut into spans of random sizes, some empty.
  template <class B>
  static std::vector<std::span<B>> cut(std::span<B> whole, int seed) {
    Random random(static_cast<std::uint64_t>(seed));
    std::vector<std::span<B>> spans;
    while (!whole.empty()) {
      const std::size_t most = random.one_in(3) ? whole.size() : std::min<std::size_t>(whole.size(), 700);
      const std::size_t size = random.between<std::size_t>(0, most);
      spans.push_back(whole.first(size));
      whole = whole.subspan(size);
    }
    return spans;
  }

  void until(const std::string& what, const std::function<bool()>& condition) {
    if (!kvc::transport::wait_for(t(), std::chrono::steady_clock::now() + std::chrono::seconds(60), condition)) {
      expect(false, "in time: " + what);
      throw std::runtime_error("a peer waits for ever: " + what);
    }
  }
  Ticket send(int to, int channel, const std::string& head, const Bytes& body = {}, int seed = 1) {
    const auto spans = cut(std::span<const std::byte>(body), seed);
    std::optional<Ticket> ticket;
    until("room to send " + head, [&] { return (ticket = t().try_send(to, channel, bytes(head), spans)).has_value(); });
    return std::move(*ticket);
  }
  void until_settled(const Ticket& ticket, kvc::transport::TicketState expected) {
    until("a ticket settles", [&] { return t().state(ticket) != kvc::transport::TicketState::pending; });
    expect(t().state(ticket) == expected,
           "a ticket is " + std::string(expected == kvc::transport::TicketState::done ? "done" : "failed"));
  }
  /// As the transport's, without the messages of `meet`.
  std::optional<Arrival> poll(int channel) {
    if (channel == 0 && !early_.empty()) {
      std::optional<Arrival> arrival(std::move(early_.front()));
      early_.pop_front();
      return arrival;
    }
    std::optional<Arrival> arrival = t().poll(channel);
    while (arrival && channel == 0 && text(arrival->head()) == "met") {
      ++met_;
      arrival = t().poll(channel);
    }
    return arrival;
  }
  Arrival next(int channel) {
    std::optional<Arrival> arrival;
    until("a message on channel " + std::to_string(channel), [&] { return (arrival = poll(channel)).has_value(); });
    return std::move(*arrival);
  }
  /// Expects that the next message has this head and body.
  void take(int channel, const std::string& head, const Bytes& body, int seed) {
    Arrival arrival = next(channel);
    expect(text(arrival.head()) == head, "the head is " + head + ", not " + text(arrival.head()));
    expect(arrival.body_bytes() == body.size(), "the body has " + std::to_string(body.size()) + " bytes");
    Bytes to(static_cast<std::size_t>(arrival.body_bytes()));
    const Ticket ticket = t().accept(std::move(arrival), cut(std::span(to), seed));
    until_settled(ticket, kvc::transport::TicketState::done);
    expect(to == body, "the body of " + head + " is what was sent");
  }
  /// Waits until all peers have reached this point.
  void meet() {
    for (int peer = 0; peer < contract_peers; ++peer) {
      (void)send(peer, 0, "met");
    }
    until("all have come", [&] {
      while (met_ < contract_peers) {
        std::optional<Arrival> arrival = t().poll(0);
        if (!arrival) {
          return false;
        }
        if (text(arrival->head()) == "met") {
          ++met_;
        } else {
          early_.push_back(std::move(*arrival));  // from a peer that has met all already
        }
      }
      return true;
    });
    met_ -= contract_peers;
  }

  void order() {
    constexpr int messages = 40;
    const auto size_of = [](int peer, int channel, int i) {
      return static_cast<std::size_t>((i * 37 + peer * 11 + channel) % 5 == 0 ? 0 : (i * 977 + peer) % 3000 + 1);
    };
    if (self() < 2) {
      std::vector<std::pair<Ticket, Bytes>> sent;
      sent.reserve(2 * messages);
      for (int i = 0; i < messages; ++i) {
        for (const int channel : {0, 1}) {
          sent.emplace_back(Ticket(), body_of(i, size_of(self(), channel, i)));
          sent.back().first = send(2, channel, std::to_string(i), sent.back().second, i);
        }
      }
      for (const auto& [ticket, body] : sent) {
        until_settled(ticket, kvc::transport::TicketState::done);
      }
    } else {
      int taken[2][2] = {};
      for (int count = 0; count < 4 * messages;) {
        for (const int channel : {1, 0}) {
          std::optional<Arrival> arrival = poll(channel);
          if (!arrival) {
            (void)t().wait(std::chrono::steady_clock::now() + std::chrono::milliseconds(1));
            continue;
          }
          ++count;
          const int peer = arrival->peer();
          const int i = taken[peer][channel]++;
          const Bytes body = body_of(i, size_of(peer, channel, i));
          expect(text(arrival->head()) == std::to_string(i), "messages arrive in order");
          expect(arrival->body_bytes() == body.size(), "a body has the size that was sent");
          Bytes to(static_cast<std::size_t>(arrival->body_bytes()));
          until_settled(t().accept(std::move(*arrival), cut(std::span(to), i + 7)), kvc::transport::TicketState::done);
          expect(to == body, "a body is what was sent");
        }
      }
    }
    meet();
  }

  void bodies() {
    int number = 0;
    for (const std::size_t size : {1U, 2U, 511U, 4095U, 4096U, 4097U, 70000U, 1000000U}) {
      ++number;
      const std::string head(number == 3 ? kvc::transport::max_message_head : 3, 'h');
      const Bytes body = body_of(number, size);
      if (self() == 0) {
        const Ticket ticket = send(1, 1, head, body, number);
        until_settled(ticket, kvc::transport::TicketState::done);
      } else if (self() == 1) {
        take(1, head, body, 100 + number);
      }
    }
    meet();
  }

  void window() {
    const Bytes large = body_of(1, 3 * contract_window_bytes);
    if (self() == 0) {
      const Ticket larger_than_the_window = send(1, 1, "large", large);
      expect(!t().try_send(1, 1, bytes("more"), cut(std::span<const std::byte>(large), 1)),
             "the window is full of bytes");
      (void)send(1, 0, "take it");
      until_settled(larger_than_the_window, kvc::transport::TicketState::done);
      int sent = 0;
      while (sent < 1000 && t().try_send(1, 1, bytes(std::to_string(sent)))) {
        ++sent;
      }
      // The window may still count one message, received but not acknowledged.
      expect(sent == contract_window_messages || sent == contract_window_messages - 1,
             "the window is full of messages");
      (void)send(2, 1, "the window to another peer is another");
      (void)send(1, 0, "go on");
      (void)send(1, 1, std::to_string(sent));  // once there is room
      (void)send(1, 1, "last");
    } else if (self() == 1) {
      take(0, "take it", {}, 1);
      take(1, "large", large, 2);
      take(0, "go on", {}, 1);
      for (int i = 0;; ++i) {
        const Arrival arrival = next(1);
        if (text(arrival.head()) == "last") {
          break;
        }
        expect(text(arrival.head()) == std::to_string(i), "messages arrive in order");
      }
    } else {
      take(1, "the window to another peer is another", {}, 1);
    }
    meet();
  }

  void discarding() {
    const Bytes body = body_of(3, 100000);
    if (self() == 0) {
      const Ticket discarded = send(1, 1, "discarded", body);
      const Ticket taken = send(1, 1, "taken", body);
      until_settled(discarded, kvc::transport::TicketState::done);
      until_settled(taken, kvc::transport::TicketState::done);
    } else if (self() == 1) {
      expect(text(next(1).head()) == "discarded", "the head of what is discarded");
      take(1, "taken", body, 9);
    }
    meet();
  }

  void cancelling() {
    const Bytes body = body_of(4, 100000);
    if (self() == 0) {
      Ticket ticket = send(1, 1, "cancelled", body);
      if (t().cancel(ticket)) {
        expect(t().state(ticket) != kvc::transport::TicketState::pending, "what is cancelled is settled");
      }
      (void)send(1, 1, "after it");
      until("the ticket settles", [&] { return t().state(ticket) != kvc::transport::TicketState::pending; });
      expect(t().cancel(ticket), "what is settled can be cancelled");
      const Ticket refused = send(1, 1, "refused", body);
      const Ticket whole = send(1, 1, "whole", body);
      until("the ticket settles", [&] { return t().state(refused) != kvc::transport::TicketState::pending; });
      until_settled(whole, kvc::transport::TicketState::done);
    } else if (self() == 1) {
      Arrival arrival = next(1);
      Bytes to(body.size());
      if (text(arrival.head()) == "cancelled") {  // it arrived before it was cancelled, or could not be cancelled
        const Ticket ticket = t().accept(std::move(arrival), cut(std::span(to), 3));
        until("the ticket settles", [&] { return t().state(ticket) != kvc::transport::TicketState::pending; });
        expect(t().state(ticket) == kvc::transport::TicketState::failed || to == body, "a body that is done is whole");
        arrival = next(1);
      }
      expect(text(arrival.head()) == "after it", "what follows arrives");
      arrival = next(1);
      expect(text(arrival.head()) == "refused", "what follows arrives");
      Ticket ticket = t().accept(std::move(arrival), cut(std::span(to), 3));
      (void)t().cancel(ticket);
      until("the ticket settles", [&] { return t().state(ticket) != kvc::transport::TicketState::pending; });
      take(1, "whole", body, 5);
    }
    meet();
  }

  void to_itself() {
    const Bytes body = body_of(self(), 20000);
    const Ticket ticket = send(self(), 1, "self", body);
    take(1, "self", body, 6);
    until_settled(ticket, kvc::transport::TicketState::done);
    meet();
  }

  void waiting() {
    if (self() == 0) {
      while (t().wait(std::chrono::steady_clock::now())) {
      }
      expect(!t().wait(kvc::transport::TimePoint::min()), "nothing is new");
      (void)send(2, 1, "go on");
      (void)send(1, 0, "now");
      until("the answer", [&] { return poll(1).has_value(); });
    } else if (self() == 1) {
      take(0, "now", {}, 1);
      (void)send(0, 1, "news");
    } else {
      take(1, "go on", {}, 1);
    }
    meet();
  }

  void closing() {
    const Bytes body = body_of(5, 50000);
    if (self() == 1) {
      expect(text(next(1).head()) == "hello", "a message");
      (void)send(0, 1, "bye");
      transport_.reset();
      return;
    }
    if (self() == 0) {
      (void)send(1, 1, "hello");
      (void)send(1, 1, "nobody takes it", body);
      until("the peer is lost", [&] { return t().is_lost(1); });
      expect(text(next(1).head()) == "bye", "the last words are heard");
      const Ticket failed = send(1, 1, "more", body);
      expect(t().state(failed) == kvc::transport::TicketState::failed, "what is sent to a lost peer fails");
      expect(!t().is_lost(2), "the others are not lost");
      (void)send(2, 1, "go on");
      take(1, "on", {}, 1);
    } else {
      take(1, "go on", {}, 1);
      (void)send(0, 1, "on");
    }
  }

  void dropping() {
    const Bytes body = body_of(6, 50000);
    if (self() == 0) {
      take(1, "before", {}, 1);
      t().drop(1);
      t().drop(1);
      expect(t().is_lost(1), "who is dropped is lost");
      const Ticket failed = send(1, 1, "more", body);
      expect(t().state(failed) == kvc::transport::TicketState::failed, "what is sent to a lost peer fails");
      (void)send(2, 1, "go on", body);
      take(1, "on", {}, 1);
    } else if (self() == 1) {
      (void)send(0, 1, "before");
      (void)t().try_send(0, 1, bytes("with a body"), cut(std::span<const std::byte>(body), 1));
      (void)send(2, 0, "done");
    } else {
      take(1, "go on", body, 3);
      take(0, "done", {}, 1);
      (void)send(0, 1, "on");
    }
  }

  void arguments() {
    const auto throws = [&](const std::string& what, const auto& f) {
      try {
        f();
        expect(false, "it throws: " + what);
      } catch (const std::invalid_argument& error) {
        expect(std::string(error.what()).find(what) != std::string::npos, what + " in: " + error.what());
      }
    };
    throws("peer is -1", [&] { (void)t().try_send(-1, 0, {}, {}); });
    throws("peer is 3", [&] { (void)t().is_lost(3); });
    throws("peer is 3", [&] { t().drop(3); });
    throws("channel is 2", [&] { (void)t().try_send(1, 2, {}, {}); });
    throws("channel is -1", [&] { (void)t().poll(-1); });
    throws("head.size() is 513", [&] { (void)t().try_send(1, 0, bytes(std::string(513, 'x')), {}); });
    const Bytes body = body_of(7, 10);
    (void)send(self(), 0, "body", body);
    std::optional<Arrival> arrival(next(0));
    Bytes to(11);
    throws("spans is 11", [&] { (void)t().accept(std::move(*arrival), cut(std::span(to), 1)); });
    arrival.reset();
    meet();
  }

  std::optional<T>& transport_;
  Checks& checks_;
  std::deque<Arrival> early_;
  int met_ = 0;
};

}  // namespace kvc_test
