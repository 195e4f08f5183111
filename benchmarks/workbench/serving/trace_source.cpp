#include "trace_source.hpp"

#include <algorithm>
#include <cmath>

#include "json_fields.hpp"
#include "line_reader.hpp"
#include "trace.hpp"

namespace serving {
namespace {

using kvc_bench::LinePlace;
using kvc_bench::max_request_tokens;
using kvc_bench::TraceError;

bool blank(std::string_view line) { return line.find_first_not_of(" \t\r") == std::string_view::npos; }

std::uint64_t named(std::string_view name) {
  std::uint64_t content = 0x6e61'6d65'6400'0000ULL;
  for (const char c : name) {
    content = scramble(content ^ static_cast<unsigned char>(c));
  }
  return content;
}

kvc_bench::TraceFormat published(TrafficFormat format) {
  return format == TrafficFormat::mooncake ? kvc_bench::TraceFormat::mooncake
         : format == TrafficFormat::weka   ? kvc_bench::TraceFormat::weka
                                           : kvc_bench::TraceFormat::azure;
}

TrafficFormat detect(std::string_view line, const LinePlace& place) {
  if (line.find("\"output_length\"") != std::string_view::npos && line.find("\"hash_") == std::string_view::npos) {
    return TrafficFormat::own;
  }
  switch (kvc_bench::detect_format(line, place)) {
    case kvc_bench::TraceFormat::mooncake:
      return TrafficFormat::mooncake;
    case kvc_bench::TraceFormat::weka:
      return TrafficFormat::weka;
    default:
      return TrafficFormat::azure;
  }
}

/// The prompt of a published trace: its blocks, and what lies behind the last of them.
void set_prompt(Request& request, const kvc_bench::Request& from, TrafficFormat format, std::uint64_t round,
                std::uint64_t own) {
  Pos left = from.input_tokens;
  if (format != TrafficFormat::azure) {
    const Pos block = kvc_bench::block_tokens(published(format));
    for (const std::int32_t id : from.blocks) {
      const Pos tokens = std::min(left, block);
      request.prompt.push_back({scramble(scramble(round + 1) + static_cast<std::uint64_t>(id)), tokens});
      left -= tokens;
    }
  }
  if (left > 0) {
    request.prompt.push_back({own, left});
  }
}

void read_own(Request& request, const Json& json, std::uint64_t round, std::uint64_t own) {
  const Fields fields(json);
  fields.only({"timestamp", "input_length", "output_length", "max_output_length", "prefix", "tokens", "samples",
               "abort_after", "tenant"});
  request.arrival = std::llround(fields.at("timestamp").number(0, 1e13) * 1e6);
  request.output_tokens = std::max<Pos>(1, static_cast<Pos>(fields.at("output_length").whole(0, max_request_tokens)));
  request.max_output_tokens = fields.whole_or<Pos>("max_output_length", request.output_tokens, max_request_tokens, 0);
  request.samples = fields.whole_or<int>("samples", 1, 1024, 1);
  if (fields.has("abort_after")) {
    request.patience = std::llround(fields.at("abort_after").number(0, 1e13) * 1e6);
  }
  request.tenant = fields.text_or("tenant", "");
  if (fields.has("tokens")) {
    for (const Fields& token : fields.at("tokens").items()) {
      request.tokens.push_back(static_cast<Token>(token.whole(0, std::numeric_limits<Token>::max())));
    }
    if (request.tokens.empty()) {
      fields.at("tokens").fail("is empty, must have at least one token");
    }
    return;
  }
  auto left = static_cast<Pos>(fields.at("input_length").whole(1, max_request_tokens));
  if (fields.has("prefix")) {
    for (const Fields& part : fields.at("prefix").items()) {
      const std::vector<Fields> pair = part.items();
      if (pair.size() != 2) {
        part.reject("[name, tokens]");
      }
      const auto tokens = static_cast<Pos>(pair[1].whole(1, max_request_tokens));
      if (tokens > left) {
        pair[1].reject("at most what is left of input_length, " + std::to_string(left));
      }
      request.prompt.push_back({scramble(named(pair[0].text()) + round), tokens});
      left -= tokens;
    }
  }
  if (left > 0) {
    request.prompt.push_back({own, left});
  }
}

}  // namespace

/// Lines that say something, and the format, which the first of them tells.
class TraceSource::Lines {
 public:
  Lines(const std::string& path, TrafficFormat format) : path_(path), reader_(path), format_(format) {}

