// The page of serve-bench --html, opened in a browser: its plots show what the results say.

#include <cstdlib>
#include <filesystem>
#include <nlohmann/json.hpp>

#include "catch.hpp"
#include "html.hpp"
#include "serve_bench.hpp"
#include "temp_files.hpp"

namespace {

using nlohmann::json;

void need_chart_library() {
  if (!std::filesystem::exists(KVC_CHART_LIBRARY)) {
    KVC_SKIP("Chart.js is not installed (Debian: libjs-chart.js)");
  }
}

/// The pixel counts of the page: an object for each plot, by name.
json drawn(const kvc_test::TempFolder& folder, const std::string& page) {
  const kvc_test::Run browser = kvc_test::run_program(
      "/usr/bin/env",
      "chromium --headless --no-sandbox --disable-gpu --disable-dev-shm-usage --window-size=1200,900 "
      "--virtual-time-budget=10000 --user-data-dir=" +
          folder.file("browser") + " --dump-dom 'file://" + page + "#drawn' 2>/dev/null");
  REQUIRE(browser.status == 0);
  const std::string begin = R"(<script type="application/json" id="drawn">)";
  const std::size_t at = browser.output.rfind(begin);
  REQUIRE(at != std::string::npos);
  const std::size_t text = at + begin.size();
  json plots = json::object();
  for (const json& plot : json::parse(browser.output.substr(text, browser.output.find("</script>", text) - text))) {
    plots[plot.at("name").get<std::string>()] = plot;
  }
  return plots;
}

/// The share of a plot whose axes span `seconds` and the pool that an area over `values` covers.
double share(const json& timeline, const std::string& column, double pool, double seconds) {
  const auto times = timeline.at("time_s").get<std::vector<double>>();
  const auto values = timeline.at(column).get<std::vector<double>>();
  double area = 0;
  for (std::size_t i = 1; i < times.size(); ++i) {
    area += (times[i] - times[i - 1]) * (values[i] + values[i - 1]) / 2;
  }
  return area / pool / seconds;
}

}  // namespace

TEST_CASE("In a browser, the page of serve-bench shows the results", "[page]") {
  const kvc_test::TempFolder folder;
  const kvc_test::Run run = kvc_test::serve_bench(
      "--scenario report-generator --requests 300 --pool 53248 --chunked off --load 2.25,3.5 --json " +
      folder.file("r.json") + " --html " + folder.file("r.html"));
  need_chart_library();
  INFO(run.output);
  REQUIRE(run.status == 0);
  if (std::system("command -v chromium >/dev/null 2>&1") != 0) {
    KVC_SKIP("no browser is installed (Debian: chromium)");
  }
  const json plots = drawn(folder, folder.file("r.html"));
  const json results = json::parse(kvc_test::file_text(folder.file("r.json")));
  const auto pixels = [&](const std::string& plot, const std::string& series) {
    CAPTURE(plot, series);
    REQUIRE(plots.contains(plot));
    return plots.at(plot).at("pixels").at(series).get<double>();
  };
  const auto part = [&](const std::string& plot, const std::string& series) {
    return pixels(plot, series) / plots.at(plot).at("area").get<double>();
  };
  // Bars, and lines against load.
  for (const char* plot : {"TTFT", "TPOT", "ITL"}) {
    CAPTURE(plot);
    const double p50 = part(plot, "p50"), p95 = part(plot, "p95"), p99 = part(plot, "p99");
    REQUIRE(p50 > 0.01);
    REQUIRE(p95 > p50);
    REQUIRE(p99 > p95);
  }
  for (const char* product : {"product a", "product b"}) {
    REQUIRE(part("TTFT by class", product) > 0.02);
  }
  // One line may lie under another, but not under all.
  for (const char* plot : {"throughput", "goodput", "TTFT against load", "TPOT against load"}) {
    CAPTURE(plot);
    double lines = 0;
    for (const char* policy : {"contiguous-reserve", "contiguous-grow", "paged", "prefix-shared"}) {
      lines += pixels(plot, policy);
    }
    REQUIRE(lines > 500);
  }

  // Over time, for the load of 2.25, which is the first.
  double seconds = 0;
  for (std::size_t i = 0; i < 4; ++i) {
    const json& run_i = results.at("runs").at(i);
    seconds =
        std::max({seconds, run_i.at("seconds").get<double>(), run_i.at("timeline").at("time_s").back().get<double>()});
  }
  for (std::size_t i = 0; i < 4; ++i) {
    const json& one = results.at("runs").at(i);
    REQUIRE(one.at("load") == 2.25);
    const std::string policy = one.at("policy");
    const double pool = one.at("pool_tokens");
    CAPTURE(policy);
    double expected_parts = 0;
    for (const auto& [series, column] :
         {std::pair("used", "used"), {"reserved, not used", "wasted"}, {"cached", "cached"}}) {
      CAPTURE(series);
      const double expected = share(one.at("timeline"), column, pool, seconds);
      REQUIRE(part("memory " + policy, series) == Approx(expected).margin(0.02 + 0.08 * expected));
      expected_parts += expected;
    }
    // The rest is free: the largest run, or elsewhere, with a line in between.
    const double covered = one.at("timeline").at("time_s").back().get<double>() / seconds;
    double free = 0;
    for (const char* series : {"free, elsewhere", "largest free run", "line"}) {
      free += part("memory " + policy, series);
    }
    REQUIRE(free == Approx(covered - expected_parts).margin(0.08));
    REQUIRE(pixels("queue " + policy, "running") > 300);
    REQUIRE(pixels("queue " + policy, "waiting") > 300);  // a line at 0, where nobody waits
    const std::string map = "map " + policy;
    for (int colour = 0; colour < 6; ++colour) {
      REQUIRE(part(map, "sequence " + std::to_string(colour)) > 0.01);
    }
    REQUIRE(part(map, "free") > 0.01);
    const bool shares = policy == "prefix-shared";
    REQUIRE((part(map, "cached") > 0.01) == shares);
    REQUIRE((pixels(map, "shared") > 20) == shares);
  }
  REQUIRE(part("map contiguous-reserve", "reserved") > 0.01);
  REQUIRE(part("memory contiguous-reserve", "free, elsewhere") > 0.01);
  REQUIRE(plots.size() == 3 + 1 + 4 + 4 * 3);
}

