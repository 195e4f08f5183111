#include "report.hpp"

#include <algorithm>
#include <cstdio>
#include <nlohmann/json.hpp>
#include <ostream>
#include <span>

#include "text.hpp"

namespace disaggregated {
namespace {

using text::fixed;

std::string ms(Time time, int digits = 2) { return fixed(static_cast<double>(time) * 1e-6, digits, " ms"); }
std::string kib(std::uint64_t bytes) { return fixed(static_cast<double>(bytes) / 1024, 1, " KiB"); }
std::string mib(std::uint64_t bytes) { return fixed(static_cast<double>(bytes) / (1024 * 1024), 2, " MiB"); }
std::string percent(double share) { return fixed(100 * share, 0, " %"); }

void print_row(std::ostream& out, std::span<const std::string> columns) {
  static constexpr std::size_t widths[] = {7, 8, 8, 9, 11, 10, 12, 11, 13, 9};
  for (std::size_t i = 0; i < columns.size(); ++i) {
    const std::size_t space = widths[i] > columns[i].size() ? widths[i] - columns[i].size() : 1;
    out << std::string(space, ' ') << columns[i];
  }
  out << '\n';
}

double share(Time part, Time whole) {
  return whole <= 0 ? 0.0 : static_cast<double>(part) / static_cast<double>(whole);
}

/// Sums over the requests that were served.
struct Sums {
  Index served = 0;
  Index prompt_tokens = 0;
  Index output_tokens = 0;
  Index reused = 0;
  std::uint64_t sent = 0;
  std::uint64_t kept = 0;
  Time transfer = 0;
  Time hidden = 0;
  int refusals = 0;
  Index attempts = 0;
  std::vector<Time> ttft;
  std::vector<Time> tpot;

