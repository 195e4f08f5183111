// Draws the cost of prefill, decode and chunks on a machine: the measured times, and those of the formula.
#pragma once

#include <iosfwd>
#include <string>

#include "step_timing.hpp"

namespace serving {

/// Draws an SVG file with gnuplot and writes the same numbers as a table. Throws std::runtime_error if gnuplot fails.
void draw_cost_curve(const std::string& path, std::ostream& table, const ModelShape& shape, const Fit& fit,
                     const CostCurve& curve);

}  // namespace serving
