// Fits the cost model to the measured steps of a machine.
#pragma once

#include <vector>

#include "cost_model.hpp"

namespace serving {

/// A step and its measured time.
struct StepTiming {
  StepCost cost;
  double seconds = 0;
};

/// The median time of each step over several rounds, which timed the same steps in the same order.
[[nodiscard]] std::vector<StepTiming> median_of(const std::vector<std::vector<StepTiming>>& rounds);

/// Hardware fitted to timings, and how far it is from them.
struct Fit {
  Hardware hardware;        ///< peak, attention_peak, decode_peak, bandwidth, per_sequence, overhead
  double median_error = 0;  ///< |predicted / measured - 1|
  double largest_error = 0;
  std::size_t timings = 0;
};

/// Stands for operations or bytes per second where the timings show no limit.
inline constexpr double no_limit = 1e21;

/// The hardware under which the cost model comes closest to the timings: least squares of the relative errors, each
/// step weighted by its time. The fit also decides which steps are bound by operations and which by bytes; a part that
/// the timings do not show is 0, or `no_limit`.
///
/// The timings must cover steps of different kinds. Throws std::invalid_argument for fewer than 7 timings, or one of 0
/// seconds.
[[nodiscard]] Fit fit_hardware(const ModelShape& model, const std::vector<StepTiming>& timings);

}  // namespace serving
