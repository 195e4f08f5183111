// The contract of a transport, for the one between threads.
#include <cstring>
#include <optional>
#include <string>
#include <vector>

#include "catch.hpp"
#include "kvc/transport/in_process.hpp"

namespace {
using namespace kvc;
using kvc_test::contains;
using Endpoint = transport::InProcess::Endpoint;

std::span<const std::byte> bytes(const std::string& text) { return std::as_bytes(std::span(text)); }
std::string text(std::span<const std::byte> b) { return {reinterpret_cast<const char*>(b.data()), b.size()}; }
std::string head_of(std::optional<Endpoint::Arrival> arrival) { return arrival ? text(arrival->head()) : "nothing"; }

/// Sends a text as the body, cut after each `cut` bytes.
struct Body {
  std::string bytes;
  std::vector<std::span<const std::byte>> spans;
  explicit Body(std::string what, std::size_t cut = 3) : bytes(std::move(what)) {
    for (std::size_t at = 0; at < bytes.size(); at += cut) {
      spans.push_back(::bytes(bytes).subspan(at, std::min(cut, bytes.size() - at)));
    }
  }
};
std::vector<std::span<std::byte>> places(std::string& to, std::size_t cut) {
  std::vector<std::span<std::byte>> all;
  for (std::size_t at = 0; at < to.size(); at += cut) {
    all.push_back(std::as_writable_bytes(std::span(to)).subspan(at, std::min(cut, to.size() - at)));
  }
  return all;
}
}  // namespace

TEST_CASE("Messages arrive in order, by channel, and from all peers in turn", "[transfer]") {
  transport::InProcess hub({.peers = 3, .channels = 2});
  Endpoint a(hub, 0);
  Endpoint b(hub, 1);
  Endpoint c(hub, 2);
  for (const char* head : {"a1", "a2", "a3"}) {
    REQUIRE(a.try_send(2, 0, bytes(head)));
  }
  REQUIRE(b.try_send(2, 0, bytes("b1")));
  REQUIRE(a.try_send(2, 1, bytes("other")));
  REQUIRE(c.try_send(2, 1, bytes("self")));
  std::string order;
  while (auto arrival = c.poll(0)) {
    order += text(arrival->head());
  }
  REQUIRE(order == "a1b1a2a3");
  const std::string one = head_of(c.poll(1));
  const std::string two = head_of(c.poll(1));
  REQUIRE(((one == "other" && two == "self") || (one == "self" && two == "other")));
  REQUIRE(head_of(c.poll(1)) == "nothing");
  REQUIRE(head_of(a.poll(0)) == "nothing");
}

TEST_CASE("A body is received to its place, however both sides cut it", "[transfer]") {
  transport::InProcess hub({});
  Endpoint a(hub, 0);
  Endpoint b(hub, 1);
  for (const std::size_t cut : {1U, 2U, 3U, 5U, 100U}) {
    const Body body("the quick brown fox");
    auto sent = a.try_send(1, 0, bytes("fox"), body.spans);
    REQUIRE(sent);
    REQUIRE(a.state(*sent) == transport::TicketState::pending);
    auto arrival = b.poll(0);
    REQUIRE(arrival);
    REQUIRE(arrival->peer() == 0);
    REQUIRE(arrival->body_bytes() == 19);
    std::string to(19, '.');
    std::string wrong(18, '.');
    REQUIRE_THROWS_WITH(b.accept(std::move(*arrival), places(wrong, cut)), contains("spans is 18"));
    REQUIRE(a.state(*sent) == transport::TicketState::pending);
    REQUIRE(b.state(b.accept(std::move(*arrival), places(to, cut))) == transport::TicketState::done);
    REQUIRE(a.state(*sent) == transport::TicketState::done);
    REQUIRE(to == "the quick brown fox");
  }
}

TEST_CASE("A window bounds the messages in flight on a channel", "[transfer]") {
  transport::InProcess hub({.peers = 2, .channels = 2, .window_messages = 3, .window_bytes = 10});
  Endpoint a(hub, 0);
  Endpoint b(hub, 1);
  const Body large(std::string(11, 'x'));
  const Body small("12345");
  REQUIRE(a.try_send(1, 0, bytes("larger than the window"), large.spans));
  REQUIRE(!a.try_send(1, 0, bytes("one byte"), Body("1").spans));
  REQUIRE(a.try_send(1, 1, bytes("of another channel")));
  REQUIRE(b.try_send(0, 0, bytes("of another peer")));
  {
    auto arrival = b.poll(0);
    REQUIRE(!a.try_send(1, 0, bytes("not before the body is taken"), small.spans));
  }  // discarded
  REQUIRE(a.try_send(1, 0, bytes("1"), small.spans));
  REQUIRE(a.try_send(1, 0, bytes("2"), small.spans));
  REQUIRE(!a.try_send(1, 0, bytes("3"), small.spans));
  REQUIRE(a.try_send(1, 0, bytes("3")));
  REQUIRE(!a.try_send(1, 0, bytes("4")));
  REQUIRE(head_of(b.poll(0)) == "1");
  REQUIRE(a.try_send(1, 0, bytes("4")));
}

