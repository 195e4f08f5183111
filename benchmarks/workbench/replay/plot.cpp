#include "plot.hpp"

#include <algorithm>
#include <array>
#include <cmath>
#include <filesystem>
#include <functional>
#include <sstream>
#include <utility>
#include <vector>

#include "gnuplot.hpp"
#include "report.hpp"

namespace replay {
namespace {

using kvc_bench::quoted;
using kvc_bench::Trace;

/// Ticks of a logarithmic axis at 1, 2 and 5 times the powers of ten, at these alone where there would be too many, and
/// at the ends of the data where there would be too few.
std::string ticks(Index least, Index most, double margin) {
  const bool too_many = most / least > 2000;
  std::vector<Index> at;
  for (Index power = 1; power <= 2 * most; power *= 10) {
    for (const Index factor : {1, 2, 5}) {
      const auto tick = static_cast<double>(factor * power);
      const bool inside = static_cast<double>(least) / margin <= tick && tick <= static_cast<double>(most) * margin;
      if (inside && (factor == 1 || !too_many)) {
        at.push_back(factor * power);
      }
    }
  }
  if (at.size() < 2) {
    at = least == most ? std::vector{most} : std::vector{least, most};
  }
  std::string list;
  for (const Index tick : at) {
    list += (list.empty() ? "" : ", ") + quoted(grouped(tick)) + " " + std::to_string(tick);
  }
  return list;
}

/// References are grey, dashed and have thin points. The colours are those of Okabe and Ito, which colour-blind people
/// can tell apart.
std::string style(const std::string& eviction, Accounting accounting, std::size_t number) {
  if (eviction == "belady-held") {
    return "with linespoints lw 2 dt '-' pt 2 ps 0.5 lc rgb '#808080'";
  }
  if (accounting == Accounting::flat) {
    return eviction == "unbounded" ? "with linespoints lw 2 dt '_' pt 2 ps 0.5 lc rgb '#A0A0A0'"
           : eviction == "belady"  ? "with linespoints lw 2 dt '-' pt 1 ps 0.5 lc rgb '#404040'"
                                   : "with linespoints lw 2 dt '.' pt 3 ps 0.5 lc rgb '#404040'";
  }
  constexpr std::array colours = {"#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000"};
  constexpr std::array points = {7, 5, 9, 11, 13, 4, 6, 8};
  return "with linespoints lw 2 ps 0.8 pt " + std::to_string(points[number % points.size()]) + " lc rgb '" +
         colours[number % colours.size()] + "'";
}

struct Curve {
  std::string eviction;
  std::string style;
  Index hits = 0;                                // at all capacities
  std::vector<std::pair<Index, double>> points;  // capacity, per cent
};

/// Of each policy and reference, the one with the most hits first: the legend is in the order of the lines.
std::vector<Curve> curves_of(const Replay& replay) {
  std::vector<Curve> curves;
  std::size_t policies = 0;
  for (const Result& result : replay.results) {
    auto curve = std::ranges::find(curves, result.eviction, &Curve::eviction);
    if (curve == curves.end()) {
      const std::size_t number = result.accounting == Accounting::chain ? policies++ : 0;
      curves.push_back({result.eviction, style(result.eviction, result.accounting, number), 0, {}});
      curve = curves.end() - 1;
    }
    curve->hits += result.hits.blocks;
    const auto blocks = static_cast<double>(std::max<Index>(1, replay.blocks));
    curve->points.emplace_back(result.capacity, 100 * static_cast<double>(result.hits.blocks) / blocks);
  }
  std::ranges::stable_sort(curves, std::ranges::greater{}, &Curve::hits);
  return curves;
}

std::string script(const std::string& path, const Trace& trace, const Replay& replay) {
  const std::vector<Curve> curves = curves_of(replay);
  double bottom = 100;
  double top = 0;
  for (const Curve& curve : curves) {
    for (const auto& [capacity, rate] : curve.points) {
      bottom = std::min(bottom, rate);
      top = std::max(top, rate);
    }
  }
  const double space = 0.1 * std::max(1.0, top - bottom);
  const Index least = replay.results.front().capacity;
  const Index most = replay.results.back().capacity;
  const double margin = least == most ? 2 : std::pow(static_cast<double>(most) / static_cast<double>(least), 0.03);
  std::ostringstream out;
  out << "set terminal svg size 960,560 font 'sans-serif,14' noenhanced background rgb 'white'\n"
      << "set output " << quoted(path) << "\n"
      << "set title " << quoted(std::filesystem::path(trace.name).filename().string()) << " font 'sans-serif,17'\n"
      << "set label "
      << quoted(grouped(static_cast<Index>(trace.requests.size())) + " requests, " + grouped(replay.blocks) +
                " blocks of " + std::to_string(trace.block_tokens) + " tokens, " + grouped(replay.unique_blocks) +
                " distinct")
      << " at graph 0.5, graph 1.03 center textcolor rgb '#606060'\n"
      << "set xlabel 'capacity of the pool (blocks)'\n"
      << "set ylabel 'blocks of prompts found in the cache (%)'\n"
      << "set logscale x\n"
      << "set xrange [" << static_cast<double>(least) / margin << ':' << static_cast<double>(most) * margin << "]\n"
      << "set yrange [" << std::max(0.0, bottom - space) << ':' << std::min(100.0, top + space) << "]\n"
      << "set xtics (" << ticks(least, most, margin) << ")\n"
      << "set grid lc rgb '#E0E0E0' lt 1\n"
      << "set border 3\n"
      << "set tics nomirror\n"
      << "set key outside right top Left reverse samplen 3 spacing 1.3\n";
  for (std::size_t i = 0; i < curves.size(); ++i) {
    out << "$curve" << i << " << END\n";
    for (const auto& [capacity, rate] : curves[i].points) {
      out << capacity << ' ' << rate << '\n';
    }
    out << "END\n";
  }
  for (std::size_t i = 0; i < curves.size(); ++i) {
    out << (i == 0 ? "plot " : ", ") << "$curve" << i << " title " << quoted(curves[i].eviction) << ' '
        << curves[i].style;
  }
  out << "\n";
  return out.str();
}

}  // namespace

void plot(const std::string& path, const Trace& trace, const Replay& replay) {
  kvc_bench::run_gnuplot(script(path, trace, replay), "--plot");
}

}  // namespace replay
