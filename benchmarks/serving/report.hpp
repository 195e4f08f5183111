// Results, as tables for people and as one JSON document for programs. docs/serving.md describes the document.
#pragma once

#include <iosfwd>
#include <string>
#include <vector>

#include "run.hpp"
#include "scenario.hpp"

namespace serving {

struct Report {
  Scenario scenario;
  std::vector<RunResult> runs;
};

/// The version of the JSON document. It changes when a field goes or comes to mean something else.
inline constexpr int report_schema = 1;

void print(std::ostream& out, const Report& report);
[[nodiscard]] std::string to_json(const Report& report);

}  // namespace serving
