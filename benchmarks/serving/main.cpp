// serve-bench: what does each cache policy make of this traffic?
//
//   serve-bench --scenario knowledge-assistant
//   serve-bench --trace conversation_trace.jsonl --policy paged,prefix-shared --json results.json
//
// The library's policies under a scheduler with continuous batching, in simulated time. serve-bench --help says the
// rest.
#include <iostream>
#include <new>
#include <optional>
#include <stdexcept>

#include "gnuplot.hpp"
#include "html.hpp"
#include "options.hpp"
#include "output_file.hpp"
#include "plot.hpp"
#include "progress.hpp"
#include "report.hpp"

namespace serving {
namespace {

void run(const Options& options) {
  // What can be said before the work is said before it.
  std::optional<kvc_bench::OutputFile> json;
  if (!options.json.empty()) {
    json.emplace("--json", options.json);
  }
  std::optional<kvc_bench::OutputFile> html;
  std::optional<HtmlPage> page;
  if (!options.html.empty()) {
    page.emplace();
    html.emplace("--html", options.html);
  }
  std::optional<kvc_bench::OutputFile> figure;
  if (!options.plot.empty()) {
    kvc_bench::require_gnuplot();
    figure.emplace("--plot", options.plot);
  }
  Report report{scenario_of(options), {}};
  (void)report.scenario.pool();

  kvc_bench::Progress progress(options.policies.size() * options.chunked.size() * options.loads.size());
  for (const double load : options.loads) {
    for (const PolicyKind policy : options.policies) {
      for (const bool chunked : options.chunked) {
        progress.step(std::string(name(policy)) + (chunked ? ", chunked" : ""));
        const auto all = static_cast<double>(report.scenario.requests);
        report.runs.push_back(simulate(report.scenario, policy, chunked, load, [&](Index ended) {
          progress.show(all == 0 ? 0 : static_cast<double>(ended) / all);
        }));
      }
    }
  }
  progress.clear();
  print(std::cout, report);
  if (!std::cout.flush()) {
    throw std::runtime_error("cannot write to standard output");
  }
  if (json) {
    json->write(to_json(report));
    json->finish();
  }
  if (html) {
    html->write(page->with(to_json(report)));
    html->finish();
  }
  if (figure) {
    plot(figure->working_path(), report);
    figure->finish();
  }
}

}  // namespace
}  // namespace serving

int main(int argc, char** argv) {
  serving::Options options;
  int exit_code = 0;
  if (!serving::parse(argc, argv, options, exit_code)) {
    return exit_code;
  }
  try {
    serving::run(options);
    return 0;
  } catch (const std::bad_alloc&) {
    std::cerr << "serve-bench: not enough memory: the pool or a request is too large for this machine\n";
  } catch (const std::exception& error) {
    std::cerr << "serve-bench: " << error.what() << '\n';
  }
  return 1;
}
