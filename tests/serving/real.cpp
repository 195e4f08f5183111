// Real runs: a decoder over caches with real keys and values; and the fit of the cost model to measured steps. No test
// looks at how long anything takes.
#include "real.hpp"

#include <cmath>
#include <map>
#include <tuple>

#include "calibration.hpp"
#include "catch.hpp"
#include "run_program.hpp"
#include "tier_curve.hpp"

using namespace serving;

namespace {

using Answers = std::map<std::tuple<Index, int, Pos>, Token>;

struct Served {
  RunResult result;
  Answers answers;
};

Served serve(const Scenario& scenario, const kvc::llama::Model& model, PolicyKind policy, bool chunked) {
  Served served;
  const RealMachine machine{&model, Threads(1), ClockKind::cpu};
  served.result =
      serve_real(scenario, policy, chunked, 1, machine, {}, [&](Index request, int sample, Pos at, Token t) {
        REQUIRE(served.answers.emplace(std::tuple(request, sample, at), t).second);  // each token is given out once
      });
  return served;
}

/// Twelve requests that arrive at once: batches and preemptions do not depend on time.
Scenario crowd(const kvc::llama::Model& model, Index pool_tokens) {
  Scenario scenario;
  scenario.name = "crowd";
  scenario.story = "A crowd.";
  scenario.pool_tokens = pool_tokens;
  scenario.watermark = 0;
  scenario.scheduler.chunk_tokens = 24;
  scenario.requests = 12;
  TrafficClass c;
  c.name = "all";
  c.every = 1000;
  c.burst = 12;
  c.prefix_name = "system";
  c.prefix_tokens = 40;
  c.prompt.low = 5;
  c.prompt.high = 40;
  c.output.low = 4;
  c.output.high = 24;
  scenario.traffic = {c};
  return fit_to(scenario, model, "small");
}

}  // namespace

TEST_CASE("A request gets the same answer alone and among others", "[serving]") {
  const kvc::llama::Model model = load_model("");
  Scenario alone = crowd(model, 4096);
  alone.scheduler.max_sequences = 1;
  const Served expected = serve(alone, model, PolicyKind::contiguous_reserve, false);
  REQUIRE(expected.result.metrics.count(End::completed) == 12);
  REQUIRE(std::ssize(expected.answers) == expected.result.metrics.generated_tokens());

  const Scenario crowded = crowd(model, 384);  // a few requests fill it
  for (const PolicyKind policy : all_policies) {
    for (const bool chunked : {false, true}) {
      CAPTURE(name(policy), chunked);
      const Served served = serve(crowded, model, policy, chunked);
      REQUIRE(served.result.mode == "real");
      REQUIRE(served.result.metrics.count(End::completed) == 12);
      REQUIRE(served.answers == expected.answers);
      REQUIRE(served.result.answers_hash == expected.result.answers_hash);
      const Counters& c = served.result.counters;
      REQUIRE(c.failed_admissions > 0);
      REQUIRE((c.preemptions > 0) == (policy != PolicyKind::contiguous_reserve));
      REQUIRE((c.prompt_tokens_found > 0) == (policy == PolicyKind::prefix_shared));
      // A simulation decides the same: all requests arrive at the start, so time does not matter.
      Scenario simulated = crowded;
      simulated.hardware = find_hardware("a10");
      const Counters s = simulate(simulated, policy, chunked).counters;
      REQUIRE(c.steps == s.steps);
      REQUIRE(c.preemptions == s.preemptions);
      REQUIRE(c.failed_admissions == s.failed_admissions);
      REQUIRE(c.prompt_tokens_found == s.prompt_tokens_found);
      REQUIRE(c.prefill_tokens == s.prefill_tokens);
      REQUIRE(c.decode_tokens == s.decode_tokens);
    }
  }
}

TEST_CASE("Several answers of one request begin with the likeliest tokens", "[serving]") {
  const kvc::llama::Model model = load_model("");
  Scenario scenario = crowd(model, 4096);
  scenario.requests = 2;
  scenario.traffic.front().samples = 3;
  const Served served = serve(scenario, model, PolicyKind::prefix_shared, false);
  REQUIRE(served.result.counters.forks == 4);
  for (Index request = 0; request < 2; ++request) {
    REQUIRE(served.answers.at({request, 0, 0}) != served.answers.at({request, 1, 0}));
    REQUIRE(served.answers.at({request, 1, 0}) != served.answers.at({request, 2, 0}));
  }
}

#if defined(KVC_HAVE_SODIUM)
TEST_CASE("Host memory and files behind a real cache bring back rows, and no answer changes", "[serving][tiers]") {
  const kvc::llama::Model model = load_model("");
  Scenario scenario = fit_to(read_scenario("small-model-sessions"), model, "small");
  scenario.requests = 40;
  scenario.load_rule = LoadRule::always;
  const Served without = serve(scenario, model, PolicyKind::prefix_shared, true);
  scenario.tiers = {"host + disk", {{.name = "host", .blocks = 160}, {.name = "disk", .blocks = 4096}}};
  const Served with = serve(scenario, model, PolicyKind::prefix_shared, true);
  REQUIRE(with.result.metrics.count(End::completed) == 40);
  REQUIRE(with.answers == without.answers);
  REQUIRE(with.result.tiers.size() == 2);
  for (const TierResult& tier : with.result.tiers) {
    CAPTURE(tier.spec.name, tier.stored, tier.lost, tier.loads_unused);
    REQUIRE(tier.loaded > 0);
    REQUIRE(tier.load_failures == 0);
  }
  REQUIRE(with.result.counters.prompt_tokens_found > without.result.counters.prompt_tokens_found);

  scenario.tiers.tiers.back().name = "remote";
  REQUIRE_THROWS_WITH(serve(scenario, model, PolicyKind::prefix_shared, true),
                      kvc_test::contains("\"remote\"") && kvc_test::contains("host (host memory) or disk (files)"));
}
#endif

