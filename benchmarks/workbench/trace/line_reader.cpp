#include "line_reader.hpp"

#include "trace_error.hpp"

namespace kvc_bench {

bool LineReader::next() {
  std::size_t searched = begin_;
  std::size_t end = 0;
  while ((end = buffer_.find('\n', searched)) == std::string::npos) {
    searched = buffer_.size() - begin_;
    if (searched > max_line_bytes) {
      throw TraceError(name_, number_ + 1, "", "is longer than " + std::to_string(max_line_bytes) + " bytes");
    }
    buffer_.erase(0, begin_);
    begin_ = 0;
    if (!bytes_.append_to(buffer_)) {
      if (buffer_.empty()) {
        return false;
      }
      end = buffer_.size();
      break;
    }
  }
  line_ = std::string_view(buffer_).substr(begin_, end - begin_);
  begin_ = end < buffer_.size() ? end + 1 : end;
  if (++number_ == 1 && line_.starts_with("\xEF\xBB\xBF")) {
    line_.remove_prefix(3);
  }
  if (line_.ends_with('\r')) {
    line_.remove_suffix(1);
  }
  return true;
}

std::optional<std::string> LineReader::rest() {
  std::string text(line_);
  while (next()) {
    if (text.size() + line_.size() >= max_document_bytes) {
      return std::nullopt;
    }
    text.append("\n").append(line_);
  }
  return text;
}

}  // namespace kvc_bench
