// Vocabulary: SentencePiece's tokens as GGUF files hold them.
#pragma once

#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "gguf_file.hpp"
#include "kvc/core/types.hpp"
#include "kvc/llama/tokenizer.hpp"

namespace ggml_engine {

/// Encodes text to tokens and decodes tokens to text. Const members are safe beside each other.
///
/// Tokens that the model defines outside of SentencePiece, such as <start_of_turn> or a run of newlines, are found in
/// the text first; what lies between them is merged by kvc::llama::Tokenizer.
class Vocabulary {
 public:
  /// Of a file whose tokenizer.ggml.model is "llama". Throws std::runtime_error that names what it lacks.
  explicit Vocabulary(const GgufFile& file);

  /// The tokens of a text, which may be any bytes; the first is the model's BOS where it wants one.
  /// Throws std::invalid_argument for a byte that the vocabulary cannot spell.
  [[nodiscard]] std::vector<kvc::Token> encode(std::string_view text) const;

  /// The bytes that a token adds to a text; none for a token that only has a meaning, such as BOS.
  [[nodiscard]] std::string_view decode(kvc::Token token) const;

  /// Whether the model ends its text, or its turn, with this token.
  [[nodiscard]] bool ends_text(kvc::Token token) const noexcept {
    return token == end_of_text_ || token == end_of_turn_;
  }
  [[nodiscard]] kvc::Index size() const noexcept { return tokenizer_.vocab_size(); }

 private:
  kvc::llama::Tokenizer tokenizer_;
  std::vector<std::pair<std::string, kvc::Token>> special_;  // those found in the text first, the longest first
  std::vector<bool> control_;                                // by token: has no text
  kvc::Token begin_of_text_ = -1;
  kvc::Token end_of_text_ = -1;
  kvc::Token end_of_turn_ = -1;
  bool add_begin_ = true;
  bool space_in_front_ = true;
};

}  // namespace ggml_engine
