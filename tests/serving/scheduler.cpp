// The scheduler over every policy: requests end once, and their memory is freed.
#include "catch.hpp"
#include "kvc/cache.hpp"
#include "random_source.hpp"
#include "serve_small.hpp"

using namespace kvc_test;

namespace {

/// Requests of all kinds: prefixes that are shared and pinned, several answers, impatient clients, some too long for
/// any pool, tenants.
std::vector<Request> any_requests(kvc_test::Random& random, int count) {
  std::vector<Request> requests;
  Time arrival = 0;
  for (int i = 0; i < count; ++i) {
    arrival += random.between<Time>(0, 20 * millisecond);
    Request request = make_request(i, arrival, random.between(1, random.one_in(4) ? 120 : 30), 1);
    if (random.one_in(2)) {
      request.prompt.insert(request.prompt.begin(), {random.between<std::uint64_t>(1, 3), random.between(5, 20)});
      request.pinned_tokens = random.one_in(5) ? request.prompt.front().tokens : 0;
    }
    request.output_tokens = random.between(1, random.one_in(4) ? 100 : 20);
    request.max_output_tokens = request.output_tokens + random.between(0, 40);
    request.samples = random.one_in(5) ? random.between(2, 4) : 1;
    if (random.one_in(6)) {
      request.patience = random.between<Time>(0, 400 * millisecond);
    }
    request.tenant = random.one_in(3) ? "a" : "";
    requests.push_back(std::move(request));
  }
  return requests;
}

SchedulerConfig any_config(kvc_test::Random& random) {
  SchedulerConfig config;
  config.max_sequences = random.between(1, 12);
  config.step_tokens = random.between(1, 200);
  config.chunk_tokens = random.one_in(2) ? 0 : random.between(1, 40);
  config.watermark_tokens = random.between(0, 20);
  config.order = random.one_in(2) ? Order::decode_first : Order::prefill_first;
  config.admit = random.one_in(2) ? Admit::whole_prompt : Admit::first_chunk;
  config.deferred_free = random.one_in(3);
  return config;
}

template <class Policy>
void random_runs(const typename Policy::Config& config, bool never_preempts = false,
                 const kvc::LayerGroups& layers = kvc::Shape{.layers = 1, .kv_heads = 1, .key_dim = 1}) {
  const std::uint64_t seed = kvc_test::seed_or(7);
  CAPTURE(seed);
  kvc_test::Random random(seed);
  Index preemptions = 0;
  Index forks = 0;
  Index aborted = 0;
  Index refused = 0;
  for (int i = 0; i < 40; ++i) {
    CAPTURE(i);
    const SchedulerConfig scheduling = any_config(random);
    CAPTURE(scheduling.max_sequences, scheduling.step_tokens, scheduling.chunk_tokens, scheduling.watermark_tokens,
            static_cast<int>(scheduling.order), static_cast<int>(scheduling.admit), scheduling.deferred_free);
    const Outcome outcome = serve_small<Policy>(config, scheduling, any_requests(random, 40), layers);
    preemptions += outcome.counters.preemptions;
    forks += outcome.counters.forks;
    aborted += outcome.metrics.count(End::aborted);
    refused += outcome.metrics.count(End::refused);
  }
  REQUIRE((preemptions > 0) != never_preempts);
  REQUIRE(forks > 0);
  REQUIRE(aborted > 0);
  REQUIRE(refused > 0);
}

}  // namespace

TEST_CASE("Under random traffic every request ends once, and the pool ends empty", "[serving]") {
  using Mode = kvc::Contiguous::Mode;
  const kvc::Contiguous::Config reserve{.sequences = 13, .max_tokens = 200, .pool_tokens = 200, .mode = Mode::reserve};
  kvc::Contiguous::Config grow = reserve;
  grow.mode = Mode::grow;
  grow.growth_tokens = 4;
  SECTION("contiguous, reserve") { random_runs<kvc::Contiguous>(reserve, true); }
  SECTION("contiguous, grow") { random_runs<kvc::Contiguous>(grow); }
  SECTION("paged") { random_runs<kvc::Paged>({.blocks = 50, .block_tokens = 4}); }
  SECTION("prefix-shared") { random_runs<kvc::PrefixShared<>>({.blocks = 50, .block_tokens = 4}); }
  kvc::LayerGroups groups;
  groups.add({.key_dim = 4});
  groups.add({.key_dim = 4, .window = 9}, 3);
  groups.add({.key_dim = 4, .chunk = 16, .kept = 2});
  SECTION("paged, groups") { random_runs<kvc::Paged>({.blocks = 40, .block_tokens = 4}, false, groups); }
  SECTION("prefix-shared, groups") {
    random_runs<kvc::PrefixShared<>>({.blocks = 40, .block_tokens = 4}, false, groups);
  }
}

