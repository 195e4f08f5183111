// Results, as tables for people and as one JSON document for programs. docs/serving.md describes the document.
#pragma once

#include <iosfwd>
#include <optional>
#include <string>
#include <vector>

#include "calibration.hpp"
#include "run.hpp"
#include "scenario.hpp"

namespace serving {

/// Predictions of a cost model that was fitted to measured steps, beside real runs of the same requests.
struct Comparison {
  PolicyKind policy = PolicyKind::paged;
  Pos chunk_tokens = 0;
  double load = 1;
  struct Pair {
    const char* what;
    double predicted = 0;
    double measured = 0;         ///< the median of the real runs
    double least = 0, most = 0;  ///< of the real runs
    [[nodiscard]] double ratio() const noexcept { return measured > 0 ? predicted / measured : 0; }
  };
  std::vector<Pair> pairs;  ///< TTFT mean and p50, TPOT p50 in ms, tokens per second
};
/// `real` are runs of the same requests as `simulated`: at least one.
[[nodiscard]] Comparison compare(const RunResult& simulated, const std::vector<RunResult>& real);

/// Everything that the program writes: the scenario, its runs, and the calibration.
struct Report {
  Scenario scenario;
  std::vector<RunResult> runs;
  std::optional<Fit> fit{};
  std::vector<Comparison> comparisons{};
};

/// The version of the JSON document. It changes when a field is removed or changes its meaning.
inline constexpr int report_schema = 1;

/// Whether all real runs gave the same answers; empty if there are none, or some request was not completed.
[[nodiscard]] std::optional<bool> answers_agree(const Report& report);

void print(std::ostream& out, const Report& report);
[[nodiscard]] std::string to_json(const Report& report);

}  // namespace serving
