#include "options.hpp"

#include <CLI/CLI.hpp>
#include <algorithm>
#include <charconv>
#include <cstdint>
#include <functional>
#include <iostream>

#include "arguments.hpp"
#include "bounds.hpp"
#include "evictions.hpp"
#include "model_shape.hpp"
#include "trace_arguments.hpp"

namespace replay {
namespace {

constexpr Index max_capacity = 100'000'000;

using kvc_bench::reject;
using kvc_bench::split;

std::vector<Index> parse_capacities(const CLI::results_t& texts) {
  std::vector<Index> capacities;
  for (const std::string& part : split(texts)) {
    capacities.push_back(kvc_bench::whole("--capacity", part, 1, max_capacity));
  }
  std::ranges::sort(capacities);
  capacities.erase(std::unique(capacities.begin(), capacities.end()), capacities.end());
  return capacities;
}

std::string parse_model(const std::string& name) {
  std::string all;
  for (const serving::ModelShape& model : serving::known_models()) {
    if (model.name == name) {
      return name;
    }
    all.append(all.empty() ? "" : ", ").append(model.name);
  }
  reject("--model", name, "one of " + all);
}

std::string family_names() {
  std::string all;
  for (const Family family : all_families) {
    all.append(all.empty() ? "" : ", ").append(name(family));
  }
  return all;
}

Family parse_family(const std::string& text) {
  for (const Family family : all_families) {
    if (name(family) == text) {
      return family;
    }
  }
  reject("--workload", text, "one of " + family_names());
}

Part parse_part(const std::string& text) {
  const char* end = text.data() + text.size();
  Part part;
  const auto [slash, error] = std::from_chars(text.data(), end, part.number);
  if (error == std::errc{} && slash != end && *slash == '/') {
    const auto [stop, error_of] = std::from_chars(slash + 1, end, part.of);
    if (error_of == std::errc{} && stop == end && 1 <= part.number && part.number <= part.of) {
      return part;
    }
  }
  reject("--part", text, "K/N with 1 <= K <= N");
}

std::vector<TierSize> parse_tiers(const CLI::results_t& texts) {
  std::vector<TierSize> tiers;
  for (const std::string& part : split(texts)) {
    const std::size_t colon = part.find(':'), second = part.find(':', colon == part.npos ? colon : colon + 1);
    if (colon == part.npos || colon == 0) {
      reject("--tiers", part, "NAME:BLOCKS or NAME:BLOCKS:RULE");
    }
    TierSize tier;
    tier.name = part.substr(0, colon);
    tier.blocks = kvc_bench::whole("--tiers", part.substr(colon + 1, second == part.npos ? second : second - colon - 1),
                                   1, max_capacity);
    tier.rule = second == part.npos ? tier.rule : part.substr(second + 1);
    if (tier.rule != "through" && tier.rule != "back" && tier.rule != "selective") {
      reject("--tiers", part, "NAME:BLOCKS:RULE with the rule through, back or selective");
    }
    tiers.push_back(std::move(tier));
  }
  if (tiers.size() > 3) {
    reject("--tiers", texts.front(), "at most three tiers");
  }
  return tiers;
}

std::string all_names() {
  std::string all;
  for (std::size_t i = 0; i < policies; ++i) {
    all.append(eviction_names[i]).append(", ");
  }
  return all;
}

/// Always includes lru, the base of gap_recovered.
std::vector<std::string> parse_evictions(const CLI::results_t& texts) {
  std::vector<std::string_view> wanted = {kvc::Lru::name};
  for (const std::string& part : split(texts)) {
    if (part == "all") {
      wanted.insert(wanted.end(), eviction_names.begin(), eviction_names.begin() + policies);
    } else if (part == "variants") {
      wanted.insert(wanted.end(), eviction_names.begin() + policies, eviction_names.end());
    } else if (part == "default") {
      wanted.push_back(eviction_name<DefaultEviction>);
    } else if (const auto name = std::ranges::find(eviction_names, part); name != eviction_names.end()) {
      wanted.push_back(*name);
    } else if (std::ranges::find(bound_names, part) == bound_names.end()) {
      reject("--eviction", part, "one of " + all_names() + "default, all, variants");
    }
  }
  std::vector<std::string> names;
  for (const std::string_view name : eviction_names) {
    if (std::ranges::find(wanted, name) != wanted.end()) {
      names.emplace_back(name);
    }
  }
  return names;
}

}  // namespace

bool parse(int argc, char** argv, Options& options, int& exit_code) {
  CLI::App app(
      "Replays the requests of a trace, one after another, through the prefix cache with each eviction policy, and\n"
      "counts the blocks of the prompts that each policy finds in the cache.",
      "replay");
  app.footer(
      "Examples:\n"
      "  replay --trace conversation_trace.jsonl --capacity 10000\n"
      "  replay --trace t.jsonl.gz --capacity 1000,10000,50000 --eviction lru,default --plot hits.svg\n"
      "  replay --trace t.jsonl --format weka --capacity 20000 --json results.json --skip-bad\n"
      "  replay --trace conversation_trace.jsonl --capacity 10000 --model qwen3-next-80b\n"
      "  replay --workloads 30 --seed 7\n"
      "  replay --workload agents --blocks 1000000 --capacity 10000\n\n"
      "lru is always replayed, and so are four references. belady-held knows the future: no prefix cache that holds "
      "the\n"
      "blocks of a running prompt finds more. Three count single blocks, as if a block could stay without those "
      "before\n"
      "it (accounting \"flat\"): fifo; belady, which knows the future and bounds every policy; and unbounded, a cache\n"
      "that never evicts. \"gap recovered\" is the position of a policy between lru (0 %) and belady (100 %), \"of "
      "held\"\n"
      "that between lru and belady-held.\n"
      "A prompt with more blocks than the pool counts as refused; the beginning that fits is cached.\n"
      "With --model the capacity is memory: that of so many blocks, all rows of all layers. In it the layer groups of "
      "the\n"
      "model hold what they keep: windows and chunks in whole blocks, and states of recurrent layers at the end of a\n"
      "prompt and where prompts have parted. Prompts are computed in passes of 8,192 tokens, and count as refused "
      "where\n"
      "one has no room. Of the references only unbounded is given: the others hold every row.\n"
      "Plots are drawn by gnuplot (Debian: gnuplot-nox).\n\n" +
      std::string(kvc_bench::formats_help) +
      "\n"
      "Exit code: 0 success; 1 a file that cannot be read or written; 2 a bad option.");

  kvc_bench::TraceArguments trace_arguments;
  CLI::Option* const trace = app.add_option("--trace", options.trace, "The requests: a file, a pipe or a folder")
                                 ->type_name("FILE")
                                 ->check(validators::file_name());
  trace_arguments.add_to(app, trace);
  app.add_option("--capacity", CLI::callback_t([&](const CLI::results_t& texts) {
                   options.capacities = parse_capacities(texts);
                   return true;
                 }),
                 "Blocks in the pool, 1 to 100000000; several: one replay for each")
      ->type_name("BLOCKS[,BLOCKS...]")
      ->take_all()
      ->allow_extra_args(false);
  CLI::Option* const workloads =
      app.add_option("--workloads", options.workloads,
                     "Instead of a trace: generate so many workloads, of all families in turn, and compare the\n"
                     "default with lru on each, at 0.5, 2, 10 and 40 % of its different blocks")
          ->type_name("COUNT")
          ->check(CLI::Range(1, 10'000))
          ->excludes(trace);
  CLI::Option* const workload =
      app.add_option("--workload", CLI::callback_t([&](const CLI::results_t& texts) {
                       options.workload = parse_family(texts.front());
                       return true;
                     }),
                     "Instead of a trace: a generated workload of one family: " + family_names())
          ->type_name("FAMILY")
          ->excludes(trace)
          ->excludes(workloads);
  app.add_option("--blocks", options.workload_blocks, "Blocks of all prompts of that workload together, about [100000]")
      ->type_name("BLOCKS")
      ->check(CLI::Range(std::int64_t{100}, std::int64_t{100'000'000}))
      ->needs(workload);
  CLI::Option* const seed =
      app.add_option("--seed", options.workloads_seed,
                     "Seed of that workload, or of the first of --workloads, whose next ones count up [1]")
          ->type_name("SEED")
          ->check(CLI::NonNegativeNumber);
  options.evictions = parse_evictions({"all"});
  app.add_option("--eviction", CLI::callback_t([&](const CLI::results_t& texts) {
                   options.evictions = parse_evictions(texts);
                   return true;
                 }),
                 "Policies to replay: " + all_names() + "\ndefault (" + std::string(eviction_name<DefaultEviction>) +
                     "), all (of these), or variants: the default without some of its parts or with other\n"
                     "parameters. lru is always among them [all]")
      ->type_name("NAME[,NAME...]")
      ->take_all()
      ->allow_extra_args(false);
#if defined(KVC_HAVE_SODIUM)
  CLI::Option* const tiers =
      app.add_option(
             "--tiers", CLI::callback_t([&](const CLI::results_t& texts) {
               options.tiers = parse_tiers(texts);
               return true;
             }),
             "At most three slower tiers behind the pool, the fastest first, of 1 to 100000000 blocks, and when "
             "blocks\n"
             "are written to them: through (as soon as they are cached), back (as the pool runs short) or selective\n"
             "(as soon as a later prompt has found them; and of those that leave the pool before that, the ones whose\n"
             "value to the eviction policy is above the mean, under a policy that estimates reuse, as hazard does).\n"
             "No tiers are there unless given; RULE is through unless given")
          ->type_name("NAME:BLOCKS[:RULE][,...]")
          ->take_all()
          ->allow_extra_args(false);
#endif
  app.add_option("--json", options.json, "Write all figures to this file, as one JSON document")
      ->type_name("FILE")
      ->check(validators::file_name());
  app.add_option("--plot", options.plot,
                 "Draw the hit rates over the capacities, or with --workloads the gains in their order, as an SVG file")
      ->type_name("FILE.svg")
      ->check(validators::file_name());
  app.add_option("--part", CLI::callback_t([&](const CLI::results_t& texts) {
                   options.part = parse_part(texts.front());
                   return true;
                 }),
                 "Only the K-th of N equal parts of the trace, 1 <= K <= N [1/1]")
      ->type_name("K/N");
  app.add_option("--model", CLI::callback_t([&](const CLI::results_t& texts) {
                   options.model = parse_model(texts.front());
                   return true;
                 }),
                 "Hold what the layers of this model keep: one that serve-bench --list names [a row of each layer\nfor "
                 "each token]")
      ->type_name("NAME");
  app.add_option("--shuffle", options.shuffle,
                 "Sessions keep their own times and swap their starts at random, by this seed; requests that\n"
                 "have their second block in common are a session [the order of the trace]")
      ->type_name("SEED")
      ->check(CLI::NonNegativeNumber);
#if defined(KVC_HAVE_SODIUM)
  tiers->excludes(app.get_option("--model"))->excludes(workloads);
#endif
  for (const char* of_a_trace : {"--capacity", "--eviction", "--json", "--part", "--shuffle", "--model"}) {
    workloads->excludes(app.get_option(of_a_trace));
  }
  bool skip_bad = false;
  app.add_flag("--skip-bad", skip_bad, "Skip malformed lines and count them, instead of stopping at the first");

  try {
    app.parse(argc, argv);
    if (options.workloads == 0) {
      if (!options.workload && seed->count() > 0) {
        throw CLI::RequiresError("--seed", "--workload or --workloads");
      }
      if (options.trace.empty() && !options.workload) {
        throw CLI::RequiredError("--trace");
      }

      if (options.capacities.empty()) {
        throw CLI::RequiredError("--capacity");
      }
    }
    options.read = trace_arguments.options();
    options.read.skip_bad = skip_bad;
    return true;
  } catch (const CLI::ParseError& error) {
    exit_code = app.exit(error, std::cout, std::cerr) == 0 ? 0 : 2;
    return false;
  }
}

}  // namespace replay
