// The metrics on cases that were computed by hand.
#include "catch.hpp"
#include "histogram.hpp"
#include "random_source.hpp"
#include "serve_small.hpp"

using namespace kvc_test;

TEST_CASE("Percentiles are by nearest rank, exact for small values", "[serving]") {
  Histogram histogram;
  REQUIRE(histogram.percentile(99) == 0);
  for (int value = 100; value >= 1; --value) {
    histogram.add(value);
  }
  REQUIRE(histogram.count() == 100);
  REQUIRE(histogram.percentile(50) == 50);
  REQUIRE(histogram.percentile(95) == 95);
  REQUIRE(histogram.percentile(99) == 99);
  REQUIRE(histogram.percentile(100) == 100);
  REQUIRE(histogram.percentile(0.1) == 1);
  REQUIRE(histogram.mean() == 50.5);
  Histogram one;
  one.add(7);
  REQUIRE(one.percentile(1) == 7);
  REQUIRE(one.percentile(99) == 7);
}

TEST_CASE("Percentiles of any size are at most 0.2 % above the value", "[serving]") {
  kvc_test::Random random(kvc_test::seed_or(3));
  std::vector<std::int64_t> values;
  Histogram histogram;
  for (int i = 0; i < 2000; ++i) {
    const std::int64_t value = std::int64_t{1} << random.between(0, 61);
    values.push_back(value + random.between<std::int64_t>(0, value - 1));
    histogram.add(values.back());
  }
  std::ranges::sort(values);
  for (const int percent : {1, 5, 25, 50, 75, 95, 99, 100}) {
    const std::int64_t exact = values[static_cast<std::size_t>(percent) * 20 - 1];
    const std::int64_t estimate = histogram.percentile(percent);
    CAPTURE(percent, exact, estimate);
    REQUIRE(estimate >= exact);
    REQUIRE(estimate - exact <= exact / 500);
  }
  REQUIRE(histogram.max() == values.back());
}

TEST_CASE("TTFT, TPOT, ITL and throughput of two requests", "[serving]") {
  // A step takes 1 ms and 0.1 ms per token. The first request comes at 0 with 10 tokens and wants 3, the second at 1 ms
  // with 20 tokens and wants 2.
  //   step 1: prompt of the first                        0.0 -> 2.0 ms
  //   step 2: its second token, prompt of the second     2.0 -> 5.1
  //   step 3: last tokens of both                        5.1 -> 6.3
  const std::vector<Request> requests = {make_request(0, 0, 10, 3), make_request(1, millisecond, 20, 2)};
  const Outcome outcome = serve_small<kvc::Paged>({.blocks = 20, .block_tokens = 16}, {}, requests);
  const Metrics& m = outcome.metrics;
  const auto about = [](double ms) { return Approx(ms * millisecond).epsilon(0.003); };
  REQUIRE(m.all().ttft.count() == 2);
  REQUIRE(static_cast<double>(m.all().ttft.percentile(50)) == about(2.0));
  REQUIRE(m.all().ttft.max() == 4100 * microsecond);
  REQUIRE(m.all().tpot.max() == 2150 * microsecond);  // (6.3 - 2.0) / 2
  REQUIRE(static_cast<double>(m.all().tpot.percentile(50)) == about(1.2));
  REQUIRE(m.itl().count() == 3);
  REQUIRE(m.itl().max() == 3100 * microsecond);
  REQUIRE(m.all().end_to_end.max() == 6300 * microsecond);
  REQUIRE(static_cast<double>(m.all().end_to_end.percentile(50)) == about(5.3));
  REQUIRE(m.seconds() == Approx(0.0063));
  REQUIRE(m.per_second(m.generated_tokens()) == Approx(5 / 0.0063));
  REQUIRE(outcome.counters.steps == 3);
  REQUIRE(outcome.counters.steps_with_prefill == 2);
}

TEST_CASE("Goodput counts requests that meet both objectives", "[serving]") {
  const Slo slo{100, 10};
  Metrics m(slo, 2);
  const auto end = [&](Time ttft, Time tpot, End how, std::size_t traffic_class) {
    m.arrived(0);
    m.ended({0, traffic_class, how, 0, 1000, how == End::refused ? std::nullopt : std::optional<Time>(ttft), tpot});
  };
  end(100, 10, End::completed, 0);  // just good
  end(101, 10, End::completed, 0);
  end(100, 11, End::completed, 1);
  end(5, 0, End::completed, 1);  // one token has no TPOT
  end(5, 1, End::aborted, 1);
  end(0, 0, End::refused, 1);
  REQUIRE(m.all().good == 2);
  REQUIRE(m.of(0).good == 1);
  REQUIRE(m.all().requests == 6);
  REQUIRE(m.all().ttft.count() == 4);
  REQUIRE(m.per_second(m.all().good) == Approx(2 / 1e-6));
  REQUIRE_FALSE(m.answered(0, 5, 5, 1));
  REQUIRE(m.answered(0, 10, 40, 4) == Time{10});
}
