// Draws hit rates over capacities with gnuplot, which is started as a program.
#pragma once

#include <string>

#include "run.hpp"
#include "trace.hpp"

namespace replay {

/// Writes an SVG file. Throws std::runtime_error where gnuplot fails.
void plot(const std::string& path, const kvc_bench::Trace& trace, const Replay& replay);

}  // namespace replay
