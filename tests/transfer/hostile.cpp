// A peer may send anything: the receiver and the sender refuse or ignore it, and reference nothing in the end.
#include <cstring>
#include <memory>
#include <vector>

#include "random_source.hpp"
#include "transfer/engine.hpp"

namespace {
using namespace kvc;
using namespace kvc_test;
using namespace kvc::transfer::detail;

/// A peer without a cache, which sends any messages.
struct Wire {
  transport::InProcess::Endpoint endpoint;
  snapshot::format::DescriptionRecord description;
  std::vector<std::byte> body = std::vector<std::byte>(1 << 16, std::byte{1});

  Wire(transport::InProcess& hub, transport::Peer self) : endpoint(hub, self) {
    const KvCache<float, Paged> like(snapshot_shape, {.blocks = 1, .block_tokens = 4});
    description = snapshot::describe(like);
  }
  void say(const HeadWriter& head, std::size_t body_bytes = 0, transport::Channel channel = transfer::data_channel) {
    say(head.bytes(), body_bytes, channel);
  }
  void say(std::span<const std::byte> head, std::size_t body_bytes = 0,
           transport::Channel channel = transfer::data_channel) {
    const auto span = std::span<const std::byte>(body).first(body_bytes);
    REQUIRE(endpoint.try_send(0, channel, head, std::span(&span, body_bytes == 0 ? 0 : 1)));
  }
  [[nodiscard]] HeadWriter offer_of(transfer::Id id, OfferRecord record) const {
    return HeadWriter(MessageKind::offer, id).add(record);
  }
  [[nodiscard]] OfferRecord record(std::int32_t length) const { return {description, 0, length, 0, 0, 0}; }
  [[nodiscard]] static HeadWriter rows(transfer::Id id, int layer, int first, int last) {
    return HeadWriter(MessageKind::rows, id).add(RowsRecord{layer, first, last, 0});
  }
  static constexpr std::size_t token = 3 * (5 + 3) * sizeof(float);
  /// The text of the next reply; empty if there is none.
  std::optional<std::pair<MessageKind, Refusal>> reply() {
    const auto arrival = endpoint.poll(transfer::reply_channel);
    if (!arrival) {
      return std::nullopt;
    }
    HeadReader in(arrival->head());
    const MessageKind kind = in.take<MessageHead>()->kind;
    return std::pair(kind, kind == MessageKind::refuse || kind == MessageKind::abort ? read_refusal(in) : Refusal{});
  }
};
struct Attack {
  transport::InProcess hub{{}};
  std::unique_ptr<AnyEngine> victim = make_engine<float, Prefix4>(hub, 0, 64);
  Wire wire{hub, 1};
  void open(transfer::Id id, std::int32_t length = 10) {
    wire.say(wire.offer_of(id, wire.record(length)));
    (void)victim->poll();
    REQUIRE(wire.reply()->first == MessageKind::accept);
    REQUIRE(victim->cache().stats().blocks_referenced == (length + 3) / 4);
  }
  void expect(MessageKind kind, transfer::Outcome outcome, const std::string& reason) {
    (void)victim->poll();
    const auto reply = wire.reply();
    REQUIRE(reply);
    REQUIRE(reply->first == kind);
    REQUIRE(to_text(reply->second.outcome) == to_text(outcome));
    REQUIRE_THAT(reply->second.reason, contains(reason));
    while (victim->next_received()) {
    }
    require_free(*victim);
  }
};
}  // namespace

