#include "line_reader.hpp"

#include <cerrno>
#include <cstring>
#include <filesystem>

#include "trace.hpp"

namespace kvc_bench {

LineReader::LineReader(const std::string& path) : path_(path) {
  std::error_code unknown;
  if (std::filesystem::is_directory(path, unknown)) {
    throw TraceError(path, 0, "", "is a directory, must be a file");
  }
  errno = 0;
  file_.reset(gzopen(path.c_str(), "rb"));
  if (file_ == nullptr) {
    throw TraceError(path, 0, "", std::string("cannot be opened: ") + std::strerror(errno == 0 ? ENOMEM : errno));
  }
}

bool LineReader::next() {
  std::size_t searched = begin_;
  std::size_t end = 0;
  while ((end = buffer_.find('\n', searched)) == std::string::npos) {
    searched = buffer_.size() - begin_;
    if (searched > max_line_bytes) {
      throw TraceError(path_, number_ + 1, "", "is longer than " + std::to_string(max_line_bytes) + " bytes");
    }
    const bool more = read_more();  // which moves the buffer's rest to its beginning
    if (!more) {
      if (buffer_.size() == begin_) {
        return false;
      }
      end = buffer_.size();
      break;
    }
  }
  line_ = std::string_view(buffer_).substr(begin_, end - begin_);
  begin_ = end < buffer_.size() ? end + 1 : end;
  ++number_;
  if (line_.ends_with('\r')) {
    line_.remove_suffix(1);
  }
  return true;
}

bool LineReader::read_more() {
  constexpr std::size_t piece = std::size_t{1} << 18;
  buffer_.erase(0, begin_);
  begin_ = 0;
  const std::size_t had = buffer_.size();
  buffer_.resize(had + piece);
  const int got = gzread(file_.get(), buffer_.data() + had, static_cast<unsigned>(piece));
  buffer_.resize(had + static_cast<std::size_t>(got > 0 ? got : 0));
  // A gzip stream that ends too early is no error to gzread, which hands out what there is.
  int error = Z_OK;
  const char* what = gzerror(file_.get(), &error);
  if (got > 0 && error == Z_BUF_ERROR) {
    return true;  // the lines before the break can still be read; the next call reports it
  }
  if (error == Z_BUF_ERROR) {
    throw TraceError(path_, number_ + 1, "", "the compressed data end in the middle: the file is truncated");
  }
  if (got < 0) {
    throw TraceError(path_, number_ + 1, "",
                     std::string("cannot be read: ") + (error == Z_ERRNO ? std::strerror(errno) : what));
  }
  return got > 0;
}

}  // namespace kvc_bench
