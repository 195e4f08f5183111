// Sources of requests: synthetic traffic, published traces, and files in the own format.

#include <cmath>

#include "catch.hpp"
#include "json_fields.hpp"
#include "scenario.hpp"
#include "temp_files.hpp"
#include "test_data.hpp"
#include "trace.hpp"

using namespace serving;
using kvc_bench::Json;
using kvc_bench::TraceInput;

namespace {

std::vector<Request> all_of(Source& source) {
  std::vector<Request> all;
  while (auto request = source.next()) {
    all.push_back(std::move(*request));
  }
  return all;
}

std::vector<Token> tokens_of(const Request& request) { return prompt_of(request, 1 << 30); }

std::size_t common_beginning(const Request& a, const Request& b) {
  const auto x = tokens_of(a);
  const auto y = tokens_of(b);
  return static_cast<std::size_t>(std::ranges::mismatch(x, y).in1 - x.begin());
}

const TrafficClass questions = [] {
  TrafficClass c;
  c.name = "questions";
  c.rate = 10;
  c.prefix_name = "policy";
  c.prefix_tokens = 50;
  c.prompt = {20, 40, {}};
  c.output = {1, 1, {5, 7}};
  return c;
}();

}  // namespace

TEST_CASE("Synthetic traffic depends on its seed alone", "[serving]") {
  const auto text = [](std::uint64_t seed) {
    TrafficSource source({questions}, 50, seed);
    std::string all;
    for (const Request& r : all_of(source)) {
      all += std::to_string(r.arrival) + "," + std::to_string(r.prompt_tokens()) + "," +
             std::to_string(r.output_tokens) + "," + std::to_string(tokens_of(r).back()) + "\n";
    }
    return all;
  };
  REQUIRE(text(1) == text(1));
  REQUIRE(text(1) != text(2));
}

