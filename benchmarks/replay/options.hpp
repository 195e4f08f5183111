// What the command line says.
#pragma once

#include <string>
#include <vector>

#include "kvc/core/types.hpp"
#include "trace.hpp"

namespace replay {

using kvc::Index;
using kvc::Pos;

struct Options {
  std::string trace;
  kvc_bench::ReadOptions read;
  std::vector<Index> capacities;       // ascending, each once
  std::vector<std::string> evictions;  // names of library policies, in the order of their list, each once
  std::string json;                    // empty: none
  std::string plot;                    // empty: none
};

/// Fills `options`, and returns whether to go on. Where there is nothing to run (--help, an error), has said so and set
/// the exit code: 0, or 2.
bool parse(int argc, char** argv, Options& options, int& exit_code);

}  // namespace replay
