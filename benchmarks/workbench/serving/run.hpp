// Runs one scenario under one policy.
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <string_view>
#include <vector>

#include "metrics.hpp"
#include "scenario.hpp"
#include "tier_spec.hpp"
#include "timeline.hpp"

namespace serving {

enum class PolicyKind { contiguous_reserve, contiguous_grow, paged, prefix_shared };
inline constexpr PolicyKind all_policies[] = {PolicyKind::contiguous_reserve, PolicyKind::contiguous_grow,
                                              PolicyKind::paged, PolicyKind::prefix_shared};
[[nodiscard]] std::string_view name(PolicyKind policy);

/// How a run keeps the rows of the layers of a model.
enum class LayerMemory {
  alike,     ///< its layers are all alike
  groups,    ///< in layer groups: windows and chunks drop what no query sees any more
  one_shape  ///< its layers differ, and every layer keeps every row
};
[[nodiscard]] std::string_view name(LayerMemory layers);
/// Under the scenario's model and `one_shape`. Contiguous policies have one shape: their groups would have pools of
/// their own, of sizes that no scenario names.
[[nodiscard]] LayerMemory layer_memory(const Scenario& scenario, PolicyKind policy);
/// Whether the policy can: recurrent layers have no place in one shape for all layers.
[[nodiscard]] bool can_serve(const Scenario& scenario, PolicyKind policy);

/// One layer group at the end of a run.
struct GroupResult {
  Pos block_tokens = 0;   ///< of its blocks
  Index lost_tokens = 0;  ///< prompt tokens that would have been found, too, had this group kept its rows
};

/// The results of one run.
struct RunResult {
  PolicyKind policy = PolicyKind::paged;
  std::string mode = "simulated";  ///< or "real"
  Pos chunk_tokens = 0;            ///< 0: prompts were computed whole
  Order order = Order::decode_first;
  double load = 1;
  LayerMemory layers = LayerMemory::alike;
  Index pool_tokens = 0;  ///< slots of the pool; with layer groups, block_tokens for each block
  Pos watermark_tokens = 0;
  std::string tier_set;  ///< TierSet::name of a run with tiers, or beside one; else empty
  LoadRule load_rule = LoadRule::cheaper;
  std::vector<std::string> classes;
  std::string source_note;  ///< Source::note()
  Metrics metrics{Slo{}, 0};
  Counters counters;
  PoolUse use;
  std::vector<GroupResult> groups;  ///< of a run in layer groups
  std::vector<TierResult> tiers;    ///< of a run with slower tiers
  LoadResult loads;                 ///< of a run with slower tiers
  kvc::Stats stats;                 ///< at the end, pins and all requests gone
  Timeline timeline;
  double wall_seconds = 0;  ///< the only figure of a simulation that differs from run to run
  // Of a real run.
  double processor_seconds = 0;    ///< of this process: less than threads x wall_seconds if others used the processor
  std::uint64_t answers_hash = 0;  ///< of all sampled tokens, in any order; equal answers, equal numbers

  RunResult() : timeline({}, 0, 0, 0) {}
};

/// The policy of a run, how it keeps the layers where they differ, and its tiers: "prefix-shared, host, cheaper".
[[nodiscard]] std::string label(const RunResult& run);

/// Called from time to time with the number of requests that have ended.
using OnProgress = std::function<void(Index ended)>;

/// Whether a policy can have slower tiers behind it: prefix-shared.
[[nodiscard]] bool can_have_tiers(PolicyKind policy);

/// Simulates the scenario, with prompts `chunked` or computed whole. At the end it checks every invariant of the
/// policy; every slot is free or cached then. Throws the errors of the traffic source, Livelock, and
/// kvc::InvariantError.
[[nodiscard]] RunResult simulate(const Scenario& scenario, PolicyKind policy, bool chunked, double load = 1,
                                 const OnProgress& on_progress = {});

}  // namespace serving
