// One request from one line, and all requests of a session from its document.
#pragma once

#include <functional>
#include <string_view>
#include <vector>

#include "json_fields.hpp"
#include "trace.hpp"

namespace kvc_bench {

inline constexpr std::string_view azure_header = "TIMESTAMP,ContextTokens,GeneratedTokens";

/// Whether these are the columns of the header, with or without spaces around them.
[[nodiscard]] bool is_azure_header(std::string_view line);

/// The format whose first line this could be. Throws TraceError, which names all formats.
[[nodiscard]] TraceFormat detect_format(std::string_view first_line, const LinePlace& place = {});

/// The requests of one session.
struct Session {
  std::vector<TraceRequest> requests;  ///< in the order of the document; `arrival` counts from the start of the session
  bool shared_ids = false;             ///< equal ids of other sessions name the same blocks
};

/// Reads requests of one format, one line after another, and keeps what earlier lines have shown of the last block.
class LineParser {
 public:
  /// Throws TraceError, with this file, for options that have no meaning for the format.
  LineParser(TraceFormat format, const ReadOptions& options, std::string_view file = "line");

  /// A line of any format but session, without its line end. Throws TraceError, and then changes nothing.
  /// O(line length + blocks).
  [[nodiscard]] TraceRequest parse(std::string_view line, const LinePlace& place = {});

  /// A session from its document. `bad` is called with the error of a malformed request, which is left out; where it is
  /// empty, and for a malformed document, throws TraceError. O(document + blocks).
  [[nodiscard]] Session parse_session(std::string_view document, const LinePlace& place = {},
                                      const std::function<void(const TraceError&)>& bad = {});

  [[nodiscard]] TraceFormat format() const noexcept { return format_; }
  [[nodiscard]] Pos block_tokens() const noexcept { return block_tokens_; }
  [[nodiscard]] LastBlock last_block() const noexcept { return last_block_; }

 private:
  [[nodiscard]] Nanoseconds time(const Fields& field, Nanoseconds most = max_time) const;
  [[nodiscard]] TraceRequest lengths(const Fields& line) const;
  [[nodiscard]] std::vector<std::uint64_t> ids(const Fields& list, Pos input, std::string_view input_field);
  [[nodiscard]] std::vector<std::uint64_t> runs(const Fields& list, Pos input);
  void check_count(const Fields& list, Index count, std::string_view unit, Pos input, std::string_view input_field);
  [[nodiscard]] TraceRequest own(const Fields& line) const;
  void add_session(const Fields& requests, Nanoseconds start, int depth, const LinePlace& place,
                   const std::function<void(const TraceError&)>& bad, Session& session);

  TraceFormat format_;
  TimeUnit unit_;
  Pos block_tokens_;
  bool block_tokens_given_;
  Nanoseconds max_abort_after_;
  LastBlock last_block_ = LastBlock::unknown;
};

}  // namespace kvc_bench
