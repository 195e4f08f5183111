// A scenario: a machine, a model, how the server is set up, and the traffic that it meets. Read from JSON;
// docs/serving.md describes every field. scenarios/*.json are the incidents that people report.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "cost_model.hpp"
#include "metrics.hpp"
#include "scheduler_config.hpp"
#include "timeline.hpp"
#include "trace_source.hpp"
#include "traffic.hpp"

namespace serving {

struct Scenario {
  std::string name;
  std::string story;
  ModelShape model;
  Hardware hardware;
  double usable = 0.9;    ///< of the memory: the rest is for activations
  Index pool_tokens = 0;  ///< slots of the pool; 0: what the weights leave
  Pos block_tokens = 16;
  double watermark = 0.01;    ///< of the pool
  Pos growth_tokens = 16;     ///< by which a contiguous allocation grows
  SchedulerConfig scheduler;  ///< chunk_tokens: where prompts are computed in chunks
  Slo slo;
  std::vector<TrafficClass> traffic;  ///< empty: a trace
  std::string trace;
  TraceOptions trace_options;
  Index requests = 0;
  std::uint64_t seed = 1;
  Watch watch;  ///< where timelines and maps of the pool are kept

  /// The pool that the scenario asks for, or that the weights leave, in whole blocks.
  /// Throws std::runtime_error if they leave none, or the hardware has no room for what is asked.
  [[nodiscard]] Index pool() const;
  /// Its requests from the first on, so many times as often.
  [[nodiscard]] std::unique_ptr<Source> source(double load = 1) const;
};

/// Chunks where a scenario names none.
inline constexpr Pos usual_chunk = 512;

/// Throws FieldError, which names the field, its value and what is allowed.
[[nodiscard]] Scenario parse_scenario(std::string_view json, std::string name);

/// A file, or the name of one of the scenarios that came with the program. Throws std::runtime_error that names the
/// file.
[[nodiscard]] Scenario read_scenario(const std::string& name_or_file);
/// Names of those that came with the program, in order.
[[nodiscard]] std::vector<std::string> scenario_names();

[[nodiscard]] const ModelShape& find_model(const std::string& name);   ///< throws std::runtime_error
[[nodiscard]] const Hardware& find_hardware(const std::string& name);  ///< throws std::runtime_error

}  // namespace serving