TEST_CASE("An offer that contradicts itself or asks for too much is refused", "[transfer]") {
  Attack a;
  const auto refused = [&](auto change, std::size_t body, transfer::Outcome outcome, const char* reason) {
    OfferRecord record = a.wire.record(10);
    change(record);
    a.wire.say(a.wire.offer_of(5, record), body);
    a.expect(MessageKind::refuse, outcome, reason);
  };
  using O = OfferRecord&;
  const auto contradicts = transfer::Outcome::broken;
  refused([](O r) { r.length = 0; }, 0, contradicts, "contradict");
  refused([](O r) { r.length = -1; }, 0, contradicts, "contradict");
  refused([](O r) { r.tokens = 9; }, 36, contradicts, "contradict");
  refused([](O r) { r.tokens = 10; }, 36, contradicts, "contradict");
  refused(
      [](O r) {
        r.tokens = 10;
        r.salt_bytes = 4;
      },
      40, contradicts, "contradict");
  refused([](O r) { r.salt_bytes = 1U << 31; }, 40, contradicts, "contradict");
  refused([](O r) { r.salt_bytes = 5; }, 5, contradicts, "salt");
  refused([](O) {}, 1, contradicts, "contradict");
  refused([](O r) { r.length = max_pos; }, 0, transfer::Outcome::never_fits, "more than this pool");
  refused([](O r) { r.length = 65; }, 0, transfer::Outcome::never_fits, "more than this pool");
  refused([](O r) { r.description.block_tokens = 0; }, 0, transfer::Outcome::incompatible, "block_tokens");
  refused([](O r) { r.description.layout[0] = 'x'; }, 0, transfer::Outcome::incompatible, "xead-major");
  refused([](O r) { r.description.element.fill('\n'); }, 0, transfer::Outcome::incompatible, "found ....");
  refused([](O r) { r.description.key_row_bytes = ~std::uint64_t{0}; }, 0, transfer::Outcome::incompatible, "of a key");
  const HeadWriter whole = a.wire.offer_of(5, a.wire.record(10));
  std::vector<std::byte> head(whole.bytes().begin(), whole.bytes().begin() + 60);
  a.wire.say(head);
  a.expect(MessageKind::refuse, transfer::Outcome::broken, "too short");
  head[4] = std::byte{9};
  a.wire.say(head);
  a.expect(MessageKind::refuse, transfer::Outcome::incompatible, "expected version 1, found 9");
}

TEST_CASE("Rows that are not the next ones end their transfer", "[transfer]") {
  Attack a;
  const auto aborted = [&](const HeadWriter& head, std::size_t body, const char* reason) {
    a.open(7);
    a.wire.say(Wire::rows(7, 0, 0, 3), 3 * Wire::token);
    (void)a.victim->poll();
    REQUIRE(!a.wire.reply());
    a.wire.say(head, body);
    a.expect(MessageKind::abort, transfer::Outcome::broken, reason);
  };
  constexpr std::size_t token = Wire::token;
  aborted(Wire::rows(7, -1, 0, 3), 3 * token, "a layer that does not exist");
  aborted(Wire::rows(7, 2, 0, 3), 3 * token, "a layer that does not exist");
  aborted(Wire::rows(7, 0, 0, 3), 3 * token, "expected 3, found 0 to 3");
  aborted(Wire::rows(7, 0, 4, 5), token, "expected 3, found 4 to 5");
  aborted(Wire::rows(7, 0, 3, 3), 0, "found 3 to 3");
  aborted(Wire::rows(7, 0, 3, 2), token, "found 3 to 2");
  aborted(Wire::rows(7, 0, 3, 11), 8 * token, "found 3 to 11");
  aborted(Wire::rows(7, 0, 3, max_pos), 8 * token, "found 3 to");
  aborted(Wire::rows(7, 0, 3, 10), 6 * token, "another size");
  aborted(Wire::rows(7, 0, 3, 10), 7 * token + 1, "another size");
  aborted(Wire::rows(7, 0, 3, 10), 0, "another size");
  aborted(HeadWriter(MessageKind::rows, 7), 0, "a layer that does not exist");
  aborted(HeadWriter(MessageKind::end, 7), 0, "without all rows of layer 0");
  aborted(HeadWriter(MessageKind::done, 7), 0, "out of turn");
  aborted(HeadWriter(static_cast<MessageKind>(99), 7), 10, "out of turn");
  aborted(a.wire.offer_of(7, a.wire.record(3)), 0, "offered twice");
}

TEST_CASE("Messages about no transfer are ignored", "[transfer]") {
  Attack a;
  a.wire.say(Wire::rows(1, 0, 0, 3), 3 * Wire::token);
  a.wire.say(HeadWriter(MessageKind::end, 1));
  a.wire.say(HeadWriter(MessageKind::cancel, 1));
  a.wire.say(std::span<const std::byte>(), 100);
  a.wire.say(std::vector<std::byte>(512, std::byte{0xff}), 100);
  a.wire.say(HeadWriter(MessageKind::accept, 1), 0, transfer::reply_channel);
  a.wire.say(HeadWriter(MessageKind::done, 1), 77, transfer::reply_channel);
  a.wire.say(std::span<const std::byte>(), 100, transfer::reply_channel);
  run(*a.victim);
  REQUIRE(!a.wire.reply());
  REQUIRE(!a.victim->next_received());
  require_free(*a.victim);
}

