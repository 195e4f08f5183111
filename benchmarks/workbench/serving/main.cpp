// serve-bench: serves traffic over each cache policy, and reports latency and memory.
//
//   serve-bench --scenario knowledge-assistant
//   serve-bench --trace conversation_trace.jsonl --policy paged,prefix-shared --json results.json
//   serve-bench --mode real --scenario small-model-chat --calibrate
//
// The library's policies run under a scheduler with continuous batching, in simulated or real time. See
// serve-bench --help.
#include <algorithm>
#include <filesystem>
#include <iostream>
#include <new>
#include <optional>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "cost_curve.hpp"
#include "gnuplot.hpp"
#include "html.hpp"
#include "options.hpp"
#include "output_file.hpp"
#include "plot.hpp"
#include "progress.hpp"
#include "real.hpp"
#include "report.hpp"
#include "step_timing.hpp"
#include "tier_curve.hpp"

namespace serving {
namespace {

/// f(load, policy, chunked) for each run that is asked for.
template <class F>
void for_each_run(const Options& options, F&& f) {
  for (const double load : options.loads) {
    for (const PolicyKind policy : options.policies) {
      for (const bool chunked : options.chunked) {
        f(load, policy, chunked);
      }
    }
  }
}

OnProgress shown_by(kvc_bench::Progress& progress, const Scenario& scenario) {
  const auto all = static_cast<double>(scenario.requests);
  return [&progress, all](Index ended) { progress.show(all == 0 ? 0 : static_cast<double>(ended) / all); };
}

/// f() with each set of tiers and load rule in the scenario; a set without tiers has no rule.
template <class F>
void for_each_tiering(const Options& options, Scenario& scenario, F&& f) {
  for (TierSet& set : tier_sets_of(options, scenario)) {
    scenario.tiers = std::move(set);
    for (const LoadRule rule : options.load_rules) {
      scenario.load_rule = rule;
      f();
      if (scenario.tiers.tiers.empty()) {
        break;
      }
    }
  }
}

void simulate_all(const Options& options, Report& report) {
  (void)report.scenario.pool();
  Scenario scenario = report.scenario;
  // Layers that differ are kept in each of the ways that are asked for; where a policy has but one, once.
  const auto for_each_way = [&](PolicyKind policy, auto&& f) {
    std::optional<LayerMemory> last;
    for (const bool one_shape : options.one_shape) {
      scenario.one_shape = one_shape;
      if (options.all_policies && !one_shape && !can_serve(scenario, policy)) {
        continue;
      }
      if (options.all_policies && scenario.names_tiers && policy != PolicyKind::prefix_shared) {
        continue;
      }
      if (std::exchange(last, layer_memory(scenario, policy)) != layer_memory(scenario, policy)) {
        for_each_tiering(options, scenario, f);
      }
    }
  };
  std::size_t runs = 0;
  for_each_run(options, [&](double, PolicyKind policy, bool) { for_each_way(policy, [&] { ++runs; }); });
  kvc_bench::Progress progress(runs);
  for_each_run(options, [&](double load, PolicyKind policy, bool chunked) {
    for_each_way(policy, [&] {
      progress.step(std::string(name(policy)) + (chunked ? ", chunked" : ""));
      report.runs.push_back(simulate(scenario, policy, chunked, load, shown_by(progress, scenario)));
    });
  });
}

/// As for_each_run, with each set of tiers and load rule in the scenario, under policies that can have them.
template <class F>
void for_each_tiered_run(const Options& options, Scenario& scenario, F&& f) {
  for_each_run(options, [&](double load, PolicyKind policy, bool chunked) {
    if (!(options.all_policies && scenario.names_tiers && policy != PolicyKind::prefix_shared)) {
      for_each_tiering(options, scenario, [&] { f(load, policy, chunked); });
    }
  });
}

std::string model_name(const Options& options) {
  return options.model.empty() ? "shakespeare-0.7m" : std::filesystem::path(options.model).filename().string();
}

/// Serves all requests in real time. To calibrate, steps are timed before each run, and both are repeated several
/// times, so that a disturbance of the machine affects both. The report has the runs with the median TTFT, and the
/// simulations.
void serve_and_measure(const Options& options, Report& report) {
  const kvc::llama::Model model = load_model(options.model);
  const RealMachine machine{&model, Threads(options.threads), options.clock};
  report.scenario = fit_to(report.scenario, model, model_name(options));
  report.scenario.hardware.name = std::to_string(options.threads) + (options.threads == 1 ? " thread" : " threads") +
                                  " of this machine" +
                                  (options.clock == ClockKind::cpu ? ", in its processor time" : "");
  const int rounds = options.calibrate ? options.rounds : 1;
  std::size_t runs_of_round = 0;
  for_each_tiered_run(options, report.scenario, [&](double, PolicyKind, bool) { ++runs_of_round; });
  kvc_bench::Progress progress(static_cast<std::size_t>(rounds) * runs_of_round * (options.calibrate ? 2 : 1));
  std::vector<std::vector<StepTiming>> timings;
  std::vector<std::vector<RunResult>> real(runs_of_round);
  for (int round = 0; round < rounds; ++round) {
    std::size_t at = 0;
    for_each_tiered_run(options, report.scenario, [&](double load, PolicyKind policy, bool chunked) {
      if (options.calibrate) {
        progress.step("steps");
        timings.push_back(time_steps(machine, 1));
      }
      progress.step(std::string(name(policy)) + (chunked ? ", chunked" : ""));
      real[at++].push_back(
          serve_real(report.scenario, policy, chunked, load, machine, shown_by(progress, report.scenario)));
    });
  }
  if (options.calibrate) {
    report.fit = fit_hardware(report.scenario.model, median_of(timings));
    const std::string machine_name = report.scenario.hardware.name;
    report.scenario.hardware = report.fit->hardware;
    report.scenario.hardware.name = machine_name;
  }
  std::size_t at = 0;
  for_each_tiered_run(options, report.scenario, [&](double load, PolicyKind policy, bool chunked) {
    std::vector<RunResult>& runs = real[at++];
    std::optional<RunResult> simulated;
    if (options.calibrate) {
      simulated = simulate(report.scenario, policy, chunked, load);
      report.comparisons.push_back(compare(*simulated, runs));
    }
    const auto middle = runs.begin() + static_cast<std::ptrdiff_t>(runs.size() / 2);
    std::ranges::nth_element(runs, middle, {}, [](const RunResult& run) { return run.metrics.all().ttft.mean(); });
    report.runs.push_back(std::move(*middle));
    if (simulated) {
      report.runs.push_back(std::move(*simulated));
    }
  });
}

void draw_cost_curve(const Options& options) {
  kvc_bench::require_gnuplot("--cost-curve");
  kvc_bench::OutputFile file("--cost-curve", options.cost_curve);
  const kvc::llama::Model model = load_model(options.model);
  const RealMachine machine{&model, Threads(options.threads), options.clock};
  const ModelShape shape = shape_of(model, model_name(options));
  const Fit fit = fit_hardware(shape, time_steps(machine, options.rounds));
  draw_cost_curve(file.working_path(), std::cout, shape, fit, time_curve(machine, options.rounds));
  file.finish();
}

void draw_tier_curve(const Options& options) {
  kvc_bench::require_gnuplot("--tier-curve");
  kvc_bench::OutputFile file("--tier-curve", options.tier_curve);
  const kvc::llama::Model model = load_model(options.model);
  const RealMachine machine{&model, Threads(options.threads), options.clock};
  draw_tier_curve(file.working_path(), std::cout, measure_turns(machine, options.rounds));
  file.finish();
}

void run(const Options& options) {
  if (!options.tier_curve.empty()) {
    draw_tier_curve(options);
    return;
  }
  if (!options.cost_curve.empty()) {
    draw_cost_curve(options);
    return;
  }
  // Errors that need no simulation come before it.
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
    kvc_bench::require_gnuplot("--plot");
    figure.emplace("--plot", options.plot);
  }
  Report report{scenario_of(options), {}};
  if (options.real) {
    serve_and_measure(options, report);
  } else {
    simulate_all(options, report);
  }
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
  if (answers_agree(report) == false) {
    throw std::runtime_error("the answers to the same requests differ from policy to policy");
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
