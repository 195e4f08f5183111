// Layers and chunks travel while the next ones are computed, and positions that the receiver has are not sent.
#include <vector>

#include "random_source.hpp"
#include "transfer/engine.hpp"

namespace {
using namespace kvc;
using namespace kvc_test;
using Matrix = Eigen::Matrix<float, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;

constexpr Shape shape{.layers = 3, .kv_heads = 2, .key_dim = 4, .value_dim = 3};
constexpr std::uint64_t layer_token_bytes = 2 * (4 + 3) * sizeof(float);

/// The rows of one layer: functions of layer and position only.
Matrix rows(Index layer, PosRange range, Index columns) {
  Matrix m(range.size(), columns);
  for (Index i = 0; i < m.rows(); ++i) {
    for (Index c = 0; c < columns; ++c) {
      m(i, c) = static_cast<float>(10000 * layer + 100 * (range.first + i) + c);
    }
  }
  return m;
}
template <class Cache>
void write(Cache& cache, Index layer, const typename Cache::Append& step) {
  cache.write(layer, step, rows(layer, step.range(), 8), rows(layer, step.range(), 6));
}
template <class Cache>
void check(const Cache& cache, SeqId seq, Pos length) {
  REQUIRE(cache.length(seq) == length);
  for (Index layer = 0; layer < shape.layers; ++layer) {
    Matrix k(length, 8);
    Matrix v(length, 6);
    cache.gather(layer, seq, {0, length}, k, v);
    REQUIRE((k == rows(layer, {0, length}, 8)));
    REQUIRE((v == rows(layer, {0, length}, 6)));
  }
}
using Prefill = Engine<float, PrefixShared<Lru, SeededHash>>;
using Decode = Engine<float, Paged, TokenMajor>;
}  // namespace

TEST_CASE("A layer is sent as soon as it is written, before the next one is written", "[transfer]") {
  transport::InProcess hub({});
  Prefill a(hub, 0, {.blocks = 16, .block_tokens = 4}, small_messages, {}, shape);
  Decode b(hub, 1, {.blocks = 16, .block_tokens = 5}, small_messages, {}, shape);
  const Tokens prompt = counting(1, 18);
  const SeqId seq = a.kv().open(prompt).seq;
  auto step = a.kv().extend(seq, prompt);
  transfer::Offer offer;
  offer.to = 1;
  offer.seq = seq;
  offer.tokens = prompt;
  const transfer::Id id = a.offer(offer);
  run(a, b);
  for (const Index layer : {1, 0, 2}) {  // in the order of computing
    write(a.kv(), layer, step);
    a.ready(id, layer, 18);
    REQUIRE(a.in_flight(id) > 0);
    run(a, b);
    REQUIRE(a.in_flight(id) == 0);
    REQUIRE(b.kv().stats().tokens_stored == 0);  // not committed
    // The rows have been received: overwriting them here changes nothing there.
    a.kv().policy().for_each_run(seq, {0, 18}, [&](const SlotRun& run) {
      for (Index head = 0; head < 2; ++head) {
        for (Pos i = 0; i < run.count; ++i) {
          std::fill_n(a.kv().data() + a.kv().layout().k(run.block, layer, head, run.offset + i), 4, -1.0F);
        }
      }
    });
  }
  a.finish(id);
  run(a, b);
  const transfer::Received got = expect_received(b, transfer::Outcome::complete);
  check(b.kv(), got.seq, 18);
  a.kv().commit(std::move(step));
  a.kv().close(expect_sent(a, transfer::Outcome::complete).seq);
  b.kv().close(got.seq);
  require_free(a);
  require_free(b);
}