TEST_CASE("A peer that reads no replies cannot fill the memory of the receiver with them", "[transfer]") {
  Attack a;
  constexpr int offers = 3000;
  for (int i = 0; i < offers; ++i) {
    a.wire.say(a.wire.offer_of(static_cast<transfer::Id>(i), a.wire.record(0)));
    (void)a.victim->poll();
  }
  int replies = 0;
  for (bool any = true; any; (void)a.victim->poll()) {
    any = false;
    while (a.wire.reply()) {
      ++replies;
      any = true;
    }
  }
  REQUIRE(replies >= Outbox<transport::InProcess::Endpoint>::most_waiting);
  REQUIRE(replies < offers);
  require_free(*a.victim);
  a.open(offers);  // who reads again is answered again
}

TEST_CASE("An invalid reply ends its transfer", "[transfer]") {
  Attack a;
  const Tokens prompt = counting(1, 10);
  const SeqId seq = a.victim->cache().serve(prompt);
  const auto broken = [&](auto answer) {
    const transfer::Id id = a.victim->send(1, seq, prompt);
    REQUIRE(a.wire.endpoint.poll(transfer::data_channel));
    answer(id);
    (void)a.victim->poll();
    (void)expect_sent(*a.victim, transfer::Outcome::broken);
    bool cancelled = false;
    while (const auto arrival = a.wire.endpoint.poll(transfer::data_channel)) {
      HeadReader in(arrival->head());
      cancelled = in.take<MessageHead>()->kind == MessageKind::cancel;
    }
    return cancelled;
  };
  const auto accept = [&](transfer::Id id, std::int32_t first) {
    a.wire.say(HeadWriter(MessageKind::accept, id).add(AcceptRecord{first, 0}), 0, transfer::reply_channel);
  };
  REQUIRE(broken([&](transfer::Id id) { accept(id, 10); }));
  REQUIRE(broken([&](transfer::Id id) { accept(id, -1); }));
  REQUIRE(
      broken([&](transfer::Id id) { a.wire.say(HeadWriter(MessageKind::accept, id), 0, transfer::reply_channel); }));
  REQUIRE(broken([&](transfer::Id id) { a.wire.say(HeadWriter(MessageKind::done, id), 0, transfer::reply_channel); }));
  REQUIRE(broken([&](transfer::Id id) {
    accept(id, 3);
    accept(id, 3);
  }));
  REQUIRE(
      !broken([&](transfer::Id id) { a.wire.say(HeadWriter(MessageKind::abort, id), 0, transfer::reply_channel); }));
  a.victim->cache().close(seq);
  require_free(*a.victim);
}

TEST_CASE("END is sent after all rows have left, and not before", "[transfer]") {
  Attack a;
  const Tokens prompt = counting(1, 10);
  const SeqId seq = a.victim->cache().serve(prompt);
  const transfer::Id id = a.victim->send(1, seq, prompt);
  REQUIRE(a.wire.endpoint.poll(transfer::data_channel));
  a.wire.say(HeadWriter(MessageKind::accept, id).add(AcceptRecord{0, 0}), 0, transfer::reply_channel);
  std::vector<transport::InProcess::Endpoint::Arrival> rows;  // polled, and not accepted yet
  for (int poll = 0; poll < 3; ++poll) {
    (void)a.victim->poll();
    while (auto arrival = a.wire.endpoint.poll(transfer::data_channel)) {
      HeadReader in(arrival->head());
      REQUIRE(in.take<MessageHead>()->kind == MessageKind::rows);
      rows.push_back(std::move(*arrival));
    }
  }
  REQUIRE(rows.size() == 2);  // one of each layer
  rows.clear();
  (void)a.victim->poll();
  const auto end = a.wire.endpoint.poll(transfer::data_channel);
  REQUIRE(end);
  HeadReader in(end->head());
  REQUIRE(in.take<MessageHead>()->kind == MessageKind::end);
}