TEST_CASE("Steps and chunks stay within their limits", "[serving]") {
  std::vector<Request> requests;
  for (Index id = 0; id < 6; ++id) {
    requests.push_back(make_request(id, 0, 100, 10));
  }
  const kvc::Paged::Config pool{.blocks = 100, .block_tokens = 16};
  SchedulerConfig config;
  config.step_tokens = 40;
  config.chunk_tokens = 30;
  const Outcome chunked = serve_small<kvc::Paged>(pool, config, requests);
  REQUIRE(chunked.clock.most_tokens == 40);
  REQUIRE(chunked.metrics.count(End::completed) == 6);
  config.chunk_tokens = 0;  // a whole prompt that is longer than the budget has a prefill to itself
  const Outcome whole = serve_small<kvc::Paged>(pool, config, requests);
  REQUIRE(whole.clock.most_tokens == 105);
  REQUIRE(whole.clock.steps < chunked.clock.steps);
}

TEST_CASE("Prefill-first delays decodes, decode-first runs them in the same step", "[serving]") {
  // The first request is being answered when the second comes with a long prompt.
  const std::vector<Request> requests = {make_request(0, 0, 10, 20), make_request(1, 5 * millisecond, 400, 5)};
  const kvc::Paged::Config pool{.blocks = 100, .block_tokens = 16};
  const auto longest_gap = [&](Order order, Pos chunk) {
    SchedulerConfig config;
    config.order = order;
    config.chunk_tokens = chunk;
    return serve_small<kvc::Paged>(pool, config, requests).metrics.itl().max();
  };
  // 1 ms a step and 0.1 ms a token: the prompt takes 41 ms, and the token after it another 1.1.
  REQUIRE(longest_gap(Order::prefill_first, 0) == 41 * millisecond + 1200 * microsecond);
  REQUIRE(longest_gap(Order::decode_first, 0) == 41 * millisecond + 100 * microsecond);
  REQUIRE(longest_gap(Order::decode_first, 50) == 6 * millisecond + 100 * microsecond);
}

TEST_CASE("Requests are admitted in the order of arrival, and one without room blocks those behind it", "[serving]") {
  // Of 10 blocks the first request takes 6 and comes to need 8; the second needs 5, the third 1.
  const std::vector<Request> requests = {make_request(0, 0, 96, 30), make_request(1, 1, 80, 5),
                                         make_request(2, 2, 10, 5)};
  const Outcome outcome = serve_small<kvc::Paged>({.blocks = 10, .block_tokens = 16}, {}, requests);
  REQUIRE(outcome.counters.delayed == 1);
  REQUIRE(outcome.counters.failed_admissions == 1);
  REQUIRE(outcome.counters.blocked > 0);
  REQUIRE(outcome.counters.delayed_25 == 1);  // 4 of 10 blocks were free
  REQUIRE(outcome.clock.most_work == 2);
  REQUIRE(outcome.counters.preemptions == 0);
}

TEST_CASE("The watermark keeps room for running sequences", "[serving]") {
  std::vector<Request> requests;
  for (Index id = 0; id < 8; ++id) {
    requests.push_back(make_request(id, 0, 16, 40));
  }
  const kvc::Paged::Config pool{.blocks = 12, .block_tokens = 16};
  SchedulerConfig config;
  const Outcome without = serve_small<kvc::Paged>(pool, config, requests);
  config.watermark_tokens = 8 * 16;
  const Outcome with = serve_small<kvc::Paged>(pool, config, requests);
  REQUIRE(without.counters.preemptions > with.counters.preemptions);
  REQUIRE(with.metrics.count(End::completed) == 8);
}

