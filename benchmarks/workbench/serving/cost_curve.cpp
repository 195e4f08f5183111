#include "cost_curve.hpp"

#include <algorithm>
#include <cstdio>
#include <numeric>
#include <ostream>
#include <sstream>
#include <string_view>
#include <utility>
#include <vector>

#include "gnuplot.hpp"
#include "text.hpp"

namespace serving {
namespace {

using kvc_bench::quoted;
using text::fixed;

struct Point {
  Index x = 0;
  double measured = 0;
  double predicted = 0;
};

struct Series {
  std::string title;
  const char* colour;
  std::vector<Point> points;
};

double predicted(const CostModel& model, const StepTiming& step) {
  return static_cast<double>(model.time(step.cost)) / second;
}

/// Microseconds per token of a step.
Series per_token(const CostModel& model, std::string title, const char* colour, const std::vector<StepTiming>& steps) {
  Series series{std::move(title), colour, {}};
  for (const StepTiming& step : steps) {
    const double scale = 1e6 / static_cast<double>(step.cost.tokens);
    series.points.push_back({step.cost.tokens, scale * step.seconds, scale * predicted(model, step)});
  }
  return series;
}

/// Milliseconds by chunk size: of the whole prompt, and of the longest step.
std::pair<Series, Series> by_chunk(const CostModel& model, const CostCurve& curve) {
  Series whole{"until the first token", "#0072B2", {}};
  Series longest{"the longest step: what decodes wait", "#D55E00", {}};
  for (const ChunkTiming& timing : curve.chunked) {
    Point sum{timing.chunk}, most{timing.chunk};
    for (const StepTiming& step : timing.steps) {
      const double p = 1000 * predicted(model, step);
      sum.measured += 1000 * step.seconds;
      sum.predicted += p;
      most.measured = std::max(most.measured, 1000 * step.seconds);
      most.predicted = std::max(most.predicted, p);
    }
    whole.points.push_back(sum);
    longest.points.push_back(most);
  }
  return {whole, longest};
}

void print(std::ostream& out, std::string_view unit, const Series& series) {
  out << '\n' << series.title << ", " << unit << "\n    tokens   measured    formula\n";
  for (const Point& p : series.points) {
    char line[64];
    std::snprintf(line, sizeof line, "  %8lld %10.2f %10.2f\n", static_cast<long long>(p.x), p.measured, p.predicted);
    out << line;
  }
}

/// Points are measured, lines are the formula.
void plot(std::ostream& out, const std::vector<Series>& panel) {
  for (std::size_t i = 0; i < panel.size(); ++i) {
    out << "$data" << i << " << END\n";
    for (const Point& p : panel[i].points) {
      out << p.x << ' ' << p.measured << ' ' << p.predicted << '\n';
    }
    out << "END\n";
  }
  for (std::size_t i = 0; i < panel.size(); ++i) {
    const std::string data = "$data" + std::to_string(i);
    out << (i == 0 ? "plot " : ", ") << data << " using 1:2 with points pt 7 ps 0.8 lc rgb '" << panel[i].colour
        << "' title " << quoted(panel[i].title) << ", " << data << " using 1:3 with lines lw 2 lc rgb '"
        << panel[i].colour << "' notitle";
  }
  out << '\n';
}

}  // namespace

void draw_cost_curve(const std::string& path, std::ostream& table, const ModelShape& shape, const Fit& fit,
                     const CostCurve& curve) {
  const CostModel model(shape, fit.hardware);
  const Series prefill = per_token(model, "prefill: tokens of one prompt", "#0072B2", curve.prefill);
  const Series decode = per_token(model, "decode: one token of each sequence", "#D55E00", curve.decode);
  const auto [whole, longest] = by_chunk(model, curve);

  const Hardware& h = fit.hardware;
  table << shape.name << ": matrices " << fixed(h.peak / 1e9, 1) << " G operations/s, attention "
        << fixed(h.attention_peak / 1e9, 1) << ", of single queries " << fixed(h.decode_peak / 1e9, 1) << ", bytes "
        << (h.bandwidth < no_limit ? fixed(h.bandwidth / 1e9, 1) + " GB/s, " : "no limit seen, ")
        << fixed(h.overhead * 1e6, 1) << " us a step, " << fixed(h.per_sequence * 1e6, 1) << " us a sequence; "
        << fit.timings << " kinds of steps, median error " << fixed(100 * fit.median_error, 1) << " %, largest "
        << fixed(100 * fit.largest_error, 1) << " %\n";
  print(table, "us a token", prefill);
  print(table, "us a token", decode);
  const std::string prompt = "a prompt of " + std::to_string(curve.prompt) + " tokens in chunks, " +
                             std::to_string(curve.decoding) + " sequences decode beside it";
  table << '\n' << prompt << '\n';
  print(table, "ms", whole);
  print(table, "ms", longest);

  std::ostringstream script;
  script << "set terminal svg size 1200,520 font 'sans-serif,14' noenhanced background rgb 'white'\n"
         << "set output " << quoted(path) << '\n'
         << "set multiplot layout 1,2\n"
         << "set logscale x 2\nset logscale y\nset grid lc rgb '#E0E0E0' lt 1\nset border 3\nset tics nomirror\n"
         << "set key top right Left reverse samplen 1 spacing 1.3\n"
         << "set title 'a step of so many tokens; points measured, lines the formula'\n"
         << "set xlabel 'tokens in the step'\nset ylabel 'microseconds a token'\nset yrange [10:*]\n";
  plot(script, {prefill, decode});
  script << "unset logscale y\nset yrange [0:*]\nset title " << quoted(prompt)
         << "\nset xlabel 'tokens of a chunk'\nset ylabel 'milliseconds'\n";
  plot(script, {whole, longest});
  script << "unset multiplot\n";
  kvc_bench::run_gnuplot(script.str(), "--cost-curve");
}

}  // namespace serving
