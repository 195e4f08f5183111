// Traces of real inference traffic: when requests arrive, how long they are, and which blocks their prompts consist of.
//
// Five formats, told apart by their first line. A block id stands for a block and all that precedes it in its prompt,
// so a block that was seen before means a whole prefix that was seen before.
//
//   mooncake  JSON lines: timestamp, input_length, output_length, hash_ids = [id, ...]. Blocks of 512 tokens.
//   weka      JSON lines: timestamp, input_length, output_length, hash_runs = [[first id, count], ...]. Blocks of 64.
//   session   The format of the KV cache tester: one JSON document per session, or a folder of them, with
//             requests = [{t, in, out, hash_ids}, ...]. Blocks of block_size tokens, or 64. A request may hold requests
//             of its own, those of a sub-agent.
//   azure     CSV with the header TIMESTAMP,ContextTokens,GeneratedTokens. It names no blocks: nothing is shared.
//   own       JSON lines, described in docs/serving.md: prompts by named prefixes or by tokens.
//
//   field                          unit                range
//   timestamp, t, abort_after      time_unit           0 to max_time; fractions are allowed
//   input_length, in, ContextTokens     tokens         1 to max_request_tokens
//   output_length, out, GeneratedTokens tokens         0 to max_request_tokens
//   ids                                                0 to 2^64 - 1
//   TIMESTAMP                      date and time, UTC  1970 to 2115
//
// Ids name the full blocks of a prompt, and in some files a partly filled last one as well: floor or ceil of
// input_length / block tokens. The first line in which the two differ decides; all lines must agree.
//
// The text is not trusted: every field is checked for type, sign and range, and against the other fields, before
// anything of its size is allocated.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "kvc/core/types.hpp"
#include "trace_error.hpp"
#include "trace_input.hpp"

namespace kvc_bench {

using kvc::Index;
using kvc::Pos;

enum class TraceFormat { mooncake, weka, session, azure, own };
inline constexpr TraceFormat all_formats[] = {TraceFormat::mooncake, TraceFormat::weka, TraceFormat::session,
                                              TraceFormat::azure, TraceFormat::own};
[[nodiscard]] std::string_view name(TraceFormat format);
/// "mooncake, weka, ..."
[[nodiscard]] std::string format_names();
/// Tokens of a block, where neither the file nor the caller says otherwise.
[[nodiscard]] Pos usual_block_tokens(TraceFormat format);
/// The field with the arrival of a request.
[[nodiscard]] std::string_view arrival_field(TraceFormat format);
/// Whether requests of this format name the blocks of their prompts.
[[nodiscard]] constexpr bool names_blocks(TraceFormat format) {
  return format != TraceFormat::azure && format != TraceFormat::own;
}

/// Nanoseconds since some moment, or a duration.
using Nanoseconds = std::int64_t;
/// Of one time in a file: 146 years. The difference of two such times, and their sum, fit Nanoseconds.
inline constexpr Nanoseconds max_time = (Nanoseconds{1} << 62) - 1;

enum class TimeUnit { seconds, milliseconds, microseconds };
[[nodiscard]] std::string_view name(TimeUnit unit);
[[nodiscard]] constexpr Nanoseconds nanoseconds_in(TimeUnit unit) {
  return unit == TimeUnit::seconds ? 1'000'000'000 : unit == TimeUnit::milliseconds ? 1'000'000 : 1'000;
}

/// Tokens of a prompt, or of an answer, at most: more than any model reads, and few enough that one line of a hostile
/// file cannot ask for much memory.
inline constexpr Pos max_request_tokens = Pos{1} << 24;

/// Blocks of all prompts of a trace that is read as a whole, at most: 1 GiB of ids.
inline constexpr Index max_trace_blocks = Index{1} << 28;

/// Whether block ids cover the last block of a prompt.
enum class LastBlock {
  unknown,  ///< all prompts so far were whole numbers of blocks
  full,     ///< ids name full blocks only: floor(input / block tokens) of them
  partial   ///< the last id names a block that may be partly filled: ceil(input / block tokens)
};

/// So many tokens that depend on a name and on their place behind it, and on nothing else.
struct NamedPart {
  std::string name;
  Pos tokens = 0;
};

/// One request, as the trace describes it.
struct TraceRequest {
  Index line = 0;                     ///< where it stands: its line, or its number in sessions; from 1
  Nanoseconds arrival = 0;            ///< 0 .. max_time; of azure since 1970
  Pos input_tokens = 0;               ///< 1 .. max_request_tokens
  Pos output_tokens = 0;              ///< 0 .. max_request_tokens
  std::vector<std::uint64_t> blocks;  ///< ids; of the formats that name blocks

