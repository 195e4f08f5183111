// ByteSink and ByteSource: where a snapshot goes to and comes from. A file (snapshot/file.hpp), memory (here), or a
// connection of your own.
//
// Bytes are handed over as lists of pieces, which lie where they are used: a sink gathers from the blocks of a pool, a
// source scatters into them. A call moves a quarter of a megabyte or so, which is why these may be virtual.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <optional>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "kvc/core/error.hpp"

namespace kvc {
inline namespace v0 {
namespace io {

class ByteSink {
 public:
  virtual ~ByteSink() = default;
  /// Takes all bytes of the pieces, one after the other; the memory is the caller's again when it returns.
  /// Throws what suits it if it cannot: whoever writes passes that on.
  virtual void write(std::span<const std::span<const std::byte>> pieces) = 0;

 protected:
  ByteSink() = default;
  ByteSink(const ByteSink&) = default;
  ByteSink& operator=(const ByteSink&) = default;
};

class ByteSource {
 public:
  virtual ~ByteSource() = default;
  /// Fills the pieces one after the other, and waits for bytes if it must. Returns how many came: less than all only
  /// where the bytes end.
  virtual std::size_t read(std::span<const std::span<std::byte>> pieces) = 0;
  /// Bytes that are still to come, where that is known: then lengths that cannot be are refused before they are
  /// believed.
  [[nodiscard]] virtual std::optional<std::uint64_t> left() const { return std::nullopt; }
  /// Whether it can go back.
  [[nodiscard]] virtual bool can_rewind() const { return false; }
  /// Goes back, so that the last `bytes` bytes come again. Only where it can.
  virtual void rewind(std::uint64_t bytes) { require(bytes == 0, "bytes", bytes, "0: the source cannot go back"); }
  /// Stands for the source in messages.
  [[nodiscard]] const std::string& name() const noexcept { return name_; }

 protected:
  explicit ByteSource(std::string name) : name_(std::move(name)) {}
  ByteSource(const ByteSource&) = default;
  ByteSource& operator=(const ByteSource&) = default;

 private:
  std::string name_;
};

/// Appends to a vector.
class MemorySink final : public ByteSink {
 public:
  void write(std::span<const std::span<const std::byte>> pieces) override {
    for (const std::span<const std::byte> piece : pieces) {
      bytes_.insert(bytes_.end(), piece.begin(), piece.end());
    }
  }
  [[nodiscard]] const std::vector<std::byte>& bytes() const noexcept { return bytes_; }
  [[nodiscard]] std::vector<std::byte> take() noexcept { return std::exchange(bytes_, {}); }
  /// So that bytes up to so many need not be moved while more are appended.
  void reserve(std::size_t bytes) { bytes_.reserve(bytes); }

 private:
  std::vector<std::byte> bytes_;
};

/// Reads from memory of any alignment, which must outlive it.
class MemorySource final : public ByteSource {
 public:
  explicit MemorySource(std::span<const std::byte> bytes, std::string name = "snapshot in memory")
      : ByteSource(std::move(name)), bytes_(bytes) {}

  std::size_t read(std::span<const std::span<std::byte>> pieces) override {
    const std::size_t before = at_;
    for (const std::span<std::byte> piece : pieces) {
      const std::size_t count = std::min(piece.size(), bytes_.size() - at_);
      if (count > 0) {
        std::memcpy(piece.data(), bytes_.data() + at_, count);
      }
      at_ += count;
    }
    return at_ - before;
  }
  [[nodiscard]] std::optional<std::uint64_t> left() const override { return bytes_.size() - at_; }
  [[nodiscard]] bool can_rewind() const override { return true; }
  void rewind(std::uint64_t bytes) override {
    require(bytes <= at_, "bytes", bytes, "at most as many as were read");
    at_ -= static_cast<std::size_t>(bytes);
  }

 private:
  std::span<const std::byte> bytes_;
  std::size_t at_ = 0;
};

}  // namespace io
}  // namespace v0
}  // namespace kvc
