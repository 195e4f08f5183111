#include "scenario.hpp"

#include <algorithm>
#include <cmath>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <stdexcept>

#include "json_fields.hpp"
#include "trace.hpp"

namespace serving {
namespace {

using kvc_bench::FieldError;
using kvc_bench::Fields;
using kvc_bench::Json;
using kvc_bench::parse_json;

constexpr double max_seconds = 1e7;
constexpr Index max_requests = 1'000'000'000;
constexpr Pos max_tokens = kvc_bench::max_request_tokens;

template <class T>
std::vector<std::string> names_of(const std::vector<T>& known) {
  std::vector<std::string> names;
  for (const T& one : known) {
    names.push_back(one.name);
  }
  return names;
}

template <class T>
const T& find(const std::vector<T>& known, const std::string& name, const char* what) {
  const auto found = std::ranges::find(known, name, &T::name);
  if (found == known.end()) {
    std::string all;
    for (const T& one : known) {
      all.append(all.empty() ? "" : ", ").append(one.name);
    }
    throw std::runtime_error(std::string(what) + " \"" + name + "\" is not known; known are " + all);
  }
  return *found;
}

std::vector<ModelStates> parse_states(const Fields& list, Index layers) {
  std::vector<ModelStates> states;
  for (const Fields& fields : list.items()) {
    fields.only({"layers", "bytes", "parameters", "operations"});
    states.push_back({.layers = fields.at("layers").whole(1, layers),
                      .bytes = fields.at("bytes").whole(1, Index{1} << 30),
                      .parameters = fields.number_or("parameters", 0, 1e12, 0),
                      .operations = fields.number_or("operations", 0, 1e12, 0)});
  }
  return states;
}

/// Layers with attention, by what their queries see: so many.
std::vector<ModelGroup> parse_groups(const Fields& list, Index layers) {
  std::vector<ModelGroup> groups;
  Index sum = 0;
  for (const Fields& fields : list.items()) {
    fields.only({"layers", "window", "chunk", "kept"});
    ModelGroup group;
    group.layers = fields.at("layers").whole(1, layers);
    group.retained.window = fields.whole_or<Pos>("window", 1, max_tokens, 0);
    group.retained.chunk = fields.whole_or<Pos>("chunk", 1, max_tokens, 0);
    group.retained.kept = fields.whole_or<Pos>("kept", 0, max_tokens, 0);
    if (group.retained.kept > 0 && group.retained.everything()) {
      fields.at("kept").reject("0, or with a window or a chunk");
    }
    sum += group.layers;
    groups.push_back(group);
  }
  if (sum != layers) {
    list.fail("has " + std::to_string(sum) + " layers, must have the " + std::to_string(layers) +
              " of the model, less those with states");
  }
  return groups;
}

Experts parse_experts(const Fields& fields, Index layers) {
  fields.only({"count", "chosen", "shared", "weight_bytes", "every"});
  Experts experts;
  experts.count = fields.at("count").whole(1, 1 << 16);
  experts.chosen = fields.at("chosen").whole(1, experts.count);
  experts.shared = fields.whole_or<Index>("shared", 0, 1 << 16, 0);
  experts.weight_bytes = fields.number_or("weight_bytes", 0.1, 8, 0);
  experts.every = fields.whole_or<Index>("every", 1, layers, 1);
  return experts;
}

ModelShape parse_model(const Fields& fields) {
  if (fields.value().is_string()) {
    return known_models()[fields.choice(names_of(known_models()))];
  }
  fields.only({"name", "layers", "hidden", "heads", "kv_heads", "head_dim", "ffn", "vocabulary", "tied_embeddings",
               "weight_bytes", "kv_bytes", "source", "groups", "experts", "states", "gated"});
  constexpr Index most = 1 << 20;
  ModelShape model;
  model.name = fields.text_or("name", "own model");
  model.layers = fields.at("layers").whole(1, most);
  model.hidden = fields.at("hidden").whole(1, most);
  model.heads = fields.at("heads").whole(1, most);
  model.kv_heads = fields.at("kv_heads").whole(1, model.heads);
  model.head_dim = fields.at("head_dim").whole(1, most);
  model.ffn = fields.at("ffn").whole(1, most);
  model.vocabulary = fields.at("vocabulary").whole(1, Index{1} << 30);
  model.tied_embeddings = fields.has("tied_embeddings") && fields.at("tied_embeddings").flag();
  model.weight_bytes = fields.number_or("weight_bytes", 0.1, 8, 2);
  model.kv_bytes = fields.number_or("kv_bytes", 0.1, 8, 2);
  model.source = fields.text_or("source", "the scenario");
  model.gated = fields.has("gated") && fields.at("gated").flag();
  if (fields.has("states")) {
    model.states = parse_states(fields.at("states"), model.layers);
  }
  if (fields.has("groups") || !model.states.empty()) {
    model.groups = parse_groups(fields.at("groups"), model.attention_layers());
  }
  if (fields.has("experts")) {
    model.experts = parse_experts(fields.at("experts"), model.layers);
  }
  return model;
}

Hardware parse_hardware(const Fields& fields) {
  if (fields.value().is_string()) {
    return known_hardware()[fields.choice(names_of(known_hardware()))];
  }
  fields.only({"name", "base", "peak", "bandwidth", "memory", "devices", "overhead_ms", "source"});
  Hardware hardware;
  hardware.name = "own hardware";
  hardware.source = "the scenario";
  if (fields.has("base")) {
    hardware = known_hardware()[fields.at("base").choice(names_of(known_hardware()))];
  }
  const auto figure = [&](const char* key, double otherwise) {
    return otherwise > 0 && !fields.has(key) ? otherwise : fields.at(key).number(1, 1e20);
  };
  hardware.peak = figure("peak", hardware.peak);
  hardware.bandwidth = figure("bandwidth", hardware.bandwidth);
  hardware.memory = figure("memory", hardware.memory);
  hardware.devices = fields.whole_or<Index>("devices", 1, 4096, 1);
  hardware.overhead = fields.number_or("overhead_ms", 0, 1e4, hardware.overhead * 1000) / 1000;
  hardware.name = fields.text_or("name", hardware.name);
  hardware.source = fields.text_or("source", hardware.source);
  return hardware;
}

void parse_scheduler(const Fields& fields, SchedulerConfig& config) {
  fields.only({"max_sequences", "step_tokens", "chunk_tokens", "order", "admit", "victim"});
  config.max_sequences = fields.whole_or<Index>("max_sequences", 1, 1 << 20, config.max_sequences);
  config.step_tokens = fields.whole_or<Pos>("step_tokens", 1, max_tokens, config.step_tokens);
  config.chunk_tokens = fields.whole_or<Pos>("chunk_tokens", 1, max_tokens, config.chunk_tokens);
  config.order = static_cast<Order>(fields.choice_or("order", {"decode-first", "prefill-first"}, 0));
  config.admit = static_cast<Admit>(fields.choice_or("admit", {"whole-prompt", "first-chunk"}, 0));
  config.victim = static_cast<Victim>(fields.choice_or("victim", {"youngest", "oldest"}, 0));
}

/// 100, [20, 200] or {"one_of": [50, 1500]}.
Lengths parse_lengths(const Fields& fields) {
  Lengths lengths;
  if (fields.value().is_object()) {
    fields.only({"one_of"});
    const Fields list = fields.at("one_of");
    for (const Fields& item : list.items()) {
      lengths.one_of.push_back(static_cast<Pos>(item.whole(1, max_tokens)));
    }
    if (lengths.one_of.empty()) {
      list.fail("is empty, must have at least one length");
    }
  } else if (fields.value().is_array()) {
    const std::vector<Fields> range = fields.items();
    if (range.size() != 2) {
      fields.reject("a number of tokens, [least, most] or {\"one_of\": [...]}");
    }
    lengths.low = static_cast<Pos>(range[0].whole(1, max_tokens));
    lengths.high = static_cast<Pos>(range[1].whole(lengths.low, max_tokens));
  } else {
    lengths.low = lengths.high = static_cast<Pos>(fields.whole(1, max_tokens));
  }
  return lengths;
}

TrafficClass parse_class(const Fields& fields) {
  fields.only({"name", "rate", "every_s", "burst", "from_s", "until_s", "prefix", "prompt", "output", "max_output",
               "samples", "impatient", "tenants", "sessions"});
  TrafficClass c;
  c.name = fields.at("name").text();
  if (fields.has("rate") == fields.has("every_s")) {
    fields.fail("must have either \"rate\" (requests per second) or \"every_s\" and \"burst\"");
  }
  if (fields.has("rate") && fields.has("burst")) {
    fields.at("burst").fail("contradicts \"rate\", must be left out or come with \"every_s\"");
  }
  if (fields.has("rate")) {
    c.rate = fields.at("rate").number(1e-6, 1e6);
  } else {
    c.every = fields.at("every_s").number(1e-6, max_seconds);
    c.burst = fields.at("burst").whole(1, 1'000'000);
  }
  c.from = fields.number_or("from_s", 0, max_seconds, 0);
  c.until = fields.number_or("until_s", c.from, max_seconds, 0);
  if (fields.has("prefix")) {
    const Fields prefix = fields.at("prefix");
    prefix.only({"name", "tokens", "variants", "pinned"});
    c.prefix_name = prefix.text_or("name", c.name);
    c.prefix_tokens = static_cast<Pos>(prefix.at("tokens").whole(1, max_tokens));
    c.prefix_variants = prefix.whole_or<Index>("variants", 1, 1'000'000, 1);
    c.pinned = prefix.has("pinned") && prefix.at("pinned").flag();
  }
  c.prompt = parse_lengths(fields.at("prompt"));
  c.output = parse_lengths(fields.at("output"));
  c.max_output = fields.whole_or<Pos>("max_output", c.output.most(), max_tokens, 0);
  c.samples = fields.whole_or<int>("samples", 1, 1024, 1);
  if (fields.has("impatient")) {
    const Fields impatient = fields.at("impatient");
    impatient.only({"share", "after_s"});
    c.impatient = impatient.at("share").number(0, 1);
    const Fields after = impatient.at("after_s");
    const std::vector<Fields> range = after.items();
    if (range.size() != 2) {
      after.reject("[least, most] seconds");
    }
    c.patience_low = range[0].number(0, max_seconds);
    c.patience_high = range[1].number(c.patience_low, max_seconds);
  }
  c.tenants = fields.whole_or<Index>("tenants", 1, 1'000'000, 0);
  if (fields.has("sessions")) {
    const Fields sessions = fields.at("sessions");
    sessions.only({"turns", "pause_s", "most_tokens"});
    c.turns = parse_lengths(sessions.at("turns"));
    const std::vector<Fields> pause = sessions.at("pause_s").items();
    if (pause.size() != 2) {
      sessions.at("pause_s").reject("[least, most] seconds");
    }
    c.pause_low = pause[0].number(0, max_seconds);
    c.pause_high = pause[1].number(c.pause_low, max_seconds);
    c.most_tokens = sessions.whole_or<Index>("most_tokens", 1, max_tokens, 0);
  }
  return c;
}

/// By name: the room, and how long it takes to read and write.
std::vector<TierSpec> parse_tiers(const Fields& fields, double block_bytes) {
  std::vector<TierSpec> tiers;
  for (const Fields& tier : fields.items()) {
    tier.only({"name", "gigabytes", "gb_per_s", "latency_ms", "remote", "write"});
    TierSpec spec;
    spec.name = tier.at("name").text();
    const double blocks = tier.at("gigabytes").number(1e-6, 1e9) * 1e9 / block_bytes;
    if (blocks < 1) {
      tier.at("gigabytes").reject("room for one block of " + std::to_string(std::llround(block_bytes)) + " bytes");
    }
    spec.blocks = static_cast<Index>(blocks);
    spec.bytes_per_second = tier.at("gb_per_s").number(1e-6, 1e6) * 1e9;
    spec.latency = std::llround(tier.number_or("latency_ms", 0, 1e6, 0) * millisecond);
    spec.remote = tier.has("remote") && tier.at("remote").flag();
    spec.write_back = tier.choice_or("write", {"through", "back"}, 0) == 1;
    tiers.push_back(std::move(spec));
  }
  return tiers;
}

std::string read_file(const std::string& path) {
  std::ifstream in(path, std::ios::binary);
  std::string text{std::istreambuf_iterator<char>(in), std::istreambuf_iterator<char>()};
  if (!in.good() && !in.eof()) {
    throw std::runtime_error("cannot read \"" + path + "\"");
  }
  return text;
}

constexpr const char* scenario_folder = KVC_SOURCE_DIR "/benchmarks/workbench/serving/scenarios";

}  // namespace

Index Scenario::pool() const {
  const Index tokens = pool_tokens > 0 ? pool_tokens : CostModel(model, hardware).pool_tokens(usable);
  const Index whole = tokens / block_tokens * block_tokens;
  const auto gigabytes = [](double bytes) { return std::to_string(std::llround(bytes / 1e9)) + " GB"; };
  const double pool_bytes = static_cast<double>(tokens) * model.kv_bytes_per_token();
  const double memory = hardware.memory * static_cast<double>(hardware.devices);  // 0: not known, of a real machine
  if (tokens == 0 || (memory > 0 && model.weights() + pool_bytes > memory)) {
    throw std::runtime_error(model.name + " needs " + gigabytes(model.weights()) + " for its weights" +
                             (pool_tokens > 0 ? ", the pool another " + gigabytes(pool_bytes) : "") + ", and " +
                             hardware.name + " leaves no room beside them: more devices, or other ones");
  }
  if (whole == 0) {
    throw std::runtime_error("a pool of " + std::to_string(tokens) + " tokens has no room for one block of " +
                             std::to_string(block_tokens));
  }
  return whole;
}

std::unique_ptr<Source> Scenario::source(double load) const {
  if (traffic.empty()) {
    TraceOptions options = trace_options;
    options.requests = requests;
    options.load = load;
    kvc::require(trace.has_value(), "scenario", name, "one with traffic or a trace");
    return std::make_unique<TraceSource>(*trace, options);
  }
  return std::make_unique<TrafficSource>(traffic, requests, seed, load);
}

Scenario parse_scenario(std::string_view text, std::string name) {
  const Json json = parse_json(text);
  const Fields fields(json);
  fields.only({"story", "model", "hardware", "usable_memory", "pool_tokens", "block_tokens", "watermark",
               "growth_tokens", "scheduler", "slo", "traffic", "requests", "seed", "tiers"});
  Scenario scenario;
  scenario.name = std::move(name);
  scenario.story = fields.at("story").text();
  scenario.model = parse_model(fields.at("model"));
  scenario.hardware = parse_hardware(fields.at("hardware"));
  scenario.usable = fields.number_or("usable_memory", 0.01, 1, scenario.usable);
  scenario.block_tokens = fields.whole_or<Pos>("block_tokens", 1, 65536, scenario.block_tokens);
  scenario.pool_tokens = fields.whole_or<Index>("pool_tokens", scenario.block_tokens, 2'000'000'000, 0);
  scenario.watermark = fields.number_or("watermark", 0, 0.9, scenario.watermark);
  scenario.growth_tokens = fields.whole_or<Pos>("growth_tokens", 1, max_tokens, scenario.growth_tokens);
  scenario.scheduler.chunk_tokens = usual_chunk;
  if (fields.has("scheduler")) {
    parse_scheduler(fields.at("scheduler"), scenario.scheduler);
  }
  if (fields.has("slo")) {
    const Fields slo = fields.at("slo");
    slo.only({"ttft_ms", "tpot_ms"});
    scenario.slo.ttft = std::llround(slo.number_or("ttft_ms", 0, 1e9, 2000) * millisecond);
    scenario.slo.tpot = std::llround(slo.number_or("tpot_ms", 0, 1e9, 100) * millisecond);
  }
  if (fields.has("tiers")) {
    scenario.known_tiers = parse_tiers(fields.at("tiers"), scenario.model.kv_bytes_per_token() * scenario.block_tokens);
  }
  for (const Fields& c : fields.at("traffic").items()) {
    scenario.traffic.push_back(parse_class(c));
  }
  if (scenario.traffic.empty()) {
    fields.at("traffic").fail("is empty, must have at least one class of requests");
  }
  scenario.requests = fields.at("requests").whole(1, max_requests);
  scenario.seed = fields.whole_or<std::uint64_t>("seed", 0, std::int64_t{1} << 53, 1);
  return scenario;
}

Scenario read_scenario(const std::string& name_or_file) {
  namespace fs = std::filesystem;
  std::string path = name_or_file;
  const auto is_file = [&] { return fs::exists(path) && !fs::is_directory(path); };  // or a pipe
  if (!is_file()) {
    path = std::string(scenario_folder) + "/" + name_or_file + ".json";
  }
  if (!is_file()) {
    std::string all;
    for (const std::string& name : scenario_names()) {
      all.append(all.empty() ? "" : ", ").append(name);
    }
    throw std::runtime_error("\"" + name_or_file + "\" is neither a file nor one of the scenarios " + all);
  }
  try {
    return parse_scenario(read_file(path), fs::path(path).stem().string());
  } catch (const FieldError& error) {
    throw std::runtime_error(path + ": " + error.what());
  }
}

std::vector<std::string> scenario_names() {
  std::vector<std::string> names;
  std::error_code none;
  for (const auto& entry : std::filesystem::directory_iterator(scenario_folder, none)) {
    if (entry.path().extension() == ".json") {
      names.push_back(entry.path().stem().string());
    }
  }
  std::ranges::sort(names);
  return names;
}

const ModelShape& find_model(const std::string& name) { return find(known_models(), name, "model"); }
const Hardware& find_hardware(const std::string& name) { return find(known_hardware(), name, "hardware"); }

}  // namespace serving
