// The vocabulary of a GGUF file.

#include <string>

#include "gemma.hpp"

using kvc_test::Tokens;

TEST_CASE("the vocabulary encodes the golden prompts as llama.cpp does, and decodes their continuations", "[gguf]") {
  kvc_test::gemma_file();
  const ggml_engine::Vocabulary& vocabulary = *kvc_test::gemma().vocabulary;
  for (const kvc_test::Golden& golden : kvc_test::goldens()) {
    CAPTURE(golden.name);
    REQUIRE(vocabulary.encode(golden.prompt) == golden.prompt_tokens);
    std::string text;
    for (const kvc::Token token : golden.tokens) {
      text += vocabulary.decode(token);
    }
    REQUIRE(text == golden.text);
  }
}

TEST_CASE("the vocabulary finds tokens that SentencePiece does not spell, and any bytes", "[gguf]") {
  kvc_test::gemma_file();
  const ggml_engine::Vocabulary& vocabulary = *kvc_test::gemma().vocabulary;
  REQUIRE(vocabulary.encode("") == Tokens{2});  // BOS
  const Tokens turn = vocabulary.encode("<start_of_turn>user\nHi<end_of_turn>");
  REQUIRE(turn.size() == 6);  // BOS, <start_of_turn>, user, newline, Hi, <end_of_turn>
  REQUIRE(vocabulary.decode(turn[1]).empty());
  REQUIRE(vocabulary.ends_text(turn[5]));
  REQUIRE_FALSE(vocabulary.ends_text(turn[4]));
  const std::string odd = "a  b\n\n\nc\xFF\xC3\xA9 \xF0\x9F\x98\x80";
  std::string back;
  for (const kvc::Token token : vocabulary.encode(odd)) {
    back += vocabulary.decode(token);
  }
  REQUIRE(back == odd);
}
