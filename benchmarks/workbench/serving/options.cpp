#include "options.hpp"

#include <CLI/CLI.hpp>
#include <algorithm>
#include <charconv>
#include <cmath>
#include <iostream>

#include "arguments.hpp"
#include "trace_arguments.hpp"

namespace serving {
namespace {

using kvc_bench::one_of;
using kvc_bench::reject;
using kvc_bench::split;

std::vector<PolicyKind> parse_policies(const CLI::results_t& texts) {
  std::vector<PolicyKind> policies;
  const auto add = [&](PolicyKind policy) {
    if (std::ranges::find(policies, policy) == policies.end()) {
      policies.push_back(policy);
    }
  };
  for (const std::string& part : split(texts)) {
    const auto* found = std::ranges::find(all_policies, std::string_view(part), [](PolicyKind p) { return name(p); });
    if (part == "all") {
      std::ranges::for_each(all_policies, add);
    } else if (found != std::end(all_policies)) {
      add(*found);
    } else {
      reject("--policy", part, "one of contiguous-reserve, contiguous-grow, paged, prefix-shared, all");
    }
  }
  return policies;
}

/// "600,660", in seconds.
Watch parse_watch(const std::string& text) {
  const std::size_t comma = text.find(',');
  const auto seconds = [&](std::size_t begin, std::size_t end) {
    Index value = -1;
    const auto [stop, error] = std::from_chars(text.data() + begin, text.data() + end, value);
    return error == std::errc{} && stop == text.data() + end && value <= 10'000'000 ? value : Index{-1};
  };
  const Index from = comma == std::string::npos ? -1 : seconds(0, comma);
  const Index to = comma == std::string::npos ? -1 : seconds(comma + 1, text.size());
  if (from < 0 || to <= from) {
    reject("--watch", text, "two whole numbers of seconds, the second the larger one");
  }
  return {from * second, to * second};
}

std::vector<double> parse_loads(const CLI::results_t& texts) {
  std::vector<double> loads;
  for (const std::string& part : split(texts)) {
    loads.push_back(kvc_bench::number("--load", part, 0.001, 1000));
  }
  return loads;
}

std::vector<LoadRule> parse_load_rules(const std::vector<std::string>& names) {
  std::vector<LoadRule> rules;
  constexpr LoadRule all[] = {LoadRule::always, LoadRule::never, LoadRule::cheaper};
  for (const std::string& part : names) {
    const auto* found = std::ranges::find(all, std::string_view(part), [](LoadRule rule) { return name(rule); });
    if (found == std::end(all) && part != "all") {
      reject("--load-rule", part, "one of always, never, cheaper, all");
    }
    for (const LoadRule rule : all) {
      if ((part == "all" || rule == *found) && std::ranges::find(rules, rule) == rules.end()) {
        rules.push_back(rule);
      }
    }
  }
  return rules;
}

/// NAME:BLOCKS[:GB/S[:MS[:RULE]]], or the name of one that the scenario has.
TierSpec parse_tier(const std::string& text, const Scenario& scenario) {
  std::vector<std::string> parts;
  for (std::size_t begin = 0; begin <= text.size();) {
    const std::size_t colon = std::min(text.find(':', begin), text.size());
    parts.push_back(text.substr(begin, colon - begin));
    begin = colon + 1;
  }
  const auto fail = [&](const std::string& allowed) -> void {
    throw std::runtime_error("--tiers: \"" + text + "\" must be " + allowed);
  };
  if (parts.size() == 1) {
    const auto found = std::ranges::find(scenario.known_tiers, text, &TierSpec::name);
    if (found == scenario.known_tiers.end()) {
      std::string all = "none, NAME:BLOCKS[:GB/S[:MS[:RULE]]], or a tier of the scenario, which has ";
      for (const TierSpec& tier : scenario.known_tiers) {
        all += (&tier == scenario.known_tiers.data() ? "" : ", ") + tier.name;
      }
      fail(scenario.known_tiers.empty() ? all + "none" : all);
    }
    return *found;
  }
  TierSpec tier;
  tier.name = parts[0];
  if (parts.size() > 5 || tier.name.empty()) {
    fail("NAME:BLOCKS[:GB/S[:MS[:RULE]]]");
  }
  try {
    tier.blocks = kvc_bench::whole("--tiers", parts[1], 1, 1'000'000'000);
    tier.bytes_per_second = parts.size() > 2 ? 1e9 * kvc_bench::number("--tiers", parts[2], 1e-6, 1e6) : 0;
    tier.latency =
        parts.size() > 3 ? static_cast<Time>(kvc_bench::number("--tiers", parts[3], 0, 1e6) * millisecond) : 0;
  } catch (const CLI::ParseError& error) {
    throw std::runtime_error(error.what());
  }
  if (parts.size() > 4 && parts[4] != "through" && parts[4] != "back") {
    fail("NAME:BLOCKS:GB/S:MS:RULE with the rule through or back");
  }
  tier.write_back = parts.size() > 4 && parts[4] == "back";
  return tier;
}

void list_all(std::ostream& out) {
  out << "scenarios\n";
  for (const std::string& scenario : scenario_names()) {
    out << "  " << scenario << '\n';
  }
  out << "models\n";
  for (const ModelShape& model : known_models()) {
    out << "  " << model.name << ": " << model.source << '\n';
  }
  out << "hardware\n";
  for (const Hardware& hardware : known_hardware()) {
    out << "  " << hardware.name << ": " << hardware.source << '\n';
  }
}

}  // namespace

bool parse(int argc, char** argv, Options& options, int& exit_code) {
  CLI::App app(
      "Serves synthetic or recorded traffic with continuous batching over each cache policy, in simulated or real "
      "time,\n"
      "and reports latency (TTFT, TPOT), throughput, and memory: failed admissions with free memory, sequences out of\n"
      "room, preemptions, and the share of prompt tokens that were cached.",
      "serve-bench");
  app.footer(
      "Examples:\n"
      "  serve-bench --scenario knowledge-assistant\n"
      "  serve-bench --scenario streaming-agents --policy paged,prefix-shared --load 0.5,1,2 --json results.json\n"
      "  serve-bench --scenario multi-tenant --html report.html\n"
      "  serve-bench --scenario mine.json --chunked on\n"
      "  serve-bench --scenario window-model --groups both --chunked on\n"
      "  serve-bench --mode real --scenario small-model-chat --calibrate\n"
      "  serve-bench --trace conversation_trace.jsonl --model llama-3-70b --hardware h100-sxm --devices 4\n\n"
      "A scenario describes machine, model and traffic; docs/serving.md lists its fields, those of traces, and those "
      "of\n"
      "the JSON document. Policies and allocators are the library's, and decide as over real memory; only time is\n"
      "computed: max(operations / peak, bytes / bandwidth) + overhead for each step. The same arguments give the same\n"
      "results, bit for bit. A pipe is read once, for all runs.\n\n" +
      std::string(kvc_bench::formats_help) +
      "\nExit code: 0 success; 1 a file that cannot be read or written, a livelock, or answers of real runs that "
      "differ\n"
      "between policies; 2 a bad option.");

  std::string chunked = "both";
  std::string groups = "on";
  std::string order;
  bool list = false;
  app.add_option("--scenario", options.scenario, "A scenario of this program (see --list), or a file")
      ->type_name("NAME|FILE");
  CLI::Option* const trace = app.add_option("--trace", options.trace, "Requests of a file, a pipe or a folder instead")
                                 ->type_name("FILE")
                                 ->check(validators::file_name());
  kvc_bench::TraceArguments trace_arguments;
  trace_arguments.add_to(app, trace);
  options.policies = parse_policies({"all"});
  app.add_option("--policy", CLI::callback_t([&](const CLI::results_t& texts) {
                   options.policies = parse_policies(texts);
                   options.all_policies = false;
                   return true;
                 }),
                 "contiguous-reserve, contiguous-grow, paged, prefix-shared, or all [all that can hold the model:\n"
                 "with recurrent layers the last two]")
      ->type_name("NAME[,NAME...]")
      ->take_all()
      ->allow_extra_args(false);
  app.add_option("--chunked", chunked, "Prompts in chunks: on, off (whole prompts), or both")
      ->type_name("WHICH")
      ->capture_default_str();
  app.add_option("--chunk", options.chunk_tokens, "Tokens of a chunk [the scenario's]")
      ->type_name("TOKENS")
      ->check(CLI::Range(1, 1 << 24));
  app.add_option("--groups", groups,
                 "Of a model whose layers differ: on, windows and chunks drop what no query sees any more; off, one\n"
                 "shape for all: every layer keeps every row, in as many bytes; or both. contiguous-* always have one\n"
                 "shape here: their groups would have pools of their own")
      ->type_name("WHICH")
      ->capture_default_str();
  app.add_option("--order", order, "Order within a step: decode-first or prefill-first [the scenario's]")
      ->type_name("NAME");
  options.loads = {1};
  app.add_option("--load", CLI::callback_t([&](const CLI::results_t& texts) {
                   options.loads = parse_loads(texts);
                   return true;
                 }),
                 "Factor on the arrival rate, 0.001 to 1000; several: a run for each [1]")
      ->type_name("X[,X...]")
      ->take_all()
      ->allow_extra_args(false);
  app.add_option("--requests", options.requests, "Requests to serve [the scenario's, or those of the trace]")
      ->type_name("N")
      ->check(CLI::Range(std::int64_t{1}, std::int64_t{1'000'000'000}));
  app.add_option("--seed", options.seed, "Seed of synthetic traffic [the scenario's]")
      ->type_name("S")
      ->check(CLI::Range(std::uint64_t{0}, std::uint64_t{1} << 53));
  app.add_option(
         "--tiers", CLI::callback_t([&](const CLI::results_t& texts) {
           options.tier_sets = split(texts);
           return true;
         }),
         "Slower tiers behind the pool of prefix-shared, the fastest first, joined by +; several sets: a run for\n"
         "each. A tier is one of the scenario's, or NAME:BLOCKS[:GB/S[:MS[:RULE]]]: its size, 1 to 1e9 blocks;\n"
         "bandwidth either way, 1e-6 to 1e6 [no time passes]; latency, 0 to 1e6 [0]; and when blocks are written,\n"
         "through (as soon as they are cached) or back (as the pool runs short) [through]. A set \"none\": a run\n"
         "without tiers [none]")
      ->type_name("TIER[+TIER...][,SET...]")
      ->take_all()
      ->allow_extra_args(false);
  std::vector<std::string> load_rules = {"cheaper"};
  app.add_option(
         "--load-rule", CLI::callback_t([&](const CLI::results_t& texts) {
           load_rules = split(texts);
           return true;
         }),
         "When blocks are loaded that a slower tier has: always, never, cheaper (as many as make the first token\n"
         "come soonest, by what was measured), or all: a run for each [cheaper]")
      ->type_name("RULE[,RULE...]")
      ->take_all()
      ->allow_extra_args(false);
  std::string mode = "sim";
  app.add_option("--mode", mode,
                 "sim: time is computed; real: a decoder computes over real keys and values, and its time is\n"
                 "measured")
      ->type_name("sim|real")
      ->capture_default_str();
  app.add_option("--model", options.model,
                 "A model that --list names [the scenario's; llama-3-8b for a trace]. With --mode real a llama2.c\n"
                 "checkpoint [the small model of the project]")
      ->type_name("NAME|FILE");
  app.add_flag("--calibrate", options.calibrate,
               "With --mode real: also measure single steps, fit the cost model to them, simulate the same requests,\n"
               "and compare");
  app.add_option("--rounds", options.rounds, "Rounds of measurements; real runs report the median one")
      ->type_name("N")
      ->check(CLI::Range(1, 1000))
      ->capture_default_str();
  app.add_option("--threads", options.threads, "Threads of the decoder, with --mode real")
      ->type_name("N")
      ->check(CLI::Range(1, 1024))
      ->capture_default_str();
  std::string clock = "wall";
  app.add_option("--clock", clock,
                 "Clock of --mode real: wall, or cpu: processor time of this process, for one thread on a shared\n"
                 "machine")
      ->type_name("wall|cpu")
      ->capture_default_str();
  app.add_option("--cost-curve", options.cost_curve,
                 "Measure and draw the cost of prefill, decode and chunks on this machine, as an SVG file; no\n"
                 "scenario")
      ->type_name("FILE")
      ->check(validators::file_name());
  app.add_option("--tier-curve", options.tier_curve,
                 "Measure and draw when slower tiers pay on this machine: the second turn of a session, computed\n"
                 "and loaded, as an SVG file; no scenario")
      ->type_name("FILE")
      ->check(validators::file_name());
  app.add_option("--hardware", options.hardware, "A device that --list names [the scenario's; a100-80g for a trace]")
      ->type_name("NAME");
  app.add_option("--devices", options.devices, "Number of devices that share the work [the scenario's; 1 for a trace]")
      ->type_name("N")
      ->check(CLI::Range(1, 4096));
  app.add_option("--pool", options.pool_tokens,
                 "Tokens that the pool holds if every layer keeps every row [the scenario's, else as many as the\n"
                 "weights leave memory for]")
      ->type_name("TOKENS")
      ->check(CLI::Range(std::int64_t{1}, std::int64_t{2'000'000'000}));
  app.add_option("--max-output", options.max_output,
                 "Output limit of requests of a trace that name none: contiguous-reserve reserves it [2048]")
      ->type_name("TOKENS")
      ->check(CLI::Range(1, 1 << 24))
      ->needs(trace);
  std::string watch;
  app.add_option("--watch", watch,
                 "Whole seconds of the run whose memory is recorded and drawn, for a closer look,\n"
                 "0 <= FROM < TO <= 10000000 [all]")
      ->type_name("FROM,TO");
  bool no_pins = false;
  app.add_flag("--no-pins", no_pins, "Pin no prefix, in spite of the scenario: prefixes stay while there is room");
  app.add_option("--json", options.json, "Write all results to this file, as one JSON document")
      ->type_name("FILE")
      ->check(validators::file_name());
  app.add_option("--html", options.html, "Write a page with plots of all results, in one file")
      ->type_name("FILE")
      ->check(validators::file_name());
  app.add_option("--plot", options.plot,
                 "Draw memory over time and the TTFT of each policy, at the first load; an SVG file")
      ->type_name("FILE")
      ->check(validators::file_name());
  app.add_flag("--list", list, "List scenarios, models and hardware");

  try {
    app.parse(argc, argv);
    if (list) {
      list_all(std::cout);
      exit_code = 0;
      return false;
    }
    options.real = one_of<bool>("--mode", mode, {{"sim", false}, {"real", true}});
    options.clock = one_of<ClockKind>("--clock", clock, {{"wall", ClockKind::wall}, {"cpu", ClockKind::cpu}});
    if (options.clock == ClockKind::cpu && options.threads > 1) {
      throw CLI::ValidationError("--clock", "cpu is for one thread: it would count the time of all");
    }
    if (options.calibrate && !options.real) {
      throw CLI::ValidationError("--calibrate", "needs --mode real");
    }
    if (!options.cost_curve.empty() || !options.tier_curve.empty()) {
      return true;
    }
    if (options.scenario.empty() == options.trace.empty()) {
      throw CLI::ValidationError("one of --scenario and --trace must be given");
    }
    options.read = trace_arguments.options();
    options.chunked =
        one_of<std::vector<bool>>("--chunked", chunked, {{"on", {true}}, {"off", {false}}, {"both", {false, true}}});
    options.one_shape =
        one_of<std::vector<bool>>("--groups", groups, {{"on", {false}}, {"off", {true}}, {"both", {false, true}}});
    options.pins = !no_pins;
    options.load_rules = parse_load_rules(load_rules);
    if (!watch.empty()) {
      options.watch = parse_watch(watch);
    }
    if (!order.empty()) {
      options.order = one_of<Order>("--order", order,
                                    {{"decode-first", Order::decode_first}, {"prefill-first", Order::prefill_first}});
    }
    return true;
  } catch (const CLI::ParseError& error) {
    exit_code = app.exit(error, std::cout, std::cerr) == 0 ? 0 : 2;
    return false;
  }
}

Scenario scenario_of(const Options& options) {
  Scenario scenario;
  if (!options.scenario.empty()) {
    scenario = read_scenario(options.scenario);
  } else {
    scenario.name = options.trace;
    scenario.story = "A trace.";
    scenario.trace = kvc_bench::TraceInput::open(options.trace);
    scenario.trace_options.read = options.read;
    scenario.trace_options.max_output = options.max_output.value_or(scenario.trace_options.max_output);
    scenario.model = find_model("llama-3-8b");
    scenario.hardware = find_hardware("a100-80g");
    scenario.scheduler.chunk_tokens = usual_chunk;
  }
  if (!options.model.empty() && !options.real) {
    const double bytes = scenario.model.kv_bytes_per_token();
    scenario.model = find_model(options.model);
    for (TierSpec& tier : scenario.known_tiers) {  // as many bytes
      const double blocks = static_cast<double>(tier.blocks) * bytes / scenario.model.kv_bytes_per_token();
      tier.blocks = std::max<Index>(std::llround(blocks), 1);
    }
  }
  if (!options.hardware.empty()) {
    scenario.hardware = find_hardware(options.hardware);
  }
  scenario.hardware.devices = options.devices.value_or(scenario.hardware.devices);
  scenario.pool_tokens = options.pool_tokens.value_or(scenario.pool_tokens);
  scenario.scheduler.chunk_tokens = options.chunk_tokens.value_or(scenario.scheduler.chunk_tokens);
  scenario.scheduler.order = options.order.value_or(scenario.scheduler.order);
  scenario.requests = options.requests.value_or(scenario.requests);
  scenario.watch = options.watch;
  scenario.names_tiers = !options.tier_sets.empty();
  scenario.seed = options.seed.value_or(scenario.seed);
  for (TrafficClass& c : scenario.traffic) {
    c.pinned = c.pinned && options.pins;
  }
  return scenario;
}

std::vector<TierSet> tier_sets_of(const Options& options, const Scenario& scenario) {
  std::vector<TierSet> sets;
  for (const std::string& text : options.tier_sets) {
    TierSet set;
    if (text != "none") {
      set.name.clear();
      for (std::size_t begin = 0; begin <= text.size();) {
        const std::size_t plus = std::min(text.find('+', begin), text.size());
        set.tiers.push_back(parse_tier(text.substr(begin, plus - begin), scenario));
        set.name += (set.name.empty() ? "" : " + ") + set.tiers.back().name;
        begin = plus + 1;
      }
      if (set.tiers.size() > most_tiers) {
        throw std::runtime_error("--tiers: \"" + text + "\" must be at most three tiers");
      }
    }
    sets.push_back(std::move(set));
  }
  if (sets.empty()) {
    sets.emplace_back();
  }
  return sets;
}

}  // namespace serving
