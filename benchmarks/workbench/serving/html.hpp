// Writes the results as one page with plots. A browser shows it without network access.
#pragma once

#include <string>

namespace serving {

/// Puts the JSON document, the chart library and the page's own script into one file. The constructor reads the parts
/// of the page, so that a missing one is reported before the simulation.
class HtmlPage {
 public:
  /// Throws std::runtime_error, which names the package, if the chart library cannot be read.
  explicit HtmlPage(const std::string& chart_library = KVC_CHART_LIBRARY);

  /// The page with the results that to_json wrote.
  [[nodiscard]] std::string with(const std::string& json) const;

 private:
  std::string page_;
  std::string script_;
  std::string library_;
};

}  // namespace serving
