#include "plot.hpp"

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <fstream>
#include <sstream>
#include <stdexcept>
#include <utility>
#include <vector>

#include "gnuplot.hpp"

namespace serving {
namespace {

using kvc_bench::quoted;

/// The runs with the load of the first run: those to draw.
std::vector<const RunResult*> runs_of(const Report& report) {
  std::vector<const RunResult*> runs;
  for (const RunResult& run : report.runs) {
    if (run.load == report.runs.front().load) {
      runs.push_back(&run);
    }
  }
  return runs;
}

/// The first run of each policy, and way of keeping layers.
std::vector<const RunResult*> one_each(const std::vector<const RunResult*>& runs) {
  std::vector<const RunResult*> firsts;
  for (const RunResult* run : runs) {
    if (std::ranges::none_of(firsts, [&](const RunResult* first) { return label(*first) == label(*run); })) {
      firsts.push_back(run);
    }
  }
  return firsts;
}

/// A part of the pool.
struct Part {
  const char* title;
  const char* colour;
};
/// As in the page, from the bottom up. The largest free run fills the rest.
constexpr std::array parts = {Part{"used", "#0072B2"}, Part{"reserved, not used", "#E69F00"}, Part{"cached", "#56B4E9"},
                              Part{"free, not in the largest run", "#E3B4CF"}};

/// Writes about one line per pixel: time in minutes, and the top of each part.
void write_samples(std::ostream& out, const RunResult& run) {
  const auto pool = static_cast<double>(run.pool_tokens);
  const std::vector<Sample>& samples = run.timeline.samples();
  for (std::size_t i = 0; i < samples.size(); i += samples.size() / 257 + 1) {
    const Sample& s = samples[i];
    out << static_cast<double>(s.time) / second / 60;
    const Index elsewhere = s.free - std::min(s.free, s.largest_free_run);
    Index top = 0;
    for (const Index part : {s.used, s.wasted, s.cached, elsewhere}) {
      top += part;
      out << ' ' << std::round(1000 * static_cast<double>(top) / pool) / 10;
    }
    out << '\n';
  }
}

/// Marks the times in which a total rose from sample to sample by rectangles above the plot; neighbours are joined.
template <class Total>
void write_marks(std::ostream& out, const std::vector<Sample>& samples, Total Sample::* total, double bottom,
                 const char* colour) {
  const auto at = [&](std::size_t i) { return static_cast<double>(samples[i].time) / second / 60; };
  for (std::size_t i = 1; i < samples.size(); ++i) {
    const std::size_t first = i - 1;
    for (; i < samples.size() && samples[i].*total > samples[i - 1].*total; ++i) {
    }
    if (i - 1 > first) {
      out << "set object rectangle from first " << at(first) << ", graph " << bottom << " to first " << at(i - 1)
          << ", graph " << bottom + 0.04 << " noclip fillstyle solid noborder fillcolor rgb '" << colour << "'\n";
    }
  }
}

double minutes(const std::vector<const RunResult*>& runs) {
  double end = 0;
  for (const RunResult* run : runs) {
    const std::vector<Sample>& samples = run->timeline.samples();
    end = std::max(end, samples.empty() ? 0 : static_cast<double>(samples.back().time) / second / 60);
  }
  return end == 0 ? 1 : end;
}

void write_memory(std::ostream& out, const RunResult& run, std::size_t number, bool leftmost) {
  // Nothing was admitted, and a sequence ran out of room, with a quarter of the pool free.
  write_marks(out, run.timeline.samples(), &Sample::blocked_25, 1.07, "#D55E00");
  write_marks(out, run.timeline.samples(), &Sample::out_of_room_25, 1.02, "#000000");
  out << "set title " << quoted(label(run)) << " offset 0,0.6\n"
      << "set ylabel " << quoted(leftmost ? "share of the pool (%)" : "") << "\nset format y '"
      << (leftmost ? "%.0f" : "") << "'\nplot ";
  for (std::size_t part = parts.size(); part-- > 0;) {  // each hides of the one before what is below its own top
    out << "$run" << number << " using 1:" << part + 2
        << " with filledcurves x1 notitle fillstyle solid noborder lc rgb '" << parts[part].colour << "', ";
  }
  out << "$run" << number << " using 1:" << parts.size() + 1
      << " with lines notitle lw 1 lc rgb '#000000'\nunset object\n";
}

/// Ticks of a logarithmic axis, at 1, 2 and 5 times the powers of ten, or at these alone.
std::string ticks(double least, double most) {
  const std::vector<int> factors = most / least > 200 ? std::vector{1} : std::vector{1, 2, 5};
  std::string list;
  for (double power = 1e-3; power <= most; power *= 10) {
    for (const int factor : factors) {
      const double tick = factor * power;
      if (least <= tick && tick <= most) {
        std::ostringstream text;
        text << tick;
        list.append(list.empty() ? "" : ", ").append(text.str());
      }
    }
  }
  return list;
}

void write_latency(std::ostream& out, const std::vector<const RunResult*>& runs) {
  constexpr std::array percents = {50.0, 95.0, 99.0};
  constexpr std::array colours = {"#56B4E9", "#0072B2", "#00324F"};
  const bool both = std::ranges::any_of(
      runs, [&](const RunResult* run) { return (run->chunk_tokens == 0) != (runs.front()->chunk_tokens == 0); });
  Time slowest = 0;
  for (const RunResult* run : runs) {
    slowest = std::max(slowest, run->metrics.all().ttft.percentile(99));
  }
  const auto [unit, word] = slowest > 20 * second ? std::pair(second, "s") : std::pair(millisecond, "ms");
  double least = 1e300;
  double most = 0;
  out << "$latency << END\n";
  for (const RunResult* run : runs) {
    // Names of policies have no quotes.
    const std::string tiers =
        std::string(run->tier_set) + (run->tiers.empty() ? "" : "\\n" + std::string(name(run->load_rule)));
    out << '"' << (run->tier_set.empty() ? label(*run) : tiers)
        << (both ? run->chunk_tokens == 0 ? "\\nwhole prompts" : "\\nchunks" : "") << '"';
    for (const double percent : percents) {
      const double value = static_cast<double>(run->metrics.all().ttft.percentile(percent)) / static_cast<double>(unit);
      least = value > 0 ? std::min(least, value) : least;
      most = std::max(most, value);
      out << ' ' << value;
    }
    out << '\n';
  }
  out << "END\n";
  if (most == 0) {
    least = most = 1;
  }
  out << "set title 'Time to first token' offset 0,-0.3\nset ylabel 'TTFT (" << word
      << ")' offset 1,0\nset logscale y\n"
      << "set yrange [" << least / 2 << ':' << most * 2 << "]\nset xrange [-0.6:" << runs.size() - 1 << ".6]\n"
      << "unset xlabel\nset xtics scale 0 font 'sans-serif,11'\nset ytics (" << ticks(least / 2, most * 2)
      << ")\nset format y '%g'\nset grid noxtics back\nset boxwidth 0.26\n"
      << "set style fill solid noborder\nset key outside right top reverse Left samplen 1.5\nset border 3\nplot ";
  for (std::size_t i = 0; i < percents.size(); ++i) {
    out << (i == 0 ? "" : ", ") << "$latency using ($0 + " << 0.27 * (static_cast<double>(i) - 1) << "):" << i + 2
        << (i == 0 ? ":xtic(1)" : "") << " with boxes title 'p" << percents[i] << "' lc rgb '" << colours[i] << "'";
  }
  out << '\n';
}

std::string script(const std::string& path, const Report& report) {
  const std::vector<const RunResult*> runs = runs_of(report);
  const std::vector<const RunResult*> policies = one_each(runs);
  constexpr double left = 0.075;
  const double width = (0.985 - left) / static_cast<double>(policies.size());
  std::ostringstream out;
  out << "set terminal svg size 1080,680 font 'sans-serif,13' noenhanced background rgb 'white'\n"
      << "set output " << quoted(path) << "\n";
  for (std::size_t i = 0; i < policies.size(); ++i) {
    out << "$run" << i << " << END\n";
    write_samples(out, *policies[i]);
    out << "END\n";
  }
  const bool tiered = std::ranges::any_of(runs, [](const RunResult* run) { return !run->tiers.empty(); });
  out << "set multiplot\n"
      << "set label 1 " << quoted(report.scenario.name) << " at screen 0.5, screen 0.965 center font 'sans-serif,17'\n"
      << "set border 3\nset tics nomirror out\nset grid front lc rgb '#D0D0D0' lt 1 lw 0.5\n"
      << "set xrange [" << static_cast<double>(report.scenario.watch.from) / second / 60 << ':' << minutes(policies)
      << "]\nset yrange [0:100]\nset xlabel 'time (min)' offset 0,0.6\n"
      << "set ytics 25\nset tmargin at screen 0.86\nset bmargin at screen 0.60\n";
  if (tiered) {
    write_tiers(out, report, runs);
    out << "set lmargin at screen " << left << "\nset rmargin at screen 0.92\n"
        << "set tmargin at screen 0.47\nset bmargin at screen 0.09\n";
    write_latency(out, runs);
    out << "unset multiplot\n";
    return out.str();
  }
  for (std::size_t i = 0; i < policies.size(); ++i) {
    const double at = left + static_cast<double>(i) * width;
    out << "set lmargin at screen " << at << "\nset rmargin at screen " << at + width - 0.02 << "\n";
    write_memory(out, *policies[i], i, i == 0);
    out << "unset label 1\n";
  }
  // The legend, and the second plot.
  out << "set lmargin at screen " << left << "\nset rmargin at screen 0.92\n"
      << "set tmargin at screen 0.38\nset bmargin at screen 0.09\n";
  double x = left;
  const auto legend = [&](const std::string& text, const std::string& colour, double y, double height) {
    out << "set object rectangle from screen " << x << ", screen " << y - height / 2 << " to screen " << x + 0.022
        << ", screen " << y + height / 2 << " fillstyle solid border lc rgb '#888888' fillcolor rgb '" << colour
        << "'\n"
        << "set label " << quoted(text) << " at screen " << x + 0.028 << ", screen " << y << " left\n";
    x += 0.055 + 0.0066 * static_cast<double>(text.size());
  };
  for (const Part& part : parts) {
    legend(part.title, part.colour, 0.485, 0.018);
  }
  legend("largest free run", "#FFFFFF", 0.485, 0.018);
  x = left;
  legend("nothing admitted, though 25 % is free", "#D55E00", 0.45, 0.009);
  legend("a running sequence out of room, though 25 % is free", "#000000", 0.45, 0.009);
  write_latency(out, runs);
  out << "unset multiplot\n";
  return out.str();
}

}  // namespace

void plot(const std::string& path, const Report& report) {
  for (const RunResult& run : report.runs) {
    if (run.timeline.samples().empty()) {
      const bool served = run.counters.steps > 0;
      throw std::runtime_error(served ? "--plot: nothing to draw: no step of the run ended within --watch"
                                      : "--plot: nothing to draw: the pool has room for none of the requests");
    }
  }
  kvc_bench::run_gnuplot(script(path, report), "--plot");
  std::ofstream out(path, std::ios::app);
  out << plot_mark(report);
  if (!out.flush()) {
    throw std::runtime_error("--plot: cannot write to \"" + path + "\"");
  }
}

std::string plot_mark(const Report& report) {
  std::uint64_t hash = 0;
  for (const char c : script("", report)) {
    hash = scramble(hash ^ static_cast<unsigned char>(c));
  }
  char text[64];
  std::snprintf(text, sizeof text, "<!-- drawn by serve-bench: %016llx -->\n", static_cast<unsigned long long>(hash));
  return text;
}

}  // namespace serving
