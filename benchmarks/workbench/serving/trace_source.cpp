#include "trace_source.hpp"

#include <algorithm>
#include <cmath>
#include <cstdio>

#include "trace.hpp"

namespace serving {
namespace {

using kvc_bench::max_time;
using kvc_bench::TraceError;
using kvc_bench::TraceRequest;

std::uint64_t content_of(std::string_view name) {
  std::uint64_t content = 0x6e61'6d65'6400'0000ULL;
  for (const char c : name) {
    content = scramble(content ^ static_cast<unsigned char>(c));
  }
  return content;
}

TraceOptions in_order(TraceOptions options) {
  options.read.in_order = true;
  options.read.max_abort_after = max_arrival;
  return options;
}

}  // namespace

TraceSource::TraceSource(const kvc_bench::TraceInput& input, const TraceOptions& options)
    : input_(input),
      options_(in_order(options)),
      names_{"requests"},
      reader_(input_, options_.read, options_.sessions) {}

Request TraceSource::request_of(const TraceRequest& from) const {
  Request request;
  request.arrival = from.arrival;
  request.output_tokens = from.output_tokens;
  request.max_output_tokens = from.max_output_tokens.value_or(std::max(from.output_tokens, options_.max_output));
  request.samples = from.samples;
  request.patience = from.abort_after;
  request.tenant = from.tenant;
  request.tokens = from.tokens;
  if (!request.tokens.empty()) {
    return request;
  }
  Pos left = from.input_tokens;
  const auto add = [&](std::uint64_t content, Pos tokens) {
    request.prompt.push_back({content, std::min(left, tokens)});
    left -= request.prompt.back().tokens;
  };
  for (const std::uint64_t id : from.blocks) {
    add(scramble(scramble(round_ + 1) + id), reader_.block_tokens());
  }
  for (const kvc_bench::NamedPart& part : from.prefix) {
    add(scramble(content_of(part.name) + round_), part.tokens);
  }
  if (left > 0) {  // the request's own
    add(scramble(scramble(round_ + 0x6f77'6eULL) + static_cast<std::uint64_t>(from.line)), left);
  }
  return request;
}

std::optional<Request> TraceSource::next_of_file() {
  const std::optional<TraceRequest> from = reader_.next();
  if (!from) {
    return std::nullopt;
  }
  Request request = request_of(*from);
  origin_ = origin_.value_or(request.arrival);
  request.arrival -= *origin_;
  last_ = request.arrival;
  line_ = from->line;
  ++in_round_;
  return request;
}

std::optional<Request> TraceSource::next() {
  if (options_.requests > 0 && made_ == options_.requests) {
    return std::nullopt;
  }
  std::optional<Request> request = next_of_file();
  if (!request && options_.requests > 0) {
    // Again, as if the first request came a usual gap after the last one.
    round_begin_ += last_ + last_ / std::max<Index>(1, in_round_ - 1);
    ++round_;
    in_round_ = 0;
    reader_.rewind();
    request = next_of_file();
  }
  if (!request) {
    return std::nullopt;
  }
  request->id = made_++;
  // In the time of the file.
  const auto latest =
      static_cast<Time>(std::min(static_cast<double>(max_time / 2), static_cast<double>(max_arrival) * options_.load));
  if (request->arrival > latest - round_begin_) {
    const double after = static_cast<double>(round_begin_) + static_cast<double>(request->arrival);
    char problem[160];
    std::snprintf(problem, sizeof problem,
                  "is %.10g s after the first request, must be at most %lld s after it at a load of %g", after / second,
                  static_cast<long long>(latest / second), options_.load);
    throw TraceError(input_.name(), line_, arrival_field(reader_.format()), problem);
  }
  request->arrival = std::llround(static_cast<double>(round_begin_ + request->arrival) / options_.load);
  return request;
}

}  // namespace serving
