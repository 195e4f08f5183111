#include "trace_input.hpp"

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <filesystem>
#include <new>
#include <utility>

#include "trace_error.hpp"

namespace kvc_bench {
namespace {

constexpr std::size_t chunk = std::size_t{1} << 18;
constexpr int gzip_window = 15 + 16;  // zlib: the largest window, with the header and trailer of gzip

std::string reason(int error) { return std::strerror(error == 0 ? EIO : error); }

std::FILE* open_file(const std::string& path) {
  errno = 0;
  std::FILE* file = std::fopen(path.c_str(), "rb");
  if (file == nullptr) {
    throw TraceError(path, 0, "", "cannot be opened: " + reason(errno));
  }
  return file;
}

}  // namespace

TraceInput TraceInput::open(const std::string& path) {
  TraceInput input;
  input.name_ = path;
  const std::unique_ptr<std::FILE, int (*)(std::FILE*)> file(open_file(path), &std::fclose);
  std::error_code unknown;
  if (std::filesystem::is_regular_file(path, unknown) || std::filesystem::is_directory(path, unknown)) {
    return input;
  }
  auto kept = std::make_shared<std::string>();
  for (std::size_t got = chunk; got > 0;) {
    const std::size_t had = kept->size();
    kept->resize(had + chunk);
    errno = 0;
    got = std::fread(kept->data() + had, 1, chunk, file.get());
    if (got == 0 && std::ferror(file.get()) != 0) {
      throw TraceError(path, 0, "", "cannot be read: " + reason(errno));
    }
    kept->resize(had + got);
    if (kept->size() > max_kept_bytes) {
      throw TraceError(path, 0, "",
                       "is not a regular file and has more than " + std::to_string(max_kept_bytes) +
                           " bytes: save it as a file first");
    }
  }
  input.bytes_ = std::move(kept);
  return input;
}

TraceInput TraceInput::memory(std::string name, std::string bytes) {
  TraceInput input;
  input.name_ = std::move(name);
  input.bytes_ = std::make_shared<const std::string>(std::move(bytes));
  return input;
}

bool TraceInput::is_folder() const {
  std::error_code unknown;
  return bytes_ == nullptr && std::filesystem::is_directory(name_, unknown);
}

ByteReader::ByteReader(const TraceInput& input) : input_(input) {
  if (input_.is_folder()) {
    throw TraceError(input_.name(), 0, "", "is a folder, must be a file");
  }
  if (input_.bytes() == nullptr) {
    file_.reset(open_file(input_.name()));
  }
  raw_.resize(chunk);
  // The two bytes that every gzip file begins with, and no text.
  compressed_ = refill() && left() >= 2 && raw_[0] == '\x1f' && raw_[1] == '\x8b';
  if (compressed_) {
    if (inflateInit2(&inflater_, gzip_window) != Z_OK) {
      throw std::bad_alloc();
    }
    in_member_ = true;
  }
}

ByteReader::~ByteReader() {
  if (compressed_) {
    inflateEnd(&inflater_);
  }
}

void ByteReader::fail(const std::string& problem) const {
  throw TraceError(input_.name(), 0, "", "byte " + std::to_string(offset()) + ": " + problem);
}

bool ByteReader::refill() {
  if (left() > 0) {
    return true;
  }
  raw_begin_ += static_cast<kvc::Index>(raw_size_);
  raw_used_ = 0;
  if (file_ == nullptr) {
    const std::string& all = *input_.bytes();
    raw_size_ = std::min(chunk, all.size() - memory_used_);
    std::memcpy(raw_.data(), all.data() + memory_used_, raw_size_);
    memory_used_ += raw_size_;
  } else {
    errno = 0;
    raw_size_ = std::fread(raw_.data(), 1, raw_.size(), file_.get());
    if (raw_size_ == 0 && std::ferror(file_.get()) != 0) {
      throw TraceError(input_.name(), 0, "", "cannot be read: " + reason(errno));
    }
  }
  return raw_size_ > 0;
}

bool ByteReader::append_to(std::string& out) {
  if (!compressed_) {
    if (!refill()) {
      return false;
    }
    out.append(raw_.data() + raw_used_, left());
    raw_used_ = raw_size_;
    return true;
  }
  const std::size_t had = out.size();
  while (out.size() == had) {  // a member may be empty
    if (!in_member_ && !next_member()) {
      return false;
    }
    in_member_ = inflate_to(out);
  }
  return true;
}

bool ByteReader::next_member() {
  while (refill() && raw_[raw_used_] == '\0') {
    ++raw_used_;
  }
  if (left() == 0) {
    return false;
  }
  if (raw_[raw_used_] != '\x1f') {
    fail("neither zeros nor another gzip member follow the compressed data");
  }
  if (inflateReset2(&inflater_, gzip_window) != Z_OK) {
    throw std::bad_alloc();
  }
  return true;
}

/// Inflates a part; returns whether the member continues.
bool ByteReader::inflate_to(std::string& out) {
  const std::size_t had = out.size();
  out.resize(had + chunk);
  inflater_.next_out = reinterpret_cast<Bytef*>(out.data() + had);
  inflater_.avail_out = static_cast<uInt>(chunk);
  int status = Z_OK;
  bool ended = false;
  while (status == Z_OK && inflater_.avail_out > 0 && !ended) {
    ended = !refill();
    inflater_.next_in = reinterpret_cast<Bytef*>(raw_.data() + raw_used_);
    inflater_.avail_in = static_cast<uInt>(left());
    status = inflate(&inflater_, Z_NO_FLUSH);
    raw_used_ = raw_size_ - inflater_.avail_in;
    status = status == Z_BUF_ERROR ? Z_OK : status;  // it only wants more input, or more room
  }
  out.resize(had + chunk - inflater_.avail_out);
  // The lines before a break can still be read: what was inflated goes out first, and the next call fails.
  if (status == Z_STREAM_END || out.size() > had) {
    return status != Z_STREAM_END;
  }
  if (status == Z_MEM_ERROR) {
    throw std::bad_alloc();
  }
  if (status != Z_OK) {
    fail(std::string("the compressed data are damaged: ") +
         (inflater_.msg != nullptr ? inflater_.msg : "zlib error " + std::to_string(status)));
  }
  fail("the compressed data end in the middle of a gzip member: the file is truncated");
}

}  // namespace kvc_bench
