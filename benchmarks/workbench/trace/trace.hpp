// Traces of real inference traffic: when requests arrive, how long they are, and which blocks their prompts consist of.
//
// Three published formats, one request per line. A block id stands for a block and all that precedes it, so a block
// that was seen before means a whole prefix that was seen before.
//
//   mooncake  JSON lines: timestamp (ms), input_length, output_length, hash_ids. Blocks of 512 tokens; the last one may
//             be partly filled: ceil(input_length / 512) ids.
//   weka      JSON lines: timestamp (ms), input_length, output_length, hash_runs = [[first id, count], ...]. Full blocks
//             of 64 tokens only: floor(input_length / 64) ids.
//   azure     CSV with the header TIMESTAMP,ContextTokens,GeneratedTokens. It names no blocks: each request gets ids of
//             its own, ceil(ContextTokens / 16) of them, and there is nothing to share.
//
// The text comes from outside and is believed in nothing: every field is checked for type, sign and range, and against
// the other fields before anything of its size is allocated.
#pragma once

#include <cstdint>
#include <stdexcept>
#include <string>
#include <string_view>
#include <vector>

#include "kvc/core/types.hpp"

namespace kvc_bench {

using kvc::Index;
using kvc::Pos;

enum class TraceFormat { mooncake, weka, azure };

[[nodiscard]] std::string_view name(TraceFormat format);
[[nodiscard]] Pos block_tokens(TraceFormat format);

/// Tokens of a prompt, or of an answer, at most: more than any model reads, and few enough that one line of a hostile
/// file cannot ask for much memory.
inline constexpr Pos max_request_tokens = Pos{1} << 24;

/// Blocks of all prompts at most: 1 GiB of ids.
inline constexpr Index max_trace_blocks = Index{1} << 28;

/// Bytes of a line at most.
inline constexpr std::size_t max_line_bytes = std::size_t{1} << 26;

struct Request {
  std::int64_t arrival_us = 0;  ///< microseconds; see Trace and parse_line
  Pos input_tokens = 0;         ///< 1 .. max_request_tokens
  Pos output_tokens = 0;        ///< 0 .. max_request_tokens
  std::vector<std::int32_t> blocks;

  /// Tokens of the prompt in its first `count` blocks: the last block may be partly filled.
  [[nodiscard]] Pos tokens_in_first(std::size_t count, Pos tokens_per_block) const {
    const Index tokens = static_cast<Index>(count) * tokens_per_block;
    return tokens < input_tokens ? static_cast<Pos>(tokens) : input_tokens;
  }
};

struct Trace {
  std::string name;  ///< the path it was read from
  TraceFormat format = TraceFormat::mooncake;
  Pos block_tokens = 0;
  std::vector<Request> requests;  ///< in the order of the file. At least one; azure's first arrival is 0
  Index skipped_lines = 0;        ///< malformed lines that were left out because that was asked for
  std::string first_skipped;      ///< what was wrong with the first of them

  [[nodiscard]] Index blocks() const;
  [[nodiscard]] Index input_tokens() const;
};

/// Something in a trace is not as it must be: `FILE:LINE: "FIELD": PROBLEM`.
class TraceError : public std::runtime_error {
 public:
  /// Line 0: the file as a whole. An empty field: the line as a whole.
  TraceError(std::string_view file, Index line, std::string_view field, std::string_view problem);
  [[nodiscard]] const std::string& file() const noexcept { return file_; }
  [[nodiscard]] Index line() const noexcept { return line_; }
  [[nodiscard]] const std::string& field() const noexcept { return field_; }

 private:
  std::string file_;
  Index line_;
  std::string field_;
};

/// Where a line comes from, for messages.
struct LinePlace {
  std::string_view file = "line";
  Index line = 1;
};

/// One request from one line, without its line end. Arrivals of azure are since 1970, and `blocks` stays empty: the
/// reader of the whole file numbers them. Throws TraceError. O(line length + blocks).
[[nodiscard]] Request parse_line(TraceFormat format, std::string_view line, const LinePlace& place = {});

/// The format whose first line this could be. Throws TraceError.
[[nodiscard]] TraceFormat detect_format(std::string_view first_line, const LinePlace& place = {});

struct ReadOptions {
  bool detect = true;                          ///< choose the format by the first line
  TraceFormat format = TraceFormat::mooncake;  ///< otherwise
  bool skip_bad = false;                       ///< count malformed lines and go on
};

/// Reads a file, gzip-compressed or not, which its first bytes decide. Lines may end with CR LF, the last one need not
/// end, and blank lines say nothing. Throws TraceError: with skip_bad too where the file itself cannot be read to its
/// end, has no known format, or holds no request.
[[nodiscard]] Trace read_trace(const std::string& path, const ReadOptions& options = {});

}  // namespace kvc_bench
