// The cost model of a machine, from measured steps.
#pragma once

#include <vector>

#include "cost_model.hpp"

namespace serving {

/// A step, and the seconds that it took.
struct StepTiming {
  StepCost cost;
  double seconds = 0;
};

/// Of each step the median time of several rounds, which timed the same steps in the same order.
[[nodiscard]] std::vector<StepTiming> median_of(const std::vector<std::vector<StepTiming>>& rounds);

/// How a fit stands to what it was made from.
struct Fit {
  Hardware hardware;        ///< peak, attention_peak, decode_peak, bandwidth, per_sequence, overhead
  double median_error = 0;  ///< |predicted / measured - 1|
  double largest_error = 0;
  std::size_t timings = 0;
};

/// Operations or bytes per second, where the timings show no limit.
inline constexpr double no_limit = 1e21;

/// The hardware under which the cost model comes closest to the timings: least squares of the relative errors, in which
/// a step counts by the time that it took, as it does in a run. Which steps are bound by operations and which by bytes
/// comes out of it; a part that the timings do not show is 0, or `no_limit`.
///
/// The timings must be of steps of different kinds. Throws std::invalid_argument where there are fewer than 7, or one
/// that took no time.
[[nodiscard]] Fit fit_hardware(const ModelShape& model, const std::vector<StepTiming>& timings);

}  // namespace serving
