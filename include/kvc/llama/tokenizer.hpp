// Tokenizer: byte-pair encoding with a vocabulary in the format of llama2.c.
//
//   int32   length of the longest token in bytes
//   then per token, in order of their ids:  float score, int32 length, bytes
//
// Ids 1 and 2 begin and end a text. A token spelt <0xNN> stands for that byte, and makes any text encodable.
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

#include "kvc/llama/byte_source.hpp"

namespace kvc {
inline namespace v0 {
namespace llama {

/// A vocabulary, and how text becomes tokens and tokens become text. Const methods are safe beside each other.
class Tokenizer {
 public:
  static constexpr Token bos = 1;  ///< begins a text; a model that produces it has ended one
  static constexpr Token eos = 2;

  /// Loads a vocabulary from a file. `vocab_size` is that of the model; 0 takes as many tokens as there are.
  ///
  /// Throws FormatError naming the file, the offset and what was expected there if the file cannot be read, is cut
  /// short, has bytes after the last token, or is something else.
  [[nodiscard]] static Tokenizer load(const std::filesystem::path& path, Index vocab_size = 0) {
    return Tokenizer(detail::ByteSource::open(path), vocab_size);
  }
  /// As above, from memory, which is copied; `name` stands for it in messages.
  [[nodiscard]] static Tokenizer load(std::span<const std::byte> bytes, Index vocab_size = 0,
                                      std::string name = "tokenizer in memory") {
    return Tokenizer(detail::ByteSource::over(bytes, std::move(name)), vocab_size);
  }

  [[nodiscard]] Index vocab_size() const noexcept { return static_cast<Index>(pieces_.size()); }

  /// How a token is spelt in the vocabulary. Throws std::invalid_argument if there is no such token.
  [[nodiscard]] std::string_view piece(Token token) const {
    require(token >= 0 && token < vocab_size(), "token", token, "a token of the vocabulary");
    return pieces_[static_cast<std::size_t>(token)];
  }

  /// The tokens of `text`, which may be any bytes; with `with_bos`, after a BOS.
  ///
  /// A text that is not empty gets a space in front. Its characters (UTF-8; bytes that are none stand alone) become
  /// tokens, or one token per byte where the vocabulary lacks them. Then, as long as there is one, the pair of
  /// neighbours is merged whose union is the token with the highest score, the leftmost among equals. O(n log n) for n
  /// bytes.
  ///
  /// Throws std::invalid_argument for a byte that the vocabulary has no token for.
  [[nodiscard]] std::vector<Token> encode(std::string_view text, bool with_bos = true) const;

  /// The bytes that `token` adds to a text in which `previous` came before it: its piece, or the one byte that <0xNN>
  /// stands for. After a BOS the space that `encode` put in front is taken off again. The view lives as long as the
  /// tokenizer. Throws std::invalid_argument if there is no such token.
  [[nodiscard]] std::string_view decode(Token previous, Token token) const {
    std::string_view text = piece(token);
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

  Tokenizer(detail::ByteSource in, Index vocab_size);

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

  /// The token spelt head + tail, or none. O(log vocab_size), and builds no string.
  [[nodiscard]] Token find(std::string_view head, std::string_view tail = {}) const noexcept {
    const auto less = [&](Token token, std::pair<std::string_view, std::string_view> text) {
      const std::string_view p = pieces_[static_cast<std::size_t>(token)];
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
    const std::string_view p = pieces_[static_cast<std::size_t>(*at)];
    return p.size() == head.size() + tail.size() && p.starts_with(head) && p.ends_with(tail) ? *at : none;
  }

  /// One token per character, or per byte.
  void append_characters(std::string_view text, std::vector<Token>& tokens) const;
  /// Merges neighbours in tokens[first..].
  void merge_pairs(std::vector<Token>& tokens, std::size_t first) const;

  std::vector<std::string> pieces_;  // by id
  std::vector<float> scores_;        // by id
  std::vector<Token> sorted_;        // ids by piece, the lowest first among equals
  std::array<Token, 256> byte_tokens_{};
  std::size_t longest_ = 0;
};

inline Tokenizer::Tokenizer(detail::ByteSource in, Index vocab_size) {
  require(vocab_size >= 0, "vocab_size", vocab_size, "at least 0");
  const auto limit = in.read<std::int32_t>("the header of a llama2.c tokenizer, the length of its longest token");
  if (limit <= 0) {
    throw_error(FormatError(in.name(), 0,
                            "a llama2.c tokenizer with a positive longest length, found " + std::to_string(limit)));
  }
  while (vocab_size == 0 ? in.left() > 0 : this->vocab_size() < vocab_size) {
    const std::string which = "token " + std::to_string(this->vocab_size()) +
                              (vocab_size == 0 ? "" : " of " + std::to_string(vocab_size)) + " of a llama2.c tokenizer";
    const Index at = in.offset();
    const auto score = in.read<float>(("the score of " + which).c_str());
    if (std::isnan(score)) {
      throw_error(FormatError(in.name(), at, "the score of " + which + ", found a NaN"));
    }
    const auto length = in.read<std::int32_t>(("the length of " + which).c_str());
    if (length < 0 || length > limit) {
      throw_error(FormatError(
          in.name(), at + Index{sizeof score},
          "the length of " + which + ", between 0 and " + std::to_string(limit) + ", found " + std::to_string(length)));
    }
    if (length > in.left()) {
      in.fail(which + " of " + std::to_string(length) + " bytes, the file ends after " + std::to_string(in.left()));
    }
    std::string piece(static_cast<std::size_t>(length), '\0');
    in.read(piece.data(), length, "a token");
    longest_ = std::max(longest_, piece.size());
    pieces_.push_back(std::move(piece));
    scores_.push_back(score);
  }
  if (in.left() > 0) {
    in.fail("the end after " + std::to_string(vocab_size) + " tokens, the vocabulary of the model; " +
            std::to_string(in.left()) + " bytes follow");
  }

  sorted_.resize(pieces_.size());
  byte_tokens_.fill(none);
  for (std::size_t id = 0; id < pieces_.size(); ++id) {
    sorted_[id] = static_cast<Token>(id);
    if (const int byte = byte_spelt(pieces_[id]); byte >= 0) {
      byte_tokens_[static_cast<std::size_t>(byte)] = static_cast<Token>(id);
    }
  }
  std::sort(sorted_.begin(), sorted_.end(), [&](Token a, Token b) {
    const int order = pieces_[static_cast<std::size_t>(a)].compare(pieces_[static_cast<std::size_t>(b)]);
    return order != 0 ? order < 0 : a < b;
  });
}

inline void Tokenizer::append_characters(std::string_view text, std::vector<Token>& tokens) const {
  const auto continues = [](char c) { return (static_cast<unsigned char>(c) & 0xC0U) == 0x80U; };
  while (!text.empty()) {
    std::size_t length = 1;
    while (length < 4 && length < text.size() && continues(text[length])) {
      ++length;
    }
    const std::string_view character = text.substr(0, length);
    if (const Token token = find(character); token != none) {
      tokens.push_back(token);
    } else {
      for (char c : character) {
        const auto byte = static_cast<unsigned char>(c);
        require(byte_tokens_[byte] != none, "byte " + std::to_string(byte) + " of the text", character,
                "text that the vocabulary has tokens for");
        tokens.push_back(byte_tokens_[byte]);
      }
    }
    text.remove_prefix(length);
  }
}

inline void Tokenizer::merge_pairs(std::vector<Token>& tokens, std::size_t first) const {
  // The tokens form a list; a merge keeps the left place and unlinks the right one, so places stay in order. Candidates
  // wait in a heap, and are dropped on arrival if one of their places has changed since.
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
    if (const Token merged = find(piece(left), piece(right)); merged != none) {
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
  append_characters(" ", tokens);
  append_characters(text, tokens);
  merge_pairs(tokens, first);
  return tokens;
}

}  // namespace llama
}  // namespace v0
}  // namespace kvc
