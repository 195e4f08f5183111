// The program serve-bench, run as a user runs it.
#include <unistd.h>

#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>

#include "catch.hpp"
#include "run_program.hpp"

namespace {
kvc_test::Run serve_bench(const std::string& arguments) {
  return kvc_test::run_program(KVC_SERVE_BENCH, arguments + " 2>&1");
}
}  // namespace

TEST_CASE("serve-bench prints tables and writes one JSON document", "[program]") {
  const std::string path =
      std::filesystem::temp_directory_path() / ("kvc_serve_bench_" + std::to_string(::getpid()) + ".json");
  const kvc_test::Run run = serve_bench(
      "--scenario policy-prefix-mixed --requests 200 --policy paged,prefix-shared "
      "--load 0.5,1 --seed 9 --json " +
      path);
  CAPTURE(run.output);
  REQUIRE(run.status == 0);
  for (const char* words : {"seed 9", "TTFT p50", "prefix-shared", "prompt found", "documents"}) {
    REQUIRE_THAT(run.output, kvc_test::contains(words));
  }
  std::ifstream in(path);
  const auto report = nlohmann::json::parse(in);
  std::filesystem::remove(path);
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

TEST_CASE("serve-bench names what is wrong", "[program]") {
  struct Case {
    std::string arguments;
    int status;
    std::vector<std::string> words;
  };
  const std::vector<Case> cases = {
      {"--help", 0, {"--scenario", "--policy", "Examples:", "Exit code"}},
      {"--list", 0, {"streaming-agents", "llama-3-8b", "h100-sxm"}},
      {"", 2, {"one of --scenario and --trace"}},
      {"--scenario a --trace b", 2, {"one of --scenario and --trace"}},
      {"--scenario a --policy lru", 2, {"--policy", "\"lru\"", "contiguous-reserve"}},
      {"--scenario a --chunked maybe", 2, {"--chunked", "\"maybe\"", "on, off, both"}},
      {"--scenario a --load 0", 2, {"--load", "\"0\"", "from 0.001"}},
      {"--scenario a --requests 0", 2, {"--requests"}},
      {"--scenario multi-tenant --max-output 5", 2, {"--max-output", "--trace"}},
      {"--scenario multi-tenant --pool 8", 1, {"a pool of 8 tokens", "one block of 16"}},
      {"--scenario no-such", 1, {"no-such", "streaming-agents"}},
      {"--trace /no/such", 1, {"/no/such"}},
      {"--scenario multi-tenant --devices 1", 1, {"llama-3-70b", "141 GB"}},
      {"--scenario multi-tenant --json /no/such/file", 1, {"--json", "/no/such/file"}},
  };
  for (const Case& c : cases) {
    const kvc_test::Run run = serve_bench(c.arguments);
    CAPTURE(c.arguments, run.output);
    REQUIRE(run.status == c.status);
    for (const std::string& words : c.words) {
      REQUIRE_THAT(run.output, kvc_test::contains(words));
    }
  }
}