namespace {
/// The end of a request that is alone in a pool of 32 tokens.
template <class Policy>
End alone(const typename Policy::Config& config, Pos prompt, Pos output, Pos max_output) {
  Request request = make_request(0, 0, prompt, output);
  request.max_output_tokens = max_output;
  const Metrics metrics = serve_small<Policy>(config, {}, {request}).metrics;
  for (const End end : {End::completed, End::refused, End::out_of_memory}) {
    if (metrics.count(end) == 1) {
      return end;
    }
  }
  return End::aborted;
}
}  // namespace

TEST_CASE("Only requests that can never be completed are refused", "[serving]") {
  using Mode = kvc::Contiguous::Mode;
  const kvc::Contiguous::Config reserve{.sequences = 2, .max_tokens = 32, .pool_tokens = 32, .mode = Mode::reserve};
  kvc::Contiguous::Config grow = reserve;
  grow.mode = Mode::grow;
  struct Case {
    Pos prompt, output, max_output;
    bool fits, fits_reserved;
  };
  // The last token that is given out takes no slot.
  for (const Case& c :
       {Case{32, 1, 1, true, true}, Case{32, 0, 0, true, true}, Case{32, 0, 1, true, true}, Case{31, 2, 2, true, true},
        Case{1, 32, 32, true, true}, Case{32, 2, 2, false, false}, Case{33, 0, 0, false, false},
        Case{33, 1, 1, false, false}, Case{1, 33, 33, false, false}, Case{32, 1, 2, true, false},
        Case{10, 5, 23, true, true}, Case{10, 5, 24, true, false}, Case{10, 5, 2048, true, false}}) {
    CAPTURE(c.prompt, c.output, c.max_output);
    const End end = c.fits ? End::completed : End::refused;
    REQUIRE(alone<kvc::Contiguous>(reserve, c.prompt, c.output, c.max_output) ==
            (c.fits_reserved ? End::completed : End::refused));
    REQUIRE(alone<kvc::Contiguous>(grow, c.prompt, c.output, c.max_output) == end);
    REQUIRE(alone<kvc::Paged>({.blocks = 4, .block_tokens = 8}, c.prompt, c.output, c.max_output) == end);
    REQUIRE(alone<kvc::PrefixShared<>>({.blocks = 4, .block_tokens = 8}, c.prompt, c.output, c.max_output) == end);
  }
}

TEST_CASE("A request without an answer ends with its prompt", "[serving]") {
  Request none = make_request(0, 0, 30, 0);
  none.samples = 3;
  const std::vector<Request> requests = {none, make_request(1, 0, 30, 2)};
  for (const Pos chunk : {0, 16}) {
    SchedulerConfig config;
    config.chunk_tokens = chunk;
    const Outcome outcome = serve_small<kvc::PrefixShared<>>({.blocks = 10, .block_tokens = 16}, config, requests);
    REQUIRE(outcome.metrics.count(End::completed) == 2);
    REQUIRE(outcome.metrics.generated_tokens() == 2);
    REQUIRE(outcome.clock.given.count({0, 0}) == 0);
    REQUIRE(outcome.metrics.all().ttft.count() == 1);
    REQUIRE(outcome.metrics.all().end_to_end.count() == 2);
    REQUIRE(outcome.metrics.all().good == 2);
    REQUIRE(outcome.counters.prefill_tokens == 60);
    REQUIRE(outcome.counters.forks == 0);
  }
}

TEST_CASE("Requests that exceed the pool are refused, and so are those that pins leave no room for", "[serving]") {
  Request pinning = make_request(0, 0, 64, 2, 77);
  pinning.pinned_tokens = 64;
  // 10 blocks of 8: the second request fits only while 64 tokens are not pinned, the third never.
  const std::vector<Request> requests = {pinning, make_request(1, second, 40, 2), make_request(2, second, 80, 2)};
  const Outcome shared = serve_small<kvc::PrefixShared<>>({.blocks = 10, .block_tokens = 8}, {}, requests);
  REQUIRE(shared.metrics.count(End::completed) == 1);
  REQUIRE(shared.metrics.count(End::refused) == 2);
  REQUIRE(shared.counters.pins == 1);
  const Outcome paged = serve_small<kvc::Paged>({.blocks = 10, .block_tokens = 8}, {}, requests);
  REQUIRE(paged.metrics.count(End::refused) == 1);
}

