// Tokenizer: byte-pair encoding with a vocabulary in the format of llama2.c.
//
//   int32   length of the longest token in bytes
//   then per token, in order of their ids:  float score, int32 length, bytes
//
// Ids 1 and 2 begin and end a text. A token spelt <0xNN> stands for that byte; with all 256 of them any text can be
// encoded.
#pragma once

#include <algorithm>
#include <array>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <queue>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "kvc/core/types.hpp"
#include "kvc/io/byte_spans.hpp"
#include "kvc/io/byte_stream.hpp"
#include "kvc/io/exact_reader.hpp"
#include "kvc/io/file.hpp"
#include "kvc/llama/file_kind.hpp"

namespace kvc {
inline namespace v0 {
namespace llama {

/// A vocabulary: encodes text to tokens and decodes tokens to text. Const methods are safe beside each other.
class Tokenizer {
 public:
  static constexpr Token bos = 1;  ///< begins a text; a model that produces it has ended one
  static constexpr Token eos = 2;

  /// Loads a vocabulary from a source of known size, from a file, or from memory, which is copied; `name` stands for
  /// the memory in messages. `vocab_size` is that of the model; with 0 the vocabulary has as many tokens as the file.
  ///
  /// Throws FormatError, which names the source, the offset and what was expected there, if the source cannot be read,
  /// is truncated, has bytes after the last token, or is something else. Files of other kinds that are known are called
  /// by their names.
  [[nodiscard]] static Tokenizer load(io::ByteSource& source, Index vocab_size = 0) {
    detail::require_not_foreign(source, "a llama2.c tokenizer", "a llama2.c tokenizer");
    io::ExactReader in(source);
    return Tokenizer(in, vocab_size);
  }
  /// The same from a file. Throws FormatError that names it.
  [[nodiscard]] static Tokenizer load(const std::filesystem::path& path, Index vocab_size = 0) {
    io::FileSource source = io::FileSource::regular(path);
    return load(source, vocab_size);
  }
  /// The same from bytes.
  [[nodiscard]] static Tokenizer load(io::ConstByteSpan bytes, Index vocab_size = 0,
                                      std::string name = "tokenizer in memory") {
    io::MemorySource source(bytes, std::move(name));
    return load(source, vocab_size);
  }

  /// Tokens in the vocabulary.
  [[nodiscard]] Index vocab_size() const noexcept { return static_cast<Index>(spellings_.size()); }

  /// The spelling of a token in the vocabulary. Throws std::invalid_argument if there is no such token.
  [[nodiscard]] std::string_view spelling(Token token) const {
    require(token >= 0 && token < vocab_size(), "token", token, "a token of the vocabulary");
    return spellings_[static_cast<std::size_t>(token)];
  }

  /// The tokens of `text`, which may be any bytes; with `with_bos`, after a BOS. O(n log n) for n bytes.
  ///
  /// 1. A text that is not empty gets a space in front.
  /// 2. It is cut into characters of UTF-8: a lead byte takes the continuation bytes that follow it, up to the number
  ///    that it announces. A byte that belongs to no character stands alone.
  /// 3. A character that the vocabulary has becomes its token; any other becomes one token <0xNN> per byte.
  /// 4. Of all pairs of neighbours whose union is a token, the one with the highest score is merged, the leftmost among
  ///    equals; and so on until there is no such pair.
  ///
  /// On valid UTF-8 these are the tokens of llama2.c. That differs on other bytes: there a continuation byte joins
  /// whatever byte stands before it.
  ///
  /// Throws std::invalid_argument, which names offset and value, for a byte that the vocabulary cannot spell.
  [[nodiscard]] std::vector<Token> encode(std::string_view text, bool with_bos = true) const;
  /// The tokens of a part of a text that does not begin it: steps 2 to 4, without BOS and without a space in front.
  /// For models that want no such space, and for text between tokens that the vocabulary does not spell. Throws as
  /// `encode`.
  [[nodiscard]] std::vector<Token> encode_part(std::string_view text) const;

  /// The bytes that `token` adds to a text after `previous`: its spelling, or the one byte that <0xNN> stands for.
  /// After a BOS the space that `encode` put in front is removed. The view is valid as long as the tokenizer.
  /// Throws std::invalid_argument if there is no such token.
  [[nodiscard]] std::string_view decode(Token previous, Token token) const {
    std::string_view text = spelling(token);
    if (previous == bos && text.starts_with(' ')) {
      text.remove_prefix(1);
    }
    const int byte = byte_spelt(text);
    return byte < 0 ? text : std::string_view(&all_bytes[static_cast<std::size_t>(byte)], 1);
  }

  /// The text of a whole sequence that begins with BOS, or that follows one.
  [[nodiscard]] std::string decode(std::span<const Token> tokens) const {
    std::string text;
    Token previous = bos;
    for (Token token : tokens) {
      if (token != bos) {
        text += decode(previous, token);
      }
      previous = token;
    }
    return text;
  }

 private:
  static constexpr Token none = -1;

  Tokenizer(io::ExactReader& in, Index vocab_size);

  /// The byte that "<0xNN>" stands for, or -1 for any other text.
  [[nodiscard]] static constexpr int byte_spelt(std::string_view text) noexcept {
    const auto digit = [](char c) { return c >= '0' && c <= '9' ? c - '0' : c >= 'A' && c <= 'F' ? c - 'A' + 10 : -1; };
    if (text.size() != 6 || !text.starts_with("<0x") || text[5] != '>' || digit(text[3]) < 0 || digit(text[4]) < 0) {
      return -1;
    }
    return digit(text[3]) * 16 + digit(text[4]);
  }

  static constexpr std::array<char, 256> all_bytes = [] {
    std::array<char, 256> bytes{};
    for (std::size_t i = 0; i < bytes.size(); ++i) {
      bytes[i] = static_cast<char>(static_cast<unsigned char>(i));
    }
    return bytes;
  }();

  /// The token spelt head + tail, or none. O(log vocab_size); builds no string.
  [[nodiscard]] Token find(std::string_view head, std::string_view tail = {}) const noexcept {
    const auto less = [&](Token token, std::pair<std::string_view, std::string_view> text) {
      const std::string_view p = spellings_[static_cast<std::size_t>(token)];
      const int order = p.substr(0, text.first.size()).compare(text.first);
      return order != 0 ? order < 0 : p.substr(text.first.size()).compare(text.second) < 0;
    };
    if (head.size() + tail.size() > longest_) {
      return none;
    }
    const auto at = std::lower_bound(sorted_.begin(), sorted_.end(), std::pair(head, tail), less);
    if (at == sorted_.end()) {
      return none;
    }
    const std::string_view p = spellings_[static_cast<std::size_t>(*at)];
    return p.size() == head.size() + tail.size() && p.starts_with(head) && p.ends_with(tail) ? *at : none;
  }

  /// Bytes of the character that a text which is not empty begins with.
  [[nodiscard]] static std::size_t character_bytes(std::string_view text) noexcept;
  /// Appends one token per character, or per byte. `offset` is that of `text` in the text of the caller.
  void append_characters(std::string_view text, Index offset, std::vector<Token>& tokens) const;
  [[noreturn]] KVC_COLD static void throw_unspellable(Index offset, unsigned char byte) {
    constexpr std::string_view digits = "0123456789ABCDEF";
    const std::string which =
        offset < 0 ? "the space in front of the text"
                   : kvc::detail::concat({"the byte at offset ", std::to_string(offset), " of the text"});
    throw_invalid(which, kvc::detail::concat({"0x", digits.substr(byte / 16U, 1), digits.substr(byte % 16U, 1)}),
                  "a byte of a character that the vocabulary has, or one that it has a token <0xNN> for");
  }
  /// Merges neighbours in tokens[first..].
  void merge_pairs(std::vector<Token>& tokens, std::size_t first) const;

  std::vector<std::string> spellings_;  // by id
  std::vector<float> scores_;           // by id
  std::vector<Token> sorted_;           // ids by spelling, the lowest first among equals
  std::array<Token, 256> byte_tokens_{};
  std::size_t longest_ = 0;
};

inline Tokenizer::Tokenizer(io::ExactReader& in, Index vocab_size) {
  require(vocab_size >= 0, "vocab_size", vocab_size, "at least 0");
  const auto limit = in.read<std::int32_t>("the header of a llama2.c tokenizer, the length of its longest token");
  if (limit <= 0) {
    in.fail_at(0, "a llama2.c tokenizer with a positive longest length, found " + std::to_string(limit));
  }
  while (vocab_size == 0 ? in.left() > 0 : this->vocab_size() < vocab_size) {
    const std::string which = "token " + std::to_string(this->vocab_size()) +
                              (vocab_size == 0 ? "" : " of " + std::to_string(vocab_size)) + " of a llama2.c tokenizer";
    const Index at = in.offset();
    const auto score = in.read<float>(("the score of " + which).c_str());
    if (std::isnan(score)) {
      in.fail_at(at, "the score of " + which + ", found a NaN");
    }
    const auto length = in.read<std::int32_t>(("the length of " + which).c_str());
    if (length < 0 || length > limit) {
      in.fail_at(at + Index{sizeof score}, "the length of " + which + ", between 0 and " + std::to_string(limit) +
                                               ", found " + std::to_string(length));
    }
    if (length > in.left()) {
      in.fail(which + " of " + std::to_string(length) + " bytes, the file ends after " + std::to_string(in.left()));
    }
    std::string spelling(static_cast<std::size_t>(length), '\0');
    in.read(spelling.data(), length, "a token");
    longest_ = std::max(longest_, spelling.size());
    spellings_.push_back(std::move(spelling));
    scores_.push_back(score);
  }
  if (in.left() > 0) {
    in.fail("the end after " + std::to_string(vocab_size) + " tokens, the vocabulary of the model; " +
            std::to_string(in.left()) + " bytes follow");
  }

  sorted_.resize(spellings_.size());
  byte_tokens_.fill(none);
  for (std::size_t id = 0; id < spellings_.size(); ++id) {
    sorted_[id] = static_cast<Token>(id);
    if (const int byte = byte_spelt(spellings_[id]); byte >= 0) {
      byte_tokens_[static_cast<std::size_t>(byte)] = static_cast<Token>(id);
    }
  }
  std::sort(sorted_.begin(), sorted_.end(), [&](Token a, Token b) {
    const int order = spellings_[static_cast<std::size_t>(a)].compare(spellings_[static_cast<std::size_t>(b)]);
    return order != 0 ? order < 0 : a < b;
  });
}

inline std::size_t Tokenizer::character_bytes(std::string_view text) noexcept {
  const auto lead = static_cast<unsigned char>(text.front());
  const std::size_t announced = lead < 0xC0U ? 1 : lead < 0xE0U ? 2 : lead < 0xF0U ? 3 : lead < 0xF8U ? 4 : 1;
  std::size_t length = 1;
  while (length < std::min(announced, text.size()) && (static_cast<unsigned char>(text[length]) & 0xC0U) == 0x80U) {
    ++length;
  }
  return length;
}

inline void Tokenizer::append_characters(std::string_view text, Index offset, std::vector<Token>& tokens) const {
  while (!text.empty()) {
    const std::string_view character = text.substr(0, character_bytes(text));
    if (const Token token = find(character); token != none) {
      tokens.push_back(token);
    } else {
      for (std::size_t i = 0; i < character.size(); ++i) {
        const auto byte = static_cast<unsigned char>(character[i]);
        if (byte_tokens_[byte] == none) [[unlikely]] {
          throw_unspellable(offset + static_cast<Index>(i), byte);
        }
        tokens.push_back(byte_tokens_[byte]);
      }
    }
    text.remove_prefix(character.size());
    offset += static_cast<Index>(character.size());
  }
}

inline void Tokenizer::merge_pairs(std::vector<Token>& tokens, std::size_t first) const {
  // The tokens form a list; a merge keeps the left place and unlinks the right one, so places stay in order. A heap
  // holds the candidates; one is discarded when it is popped if one of its places has changed since.
  struct Place {
    Token token;
    std::size_t before;
    std::size_t after;
  };
  struct Candidate {
    float score;
    std::size_t at;
    Token left;
    Token right;
    Token merged;
    bool operator<(const Candidate& other) const noexcept {
      return score != other.score ? score < other.score : at > other.at;
    }
  };
  const std::size_t end = tokens.size() - first;
  std::vector<Place> places(end);
  std::priority_queue<Candidate> queue;

  const auto consider = [&](std::size_t at) {
    const std::size_t after = places[at].after;
    if (after == end) {
      return;
    }
    const Token left = places[at].token;
    const Token right = places[after].token;
    if (const Token merged = find(spelling(left), spelling(right)); merged != none) {
      queue.push({scores_[static_cast<std::size_t>(merged)], at, left, right, merged});
    }
  };

  for (std::size_t i = 0; i < end; ++i) {
    places[i] = {tokens[first + i], i == 0 ? end : i - 1, i + 1};
  }
  for (std::size_t i = 0; i < end; ++i) {
    consider(i);
  }
  while (!queue.empty()) {
    const Candidate best = queue.top();
    queue.pop();
    Place& left = places[best.at];
    if (left.token != best.left || left.after == end || places[left.after].token != best.right) {
      continue;
    }
    Place& right = places[left.after];
    left.token = best.merged;
    left.after = right.after;
    right.token = none;
    if (left.after != end) {
      places[left.after].before = best.at;
    }
    consider(best.at);
    if (left.before != end) {
      consider(left.before);
    }
  }

  tokens.resize(first);
  for (std::size_t i = 0; i < end; i = places[i].after) {
    tokens.push_back(places[i].token);
  }
}

inline std::vector<Token> Tokenizer::encode(std::string_view text, bool with_bos) const {
  std::vector<Token> tokens;
  tokens.reserve(text.size() + 2);
  if (with_bos) {
    tokens.push_back(bos);
  }
  if (text.empty()) {
    return tokens;
  }
  const std::size_t first = tokens.size();
  append_characters(" ", -1, tokens);
  append_characters(text, 0, tokens);
  merge_pairs(tokens, first);
  return tokens;
}

inline std::vector<Token> Tokenizer::encode_part(std::string_view text) const {
  std::vector<Token> tokens;
  append_characters(text, 0, tokens);
  merge_pairs(tokens, 0);
  return tokens;
}

}  // namespace llama
}  // namespace v0
}  // namespace kvc