TEST_CASE("serve-bench records and draws the memory of the watched part of a run", "[page]") {
  const kvc_test::TempFolder folder;
  const std::string arguments = "--scenario report-generator --requests 300 --policy contiguous-grow --chunked off ";
  const kvc_test::Run run = kvc_test::serve_bench(arguments + "--watch 200,240 --json " + folder.file("r.json") +
                                                  " --html " + folder.file("r.html"));
  need_chart_library();
  REQUIRE(run.status == 0);
  const json results = json::parse(kvc_test::file_text(folder.file("r.json")));
  REQUIRE(results.at("watched") == json{{"from_s", 200.0}, {"to_s", 240.0}});
  for (const char* part : {"timeline", "map"}) {
    const auto times = results.at("runs").at(0).at(part).at("time_s").get<std::vector<double>>();
    REQUIRE(times.size() > 40);  // of the whole run, there are fewer in this part
    REQUIRE(times.front() >= 200);
    REQUIRE(times.front() < 201);
    REQUIRE(times.back() <= 240);
    REQUIRE(times.back() > 239);
  }
  const json& timeline = results.at("runs").at(0).at("timeline");
  if (std::system("command -v chromium >/dev/null 2>&1") != 0) {
    KVC_SKIP("no browser is installed (Debian: chromium)");
  }
  const json memory = drawn(folder, folder.file("r.html")).at("memory contiguous-grow");
  REQUIRE(memory.at("pixels").at("used").get<double>() / memory.at("area").get<double>() ==
          Approx(share(timeline, "used", results.at("pool").at("tokens"), 40)).margin(0.05));
  for (const char* watch : {"1", "5,5", "a,3", "3,", "-1,4"}) {
    const kvc_test::Run bad = kvc_test::serve_bench(arguments + "--watch=" + watch);
    REQUIRE(bad.status == 2);
    REQUIRE_THAT(bad.output, kvc_test::contains("--watch") && kvc_test::contains("whole numbers of seconds"));
  }
}

TEST_CASE("A missing chart library is reported with its package, before the simulation", "[page]") {
  try {
    const serving::HtmlPage page("/no/such/chart.min.js");
    FAIL("there is no such library");
  } catch (const std::runtime_error& error) {
    REQUIRE_THAT(error.what(), kvc_test::contains("--html") && kvc_test::contains("/no/such/chart.min.js") &&
                                   kvc_test::contains("libjs-chart.js"));
  }
}

TEST_CASE("No text in the results can end the element of the page that holds them", "[page]") {
  need_chart_library();
  const std::string name = "</script><script>alert(1)</script>{{script}}";
  const std::string page = serving::HtmlPage().with(json{{"scenario", {{"name", name}}}}.dump());
  REQUIRE(page.find("</script><script>alert") == std::string::npos);
  const std::string begin = R"(<script type="application/json" id="results">)";
  const std::size_t at = page.find(begin) + begin.size();
  const json read_back = json::parse(page.substr(at, page.find("</script>", at) - at));
  REQUIRE(read_back.at("scenario").at("name") == name);
  REQUIRE(page.find("src=") == std::string::npos);  // nothing is to be fetched
}

TEST_CASE("serve-bench draws its figure with gnuplot, or reports that it is missing", "[page]") {
  const kvc_test::TempFolder folder;
  const std::string arguments =
      "--scenario policy-prefix-mixed --requests 100 --plot '" + folder.file("figure.svg") + "' 2>&1";
  const kvc_test::Run absent = kvc_test::run_program(KVC_SERVE_BENCH, arguments, "PATH=/nowhere");
  REQUIRE(absent.status == 1);
  REQUIRE_THAT(absent.output, kvc_test::contains("--plot") && kvc_test::contains("gnuplot-nox"));
  if (std::system("command -v gnuplot >/dev/null 2>&1") != 0) {
    KVC_SKIP("gnuplot is not installed (Debian: gnuplot-nox)");
  }
  const kvc_test::Run run = kvc_test::run_program(KVC_SERVE_BENCH, arguments);
  CAPTURE(run.output);
  REQUIRE(run.status == 0);
  const std::string svg = kvc_test::file_text(folder.file("figure.svg"));
  for (const char* words : {"</svg>", "policy-prefix-mixed", "contiguous-grow", "TTFT (ms)", "largest free run"}) {
    REQUIRE_THAT(svg, kvc_test::contains(words));
  }
}