  bool next() {
    while (reader_.next()) {
      line_ = reader_.line();
      if (reader_.number() == 1 && line_.starts_with("\xEF\xBB\xBF")) {
        line_.remove_prefix(3);  // the byte order mark of some editors
      }
      if (blank(line_)) {
        continue;
      }
      if (format_ == TrafficFormat::detect) {
        format_ = detect(line_, place());
      }
      if (std::exchange(first_, false) && format_ == TrafficFormat::azure) {
        continue;  // the header
      }
      return true;
    }
    return false;
  }
  [[nodiscard]] std::string_view line() const { return line_; }
  [[nodiscard]] LinePlace place() const { return {path_, reader_.number()}; }
  [[nodiscard]] TrafficFormat format() const { return format_; }

 private:
  std::string path_;
  kvc_bench::LineReader reader_;
  TrafficFormat format_;
  std::string_view line_;
  bool first_ = true;
};

TraceSource::TraceSource(std::string path, const TraceOptions& options)
    : path_(std::move(path)), options_(options), names_{"requests"} {
  open();
}
TraceSource::~TraceSource() = default;

void TraceSource::open() {
  lines_ = std::make_unique<Lines>(path_, options_.format);
  in_round_ = 0;
}

std::optional<Request> TraceSource::next_of_file() {
  if (lines_->next()) {
    format_ = lines_->format();
    const LinePlace place = lines_->place();
    const std::uint64_t own = scramble(scramble(round_ + 0x6f77'6eULL) + static_cast<std::uint64_t>(place.line));
    Request request;
    if (format_ == TrafficFormat::own) {
      try {
        read_own(request, parse_json(lines_->line()), round_, own);
      } catch (const FieldError& error) {
        throw TraceError(place.file, place.line, error.where(), error.problem());
      }
    } else {
      const kvc_bench::Request from = kvc_bench::parse_line(published(format_), lines_->line(), place);
      request.arrival = from.arrival_us * microsecond;
      request.output_tokens = std::max(Pos{1}, from.output_tokens);
      request.max_output_tokens = 0;  // it does not say
      set_prompt(request, from, format_, round_, own);
    }
    if (request.max_output_tokens < request.output_tokens) {
      request.max_output_tokens = std::max(request.output_tokens, options_.max_output);
    }
    if (!origin_) {
      origin_ = request.arrival;
    }
    request.arrival -= *origin_;
    if (in_round_ > 0 && request.arrival < last_) {
      throw TraceError(place.file, place.line, "", "arrives before the request of the line above");
    }
    last_ = request.arrival;
    ++in_round_;
    return request;
  }
  return std::nullopt;
}

std::optional<Request> TraceSource::next() {
  if (options_.requests > 0 && made_ == options_.requests) {
    return std::nullopt;
  }
  std::optional<Request> request = next_of_file();
  if (!request && made_ == 0) {
    throw TraceError(path_, 0, "", "holds no request");
  }
  if (!request && options_.requests > 0) {
    // Again, as if the first request came a usual gap after the last one.
    round_begin_ += last_ + last_ / std::max<Index>(1, in_round_ - 1);
    ++round_;
    open();
    request = next_of_file();
  }
  if (!request) {
    return std::nullopt;
  }
  request->id = made_++;
  request->arrival = std::llround(static_cast<double>(round_begin_ + request->arrival) / options_.load);
  return request;
}

}  // namespace serving
