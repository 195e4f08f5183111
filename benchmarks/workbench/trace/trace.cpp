#include "trace.hpp"

#include <algorithm>
#include <limits>
#include <unordered_map>

#include "trace_reader.hpp"

namespace kvc_bench {
namespace {

std::string message(std::string_view file, Index line, std::string_view field, std::string_view problem) {
  std::string text(file);
  if (line > 0) {
    text.append(":").append(std::to_string(line));
  }
  text.append(": ");
  if (!field.empty()) {
    text.append("\"").append(field).append("\": ");
  }
  return text.append(problem);
}

/// Gives blocks numbers from 0 on, equal ones the same number.
class BlockNumbers {
 public:
  explicit BlockNumbers(Pos block_tokens) : block_tokens_(block_tokens) {}

  [[nodiscard]] std::vector<std::int32_t> of(const TraceRequest& request, TraceFormat format) {
    std::vector<std::int32_t> numbers;
    if (names_blocks(format)) {
      numbers.reserve(request.blocks.size());
      for (const std::uint64_t id : request.blocks) {
        numbers.push_back(number_of(ids_, id));
      }
    } else if (format == TraceFormat::azure) {
      numbers.resize(static_cast<std::size_t>(kvc::ceil_div(request.input_tokens, block_tokens_)));
      std::ranges::generate(numbers, [&] { return next_++; });
    } else {
      numbers = of_own(request);
    }
    return numbers;
  }

 private:
  template <class Map>
  [[nodiscard]] std::int32_t number_of(Map& known, const typename Map::key_type& key) {
    const auto [number, is_new] = known.try_emplace(key, next_);
    next_ += is_new ? 1 : 0;
    return number->second;
  }

  /// With its length in front, so that no two lists of texts give the same key.
  static void append(std::string& key, const std::string& text) { key += std::to_string(text.size()) + ':' + text; }

  /// A block is the same where the block before it is, and the parts of the prompt that lie in it.
  [[nodiscard]] std::vector<std::int32_t> of_own(const TraceRequest& request) {
    std::vector<NamedPart> parts;
    for (const NamedPart& part : request.prefix) {
      parts.push_back({"p" + part.name, part.tokens});
    }
    Pos left = request.input_tokens;
    for (const NamedPart& part : parts) {
      left -= part.tokens;
    }
    if (request.tokens.empty() && left > 0) {
      parts.push_back({"l" + std::to_string(request.line), left});
    }
    std::vector<std::int32_t> numbers;
    std::size_t part = 0;
    Pos in_part = 0;
    for (Pos begin = 0; begin < request.input_tokens; begin += block_tokens_) {
      const Pos end = std::min(request.input_tokens, begin + block_tokens_);
      std::string key;
      append(key, numbers.empty() ? "t" + request.tenant : std::to_string(numbers.back()));
      if (!request.tokens.empty()) {
        for (Pos i = begin; i < end; ++i) {
          key += std::to_string(request.tokens[static_cast<std::size_t>(i)]) + ' ';
        }
      }
      for (Pos at = begin; request.tokens.empty() && at < end;) {
        const Pos count = std::min(end - at, parts[part].tokens - in_part);
        append(key, parts[part].name);
        key += std::to_string(in_part) + ' ' + std::to_string(count) + ' ';
        at += count;
        in_part += count;
        if (in_part == parts[part].tokens) {
          ++part;
          in_part = 0;
        }
      }
      numbers.push_back(number_of(own_, key));
    }
    return numbers;
  }

