// A scenario: a machine, a model, the configuration of the server, and its traffic. Read from JSON; docs/serving.md
// describes every field. scenarios/*.json are incidents that people report.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "cost_model.hpp"
#include "metrics.hpp"
#include "scheduler_config.hpp"
#include "tier_spec.hpp"
#include "timeline.hpp"
#include "trace_source.hpp"
#include "traffic.hpp"

namespace serving {

/// The input of a run, besides the policy: see docs/serving.md.
struct Scenario {
  std::string name;
  std::string story;
  ModelShape model;
  Hardware hardware;
  double usable = 0.9;     ///< share of the memory for weights and cache; the rest is for activations
  Index pool_tokens = 0;   ///< tokens that the pool holds if every layer keeps every row; 0: what the weights leave
  bool one_shape = false;  ///< the cache knows no layer groups: every layer keeps every row
  Pos block_tokens = 16;
  double watermark = 0.01;    ///< share of the pool
  Pos growth_tokens = 16;     ///< by which a contiguous allocation grows
  SchedulerConfig scheduler;  ///< chunk_tokens: if prompts are computed in chunks
  Slo slo;
  std::vector<TierSpec> known_tiers;  ///< that --tiers can name
  TierSet tiers;                      ///< behind the pool of the coming run
  bool names_tiers = false;           ///< runs with different tiers are compared: each is named by them
  LoadRule load_rule = LoadRule::cheaper;
  std::vector<TrafficClass> traffic;  ///< or, where this is empty:
  std::optional<kvc_bench::TraceInput> trace;
  TraceOptions trace_options;
  Index requests = 0;
  std::uint64_t seed = 1;
  Watch watch;  ///< the part of the run with timelines and maps of the pool

  /// The pool that the scenario names, or that the weights leave, in whole blocks, in tokens of which every layer keeps
  /// its row. Also where there are layer groups: their pool has the same bytes.
  /// Throws std::runtime_error if they leave none, or the hardware has no room for it.
  [[nodiscard]] Index pool() const;
  /// Its requests from the first on, arriving `load` times as often. Throws std::invalid_argument where there is
  /// neither traffic nor a trace, and kvc_bench::TraceError.
  [[nodiscard]] std::unique_ptr<Source> source(double load = 1) const;
};

/// Tokens of a chunk where a scenario names none.
inline constexpr Pos usual_chunk = 512;

/// Throws FieldError, which names the field, its value and what is allowed.
[[nodiscard]] Scenario parse_scenario(std::string_view json, std::string name);

/// Reads a file, or one of the scenarios of the program by its name. Throws std::runtime_error, which names the file.
[[nodiscard]] Scenario read_scenario(const std::string& name_or_file);
/// Names of the scenarios of the program, sorted.
[[nodiscard]] std::vector<std::string> scenario_names();

[[nodiscard]] const ModelShape& find_model(const std::string& name);   ///< throws std::runtime_error
[[nodiscard]] const Hardware& find_hardware(const std::string& name);  ///< throws std::runtime_error

}  // namespace serving