TEST_CASE("A message that was not received can be cancelled", "[transfer]") {
  transport::InProcess hub({});
  Endpoint a(hub, 0);
  Endpoint b(hub, 1);
  const Body body("rows");
  auto first = a.try_send(1, 0, bytes("1"), body.spans);
  auto second = a.try_send(1, 0, bytes("2"), body.spans);
  auto third = a.try_send(1, 0, bytes("3"), body.spans);
  auto arrival = b.poll(0);
  REQUIRE(a.cancel(*first));   // while b has it
  REQUIRE(a.cancel(*second));  // before
  REQUIRE(a.state(*first) == transport::TicketState::failed);
  REQUIRE(a.state(*second) == transport::TicketState::failed);
  std::string to(4, '.');
  REQUIRE(b.state(b.accept(std::move(*arrival), places(to, 4))) == transport::TicketState::failed);
  REQUIRE(to == "....");
  arrival = b.poll(0);
  REQUIRE(text(arrival->head()) == "3");
  REQUIRE(b.state(b.accept(std::move(*arrival), places(to, 4))) == transport::TicketState::done);
  REQUIRE(a.cancel(*third));
  REQUIRE(a.state(*third) == transport::TicketState::done);
  REQUIRE(head_of(b.poll(0)) == "nothing");
}

TEST_CASE("A peer that is destroyed is lost, and its last messages arrive", "[transfer]") {
  transport::InProcess hub({.peers = 3});
  Endpoint a(hub, 0);
  std::optional<Endpoint> b(std::in_place, hub, 1);
  Endpoint c(hub, 2);
  const Body body("rows");
  auto to_b = a.try_send(1, 0, bytes("1"), body.spans);
  auto looked_at = b->poll(0);
  auto to_b_too = a.try_send(1, 0, bytes("2"), body.spans);
  REQUIRE(b->try_send(0, 0, bytes("bye")));
  REQUIRE(b->try_send(0, 0, bytes("with a body"), body.spans));
  REQUIRE(!a.is_lost(1));
  while (a.wait(transport::TimePoint::min())) {
  }
  looked_at.reset();
  b.reset();
  REQUIRE(a.wait(transport::no_deadline));
  REQUIRE(a.is_lost(1));
  REQUIRE(!a.is_lost(2));
  REQUIRE(a.state(*to_b) == transport::TicketState::done);  // it was discarded
  REQUIRE(a.state(*to_b_too) == transport::TicketState::failed);
  REQUIRE(head_of(a.poll(0)) == "bye");
  REQUIRE(head_of(a.poll(0)) == "nothing");
  auto ticket = a.try_send(1, 0, bytes("3"), body.spans);
  REQUIRE(a.state(*ticket) == transport::TicketState::failed);
  REQUIRE(c.try_send(0, 0, bytes("hello")));
  REQUIRE(head_of(a.poll(0)) == "hello");
  REQUIRE_THROWS_WITH(Endpoint(hub, 1), contains("self is 1"));
}

TEST_CASE("Waiting ends when there is news, once", "[transfer]") {
  transport::InProcess hub({});
  Endpoint a(hub, 0);
  Endpoint b(hub, 1);
  REQUIRE(!b.wait(transport::TimePoint::min()));
  REQUIRE(a.try_send(1, 0, bytes("news")));
  REQUIRE(b.wait(transport::no_deadline));
  REQUIRE(!b.wait(transport::TimePoint::min()));
  REQUIRE(head_of(b.poll(0)) == "news");
  REQUIRE(a.wait(transport::no_deadline));  // it was received
  REQUIRE(!transport::wait_for(a, transport::TimePoint::min(), [] { return false; }));
  REQUIRE(transport::wait_for(a, transport::no_deadline, [] { return true; }));
}

TEST_CASE("Numbers that are out of range are named", "[transfer]") {
  transport::InProcess hub({});
  Endpoint a(hub, 0);
  REQUIRE_THROWS_WITH(transport::InProcess({.peers = 0}), contains("config.peers is 0"));
  REQUIRE_THROWS_WITH(transport::InProcess({.channels = 0}), contains("config.channels is 0"));
  REQUIRE_THROWS_WITH(transport::InProcess({.window_messages = 0}), contains("config.window_messages is 0"));
  REQUIRE_THROWS_WITH(transport::InProcess({.window_bytes = 0}), contains("config.window_bytes is 0"));
  REQUIRE_THROWS_WITH(Endpoint(hub, 2), contains("self is 2"));
  REQUIRE_THROWS_WITH(a.try_send(-1, 0, bytes("")), contains("peer is -1"));
  REQUIRE_THROWS_WITH(a.try_send(1, 4, bytes("")), contains("channel is 4"));
  REQUIRE_THROWS_WITH(a.try_send(1, 0, bytes(std::string(513, 'x'))), contains("head.size() is 513"));
  REQUIRE_THROWS_WITH(a.poll(-1), contains("channel is -1"));
  REQUIRE_THROWS_WITH(a.is_lost(2), contains("peer is 2"));
}
