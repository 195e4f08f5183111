// When slower tiers pay: the time to the first token of a session's second turn, computed and loaded, on this
// machine.
#pragma once

#include <iosfwd>
#include <string>
#include <vector>

#include "real.hpp"

namespace serving {

/// A tier that was measured.
struct TierCurve {
  std::string name;
  double latency = 0;           ///< seconds, of the line through the loads
  double bandwidth = 0;         ///< bytes per second, of that line
  std::vector<double> seconds;  ///< [lengths] until the first token, with the first turn loaded from it
};

/// The second turn of a session: the first turn and some tokens more.
struct TurnTimes {
  double token_bytes = 0;         ///< of keys and values, in all layers
  double seconds_per_token = 0;   ///< of a prefill: *a* of docs/tiers.md
  double seconds_per_pair = 0;    ///< of a token and one before it: *c*
  kvc::Pos more = 0;              ///< tokens of the second turn that no tier has
  std::vector<kvc::Pos> lengths;  ///< of the first turn
  std::vector<double> computed;   ///< [lengths] seconds until the first token, without tiers
  std::vector<TierCurve> tiers;   ///< host memory, files that are opened anew, and slower ones
};

/// Measures it: the median of `rounds`. The positions of the model are extended to the longest prompt: its answers mean
/// nothing there, and the time is the same. Throws std::runtime_error if the program was built without tiers.
[[nodiscard]] TurnTimes measure_turns(const RealMachine& machine, int rounds);

/// Seconds until the first token by the formula of docs/tiers.md, if `length` tokens are loaded; computed: tier < 0.
[[nodiscard]] double predicted(const TurnTimes& times, int tier, kvc::Pos length);
/// The least length of a first turn from which on loading pays, by the formula; -1: none up to the longest length.
[[nodiscard]] kvc::Pos crossover(const TurnTimes& times, int tier);

/// Writes an SVG file with gnuplot, and the same numbers as a table. Throws std::runtime_error if gnuplot fails.
void draw_tier_curve(const std::string& path, std::ostream& table, const TurnTimes& times);

}  // namespace serving
