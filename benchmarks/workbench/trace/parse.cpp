#include "parse.hpp"

#include <algorithm>
#include <charconv>
#include <chrono>
#include <cmath>
#include <limits>
#include <string>
#include <utility>

namespace kvc_bench {
namespace {

constexpr std::string_view blanks = " \t";
/// Sub-agents of sub-agents at most.
constexpr int max_depth = 16;

std::string_view trimmed(std::string_view text) {
  const std::size_t first = text.find_first_not_of(blanks);
  return first == std::string_view::npos ? text.substr(0, 0)
                                         : text.substr(first, text.find_last_not_of(blanks) + 1 - first);
}

std::vector<std::string_view> columns(std::string_view line) {
  std::vector<std::string_view> all;
  for (std::size_t begin = 0; begin <= line.size();) {
    const std::size_t end = std::min(line.find(',', begin), line.size());
    all.push_back(trimmed(line.substr(begin, end - begin)));
    begin = end + 1;
  }
  return all;
}

/// The errors of a JSON line as those of a trace: /hash_ids/3 is the field hash_ids/3.
template <class F>
auto placed(const LinePlace& place, F&& read) {
  try {
    return read();
  } catch (const FieldError& error) {
    const std::string_view where = error.where();
    throw TraceError(place.file, place.line, where.substr(where.starts_with('/') ? 1 : 0), error.problem());
  }
}

Json parse_object(std::string_view text) {
  Json json = parse_json(text);
  if (!json.is_object()) {
    Fields(json).reject("a JSON object");
  }
  return json;
}

Pos tokens_of(const Fields& field, Pos low) { return static_cast<Pos>(field.whole(low, max_request_tokens)); }

Nanoseconds azure_time(std::string_view text, const LinePlace& place) {
  const std::string_view whole_text = text;
  const auto fail = [&] {
    throw TraceError(
        place.file, place.line, "TIMESTAMP",
        "is " + shown(whole_text) + ", must be a time from 1970 to 2115, such as 2023-11-16 18:17:03.9799600");
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
  if (!day.ok() || day.year() < std::chrono::year(1970) || day.year() > std::chrono::year(2115) || hour > 23 ||
      minute > 59 || second > 60) {
    fail();
  }
  const std::int64_t days = std::chrono::sys_days(day).time_since_epoch().count();
  return (((days * 24 + hour) * 60 + minute) * 60 + second) * 1'000'000'000 + nanoseconds;
}

Pos azure_tokens(std::string_view text, const char* field, Pos low, const LinePlace& place) {
  Pos value = 0;
  const char* end = text.data() + text.size();
  const auto [stop, error] = std::from_chars(text.data(), end, value);
  if (error != std::errc{} || stop != end || value < low || value > max_request_tokens) {
    throw TraceError(place.file, place.line, field,
                     "is " + shown(text) + ", must be a whole number from " + std::to_string(low) + " to " +
                         std::to_string(max_request_tokens));
  }
  return value;
}

TraceRequest parse_azure(std::string_view line, const LinePlace& place) {
  const std::vector<std::string_view> all = columns(line);
  if (all.size() != 3) {
    throw TraceError(place.file, place.line, "",
                     "has " + std::to_string(all.size()) + " columns, must have the 3 of " + std::string(azure_header));
  }
  TraceRequest request;
  request.arrival = azure_time(all[0], place);
  request.input_tokens = azure_tokens(all[1], "ContextTokens", 1, place);
  request.output_tokens = azure_tokens(all[2], "GeneratedTokens", 0, place);
  return request;
}

/// A power of two that would be the number of tokens in each of `count` blocks of a prompt, or 0.
Pos fitting_block(Index count, Pos input) {
  for (Pos tokens = 1; count >= 2 && tokens <= input; tokens *= 2) {
    if (input / tokens == count || kvc::ceil_div(input, tokens) == count) {
      return tokens;
    }
  }
  return 0;
}

}  // namespace

bool is_azure_header(std::string_view line) { return columns(line) == columns(azure_header); }

TraceFormat detect_format(std::string_view first_line, const LinePlace& place) {
  const std::string_view text = trimmed(first_line);
  if (text.starts_with('{')) {
    const Json json = placed(place, [&] { return parse_object(text); });
    const bool ids = json.contains("hash_ids");
    if (ids && json.contains("hash_runs")) {
      throw TraceError(place.file, place.line, "", "has both \"hash_ids\" and \"hash_runs\", must have one of them");
    }
    if (ids || json.contains("hash_runs")) {
      return ids ? TraceFormat::mooncake : TraceFormat::weka;
    }
    if (json.contains("requests")) {
      return TraceFormat::session;
    }
    if (json.contains("input_length") || json.contains("output_length") || json.contains("tokens")) {
      return TraceFormat::own;
    }
  } else if (columns(text).front() == columns(azure_header).front()) {
    if (!is_azure_header(text)) {
      throw TraceError(place.file, place.line, "", "must be the header " + std::string(azure_header));
    }
    return TraceFormat::azure;
  }
  throw TraceError(place.file, place.line, "",
                   "begins like no known trace: mooncake has \"hash_ids\", weka has \"hash_runs\", session has "
                   "\"requests\", own has \"output_length\" and \"input_length\" or \"tokens\", azure begins with " +
                       std::string(azure_header));
}

LineParser::LineParser(TraceFormat format, const ReadOptions& options, std::string_view file)
    : format_(format),
      unit_(options.time_unit.value_or(format == TraceFormat::session ? TimeUnit::seconds : TimeUnit::milliseconds)),
      block_tokens_(options.block_tokens.value_or(usual_block_tokens(format))),
      block_tokens_given_(options.block_tokens.has_value()),
      max_abort_after_(options.max_abort_after) {
  if (block_tokens_ < 1 || block_tokens_ > max_request_tokens) {
    throw TraceError(file, 0, "",
                     "block_tokens is " + std::to_string(block_tokens_) + ", must be between 1 and " +
                         std::to_string(max_request_tokens));
  }
  if (format == TraceFormat::azure && options.time_unit) {
    throw TraceError(file, 0, "", "has dates, not numbers, as times: a time unit has no meaning for azure");
  }
}

TraceRequest LineParser::parse(std::string_view line, const LinePlace& place) {
  TraceRequest request;
  if (format_ == TraceFormat::azure) {
    request = parse_azure(line, place);
  } else {
    request = placed(place, [&] {
      const Json json = parse_object(line);
      const Fields fields(json);
      if (format_ == TraceFormat::own) {
        return own(fields);
      }
      TraceRequest read = lengths(fields);
      read.blocks = format_ == TraceFormat::mooncake ? ids(fields.at("hash_ids"), read.input_tokens, "input_length")
                                                     : runs(fields.at("hash_runs"), read.input_tokens);
      return read;
    });
  }
  request.line = place.line;
  return request;
}

/// A time in the unit of the trace, from 0 to `most` nanoseconds.
Nanoseconds LineParser::time(const Fields& field, Nanoseconds most) const {
  const Json& value = field.value();
  const Nanoseconds unit = nanoseconds_in(unit_);
  const Nanoseconds highest = most / unit;
  if (value.is_number_unsigned() && value.get<std::uint64_t>() <= static_cast<std::uint64_t>(highest)) {
    return value.get<Nanoseconds>() * unit;
  }
  if (value.is_number_float() && value.get<double>() >= 0 && value.get<double>() <= static_cast<double>(highest)) {
    return std::llround(value.get<double>() * static_cast<double>(unit));
  }
  field.reject("a number of " + std::string(name(unit_)) + " from 0 to " + std::to_string(highest));
}

TraceRequest LineParser::lengths(const Fields& line) const {
  TraceRequest request;
  request.arrival = time(line.at("timestamp"));
  request.input_tokens = tokens_of(line.at("input_length"), 1);
  request.output_tokens = tokens_of(line.at("output_length"), 0);
  return request;
}

std::vector<std::uint64_t> LineParser::ids(const Fields& list, Pos input, std::string_view input_field) {
  const Json::array_t& array = list.array();
  std::vector<std::uint64_t> ids;
  ids.reserve(array.size());
  for (const Json& id : array) {
    ids.push_back(id.is_number_unsigned()
                      ? id.get<std::uint64_t>()
                      : list.item(ids.size()).whole_unsigned(0, std::numeric_limits<std::uint64_t>::max()));
  }
  check_count(list, std::ssize(ids), "entries", input, input_field);
  return ids;
}

std::vector<std::uint64_t> LineParser::runs(const Fields& list, Pos input) {
  constexpr std::uint64_t max_id = std::numeric_limits<std::uint64_t>::max();
  struct Run {
    std::uint64_t first;
    Index count;
  };
  std::vector<Run> runs;
  Index total = 0;
  for (const Fields& entry : list.items()) {
    if (!entry.value().is_array() || entry.value().size() != 2) {
      entry.reject("[first id, count]");
    }
    const std::uint64_t first = entry.item(0).whole_unsigned(0, max_id);
    const Index count = entry.item(1).whole(1, max_request_tokens);
    if (static_cast<std::uint64_t>(count - 1) > max_id - first) {
      entry.item(1).reject("at most " + std::to_string(max_id - first + 1) + ", as ids end at 2^64 - 1");
    }
    runs.push_back({first, count});
    total += count;
  }
  check_count(list, total, "ids", input, "input_length");
  std::vector<std::uint64_t> ids;
  ids.reserve(static_cast<std::size_t>(total));
  for (const Run& run : runs) {
    for (Index i = 0; i < run.count; ++i) {
      ids.push_back(run.first + static_cast<std::uint64_t>(i));
    }
  }
  return ids;
}

/// Requires `count` blocks to be the full ones of the prompt, or those and a partly filled one, as in earlier lines.
void LineParser::check_count(const Fields& list, Index count, std::string_view unit, Pos input,
                             std::string_view input_field) {
  const Pos full = input / block_tokens_;
  const Pos all = kvc::ceil_div(input, block_tokens_);
  const bool as_full = count == full && last_block_ != LastBlock::partial;
  const bool as_partial = count == all && last_block_ != LastBlock::full;
  if (count == full && full == all) {
    return;
  }
  if (as_full || as_partial) {
    last_block_ = as_full ? LastBlock::full : LastBlock::partial;
    return;
  }
  const std::string division =
      std::string(input_field) + " " + std::to_string(input) + " / " + std::to_string(block_tokens_);
  std::string problem = "has " + std::to_string(count) + " " + std::string(unit) + ", must have ";
  if (full == all) {
    problem += std::to_string(full) + " (= " + division + ")";
  } else if (last_block_ == LastBlock::partial) {
    problem += std::to_string(all) + " (= ceil(" + division + "), as in the lines above)";
  } else if (last_block_ == LastBlock::full) {
    problem += std::to_string(full) + " (= floor(" + division + "), as in the lines above)";
  } else {
    problem += std::to_string(full) + " or " + std::to_string(all) + " (= " + division + ", rounded down or up)";
  }
  if (const Pos fitting = fitting_block(count, input); fitting > 0 && !block_tokens_given_) {
    problem += "; blocks of " + std::to_string(fitting) + " tokens would fit: --block-tokens";
  }
  list.fail(problem);
}

TraceRequest LineParser::own(const Fields& line) const {
  line.only({"timestamp", "input_length", "output_length", "max_output_length", "prefix", "tokens", "samples",
             "abort_after", "tenant"});
  TraceRequest request;
  request.arrival = time(line.at("timestamp"));
  request.output_tokens = tokens_of(line.at("output_length"), 0);
  if (line.has("max_output_length")) {
    request.max_output_tokens = tokens_of(line.at("max_output_length"), request.output_tokens);
  }
  request.samples = line.whole_or<int>("samples", 1, 1024, 1);
  if (line.has("abort_after")) {
    request.abort_after = time(line.at("abort_after"), max_abort_after_);
  }
  request.tenant = line.text_or("tenant", "");
  if (line.has("tokens")) {
    const Fields tokens = line.at("tokens");
    const Json::array_t& array = tokens.array();
    if (array.empty() || array.size() > static_cast<std::size_t>(max_request_tokens)) {
      tokens.fail("has " + std::to_string(array.size()) + " entries, must have 1 to " +
                  std::to_string(max_request_tokens));
    }
    for (std::size_t i = 0; i < array.size(); ++i) {
      request.tokens.push_back(
          static_cast<kvc::Token>(tokens.item(i).whole(0, std::numeric_limits<kvc::Token>::max())));
    }
    request.input_tokens = static_cast<Pos>(array.size());
    if (line.has("prefix")) {
      line.at("prefix").fail("contradicts \"tokens\", which are the whole prompt: give one of them");
    }
    if (line.has("input_length") && tokens_of(line.at("input_length"), 1) != request.input_tokens) {
      line.at("input_length").reject(std::to_string(request.input_tokens) + ", as many as \"tokens\", or left out");
    }
    return request;
  }
  request.input_tokens = tokens_of(line.at("input_length"), 1);
  Pos left = request.input_tokens;
  if (line.has("prefix")) {
    for (const Fields& part : line.at("prefix").items()) {
      const std::vector<Fields> pair = part.items();
      if (pair.size() != 2) {
        part.reject("[name, tokens]");
      }
      const Pos tokens = tokens_of(pair[1], 1);
      if (tokens > left) {
        pair[1].reject("at most what is left of input_length, " + std::to_string(left));
      }
      request.prefix.push_back({pair[0].text(), tokens});
      left -= tokens;
    }
  }
  return request;
}

Session LineParser::parse_session(std::string_view document, const LinePlace& place,
                                  const std::function<void(const TraceError&)>& bad) {
  return placed(place, [&] {
    const Json json = parse_object(document);
    const Fields fields(json);
    Session session;
    session.shared_ids = fields.choice_or("hash_id_scope", {"local", "global"}, 0) == 1;
    if (fields.has("block_size")) {
      const Pos tokens = tokens_of(fields.at("block_size"), 1);
      if (block_tokens_given_ && tokens != block_tokens_) {
        fields.at("block_size").reject(std::to_string(block_tokens_) + ", as --block-tokens or earlier sessions say");
      }
      block_tokens_ = tokens;
      block_tokens_given_ = true;
    }
    add_session(fields.at("requests"), 0, 0, place, bad, session);
    return session;
  });
}

void LineParser::add_session(const Fields& requests, Nanoseconds start, int depth, const LinePlace& place,
                             const std::function<void(const TraceError&)>& bad, Session& session) {
  if (depth > max_depth) {
    requests.fail("is nested more than " + std::to_string(max_depth) + " deep");
  }
  for (const Fields& entry : requests.items()) {
    const auto read = [&] {
      if (entry.has("requests")) {
        // A sub-agent's. Their times count like those around them, or from the start of the sub-agent: then the first
        // one would otherwise precede it.
        const Fields inner = entry.at("requests");
        const bool from_start =
            !inner.array().empty() && inner.item(0).has("t") && time(inner.item(0).at("t")) < time(entry.at("t"));
        add_session(inner, from_start ? start + time(entry.at("t"), max_time - start) : start, depth + 1, place, bad,
                    session);
        return;
      }
      TraceRequest request;
      request.arrival = start + time(entry.at("t"), max_time - start);
      request.input_tokens = tokens_of(entry.at("in"), 1);
      request.output_tokens = tokens_of(entry.at("out"), 0);
      request.blocks = ids(entry.at("hash_ids"), request.input_tokens, "in");
      request.line = std::ssize(session.requests) + 1;
      session.requests.push_back(std::move(request));
    };
    if (!bad) {
      read();
      continue;
    }
    try {
      placed(place, read);
    } catch (const TraceError& error) {
      bad(error);
    }
  }
}

}  // namespace kvc_bench
