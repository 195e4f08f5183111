// Draws the results as one figure for a document: the pool over time under each policy, and the latencies of clients.
#pragma once

#include <iosfwd>
#include <string>
#include <vector>

#include "report.hpp"

namespace serving {

/// Writes an SVG file with gnuplot: the first run of each policy over time, and the percentiles of the TTFT of every
/// run with the same load as the first. The file ends with `plot_mark`. Throws std::runtime_error if gnuplot fails, or
/// a run has no sample.
void plot(const std::string& path, const Report& report);

/// Writes to a script of gnuplot what the slower tiers of these runs hold and give, over time: the upper half of the
/// figure of a report with tiers.
void write_tiers(std::ostream& out, const Report& report, const std::vector<const RunResult*>& runs);

/// An XML comment with a hash of the figure: tells whether a figure is current, without gnuplot.
[[nodiscard]] std::string plot_mark(const Report& report);

}  // namespace serving
