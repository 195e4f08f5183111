#include "calibration.hpp"

#include <Eigen/Core>
#include <Eigen/QR>
#include <algorithm>
#include <cmath>
#include <limits>

#include "kvc/core/error.hpp"

namespace serving {
namespace {

/// Seconds per operation of matrices, of attention with several queries, of attention with single ones, per byte, per
/// step, and per sequence.
constexpr Index unknowns = 6;
using Costs = Eigen::Matrix<double, unknowns, 1>;

/// The work of a step, in the units of the costs.
struct StepWork {
  double matrices = 0, prefill = 0, decode = 0, bytes = 0, sequences = 0;
  double seconds = 0;

  [[nodiscard]] double compute(const Costs& c) const noexcept {
    return matrices * c[0] + prefill * c[1] + decode * c[2];
  }
  [[nodiscard]] bool bound_by_bytes(const Costs& c) const noexcept { return bytes * c[3] > compute(c); }
  [[nodiscard]] double predicted(const Costs& c) const noexcept {
    return std::max(bytes * c[3], compute(c)) + c[4] + sequences * c[5];
  }
};

double loss(const std::vector<StepWork>& steps, const Costs& costs) {
  double sum = 0;
  for (const StepWork& step : steps) {
    const double error = step.predicted(costs) / step.seconds - 1;
    sum += step.seconds * error * error;
  }
  return sum;
}

/// Least squares of weighted relative errors, given what bounds each step. No cost is negative: the most negative one
/// is removed until there is none.
Costs solve(const std::vector<StepWork>& steps, const std::vector<bool>& by_bytes) {
  const auto rows = static_cast<Index>(steps.size());
  Eigen::MatrixXd a(rows, unknowns);
  Eigen::VectorXd wanted(rows);
  for (Index i = 0; i < rows; ++i) {
    const StepWork& s = steps[static_cast<std::size_t>(i)];
    const double compute = by_bytes[static_cast<std::size_t>(i)] ? 0 : 1;
    a.row(i) << compute * s.matrices, compute * s.prefill, compute * s.decode, (1 - compute) * s.bytes, 1, s.sequences;
    a.row(i) /= std::sqrt(s.seconds);  // relative, times the root of the weight
    wanted[i] = std::sqrt(s.seconds);
  }
  Costs scale;
  for (Index j = 0; j < unknowns; ++j) {
    scale[j] = a.col(j).norm();
    a.col(j) /= scale[j] > 0 ? scale[j] : 1;
  }
  std::vector<Index> kept;
  for (Index j = 0; j < unknowns; ++j) {
    if (scale[j] > 0) {
      kept.push_back(j);
    }
  }
  Costs costs = Costs::Zero();
  while (!kept.empty()) {
    Eigen::MatrixXd part(rows, std::ssize(kept));
    for (Index j = 0; j < part.cols(); ++j) {
      part.col(j) = a.col(kept[static_cast<std::size_t>(j)]);
    }
    const Eigen::VectorXd x = part.colPivHouseholderQr().solve(wanted);
    Index least = 0;
    if (x.minCoeff(&least) < 0) {
      kept.erase(kept.begin() + least);
      continue;
    }
    for (Index j = 0; j < part.cols(); ++j) {
      const Index of = kept[static_cast<std::size_t>(j)];
      costs[of] = x[j] / scale[of];
    }
    break;
  }
  return costs;
}

/// Alternates between solving and deciding what bounds each step, until neither changes the result.
Costs refine(const std::vector<StepWork>& steps, std::vector<bool> by_bytes) {
  Costs best = Costs::Zero();
  double least = std::numeric_limits<double>::infinity();
  for (int round = 0; round < 50; ++round) {
    const Costs costs = solve(steps, by_bytes);
    if (const double now = loss(steps, costs); now < least) {
      least = now;
      best = costs;
    }
    std::vector<bool> next;
    for (const StepWork& step : steps) {
      next.push_back(step.bound_by_bytes(costs));
    }
    if (next == by_bytes) {
      break;
    }
    by_bytes = std::move(next);
  }
  return best;
}

double per_second(double seconds) { return seconds > 1 / no_limit ? 1 / seconds : no_limit; }

}  // namespace

std::vector<StepTiming> median_of(const std::vector<std::vector<StepTiming>>& rounds) {
  std::vector<StepTiming> medians = rounds.front();
  for (std::size_t i = 0; i < medians.size(); ++i) {
    std::vector<double> all;
    for (const std::vector<StepTiming>& round : rounds) {
      all.push_back(round.at(i).seconds);
    }
    std::ranges::sort(all);
    medians[i].seconds = all[all.size() / 2];
  }
  return medians;
}

Fit fit_hardware(const ModelShape& model, const std::vector<StepTiming>& timings) {
  kvc::require(timings.size() >= 7, "timings.size()", timings.size(), "at least 7");
  const CostModel counts(model, {"", 1, 1, 0, 1, 0, ""});  // for its counts alone
  std::vector<StepWork> steps;
  for (const StepTiming& timing : timings) {
    kvc::require(timing.seconds > 0, "seconds", timing.seconds, "above 0");
    steps.push_back({counts.matrix_operations(timing.cost), counts.prefill_attention_operations(timing.cost),
                     counts.decode_attention_operations(timing.cost), counts.bytes(timing.cost),
                     static_cast<double>(timing.cost.sequences), timing.seconds});
  }
  // Mostly the number of its tokens decides what bounds a step: these are good starting points.
  Costs best = Costs::Zero();
  double least = std::numeric_limits<double>::infinity();
  for (Index most = 0; most <= 64; most = most == 0 ? 1 : 2 * most) {
    std::vector<bool> by_bytes;
    for (const StepTiming& timing : timings) {
      by_bytes.push_back(timing.cost.tokens <= most);
    }
    const Costs costs = refine(steps, std::move(by_bytes));
    if (const double now = loss(steps, costs); now < least) {
      least = now;
      best = costs;
    }
  }

  Fit fit;
  fit.hardware.name = "this machine";
  fit.hardware.source = "fitted to " + std::to_string(timings.size()) + " measured steps";
  fit.hardware.peak = per_second(best[0]);
  fit.hardware.attention_peak = per_second(best[1]);
  fit.hardware.decode_peak = per_second(best[2]);
  fit.hardware.bandwidth = per_second(best[3]);
  fit.hardware.overhead = best[4];
  fit.hardware.per_sequence = best[5];
  fit.timings = timings.size();
  std::vector<double> errors;
  for (const StepWork& step : steps) {
    errors.push_back(std::abs(step.predicted(best) / step.seconds - 1));
  }
  std::ranges::sort(errors);
  fit.median_error = errors[errors.size() / 2];
  fit.largest_error = errors.back();
  return fit;
}

}  // namespace serving
