#include "report.hpp"

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <nlohmann/json.hpp>
#include <ostream>

#include "text.hpp"

namespace serving {
namespace {

using text::fixed;
using OrderedJson = nlohmann::ordered_json;

double ms(double time) { return time / millisecond; }
double ms(Time time) { return ms(static_cast<double>(time)); }
double seconds(Time time) { return static_cast<double>(time) / second; }
double share(Index part, Index all) { return all == 0 ? 0 : static_cast<double>(part) / static_cast<double>(all); }

std::string grouped(Index value) {
  std::string text = std::to_string(value);
  for (std::size_t at = text.size(); at > 3;) {
    text.insert(at -= 3, 1, ',');
  }
  return text;
}
/// A duration with three significant digits or none after the point.
std::string shown(Time time) {
  const double value = ms(time);
  return value < 10 ? fixed(value, 2) : value < 100 ? fixed(value, 1) : grouped(std::llround(value));
}
/// A percentile; "-" where there is no value, such as a class without requests.
std::string percentile(const Histogram& histogram, double percent) {
  return histogram.count() == 0 ? "-" : shown(histogram.percentile(percent));
}
/// A count, and the part of it with a quarter of the pool free.
std::string with_quarter(Index count, Index quarter) {
  return count == 0 ? "0" : grouped(count) + " (" + grouped(quarter) + ")";
}

/// The label of a run, and its mode where a report has both.
std::string label(const Report& report, const RunResult& run) {
  const bool mixed = std::ranges::any_of(report.runs, [&](const RunResult& other) { return other.mode != run.mode; });
  return label(run) + (mixed ? ", " + run.mode : "");
}

using Row = std::vector<std::string>;
/// The first two columns are words, the others numbers.
void print_table(std::ostream& out, const std::vector<Row>& rows) {
  std::vector<std::size_t> widths(rows.front().size());
  for (const Row& row : rows) {
    for (std::size_t i = 0; i < row.size(); ++i) {
      widths[i] = std::max(widths[i], row[i].size());
    }
  }
  for (const Row& row : rows) {
    std::string line;
    for (std::size_t i = 0; i < row.size(); ++i) {
      const std::string space(widths[i] - row[i].size(), ' ');
      line += "  " + (i < 2 ? row[i] + space : space + row[i]);
    }
    out << line.substr(0, line.find_last_not_of(' ') + 1) << '\n';
  }
}

std::string chunk_text(const RunResult& run) { return run.chunk_tokens == 0 ? "whole" : grouped(run.chunk_tokens); }

void wrap(std::ostream& out, const std::string& text, std::size_t width) {
  for (std::size_t begin = 0; begin < text.size();) {
    std::size_t end = std::min(text.size(), begin + width);
    if (end < text.size()) {
      const std::size_t space = text.rfind(' ', end);
      end = space == std::string::npos || space <= begin ? end : space;
    }
    out << "  " << text.substr(begin, end - begin) << '\n';
    begin = text.find_first_not_of(' ', end);
    begin = begin == std::string::npos ? text.size() : begin;
  }
}

OrderedJson percentiles(const Histogram& histogram) {
  return {{"count", histogram.count()},          {"mean", ms(histogram.mean())},
          {"p50", ms(histogram.percentile(50))}, {"p95", ms(histogram.percentile(95))},
          {"p99", ms(histogram.percentile(99))}, {"max", ms(histogram.max())}};
}

OrderedJson latencies(const Latencies& of) {
  return {{"requests", of.requests},
          {"good", of.good},
          {"ttft_ms", percentiles(of.ttft)},
          {"tpot_ms", percentiles(of.tpot)},
          {"e2e_ms", percentiles(of.end_to_end)}};
}

OrderedJson counters_json(const Counters& c) {
  return {{"steps", c.steps},
          {"steps_with_prefill", c.steps_with_prefill},
          {"prompt_tokens", c.prompt_tokens},
          {"prompt_tokens_found", c.prompt_tokens_found},
          {"again_tokens", c.again_tokens},
          {"again_tokens_found", c.again_tokens_found},
          {"prefill_tokens", c.prefill_tokens},
          {"decode_tokens", c.decode_tokens},
          {"forked_tokens", c.forked_tokens},
          {"released_tokens", c.released_tokens},
          {"lost_tokens", c.lost_tokens},
          {"admissions", c.admissions},
          {"failed_admissions", c.failed_admissions},
          {"failed_admissions_25", c.failed_admissions_25},
          {"delayed", c.delayed},
          {"delayed_25", c.delayed_25},
          {"out_of_room", c.out_of_room},
          {"out_of_room_25", c.out_of_room_25},
          {"preemptions", c.preemptions},
          {"forks", c.forks},
          {"failed_forks", c.failed_forks},
          {"pins", c.pins},
          {"blocked_s", seconds(c.blocked)},
          {"blocked_25_s", seconds(c.blocked_25)},
          {"most_free_at_failure", c.most_free_at_failure}};
}

/// Column by column, as plots need them, and at a third of the size.
OrderedJson timeline_json(const std::vector<Sample>& samples) {
  const auto column = [&](auto member) {
    OrderedJson values = OrderedJson::array();
    for (const Sample& sample : samples) {
      values.push_back(sample.*member);
    }
    return values;
  };
  OrderedJson times = OrderedJson::array();
  OrderedJson blocked = OrderedJson::array();
  for (const Sample& sample : samples) {
    times.push_back(seconds(sample.time));
    blocked.push_back(seconds(sample.blocked_25));
  }
  return {{"time_s", std::move(times)},          {"used", column(&Sample::used)},
          {"wasted", column(&Sample::wasted)},   {"cached", column(&Sample::cached)},
          {"free", column(&Sample::free)},       {"largest_free_run", column(&Sample::largest_free_run)},
          {"waiting", column(&Sample::waiting)}, {"running", column(&Sample::running)},
          {"blocked_25_s", std::move(blocked)},  {"out_of_room_25", column(&Sample::out_of_room_25)}};
}

/// Of one tier over time: columns beside those of the timeline.
OrderedJson tier_timeline_json(const std::vector<Sample>& samples, std::size_t tier) {
  const auto column = [&](auto member) {
    OrderedJson values = OrderedJson::array();
    for (const Sample& sample : samples) {
      values.push_back(sample.tiers[tier].*member);
    }
    return values;
  };
  return {{"held", column(&TierSample::held)},
          {"reading", column(&TierSample::reading)},
          {"writing", column(&TierSample::writing)},
          {"loaded", column(&TierSample::loaded)},
          {"stored", column(&TierSample::stored)}};
}

OrderedJson tiers_json(const RunResult& run) {
  OrderedJson tiers = OrderedJson::array();
  for (std::size_t t = 0; t < run.tiers.size(); ++t) {
    const TierResult& tier = run.tiers[t];
    tiers.push_back({{"name", tier.spec.name},
                     {"blocks", tier.spec.blocks},
                     {"bytes_per_s", tier.spec.bytes_per_second},
                     {"latency_ms", ms(tier.spec.latency)},
                     {"remote", tier.spec.remote},
                     {"write", tier.spec.write_back ? "back" : "through"},
                     {"loaded", tier.loaded},
                     {"stored", tier.stored},
                     {"lost", tier.lost},
                     {"loads_unused", tier.loads_unused},
                     {"load_failures", tier.load_failures},
                     {"timeline", tier_timeline_json(run.timeline.samples(), t)}});
  }
  return tiers;
}

OrderedJson map_json(const std::vector<MapRow>& rows) {
  OrderedJson times = OrderedJson::array();
  OrderedJson owners = OrderedJson::array();
  for (const MapRow& row : rows) {
    times.push_back(seconds(row.time));
    owners.push_back(row.owners);
  }
  return {{"codes",
           {{"free", Index{owner_free}},
            {"cached", Index{owner_cached}},
            {"shared", Index{owner_shared}},
            {"reserved", Index{owner_reserved}}}},
          {"time_s", std::move(times)},
          {"owners", std::move(owners)}};
}

OrderedJson model_states_json(const ModelShape& model) {
  OrderedJson states = OrderedJson::array();
  for (const ModelStates& kind : model.states) {
    states.push_back({{"layers", kind.layers}, {"bytes", kind.bytes}});
  }
  return states;
}

OrderedJson model_groups_json(const ModelShape& model) {
  OrderedJson groups = OrderedJson::array();
  for (const ModelGroup& group : model.groups) {
    groups.push_back({{"layers", group.layers},
                      {"window", group.retained.window},
                      {"chunk", group.retained.chunk},
                      {"kept", group.retained.kept}});
  }
  return groups;
}

OrderedJson run_json(const RunResult& run) {
  const Metrics& m = run.metrics;
  OrderedJson groups = OrderedJson::array();
  for (const GroupResult& group : run.groups) {
    groups.push_back({{"block_tokens", group.block_tokens}, {"lost_tokens", group.lost_tokens}});
  }
  OrderedJson classes = OrderedJson::array();
  for (std::size_t i = 0; i < run.classes.size(); ++i) {
    OrderedJson one = {{"name", run.classes[i]}};
    one.update(latencies(m.of(i)));
    classes.push_back(std::move(one));
  }
  return {{"policy", name(run.policy)},
          {"mode", run.mode},
          {"chunk_tokens", run.chunk_tokens},
          {"order", run.order == Order::decode_first ? "decode-first" : "prefill-first"},
          {"load", run.load},
          {"layers", name(run.layers)},
          {"tier_set", run.tier_set},
          {"load_rule", run.tiers.empty() ? OrderedJson(nullptr) : OrderedJson(name(run.load_rule))},
          {"groups", std::move(groups)},
          {"pool_tokens", run.pool_tokens},
          {"watermark_tokens", run.watermark_tokens},
          {"requests",
           {{"arrived", m.arrivals()},
            {"completed", m.count(End::completed)},
            {"aborted", m.count(End::aborted)},
            {"refused", m.count(End::refused)},
            {"out_of_memory", m.count(End::out_of_memory)}}},
          {"seconds", m.seconds()},
          {"latency", latencies(m.all())},
          {"itl_ms", percentiles(m.itl())},
          {"classes", std::move(classes)},
          {"throughput",
           {{"output_tokens", m.generated_tokens()},
            {"output_tokens_per_s", m.per_second(m.generated_tokens())},
            {"requests_per_s", m.per_second(m.count(End::completed))},
            {"goodput_per_s", m.per_second(m.all().good)}}},
          {"counters", counters_json(run.counters)},
          {"pool_use",
           {{"blocks", run.stats.blocks_total},
            {"mean", run.use.mean_share()},
            {"most", run.use.most_share()},
            {"running", run.use.mean_running()}}},
          {"tiers", tiers_json(run)},
          {"loads",
           {{"begun", run.loads.loads},
            {"short", run.loads.loads_short},
            {"no_room", run.loads.no_room},
            {"blocks_computed", run.loads.blocks_computed}}},
          {"evictions", run.stats.evictions},
          {"copied_tokens", run.stats.copied_tokens},
          {"timeline", timeline_json(run.timeline.samples())},
          {"map", map_json(run.timeline.maps())},
          {"wall_s", run.wall_seconds},
          {"processor_s", run.mode == "real" ? OrderedJson(run.processor_seconds) : OrderedJson(nullptr)},
          {"answers_hash", run.mode == "real" ? OrderedJson(run.answers_hash) : OrderedJson(nullptr)}};
}

OrderedJson calibration_json(const Report& report) {
  if (!report.fit) {
    return nullptr;
  }
  const Hardware& h = report.fit->hardware;
  OrderedJson comparisons = OrderedJson::array();
  for (const Comparison& c : report.comparisons) {
    OrderedJson one = {{"policy", name(c.policy)}, {"chunk_tokens", c.chunk_tokens}, {"load", c.load}};
    for (const Comparison::Pair& pair : c.pairs) {
      one[pair.what] = {{"predicted", pair.predicted},
                        {"measured", pair.measured},
                        {"measured_least", pair.least},
                        {"measured_most", pair.most},
                        {"ratio", pair.ratio()}};
    }
    comparisons.push_back(std::move(one));
  }
  return {{"timings", report.fit->timings},
          {"median_error", report.fit->median_error},
          {"largest_error", report.fit->largest_error},
          {"peak", h.peak},
          {"attention_peak", h.attention_peak},
          {"decode_attention_peak", h.decode_peak},
          {"bandwidth", h.bandwidth},
          {"overhead_us", h.overhead * 1e6},
          {"per_sequence_us", h.per_sequence * 1e6},
          {"comparisons", std::move(comparisons)}};
}

/// Prints the rows that the sequences of each run hold, where the layers of the model differ.
void print_layers(std::ostream& out, const Report& report) {
  const Scenario& s = report.scenario;
  out << "\nlayers: ";
  for (const ModelGroup& group : s.model.groups) {
    const kvc::Retained& r = group.retained;
    out << (&group == s.model.groups.data() ? "" : ", ") << group.layers
        << (r.window > 0  ? " with a window of " + grouped(r.window)
            : r.chunk > 0 ? " with chunks of " + grouped(r.chunk)
                          : " that keep everything");
  }
  for (const ModelStates& kind : s.model.states) {
    out << ", " << kind.layers << " with a state of " << grouped(kind.bytes) << " bytes";
  }
  const double pool = static_cast<double>(s.pool()) * s.model.kv_bytes_per_token();
  out << "; use of the pool, over time\n";
  std::vector<Row> rows = {
      {"policy", "prefill", "load", "blocks", "used", "most", "used, GB", "running", "GB a sequence"}};
  for (const RunResult& run : report.runs) {
    const double held = run.use.mean_share() * pool / 1e9;
    const double running = run.use.mean_running();
    rows.push_back({label(report, run), chunk_text(run), fixed(run.load, 2), grouped(run.stats.blocks_total),
                    fixed(100 * run.use.mean_share(), 0, " %"), fixed(100 * run.use.most_share(), 0, " %"),
                    fixed(held, 1), fixed(running, 1), running > 0 ? fixed(held / running, 2) : "-"});
  }
  print_table(out, rows);
}

/// What slower tiers held and brought.
void print_tiers(std::ostream& out, const Report& report) {
  const Scenario& s = report.scenario;
  const double block = s.model.kv_bytes_per_token() * s.block_tokens;
  Index most = 0;
  for (const RunResult& run : report.runs) {
    for (const TierResult& tier : run.tiers) {
      most = std::max(most, tier.spec.blocks);
    }
  }
  const bool small = static_cast<double>(most) * block < 1e9;
  const std::string unit = small ? ", MB" : ", GB";
  const auto size = [&](Index blocks) { return fixed(static_cast<double>(blocks) * block / (small ? 1e6 : 1e9), 1); };
  std::vector<Row> rows = {{"policy", "tier", "load", "room" + unit, "GB/s", "latency, ms", "read" + unit,
                            "written" + unit, "lost" + unit, "prefixes", "computed" + unit}};
  for (const RunResult& run : report.runs) {
    for (const TierResult& tier : run.tiers) {
      const bool first = &tier == run.tiers.data();
      const bool real = run.mode == "real";  // its stores are as fast as they are
      rows.push_back({label(report, run), tier.spec.name, fixed(run.load, 2), size(tier.spec.blocks),
                      !real && tier.spec.bytes_per_second > 0 ? fixed(tier.spec.bytes_per_second / 1e9, 1) : "-",
                      real ? "-" : fixed(ms(tier.spec.latency), 2), size(tier.loaded), size(tier.stored),
                      size(tier.lost), first ? grouped(run.loads.loads) : "",
                      first ? size(run.loads.blocks_computed) : ""});
    }
  }
  if (rows.size() > 1) {
    out << "\nslower tiers; computed: what a tier had, and the rule had computed\n";
    print_table(out, rows);
  }
}

/// The measurement of real runs, and the result of the calibration.
void print_real(std::ostream& out, const Report& report) {
  double wall = 0, processor = 0;
  for (const RunResult& run : report.runs) {
    if (run.mode == "real") {
      wall += run.wall_seconds;
      processor += run.processor_seconds;
    }
  }
  if (wall > 0) {
    out << "\nreal runs: " << fixed(wall, 1, " s") << ", of the processor " << fixed(processor, 1, " s")
        << (answers_agree(report) == true ? "; the same answers in all" : "") << '\n';
  }
  if (!report.fit) {
    return;
  }
  const Hardware& h = report.fit->hardware;
  out << "\ncost model of this machine, fitted to " << report.fit->timings << " kinds of steps: median error "
      << fixed(100 * report.fit->median_error, 1, " %") << ", largest "
      << fixed(100 * report.fit->largest_error, 1, " %") << "\n  matrices " << fixed(h.peak / 1e9, 1, " G/s")
      << ", attention " << fixed(h.attention_peak / 1e9, 1, " G/s") << ", of single queries "
      << fixed(h.decode_peak / 1e9, 1, " G/s") << ", bytes "
      << (h.bandwidth < no_limit ? fixed(h.bandwidth / 1e9, 1, " GB/s") : "no limit seen") << ", "
      << fixed(h.overhead * 1e6, 1, " us") << " a step, " << fixed(h.per_sequence * 1e6, 1, " us")
      << " a sequence in it\n\npredicted and measured (the median of the real runs), and their ratio\n";
  std::vector<Row> rows = {{"policy", "prefill", "load"}};
  for (const Comparison::Pair& pair : report.comparisons.front().pairs) {
    rows.front().insert(rows.front().end(), {std::string(pair.what) + ": predicted", "measured", "ratio"});
  }
  for (const Comparison& c : report.comparisons) {
    rows.push_back(
        {std::string(name(c.policy)), c.chunk_tokens == 0 ? "whole" : grouped(c.chunk_tokens), fixed(c.load, 2)});
    for (const Comparison::Pair& pair : c.pairs) {
      for (const double value : {pair.predicted, pair.measured, pair.ratio()}) {
        rows.back().push_back(fixed(value, value < 100 ? 2 : 0));
      }
    }
  }
  print_table(out, rows);
}

}  // namespace

std::optional<bool> answers_agree(const Report& report) {
  std::optional<std::uint64_t> hash;
  bool agree = true;
  for (const RunResult& run : report.runs) {
    if (run.mode == "real") {
      if (run.metrics.count(End::completed) != report.runs.front().metrics.arrivals()) {
        return std::nullopt;
      }
      agree = agree && run.answers_hash == hash.value_or(run.answers_hash);
      hash = run.answers_hash;
    }
  }
  return hash ? std::optional<bool>(agree) : std::nullopt;
}

void print(std::ostream& out, const Report& report) {
  const Scenario& s = report.scenario;
  out << s.name << ", seed " << s.seed << '\n';
  wrap(out, s.story, 116);
  out << '\n'
      << s.model.name << " on " << (s.hardware.devices > 1 ? std::to_string(s.hardware.devices) + " x " : "")
      << s.hardware.name << (report.runs.empty() ? "" : ", " + report.runs.front().mode) << "; pool of "
      << grouped(s.pool()) << " tokens, "
      << fixed(static_cast<double>(s.pool()) * s.model.kv_bytes_per_token() / 1e9, 1) << " GB; SLO: TTFT "
      << fixed(ms(s.slo.ttft), 0) << " ms, TPOT " << fixed(ms(s.slo.tpot), 0) << " ms\n";
  if (!report.runs.empty() && !report.runs.front().source_note.empty()) {
    out << report.runs.front().source_note << '\n';
  }
  std::vector<Row> latency = {{"policy", "prefill", "load", "completed", "TTFT p50", "p95", "p99", "TPOT p50", "p95",
                               "p99", "ITL p99", "tokens/s", "goodput/s"}};
  std::vector<Row> memory = {{"policy", "prefill", "load", "not admitted", "delayed", "blocked", "of it at 25 %",
                              "out of room", "preempted", "most free", "prompt found", "refused", "aborted"}};
  for (const RunResult& run : report.runs) {
    const Metrics& m = run.metrics;
    const Counters& c = run.counters;
    const Row head = {label(report, run), chunk_text(run), fixed(run.load, 2)};
    latency.push_back(head);
    for (const std::string& cell :
         {grouped(m.count(End::completed)), percentile(m.all().ttft, 50), percentile(m.all().ttft, 95),
          percentile(m.all().ttft, 99), percentile(m.all().tpot, 50), percentile(m.all().tpot, 95),
          percentile(m.all().tpot, 99), percentile(m.itl(), 99), fixed(m.per_second(m.generated_tokens()), 0),
          fixed(m.per_second(m.all().good), 2)}) {
      latency.back().push_back(cell);
    }
    memory.push_back(head);
    for (const std::string& cell :
         {with_quarter(c.failed_admissions, c.failed_admissions_25), with_quarter(c.delayed, c.delayed_25),
          fixed(seconds(c.blocked), 0, " s"), fixed(seconds(c.blocked_25), 0, " s"),
          with_quarter(c.out_of_room, c.out_of_room_25), grouped(c.preemptions),
          fixed(100 * c.most_free_at_failure, 0, " %"),
          fixed(100 * share(c.prompt_tokens_found, c.prompt_tokens), 1, " %"),
          grouped(m.count(End::refused) + m.count(End::out_of_memory)), grouped(m.count(End::aborted))}) {
      memory.back().push_back(cell);
    }
  }
  out << "\nlatency, in ms\n";
  print_table(out, latency);
  out << "\nmemory; in parentheses: with at least 25 % of the pool free\n";
  print_table(out, memory);
  if (!s.model.groups.empty()) {
    print_layers(out, report);
  }
  print_tiers(out, report);
  if (!report.runs.empty() && report.runs.front().classes.size() > 1) {
    std::vector<Row> rows = {{"policy", "prefill", "load"}};
    for (const std::string& one : report.runs.front().classes) {
      rows.front().push_back(one + ": p50");
      rows.front().push_back("p99");
    }
    for (const RunResult& run : report.runs) {
      rows.push_back({label(report, run), chunk_text(run), fixed(run.load, 2)});
      for (std::size_t i = 0; i < run.classes.size(); ++i) {
        rows.back().push_back(percentile(run.metrics.of(i).ttft, 50));
        rows.back().push_back(percentile(run.metrics.of(i).ttft, 99));
      }
    }
    out << "\nTTFT by class, in ms\n";
    print_table(out, rows);
  }
  print_real(out, report);
}

Comparison compare(const RunResult& simulated, const std::vector<RunResult>& real) {
  Comparison comparison{simulated.policy, simulated.chunk_tokens, simulated.load, {}};
  const auto add = [&](const char* what, auto&& value) {
    std::vector<double> measured;
    for (const RunResult& run : real) {
      measured.push_back(value(run.metrics));
    }
    std::ranges::sort(measured);
    comparison.pairs.push_back(
        {what, value(simulated.metrics), measured[measured.size() / 2], measured.front(), measured.back()});
  };
  add("ttft_mean_ms", [](const Metrics& m) { return ms(m.all().ttft.mean()); });
  add("ttft_p50_ms", [](const Metrics& m) { return ms(m.all().ttft.percentile(50)); });
  add("tpot_p50_ms", [](const Metrics& m) { return ms(m.all().tpot.percentile(50)); });
  add("tokens_per_s", [](const Metrics& m) { return m.per_second(m.generated_tokens()); });
  return comparison;
}

std::string to_json(const Report& report) {
  const Scenario& s = report.scenario;
  OrderedJson runs = OrderedJson::array();
  for (const RunResult& run : report.runs) {
    runs.push_back(run_json(run));
  }
  const OrderedJson to = s.watch.to == Watch{}.to ? OrderedJson(nullptr) : OrderedJson(seconds(s.watch.to));
  const OrderedJson document = {{"program", "serve-bench"},
                                {"schema", report_schema},
                                {"scenario",
                                 {{"name", s.name},
                                  {"story", s.story},
                                  {"trace", s.trace ? OrderedJson(s.trace->name()) : OrderedJson(nullptr)},
                                  {"seed", s.seed}}},
                                {"model",
                                 {{"name", s.model.name},
                                  {"parameters", s.model.parameters()},
                                  {"weight_bytes", s.model.weights()},
                                  {"kv_bytes_per_token", s.model.kv_bytes_per_token()},
                                  {"groups", model_groups_json(s.model)},
                                  {"states", model_states_json(s.model)},
                                  {"source", s.model.source}}},
                                {"hardware",
                                 {{"name", s.hardware.name},
                                  {"devices", s.hardware.devices},
                                  {"peak", s.hardware.peak},
                                  {"bandwidth", s.hardware.bandwidth},
                                  {"memory", s.hardware.memory},
                                  {"overhead_ms", s.hardware.overhead * 1000},
                                  {"source", s.hardware.source}}},
                                {"pool",
                                 {{"tokens", s.pool()},
                                  {"block_tokens", s.block_tokens},
                                  {"block_bytes", s.model.kv_bytes_per_token() * s.block_tokens}}},
                                {"slo", {{"ttft_ms", ms(s.slo.ttft)}, {"tpot_ms", ms(s.slo.tpot)}}},
                                {"watched", {{"from_s", seconds(s.watch.from)}, {"to_s", to}}},
                                {"runs", std::move(runs)},
                                {"calibration", calibration_json(report)}};
  return document.dump(-1, ' ', false, OrderedJson::error_handler_t::replace) + "\n";
}

}  // namespace serving
