// A failure ends its own transfer only: the other side learns of it, both free their blocks, and other transfers
// finish.
#include <memory>
#include <vector>

#include "transfer/engine.hpp"

namespace {
using namespace kvc;
using namespace kvc_test;

/// A sender and a receiver in the middle of two transfers: request 1, which will fail, and request 2.
struct Pair {
  transport::InProcess hub;
  std::unique_ptr<AnyEngine> a;
  std::unique_ptr<AnyEngine> b;
  Tokens prompt = counting(1, 30);
  Tokens other = counting(500, 21);
  SeqId seq;
  SeqId other_seq;
  transfer::Id id = 0;
  transfer::Id other_id = 0;

  explicit Pair(transport::InProcess::Config config = {.peers = 2, .channels = 2, .window_messages = 4},
                transfer::ReceiverOptions receiving = {.timeout = std::chrono::hours(1)})
      : hub(config),
        a(make_engine<float, Paged4>(hub, 0, 256, small_messages, receiving)),
        b(make_engine<float, Prefix4>(hub, 1, 256, small_messages, receiving)) {
    seq = a->cache().serve(prompt);
    other_seq = a->cache().serve(other);
    id = a->send(1, seq, prompt, {}, 1);
    other_id = a->send(1, other_seq, other, {}, 2);
    (void)b->poll();
    (void)a->poll();  // the window is full of rows
    (void)b->poll();
    (void)a->poll();
    REQUIRE(b->cache().stats().blocks_referenced > 0);
    REQUIRE(a->transfers() == 2);
    REQUIRE(b->transfers() == 2);
  }
  /// The other transfer completes, and nothing is left of the first.
  void finish(transfer::Outcome at_sender, transfer::Outcome at_receiver) {
    run(*a, *b);
    const auto take_all = [&](auto next, transfer::Outcome expected) {
      int count = 0;
      while (auto over = next()) {
        ++count;
        INFO("request " << over->request << ": " << over->reason);
        REQUIRE(to_text(over->outcome) == to_text(over->request == 1 ? expected : transfer::Outcome::complete));
        if constexpr (requires { over->payload; }) {
          if (over->outcome == transfer::Outcome::complete) {
            REQUIRE((b->cache().rows(over->seq) == b->cache().rows_of(values_of(other))));
            b->cache().close(over->seq);
          }
        }
      }
      REQUIRE(count == 2);
    };
    take_all([&] { return a->next_sent(); }, at_sender);
    take_all([&] { return b->next_received(); }, at_receiver);
    Tokens longer = prompt;
    longer.push_back(1);
    REQUIRE(b->cache().match_length(longer, {}) == 0);
    a->cache().close(seq);
    a->cache().close(other_seq);
    require_free(*a);
    require_free(*b);
  }
};
constexpr transport::TimePoint far_future = transport::TimePoint::max() - std::chrono::seconds(1);
}  // namespace

TEST_CASE("A transfer can be cancelled by its sender, and others go on", "[transfer]") {
  Pair pair;
  pair.a->cancel_sending(pair.id);
  pair.a->cancel_sending(pair.id);  // has ended
  pair.finish(transfer::Outcome::cancelled, transfer::Outcome::cancelled);
}

TEST_CASE("A transfer can be cancelled by its receiver, and others go on", "[transfer]") {
  Pair pair;
  pair.b->cancel_receiving(0, 1);
  pair.b->cancel_receiving(0, 1);
  pair.finish(transfer::Outcome::cancelled, transfer::Outcome::cancelled);
}