TEST_CASE("A request that cannot continue even alone ends as out of memory", "[serving]") {
  Request pinning = make_request(0, 0, 64, 2, 77);
  pinning.pinned_tokens = 64;
  const std::vector<Request> requests = {pinning, make_request(1, second, 12, 20)};
  const Outcome outcome = serve_small<kvc::PrefixShared<>>({.blocks = 10, .block_tokens = 8}, {}, requests);
  REQUIRE(outcome.metrics.count(End::out_of_memory) == 1);
  REQUIRE(outcome.clock.given.at({1, 0}) == 5);  // to the end of its second block
}

TEST_CASE("Several answers share one prompt, and a fork without room recomputes it", "[serving]") {
  Request request = make_request(0, 0, 40, 10);
  request.samples = 4;
  const Outcome paged = serve_small<kvc::Paged>({.blocks = 40, .block_tokens = 16}, {}, {request});
  REQUIRE(paged.counters.forks == 3);
  REQUIRE(paged.counters.prefill_tokens == 40);
  REQUIRE(paged.metrics.generated_tokens() == 40);
  REQUIRE(paged.metrics.all().ttft.count() == 1);
  REQUIRE(paged.metrics.all().tpot.count() == 4);
  const kvc::Contiguous::Config two{.sequences = 4, .max_tokens = 100, .pool_tokens = 100};
  const Outcome contiguous = serve_small<kvc::Contiguous>(two, {}, {request});
  REQUIRE(contiguous.counters.forks == 1);
  REQUIRE(contiguous.counters.failed_forks == 2);
  REQUIRE(contiguous.counters.prefill_tokens == 40 + 2 * 41);
  REQUIRE(contiguous.metrics.generated_tokens() == 40);
}

TEST_CASE("A client that leaves frees its memory, waiting or running", "[serving]") {
  Request running = make_request(0, 0, 60, 1000);
  running.patience = 100 * millisecond;
  Request waiting = make_request(1, 0, 60, 1000);
  waiting.patience = 50 * millisecond;
  const std::vector<Request> requests = {running, waiting, make_request(2, 0, 60, 20)};
  const kvc::Contiguous::Config one{.sequences = 4, .max_tokens = 1100, .pool_tokens = 1100};
  const Outcome outcome = serve_small<kvc::Contiguous>(one, {}, requests);
  REQUIRE(outcome.metrics.count(End::aborted) == 2);
  REQUIRE(outcome.metrics.count(End::completed) == 1);
  REQUIRE(outcome.clock.given.count({1, 0}) == 0);
  REQUIRE(outcome.metrics.all().ttft.max() > 100 * millisecond);
}

TEST_CASE("A preempted sequence finds its own cached blocks again", "[serving]") {
  std::vector<Request> requests;
  for (Index id = 0; id < 4; ++id) {
    requests.push_back(make_request(id, id, 60, 60));
  }
  const Outcome paged = serve_small<kvc::Paged>({.blocks = 20, .block_tokens = 16}, {}, requests);
  const Outcome shared = serve_small<kvc::PrefixShared<>>({.blocks = 20, .block_tokens = 16}, {}, requests);
  REQUIRE(paged.counters.preemptions > 0);
  REQUIRE(shared.counters.preemptions > 0);
  REQUIRE(paged.counters.again_tokens_found == 0);
  REQUIRE(shared.counters.again_tokens_found > 0);
  REQUIRE(shared.counters.prefill_tokens < paged.counters.prefill_tokens);
}

namespace {

/// Three prompts that are computed in chunks, of which the pool holds two.
std::vector<Request> crowded() {
  return {make_request(0, 0, 120, 30), make_request(1, 0, 120, 30), make_request(2, 0, 120, 30)};
}
constexpr kvc::Paged::Config crowded_pool{.blocks = 10, .block_tokens = 16};

/// As in the engines where users met it: prompts are admitted when their first chunk has room.
SchedulerConfig naive() {
  SchedulerConfig config;
  config.chunk_tokens = 16;
  config.admit = Admit::first_chunk;
  return config;
}

}  // namespace

TEST_CASE("Preempting the oldest livelocks, preempting the youngest makes progress", "[serving]") {
  SchedulerConfig config = naive();
  config.victim = Victim::oldest;
  try {
    (void)serve_small<kvc::Paged>(crowded_pool, config, crowded());
    FAIL("no livelock");
  } catch (const Livelock& livelock) {
    REQUIRE(livelock.preemptions() > 1000);
  }
  config.victim = Victim::youngest;
  const Outcome outcome = serve_small<kvc::Paged>(crowded_pool, config, crowded());
  REQUIRE(outcome.metrics.count(End::completed) == 3);
  REQUIRE(outcome.counters.preemptions > 0);
  config.admit = Admit::whole_prompt;
  REQUIRE(serve_small<kvc::Paged>(crowded_pool, config, crowded()).counters.preemptions < outcome.counters.preemptions);
}

