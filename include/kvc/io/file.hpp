// Files as sinks and sources, and the replacement of a file as a whole. POSIX.
//
// writev and readv gather from a pool and scatter into it, so the only copy is that of the system. A mapped file would
// not be faster, and truncating a file while it is mapped kills the process that reads it.
#pragma once

#include <fcntl.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <filesystem>
#include <optional>
#include <span>
#include <string>
#include <system_error>
#include <utility>
#include <vector>

#include "kvc/core/error.hpp"
#include "kvc/core/scope_guard.hpp"
#include "kvc/core/types.hpp"
#include "kvc/io/byte_spans.hpp"
#include "kvc/io/byte_stream.hpp"

namespace kvc {
inline namespace v0 {
namespace io {

namespace detail {

/// Throws std::system_error, which names the operation, the file and the system's reason.
[[noreturn]] KVC_COLD inline void throw_system(int error, const char* what, const std::string& path) {
  throw_error(
      std::system_error(error, std::generic_category(), kvc::detail::concat({"kvc: cannot ", what, " ", path})));
}

/// The word for a kind of file.
[[nodiscard]] inline const char* kind_of_file(mode_t mode) noexcept {
  return S_ISDIR(mode)    ? "a directory"
         : S_ISFIFO(mode) ? "a FIFO"
         : S_ISCHR(mode)  ? "a character device"
         : S_ISBLK(mode)  ? "a block device"
         : S_ISSOCK(mode) ? "a socket"
                          : "no regular file";
}

/// Owns an open file descriptor, or none.
class FileHandle {
 public:
  FileHandle() = default;
  explicit FileHandle(int fd) noexcept : fd_(fd) {}
  FileHandle(FileHandle&& other) noexcept : fd_(std::exchange(other.fd_, -1)) {}
  FileHandle& operator=(FileHandle&& other) noexcept {
    std::swap(fd_, other.fd_);
    return *this;
  }
  ~FileHandle() {
    if (fd_ >= 0) {
      (void)::close(fd_);
    }
  }
  [[nodiscard]] int get() const noexcept { return fd_; }
  explicit operator bool() const noexcept { return fd_ >= 0; }

 private:
  int fd_ = -1;
};

/// Calls again as long as a signal interrupts the call.
template <class F>
[[nodiscard]] auto without_interrupts(F&& call) noexcept {
  for (;;) {
    if (const auto result = call(); result >= 0 || errno != EINTR) {
      return result;
    }
  }
}

/// Passes spans to `call(iovec*, count)`, which is readv or writev, until all bytes are moved or a call moves none.
/// Returns the bytes moved, or -1 with errno set.
template <class Span, class F>
[[nodiscard]] std::int64_t move_bytes(std::span<const Span> spans, F&& call) {
  constexpr std::size_t most = 1024;  // IOV_MAX of every system that matters
  iovec list[most];
  std::int64_t done = 0;
  std::size_t from = 0;  // bytes of the first span that are done
  while (!spans.empty()) {
    const std::size_t count = std::min(most, spans.size());
    std::size_t wanted = 0;
    for (std::size_t i = 0; i < count; ++i) {
      const auto span = spans[i].subspan(i == 0 ? from : 0);
      list[i] = {const_cast<std::byte*>(static_cast<const std::byte*>(span.data())), span.size()};
      wanted += span.size();
    }
    const auto moved =
        wanted == 0 ? ssize_t{0} : without_interrupts([&] { return call(list, static_cast<int>(count)); });
    if (moved < 0) {
      return -1;
    }
    if (moved == 0 && wanted > 0) {
      break;
    }
    done += moved;
    std::size_t rest = static_cast<std::size_t>(moved);
    while (!spans.empty() && rest >= spans.front().size() - from) {
      rest -= spans.front().size() - from;
      from = 0;
      spans = spans.subspan(1);
    }
    from += rest;
  }
  return done;
}

}  // namespace detail

/// Writes to an open file descriptor, from its current position. Does not own it.
/// `write` throws std::system_error if the system does not take all bytes.
class FileSink final : public ByteSink {
 public:
  /// `path` stands for the file in messages.
  FileSink(int fd, std::string path) : fd_(fd), path_(std::move(path)) {}
  void write(std::span<const ConstByteSpan> spans) override {
    const std::int64_t done =
        detail::move_bytes(spans, [this](const iovec* list, int count) { return ::writev(fd_, list, count); });
    if (done != static_cast<std::int64_t>(total_bytes(spans))) {
      detail::throw_system(done < 0 ? errno : ENOSPC, "write", path_);
    }
  }

 private:
  int fd_;
  std::string path_;
};

/// Reads a file, a pipe or a device. `left` and `rewind` work for regular files only. Bytes appended to a file after it
/// was opened do not count as left.
class FileSource final : public ByteSource {
 public:
  /// Opens the file. Throws FormatError if it does not exist, is a directory, or cannot be read.
  explicit FileSource(const std::filesystem::path& path) : ByteSource(path.string()) {
    file_ = detail::FileHandle(detail::without_interrupts([&] { return ::open(path.c_str(), O_RDONLY | O_CLOEXEC); }));
    struct stat status{};
    if (!file_ || ::fstat(file_.get(), &status) != 0) {
      fail(errno);
    }
    if (S_ISDIR(status.st_mode)) {
      fail(EISDIR);
    }
    if (S_ISREG(status.st_mode)) {
      size_ = static_cast<std::uint64_t>(status.st_size);
    }
  }

  /// Opens a regular file, whose size is known. Throws FormatError as above, and for anything else; does not wait for
  /// the writer of a FIFO.
  [[nodiscard]] static FileSource regular(const std::filesystem::path& path) {
    struct stat status{};
    if (::stat(path.c_str(), &status) == 0 && !S_ISREG(status.st_mode)) {
      throw_error(FormatError(path.string(), 0,
                              kvc::detail::concat({"a regular file, found ", detail::kind_of_file(status.st_mode)})));
    }
    return FileSource(path);
  }

  /// Throws FormatError if the system fails to read.
  std::size_t read(std::span<const ByteSpan> spans) override {
    const auto wanted = static_cast<std::size_t>(total_bytes(spans));
    const bool scattered = spans.size() > 1 && wanted / spans.size() < small;
    const std::int64_t done = scattered ? read_small(spans, wanted) : read_direct(spans);
    if (done < 0) {
      fail(errno);
    }
    at_ += static_cast<std::uint64_t>(done);
    return static_cast<std::size_t>(done);
  }
  [[nodiscard]] std::optional<std::uint64_t> left() const override {
    return size_ ? std::optional(*size_ - std::min(*size_, at_)) : std::nullopt;
  }
  [[nodiscard]] bool can_rewind() const override { return size_.has_value(); }
  /// Throws FormatError if the system fails to seek.
  void rewind(std::uint64_t bytes) override {
    require(bytes <= at_, "bytes", bytes, "at most as many as were read");
    if (::lseek(file_.get(), static_cast<off_t>(at_ - bytes), SEEK_SET) < 0) {
      fail(errno);
    }
    at_ -= bytes;
  }

 private:
  static constexpr std::size_t small = 2048;  // mean bytes of a span; below this, one read and a copy beat readv

  [[noreturn]] KVC_COLD void fail(int error) const {
    throw_error(
        FormatError(name(), static_cast<Index>(at_),
                    kvc::detail::concat({"a file that can be read (", std::generic_category().message(error), ")"})));
  }
  std::int64_t read_direct(std::span<const ByteSpan> spans) const {
    return detail::move_bytes(spans,
                              [this](const iovec* list, int count) { return ::readv(file_.get(), list, count); });
  }
  std::int64_t read_small(std::span<const ByteSpan> spans, std::size_t wanted) {
    buffer_.resize(std::max(buffer_.size(), wanted));
    const ByteSpan whole = std::span(buffer_).first(wanted);
    const std::int64_t done = read_direct(std::span(&whole, 1));
    std::size_t left = done < 0 ? 0 : static_cast<std::size_t>(done);
    const std::byte* from = buffer_.data();
    for (const ByteSpan span : spans) {
      const std::size_t count = std::min(left, span.size());
      std::memcpy(span.data(), from, count);
      from += count;
      left -= count;
    }
    return done;
  }

  detail::FileHandle file_;
  std::optional<std::uint64_t> size_;
  std::uint64_t at_ = 0;
  std::vector<std::byte> buffer_;
};

namespace detail {

/// Opens `path`, the temporary file of a save, and locks it against other processes. A process that was killed may have
/// left one; it is used again. Throws std::system_error or std::invalid_argument if `path` is no regular file.
[[nodiscard]] inline FileHandle open_locked(const std::string& path) {
  for (;;) {
    FileHandle file(without_interrupts([&] {  // O_NONBLOCK: opening a FIFO would wait for a reader
      return ::open(path.c_str(), O_WRONLY | O_CREAT | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK, 0666);
    }));
    if (!file) {
      throw_system(errno, "create", path);
    }
    struct stat own{};
    if (::fstat(file.get(), &own) != 0) {
      throw_system(errno, "look at", path);
    }
    require(S_ISREG(own.st_mode), "path of the temporary file", path, "a regular file or a free name");
    if (without_interrupts([&] { return ::flock(file.get(), LOCK_EX | LOCK_NB); }) != 0) {
      throw_system(errno, "lock, another saves to the same place:", path);
    }
    // Between opening and locking, the owner of the lock may have renamed the file to its final name. Then it must not
    // be written to.
    struct stat there{};
    if (::lstat(path.c_str(), &there) == 0 && own.st_ino == there.st_ino && own.st_dev == there.st_dev) {
      return file;
    }
  }
}

/// Whether a file of this name may be made or replaced: throws std::invalid_argument where `rename` would replace
/// something that is no file, or a link to such a thing, and std::system_error where that cannot be found out. Returns
/// the permissions to give the new file, or nothing if there is no old one.
[[nodiscard]] inline std::optional<mode_t> require_replaceable(const std::string& path) {
  require(!path.empty(), "path", path, "the name of a file");
  struct stat old{};
  if (::stat(path.c_str(), &old) != 0) {  // follows links: one that leads to a device stands for the device
    if (errno != ENOENT) {
      throw_system(errno, "look at", path);
    }
    return std::nullopt;
  }
  if (!S_ISREG(old.st_mode)) {
    throw_invalid("path", path,
                  kvc::detail::concat({"a regular file or a free name, found ", kind_of_file(old.st_mode)}));
  }
  return old.st_mode & 0777;
}

/// Writes what the system has buffered of a file or a directory to the disk. Throws std::system_error.
inline void sync(int fd, const std::string& path) {
  if (without_interrupts([&] { return ::fsync(fd); }) != 0) {
    throw_system(errno, "sync", path);
  }
}

}  // namespace detail

/// Makes or replaces a file whose contents are what `write(ByteSink&)` writes. Atomic: whenever the process or the
/// machine stops, the file is the old one or the new one, whole.
///
/// The bytes go to PATH.saving in the same directory, which is renamed at the end. It is gone when this returns or
/// throws; one that a killed process left is used by the next save. The new file gets the permissions of the old one. A
/// symbolic link to a file, or to nothing, is replaced itself; the file it leads to stays as it is.
///
/// Throws, and leaves the old file in place (unless only the final sync of the directory failed):
///   std::invalid_argument  before anything is written, if `path` is a directory, FIFO, device or socket, or a link to
///                          one: a rename would replace it by a file
///   std::system_error      if the system refuses an operation, or another process saves to the same path
///   anything that `write` throws
template <class F>
void replace_file(const std::filesystem::path& path, F&& write) {
  const std::string name = path.string();
  const std::string saving = name + ".saving";
  const std::optional<mode_t> permissions = detail::require_replaceable(name);
  const detail::FileHandle file = detail::open_locked(saving);
  kvc::detail::ScopeGuard remove([&] { (void)::unlink(saving.c_str()); });
  if (::ftruncate(file.get(), 0) != 0) {
    detail::throw_system(errno, "truncate", saving);
  }
  if (permissions && ::fchmod(file.get(), *permissions) != 0) {
    detail::throw_system(errno, "set the permissions of", saving);
  }
  FileSink sink(file.get(), saving);
  write(static_cast<ByteSink&>(sink));
  detail::sync(file.get(), saving);
  if (::rename(saving.c_str(), name.c_str()) != 0) {
    detail::throw_system(errno, "rename to its place", saving);
  }
  remove.dismiss();
  const std::string folder = path.has_parent_path() ? path.parent_path().string() : ".";
  const detail::FileHandle directory(
      detail::without_interrupts([&] { return ::open(folder.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC); }));
  if (!directory) {
    detail::throw_system(errno, "open", folder);
  }
  detail::sync(directory.get(), folder);
}

}  // namespace io
}  // namespace v0
}  // namespace kvc
