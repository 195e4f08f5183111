#include "trace_reader.hpp"

#include <algorithm>
#include <filesystem>
#include <functional>
#include <unordered_map>
#include <utility>

namespace kvc_bench {
namespace {

bool blank(std::string_view line) { return line.find_first_not_of(" \t\r") == std::string_view::npos; }

/// Whether a line is one JSON value, and not the beginning of one of several lines.
bool is_whole_json(std::string_view line) {
  try {
    (void)parse_json(line);
    return true;
  } catch (const FieldError&) {
    return false;
  }
}

/// Lays sessions beside each other in time, and numbers their blocks: ids of a session are its own unless it says that
/// they are shared.
class SessionMerger {
 public:
  explicit SessionMerger(Nanoseconds gap) : gap_(gap) {}

  /// Throws TraceError if the session would begin or end after max_time.
  void add(Session session, const LinePlace& place) {
    std::unordered_map<std::uint64_t, std::uint64_t> own;
    auto& numbers = session.shared_ids ? shared_ : own;
    for (TraceRequest& request : session.requests) {
      if (gap_ > 0 && count_ > (max_time - request.arrival) / gap_) {
        throw TraceError(place.file, place.line, "",
                         "is session " + std::to_string(count_ + 1) + ", which would end after " +
                             std::to_string(max_time / 1'000'000'000) + " seconds: a smaller gap between sessions");
      }
      request.arrival += count_ * gap_;
      for (std::uint64_t& id : request.blocks) {
        const auto [number, is_new] = numbers.try_emplace(id, blocks_);
        blocks_ += is_new ? 1U : 0U;
        id = number->second;
      }
      requests_.push_back(std::move(request));
    }
    ++count_;
  }

  [[nodiscard]] std::vector<TraceRequest> finish() {
    std::ranges::stable_sort(requests_, {}, &TraceRequest::arrival);
    for (std::size_t i = 0; i < requests_.size(); ++i) {
      requests_[i].line = static_cast<Index>(i) + 1;
    }
    return std::move(requests_);
  }

 private:
  Nanoseconds gap_;
  Index count_ = 0;
  std::vector<TraceRequest> requests_;
  std::unordered_map<std::uint64_t, std::uint64_t> shared_;
  std::uint64_t blocks_ = 0;
};

}  // namespace

TraceReader::TraceReader(TraceInput input, const ReadOptions& options, std::shared_ptr<SessionCache> cache)
    : input_(std::move(input)), options_(options), cache_(std::move(cache)) {
  if (!input_.is_folder()) {
    lines_.emplace(input_);
  } else if (options_.format && *options_.format != TraceFormat::session) {
    throw TraceError(
        input_.name(), 0, "",
        "is a folder, which holds sessions and nothing of the format " + std::string(name(*options_.format)));
  }
}

std::optional<TraceRequest> TraceReader::next() {
  if (!std::exchange(begun_, true)) {
    begin();
  }
  std::optional<TraceRequest> request;
  if (!sessions_) {
    request = next_line();
  } else if (static_cast<std::size_t>(read_) < sessions_->requests.size()) {
    request = sessions_->requests[static_cast<std::size_t>(read_)];
  }
  if (!request && read_ == 0) {
    throw TraceError(
        input_.name(), 0, "",
        skipped_lines_ == 0 ? "holds no request" : "holds no good request; the first bad line: " + first_skipped_);
  }
  read_ += request ? 1 : 0;
  return request;
}

void TraceReader::rewind() {
  read_ = 0;
  if (!sessions_) {
    lines_.emplace(input_);
    begun_ = false;
    has_line_ = false;
    skipped_lines_ = 0;
    first_skipped_.clear();
  }
}

bool TraceReader::next_text() {
  while (lines_->next()) {
    if (!blank(lines_->line())) {
      return true;
    }
  }
  return false;
}

std::optional<TraceRequest> TraceReader::next_line() {
  while (std::exchange(has_line_, false) || next_text()) {
    try {
      TraceRequest request = parser_->parse(lines_->line(), place());
      if (options_.in_order && read_ > 0 && request.arrival < last_arrival_) {
        throw TraceError(input_.name(), lines_->number(), arrival_field(parser_->format()),
                         "is " + std::to_string((last_arrival_ - request.arrival + 999) / 1000) +
                             " us before the request of the line above; requests must be in the order of arrival");
      }
      last_arrival_ = request.arrival;
      return request;
    } catch (const TraceError& error) {
      skip(error);
    }
  }
  return std::nullopt;
}

void TraceReader::skip(const TraceError& error) {
  if (!options_.skip_bad) {
    throw error;
  }
  if (skipped_lines_++ == 0) {
    first_skipped_ = error.what();
  }
}

void TraceReader::begin() {
  if (cache_ != nullptr && cache_->sessions != nullptr) {
    sessions_ = cache_->sessions;
    parser_ = sessions_->parser;
    skipped_lines_ = sessions_->skipped_lines;
    first_skipped_ = sessions_->first_skipped;
    return;
  }
  if (input_.is_folder()) {
    read_folder();
    return;
  }
  has_line_ = next_text();
  if (!has_line_) {
    return;
  }
  const std::string_view first = lines_->line();
  const bool begins_document = first.find_first_not_of(" \t") == first.find('{') && !is_whole_json(first);
  const TraceFormat format = options_.format   ? *options_.format
                             : begins_document ? TraceFormat::session
                                               : detect_format(first, place());
  if (format == TraceFormat::azure) {
    if (!is_azure_header(first)) {
      throw TraceError(input_.name(), lines_->number(), "", "must be the header " + std::string(azure_header));
    }
    has_line_ = false;
  }
  if (!parser_) {
    parser_.emplace(format, options_, input_.name());
  }
  if (format == TraceFormat::session) {
    read_sessions_of_file(begins_document);
  }
}

void TraceReader::keep(std::vector<TraceRequest> sessions) {
  sessions_ = std::make_shared<const ParsedSessions>(
      ParsedSessions{std::move(sessions), parser_, skipped_lines_, first_skipped_});
  if (cache_ != nullptr) {
    cache_->sessions = sessions_;
  }
}

/// One session per line, or one over all lines.
void TraceReader::read_sessions_of_file(bool of_many_lines) {
  SessionMerger merger(options_.session_gap);
  const std::function<void(const TraceError&)> bad = [&](const TraceError& error) { skip(error); };
  const auto add = [&](std::string_view document, const LinePlace& at) {
    try {
      merger.add(parser_->parse_session(document, at, options_.skip_bad ? bad : nullptr), at);
    } catch (const TraceError& error) {
      skip(error);
    }
  };
  if (of_many_lines) {
    const LinePlace first_line = place();
    const std::optional<std::string> document = lines_->rest();
    if (!document) {
      throw TraceError(input_.name(), 0, "",
                       "is a document of more than " + std::to_string(max_document_bytes) + " bytes");
    }
    if (!options_.format && !is_whole_json(*document)) {
      (void)detect_format(document->substr(0, document->find('\n')), first_line);  // the error of the first line
    }
    add(*document, {input_.name(), 0});
  } else {
    do {
      add(lines_->line(), place());
    } while (next_text());
  }
  keep(merger.finish());
}

void TraceReader::read_folder() {
  namespace fs = std::filesystem;
  std::vector<std::string> paths;
  for (const fs::directory_entry& entry : fs::directory_iterator(input_.name())) {
    const std::string path = entry.path().string();
    if (path.ends_with(".json") || path.ends_with(".json.gz")) {
      paths.push_back(path);
    }
  }
  if (paths.empty()) {
    throw TraceError(input_.name(), 0, "", "is a folder without a file *.json or *.json.gz, must hold sessions");
  }
  std::ranges::sort(paths);
  parser_.emplace(TraceFormat::session, options_, input_.name());
  SessionMerger merger(options_.session_gap);
  for (const std::string& path : paths) {
    const LinePlace at{path, 0};
    try {
      LineReader lines(TraceInput::open(path));
      (void)lines.next();
      const std::optional<std::string> document = lines.rest();
      if (!document) {
        throw TraceError(path, 0, "", "is a document of more than " + std::to_string(max_document_bytes) + " bytes");
      }
      const std::function<void(const TraceError&)> bad = [&](const TraceError& error) { skip(error); };
      merger.add(parser_->parse_session(*document, at, options_.skip_bad ? bad : nullptr), at);
    } catch (const TraceError& error) {
      skip(error);
    }
  }
  keep(merger.finish());
}

}  // namespace kvc_bench
