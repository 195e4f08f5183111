// The figures and tables of docs/incidents.md and docs/serving.md are the output of the commands beside them.
#include <cmath>
#include <cstdio>
#include <sstream>

#include "catch.hpp"
#include "plot.hpp"
#include "run.hpp"
#include "temp_files.hpp"

using namespace serving;

namespace {

std::string grouped(Index value) {
  std::string text = std::to_string(value);
  for (std::size_t at = text.size(); at > 3;) {
    text.insert(at -= 3, 1, ',');
  }
  return text;
}
std::string ms(Time time) { return grouped(std::llround(static_cast<double>(time) / millisecond)); }

/// A row of the table of an incident.
std::string row(const std::string& title, const RunResult& run) {
  const Latencies& all = run.metrics.all();
  const Counters& c = run.counters;
  const auto counted = [](Index count, Index quarter) { return grouped(count) + " (" + grouped(quarter) + ")"; };
  std::ostringstream out;
  out << "| " << title << " | " << ms(all.ttft.percentile(50)) << " | " << ms(all.ttft.percentile(95)) << " | "
      << ms(all.ttft.percentile(99)) << " | " << ms(all.tpot.percentile(99)) << " | "
      << counted(c.failed_admissions, c.failed_admissions_25) << " | "
      << grouped(std::llround(static_cast<double>(c.blocked_25) / second)) << " s | "
      << counted(c.out_of_room, c.out_of_room_25) << " | " << grouped(c.preemptions) << " | "
      << std::llround(100.0 * static_cast<double>(c.prompt_tokens_found) / static_cast<double>(c.prompt_tokens))
      << " % |";
  return out.str();
}

/// The runs of the command for a scenario.
Report report_of(const std::string& scenario) {
  Report report{read_scenario(scenario), {}};
  for (const PolicyKind policy : all_policies) {
    for (const bool chunked : {false, true}) {
      report.runs.push_back(simulate(report.scenario, policy, chunked));
    }
  }
  return report;
}

}  // namespace

TEST_CASE("docs/incidents.md shows the output of its commands", "[documents]") {
  const std::string name = GENERATE("policy-prefix-mixed", "knowledge-assistant", "multi-tenant", "chat-completions",
                                    "report-generator", "streaming-agents");
  CAPTURE(name);
  const std::string folder = KVC_SOURCE_DIR "/docs/";
  const Report report = report_of(name);
  std::string rows;
  for (const RunResult& run : report.runs) {
    if (run.chunk_tokens == 0) {
      rows += row(std::string(serving::name(run.policy)), run) + "\n";
    }
  }
  if (name == "streaming-agents") {
    Scenario unpinned = report.scenario;
    unpinned.traffic[0].pinned = false;
    rows += row("prefix-shared, nothing pinned", simulate(unpinned, PolicyKind::prefix_shared, false)) + "\n";
  }
  INFO("run serve-bench --scenario " << name << " --plot docs/incidents/" << name << ".svg, and let the table be\n"
                                     << rows);
  CHECK(kvc_test::file_text(folder + "incidents.md").find(rows) != std::string::npos);
  const std::string mark = plot_mark(report);
  CHECK(kvc_test::file_text(folder + "incidents/" + name + ".svg").find(mark) != std::string::npos);
  REQUIRE(mark.find("--", 4) == mark.size() - 4);  // XML has no other dashes in a comment
  if (name == "knowledge-assistant") {
    // Every line of the output in docs/serving.md is printed.
    Report chunked{report.scenario, {}};
    for (const RunResult& run : report.runs) {
      if (run.chunk_tokens > 0) {
        chunked.runs.push_back(run);
      }
    }
    std::ostringstream printed;
    print(printed, chunked);
    const std::string text = kvc_test::file_text(folder + "serving.md");
    std::size_t at = text.find("mistral-7b on a10, simulated");
    REQUIRE(at != std::string::npos);
    std::istringstream shown(text.substr(at, text.find("```", at) - at));
    INFO(printed.str());
    for (std::string line; std::getline(shown, line);) {
      CHECK(printed.str().find(line + "\n") != std::string::npos);
    }
  }
}

TEST_CASE("docs/serving.md shows what layer groups save", "[documents]") {
  const auto cell = [](double value, int digits) {
    char text[32];
    std::snprintf(text, sizeof text, "%.*f", digits, value);
    return std::string(text);
  };
  const std::string text = kvc_test::file_text(KVC_SOURCE_DIR "/docs/serving.md");
  Scenario scenario = read_scenario("window-model");
  const double pool = static_cast<double>(scenario.pool()) * scenario.model.kv_bytes_per_token() / 1e9;
  for (const bool one_shape : {false, true}) {
    scenario.one_shape = one_shape;
    const RunResult run = simulate(scenario, PolicyKind::prefix_shared, true);
    const std::string begin = "| " + label(run) + " | 1.00 | ";
    const std::size_t at = text.find(begin);
    REQUIRE(at != std::string::npos);
    const std::string row = text.substr(at, text.find('\n', at) - at);
    CAPTURE(row);
    for (const std::string& value :
         {cell(run.metrics.per_second(run.metrics.all().good), 2), cell(100 * run.use.mean_share(), 0) + " % of",
          std::to_string(run.counters.delayed), cell(run.use.mean_running(), 1),
          cell(run.use.mean_share() * pool / run.use.mean_running(), 2)}) {
      CHECK_THAT(row, kvc_test::contains("| " + value));
    }
  }
}
