// The one reader of traces: requests of any format, one after another.
#pragma once

#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "line_reader.hpp"
#include "parse.hpp"
#include "trace.hpp"

namespace kvc_bench {

/// The sessions of an input, which are parsed as a whole, and what a reader says of them.
struct ParsedSessions {
  std::vector<TraceRequest> requests;  ///< of all sessions, in the order of arrival
  std::optional<LineParser> parser;
  Index skipped_lines = 0;
  std::string first_skipped;
};
/// Keeps the sessions that a reader has parsed, for the readers of the same input with the same options that follow.
/// One thread at a time uses it.
struct SessionCache {
  std::shared_ptr<const ParsedSessions> sessions;
};

/// Requests in the order of the file, without keeping them. Sessions are read as a whole and come in the order of
/// arrival: session k, by name in a folder, starts at k * session_gap. Lines may end with CR LF, the last one need not
/// end, and blank lines are skipped.
class TraceReader {
 public:
  /// `cache` may be null. Throws TraceError if the input cannot be opened.
  TraceReader(TraceInput input, const ReadOptions& options, std::shared_ptr<SessionCache> cache = nullptr);

  /// The next request; none at the end. Throws TraceError: for a malformed line, unless skip_bad, and where the file
  /// cannot be read to its end, has no known format, or holds no request.
  [[nodiscard]] std::optional<TraceRequest> next();
  /// Begins with the first request again.
  void rewind();

  // Known once `next` was called.
  [[nodiscard]] TraceFormat format() const noexcept { return parser_ ? parser_->format() : TraceFormat::mooncake; }
  [[nodiscard]] Pos block_tokens() const noexcept { return parser_ ? parser_->block_tokens() : 0; }
  [[nodiscard]] LastBlock last_block() const noexcept { return parser_ ? parser_->last_block() : LastBlock::unknown; }

  [[nodiscard]] Index skipped_lines() const noexcept { return skipped_lines_; }
  /// The problem of the first skipped line.
  [[nodiscard]] const std::string& first_skipped() const noexcept { return first_skipped_; }

 private:
  [[nodiscard]] std::optional<TraceRequest> next_line();
  /// Finds out the format from the first line that is not blank, and reads sessions as a whole.
  void begin();
  /// Moves to the next line that is not blank.
  bool next_text();
  void read_folder();
  void read_sessions_of_file(bool of_many_lines);
  void keep(std::vector<TraceRequest> sessions);
  [[nodiscard]] LinePlace place() const { return {input_.name(), lines_->number()}; }
  void skip(const TraceError& error);

  TraceInput input_;
  ReadOptions options_;
  std::optional<LineReader> lines_;
  std::optional<LineParser> parser_;
  bool begun_ = false;
  bool has_line_ = false;  // begin() left a line to parse
  Index read_ = 0;         // requests since the beginning
  Nanoseconds last_arrival_ = 0;
  Index skipped_lines_ = 0;
  std::string first_skipped_;
  std::shared_ptr<SessionCache> cache_;
  std::shared_ptr<const ParsedSessions> sessions_;  // null for the other formats
};

}  // namespace kvc_bench
