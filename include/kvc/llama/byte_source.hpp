// ByteSource: bytes of a file or of memory, read in order, for the loaders of model/.
//
// The size is known before the first byte is read, so that a loader can check what a header claims before it allocates.
// Whatever is wrong becomes a FormatError that names the source and the offset.
#pragma once

#include <bit>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <span>
#include <string>
#include <system_error>
#include <type_traits>
#include <utility>

#include "kvc/core/error.hpp"

namespace kvc {
inline namespace v0 {
namespace llama {
namespace detail {

static_assert(std::endian::native == std::endian::little, "the files are little-endian and are read as they lie");

class ByteSource {
 public:
  /// Opens a file. Throws FormatError if there is no such file or it cannot be read.
  [[nodiscard]] static ByteSource open(const std::filesystem::path& path) {
    ByteSource source;
    source.name_ = path.string();
    std::error_code error;
    const std::uintmax_t size = std::filesystem::file_size(path, error);
    if (error) {
      throw_error(FormatError(source.name_, 0, "a file that can be read (" + error.message() + ")"));
    }
    source.size_ = static_cast<Index>(size);
    source.file_.open(path, std::ios::binary);
    if (!source.file_) {
      throw_error(FormatError(source.name_, 0, "a file that can be read"));
    }
    return source;
  }

  /// Reads from memory, which must outlive the source; `name` stands for it in messages.
  [[nodiscard]] static ByteSource over(std::span<const std::byte> bytes, std::string name) {
    ByteSource source;
    source.name_ = std::move(name);
    source.bytes_ = bytes.data();
    source.size_ = static_cast<Index>(bytes.size());
    return source;
  }

  [[nodiscard]] const std::string& name() const noexcept { return name_; }
  [[nodiscard]] Index size() const noexcept { return size_; }
  [[nodiscard]] Index offset() const noexcept { return offset_; }
  [[nodiscard]] Index left() const noexcept { return size_ - offset_; }

  /// Throws FormatError at the current offset.
  [[noreturn]] KVC_COLD void fail(const std::string& expected) const {
    throw_error(FormatError(name_, offset_, expected));
  }

  /// Reads `bytes` into `to`; `what` names them. Throws FormatError if fewer are left.
  void read(void* to, Index bytes, const char* what) {
    if (bytes > left()) {
      fail(std::string(what) + " of " + std::to_string(bytes) + " bytes, the file ends after " +
           std::to_string(left()));
    }
    if (bytes == 0) {
      return;
    }
    if (bytes_ != nullptr) {
      std::memcpy(to, bytes_ + offset_, static_cast<std::size_t>(bytes));
    } else if (!file_.read(static_cast<char*>(to), bytes)) {
      fail(std::string(what) + " of " + std::to_string(bytes) + " bytes, reading the file failed");
    }
    offset_ += bytes;
  }

  /// Passes over `bytes`, no more than are left.
  void skip(Index bytes) {
    KVC_ASSERT(bytes <= left());
    if (bytes_ == nullptr) {
      file_.seekg(bytes, std::ios::cur);
    }
    offset_ += bytes;
  }

  template <class V>
    requires std::is_arithmetic_v<V>
  [[nodiscard]] V read(const char* what) {
    V value{};
    read(&value, Index{sizeof(V)}, what);
    return value;
  }

 private:
  ByteSource() = default;

  std::string name_;
  std::ifstream file_;
  const std::byte* bytes_ = nullptr;  // null: the bytes come from the file
  Index size_ = 0;
  Index offset_ = 0;
};

}  // namespace detail
}  // namespace llama
}  // namespace v0
}  // namespace kvc