TEST_CASE("A transfer ends at its deadline", "[transfer]") {
  transport::InProcess hub({});
  const auto a = make_engine<float, Paged4>(hub, 0, 256, small_messages);
  const auto b = make_engine<float, Paged4>(hub, 1, 256, small_messages);
  const SeqId seq = a->cache().serve(counting(1, 30));
  transfer::Offer offer;
  offer.to = 1;
  offer.seq = seq;
  offer.deadline = now() + std::chrono::hours(2);
  (void)a->offer(offer);
  (void)b->poll();
  (void)a->poll();
  (void)b->poll();
  REQUIRE(b->cache().stats().blocks_referenced > 0);
  (void)a->poll_sender(offer.deadline - std::chrono::seconds(1));
  REQUIRE(a->transfers() == 1);
  (void)a->poll_sender(offer.deadline);
  REQUIRE_THROWS_WITH(transfer::require_complete(expect_sent(*a, transfer::Outcome::timed_out)),
                      contains("timed out: its deadline has passed"));
  (void)b->poll();
  (void)expect_received(*b, transfer::Outcome::cancelled);
  a->cache().close(seq);
  require_free(*a);
  require_free(*b);
}

TEST_CASE("A stalled receiver is given up, but not while the sender computes", "[transfer]") {
  Pair pair;
  (void)pair.a->poll_sender(now());
  REQUIRE(pair.a->transfers() == 2);
  (void)pair.a->poll_sender(far_future);
  REQUIRE(pair.a->transfers() == 0);
  (void)expect_sent(*pair.a, transfer::Outcome::timed_out);
  (void)expect_sent(*pair.a, transfer::Outcome::timed_out);
  pair.a->cache().close(pair.seq);
  pair.a->cache().close(pair.other_seq);
  require_free(*pair.a);
  // It continues, and finds that it was given up.
  run(*pair.a, *pair.b);
  (void)expect_received(*pair.b, transfer::Outcome::cancelled);
  (void)expect_received(*pair.b, transfer::Outcome::cancelled);
  require_free(*pair.b);

  const SeqId seq = pair.a->cache().serve(counting(1, 9));
  transfer::Offer offer;
  offer.to = 1;
  offer.seq = seq;
  offer.length = 20;
  (void)pair.a->offer(offer);
  run(*pair.a, *pair.b);
  (void)pair.a->poll_sender(now() + std::chrono::hours(100));  // everything that is ready was sent
  (void)pair.a->poll_sender(now() + std::chrono::hours(200));
  REQUIRE(pair.a->transfers() == 1);
}

TEST_CASE("A stalled sender is given up", "[transfer]") {
  Pair pair;
  while (pair.b->poll_receiver()) {
  }
  REQUIRE(pair.b->transfers() == 2);
  (void)pair.b->poll_receiver(far_future);
  (void)expect_received(*pair.b, transfer::Outcome::timed_out);
  (void)expect_received(*pair.b, transfer::Outcome::timed_out);
  require_free(*pair.b);
  run(*pair.a, *pair.b);
  (void)expect_sent(*pair.a, transfer::Outcome::timed_out);
  (void)expect_sent(*pair.a, transfer::Outcome::timed_out);
  REQUIRE(pair.a->transfers() == 0);
}

TEST_CASE("A lost receiver is noticed, and other receivers get their sequences", "[transfer]") {
  transport::InProcess hub({.peers = 3, .channels = 2, .window_messages = 2});
  const auto a = make_engine<float, Prefix4>(hub, 0, 256, small_messages);
  auto b = make_engine<float, Paged4>(hub, 1, 256, small_messages);
  const auto c = make_engine<float, Paged4>(hub, 2, 256, small_messages);
  const Tokens prompt = counting(1, 30);
  const SeqId seq = a->cache().serve(prompt);
  (void)a->send(1, seq, prompt, {}, 1);
  (void)a->send(2, seq, prompt, {}, 2);
  (void)b->poll();
  (void)a->poll();
  (void)b->poll();
  (void)a->poll();
  REQUIRE(b->cache().stats().blocks_referenced > 0);
  die(b);
  run(*a, *c);
  REQUIRE(expect_sent(*a, transfer::Outcome::peer_lost).to == 1);
  REQUIRE(expect_sent(*a, transfer::Outcome::complete).to == 2);
  c->cache().close(expect_received(*c, transfer::Outcome::complete).seq);
  (void)a->send(1, seq, prompt);
  run(*a, *c);
  (void)expect_sent(*a, transfer::Outcome::peer_lost);
  a->cache().close(seq);
  require_free(*a);
  require_free(*c);
}