TEST_CASE("The length from which on loading pays is that of the formula", "[serving][tiers]") {
  TurnTimes times;
  times.token_bytes = 1000;
  times.seconds_per_token = 1e-4;
  times.more = 20;
  times.lengths = {16, 4000};
  times.computed = {0.0036, 0.402};
  times.tiers = {{"near", 1.02e-3, 2e7, {0.004, 0.2}}, {"slow", 0, 5e6, {0.01, 0.8}}};
  REQUIRE(predicted(times, -1, 100) == Approx(120e-4));
  REQUIRE(predicted(times, 0, 100) == Approx(1.02e-3 + 100 * 5e-5 + 20e-4));
  REQUIRE(crossover(times, 0) == 21);  // l / (a - B / w) is 20.4
  REQUIRE(crossover(times, 1) == -1);  // slower than a prefill of short prompts
  times.seconds_per_pair = 1.0001e-7;  // and faster than attention behind 2 (B / w - a) / c
  REQUIRE(crossover(times, 1) == 2000);
  REQUIRE(crossover(times, 0) < 21);
}

TEST_CASE("A scenario with requests longer than the model's positions is rejected before it runs", "[serving]") {
  const kvc::llama::Model model = load_model("");
  Scenario scenario = crowd(model, 4096);
  scenario.traffic.front().max_output = 500;
  REQUIRE_THROWS_WITH(fit_to(scenario, model, "small"),
                      kvc_test::contains("\"all\"") && kvc_test::contains("580") && kvc_test::contains("512"));
}

TEST_CASE("A fit finds the hardware that made the timings", "[serving]") {
  const ModelShape shape = find_model("shakespeare-0.7m");
  Hardware truth{"truth", 50e9, 8e9, 0, 1, 30e-6, ""};
  truth.attention_peak = 20e9;
  truth.decode_peak = 5e9;
  truth.per_sequence = 5e-6;
  const CostModel model(shape, truth);
  std::vector<StepTiming> timings;
  const auto add = [&](Index tokens, Index sequences, Index pairs, Index context) {
    const StepCost cost{tokens, sequences, pairs, context, 0, sequences, tokens == sequences ? context : 0};
    timings.push_back({cost, static_cast<double>(model.time(cost)) / second});
  };
  for (const Index n : {1, 2, 4, 8, 16, 32}) {
    add(n, n, n * 50, n * 50);
    add(n, n, n * 400, n * 400);
  }
  for (const Index n : {32, 64, 128, 256}) {
    add(n, 1, n * (n + 1) / 2, n);
    add(n, 1, n * 200 + n * (n + 1) / 2, 200 + n);
  }
  const Fit fit = fit_hardware(shape, timings);
  REQUIRE(fit.timings == timings.size());
  REQUIRE(fit.largest_error < 0.001);
  REQUIRE(fit.hardware.peak == Approx(truth.peak).epsilon(0.01));
  REQUIRE(fit.hardware.attention_peak == Approx(truth.attention_peak).epsilon(0.01));
  REQUIRE(fit.hardware.decode_peak == Approx(truth.decode_peak).epsilon(0.01));
  REQUIRE(fit.hardware.bandwidth == Approx(truth.bandwidth).epsilon(0.01));
  REQUIRE(fit.hardware.overhead == Approx(truth.overhead).epsilon(0.02));
  REQUIRE(fit.hardware.per_sequence == Approx(truth.per_sequence).epsilon(0.02));

  // A fit to noise of 10 % is about as far off, and no cost is negative.
  for (std::size_t i = 0; i < timings.size(); ++i) {
    timings[i].seconds *= i % 2 == 0 ? 1.1 : 0.9;
  }
  const Fit noisy = fit_hardware(shape, timings);
  REQUIRE(noisy.median_error < 0.12);
  REQUIRE(noisy.hardware.overhead >= 0);
  REQUIRE(noisy.hardware.per_sequence >= 0);

  // Medians are of each step by itself.
  auto slow = timings, slower = timings;
  slow[3].seconds = 7;
  slower[3].seconds = 9;
  REQUIRE(median_of({timings, slower, slow})[3].seconds == 7);
  REQUIRE(median_of({timings, slower, slow})[4].seconds == timings[4].seconds);

  REQUIRE_THROWS_WITH(fit_hardware(shape, {}), kvc_test::contains("timings.size()"));
  timings[0].seconds = 0;
  REQUIRE_THROWS_WITH(fit_hardware(shape, timings), kvc_test::contains("seconds"));
}

TEST_CASE("serve-bench serves with a model, and compares the prediction", "[program]") {
  const kvc_test::Run run = kvc_test::run_program(
      KVC_SERVE_BENCH,
      "--mode real --scenario small-model-chat --requests 8 --policy paged --chunked on --calibrate --rounds 1 2>&1");
  CAPTURE(run.output);
  REQUIRE(run.status == 0);
  for (const char* words : {"the same answers in all", "fitted to", "ratio", "tokens_per_s"}) {
    REQUIRE_THAT(run.output, kvc_test::contains(words));
  }
  const kvc_test::Run bad = kvc_test::run_program(KVC_SERVE_BENCH, "--scenario small-model-chat --calibrate 2>&1");
  REQUIRE(bad.status == 2);
  REQUIRE_THAT(bad.output, kvc_test::contains("--mode real"));
}