  explicit Sums(const Report& report) {
    for (const RequestRecord& r : report.run.requests) {
      attempts += r.attempt.number;
      if (r.state != State::done) {
        continue;
      }
      ++served;
      prompt_tokens += r.prompt_tokens;
      output_tokens += r.output_tokens;
      reused += r.prefilled.reused;
      sent += r.handover.bytes;
      kept += static_cast<std::uint64_t>(r.handover.kept * report.token_bytes);
      transfer += r.transfer();
      hidden += r.hidden();
      refusals += r.handover.refusals;
      ttft.push_back(r.ttft());
      tpot.push_back(r.tpot());
    }
  }
  static Time quantile(std::vector<Time> times, double q) {
    std::ranges::sort(times);
    return times.empty() ? 0 : times[static_cast<std::size_t>(q * static_cast<double>(times.size() - 1))];
  }
  static std::string spread(const std::vector<Time>& times) {
    return "median " + ms(quantile(times, 0.5)) + ", 95 % below " + ms(quantile(times, 0.95));
  }
};

/// Of all decode engines.
struct Received {
  Time time = 0;
  std::uint64_t bytes = 0;
  explicit Received(const RunRecord& run) {
    for (const EngineRecord& engine : run.engines) {
      time += engine.figures.receiving;
      bytes += engine.figures.received_bytes;
    }
  }
  [[nodiscard]] double per_second() const {
    return time == 0 ? 0.0 : static_cast<double>(bytes) / (static_cast<double>(time) * 1e-9);
  }
};

std::string name(const RunRecord& run, std::size_t peer) {
  return std::string(peer < static_cast<std::size_t>(run.prefill_engines) ? "prefill" : "decode") + " engine " +
         std::to_string(peer);
}

}  // namespace

Index Report::equal_outputs() const {
  Index equal = 0;
  for (std::size_t i = 0; i < run.requests.size(); ++i) {
    equal += run.requests[i].state == State::done && run.requests[i].output == alone->outputs[i] ? 1 : 0;
  }
  return equal;
}

void print(std::ostream& out, const Report& report) {
  const RunRecord& run = report.run;
  const Sums sums(report);
  if (!report.options->quiet) {
    print_row(out, std::vector<std::string>{"request", "prompt", "output", "engines", "TTFT", "TPOT", "sent", "kept",
                                            "transfer", "hidden"});
    for (const RequestRecord& r : run.requests) {
      const std::string id = std::to_string(r.attempt.request);
      if (r.state != State::done) {
        out << std::string(7 - std::min<std::size_t>(7, id.size()), ' ') << id << "  " << r.failure << '\n';
        continue;
      }
      print_row(out, std::vector<std::string>{id, std::to_string(r.prompt_tokens), std::to_string(r.output_tokens),
                                              std::to_string(r.prefill) + " > " + std::to_string(r.decode),
                                              ms(r.ttft()), ms(r.tpot(), 3), kib(r.handover.bytes),
                                              kib(static_cast<std::uint64_t>(r.handover.kept * report.token_bytes)),
                                              ms(r.transfer()), percent(share(r.hidden(), r.transfer()))});
    }
    out << '\n';
  }
  out << sums.served << " of " << run.requests.size() << " requests served: " << sums.prompt_tokens << " + "
      << sums.output_tokens << " tokens in " << ms(run.total, 1) << ", over " << report.transport << '\n'
      << "TTFT:     " << Sums::spread(sums.ttft) << '\n'
      << "TPOT:     " << Sums::spread(sums.tpot) << '\n'
      << "moved:    " << mib(sums.sent) << " in rows; " << mib(sums.kept)
      << " not sent, decode engines had them; prefill reused " << sums.reused << " tokens\n";
  const Received received(run);
  out << "receive:  " << mib(received.bytes) << " in " << ms(received.time) << " of decode engines' time, "
      << fixed(received.per_second() * 1e-9, 2, " GB/s") << "; refused for want of room " << sums.refusals
      << " times, begun again " << sums.attempts << " times\n"
      << "overlap:  " << percent(share(sums.hidden, sums.transfer)) << " of the time of transfers was hidden behind "
      << "the prefill of the same prompt\n";
  for (std::size_t peer = 0; peer < run.engines.size(); ++peer) {
    const EngineRecord& engine = run.engines[peer];
    out << name(run, peer) << ": "
        << (engine.lost ? "lost" : "computed " + percent(share(engine.figures.computing, run.total)) + " of the time")
        << (!engine.lost && !engine.figures.clean ? ", and holds blocks at the end: this is a bug\n" : "\n");
  }
  if (report.alone) {
    const Alone& alone = *report.alone;
    out << "alone:    one engine, one thread, phase after phase: prefill " << ms(alone.prefill, 1) << " + decode "
        << ms(alone.decode, 1) << "; the engines took " << fixed(report.ratio(), 3) << " of it\n"
        << "check:    " << report.equal_outputs() << " of " << run.requests.size()
        << " outputs are equal to it, token for token\n";
  }
}

std::string to_json(const Report& report) {
  using Json = nlohmann::ordered_json;
  const auto seconds = [](Time t) { return static_cast<double>(t) * 1e-9; };
  const RunRecord& run = report.run;
  const Sums sums(report);
  const Received received(run);
  Json json = {{"transport", report.transport},
               {"prefill_engines", run.prefill_engines},
               {"decode_engines", static_cast<int>(run.engines.size()) - run.prefill_engines},
               {"total_seconds", seconds(run.total)},
               {"served", sums.served},
               {"prompt_tokens", sums.prompt_tokens},
               {"output_tokens", sums.output_tokens},
               {"sent_bytes", sums.sent},
               {"kept_bytes", sums.kept},
               {"receive_bytes_per_second", received.per_second()},
               {"overlap", share(sums.hidden, sums.transfer)},
               {"refusals", sums.refusals},
               {"engines", Json::array()},
               {"requests", Json::array()}};
  if (report.alone) {
    json["alone"] = {{"prefill_seconds", seconds(report.alone->prefill)},
                     {"decode_seconds", seconds(report.alone->decode)},
                     {"ratio", report.ratio()},
                     {"equal_outputs", report.equal_outputs()}};
  }
  for (std::size_t peer = 0; peer < run.engines.size(); ++peer) {
    const EngineRecord& engine = run.engines[peer];
    json["engines"].push_back({{"name", name(run, peer)},
                               {"lost", engine.lost},
                               {"computing_seconds", seconds(engine.figures.computing)},
                               {"receiving_seconds", seconds(engine.figures.receiving)},
                               {"received_bytes", engine.figures.received_bytes},
                               {"clean", engine.figures.clean}});
  }
  for (const RequestRecord& r : run.requests) {
    if (r.state != State::done) {
      json["requests"].push_back({{"failure", r.failure}});
      continue;
    }
    json["requests"].push_back({{"prefill_engine", r.prefill},
                                {"decode_engine", r.decode},
                                {"attempts", r.attempt.number + 1},
                                {"prompt_tokens", r.prompt_tokens},
                                {"reused_tokens", r.prefilled.reused},
                                {"kept_tokens", r.handover.kept},
                                {"sent_bytes", r.handover.bytes},
                                {"refusals", r.handover.refusals},
                                {"ttft_seconds", seconds(r.ttft())},
                                {"tpot_seconds", seconds(r.tpot())},
                                {"prefill", {seconds(r.prefilled.begin), seconds(r.prefilled.end)}},
                                {"transfer", {seconds(r.handover.begin), seconds(r.decoded.received)}},
                                {"decode", {seconds(r.decoded.begin), seconds(r.decoded.end)}},
                                {"output", r.output}});
  }
  return json.dump(2) + "\n";
}

}  // namespace disaggregated
