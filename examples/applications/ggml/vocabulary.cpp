#include "vocabulary.hpp"

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <span>

namespace ggml_engine {
namespace {

// Of llama.cpp: the kinds of tokens in tokenizer.ggml.token_type that matter here.
constexpr std::int32_t control_token = 3;
constexpr std::int32_t user_defined_token = 4;

constexpr std::string_view visible_space = "\xE2\x96\x81";  // U+2581, as SentencePiece spells a space

std::string with_spaces(std::string_view spelling) {
  std::string text;
  for (std::size_t at = 0; at < spelling.size();) {
    const bool space = spelling.substr(at).starts_with(visible_space);
    text += space ? ' ' : spelling[at];
    at += space ? visible_space.size() : 1;
  }
  return text;
}

/// The vocabulary in the format that kvc::llama::Tokenizer reads.
kvc::llama::Tokenizer make_tokenizer(const GgufFile& file) {
  const std::vector<std::string_view> spellings = file.texts("tokenizer.ggml.tokens");
  const std::vector<float> scores = file.reals("tokenizer.ggml.scores");
  if (spellings.empty() || scores.size() != spellings.size()) {
    file.fail("has not as many scores as tokens");
  }
  std::vector<std::byte> bytes;
  const auto append = [&](const void* data, std::size_t size) {
    const auto* from = static_cast<const std::byte*>(data);
    bytes.insert(bytes.end(), from, from + size);
  };
  std::int32_t longest = 1;
  append(&longest, sizeof longest);
  for (std::size_t i = 0; i < spellings.size(); ++i) {
    const std::string spelling = with_spaces(spellings[i]);
    const auto length = static_cast<std::int32_t>(spelling.size());
    longest = std::max(longest, length);
    append(&scores[i], sizeof scores[i]);
    append(&length, sizeof length);
    append(spelling.data(), spelling.size());
  }
  std::memcpy(bytes.data(), &longest, sizeof longest);
  return kvc::llama::Tokenizer::load(std::span<const std::byte>(bytes), static_cast<kvc::Index>(spellings.size()),
                                     "the vocabulary of the GGUF file");
}

}  // namespace

Vocabulary::Vocabulary(const GgufFile& file)
    : tokenizer_(make_tokenizer(file)), control_(static_cast<std::size_t>(tokenizer_.vocab_size())) {
  const auto token = [&](const char* key, std::int64_t fallback) {
    return static_cast<kvc::Token>(file.integer(std::string("tokenizer.ggml.") + key, fallback));
  };
  begin_of_text_ = token("bos_token_id", 1);
  end_of_text_ = token("eos_token_id", 2);
  end_of_turn_ = token("eot_token_id", -1);
  add_begin_ = file.flag("tokenizer.ggml.add_bos_token", true);
  space_in_front_ = file.flag("tokenizer.ggml.add_space_prefix", true);
  const std::vector<std::int32_t> kinds = file.integers("tokenizer.ggml.token_type");
  if (kinds.size() != control_.size()) {
    file.fail("has not as many kinds as tokens");
  }
  for (std::size_t i = 0; i < kinds.size(); ++i) {
    const auto id = static_cast<kvc::Token>(i);
    control_[i] = kinds[i] == control_token;
    if (kinds[i] == control_token || kinds[i] == user_defined_token) {
      special_.emplace_back(tokenizer_.spelling(id), id);
      if (end_of_turn_ < 0 && (special_.back().first == "<end_of_turn>" || special_.back().first == "<|im_end|>")) {
        end_of_turn_ = id;
      }
    }
  }
  std::erase_if(special_, [](const auto& s) { return s.first.empty(); });
  std::ranges::stable_sort(special_, [](const auto& a, const auto& b) { return a.first.size() > b.first.size(); });
}

std::vector<kvc::Token> Vocabulary::encode(std::string_view text) const {
  struct Piece {
    std::string_view text;
    kvc::Token token;  // -1: still text
  };
  std::vector<Piece> pieces = {{text, -1}};
  for (const auto& [spelling, token] : special_) {
    if (text.find(spelling) == std::string_view::npos) {
      continue;
    }
    std::vector<Piece> cut;
    for (Piece piece : pieces) {
      while (piece.token < 0) {
        const std::size_t at = piece.text.find(spelling);
        if (at == std::string_view::npos) {
          break;
        }
        cut.push_back({piece.text.substr(0, at), -1});
        cut.push_back({piece.text.substr(at, spelling.size()), token});
        piece.text.remove_prefix(at + spelling.size());
      }
      cut.push_back(piece);
    }
    pieces = std::move(cut);
  }

  std::vector<kvc::Token> tokens;
  if (add_begin_) {
    tokens.push_back(begin_of_text_);
  }
  bool after_special = true;  // as is the beginning
  for (const Piece& piece : pieces) {
    if (piece.token >= 0) {
      tokens.push_back(piece.token);
    } else if (!piece.text.empty()) {
      const std::vector<kvc::Token> part =
          space_in_front_ && after_special ? tokenizer_.encode(piece.text, false) : tokenizer_.encode_part(piece.text);
      tokens.insert(tokens.end(), part.begin(), part.end());
    }
    after_special = piece.token >= 0 || (after_special && piece.text.empty());
  }
  return tokens;
}

std::string_view Vocabulary::decode(kvc::Token token) const {
  const bool has_text = token >= 0 && token < size() && !control_[static_cast<std::size_t>(token)];
  return has_text ? tokenizer_.decode(0, token) : std::string_view();
}

}  // namespace ggml_engine
