// The results as one figure, for a document: what the pool looked like under each policy, and what clients saw of it.
#pragma once

#include <string>

#include "report.hpp"

namespace serving {

/// Writes an SVG file with gnuplot: of each policy, its first run over time; of every run with the same load as the first,
/// the percentiles of the TTFT. Throws std::runtime_error where gnuplot fails. The file ends with `plot_mark`.
void plot(const std::string& path, const Report& report);

/// A comment in XML that differs where what is drawn differs, and says so without gnuplot.
[[nodiscard]] std::string plot_mark(const Report& report);

}  // namespace serving
