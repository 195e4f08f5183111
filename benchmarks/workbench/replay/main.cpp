// replay: counts the blocks of recorded prompts that a prefix cache finds again, with each eviction policy.
//
//   replay --trace conversation_trace.jsonl --capacity 1000,10000,50000
//   replay --workloads 30 --plot distribution.svg
//   replay --trace t.jsonl.gz --capacity 20000 --eviction default --json results.json --plot hits.svg
//
// Only the policy runs, on block numbers: without keys, values, or a model. See replay --help.
#include <algorithm>
#include <iostream>
#include <new>
#include <optional>
#include <stdexcept>
#include <vector>

#include "families.hpp"
#include "gnuplot.hpp"
#include "held_model.hpp"
#include "model_shape.hpp"
#include "options.hpp"
#include "output_file.hpp"
#include "plot.hpp"
#include "rearrange.hpp"
#include "report.hpp"
#include "run.hpp"
#include "tiers.hpp"
#include "trace.hpp"

namespace replay {
namespace {

/// The workload that the options name, as a trace.
kvc_bench::Trace generated(const Options& options) {
  const Workload workload = make_workload(*options.workload, options.workloads_seed, options.workload_blocks);
  kvc_bench::Trace trace;
  trace.name = std::string(name(*options.workload)) + ", seed " + std::to_string(options.workloads_seed);
  trace.block_tokens = 512;
  trace.requests.reserve(workload.requests.size());
  for (const GeneratedRequest& from : workload.requests) {
    kvc_bench::Request request;
    request.arrival = static_cast<kvc_bench::Nanoseconds>(from.seconds * 1e9);
    request.blocks.assign(from.blocks.begin(), from.blocks.end());
    request.input_tokens = static_cast<kvc::Pos>(from.blocks.size()) * trace.block_tokens;
    trace.requests.push_back(std::move(request));
  }
  return trace;
}

void run(const Options& options) {
  // Errors that need no replay come before it.
  std::optional<kvc_bench::OutputFile> json;
  std::optional<kvc_bench::OutputFile> svg;
  if (!options.json.empty()) {
    json.emplace("--json", options.json);
  }
  if (!options.plot.empty()) {
    kvc_bench::require_gnuplot("--plot");
    svg.emplace("--plot", options.plot);
  }

  if (options.workloads > 0) {
    const std::vector<FamilyResult> results = replay_families(options.workloads, options.workloads_seed);
    print(std::cout, results);
    if (!std::cout.flush()) {
      throw std::runtime_error("cannot write to standard output");
    }
    if (svg) {
      plot(svg->working_path(), results);
      svg->finish();
    }
    return;
  }

  kvc_bench::Trace trace = options.workload ? generated(options) : kvc_bench::read_trace(options.trace, options.read);
  if (options.shuffle) {
    shuffle(trace, *options.shuffle);
  }
  keep_part(trace, options.part.number, options.part.of);
  if (trace.requests.empty()) {
    throw std::runtime_error("--part leaves no request of the trace");
  }
  std::optional<HeldModel> model;
  if (!options.model.empty()) {
    model.emplace(*std::ranges::find(serving::known_models(), options.model, &serving::ModelShape::name),
                  trace.block_tokens);
  }
  const Replay replay = replay_all(trace, options.capacities, options.evictions, model);
  print(std::cout, trace, replay);
  std::vector<TieredResult> tiered;
  if (!options.tiers.empty()) {
    tiered = replay_tiers(trace, options.capacities, options.evictions, options.tiers);
    print(std::cout, trace, options.tiers, tiered);
  }
  if (!std::cout.flush()) {
    throw std::runtime_error("cannot write to standard output");
  }
  if (json) {
    json->write(to_json(trace, replay, options.tiers, tiered));
    json->finish();
  }
  if (svg) {
    plot(svg->working_path(), trace, replay);
    svg->finish();
  }
}

}  // namespace
}  // namespace replay

int main(int argc, char** argv) {
  replay::Options options;
  int exit_code = 0;
  if (!replay::parse(argc, argv, options, exit_code)) {
    return exit_code;
  }
  try {
    replay::run(options);
    return 0;
  } catch (const std::bad_alloc&) {
    std::cerr << "replay: not enough memory: --capacity or the trace is too large for this machine\n";
  } catch (const std::exception& error) {
    std::cerr << "replay: " << error.what() << '\n';
  }
  return 1;
}
