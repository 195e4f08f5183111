// Engines in threads of their own that send, receive, cancel and stop.
#include <atomic>
#include <map>
#include <memory>
#include <stdexcept>
#include <thread>
#include <vector>

#include "random_source.hpp"
#include "transfer/engine.hpp"

namespace {
using namespace kvc;
using namespace kvc_test;

constexpr int requests = 40;

/// One prompt of a request: some begin alike.
Tokens prompt_of(std::uint64_t request) {
  Random random(request);
  Tokens tokens = counting(random.between(1, 3) * 1000, random.between(0, 12));
  const Tokens own = counting(static_cast<Token>(request * 100 + 10000), random.between(1, 30));
  tokens.insert(tokens.end(), own.begin(), own.end());
  return tokens;
}

/// AnyCache::serve without assertions: those of Catch2 are not thread-safe.
SeqId compute(AnyCache& cache, const Tokens& prompt) {
  const Opened opened = cache.try_open(prompt, {}).value();
  const Values values = values_of(prompt);
  if (!cache.append(opened.seq, {prompt.begin() + opened.cached, prompt.end()},
                    {values.begin() + opened.cached, values.end()})) {
    throw std::runtime_error("the pool is too small for this test");
  }
  return opened.seq;
}

/// Sends all requests to the peers `to` in turn; sends refused ones again.
void prefill(AnyEngine& engine, std::uint64_t first_request, const std::vector<transport::Peer>& to,
             std::atomic<int>& cancelled) {
  Random random(first_request + 1);
  std::map<std::uint64_t, SeqId> open;
  std::uint64_t begun = 0;
  int over = 0;
  const auto begin = [&](std::uint64_t request) {
    const Tokens prompt = prompt_of(request);
    const transfer::Id id = engine.send(to[request % to.size()], open.at(request), prompt, {}, request);
    if (random.one_in(10)) {
      engine.cancel_sending(id);
    }
  };
  while (over < requests) {
    while (begun < requests && open.size() < 4) {
      const std::uint64_t request = first_request + begun++;
      open[request] = compute(engine.cache(), prompt_of(request));
      begin(request);
    }
    const bool any = engine.poll();
    while (const auto sent = engine.next_sent()) {
      if (sent->outcome == transfer::Outcome::no_room || sent->outcome == transfer::Outcome::busy) {
        begin(sent->request);
        continue;
      }
      cancelled += sent->outcome == transfer::Outcome::cancelled ? 1 : 0;
      engine.cache().close(open.at(sent->request));
      open.erase(sent->request);
      ++over;
    }
    if (!any) {
      (void)engine.endpoint().wait(now() + std::chrono::milliseconds(5));
    }
  }
}

/// Receives sequences until there are no more, and cancels some. Returns how many were correct.
int decode(AnyEngine& engine, const std::atomic<bool>& all_sent, std::uint64_t seed) {
  Random random(seed);
  int right = 0;
  std::vector<SeqId> received;
  for (;;) {
    const bool last = all_sent;
    const bool any = engine.poll();
    while (const auto got = engine.next_received()) {
      if (got->outcome == transfer::Outcome::complete) {
        right += engine.cache().rows(got->seq) == engine.cache().rows_of(values_of(prompt_of(got->request))) ? 1 : 0;
        received.push_back(got->seq);
      }
    }
    if (received.size() > 3 || (!any && !received.empty())) {
      engine.cache().close(received.front());
      received.erase(received.begin());
    }
    if (random.one_in(50)) {
      engine.cancel_receiving(static_cast<transport::Peer>(random.between(0, 1)),
                              random.between<std::uint64_t>(0, 2 * requests));
    }
    if (last && !any && received.empty()) {
      return right;
    }
    if (!any) {
      (void)engine.endpoint().wait(now() + std::chrono::milliseconds(5));
    }
  }
}
}  // namespace

TEST_CASE("Two engines prefill for two that decode, each in its thread", "[transfer][threads]") {
  transport::InProcess hub({.peers = 4, .channels = 2, .window_messages = 6, .window_bytes = 2000});
  std::vector<std::unique_ptr<AnyEngine>> engines;
  engines.push_back(make_engine<float, Prefix4>(hub, 0, 300, small_messages));
  engines.push_back(make_engine<float, Paged7, TokenMajor>(hub, 1, 300, small_messages));
  engines.push_back(make_engine<float, Prefix7>(hub, 2, 150, small_messages));
  engines.push_back(make_engine<float, Paged4>(hub, 3, 150, small_messages));
  std::atomic<bool> all_sent = false;
  std::atomic<int> cancelled = 0;
  std::atomic<int> right = 0;
  std::vector<std::thread> decoding;
  for (const std::size_t i : {2U, 3U}) {
    decoding.emplace_back([&, i] { right += decode(*engines[i], all_sent, i); });
  }
  std::thread other([&] { prefill(*engines[1], requests, {2, 3}, cancelled); });
  prefill(*engines[0], 0, {2, 3}, cancelled);
  other.join();
  all_sent = true;
  for (std::thread& thread : decoding) {
    thread.join();
  }
  // A cancelled request may have been complete at the receiver already.
  REQUIRE(right >= 2 * requests - cancelled);
  REQUIRE(right <= 2 * requests);
  REQUIRE(right > requests);
  for (const auto& engine : engines) {
    require_free(*engine);
  }
}

TEST_CASE("A receiver that is destroyed during a transfer is lost, and the sender may change its rows again",
          "[transfer][threads]") {
  for (int round = 0; round < 20; ++round) {
    transport::InProcess hub({.peers = 2, .channels = 2, .window_messages = 4, .window_bytes = 2000});
    const auto a = make_engine<float, Paged4>(hub, 0, 300, small_messages);
    std::thread receiver([&] {
      auto b = make_engine<float, Prefix4>(hub, 1, 300, small_messages);
      for (int polls = 0; polls < 3 * round; ++polls) {
        (void)b->poll();
        (void)b->endpoint().wait(now() + std::chrono::milliseconds(1));
      }
      die(b);
    });
    const Tokens prompt = counting(1, 60);
    const SeqId seq = a->cache().serve(prompt);
    (void)a->send(1, seq, prompt);
    (void)transport::wait_for(a->endpoint(), transport::no_deadline, [&] {
      (void)a->poll();
      return a->transfers() == 0;
    });
    receiver.join();
    const transfer::Sent sent = a->next_sent().value();
    REQUIRE((sent.outcome == transfer::Outcome::peer_lost || sent.outcome == transfer::Outcome::complete));
    a->cache().close(seq);
    require_free(*a);
  }
}
