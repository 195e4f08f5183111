// Salt: the properties of a prefix besides its tokens.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

namespace kvc {
inline namespace v0 {

/// The type of a part of a salt.
enum class SaltKind : std::uint8_t { tenant = 1, lora = 2, multimodal = 3, custom = 4 };

/// The properties of a prefix besides its tokens: tenant, LoRA adapter, images behind placeholder tokens. Two prompts
/// share blocks only if their salts are equal. A sequence of typed byte strings, compared exactly: an adapter with the
/// name of a tenant is a different salt. The default is "no salt", shared by all sequences that give none.
class Salt {
 public:
  /// "No salt".
  Salt() = default;
  /// A salt of one part. Throws std::bad_alloc.
  Salt(SaltKind kind, std::string_view bytes) { add(kind, bytes); }

  /// Appends a part. Parts are ordered: the same parts in another order are another salt.
  Salt& add(SaltKind kind, std::string_view bytes) {
    std::string next = bytes_;
    next.push_back(static_cast<char>(kind));
    for (int shift = 0; shift < 64; shift += 8) {  // the length before the bytes: no part can imitate two
      next.push_back(static_cast<char>(static_cast<std::uint64_t>(bytes.size()) >> shift & 0xff));
    }
    next.append(bytes);
    bytes_.swap(next);
    return *this;
  }

  /// The salt with this encoding, or nothing if there is none: for bytes from files and peers.
  [[nodiscard]] static std::optional<Salt> from_bytes(std::string_view encoded) {
    for (std::string_view rest = encoded; !rest.empty();) {
      if (rest.size() < head) {
        return std::nullopt;
      }
      const std::uint64_t size = part_size(rest);
      if (size > rest.size() - head) {
        return std::nullopt;
      }
      rest.remove_prefix(head + static_cast<std::size_t>(size));
    }
    Salt salt;
    salt.bytes_ = encoded;
    return salt;
  }

  /// The parts that name a tenant, encoded alike: equal for all salts of one tenant.
  [[nodiscard]] std::string tenant() const {
    std::string parts;
    for (std::size_t begin = 0; begin < bytes_.size();) {
      const std::size_t end =
          begin + head + static_cast<std::size_t>(part_size(std::string_view(bytes_).substr(begin)));
      if (bytes_[begin] == static_cast<char>(SaltKind::tenant)) {
        parts.append(bytes_, begin, end - begin);
      }
      begin = end;
    }
    return parts;
  }
  /// Whether this is "no salt".
  [[nodiscard]] bool empty() const noexcept { return bytes_.empty(); }
  /// The unambiguous encoding: equal if and only if the salts are.
  [[nodiscard]] const std::string& bytes() const noexcept { return bytes_; }

  friend bool operator==(const Salt&, const Salt&) = default;

 private:
  static constexpr std::size_t head = 9;  // of a part: its kind, and the length of what follows
  [[nodiscard]] static std::uint64_t part_size(std::string_view part) noexcept {
    std::uint64_t size = 0;
    for (std::size_t i = head - 1; i > 0; --i) {
      size = size << 8 | static_cast<unsigned char>(part[i]);
    }
    return size;
  }

  std::string bytes_;
};

}  // namespace v0
}  // namespace kvc
