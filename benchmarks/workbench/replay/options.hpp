// The options of replay on the command line.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "kvc/core/types.hpp"
#include "tiers.hpp"
#include "trace.hpp"
#include "workloads.hpp"

namespace replay {

using kvc::Index;
using kvc::Pos;

/// Part `number` of `of` equal parts of the trace.
struct Part {
  std::size_t number = 1;
  std::size_t of = 1;
};

/// The parsed command line.
struct Options {
  std::string trace;
  kvc_bench::ReadOptions read;
  std::vector<Index> capacities;       // ascending, each once
  std::vector<std::string> evictions;  // names of library policies, in the order of their list, each once
  Part part;                           // of the trace
  std::optional<std::uint64_t> shuffle;
  std::vector<TierSize> tiers;     // behind the pool, the fastest first
  std::string model;               // of serving::known_models(); empty: none
  std::optional<Family> workload;  // a generated one, instead of a trace
  Index workload_blocks = 100'000;
  std::size_t workloads = 0;  // generated ones, instead of a trace
  std::uint64_t workloads_seed = 1;
  std::string json;  // empty: none
  std::string plot;  // empty: none
};

/// Fills `options`, and returns whether to continue. Where there is nothing to run (--help, an error), has said so and
/// set the exit code: 0, or 2.
bool parse(int argc, char** argv, Options& options, int& exit_code);

}  // namespace replay
