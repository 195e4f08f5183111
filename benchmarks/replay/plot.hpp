// Draws hit rates over capacities with gnuplot, which is started as a program.
#pragma once

#include <string>

#include "run.hpp"
#include "trace.hpp"

namespace replay {

/// Throws std::runtime_error, with the name of its package, where gnuplot cannot be started.
void require_gnuplot();

/// Writes an SVG file.
void plot(const std::string& path, const kvc_bench::Trace& trace, const Replay& replay);

}  // namespace replay
