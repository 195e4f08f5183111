// Draws hit rates over capacities. Starts gnuplot for it.
#pragma once

#include <string>

#include "run.hpp"
#include "trace.hpp"

namespace replay {

/// Writes an SVG file. Throws std::runtime_error where gnuplot fails.
void plot(const std::string& path, const kvc_bench::Trace& trace, const Replay& replay);

}  // namespace replay
