// The reports of a replay: a table for people, JSON for programs.
#pragma once

#include <iosfwd>
#include <string>
#include <vector>

#include "run.hpp"
#include "tiers.hpp"
#include "trace.hpp"

namespace replay {

/// 1234567 as 1,234,567.
[[nodiscard]] std::string grouped(Index value);

/// Prints a summary of the trace, and one table per capacity.
void print(std::ostream& out, const kvc_bench::Trace& trace, const Replay& replay);

/// Everything, as one JSON object; with what was replayed with tiers, if anything was.
[[nodiscard]] std::string to_json(const kvc_bench::Trace& trace, const Replay& replay,
                                  const std::vector<TierSize>& tiers = {},
                                  const std::vector<TieredResult>& tiered = {});

}  // namespace replay
