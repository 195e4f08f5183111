// Files of llama2.c from the outside: each loads as a whole, or is refused with a FormatError that names its source and
// an offset within it; any text survives encode and decode.
//
// The first byte of the input says what follows: a checkpoint, a tokenizer and then a text, or a text for a fixed
// vocabulary.
#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "kvc/llama/checkpoint.hpp"
#include "kvc/llama/tokenizer.hpp"

namespace {
using kvc::Token;
using kvc::llama::Tokenizer;
using Bytes = std::span<const std::byte>;

void expect(bool ok, const char* what) {
  if (!ok) {
    std::fprintf(stderr, "broken: %s\n", what);
    std::abort();
  }
}
void expect_place(const kvc::FormatError& error, Bytes bytes) {
  expect(error.source() == "fuzzed", "source of an error");
  expect(0 <= error.offset() && error.offset() <= static_cast<kvc::Index>(bytes.size()), "offset of an error");
}
std::string_view text_of(Bytes bytes) { return {reinterpret_cast<const char*>(bytes.data()), bytes.size()}; }

void checkpoint(Bytes bytes) {
  try {
    const kvc::llama::Model model = kvc::llama::load_checkpoint(bytes, "fuzzed");
    kvc::llama::require_consistent(model);
  } catch (const kvc::FormatError& error) {
    expect_place(error, bytes);
  }
}

void encode(const Tokenizer& tokenizer, std::string_view text, bool has_all_bytes) {
  std::vector<Token> tokens;
  try {
    tokens = tokenizer.encode(text);
  } catch (const std::invalid_argument&) {
    expect(!has_all_bytes, "a byte that the vocabulary has is refused");
    return;
  }
  expect(!tokens.empty() && tokens.front() == Tokenizer::bos, "BOS");
  for (const Token token : std::span(tokens).subspan(1)) {
    expect(0 <= token && token < tokenizer.vocab_size(), "tokens");
  }
  expect(tokens.size() <= text.size() + 2, "number of tokens");
  if (has_all_bytes) {
    expect(tokenizer.decode(tokens) == text, "the text comes back");
  }
}

/// <unk>, BOS, EOS, all bytes, and some characters and pairs.
const Tokenizer& fixed_vocabulary() {
  static const Tokenizer tokenizer = [] {
    std::vector<std::byte> file;
    const auto put = [&](const auto& value) {
      const auto bytes = std::as_bytes(std::span(&value, 1));
      file.insert(file.end(), bytes.begin(), bytes.end());
    };
    put(std::int32_t{16});
    const auto add = [&](std::string_view spelling, float score) {
      put(score);
      put(static_cast<std::int32_t>(spelling.size()));
      const auto bytes = std::as_bytes(std::span(spelling));
      file.insert(file.end(), bytes.begin(), bytes.end());
    };
    add("<unk>", 0);
    add("\n<s>\n", 0);
    add("\n</s>\n", 0);
    for (unsigned byte = 0; byte < 256; ++byte) {
      char spelling[8];
      std::snprintf(spelling, sizeof spelling, "<0x%02X>", byte);
      add(spelling, 0);
    }
    for (const char* spelling : {" ", "a", "b", "\xC3\xA9", "\xE2\x82\xAC", "\xF0\x9F\x98\x80", "\n"}) {
      add(spelling, 0);
    }
    float score = 0;
    for (const char* spelling : {"ab", "ba", "aa", " a", "aab", "abab", "\xC3\xA9\xC3\xA9", "a\xC3\xA9"}) {
      add(spelling, score -= 1);
    }
    return Tokenizer::load(file);
  }();
  return tokenizer;
}
}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  Bytes input = std::as_bytes(std::span(data, size));
  if (input.empty()) {
    return 0;
  }
  const auto kind = static_cast<unsigned>(input.front()) % 3;
  input = input.subspan(1);
  if (kind == 0) {
    checkpoint(input);
  } else if (kind == 1) {
    std::uint16_t length = 0;
    if (input.size() < sizeof length) {
      return 0;
    }
    std::memcpy(&length, input.data(), sizeof length);
    input = input.subspan(sizeof length);
    const Bytes file = input.first(std::min<std::size_t>(length, input.size()));
    try {
      encode(Tokenizer::load(file, 0, "fuzzed"), text_of(input.subspan(file.size())), false);
    } catch (const kvc::FormatError& error) {
      expect_place(error, file);
    }
  } else {
    encode(fixed_vocabulary(), text_of(input), true);
  }
  return 0;
}