TEST_CASE("A prompt that is computed in chunks is sent in chunks", "[transfer]") {
  transport::InProcess hub({});
  Prefill a(hub, 0, {.blocks = 16, .block_tokens = 4}, small_messages, {}, shape);
  Decode b(hub, 1, {.blocks = 16, .block_tokens = 5}, small_messages, {}, shape);
  const Tokens prompt = counting(1, 23);
  const SeqId seq = a.kv().open(prompt).seq;
  transfer::Offer offer;
  offer.to = 1;
  offer.seq = seq;
  offer.tokens = prompt;
  offer.length = 23;
  const transfer::Id id = a.offer(offer);
  Pos done = 0;
  for (const int chunk : {10, 6, 7}) {
    auto step =
        a.kv().extend(seq, std::span(prompt).subspan(static_cast<std::size_t>(done), static_cast<std::size_t>(chunk)));
    done += chunk;
    REQUIRE_THROWS_WITH(a.ready(id, 0, done + 1), contains("last is"));
    if (done < 23) {
      REQUIRE_THROWS_WITH(a.finish(id), contains("all positions"));
    }
    for (Index layer = 0; layer < shape.layers; ++layer) {
      write(a.kv(), layer, step);
      a.ready(id, layer, done);
    }
    run(a, b);
    REQUIRE(a.in_flight(id) == 0);
    a.kv().commit(std::move(step));
  }
  a.finish(id);
  run(a, b);
  check(b.kv(), expect_received(b, transfer::Outcome::complete).seq, 23);
}

TEST_CASE("Only positions that the receiver lacks are sent", "[transfer]") {
  transport::InProcess hub({});
  Prefill a(hub, 0, {.blocks = 40, .block_tokens = 4}, small_messages, {}, shape);
  Prefill b(hub, 1, {.blocks = 40, .block_tokens = 8}, small_messages, {}, shape);
  const auto compute = [&](Prefill& at, const Tokens& prompt) {
    const Opened opened = at.kv().open(prompt);
    auto step = at.kv().extend(opened.seq, std::span(prompt).subspan(static_cast<std::size_t>(opened.cached)));
    for (Index layer = 0; layer < shape.layers; ++layer) {
      write(at.kv(), layer, step);
    }
    at.kv().commit(std::move(step));
    return opened.seq;
  };
  const auto bytes_for = [&](const Tokens& prompt, Pos expected_cached, const Salt& salt = {}) {
    const SeqId seq = compute(a, prompt);
    (void)a.send(1, seq, prompt, salt);
    run(a, b);
    const transfer::Sent sent = expect_sent(a, transfer::Outcome::complete);
    const transfer::Received got = expect_received(b, transfer::Outcome::complete);
    REQUIRE(sent.cached == expected_cached);
    REQUIRE(got.cached == expected_cached);
    REQUIRE(got.bytes == sent.bytes);
    check(b.kv(), got.seq, static_cast<Pos>(prompt.size()));
    b.kv().verify();
    b.kv().close(got.seq);
    a.kv().close(seq);
    return sent.bytes;
  };
  const auto rest = [](Pos positions) { return static_cast<std::uint64_t>(positions) * 3 * layer_token_bytes; };
  const Tokens system = counting(1, 24);
  Tokens first = system;
  first.insert(first.end(), {100, 101, 102});
  Tokens second = system;
  second.insert(second.end(), {200, 201});
  Tokens half = counting(1, 20);  // differs from the middle of a block on, whose rows are copied
  half.insert(half.end(), {300, 301});
  REQUIRE(bytes_for(first, 0) == rest(27));
  REQUIRE(bytes_for(second, 24) == rest(2));
  REQUIRE(bytes_for(system, 23) == rest(1));  // at least one token is sent
  REQUIRE(bytes_for(half, 20) == rest(2));
  REQUIRE(bytes_for(first, 0, Salt(SaltKind::tenant, "b")) == rest(27));
}

TEST_CASE("Several transfers take turns on one connection, and a window of one message is enough", "[transfer]") {
  transport::InProcess hub({.peers = 2, .channels = 2, .window_messages = 1, .window_bytes = 1});
  Prefill a(hub, 0, {.blocks = 64, .block_tokens = 4}, small_messages, {}, shape);
  Decode b(hub, 1, {.blocks = 64, .block_tokens = 4}, small_messages, {}, shape);
  std::vector<SeqId> sequences;
  for (int i = 0; i < 3; ++i) {
    const SeqId seq = a.kv().open();
    auto step = a.kv().extend_without_tokens(seq, 20);
    for (Index layer = 0; layer < shape.layers; ++layer) {
      write(a.kv(), layer, step);
    }
    a.kv().commit(std::move(step));
    (void)a.send(1, seq, {}, {}, static_cast<std::uint64_t>(i));
  }
  run(a, b);
  for (int i = 0; i < 3; ++i) {
    (void)expect_sent(a, transfer::Outcome::complete);
    check(b.kv(), expect_received(b, transfer::Outcome::complete).seq, 20);
  }
}
