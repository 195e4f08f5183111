#include "html.hpp"

#include <fstream>
#include <iterator>
#include <stdexcept>
#include <string_view>

namespace serving {
namespace {

std::string read(const std::string& path, const std::string& if_missing) {
  std::ifstream in(path, std::ios::binary);
  std::string text{std::istreambuf_iterator<char>(in), std::istreambuf_iterator<char>()};
  if (!in || text.empty()) {
    throw std::runtime_error("--html: cannot read \"" + path + "\"" + if_missing);
  }
  return text;
}

/// Escapes JSON for a script element: a `<` could begin a tag that ends it. JSON has it in strings only.
std::string within_script(std::string_view json) {
  std::string text;
  text.reserve(json.size());
  for (const char c : json) {
    c == '<' ? text.append("\\u003c") : text.append(1, c);
  }
  return text;
}

/// Replaces the only `mark` by `text`.
void put(std::string& page, std::string_view mark, const std::string& text) {
  const std::size_t at = page.find(mark);
  if (at == std::string::npos) {
    throw std::logic_error("report.html has no " + std::string(mark));
  }
  page.replace(at, mark.size(), text);
}

constexpr const char* folder = KVC_SOURCE_DIR "/benchmarks/workbench/serving/";

}  // namespace

HtmlPage::HtmlPage(const std::string& chart_library)
    : page_(read(std::string(folder) + "report.html", "")),
      script_(read(std::string(folder) + "report.js", "")),
      library_(read(chart_library, ": the chart library Chart.js 3 is not installed (Debian: libjs-chart.js)")) {}

std::string HtmlPage::with(const std::string& json) const {
  std::string page = page_;
  // From the last to the first, so that no mark is searched for in inserted text.
  put(page, "{{script}}", script_);
  put(page, "{{results}}", within_script(json));
  put(page, "{{library}}", library_);
  return page;
}

}  // namespace serving