TEST_CASE("A lost sender is noticed, and other senders finish", "[transfer]") {
  transport::InProcess hub({.peers = 3, .channels = 2, .window_messages = 2});
  auto a = make_engine<float, Paged4>(hub, 0, 256, small_messages);
  const auto b = make_engine<float, Prefix4>(hub, 1, 256, small_messages);
  auto c = make_engine<float, Paged4>(hub, 2, 256, small_messages);
  const Tokens prompt = counting(1, 30);
  for (AnyEngine* sender : {a.get(), c.get()}) {
    (void)sender->send(1, sender->cache().serve(prompt), prompt);
  }
  for (int i = 0; i < 2; ++i) {
    (void)b->poll();
    (void)a->poll();
    (void)c->poll();
  }
  REQUIRE(b->transfers() == 2);
  die(a);
  run(*b, *c);
  REQUIRE(expect_received(*b, transfer::Outcome::peer_lost).from == 0);
  const transfer::Received got = expect_received(*b, transfer::Outcome::complete);
  REQUIRE(got.from == 2);
  REQUIRE((b->cache().rows(got.seq) == b->cache().rows_of(values_of(prompt))));
  b->cache().close(got.seq);
  require_free(*b);
}

TEST_CASE("A sender or a receiver that is destroyed cancels its transfers", "[transfer]") {
  Pair pair;
  pair.b.reset();
  run(*pair.a);
  REQUIRE(expect_sent(*pair.a, transfer::Outcome::cancelled).reason == "the receiver has gone");
  Pair another;
  another.a.reset();
  run(*another.b);
  (void)expect_received(*another.b, transfer::Outcome::cancelled);
  require_free(*another.b);
}

TEST_CASE("The last messages of a lost peer still count", "[transfer]") {
  transport::InProcess hub({});
  const auto a = make_engine<float, Paged4>(hub, 0);
  auto b = make_engine<float, Paged4>(hub, 1);
  const SeqId seq = a->cache().serve(counting(1, 30));
  (void)a->send(1, seq, {});
  while (!b->next_received()) {
    (void)a->poll();
    (void)b->poll();
  }
  b.reset();  // after it has said DONE
  run(*a);
  (void)expect_sent(*a, transfer::Outcome::complete);
}

TEST_CASE("A full pool refuses a sequence, and takes it later", "[transfer]") {
  const auto check = [](auto make) {
    transport::InProcess hub({});
    const auto a = make_engine<float, Paged4>(hub, 0);
    const std::unique_ptr<AnyEngine> b = make(hub);
    INFO(b->cache().name());
    const Tokens prompt = counting(1, 30);
    const SeqId seq = a->cache().serve(prompt);
    const SeqId holder = b->cache().serve(counting(900, 20));
    const Seen before(b->cache());
    (void)a->send(1, seq, prompt);
    run(*a, *b);
    const transfer::Sent refused = expect_sent(*a, transfer::Outcome::no_room);
    REQUIRE(refused.reason == "for 30 positions");
    REQUIRE(refused.bytes == 0);
    REQUIRE(!b->next_received());
    b->cache().verify();
    REQUIRE(Seen(b->cache()) == before);
    b->cache().close(holder);
    (void)a->send(1, seq, prompt);
    run(*a, *b);
    (void)expect_sent(*a, transfer::Outcome::complete);
    b->cache().close(expect_received(*b, transfer::Outcome::complete).seq);
    // And one that it can never hold.
    const Tokens longest = counting(2000, 60);
    const SeqId long_seq = a->cache().serve(longest);
    (void)a->send(1, long_seq, longest);
    run(*a, *b);
    (void)expect_sent(*a, transfer::Outcome::never_fits);
    require_free(*b);
  };
  check([](transport::InProcess& hub) { return make_engine<float, Paged4>(hub, 1, 44); });
  check([](transport::InProcess& hub) { return make_engine<float, Prefix4>(hub, 1, 44); });
  check([](transport::InProcess& hub) { return make_engine<float, GrowFirst>(hub, 1, 44); });
}