TEST_CASE("A cache without layer groups speaks version 1, and nothing else", "[transfer]") {
  Attack a;
  const Tokens prompt = counting(1, 10);
  const SeqId seq = a.victim->cache().serve(prompt);
  const transfer::Id id = a.victim->send(1, seq, prompt);
  const auto expect = [&](MessageKind kind, transport::Channel channel, std::size_t record, std::uint64_t body) {
    const auto message = a.wire.endpoint.poll(channel);
    REQUIRE(message);
    const MessageHead head = HeadReader(message->head()).take<MessageHead>().value();
    REQUIRE(head.kind == kind);
    REQUIRE(head.major == 1);
    REQUIRE(head.minor == 0);
    REQUIRE(message->head().size() == sizeof(MessageHead) + record);
    REQUIRE(message->body_bytes() == body);
  };
  expect(MessageKind::offer, transfer::data_channel, 152, 10 * sizeof(Token));
  a.wire.say(HeadWriter(MessageKind::accept, id).add(AcceptRecord{4, 0}), 0, transfer::reply_channel);
  (void)a.victim->poll();
  expect(MessageKind::rows, transfer::data_channel, 16, 6 * Wire::token);
  expect(MessageKind::rows, transfer::data_channel, 16, 6 * Wire::token);
  (void)a.victim->poll();
  expect(MessageKind::end, transfer::data_channel, 0, 0);
  a.wire.say(HeadWriter(MessageKind::done, id), 0, transfer::reply_channel);
  (void)a.victim->poll();
  (void)expect_sent(*a.victim, transfer::Outcome::complete);

  a.wire.say(a.wire.offer_of(2, a.wire.record(3)));
  (void)a.victim->poll();
  expect(MessageKind::accept, transfer::reply_channel, 8, 0);
  for (const int layer : {0, 1}) {
    a.wire.say(Wire::rows(2, layer, 0, 3), 3 * Wire::token);
  }
  a.wire.say(HeadWriter(MessageKind::end, 2));
  (void)a.victim->poll();
  expect(MessageKind::done, transfer::reply_channel, 0, 0);
  a.victim->cache().close(expect_received(*a.victim, transfer::Outcome::complete).seq);
  a.victim->cache().close(seq);
  require_free(*a.victim);
}

TEST_CASE("A peer cannot interfere with the transfer of another peer", "[transfer]") {
  transport::InProcess hub({.peers = 3});
  const auto victim = make_engine<float, Prefix4>(hub, 0, 64);
  Wire owner(hub, 1);
  Wire other(hub, 2);
  owner.say(owner.offer_of(1, owner.record(4)));
  (void)victim->poll();
  other.say(Wire::rows(1, 0, 0, 4), 4 * Wire::token);
  other.say(HeadWriter(MessageKind::cancel, 1));
  owner.say(Wire::rows(1, 0, 0, 4), 4 * Wire::token);
  owner.say(Wire::rows(1, 1, 0, 4), 4 * Wire::token);
  owner.say(HeadWriter(MessageKind::end, 1));
  (void)victim->poll();
  victim->cache().close(expect_received(*victim, transfer::Outcome::complete).seq);
  require_free(*victim);
}

TEST_CASE("Random changes to messages leave the receiver whole", "[transfer]") {
  Random random(seed_or(20));
  for (int round = 0; round < operations_or(40'000) / 100; ++round) {
    Attack a;
    const auto say = [&](const HeadWriter& head, std::size_t body) {
      std::vector<std::byte> bytes(head.bytes().begin(), head.bytes().end());
      while (random.one_in(3)) {
        bytes[random.between<std::size_t>(0, bytes.size() - 1)] = static_cast<std::byte>(random.between(0, 255));
      }
      if (random.one_in(10)) {
        bytes.resize(random.between<std::size_t>(0, bytes.size()));
      }
      a.wire.say(bytes, random.one_in(10) ? random.between<std::size_t>(0, 2000) : body);
      if (random.one_in(2)) {
        (void)a.victim->poll();
      }
    };
    for (transfer::Id id = 1; id < 4; ++id) {
      OfferRecord record = a.wire.record(random.between(1, 20));
      record.tokens = random.one_in(2) ? record.length : 0;
      say(a.wire.offer_of(id, record), static_cast<std::size_t>(record.tokens) * sizeof(Token));
      (void)a.victim->poll();
      for (int layer = 0; layer < 2; ++layer) {
        const int middle = random.between(0, record.length);
        say(Wire::rows(id, layer, 0, middle), static_cast<std::size_t>(middle) * Wire::token);
        say(Wire::rows(id, layer, middle, record.length),
            static_cast<std::size_t>(record.length - middle) * Wire::token);
      }
      say(HeadWriter(MessageKind::end, id), 0);
      (void)a.victim->poll();
      a.victim->cache().verify();
    }
    a.wire.endpoint.drop(0);
    run(*a.victim);
    while (const auto got = a.victim->next_received()) {
      if (got->outcome == transfer::Outcome::complete) {
        a.victim->cache().close(got->seq);
      }
    }
    require_free(*a.victim);
  }
}
