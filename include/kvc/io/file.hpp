// Files as sinks and sources, and a file that is replaced whole or not at all. POSIX.
//
// Rows go from a pool to the file and back with one copy, that of the system: pieces are gathered and scattered by
// writev and readv. A mapped file would not be faster, and a file that is cut short while it is mapped kills its
// reader.
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
#include "kvc/io/byte_stream.hpp"

namespace kvc {
inline namespace v0 {
namespace io {

namespace detail {

/// Throws std::system_error: what could not be done to which file, and the system's reason.
[[noreturn]] KVC_COLD inline void throw_system(int error, const char* what, const std::string& path) {
  throw_error(
      std::system_error(error, std::generic_category(), kvc::detail::concat({"kvc: cannot ", what, " ", path})));
}

/// An open file.
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

template <class F>
[[nodiscard]] auto without_interrupts(F&& call) noexcept {
  for (;;) {
    if (const auto result = call(); result >= 0 || errno != EINTR) {
      return result;
    }
  }
}

/// Hands pieces to `call(iovec*, count)`, readv or writev, until all are done or it makes no headway. Returns the bytes
/// done, or -1 with errno set.
template <class Piece, class F>
[[nodiscard]] std::int64_t transfer(std::span<const Piece> pieces, F&& call) {
  constexpr std::size_t most = 1024;  // IOV_MAX of every system that matters
  iovec list[most];
  std::int64_t done = 0;
  std::size_t from = 0;  // bytes of the first piece that are done
  while (!pieces.empty()) {
    const std::size_t count = std::min(most, pieces.size());
    std::size_t wanted = 0;
    for (std::size_t i = 0; i < count; ++i) {
      const auto piece = pieces[i].subspan(i == 0 ? from : 0);
      list[i] = {const_cast<std::byte*>(static_cast<const std::byte*>(piece.data())), piece.size()};
      wanted += piece.size();
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
    while (!pieces.empty() && rest >= pieces.front().size() - from) {
      rest -= pieces.front().size() - from;
      from = 0;
      pieces = pieces.subspan(1);
    }
    from += rest;
  }
  return done;
}

}  // namespace detail

/// Writes to an open file, from where it stands. Does not own it. Throws std::system_error.
class FileSink final : public ByteSink {
 public:
  FileSink(int fd, std::string path) : fd_(fd), path_(std::move(path)) {}
  void write(std::span<const std::span<const std::byte>> pieces) override {
    std::size_t wanted = 0;
    for (const auto piece : pieces) {
      wanted += piece.size();
    }
    const std::int64_t done =
        detail::transfer(pieces, [this](const iovec* list, int count) { return ::writev(fd_, list, count); });
    if (done != static_cast<std::int64_t>(wanted)) {
      detail::throw_system(done < 0 ? errno : ENOSPC, "write", path_);
    }
  }

 private:
  int fd_;
  std::string path_;
};

/// Reads a file. What it holds beyond the size that it had when it was opened is not read.
class FileSource final : public ByteSource {
 public:
  /// Throws FormatError if there is no such file or it cannot be read.
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

  /// Throws FormatError if the system fails to read.
  std::size_t read(std::span<const std::span<std::byte>> pieces) override {
    std::size_t wanted = 0;
    for (const auto piece : pieces) {
      wanted += piece.size();
    }
    const bool scattered = pieces.size() > 1 && wanted / pieces.size() < small;
    const std::int64_t done = scattered ? read_small(pieces, wanted) : read_direct(pieces);
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
  /// Throws FormatError if the system fails to.
  void rewind(std::uint64_t bytes) override {
    require(bytes <= at_, "bytes", bytes, "at most as many as were read");
    if (::lseek(file_.get(), static_cast<off_t>(at_ - bytes), SEEK_SET) < 0) {
      fail(errno);
    }
    at_ -= bytes;
  }

 private:
  static constexpr std::size_t small = 2048;  // bytes of a piece: below, the system takes longer than a copy of ours

  [[noreturn]] KVC_COLD void fail(int error) const {
    throw_error(
        FormatError(name(), static_cast<Index>(at_),
                    kvc::detail::concat({"a file that can be read (", std::generic_category().message(error), ")"})));
  }
  std::int64_t read_direct(std::span<const std::span<std::byte>> pieces) const {
    return detail::transfer(pieces, [this](const iovec* list, int count) { return ::readv(file_.get(), list, count); });
  }
  std::int64_t read_small(std::span<const std::span<std::byte>> pieces, std::size_t wanted) {
    buffer_.resize(std::max(buffer_.size(), wanted));
    const std::span<std::byte> whole = std::span(buffer_).first(wanted);
    const std::int64_t done = read_direct(std::span(&whole, 1));
    std::size_t left = done < 0 ? 0 : static_cast<std::size_t>(done);
    const std::byte* from = buffer_.data();
    for (const auto piece : pieces) {
      const std::size_t count = std::min(left, piece.size());
      std::memcpy(piece.data(), from, count);
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

inline void sync(int fd, const std::string& path) {
  if (without_interrupts([&] { return ::fsync(fd); }) != 0) {
    throw_system(errno, "sync", path);
  }
}

/// Opens the file that is being written, for this process alone. It may be there from one that was killed.
[[nodiscard]] inline FileHandle open_alone(const std::string& path) {
  for (;;) {
    FileHandle file(
        without_interrupts([&] { return ::open(path.c_str(), O_WRONLY | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0666); }));
    if (!file) {
      throw_system(errno, "create", path);
    }
    if (without_interrupts([&] { return ::flock(file.get(), LOCK_EX | LOCK_NB); }) != 0) {
      throw_system(errno, "lock, another saves to the same place:", path);
    }
    // Between opening and locking, its last owner may have moved it to where it belongs: then it is not ours to write.
    struct stat own{};
    struct stat there{};
    if (::fstat(file.get(), &own) == 0 && ::lstat(path.c_str(), &there) == 0 && own.st_ino == there.st_ino &&
        own.st_dev == there.st_dev) {
      return file;
    }
  }
}

}  // namespace detail

/// Makes or replaces a file: `write(ByteSink&)` says what is in it. Whenever the process or the machine stops, the file
/// is the old one or the new one, whole. What is written goes to PATH.saving first, in the same folder, and is there no
/// more when this returns or throws; where a killed process left one, the next save uses it. A file that is replaced
/// passes its permissions on; a link is replaced, and not what it leads to.
/// Throws std::system_error, and what `write` throws: the old file is there then, unless only the folder could not be
/// synced.
template <class F>
void replace_file(const std::filesystem::path& path, F&& write) {
  const std::string name = path.string();
  const std::string saving = name + ".saving";
  const detail::FileHandle file = detail::open_alone(saving);
  kvc::detail::ScopeGuard remove([&] { (void)::unlink(saving.c_str()); });
  if (::ftruncate(file.get(), 0) != 0) {
    detail::throw_system(errno, "truncate", saving);
  }
  if (struct stat old{}; ::stat(name.c_str(), &old) == 0 && ::fchmod(file.get(), old.st_mode & 0777) != 0) {
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
