#include "gantt.hpp"

#include <algorithm>
#include <cmath>
#include <sstream>
#include <vector>

#include "gnuplot.hpp"

namespace disaggregated {
namespace {

using kvc_bench::quoted;

/// Consecutive numbers get distant hues: steps of the golden angle, which never repeat.
int colour(std::uint32_t request) {
  const double hue = std::fmod(0.618034 * request, 1.0);
  const double light = request % 2 == 0 ? 0.42 : 0.55;
  const auto channel = [&](double shift) {
    const double k = std::fmod(shift + 12 * hue, 12.0);  // the usual formula from HSL, saturation 0.75
    const double value = light - 0.75 * std::min(light, 1 - light) * std::clamp(std::min(k - 3, 9 - k), -1.0, 1.0);
    return static_cast<int>(255 * value);
  };
  return channel(0) << 16 | channel(8) << 8 | channel(4);
}

struct Bar {
  std::uint32_t request;
  Time begin;
  Time end;
  double low;
  double high;
};

double milliseconds(Time time) { return static_cast<double>(time) * 1e-6; }

void add_data(std::ostream& out, const char* name, const std::vector<Bar>& bars) {
  out << '$' << name << " << END\n";
  for (const Bar& b : bars) {
    out << milliseconds(b.begin + b.end) / 2 << ' ' << (b.low + b.high) / 2 << ' ' << milliseconds(b.begin) << ' '
        << milliseconds(b.end) << ' ' << b.low << ' ' << b.high << ' ' << colour(b.request) << '\n';
  }
  out << "END\n";
}

}  // namespace

void draw_gantt(const std::string& path, const RunRecord& run, const std::string& title) {
  constexpr double place = 1;     // height of a place in a batch
  constexpr double transfer = 2;  // of what arrives
  constexpr double prompt = 3;
  constexpr double gap = 1.2;
  int places = 1;
  for (const RequestRecord& r : run.requests) {
    places = std::max(places, r.state == State::done ? r.decoded.place + 1 : 0);
  }
  // Engines from top to bottom; y grows downwards.
  std::vector<double> top;
  std::ostringstream tics;
  std::ostringstream frames;
  double y = 0;
  const double right = milliseconds(run.total);
  for (std::size_t peer = 0; peer < run.engines.size(); ++peer) {
    const bool prefills = peer < static_cast<std::size_t>(run.prefill_engines);
    const double height = prefills ? prompt : transfer + places * place;
    top.push_back(y);
    tics << (peer == 0 ? "" : ", ")
         << quoted(std::string(prefills ? "prefill" : "decode") + " engine " + std::to_string(peer)) << ' '
         << y + height / 2;
    frames << "set object rectangle from 0," << y - 0.1 << " to " << right << ',' << y + height + 0.1
           << " behind fillcolor rgb '#F4F4F4' fillstyle solid noborder\n";
    y += height + gap;
  }
  std::vector<Bar> prefills;
  std::vector<Bar> transfers;
  std::vector<Bar> decodes;
  std::ostringstream labels;
  const auto label = [&](const Bar& b) {
    if (milliseconds(b.end - b.begin) > 0.013 * right) {
      labels << "set label " << quoted(std::to_string(b.request)) << " at " << milliseconds(b.begin + b.end) / 2 << ','
             << (b.low + b.high) / 2 << " center front font ',9'\n";
    }
  };
  for (const RequestRecord& r : run.requests) {
    if (r.state != State::done) {
      continue;
    }
    const double prefill_top = top[static_cast<std::size_t>(r.prefill)];
    const double decode_top = top[static_cast<std::size_t>(r.decode)];
    const double low = decode_top + transfer + r.decoded.place * place;
    const std::uint32_t id = r.attempt.request;
    prefills.push_back({id, r.prefilled.begin, r.prefilled.end, prefill_top, prefill_top + prompt});
    transfers.push_back({id, r.handover.begin, r.decoded.received, decode_top, decode_top + transfer - 0.15});
    decodes.push_back({id, r.decoded.begin, r.decoded.end, low + 0.06, low + place - 0.06});
    label(prefills.back());
    label(decodes.back());
  }
  std::ostringstream out;
  out << "set terminal svg size 1200," << static_cast<int>(150 + 17 * y)
      << " font 'sans-serif,13' noenhanced background rgb 'white'\n"
      << "set output " << quoted(path) << "\nset title " << quoted(title)
      << " font 'sans-serif,16' offset 0,1\nset tmargin 5\n"
      << "set xlabel 'time since the start (ms)'\nset xrange [0:" << right << "]\nset yrange [" << y - gap + 0.3
      << ":-0.3]\nset ytics (" << tics.str()
      << ") scale 0\nset xtics nomirror out\nset grid xtics front lc rgb '#D0D0D0' lt 1\n"
      << "set border 1\nset key at graph 0.5, graph 1.02 center bottom horizontal samplen 3 width 3\n"
      << frames.str() << labels.str();
  add_data(out, "prefill", prefills);
  add_data(out, "transfer", transfers);
  add_data(out, "decode", decodes);
  const std::string bars = " using 1:2:3:4:5:6:7 with boxxyerror notitle lc rgb variable fillstyle ";
  const std::string sample = "NaN with boxes lc rgb '#505050' fillstyle ";
  // A pattern has one colour, so it lies over the bar's own.
  out << "plot $prefill" << bars << "solid 0.9 noborder, $transfer" << bars << "solid 0.25 border, "
      << "$transfer using 1:2:3:4:5:6 with boxxyerror notitle lc rgb '#808080' fillstyle pattern 4 noborder, $decode"
      << bars << "solid 0.45 border, " << sample << "solid 0.9 noborder title 'prefill of a prompt', " << sample
      << "pattern 4 border title 'its rows on their way', " << sample
      << "solid 0.45 border title 'decoding of the sequence'\n";
  kvc_bench::run_gnuplot(out.str(), "--gantt");
}

}  // namespace disaggregated
