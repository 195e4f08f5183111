// Runs one scenario under one policy.
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <string_view>
#include <vector>

#include "metrics.hpp"
#include "scenario.hpp"
#include "timeline.hpp"

namespace serving {

enum class PolicyKind { contiguous_reserve, contiguous_grow, paged, prefix_shared };
inline constexpr PolicyKind all_policies[] = {PolicyKind::contiguous_reserve, PolicyKind::contiguous_grow,
                                              PolicyKind::paged, PolicyKind::prefix_shared};
[[nodiscard]] std::string_view name(PolicyKind policy);

/// The results of one run.
struct RunResult {
  PolicyKind policy = PolicyKind::paged;
  std::string mode = "simulated";  ///< or "real"
  Pos chunk_tokens = 0;            ///< 0: prompts were computed whole
  Order order = Order::decode_first;
  double load = 1;
  Index pool_tokens = 0;
  Pos watermark_tokens = 0;
  std::vector<std::string> classes;
  std::string source_note;  ///< Source::note()
  Metrics metrics{Slo{}, 0};
  Counters counters;
  kvc::Stats stats;  ///< at the end, pins and all requests gone
  Timeline timeline;
  double wall_seconds = 0;  ///< the only figure of a simulation that differs from run to run
  // Of a real run.
  double processor_seconds = 0;    ///< of this process: less than threads x wall_seconds if others used the processor
  std::uint64_t answers_hash = 0;  ///< of all sampled tokens, in any order; equal answers, equal numbers

  RunResult() : timeline({}, 0, 0, 0) {}
};

/// Called from time to time with the number of requests that have ended.
using OnProgress = std::function<void(Index ended)>;

/// Simulates the scenario, with prompts `chunked` or computed whole. At the end it checks every invariant of the
/// policy; every slot is free or cached then. Throws the errors of the traffic source, Livelock, and
/// kvc::InvariantError.
[[nodiscard]] RunResult simulate(const Scenario& scenario, PolicyKind policy, bool chunked, double load = 1,
                                 const OnProgress& on_progress = {});

}  // namespace serving
