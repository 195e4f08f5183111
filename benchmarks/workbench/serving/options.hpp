// The options of serve-bench on the command line.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "model_executor.hpp"
#include "run.hpp"
#include "scenario.hpp"

namespace serving {

/// The parsed command line.
struct Options {
  bool real = false;  // a decoder computes, rather than a cost model say how long it would take
  bool calibrate = false;
  int threads = 1;
  ClockKind clock = ClockKind::wall;
  int rounds = 5;
  std::string cost_curve;
  std::string tier_curve;
  std::string scenario;  // or
  std::string trace;
  kvc_bench::ReadOptions read;  // of the trace
  std::vector<PolicyKind> policies;
  bool all_policies = true;  ///< none was named: those that cannot hold the model are left out
  std::vector<bool> chunked;
  std::vector<bool> one_shape;  // of a model whose layers differ
  std::vector<double> loads;
  std::vector<std::string> tier_sets;  ///< as named; none: no slower tiers
  std::vector<LoadRule> load_rules;
  std::string model, hardware;  // empty: the scenario's
  std::optional<Index> devices;
  std::optional<Index> pool_tokens;
  std::optional<Pos> chunk_tokens;
  std::optional<Pos> max_output;
  std::optional<Order> order;
  std::optional<Index> requests;
  std::optional<std::uint64_t> seed;
  Watch watch;
  bool pins = true;
  std::string json;
  std::string html;
  std::string plot;
};

/// Fills `options`, and returns whether to continue. Where there is nothing to run (--help, --list, an error), has said
/// so and set the exit code: 0, or 2.
bool parse(int argc, char** argv, Options& options, int& exit_code);

/// The scenario that the options ask for, with what they change in it. Throws std::runtime_error.
[[nodiscard]] Scenario scenario_of(const Options& options);
/// The tiers that `--tiers` names, of those that the scenario knows or with their own figures. One set without tiers if
/// it was not given. Throws std::runtime_error.
[[nodiscard]] std::vector<TierSet> tier_sets_of(const Options& options, const Scenario& scenario);

}  // namespace serving
