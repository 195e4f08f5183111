// Traces from the outside: each line, session and file is read as requests, or refused with a TraceError that says
// where and why.
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <string>
#include <string_view>

#include "trace_reader.hpp"

namespace {
using namespace kvc_bench;

void expect(bool ok, const char* what) {
  if (!ok) {
    std::fprintf(stderr, "broken: %s\n", what);
    std::abort();
  }
}

/// Every promise that a user of the reader relies on.
void check(TraceFormat format, Pos block_tokens, LastBlock last_block, const TraceRequest& request) {
  const std::int64_t tokens = request.input_tokens;
  expect(0 <= request.arrival && request.arrival <= max_time, "arrival");
  expect(1 <= tokens && tokens <= max_request_tokens, "input_tokens");
  expect(0 <= request.output_tokens && request.output_tokens <= max_request_tokens, "output_tokens");
  const auto blocks = static_cast<std::int64_t>(request.blocks.size());
  const std::int64_t full = tokens / block_tokens;
  const std::int64_t all = (tokens + block_tokens - 1) / block_tokens;
  expect(names_blocks(format) ? blocks == (last_block == LastBlock::partial ? all : full) : blocks == 0, "blocks");
  expect(last_block != LastBlock::unknown || full == all || !names_blocks(format), "last block");
  if (format == TraceFormat::own) {
    std::int64_t in_prefix = 0;
    for (const NamedPart& part : request.prefix) {
      expect(part.tokens >= 1, "tokens of a part");
      in_prefix += part.tokens;
    }
    expect(in_prefix <= tokens, "prefix");
    expect(request.tokens.empty() || (static_cast<std::int64_t>(request.tokens.size()) == tokens && in_prefix == 0),
           "tokens");
    expect(!request.max_output_tokens || *request.max_output_tokens >= request.output_tokens, "max_output_tokens");
    expect(!request.abort_after || (*request.abort_after >= 0 && *request.abort_after <= max_time), "abort_after");
    expect(request.samples >= 1, "samples");
  }
}

void read_line(TraceFormat format, const ReadOptions& options, std::string_view text) {
  const LinePlace place{"fuzzed", 7};
  try {
    LineParser parser(format, options, place.file);
    if (format == TraceFormat::session) {
      const Session session = parser.parse_session(text, place);
      for (const TraceRequest& request : session.requests) {
        check(format, parser.block_tokens(), parser.last_block(), request);
      }
    } else {
      const TraceRequest request = parser.parse(text, place);
      check(format, parser.block_tokens(), parser.last_block(), request);
    }
  } catch (const TraceError& error) {
    expect(error.file() == "fuzzed" && error.line() == 7, "place of an error");
  }
}

/// The bytes as a whole file: lines, gzip members, the choice of the format.
void read_file(std::string_view bytes, const ReadOptions& options) {
  try {
    TraceReader reader(TraceInput::memory("fuzzed", std::string(bytes)), options);
    Nanoseconds last = 0;
    int count = 0;
    while (const auto request = reader.next()) {
      check(reader.format(), reader.block_tokens(), reader.last_block(), *request);
      expect(!options.in_order || count == 0 || request->arrival >= last, "order");
      last = request->arrival;
      ++count;
    }
    expect(count > 0, "a file without requests is an error");
    reader.rewind();
    for (; reader.next(); --count) {
    }
    expect(count == 0, "as many requests when it is read again");
  } catch (const TraceError& error) {
    expect(error.file() == "fuzzed", "file of an error");
  }
}
}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  const std::string_view text(reinterpret_cast<const char*>(data), size);
  try {
    (void)detect_format(text);
  } catch (const TraceError&) {
  }
  ReadOptions small;
  small.block_tokens = 3;
  for (const TraceFormat format : all_formats) {
    read_line(format, {}, text);
    read_line(format, small, text);
  }
  read_file(text, {});
  ReadOptions lenient;
  lenient.skip_bad = true;
  lenient.in_order = true;
  read_file(text, lenient);
  return 0;
}
