#include "trace.hpp"

#include <algorithm>
#include <charconv>
#include <chrono>
#include <limits>
#include <nlohmann/json.hpp>

#include "line_reader.hpp"

namespace kvc_bench {
namespace {

using Json = nlohmann::json;

constexpr std::string_view azure_header = "TIMESTAMP,ContextTokens,GeneratedTokens";
constexpr Index max_id = std::numeric_limits<std::int32_t>::max();
constexpr Index max_timestamp_ms = 10'000'000'000'000;  // three centuries

std::string message(std::string_view file, Index line, std::string_view field, std::string_view problem) {
  std::string text(file);
  if (line > 0) {
    text.append(":").append(std::to_string(line));
  }
  text.append(": ");
  if (!field.empty()) {
    text.append("\"").append(field).append("\": ");
  }
  return text.append(problem);
}

/// A value of somebody else's file, short and in printable ASCII. Nested values are not written out: that would recurse
/// as deep as they do.
std::string shown(const Json& value) {
  if (value.is_structured()) {
    return value.is_array() ? "an array" : "an object";
  }
  std::string text = value.dump(-1, ' ', true, Json::error_handler_t::replace);
  constexpr std::size_t most = 40;
  return text.size() <= most ? text : text.substr(0, most) + "...";
}
std::string shown(std::string_view text) { return shown(Json(std::string(text.substr(0, 64)))); }

std::string range_text(Index low, Index high) {
  return "must be a whole number from " + std::to_string(low) + " to " + std::to_string(high);
}

/// The fields of one line, with errors that name them.
class Fields {
 public:
  explicit Fields(const LinePlace& place) : place_(place) {}

  [[noreturn]] void fail(std::string_view field, std::string_view problem) const {
    throw TraceError(place_.file, place_.line, field, problem);
  }

  [[nodiscard]] Json parse(std::string_view line) const {
    try {
      Json json = Json::parse(line);
      if (!json.is_object()) {
        fail("", "is " + shown(json) + ", must be a JSON object");
      }
      return json;
    } catch (const Json::parse_error& error) {
      fail("", "is not JSON: error at byte " + std::to_string(error.byte));
    } catch (const Json::out_of_range&) {
      fail("", "is not JSON: a number is too large");
    }
  }

  [[nodiscard]] const Json& at(const Json& object, const char* field) const {
    const auto found = object.find(field);
    if (found == object.end()) {
      fail(field, "is missing");
    }
    return *found;
  }

  /// A whole number in [low, high]; `which` is a part of the field, such as "entry 3 ".
  [[nodiscard]] Index whole(const Json& value, const char* field, Index low, Index high,
                            const std::string& which = {}) const {
    const bool fits = value.is_number_unsigned() ? value.get<std::uint64_t>() <= static_cast<std::uint64_t>(high)
                                                 : value.is_number_integer() && value.get<std::int64_t>() <= high;
    if (!fits || value.get<Index>() < low) {
      fail(field, which + "is " + shown(value) + ", " + range_text(low, high));
    }
    return value.get<Index>();
  }
  [[nodiscard]] Index whole(std::string_view text, const char* field, Index low, Index high) const {
    Index value = 0;
    const char* end = text.data() + text.size();
    const auto [stop, error] = std::from_chars(text.data(), end, value);
    if (error != std::errc{} || stop != end || value < low || value > high) {
      fail(field, "is " + shown(text) + ", " + range_text(low, high));
    }
    return value;
  }

  [[nodiscard]] const Json& array(const Json& object, const char* field) const {
    const Json& value = at(object, field);
    if (!value.is_array()) {
      fail(field, "is " + shown(value) + ", must be an array");
    }
    return value;
  }

