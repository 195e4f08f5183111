// Requests of a file: one of the published traces (see trace.hpp), or one's own, read as they are wanted.
//
//   mooncake, weka   prompts are made of the blocks that the trace names, so that equal blocks are equal tokens
//   azure            lengths only: every prompt is its own
//   own              JSON lines:
//     timestamp         milliseconds, any number >= 0; not before that of the line above
//     input_length      tokens of the prompt; not needed where "tokens" is given
//     output_length     tokens of the answer
//     max_output_length optional: what the client allows
//     prefix            optional: [[name, tokens], ...], what the prompt begins with. Equal names are equal tokens.
//     tokens            optional: the prompt itself, as ids
//     samples           optional: answers wanted; 1
//     abort_after       optional: milliseconds after which the client goes away
//     tenant            optional: prefixes are shared within a tenant
//
// Times count from the first request on. An answer of no token counts as one of one token, which a prefill gives in any
// case.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "request.hpp"

namespace serving {

enum class TrafficFormat { detect, mooncake, weka, azure, own };

struct TraceOptions {
  TrafficFormat format = TrafficFormat::detect;
  Index requests = 0;     ///< 0: those of the file. More: it is gone through again, with other tokens
  double load = 1;        ///< how many times as fast as in the file requests come
  Pos max_output = 2048;  ///< what clients allow, where the file does not say it and the answer is not longer
};

/// Errors are kvc_bench::TraceErrors that name file, line and field.
class TraceSource final : public Source {
 public:
  TraceSource(std::string path, const TraceOptions& options);
  ~TraceSource() override;
  [[nodiscard]] std::optional<Request> next() override;
  [[nodiscard]] const std::vector<std::string>& classes() const override { return names_; }
  [[nodiscard]] TrafficFormat format() const noexcept { return format_; }

 private:
  class Lines;
  [[nodiscard]] std::optional<Request> next_of_file();
  void open();

  std::string path_;
  TraceOptions options_;
  TrafficFormat format_ = TrafficFormat::detect;
  std::vector<std::string> names_;
  std::unique_ptr<Lines> lines_;
  Index made_ = 0;
  std::uint64_t round_ = 0;
  Time round_begin_ = 0;  // of the file's first request in this round, in the time of the file
  Time last_ = 0;         // arrival of the request before, in the time of the file
  std::optional<Time> origin_;
  Index in_round_ = 0;
};

}  // namespace serving
