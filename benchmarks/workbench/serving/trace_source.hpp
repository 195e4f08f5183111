// Requests of a trace, read as they are wanted.
//
//   mooncake, weka, session  prompts are made of the blocks that the trace names, so that equal blocks are equal tokens
//   azure                    lengths only: every prompt is its own
//   own                      named prefixes are equal tokens, and so are prompts that are given as tokens
//
// Times count from the first request on. docs/serving.md describes the formats.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "request.hpp"
#include "trace_reader.hpp"

namespace serving {

/// How a trace becomes requests.
struct TraceOptions {
  kvc_bench::ReadOptions read;
  /// Sources of one trace share it, so that a folder of sessions is parsed once.
  std::shared_ptr<kvc_bench::SessionCache> sessions = std::make_shared<kvc_bench::SessionCache>();
  Index requests = 0;     ///< 0: those of the file. More: it is read again from its beginning, with other tokens
  double load = 1;        ///< how many times as fast as in the file requests come
  Pos max_output = 2048;  ///< what clients allow, where the file does not say it and the answer is not longer
};

/// Throws kvc_bench::TraceError, which names file, line and field: for what the reader rejects, a request before the
/// one above it, and an arrival that is later than max_arrival at this load.
class TraceSource final : public Source {
 public:
  TraceSource(const kvc_bench::TraceInput& input, const TraceOptions& options);
  [[nodiscard]] std::optional<Request> next() override;
  [[nodiscard]] const std::vector<std::string>& classes() const override { return names_; }
  [[nodiscard]] std::string note() const override {
    return kvc_bench::note_on_blocks(reader_.format(), reader_.block_tokens(), reader_.last_block());
  }
  /// Known once `next` was called.
  [[nodiscard]] kvc_bench::TraceFormat format() const noexcept { return reader_.format(); }

 private:
  /// Arrivals are in the time of the file.
  [[nodiscard]] std::optional<Request> next_of_file();
  [[nodiscard]] Request request_of(const kvc_bench::TraceRequest& from) const;

  kvc_bench::TraceInput input_;
  TraceOptions options_;
  std::vector<std::string> names_;
  kvc_bench::TraceReader reader_;
  Index made_ = 0;
  std::uint64_t round_ = 0;
  Time round_begin_ = 0;  // of the file's first request in this round, in the time of the file
  Time last_ = 0;         // arrival of the request before, in the time of the file
  std::optional<Time> origin_;
  Index in_round_ = 0;
  Index line_ = 0;  // of the request before
};

}  // namespace serving