 private:
  LinePlace place_;
};

/// What mooncake and weka have in common.
Request parse_lengths(const Fields& fields, const Json& json) {
  Request request;
  request.arrival_us = 1000 * fields.whole(fields.at(json, "timestamp"), "timestamp", 0, max_timestamp_ms);
  request.input_tokens =
      static_cast<Pos>(fields.whole(fields.at(json, "input_length"), "input_length", 1, max_request_tokens));
  request.output_tokens =
      static_cast<Pos>(fields.whole(fields.at(json, "output_length"), "output_length", 0, max_request_tokens));
  return request;
}

Request parse_mooncake(const Fields& fields, std::string_view line) {
  constexpr const char* field = "hash_ids";
  const Json json = fields.parse(line);
  Request request = parse_lengths(fields, json);
  const Json& ids = fields.array(json, field);
  const Pos tokens = block_tokens(TraceFormat::mooncake);
  const auto count = static_cast<std::size_t>(kvc::ceil_div(request.input_tokens, tokens));
  if (ids.size() != count) {
    fields.fail(field, "has " + std::to_string(ids.size()) + " entries, must have " + std::to_string(count) +
                           " (= ceil(input_length " + std::to_string(request.input_tokens) + " / " +
                           std::to_string(tokens) + "))");
  }
  request.blocks.reserve(count);
  for (const Json& id : ids) {
    const bool good = id.is_number_unsigned() && id.get<std::uint64_t>() <= static_cast<std::uint64_t>(max_id);
    request.blocks.push_back(static_cast<std::int32_t>(
        good ? id.get<Index>()
             : fields.whole(id, field, 0, max_id, "entry " + std::to_string(request.blocks.size()) + " ")));
  }
  return request;
}

Request parse_weka(const Fields& fields, std::string_view line) {
  constexpr const char* field = "hash_runs";
  struct Run {
    Index first, count;
  };
  const Json json = fields.parse(line);
  Request request = parse_lengths(fields, json);
  const Pos tokens = block_tokens(TraceFormat::weka);
  const Index expected = request.input_tokens / tokens;
  std::vector<Run> runs;
  Index total = 0;
  for (const Json& entry : fields.array(json, field)) {
    const std::string which = "entry " + std::to_string(runs.size()) + " ";
    if (!entry.is_array() || entry.size() != 2) {
      fields.fail(field, which + "is " +
                             (entry.is_array() ? "an array of " + std::to_string(entry.size()) : shown(entry)) +
                             ", must be [first id, count]");
    }
    const Index first = fields.whole(entry[0], field, 0, max_id, which + "begins with an id that ");
    const Index count = fields.whole(entry[1], field, 1, max_id - first + 1, which + "has a count that ");
    runs.push_back({first, count});
    total += count;
  }
  if (total != expected) {
    fields.fail(field, "has " + std::to_string(total) + " ids, must have " + std::to_string(expected) +
                           " (= floor(input_length " + std::to_string(request.input_tokens) + " / " +
                           std::to_string(tokens) + "))");
  }
  request.blocks.reserve(static_cast<std::size_t>(expected));
  for (const Run& run : runs) {
    for (Index i = 0; i < run.count; ++i) {
      request.blocks.push_back(static_cast<std::int32_t>(run.first + i));
    }
  }
  return request;
}

/// Microseconds since 1970 of "2023-11-16 18:17:03.9799600", with up to nine digits after the point, or none. Azure's
/// later traces name their time zone, which is UTC.
std::int64_t parse_time(const Fields& fields, std::string_view text) {
  constexpr const char* field = "TIMESTAMP";
  const std::string_view whole_text = text;
  const auto fail = [&] {
    fields.fail(field, "is " + shown(whole_text) + ", must be a time such as 2023-11-16 18:17:03.9799600");
  };
  if (text.ends_with("+00:00")) {
    text.remove_suffix(6);
  }
  constexpr std::string_view form = "dddd-dd-dd dd:dd:dd";
  bool good = text.size() >= form.size();
  for (std::size_t i = 0; good && i < form.size(); ++i) {
    good = form[i] == 'd' ? '0' <= text[i] && text[i] <= '9' : text[i] == form[i];
  }
  if (!good) {
    fail();
  }
  const auto number = [&](std::size_t at, std::size_t digits) {
    int value = 0;
    std::from_chars(text.data() + at, text.data() + at + digits, value);
    return value;
  };
  const std::chrono::year_month_day day{std::chrono::year(number(0, 4)),
                                        std::chrono::month(static_cast<unsigned>(number(5, 2))),
                                        std::chrono::day(static_cast<unsigned>(number(8, 2)))};
  const int hour = number(11, 2);
  const int minute = number(14, 2);
  const int second = number(17, 2);
  std::int64_t nanoseconds = 0;
  if (std::string_view fraction = text.substr(form.size()); !fraction.empty()) {
    if (fraction[0] != '.' || fraction.size() < 2 || fraction.size() > 10) {
      fail();
    }
    fraction.remove_prefix(1);
    for (std::size_t i = 0; i < 9; ++i) {
      const char digit = i < fraction.size() ? fraction[i] : '0';
      if (digit < '0' || digit > '9') {
        fail();
      }
      nanoseconds = 10 * nanoseconds + (digit - '0');
    }
  }
  if (!day.ok() || day.year() < std::chrono::year(1970) || hour > 23 || minute > 59 || second > 60) {
    fail();
  }
  const std::int64_t days = std::chrono::sys_days(day).time_since_epoch().count();
  return (((days * 24 + hour) * 60 + minute) * 60 + second) * 1'000'000 + nanoseconds / 1000;
}

Request parse_azure(const Fields& fields, std::string_view line) {
  const auto commas = std::ranges::count(line, ',');
  if (commas != 2) {
    fields.fail("", "has " + std::to_string(commas + 1) + " columns, must have the 3 of " + std::string(azure_header));
  }
  const std::size_t first = line.find(',');
  const std::size_t second = line.find(',', first + 1);
  Request request;
  request.arrival_us = parse_time(fields, line.substr(0, first));
  request.input_tokens = static_cast<Pos>(
      fields.whole(line.substr(first + 1, second - first - 1), "ContextTokens", 1, max_request_tokens));
  request.output_tokens =
      static_cast<Pos>(fields.whole(line.substr(second + 1), "GeneratedTokens", 0, max_request_tokens));
  return request;
}

/// How many blocks the prompt has, or will have once it is numbered.
Index block_count(const Request& request, TraceFormat format) {
  return format == TraceFormat::azure ? Index{kvc::ceil_div(request.input_tokens, block_tokens(format))}
                                      : static_cast<Index>(request.blocks.size());
}

/// Azure's times become times since the first arrival, and each request gets blocks that no other has.
void number_azure(Trace& trace) {
  std::int64_t begin = std::numeric_limits<std::int64_t>::max();
  for (const Request& request : trace.requests) {
    begin = std::min(begin, request.arrival_us);
  }
  Index next = 0;
  for (Request& request : trace.requests) {
    request.arrival_us -= begin;
    const Index count = block_count(request, trace.format);
    request.blocks.reserve(static_cast<std::size_t>(count));
    for (Index i = 0; i < count; ++i) {
      request.blocks.push_back(static_cast<std::int32_t>(next++));
    }
  }
}

bool blank(std::string_view line) { return line.find_first_not_of(" \t\r") == std::string_view::npos; }

}  // namespace

std::string_view name(TraceFormat format) {
  switch (format) {
    case TraceFormat::mooncake:
      return "mooncake";
    case TraceFormat::weka:
      return "weka";
    case TraceFormat::azure:
      return "azure";
  }
  return "";
}

Pos block_tokens(TraceFormat format) {
  switch (format) {
    case TraceFormat::mooncake:
      return 512;
    case TraceFormat::weka:
      return 64;
    case TraceFormat::azure:
      return 16;
  }
  return 0;
}

Index Trace::blocks() const {
  Index sum = 0;
  for (const Request& request : requests) {
    sum += static_cast<Index>(request.blocks.size());
  }
  return sum;
}

Index Trace::input_tokens() const {
  Index sum = 0;
  for (const Request& request : requests) {
    sum += request.input_tokens;
  }
  return sum;
}

TraceError::TraceError(std::string_view file, Index line, std::string_view field, std::string_view problem)
    : std::runtime_error(message(file, line, field, problem)), file_(file), line_(line), field_(field) {}

Request parse_line(TraceFormat format, std::string_view line, const LinePlace& place) {
  const Fields fields(place);
  switch (format) {
    case TraceFormat::mooncake:
      return parse_mooncake(fields, line);
    case TraceFormat::weka:
      return parse_weka(fields, line);
    case TraceFormat::azure:
      return parse_azure(fields, line);
  }
  fields.fail("", "has no format");
}

TraceFormat detect_format(std::string_view first_line, const LinePlace& place) {
  const auto has = [&](std::string_view text) { return first_line.find(text) != std::string_view::npos; };
  if (has("\"hash_ids\"")) {
    return TraceFormat::mooncake;
  }
  if (has("\"hash_runs\"")) {
    return TraceFormat::weka;
  }
  if (first_line.starts_with("TIMESTAMP,")) {
    return TraceFormat::azure;
  }
  throw TraceError(place.file, place.line, "",
                   "begins like no known trace: mooncake has \"hash_ids\", weka has \"hash_runs\", azure begins with " +
                       std::string(azure_header));
}

Trace read_trace(const std::string& path, const ReadOptions& options) {
  Trace trace;
  trace.name = path;
  trace.format = options.format;
  LineReader reader(path);
  bool first = true;
  Index blocks = 0;
  while (reader.next()) {
    std::string_view line = reader.line();
    if (reader.number() == 1 && line.starts_with("\xEF\xBB\xBF")) {
      line.remove_prefix(3);  // the byte order mark of some editors
    }
    if (blank(line)) {
      continue;
    }
    const LinePlace place{path, reader.number()};
    if (first) {
      first = false;
      if (options.detect) {
        trace.format = detect_format(line, place);
      }
      if (trace.format == TraceFormat::azure) {
        if (line != azure_header) {
          throw TraceError(path, reader.number(), "", "must be the header " + std::string(azure_header));
        }
        continue;
      }
    }
    try {
      trace.requests.push_back(parse_line(trace.format, line, place));
    } catch (const TraceError& error) {
      if (!options.skip_bad) {
        throw;
      }
      if (trace.skipped_lines++ == 0) {
        trace.first_skipped = error.what();
      }
      continue;
    }
    blocks += block_count(trace.requests.back(), trace.format);
    if (blocks > max_trace_blocks) {
      throw TraceError(path, reader.number(), "",
                       "is one line too many: more than " + std::to_string(max_trace_blocks) + " blocks");
    }
  }
  if (trace.requests.empty()) {
    throw TraceError(path, 0, "",
                     trace.skipped_lines == 0 ? "holds no request"
                                              : "holds no good request; the first bad line: " + trace.first_skipped);
  }
  trace.block_tokens = block_tokens(trace.format);
  if (trace.format == TraceFormat::azure) {
    number_azure(trace);
  }
  return trace;
}

}  // namespace kvc_bench
