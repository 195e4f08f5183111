// The program serve-bench, run as a user runs it.

#include <algorithm>
#include <cstdlib>
#include <iterator>
#include <nlohmann/json.hpp>
#include <regex>
#include <sstream>
#include <string>
#include <vector>

#include "catch.hpp"
#include "serve_bench.hpp"
#include "temp_files.hpp"

TEST_CASE("serve-bench prints tables and writes one JSON document", "[program]") {
  const kvc_test::TempFolder folder;
  const std::string path = folder.file("report.json");
  const kvc_test::Run run = kvc_test::serve_bench(
      "--scenario policy-prefix-mixed --requests 200 --policy paged,prefix-shared "
      "--load 0.5,1 --seed 9 --json " +
      path);
  CAPTURE(run.output);
  REQUIRE(run.status == 0);
  for (const char* words : {"seed 9", "TTFT p50", "prefix-shared", "prompt found", "documents"}) {
    REQUIRE_THAT(run.output, kvc_test::contains(words));
  }
  const auto report = nlohmann::json::parse(kvc_test::file_text(path));
  REQUIRE(report.at("schema") == 1);
  REQUIRE(report.at("scenario").at("seed") == 9);
  REQUIRE(report.at("runs").size() == 2 * 2 * 2);
  for (const auto& one : report.at("runs")) {
    REQUIRE(one.at("requests").at("completed") == 200);
    REQUIRE(one.at("latency").at("ttft_ms").at("count") == 200);
    REQUIRE(one.at("classes").size() == 2);
    const auto& timeline = one.at("timeline");
    for (const char* column : {"used", "wasted", "cached", "free", "largest_free_run", "waiting", "running"}) {
      REQUIRE(timeline.at(column).size() == timeline.at("time_s").size());
    }
    REQUIRE(one.at("map").at("owners").size() == one.at("map").at("time_s").size());
  }
}

TEST_CASE("serve-bench names bad options and files", "[program]") {
  struct Case {
    std::string arguments;
    int status;
    std::vector<std::string> words;
  };
  const std::vector<Case> cases = {
      {"--help", 0, {"--scenario", "--policy", "Examples:", "Exit code"}},
      {"--list", 0, {"streaming-agents", "llama-3-8b", "gemma-3-27b", "qwen3-next-80b", "jamba-52b", "h100-sxm"}},
      {"", 2, {"one of --scenario and --trace"}},
      {"--scenario a --trace b", 2, {"one of --scenario and --trace"}},
      {"--scenario a --policy lru", 2, {"--policy", "\"lru\"", "contiguous-reserve"}},
      {"--scenario a --chunked maybe", 2, {"--chunked", "\"maybe\"", "on, off, both"}},
      {"--scenario a --groups maybe", 2, {"--groups", "\"maybe\"", "on, off, both"}},
      {"--scenario a --load 0", 2, {"--load", "\"0\"", "from 0.001"}},
      {"--scenario a --requests 0", 2, {"--requests"}},
      {"--scenario multi-tenant --max-output 5", 2, {"--max-output", "--trace"}},
      {"--scenario multi-tenant --pool 8", 1, {"a pool of 8 tokens", "one block of 16"}},
      {"--scenario no-such", 1, {"no-such", "streaming-agents"}},
      {"--trace /no/such", 1, {"/no/such"}},
      {"--scenario multi-tenant --devices 1", 1, {"llama-3-70b", "141 GB"}},
      {"--scenario multi-tenant --json /no/such/file", 1, {"--json", "/no/such/file"}},
      {"--scenario multi-tenant --html \"\"", 2, {"--html", "the name of a file"}},
  };
  for (const Case& c : cases) {
    const kvc_test::Run run = kvc_test::serve_bench(c.arguments);
    CAPTURE(c.arguments, run.output);
    REQUIRE(run.status == c.status);
    for (const std::string& words : c.words) {
      REQUIRE_THAT(run.output, kvc_test::contains(words));
    }
  }
}

