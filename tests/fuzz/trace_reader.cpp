// Lines of a trace from the outside: each is read as a request, or refused with a TraceError that says where and why.
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <limits>
#include <string_view>

#include "trace.hpp"

namespace {
using namespace kvc_bench;

void expect(bool ok, const char* what) {
  if (!ok) {
    std::fprintf(stderr, "broken: %s\n", what);
    std::abort();
  }
}

/// Every promise that a reader of the trace relies on.
void check(TraceFormat format, const Request& request) {
  const std::int64_t per_block = block_tokens(format);
  const std::int64_t tokens = request.input_tokens;
  expect(1 <= tokens && tokens <= max_request_tokens, "input_tokens");
  expect(0 <= request.output_tokens && request.output_tokens <= max_request_tokens, "output_tokens");
  const auto blocks = static_cast<std::int64_t>(request.blocks.size());
  switch (format) {
    case TraceFormat::mooncake:
      expect(request.arrival_us >= 0, "arrival");
      expect(blocks == (tokens + per_block - 1) / per_block, "blocks of mooncake");
      break;
    case TraceFormat::weka:
      expect(request.arrival_us >= 0, "arrival");
      expect(blocks == tokens / per_block, "blocks of weka");
      break;
    case TraceFormat::azure:
      expect(blocks == 0, "blocks of azure");
      break;
  }
  for (const std::int32_t id : request.blocks) {
    expect(id >= 0, "ids");
  }
}
}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  const std::string_view line(reinterpret_cast<const char*>(data), size);
  try {
    (void)detect_format(line);
  } catch (const TraceError&) {
  }
  for (const TraceFormat format : {TraceFormat::mooncake, TraceFormat::weka, TraceFormat::azure}) {
    try {
      check(format, parse_line(format, line, {"fuzzed", 7}));
    } catch (const TraceError& error) {
      expect(error.file() == "fuzzed" && error.line() == 7, "place of an error");
    }
  }
  return 0;
}
