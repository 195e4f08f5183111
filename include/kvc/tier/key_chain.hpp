// KeyChain: computes the keys of the blocks of a prompt. Needs libsodium (Debian: libsodium-dev), to be linked.
//
//   root    = BLAKE2b-256("kvc tier key 1", BLAKE2b-256(format), BLAKE2b-256(salt), group)
//   block i = BLAKE2b-256(key of block i - 1, or the root; its tokens as 32-bit little-endian integers)
//
// Nothing in it depends on the process, the machine or the run.
#pragma once

#if !__has_include(<sodium.h>)
#error "kvc/tier/key_chain.hpp needs libsodium (Debian: libsodium-dev), which was not found, or do not include it"
#endif

#include <sodium.h>

#include <bit>
#include <cstddef>
#include <cstdint>
#include <span>
#include <string_view>

#include "kvc/core/error.hpp"
#include "kvc/core/types.hpp"
#include "kvc/policy/salt.hpp"
#include "kvc/tier/key.hpp"
#include "kvc/tier/record_info.hpp"

namespace kvc {
inline namespace v0 {
namespace tier {

namespace detail {

static_assert(std::endian::native == std::endian::little, "tokens are hashed as little-endian integers, in place");

/// BLAKE2b with 256 bits of output (RFC 7693), by the code of libsodium for this processor.
class Blake2b {
 public:
  Blake2b() noexcept : state_(begun()) {}
  Blake2b& add(const void* data, std::size_t bytes) noexcept {
    (void)crypto_generichash_update(&state_, static_cast<const unsigned char*>(data), bytes);
    return *this;
  }
  Blake2b& add(const Digest& digest) noexcept { return add(digest.bytes.data(), digest.bytes.size()); }
  Blake2b& add(std::string_view text) noexcept { return add(text.data(), text.size()); }
  /// The hash of all that was added; begins anew.
  [[nodiscard]] Digest take() noexcept {
    Digest digest;
    (void)crypto_generichash_final(&state_, reinterpret_cast<unsigned char*>(digest.bytes.data()), digest.bytes.size());
    state_ = begun();
    return digest;
  }

 private:
  /// A state before the first byte. It is copied, which takes less time than to initialise one.
  [[nodiscard]] static const crypto_generichash_state& begun() noexcept {
    static const crypto_generichash_state state = [] {
      [[maybe_unused]] const int selected = sodium_init();  // the code; if that fails, the portable one stays
      crypto_generichash_state made;
      (void)crypto_generichash_init(&made, nullptr, 0, sizeof(Digest));
      return made;
    }();
    return state;
  }

  crypto_generichash_state state_;
};

}  // namespace detail

/// Walks the blocks of one prefix in one layer group, and computes the key of each. `format` says which bytes a block
/// consists of: the model with its weights, and fingerprint(cache, FingerprintOf::blocks).text; any text that is equal
/// exactly where blocks may be exchanged. A block is named by all tokens before it and its own, by salt and by group,
/// so the blocks of one salt are never found under another.
///
///   expression                   | requires         | returns, does                                  | complexity
///   -----------------------------+------------------+------------------------------------------------+---------------
///   KeyChain(format, salt,       | group >= 0       | stands before the first block                  | O(format) +
///     group)                     |                  |                                                | O(salt)
///   c.next(tokens, parts)        | tokens not empty | RecordInfo of the next block; its tokens refer | O(tokens)
///                                | parts >= 1       | to the argument's. Steps over the block        |
///   c.key()                      |                  | key of the block stepped over last; root at    | O(1)
///                                |                  | the beginning                                  |
///   c.restart()                  |                  | stands before the first block again            | O(1)
///   c.resume(key)                | key() of a chain | stands behind the block of that key            | O(1)
///                                | of equal format, |                                                |
///                                | salt and group   |                                                |
///
/// Throws std::invalid_argument. Blocks need not have the same number of tokens; the
/// last of a prefix may be shorter, and then has a key of its own.
class KeyChain {
 public:
  /// Stands before the first block. `format` as above.
  explicit KeyChain(std::string_view format, const Salt& salt = {}, std::int32_t group = 0) : group_(group) {
    require(group >= 0, "group", group, "at least 0");
    format_ = hash_.add(format).take();
    salt_ = hash_.add(salt.bytes()).take();
    const auto number = static_cast<std::uint32_t>(group);
    root_ = hash_.add("kvc tier key 1").add(format_).add(salt_).add(&number, sizeof number).take();
    key_ = root_;
  }

  /// The block with the next tokens: its key, the key before it, and what else its record says.
  [[nodiscard]] RecordInfo next(std::span<const Token> tokens, std::uint32_t parts = 1) {
    require(!tokens.empty(), "tokens", tokens.size(), "at least one");
    require(parts >= 1, "parts", parts, "at least 1");
    RecordInfo block;
    block.parent = key_;
    block.key = key_ = hash_.add(key_).add(tokens.data(), tokens.size_bytes()).take();
    block.format = format_;
    block.salt = salt_;
    block.group = group_;
    block.parts = parts;
    block.tokens = tokens;
    return block;
  }
  /// The key of the block that `next` returned last; the root before the first block.
  [[nodiscard]] const BlockKey& key() const noexcept { return key_; }
  /// The key that stands for the empty prefix: the parent of every first block.
  [[nodiscard]] const BlockKey& root() const noexcept { return root_; }
  /// Stands before the first block again.
  void restart() noexcept { key_ = root_; }
  /// Stands behind the block of this key.
  void resume(const BlockKey& key) noexcept { key_ = key; }

 private:
  detail::Blake2b hash_;
  Digest format_, salt_;
  BlockKey root_, key_;
  std::int32_t group_;
};

}  // namespace tier
}  // namespace v0
}  // namespace kvc
