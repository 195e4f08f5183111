// Small runs of the scheduler, with the checks that hold after every run.
#pragma once

#include <map>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "catch.hpp"
#include "kvc/policy/contiguous.hpp"
#include "kvc/policy/paged.hpp"
#include "kvc/policy/prefix_shared.hpp"
#include "policy_cache.hpp"
#include "server.hpp"

namespace kvc_test {

using namespace serving;

/// A source of listed requests.
class Listed final : public Source {
 public:
  explicit Listed(std::vector<Request> requests) : requests_(std::move(requests)) {}
  std::optional<Request> next() override {
    return at_ < requests_.size() ? std::optional(requests_[at_++]) : std::nullopt;
  }
  const std::vector<std::string>& classes() const override { return names_; }

 private:
  std::vector<Request> requests_;
  std::size_t at_ = 0;
  std::vector<std::string> names_{"all"};
};

/// A step takes a millisecond, and one more for every ten tokens. Checks every step.
class StepClock {
 public:
  [[nodiscard]] Time now() const { return now_; }
  void wait_until(Time t) { now_ = std::max(now_, t); }

  template <class Cache>
  void run(Cache& cache, Step<Cache>& step) {
    ++steps;
    Index tokens = 0;
    std::set<std::pair<Index, int>> seen;
    for (const Work<Cache>& work : step.work) {
      REQUIRE(work.append.range().size() == std::ssize(work.tokens));
      REQUIRE(work.append.range().first == cache.length(work.seq));
      REQUIRE(seen.insert({work.request, work.sample}).second);
      REQUIRE((work.prefill || work.tokens.size() == 1));
      tokens += std::ssize(work.tokens);
      for (std::size_t i = 0; i < work.wanted; ++i) {
        const int sample = work.sample + static_cast<int>(i);
        step.sampled.at(work.first_wanted + i) = static_cast<Token>(1'000'000 + 1000 * work.request + sample);
        ++given[{work.request, sample}];
      }
    }
    REQUIRE(tokens == step.prefill_tokens + step.decode_tokens);
    most_tokens = std::max(most_tokens, tokens);
    most_work = std::max(most_work, step.work.size());
    now_ += millisecond + tokens * millisecond / 10;
  }

  Index steps = 0;
  Index most_tokens = 0;
  std::size_t most_work = 0;
  std::map<std::pair<Index, int>, Index> given;  // tokens, by request and sample

 private:
  Time now_ = 0;
};

struct Outcome {
  Metrics metrics{Slo{}, 1};
  Counters counters;
  StepClock clock;
};

/// Serves the requests, and checks the invariants of every run.
template <class Policy>
Outcome serve_small(typename Policy::Config config, const SchedulerConfig& scheduling,
                    const std::vector<Request>& requests,
                    const kvc::LayerGroups& layers = kvc::Shape{.layers = 1, .kv_heads = 1, .key_dim = 1}) {
  Outcome outcome;
  if constexpr (kvc::ConfiguresPasses<Policy>) {
    config.pass_tokens = scheduling.chunk_tokens;
  }
  PolicyCache<Policy> cache(config, layers);
  Scheduler scheduler(cache, scheduling, outcome.metrics);
  Listed source(requests);
  serve(cache, scheduler, source, outcome.clock, [&](Time) {
    cache.verify();
    const kvc::Stats now = cache.stats();
    REQUIRE(available_tokens(cache.policy()) == (now.blocks_free + now.blocks_cached) * now.block_tokens);
    REQUIRE(now.sequences == scheduler.running());
  });
  outcome.counters = scheduler.counters();
  const Counters& c = outcome.counters;
  const Metrics& m = outcome.metrics;

  // Every request ended, once.
  REQUIRE(scheduler.waiting() == 0);
  REQUIRE(scheduler.running() == 0);
  REQUIRE(m.arrivals() == std::ssize(requests));
  REQUIRE(m.count(End::completed) + m.count(End::aborted) + m.count(End::refused) + m.count(End::out_of_memory) ==
          std::ssize(requests));
  // No position was lost, and no token given twice.
  REQUIRE(c.prompt_tokens_found + c.again_tokens_found + c.prefill_tokens + c.decode_tokens + c.forked_tokens ==
          c.released_tokens);
  Index given = 0;
  for (const auto& [answer, tokens] : outcome.clock.given) {
    REQUIRE(tokens <= requests.at(static_cast<std::size_t>(answer.first)).output_tokens);
    given += tokens;
  }
  REQUIRE(given == m.generated_tokens());
  if (m.count(End::completed) == std::ssize(requests)) {
    Index wanted = 0;
    for (const Request& request : requests) {
      wanted += Index{request.output_tokens} * request.samples;
    }
    REQUIRE(given == wanted);
  }
  // No block is referenced.
  scheduler.unpin_all();
  cache.verify();
  const kvc::Stats stats = cache.stats();
  REQUIRE(stats.sequences == 0);
  REQUIRE(stats.blocks_referenced == 0);
  REQUIRE(available_tokens(cache.policy()) == pool_tokens(cache.policy()));
  return outcome;
}

inline Request make_request(Index id, Time arrival, Pos prompt, Pos output, std::uint64_t content = 0) {
  Request request;
  request.id = id;
  request.arrival = arrival;
  request.prompt = {{content == 0 ? 1000 + static_cast<std::uint64_t>(id) : content, prompt}};
  request.output_tokens = output;
  request.max_output_tokens = output;
  return request;
}

}  // namespace kvc_test
