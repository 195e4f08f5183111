// A Gantt chart of the engines, drawn by gnuplot.
#pragma once

#include <string>

#include "records.hpp"

namespace disaggregated {

/// Writes an SVG file: engines by time, requests by colour; prefill, transfer and decode differ in fill.
/// Throws std::runtime_error if gnuplot fails.
void draw_gantt(const std::string& path, const RunRecord& run, const std::string& title);

}  // namespace disaggregated
