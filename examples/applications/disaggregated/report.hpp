// The reports of a run: text for people, JSON for programs.
#pragma once

#include <iosfwd>
#include <optional>
#include <string>

#include "alone.hpp"
#include "options.hpp"
#include "records.hpp"

namespace disaggregated {

struct Report {
  const Options* options = nullptr;
  std::string transport;
  Index token_bytes = 0;  // of keys and values, in all layers that see all positions
  RunRecord run;
  std::optional<Alone> alone;

  /// Requests whose output is that of `alone`.
  [[nodiscard]] Index equal_outputs() const;
  [[nodiscard]] double ratio() const {
    return static_cast<double>(run.total) / static_cast<double>(alone->prefill + alone->decode);
  }
};

void print(std::ostream& out, const Report& report);
/// Everything, as one JSON object.
std::string to_json(const Report& report);

}  // namespace disaggregated