TEST_CASE("Blocks that are freed after a step cause no livelock if they are counted", "[serving]") {
  // As vllm-ascend#16315 reports: the blocks of a preempted sequence stay until the current step has ended, so
  // preempting frees no room now; one sequence after the other is preempted in vain, last the one that needs room.
  SchedulerConfig config = naive();
  config.deferred_free = true;
  config.counts_deferred = false;
  REQUIRE_THROWS_AS(serve_small<kvc::Paged>(crowded_pool, config, crowded()), Livelock);
  config.counts_deferred = true;
  const Outcome outcome = serve_small<kvc::Paged>(crowded_pool, config, crowded());
  REQUIRE(outcome.metrics.count(End::completed) == 3);
  REQUIRE(outcome.counters.preemptions > 0);
}

TEST_CASE("The scheduler names a bad request or configuration", "[serving]") {
  PolicyCache<kvc::Paged> cache({.blocks = 10, .block_tokens = 16});
  Metrics metrics(Slo{}, 1);
  SchedulerConfig config;
  config.step_tokens = 0;
  REQUIRE_THROWS_WITH(Scheduler(cache, config, metrics), kvc_test::contains("step_tokens is 0"));
  Scheduler scheduler(cache, {}, metrics);
  Request request = make_request(0, 0, 10, 5);
  request.max_output_tokens = 4;
  REQUIRE_THROWS_WITH(scheduler.submit(request), kvc_test::contains("output_tokens is 5"));
  request = make_request(0, 0, 0, 5);
  REQUIRE_THROWS_WITH(scheduler.submit(request), kvc_test::contains("prompt is 0"));
  REQUIRE(metrics.arrivals() == 0);
}

namespace {

/// An executor that writes rows, as one that runs a model does.
class RowWriter {
 public:
  [[nodiscard]] Time now() const { return now_; }
  void wait_until(Time t) { now_ = std::max(now_, t); }
  template <class Cache>
  void run(Cache& cache, Step<Cache>& step) {
    for (const Work<Cache>& work : step.work) {
      std::vector<float> rows;
      for (const Token token : work.tokens) {
        rows.insert(rows.end(), 4, static_cast<float>(token % 1000));
      }
      const kvc::MatrixRef<const float> k(rows.data(), work.append.size(), 4);
      for (Index layer = 0; layer < 2; ++layer) {
        cache.write(layer, work.append, k, k);
      }
      for (std::size_t i = 0; i < work.wanted; ++i) {
        step.sampled[work.first_wanted + i] = work.tokens.back() + 1;
      }
    }
    now_ += millisecond;
  }

 private:
  Time now_ = 0;
};

}  // namespace

TEST_CASE("A cache with keys and values is scheduled like one without", "[serving]") {
  using Cache = kvc::KvCache<float, kvc::PrefixShared<>>;
  static_assert(ServingCache<Cache> && ServingCache<PolicyCache<kvc::PrefixShared<>>>);
  static_assert(Executor<RowWriter, Cache>);
  Cache cache({.layers = 2, .kv_heads = 1, .key_dim = 4}, {.blocks = 12, .block_tokens = 8});
  std::vector<Request> requests;
  for (Index id = 0; id < 6; ++id) {
    requests.push_back(make_request(id, 0, 30, 12, 1 + static_cast<std::uint64_t>(id % 2)));
    requests.back().samples = id == 3 ? 2 : 1;
  }
  Metrics metrics(Slo{}, 1);
  Scheduler scheduler(cache, {}, metrics);
  Listed source(requests);
  RowWriter executor;
  serve(cache, scheduler, source, executor, [&](Time) { cache.verify(); });
  REQUIRE(metrics.count(End::completed) == 6);
  REQUIRE(metrics.generated_tokens() == 7 * 12);
  REQUIRE(scheduler.counters().preemptions > 0);
  REQUIRE(cache.stats().blocks_referenced == 0);
}
