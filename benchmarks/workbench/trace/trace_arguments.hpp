// The command-line options that say how a trace is read.
#pragma once

#include <CLI/CLI.hpp>
#include <charconv>
#include <cmath>
#include <string>
#include <utility>

#include "arguments.hpp"
#include "trace.hpp"

namespace kvc_bench {

/// The formats, for the footer of --help.
inline constexpr const char* formats_help =
    "Formats of traces, plain or gzip-compressed; auto tells them apart by the first line:\n"
    "  mooncake  JSON lines: timestamp, input_length, output_length, hash_ids; blocks of 512 tokens\n"
    "  weka      JSON lines: timestamp, input_length, output_length, hash_runs [[first id, count], ...]; blocks of 64\n"
    "  session   one JSON document per session of the KV cache tester, or a folder of them: requests [{t, in, out,\n"
    "            hash_ids}, ...]; t in seconds; blocks of block_size or 64\n"
    "  azure     CSV with the header TIMESTAMP,ContextTokens,GeneratedTokens\n"
    "  own       JSON lines: timestamp, input_length, output_length, and prefix, tokens, max_output_length, samples,\n"
    "            abort_after, tenant\n"
    "Times are milliseconds, fractions allowed, up to 146 years; prompts have 1 to 16777216 tokens, answers 0 to\n"
    "16777216. Whether ids name full blocks only or a partly filled last one too is recognised from the data.\n";

/// --format, --block-tokens, --time-unit and --session-gap.
class TraceArguments {
 public:
  /// Where `trace` is given, the options need it.
  void add_to(CLI::App& app, CLI::Option* trace) {
    app.add_option("--format", format_, "Format of the trace: auto (by the first line), " + format_names())
        ->type_name("NAME")
        ->capture_default_str()
        ->needs(trace);
    app.add_option("--block-tokens", block_tokens_,
                   "Tokens of a block of the trace, 1 to 16777216 [the usual number of its format, see below]")
        ->type_name("TOKENS")
        ->needs(trace);
    app.add_option("--time-unit", unit_, "Unit of the times in the trace: s, ms or us [s for session, else ms]")
        ->type_name("UNIT")
        ->needs(trace);
    app.add_option("--session-gap", gap_,
                   "Seconds between the starts of the sessions of a folder or file, 0 to 1e9 [120]")
        ->type_name("SECONDS")
        ->needs(trace);
  }

  /// The options given. Throws CLI::ValidationError.
  [[nodiscard]] ReadOptions options() const {
    ReadOptions options;
    if (format_ != "auto") {
      for (const TraceFormat format : all_formats) {
        if (name(format) == format_) {
          options.format = format;
        }
      }
      if (!options.format) {
        reject("--format", format_, "one of auto, " + format_names());
      }
    }
    if (!block_tokens_.empty()) {
      options.block_tokens = static_cast<Pos>(whole("--block-tokens", block_tokens_, 1, max_request_tokens));
    }
    if (!unit_.empty()) {
      options.time_unit =
          one_of<TimeUnit>("--time-unit", unit_,
                           {{"s", TimeUnit::seconds}, {"ms", TimeUnit::milliseconds}, {"us", TimeUnit::microseconds}});
    }
    if (!gap_.empty()) {
      const double seconds = number("--session-gap", gap_, 0, 1e9);
      options.session_gap = std::llround(seconds * 1e9);
    }
    return options;
  }

 private:
  std::string format_ = "auto";
  std::string block_tokens_;
  std::string unit_;
  std::string gap_;
};

}  // namespace kvc_bench
