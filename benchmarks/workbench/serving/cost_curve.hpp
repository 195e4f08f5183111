// The cost of prefill, decode and chunks on a machine: measured, beside the formula.
#pragma once

#include <iosfwd>
#include <string>

#include "step_timing.hpp"

namespace serving {

/// Writes an SVG file with gnuplot, and what it shows as a table. Throws std::runtime_error where gnuplot fails.
void draw_cost_curve(const std::string& path, std::ostream& table, const ModelShape& shape, const Fit& fit,
                     const CostCurve& curve);

}  // namespace serving
