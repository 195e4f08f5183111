// The default eviction beside lru on generated workloads.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <iosfwd>
#include <string>
#include <vector>

#include "kvc/core/types.hpp"
#include "workloads.hpp"

namespace replay {

/// One workload at one capacity, in blocks.
struct FamilyResult {
  Family family = Family::chat;
  std::uint64_t seed = 0;
  double share = 0;  ///< the capacity, of the different blocks
  kvc::Index capacity = 0;
  kvc::Index unique = 0;
  kvc::Index lru = 0;             ///< hits
  kvc::Index default_policy = 0;  ///< hits
  kvc::Index belady = 0;          ///< hits
};

/// The capacities of a workload, of its different blocks.
inline constexpr std::array family_shares = {0.005, 0.02, 0.1, 0.4};

/// Replays `count` workloads of about 100,000 blocks, the families in turn with seeds from `seed` on, at each of
/// family_shares.
[[nodiscard]] std::vector<FamilyResult> replay_families(std::size_t count, std::uint64_t seed);

/// A line per workload and capacity, the share of the gap recovered by family, and quantiles of what the default gains
/// or loses.
void print(std::ostream& out, const std::vector<FamilyResult>& results);

/// Writes an SVG file: gains and losses in their order, per cent of lru's hits. Throws std::runtime_error where gnuplot
/// fails.
void plot(const std::string& path, const std::vector<FamilyResult>& results);

}  // namespace replay
