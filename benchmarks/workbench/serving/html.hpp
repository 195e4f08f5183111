// The results as one page with plots, which a browser shows without a network.
#pragma once

#include <string>

namespace serving {

/// Puts the JSON document, the chart library and the page's own script into one file. What the page consists of is read
/// when this is made, so that what is missing is said before the work.
class HtmlPage {
 public:
  /// Throws std::runtime_error, with the name of its package, where the chart library cannot be read.
  explicit HtmlPage(const std::string& chart_library = KVC_CHART_LIBRARY);

  /// The page with these results. `json`: as to_json writes them.
  [[nodiscard]] std::string with(const std::string& json) const;

 private:
  std::string page_;
  std::string script_;
  std::string library_;
};

}  // namespace serving