TEST_CASE("Poisson arrivals have their rate, bursts come together, and a window bounds them", "[serving]") {
  TrafficSource poisson({questions}, 20'000, 5);
  const auto all = all_of(poisson);
  const double mean = static_cast<double>(all.back().arrival) / second / 20'000;
  REQUIRE(mean == Approx(0.1).epsilon(0.03));
  double squares = 0;
  for (std::size_t i = 1; i < all.size(); ++i) {
    REQUIRE(all[i].arrival >= all[i - 1].arrival);
    squares += std::pow(static_cast<double>(all[i].arrival - all[i - 1].arrival) / second - mean, 2);
  }
  REQUIRE(std::sqrt(squares / 20'000) == Approx(mean).epsilon(0.05));  // as of an exponential distribution
  TrafficSource twice({questions}, 20'000, 5, 2);
  REQUIRE(static_cast<double>(all_of(twice).back().arrival) == Approx(static_cast<double>(all.back().arrival) / 2));

  TrafficClass burst = questions;
  burst.rate = 0;
  burst.every = 10;
  burst.burst = 3;
  burst.from = 5;
  burst.until = 20;
  TrafficSource bursts({burst}, 100, 1);
  std::vector<Time> times;
  for (const Request& r : all_of(bursts)) {
    times.push_back(r.arrival / second);
  }
  REQUIRE(times == std::vector<Time>{5, 5, 5, 15, 15, 15});
}

TEST_CASE("Prompts share their prefix and nothing else", "[serving]") {
  TrafficClass other = questions;
  other.name = "others";
  other.prefix_variants = 1000;
  other.prefix_name = "other";
  TrafficSource source({questions, other}, 40, 3);
  const auto all = all_of(source);
  for (std::size_t i = 1; i < all.size(); ++i) {
    const bool both = all[0].traffic_class == 0 && all[i].traffic_class == 0;
    const bool first_is_other = all[0].traffic_class == 1;
    if (!first_is_other) {
      REQUIRE(common_beginning(all[0], all[i]) == (both ? 50U : 0U));
    }
    REQUIRE((all[i].output_tokens == 5 || all[i].output_tokens == 7));
    REQUIRE(all[i].max_output_tokens == 7);
  }
}

TEST_CASE("Tokens stay within the vocabulary", "[serving]") {
  Request request;
  request.prompt = {{1, 1000}};
  for (const Token token : prompt_of(request, 7)) {
    REQUIRE((token >= 0 && token < 7));
  }
}

TEST_CASE("Prompts of a mooncake trace share the tokens of their common blocks", "[serving]") {
  const kvc_test::TempFile file(
      "{\"timestamp\": 10, \"input_length\": 1100, \"output_length\": 3, \"hash_ids\": [0, 1, 2]}\n"
      "{\"timestamp\": 35, \"input_length\": 1030, \"output_length\": 0, \"hash_ids\": [0, 1, 3]}\n"
      "{\"timestamp\": 35, \"input_length\": 600, \"output_length\": 9, \"hash_ids\": [0, 9]}\n");
  TraceSource source(TraceInput::open(file.path()), {});
  const auto all = all_of(source);
  REQUIRE(all.size() == 3);
  REQUIRE(source.format() == kvc_bench::TraceFormat::mooncake);
  REQUIRE(all[0].arrival == 0);
  REQUIRE(all[1].arrival == 25 * millisecond);
  REQUIRE(all[0].prompt_tokens() == 1100);
  REQUIRE(common_beginning(all[0], all[1]) == 1024);
  REQUIRE(common_beginning(all[0], all[2]) == 512);
  REQUIRE(all[1].output_tokens == 0);
  REQUIRE(all[1].max_output_tokens == 2048);

  TraceOptions again;
  again.requests = 5;
  again.load = 2;
  TraceSource repeated(TraceInput::open(file.path()), again);
  const auto more = all_of(repeated);
  REQUIRE(more.size() == 5);
  REQUIRE(more[1].arrival == 12'500 * microsecond);
  REQUIRE(more[3].arrival == more[2].arrival + 6'250 * microsecond);  // a usual gap later
  REQUIRE(more[4].id == 4);
  REQUIRE(common_beginning(more[0], more[3]) == 0);  // in a second round all is new
  REQUIRE(common_beginning(more[3], more[4]) == 1024);
}

TEST_CASE("A weka trace names full blocks only, an azure trace none", "[serving]") {
  const kvc_test::TempFile weka(
      "{\"timestamp\":0,\"input_length\":150,\"output_length\":5,\"hash_runs\":[[4,2]]}\n"
      "{\"timestamp\":9,\"input_length\":150,\"output_length\":5,\"hash_runs\":[[4,2]]}\n");
  TraceSource source(TraceInput::open(weka.path()), {});
  auto all = all_of(source);
  REQUIRE(all[1].prompt_tokens() == 150);
  REQUIRE(common_beginning(all[0], all[1]) == 128);
}

TEST_CASE("An azure trace gives lengths and arrivals", "[serving]") {
  const kvc_test::TempFile azure(
      "TIMESTAMP,ContextTokens,GeneratedTokens\n"
      "2023-11-16 18:15:46.6805900,374,44\n2023-11-16 18:15:50.6805900,374,109\n");
  TraceSource source(TraceInput::open(azure.path()), {});
  const auto all = all_of(source);
  REQUIRE(all.size() == 2);
  REQUIRE(all[1].arrival == 4 * second);
  REQUIRE(all[1].prompt_tokens() == 374);
  REQUIRE(common_beginning(all[0], all[1]) == 0);
}

TEST_CASE("The own format describes every property of a request", "[serving]") {
  const kvc_test::TempFile file(
      "{\"timestamp\": 0.5, \"input_length\": 30, \"output_length\": 4, \"prefix\": [[\"system\", 20]]}\n\n"
      "{\"timestamp\": 2, \"input_length\": 40, \"output_length\": 4, \"prefix\": [[\"system\", 20], [\"tools\", 10]],"
      " \"samples\": 2, \"abort_after\": 7.5, \"tenant\": \"a\", \"max_output_length\": 9}\n"
      "{\"timestamp\": 2, \"tokens\": [5, 6, 7], \"output_length\": 1}\n");
  TraceSource source(TraceInput::open(file.path()), {});
  const auto all = all_of(source);
  REQUIRE(all.size() == 3);
  REQUIRE(all[1].arrival == 1'500 * microsecond);
  REQUIRE(common_beginning(all[0], all[1]) == 20);
  REQUIRE(all[1].samples == 2);
  REQUIRE(all[1].patience == 7'500 * microsecond);
  REQUIRE(all[1].tenant == "a");
  REQUIRE(all[1].max_output_tokens == 9);
  REQUIRE(tokens_of(all[2]) == std::vector<Token>{5, 6, 7});
}

TEST_CASE("Arrivals and deadlines stay within the clock, whatever the load", "[serving]") {
  const auto outcome = [](const std::string& text, double load, Index requests = 0) -> std::string {
    TraceOptions options;
    options.load = load;
    options.requests = requests;
    try {
      TraceSource source(TraceInput::memory("t", text), options);
      Time last = 0;
      while (const auto request = source.next()) {
        REQUIRE(request->arrival >= last);
        REQUIRE(request->arrival <= max_arrival);
        REQUIRE(request->patience.value_or(0) <= max_arrival);
        last = request->arrival;
      }
      return std::to_string(last / second);
    } catch (const kvc_bench::TraceError& error) {
      return error.what();
    }
  };
  const auto line = [](const std::string& timestamp, const std::string& more = "") {
    return "{\"timestamp\": " + timestamp + ", \"input_length\": 3, \"output_length\": 1" + more + "}\n";
  };
  REQUIRE(outcome(line("0") + line("2e12"), 1) == "2000000000");
  REQUIRE(outcome(line("4e12") + line("4.5e12"), 1) == "500000000");  // times count from the first request
  REQUIRE(outcome(line("0") + line("2e12"), 1000) == "2000000");
  REQUIRE(outcome(line("0") + line("2e9"), 0.001) == "2000000000");
  REQUIRE_THAT(
      outcome(line("0") + line("2e10"), 0.001),
      kvc_test::contains("t:2: \"timestamp\": is 20000000 s after the first request, must be at most 2305843 s "
                         "after it at a load of 0.001"));
  REQUIRE_THAT(outcome(line("0") + line("4e12"), 1), kvc_test::contains("must be at most 2305843009 s after it"));
  REQUIRE_THAT(outcome(line("0") + line("1e12"), 1, 100),  // the second time
               kvc_test::contains("t:2: \"timestamp\": is 3000000000 s after the first request"));
  REQUIRE(outcome(line("0", ", \"abort_after\": 2.3e12"), 0.001) == "0");
  for (const char* patience : {"2.31e12", "9.224e12", "1e13", "1e300"}) {
    CAPTURE(patience);
    REQUIRE_THAT(outcome(line("0", std::string(", \"abort_after\": ") + patience), 1),
                 kvc_test::contains("t:1: \"abort_after\": is ") &&
                     kvc_test::contains("must be a number of milliseconds from 0 to 2305843009213"));
  }
  TrafficClass rare = questions;
  rare.rate = 1e-6;
  TrafficSource too_rare({rare}, 30, 1, 0.001);
  REQUIRE_THROWS_WITH(all_of(too_rare), kvc_test::contains("of the class \"questions\", arrives after ") &&
                                            kvc_test::contains("at most 2305843009 s are allowed"));
}

TEST_CASE("Traffic without a request is an error", "[serving]") {
  TrafficClass late = questions;
  late.rate = 1e-6;
  late.until = 1;
  TrafficSource none({late}, 30, 1);
  REQUIRE_THROWS_WITH(none.next(), kvc_test::contains("yields no request") && kvc_test::contains("until_s"));
}

TEST_CASE("Errors of a trace name their place", "[serving]") {
  const auto error_of = [](const std::string& text) -> std::string {
    const kvc_test::TempFile file(text);
    try {
      TraceSource source(TraceInput::open(file.path()), {});
      (void)all_of(source);
    } catch (const kvc_bench::TraceError& error) {
      return std::to_string(error.line()) + " " + error.what();
    }
    return "no error";
  };
  const std::string good = "{\"timestamp\": 5, \"input_length\": 3, \"output_length\": 1}\n";
  REQUIRE_THAT(error_of(""), kvc_test::contains("holds no request"));
  REQUIRE_THAT(error_of("hello\n"), kvc_test::contains("no known trace"));
  REQUIRE_THAT(error_of(good + "{\"timestamp\": 4, \"input_length\": 3, \"output_length\": 1}\n"),
               kvc_test::contains("before the request of the line above"));
  const std::vector<std::pair<std::string, std::string>> cases = {
      {"{\"timestamp\": 5, \"input_length\": 0, \"output_length\": 1}", "\"input_length\": is 0, must be a whole"},
      {"{\"timestamp\": -1, \"input_length\": 3, \"output_length\": 1}", "\"timestamp\": is -1, must be a number"},
      {"{\"timestamp\": 5, \"input_length\": 3}", "\"output_length\": is missing"},
      {"{\"timestamp\": 5, \"input_length\": 3, \"output_length\": 1, \"prio\": 1}", "\"prio\": is not known"},
      {"{\"timestamp\": 5, \"input_length\": 3, \"output_length\": 1, \"prefix\": [[\"a\", 4]]}", "\"prefix/0/1\""},
      {"{\"timestamp\": 5, \"tokens\": [1, \"x\"], \"output_length\": 1}", "\"tokens/1\": is \"x\""},
      {"{\"timestamp\"", "is not JSON"},
  };
  for (const auto& [line, words] : cases) {
    CAPTURE(line);
    const std::string error = error_of(good + line + "\n");
    REQUIRE_THAT(error, kvc_test::contains(words));
    REQUIRE(error.starts_with("2 "));
  }
}

TEST_CASE("Errors of a scenario name JSON pointer, value and allowed values", "[serving]") {
  const std::string good = R"({"story": "s", "model": "llama-3-8b", "hardware": "a10", "requests": 10,
    "traffic": [{"name": "a", "rate": 1, "prompt": [1, 2], "output": 3}]})";
  REQUIRE(parse_scenario(good, "x").traffic.size() == 1);
  const std::string toy =
      R"({"layers": 3, "hidden": 8, "heads": 2, "kv_heads": 1, "head_dim": 4, "ffn": 8, "vocabulary": 16, )";
  struct Case {
    std::string pointer;
    std::string value;  // null: the field goes away
    std::string words;
  };
  const std::vector<Case> cases = {
      {"/story", "null", "\"/story\": is missing"},
      {"/model", "\"gpt\"", "\"/model\": is \"gpt\", must be one of llama-3-8b"},
      {"/model", "{\"layers\": 0}", "\"/model/layers\": is 0, must be a whole number from 1"},
      {"/model", toy + R"("groups": [{"layers": 1}, {"layers": 3}]})",
       "\"/model/groups\": has 4 layers, must have the 3 of the model"},
      {"/model", toy + R"("groups": [{"layers": 1}, {"layers": 1}], "states": [{"layers": 2, "bytes": 8}]})",
       "\"/model/groups\": has 2 layers, must have the 1 of the model, less those with states"},
      {"/model", toy + R"("states": [{"layers": 2, "bytes": 8}]})", "\"/model/groups\": is missing"},
      {"/model", toy + R"("groups": [{"layers": 1}], "states": [{"layers": 2, "bytes": 0}]})",
       "\"/model/states/0/bytes\": is 0"},
      {"/model", toy + R"("groups": [{"layers": 3, "kept": 1}]})",
       "\"/model/groups/0/kept\": is 1, must be 0, or with"},
      {"/model", toy + R"("groups": [{"layers": 3, "window": 0}]})", "\"/model/groups/0/window\": is 0"},
      {"/model", toy + R"("experts": {"count": 2, "chosen": 3}})", "\"/model/experts/chosen\": is 3"},
      {"/hardware", "{\"base\": \"a10\", \"devices\": 0}", "\"/hardware/devices\": is 0"},
      {"/hardware", "{\"peak\": 1}", "\"/hardware/bandwidth\": is missing"},
      {"/requests", "1.5", "\"/requests\": is 1.5, must be a whole number from 1"},
      {"/extra", "1", "\"/extra\": is not known here, must be one of story, model"},
      {"/watermark", "2", "\"/watermark\": is 2, must be a number from 0 to 0.9"},
      {"/slo", "{\"ttft\": 1}", "\"/slo/ttft\": is not known here"},
      {"/scheduler", "{\"order\": \"lifo\"}", "\"/scheduler/order\": is \"lifo\", must be one of decode-first"},
      {"/traffic", "[]", "\"/traffic\": is empty"},
      {"/traffic", "{}", "\"/traffic\": is an object, must be an array"},
      {"/traffic/0/prompt", "[2, 1]", "\"/traffic/0/prompt/1\": is 1, must be a whole number from 2"},
      {"/traffic/0/output", "{\"one_of\": []}", "\"/traffic/0/output/one_of\": is empty"},
      {"/traffic/0/rate", "null", "\"/traffic/0\": must have either"},
      {"/traffic/0/burst", "3", "\"/traffic/0/burst\": contradicts \"rate\""},
      {"/traffic/0/rate", "\"fast\"", "\"/traffic/0/rate\": is \"fast\", must be a number"},
      {"/traffic/0/max_output", "2", "\"/traffic/0/max_output\": is 2, must be a whole number from 3"},
      {"/traffic/0/impatient", "{\"share\": 2, \"after_s\": [1, 2]}", "\"/traffic/0/impatient/share\": is 2"},
  };
  for (const Case& c : cases) {
    CAPTURE(c.pointer, c.value);
    Json json = Json::parse(good);
    const Json::json_pointer pointer(c.pointer);
    if (c.value == "null") {
      json[pointer.parent_pointer()].erase(pointer.back());
    } else {
      json[pointer] = Json::parse(c.value);
    }
    REQUIRE_THROWS_WITH(parse_scenario(json.dump(), "x"), kvc_test::contains(c.words));
  }
  REQUIRE_THROWS_WITH(parse_scenario("{", "x"), kvc_test::contains("is not JSON"));
  REQUIRE_THROWS_WITH(parse_scenario(good + std::string(1, '\0') + "more", "x"), kvc_test::contains("is NUL"));
  REQUIRE_THROWS_WITH(read_scenario("no-such"), kvc_test::contains("policy-prefix-mixed"));
  REQUIRE_THROWS_WITH(find_model("gpt"), kvc_test::contains("llama-3-8b"));
  Scenario scenario = parse_scenario(good, "x");
  scenario.model = find_model("llama-3-70b");
  REQUIRE_THROWS_WITH(scenario.pool(), kvc_test::contains("141 GB"));
}
