#include <algorithm>
#include <array>
#include <sstream>
#include <string>
#include <vector>

#include "gnuplot.hpp"
#include "plot.hpp"

namespace serving {
namespace {

using kvc_bench::quoted;

/// A tier of a run.
struct Line {
  const RunResult* run;
  std::size_t tier;
  std::string title;
  const char* colour;  // of the tiers of one name
  int dash;            // 1: solid; of the runs
};

/// The tiers of the runs with the rule `cheaper`, or where there is none, of all.
std::vector<Line> lines_of(const std::vector<const RunResult*>& runs) {
  constexpr std::array colours = {"#0072B2", "#E69F00", "#009E73", "#CC79A7", "#D55E00"};
  const bool any = std::ranges::any_of(
      runs, [](const RunResult* r) { return !r->tiers.empty() && r->load_rule == LoadRule::cheaper; });
  std::vector<std::string> names;
  std::vector<Line> lines;
  for (const RunResult* run : runs) {
    for (std::size_t t = 0; t < run->tiers.size() && (!any || run->load_rule == LoadRule::cheaper); ++t) {
      const std::string& tier = run->tiers[t].spec.name;
      const auto known = std::ranges::find(names, tier);
      const auto colour = static_cast<std::size_t>(known - names.begin()) % colours.size();
      if (known == names.end()) {
        names.push_back(tier);
      }
      int dash = 1;
      for (const Line& other : lines) {
        dash += other.run->tiers[other.tier].spec.name == tier ? 1 : 0;
      }
      const std::string title = run->tiers.size() > 1 ? tier + " of " + run->tier_set : tier;
      lines.push_back({run, t, any ? title : title + ", " + std::string(name(run->load_rule)), colours[colour], dash});
    }
  }
  return lines;
}

double minutes(Time time) { return static_cast<double>(time) / second / 60; }

/// Time in minutes, and gigabytes held, and read per second, over at least a thirtieth of the run.
void write_line(std::ostream& out, const Line& line, double block_gigabytes) {
  const std::vector<Sample>& samples = line.run->timeline.samples();
  const Time least = (samples.back().time - samples.front().time) / 30;
  std::size_t from = 0;
  for (std::size_t to = 1; to < samples.size(); ++to) {
    const Time passed = samples[to].time - samples[from].time;
    if (passed >= least && passed > 0) {
      const TierSample &a = samples[from].tiers[line.tier], &b = samples[to].tiers[line.tier];
      out << minutes(samples[to].time) << ' ' << static_cast<double>(b.held) * block_gigabytes << ' '
          << static_cast<double>(b.loaded - a.loaded) * block_gigabytes * second / static_cast<double>(passed) << '\n';
      from = to;
    }
  }
}

}  // namespace

void write_tiers(std::ostream& out, const Report& report, const std::vector<const RunResult*>& runs) {
  const std::vector<Line> lines = lines_of(runs);
  const double block = report.scenario.model.kv_bytes_per_token() * report.scenario.block_tokens / 1e9;
  for (std::size_t i = 0; i < lines.size(); ++i) {
    out << "$tier" << i << " << END\n";
    write_line(out, lines[i], block);
    out << "END\n";
  }
  const bool cheaper = !lines.empty() && lines.front().run->load_rule == LoadRule::cheaper;
  for (int column = 2; column <= 3; ++column) {
    out << "set lmargin at screen " << (column == 2 ? 0.075 : 0.46) << "\nset rmargin at screen "
        << (column == 2 ? 0.385 : 0.77) << "\nset title "
        << quoted((column == 2 ? "Held by the tiers (GB)" : std::string("Read from the tiers (GB/s)")) +
                  (cheaper ? ", rule cheaper" : ""))
        << "\nset yrange [0:*]\nset ytics autofreq\nset format y '%g'\n"
        << (column == 3 ? "set key at screen 0.995, screen 0.86 right top reverse Left samplen 2.5\n" : "unset key\n")
        << "plot ";
    for (std::size_t i = 0; i < lines.size(); ++i) {
      out << (i == 0 ? "" : ", ") << "$tier" << i << " using 1:" << column << " with lines lw 2 lc rgb '"
          << lines[i].colour << "' dt " << lines[i].dash << " title " << quoted(lines[i].title);
    }
    out << "\nunset label 1\n";
  }
}

}  // namespace serving
