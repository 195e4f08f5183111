#include "tier_curve.hpp"

#include <algorithm>
#include <cmath>
#include <ostream>
#include <sstream>

#include "gnuplot.hpp"
#include "text.hpp"

namespace serving {
namespace {

using kvc_bench::quoted;

double prefill_seconds(const TurnTimes& times, Pos from, Pos to) {
  const double tokens = to - from;
  return times.seconds_per_token * tokens +
         times.seconds_per_pair * tokens * (static_cast<double>(from) + static_cast<double>(to)) / 2;
}

}  // namespace

double predicted(const TurnTimes& times, int tier, Pos length) {
  const Pos prompt = length + times.more;
  if (tier < 0) {
    return prefill_seconds(times, 0, prompt);
  }
  const TierCurve& curve = times.tiers[static_cast<std::size_t>(tier)];
  return curve.latency + length * times.token_bytes / curve.bandwidth + prefill_seconds(times, length, prompt);
}

Pos crossover(const TurnTimes& times, int tier) {
  for (Pos length = 1; length <= times.lengths.back(); ++length) {
    if (predicted(times, tier, length) < predicted(times, -1, length)) {
      return length;
    }
  }
  return -1;
}

void draw_tier_curve(const std::string& path, std::ostream& table, const TurnTimes& times) {
  table << "prefill " << text::fixed(times.seconds_per_token * 1e6, 1) << " us a token, "
        << text::fixed(times.seconds_per_pair * 1e9, 2) << " ns a token and one before it; "
        << text::fixed(times.token_bytes, 0) << " bytes of rows a token\n";
  for (std::size_t t = 0; t < times.tiers.size(); ++t) {
    const TierCurve& tier = times.tiers[t];
    const Pos least = crossover(times, static_cast<int>(t));
    table << tier.name << ": " << text::fixed(tier.latency * 1e3, 2) << " ms and "
          << text::fixed(tier.bandwidth / 1e6, 0) << " MB/s; loading pays "
          << (least < 0 ? "for no length up to " + std::to_string(times.lengths.back())
                        : "from " + std::to_string(least) + " tokens on")
          << ", by the formula\n";
  }
  const auto cell = [](const std::string& text) {
    return std::string(18 - std::min<std::size_t>(17, text.size()), ' ') + text;
  };
  table << "\nms until the first token of the second turn (of computing)\n  tokens" << cell("computed");
  for (const TierCurve& tier : times.tiers) {
    table << cell(tier.name);
  }
  table << '\n';
  for (std::size_t i = 0; i < times.lengths.size(); ++i) {
    const std::string length = std::to_string(times.lengths[i]);
    table << std::string(8 - length.size(), ' ') << length << cell(text::fixed(times.computed[i] * 1e3, 2));
    for (const TierCurve& tier : times.tiers) {
      table << cell(text::fixed(tier.seconds[i] * 1e3, 2) + " (" + text::fixed(tier.seconds[i] / times.computed[i], 2) +
                    ")");
    }
    table << '\n';
  }

  constexpr const char* colours[] = {"#000000", "#0072B2", "#E69F00", "#009E73", "#D55E00"};
  std::ostringstream script;
  script << "set terminal svg size 900,560 font 'sans-serif,14' noenhanced background rgb 'white'\n"
         << "set output " << quoted(path) << "\nset logscale xy\nset grid lc rgb '#E0E0E0' lt 1\nset border 3\n"
         << "set tics nomirror\nset key top left Left reverse samplen 2 spacing 1.25\n"
         << "set title 'Second turn of a session: points measured, lines the formula'\n"
         << "set xlabel 'tokens of the first turn'\nset ylabel 'milliseconds until the first token'\n"
         << "set xtics (16, 32, 64, 128, 256, 512, 1024, 2000, 4000)\nset xrange [" << times.lengths.front() * 0.8
         << ':' << times.lengths.back() * 1.25 << "]\n";
  std::ostringstream plots;
  for (int line = -1; line < static_cast<int>(times.tiers.size()); ++line) {
    const std::string data = "$line" + std::to_string(line + 1);
    const auto t = static_cast<std::size_t>(std::max(0, line));
    script << data << " << END\n";
    for (std::size_t i = 0; i < times.lengths.size(); ++i) {
      script << times.lengths[i] << ' ' << 1e3 * (line < 0 ? times.computed[i] : times.tiers[t].seconds[i]) << ' '
             << 1e3 * predicted(times, line, times.lengths[i]) << '\n';
    }
    script << "END\n";
    const std::string colour = colours[static_cast<std::size_t>(line + 1) % std::size(colours)];
    plots << (line < 0 ? "plot " : ", ") << data << " using 1:2 with points pt 7 ps 0.8 lc rgb '" << colour
          << "' title " << quoted(line < 0 ? "computed" : "loaded from " + times.tiers[t].name) << ", " << data
          << " using 1:3 with lines lw 1.5 lc rgb '" << colour << "' notitle";
    const Pos least = line < 0 ? 0 : crossover(times, line);
    if (least > times.lengths.front()) {
      script << "set arrow from " << least << ", graph 0 to " << least << ", first "
             << 1e3 * predicted(times, line, least) << " nohead dt 3 lc rgb '" << colour << "'\nset label '" << least
             << "' at " << least << ", graph 0.06 left offset 0.5,0 tc rgb '" << colour << "'\n";
    }
  }
  script << plots.str() << '\n';
  kvc_bench::run_gnuplot(script.str(), "--tier-curve");
}

}  // namespace serving