  Pos block_tokens_;
  std::int32_t next_ = 0;  // fewer than max_trace_blocks
  std::unordered_map<std::uint64_t, std::int32_t> ids_;
  std::unordered_map<std::string, std::int32_t> own_;
};

Index block_count(const TraceRequest& request, TraceFormat format, Pos block_tokens) {
  return names_blocks(format) ? std::ssize(request.blocks) : Index{kvc::ceil_div(request.input_tokens, block_tokens)};
}

}  // namespace

std::string_view name(TraceFormat format) {
  switch (format) {
    case TraceFormat::mooncake:
      return "mooncake";
    case TraceFormat::weka:
      return "weka";
    case TraceFormat::session:
      return "session";
    case TraceFormat::azure:
      return "azure";
    case TraceFormat::own:
      return "own";
  }
  return "";
}

std::string_view arrival_field(TraceFormat format) {
  return format == TraceFormat::azure ? "TIMESTAMP" : format == TraceFormat::session ? "t" : "timestamp";
}

std::string format_names() {
  std::string all;
  for (const TraceFormat format : all_formats) {
    all.append(all.empty() ? "" : ", ").append(name(format));
  }
  return all;
}

std::string_view name(TimeUnit unit) {
  switch (unit) {
    case TimeUnit::seconds:
      return "seconds";
    case TimeUnit::milliseconds:
      return "milliseconds";
    case TimeUnit::microseconds:
      return "microseconds";
  }
  return "";
}

Pos usual_block_tokens(TraceFormat format) {
  switch (format) {
    case TraceFormat::mooncake:
      return 512;
    case TraceFormat::weka:
    case TraceFormat::session:
      return 64;
    case TraceFormat::azure:
    case TraceFormat::own:
      return 16;
  }
  return 0;
}

std::string note_on_blocks(TraceFormat format, Pos block_tokens, LastBlock last_block) {
  const LastBlock usual = format == TraceFormat::mooncake ? LastBlock::partial : LastBlock::full;
  if (!names_blocks(format) ||
      (block_tokens == usual_block_tokens(format) && (last_block == usual || last_block == LastBlock::unknown))) {
    return "";
  }
  return "Blocks of " + std::to_string(block_tokens) + " tokens; " +
         (last_block == LastBlock::full      ? "the trace names full blocks only."
          : last_block == LastBlock::partial ? "the last block of a prompt may be partly filled."
                                             : "all prompts are whole numbers of blocks.");
}

Index Trace::blocks() const {
  Index sum = 0;
  for (const Request& request : requests) {
    sum += std::ssize(request.blocks);
  }
  return sum;
}

Index Trace::input_tokens() const {
  Index sum = 0;
  for (const Request& request : requests) {
    sum += request.input_tokens;
  }
  return sum;
}

TraceError::TraceError(std::string_view file, Index line, std::string_view field, std::string_view problem)
    : std::runtime_error(message(file, line, field, problem)), file_(file), line_(line), field_(field) {}

Trace read_trace(const std::string& path, const ReadOptions& options) {
  return read_trace(TraceInput::open(path), options);
}

Trace read_trace(const TraceInput& input, const ReadOptions& options) {
  TraceReader reader(input, options);
  Trace trace;
  trace.name = input.name();
  std::optional<BlockNumbers> numbers;
  Index blocks = 0;
  while (const std::optional<TraceRequest> request = reader.next()) {
    if (!numbers) {
      numbers.emplace(reader.block_tokens());
    }
    blocks += block_count(*request, reader.format(), reader.block_tokens());
    if (blocks > max_trace_blocks) {
      throw TraceError(input.name(), request->line, "",
                       "is one line too many: more than " + std::to_string(max_trace_blocks) + " blocks");
    }
    trace.requests.push_back(
        {request->arrival, request->input_tokens, request->output_tokens, numbers->of(*request, reader.format())});
  }
  Nanoseconds first = std::numeric_limits<Nanoseconds>::max();
  for (const Request& request : trace.requests) {
    first = std::min(first, request.arrival);
  }
  for (Request& request : trace.requests) {
    request.arrival -= first;
  }
  trace.format = reader.format();
  trace.block_tokens = reader.block_tokens();
  trace.last_block = reader.last_block();
  trace.skipped_lines = reader.skipped_lines();
  trace.first_skipped = reader.first_skipped();
  return trace;
}

}  // namespace kvc_bench