TEST_CASE("A receiver can demand room for tokens to decode, and limits its transfers", "[transfer]") {
  transport::InProcess hub({});
  const auto a = make_engine<float, Paged4>(hub, 0);
  const auto b = make_engine<float, Prefix4>(hub, 1, 44, {}, {.transfers = 1, .reserve_tokens = 15});
  const SeqId seq = a->cache().serve(counting(1, 30));
  (void)a->send(1, seq, counting(1, 30));
  run(*a, *b);
  (void)expect_sent(*a, transfer::Outcome::never_fits);
  const SeqId shorter = a->cache().serve(counting(1, 12));
  transfer::Offer offer;
  offer.to = 1;
  offer.seq = shorter;
  const transfer::Id id = a->offer(offer);
  run(*a, *b);
  (void)a->send(1, shorter, {});
  run(*a, *b);
  REQUIRE(expect_sent(*a, transfer::Outcome::busy).reason == "1 transfers are in progress");
  a->finish(id);
  run(*a, *b);
  (void)expect_sent(*a, transfer::Outcome::complete);
}

TEST_CASE("Incompatible caches are recognised, and the sender learns why", "[transfer]") {
  const auto check = [](auto make, const char* expected) {
    transport::InProcess hub({});
    const auto a = make_engine<float, Paged4>(hub, 0);
    const std::unique_ptr<AnyEngine> b = make(hub);
    const SeqId seq = a->cache().serve(counting(1, 30));
    (void)a->send(1, seq, {});
    run(*a, *b);
    const transfer::Sent sent = expect_sent(*a, transfer::Outcome::incompatible);
    REQUIRE(sent.reason == expected);
    REQUIRE_THROWS_AS(transfer::require_complete(sent), FormatError);
    require_free(*b);
  };
  check([](transport::InProcess& hub) { return make_engine<Eigen::half, Paged4>(hub, 1); },
        "expected elements f16, found f32");
  const auto shaped = [&](Shape shape, const char* expected) {
    check([&](transport::InProcess& hub) { return make_engine<float, Paged4>(hub, 1, 256, {}, {}, shape); }, expected);
  };
  shaped({.layers = 4, .kv_heads = 3, .key_dim = 5, .value_dim = 3}, "expected layers 4, found 2");
  shaped({.layers = 2, .kv_heads = 1, .key_dim = 5, .value_dim = 3}, "expected kv_heads 1, found 3");
  shaped({.layers = 2, .kv_heads = 3, .key_dim = 6, .value_dim = 3}, "expected key_dim 6, found 5");
  shaped({.layers = 2, .kv_heads = 3, .key_dim = 5, .value_dim = 5}, "expected value_dim 5, found 3");
}

TEST_CASE("Invalid offers are refused before anything is sent", "[transfer]") {
  transport::InProcess hub({});
  const auto a = make_engine<float, Paged4>(hub, 0);
  const SeqId seq = a->cache().serve(counting(1, 5));
  transfer::Offer offer;
  offer.to = 2;
  offer.seq = seq;
  REQUIRE_THROWS_WITH(a->offer(offer), contains("offer.to is 2"));
  offer.to = 1;
  const Tokens tokens = counting(1, 4);
  offer.tokens = tokens;
  REQUIRE_THROWS_WITH(a->offer(offer), contains("offer.tokens.size() is 4"));
  offer.seq = a->cache().try_open({}, {})->seq;
  offer.tokens = {};
  REQUIRE_THROWS_WITH(a->offer(offer), contains("offer.length is 0"));
  a->cache().close(offer.seq);
  REQUIRE_THROWS_WITH(a->offer(offer), contains("offer.seq is"));
  REQUIRE(a->transfers() == 0);
}