  // Of the own format.
  std::vector<NamedPart> prefix;         ///< what the prompt begins with; the rest is the request's own
  std::vector<kvc::Token> tokens;        ///< the prompt itself, or empty
  std::optional<Pos> max_output_tokens;  ///< >= output_tokens
  int samples = 1;                       ///< answers wanted
  std::optional<Nanoseconds> abort_after;
  std::string tenant;
};

/// How a trace is read. The defaults suit the published traces.
struct ReadOptions {
  std::optional<TraceFormat> format;          ///< none: told by the first line
  std::optional<Pos> block_tokens;            ///< none: what the document says, or is usual for the format
  std::optional<TimeUnit> time_unit;          ///< none: seconds for sessions, else milliseconds. Not for azure
  Nanoseconds session_gap = 120'000'000'000;  ///< between the starts of the sessions of a folder or file
  bool in_order = false;                      ///< a request that arrives before the one above it is an error
  bool skip_bad = false;                      ///< count malformed lines and go on
  /// An `abort_after` at most: its sum with an arrival is a time too.
  Nanoseconds max_abort_after = max_time;
};

/// A request of a trace that was read as a whole.
struct Request {
  Nanoseconds arrival = 0;  ///< since the first one
  Pos input_tokens = 0;
  Pos output_tokens = 0;
  std::vector<std::int32_t>
      blocks;  ///< numbered from 0 in the order in which they appear; equal numbers, equal prefixes

  /// Tokens of the prompt in its first `count` blocks: the last block may be partly filled.
  [[nodiscard]] Pos tokens_in_first(std::size_t count, Pos tokens_per_block) const {
    const Index tokens = static_cast<Index>(count) * tokens_per_block;
    return tokens < input_tokens ? static_cast<Pos>(tokens) : input_tokens;
  }
};

/// A remark on the blocks of a trace that names them: a sentence where their size, or what ids say of the last one, is
/// not usual for the format; else empty.
[[nodiscard]] std::string note_on_blocks(TraceFormat format, Pos block_tokens, LastBlock last_block);

/// A trace that was read as a whole.
struct Trace {
  std::string name;  ///< the path it was read from
  TraceFormat format = TraceFormat::mooncake;
  Pos block_tokens = 0;
  LastBlock last_block = LastBlock::unknown;
  std::vector<Request> requests;  ///< in the order of the file, sessions in the order of arrival. At least one
  Index skipped_lines = 0;        ///< malformed lines that were left out because that was asked for
  std::string first_skipped;      ///< the problem of the first of them

  [[nodiscard]] Index blocks() const;
  [[nodiscard]] Index input_tokens() const;
};

/// Reads a trace as a whole. azure and own name no blocks: each prompt is cut into ceil(input / block tokens) of them,
/// those of azure different from all others, those of own equal where prefixes, tokens and tenant are.
/// Throws TraceError: with skip_bad too where the file itself cannot be read to its end, has no known format, or holds
/// no request. O(file + blocks).
[[nodiscard]] Trace read_trace(const TraceInput& input, const ReadOptions& options = {});
[[nodiscard]] Trace read_trace(const std::string& path, const ReadOptions& options = {});

}  // namespace kvc_bench