TEST_CASE("serve-bench prints no percentiles where there are no values", "[program]") {
  const auto cells = [](const std::string& output, const std::string& table) {
    std::istringstream lines(output.substr(output.find(table)));
    std::string line;
    for (int i = 0; i < 3; ++i) {  // its title, its head, its first row
      REQUIRE(std::getline(lines, line));
    }
    std::istringstream row(line);
    return std::vector<std::string>(std::istream_iterator<std::string>(row), {});
  };
  const kvc_test::TempFolder folder;
  const std::string two_classes = folder.write(
      "two.json", R"({"story": "s", "model": "llama-3-8b", "hardware": "a100-80g", "requests": 3, "traffic": [)"
                  R"({"name": "a", "rate": 1, "prompt": 5, "output": 3},)"
                  R"({"name": "b", "rate": 1e-6, "prompt": 5, "output": 3}]})");
  kvc_test::Run run = kvc_test::serve_bench("--scenario " + two_classes + " --policy paged");
  CAPTURE(run.output);
  REQUIRE(run.status == 0);
  std::vector<std::string> row = cells(run.output, "TTFT by class");
  REQUIRE(row.size() == 7);
  REQUIRE(row[3] != "-");
  REQUIRE(row[5] == "-");
  REQUIRE(row[6] == "-");

  // The first token of a request that is aborted never comes; an answer of one token has no time between two.
  const std::string trace =
      folder.write("aborted.jsonl", R"({"timestamp": 0, "input_length": 32000, "output_length": 1, "abort_after": 1})"
                                    "\n");
  run = kvc_test::serve_bench("--trace " + trace + " --policy paged --chunked on");
  REQUIRE(run.status == 0);
  row = cells(run.output, "latency, in ms");
  REQUIRE(std::count(row.begin() + 4, row.end(), "-") == 7);
}

TEST_CASE("serve-bench reads a pipe once for all of its runs", "[program]") {
  const std::string line = R"({"timestamp": 0, "input_length": 32, "output_length": 1})";
  const kvc_test::Run run = kvc_test::run_program(KVC_SERVE_BENCH, "--trace /dev/stdin --load 1,2 --requests 3 2>&1",
                                                  "echo '" + line + "' |");
  CAPTURE(run.output);
  REQUIRE(run.status == 0);
  std::istringstream lines(run.output.substr(0, run.output.find("memory;")));
  int completed = 0;
  for (std::string text; std::getline(lines, text);) {
    completed += std::regex_search(text, std::regex("  (contiguous-|paged|prefix-)\\S* +\\S+ +[12].00 +3 ")) ? 1 : 0;
  }
  REQUIRE(completed == 4 * 2 * 2);
}

TEST_CASE("serve-bench names the error of a trace, a scenario or a figure", "[program]") {
  const kvc_test::TempFolder folder;
  const std::string scenario = R"({"story": "s", "model": "llama-3-8b", "requests": 5, "hardware": )";
  struct Case {
    std::string arguments;
    std::vector<std::string> words;
  };
  const std::vector<Case> cases = {
      {"--trace " + folder.write("a.csv", "2023-11-16 18:17:03.97,48,10\n2023-11-16 18:17:04.03,17,8\n") +
           " --format azure",
       {"a.csv:1: must be the header TIMESTAMP,ContextTokens,GeneratedTokens"}},
      {"--trace " + folder.write("b.csv", "TIMESTAMP,GeneratedTokens,ContextTokens\n2023-11-16 18:17:03.97,48,10\n"),
       {"b.csv:1: must be the header"}},
      {"--trace " + folder.write("c.jsonl", R"({"timestamp": 0, "input_length": 32})"),
       {"c.jsonl:1: \"output_length\": is missing"}},
      {"--trace " + folder.write("d.jsonl", R"({"timestamp": 0})"), {"own has \"output_length\"", "session has"}},
      {"--trace " + folder.write("e.jsonl", R"({"timestamp": 0, "input_length": 64, "output_length": 1})") +
           " --pool 32 --plot " + folder.file("x.svg"),
       {std::system("command -v gnuplot >/dev/null") == 0
            ? "--plot: nothing to draw: the pool has room for none of the requests"
            : "gnuplot-nox"}},
      {"--scenario " + folder.write("h.json", "{\"story\": nil}"), {"h.json: is not JSON: error at byte 11"}},
      {"--scenario " + folder.write("i.json", "[]"), {"i.json: is an array of 0, must be an object"}},
      {"--scenario " +
           folder.write("f.json", scenario + R"("a100-80g", "traffic": [{"name": "a", "rate": 1e-6, "until_s": 3,)"
                                             R"( "prompt": 5, "output": 3}]})"),
       {"the traffic yields no request"}},
      {"--scenario " +
           folder.write("g.json", scenario + R"({"peak": 1, "bandwidth": 1, "memory": 1e12}, "traffic": )"
                                             R"([{"name": "a", "rate": 1, "prompt": [100, 200], "output": 3}]})"),
       {"the simulated time exceeds"}},
  };
  for (const Case& c : cases) {
    const kvc_test::Run run = kvc_test::serve_bench(c.arguments + " --policy paged");
    CAPTURE(c.arguments, run.output);
    REQUIRE(run.status == 1);
    for (const std::string& words : c.words) {
      REQUIRE_THAT(run.output, kvc_test::contains(words));
    }
  }
}
