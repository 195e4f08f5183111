// Load or compute, in simulated time: a server with one prefill after another, of the requests that wait for no load,
// and a tier that reads one load after another. The rule `cheaper`, which only knows what it has measured, beside
// `always` and `never`.
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <deque>
#include <limits>
#include <queue>
#include <span>
#include <vector>

#include "catch.hpp"
#include "kvc/tier/tier_policy.hpp"
#include "random_source.hpp"

namespace {
using namespace kvc;
using namespace kvc::tier;

struct SimulatedService {
  double tokens_per_second = 8000;  // of a prefill
  double seconds_per_pair = 2e-9;   // of a token and one before it
  double latency = 1e-3;            // of the tier
  double bytes_per_second = 1e9;    // of the tier
  double requests_per_second = 1;
  double slows_down_at = 1e9;  // the tier, to a tenth, after so many seconds
};

/// The mean time to the first token of 2,000 turns of sessions whose earlier turns the tier has.
double mean_seconds_to_first_token(const SimulatedService& service, LoadRule rule) {
  constexpr double block_bytes = 16 * 131072;  // of an 8B model
  struct Read {                                // of a block
    double begin, end, bytes_before;
  };
  struct Ready {
    double at, arrived;
    PosRange rest;
    double prefill;
    bool operator<(const Ready& other) const { return at > other.at; }  // the earliest is the top of a priority_queue
  };
  kvc_test::Random random(11);
  TierPolicy policy(rule);
  std::deque<Read> reads;
  std::priority_queue<Ready> waiting;
  double now = 0, server_free = 0, tier_free = 0, sum = 0;
  const auto serve_until = [&](double time) {
    while (!waiting.empty() && std::max(server_free, waiting.top().at) < time) {
      const Ready next = waiting.top();
      waiting.pop();
      server_free = std::max(server_free, next.at) + next.prefill;
      policy.prefill().add(next.rest, next.prefill);
      sum += server_free - next.arrived;
    }
  };
  const auto seconds_of_prefill = [&](PosRange range) {
    return range.size() / service.tokens_per_second +
           service.seconds_per_pair * (static_cast<double>(range.first) + range.last) / 2 * range.size();
  };
  constexpr int requests = 2000;
  for (int i = 0; i < requests; ++i) {
    now -= std::log(random.uniform(1e-6F, 1)) / service.requests_per_second;
    serve_until(now);
    const Pos prompt = random.between(200, 8000);
    const std::vector<std::uint8_t> tiers(static_cast<std::size_t>((prompt - 100) / 16), 0);
    while (!reads.empty() && reads.front().end <= now) {  // what has been measured by now
      policy.reads(0).add(reads.front().bytes_before, reads.front().end - reads.front().begin);
      reads.pop_front();
    }
    double under_way = static_cast<double>(reads.size()) * block_bytes;
    double wait = std::max(0.0, server_free - now);
    for (auto before = waiting; !before.empty() && before.top().at <= now; before.pop()) {
      wait += before.top().prefill;
    }
    policy.set_wait(wait);
    const std::size_t blocks = policy.blocks_to_load({.cached = 0,
                                                      .prompt = prompt,
                                                      .block_tokens = 16,
                                                      .block_bytes = block_bytes,
                                                      .tiers = tiers,
                                                      .bytes_under_way = std::span(&under_way, 1)});
    double ready = now;
    if (blocks > 0) {
      tier_free = std::max(tier_free, now + service.latency);
      for (std::size_t block = 0; block < blocks; ++block) {
        tier_free += block_bytes / (service.bytes_per_second * (tier_free > service.slows_down_at ? 0.1 : 1));
        reads.push_back({now, tier_free, under_way += block_bytes});
      }
      ready = tier_free;
    }
    const PosRange rest{static_cast<Pos>(16 * blocks), prompt};
    waiting.push({ready, now, rest, seconds_of_prefill(rest)});
  }
  serve_until(std::numeric_limits<double>::infinity());
  return sum / requests;
}

}  // namespace

TEST_CASE("Load or compute: never much worse than the better of both, and better than both somewhere",
          "[tier][policy]") {
  // Simulated times are the same in every build: where KVC_TEST_CASES wants fewer, it gets a third.
  const bool few = kvc_test::cases_or(100) < 100;
  int better_than_both = 0;
  for (const double bandwidth : few ? std::vector{1e8, 1e9, 1e10} : std::vector{1e8, 3e8, 1e9, 3e9, 1e10}) {
    for (const double load : few ? std::vector{0.6, 1.3} : std::vector{0.2, 0.6, 0.9, 1.3}) {
      for (const bool slows_down : {false, true}) {
        SimulatedService service;
        service.bytes_per_second = bandwidth;
        service.requests_per_second = load * service.tokens_per_second / 4100;
        service.slows_down_at = slows_down ? 1000 / service.requests_per_second : 1e9;
        const double always = mean_seconds_to_first_token(service, LoadRule::always);
        const double never = mean_seconds_to_first_token(service, LoadRule::never);
        const double cheaper = mean_seconds_to_first_token(service, LoadRule::cheaper);
        CAPTURE(bandwidth, load, slows_down, always, never, cheaper);
        // What is under way when the tier slows down cannot be taken back.
        CHECK(cheaper <= (slows_down ? 1.1 : 1.05) * std::min(always, never));
        better_than_both += cheaper < 0.95 * std::min(always, never) ? 1 : 0;
      }
    }
  }
  CHECK(better_than_both >= (few ? 4 : 15));
}
