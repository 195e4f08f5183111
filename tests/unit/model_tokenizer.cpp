// The tokenizer against a plain encoder, on any bytes, and on files that are not what they should be.
#include <limits>
#include <random>
#include <string>

#include "catch.hpp"
#include "kvc/llama/tokenizer.hpp"
#include "tiny_model.hpp"

using kvc::FormatError;
using kvc::Index;
using kvc::Token;
using kvc::llama::Tokenizer;

namespace {

struct Entry {
  std::string piece;
  float score;
};

std::vector<std::byte> file_of(const std::vector<Entry>& entries, std::int32_t longest = 64) {
  kvc_test::ByteWriter out;
  out.put(longest);
  for (const Entry& entry : entries) {
    out.put(entry.score);
    out.put(static_cast<std::int32_t>(entry.piece.size()));
    out.put_text(entry.piece);
  }
  return out.take();
}

std::vector<Entry> with_bytes() {
  std::vector<Entry> entries = {{"<unk>", 0}, {"\n<s>\n", 0}, {"\n</s>\n", 0}};
  for (int byte = 0; byte < 256; ++byte) {
    char spelt[8];
    std::snprintf(spelt, sizeof spelt, "<0x%02X>", static_cast<unsigned>(byte));
    entries.push_back({spelt, 0});
  }
  return entries;
}

/// Bytes, a few characters, and pairs of what is there, with scores among which many are equal.
std::vector<Entry> random_vocabulary(std::uint64_t seed) {
  std::mt19937_64 random(seed);
  std::vector<Entry> entries = with_bytes();
  const std::size_t first = entries.size();
  for (const char* c : {" ", "a", "b", "c", "\n", "\xC3\xA9", "\xE2\x82\xAC", "\xF0\x9F\x98\x80"}) {
    entries.push_back({c, 0});
  }
  while (entries.size() < first + 60) {
    const auto any = [&] { return entries[first + random() % (entries.size() - first)].piece; };
    std::string piece = any() + any();
    if (piece.size() <= 24) entries.push_back({std::move(piece), -static_cast<float>(random() % 8)});
  }
  return entries;
}

/// The definition: look at all pairs, merge the best, start again.
std::vector<Token> encode_plainly(const std::vector<Entry>& entries, const std::string& text) {
  const auto find = [&](const std::string& piece) -> Token {
    for (std::size_t id = 0; id < entries.size(); ++id) {
      if (entries[id].piece == piece) return static_cast<Token>(id);
    }
    return -1;
  };
  std::vector<Token> tokens = {find(" ")};
  for (std::size_t i = 0; i < text.size();) {
    std::size_t n = 1;
    while (n < 4 && i + n < text.size() && (static_cast<unsigned char>(text[i + n]) & 0xC0U) == 0x80U) ++n;
    if (const Token token = find(text.substr(i, n)); token >= 0) {
      tokens.push_back(token);
    } else {
      for (std::size_t j = 0; j < n; ++j) tokens.push_back(3 + static_cast<unsigned char>(text[i + j]));
    }
    i += n;
  }
  for (;;) {
    float best = -std::numeric_limits<float>::infinity();
    std::size_t at = tokens.size();
    Token merged = -1;
    for (std::size_t i = 0; i + 1 < tokens.size(); ++i) {
      const Token id = find(entries[static_cast<std::size_t>(tokens[i])].piece +
                            entries[static_cast<std::size_t>(tokens[i + 1])].piece);
      if (id >= 0 && entries[static_cast<std::size_t>(id)].score > best) {
        best = entries[static_cast<std::size_t>(id)].score;
        at = i;
        merged = id;
      }
    }
    if (at == tokens.size()) break;
    tokens[at] = merged;
    tokens.erase(tokens.begin() + static_cast<std::ptrdiff_t>(at) + 1);
  }
  tokens.insert(tokens.begin(), Tokenizer::bos);
  return tokens;
}

std::string random_text(std::mt19937_64& random, std::size_t length, bool any_bytes) {
  static const std::array<std::string, 9> characters = {
      " ", "a", "b", "c", "\n", "x", "\xC3\xA9", "\xE2\x82\xAC", "\xF0\x9F\x98\x80"};
  std::string text;
  for (std::size_t i = 0; i < length; ++i) {
    if (any_bytes && random() % 4 == 0) {
      text += static_cast<char>(random() & 0xFFU);
    } else {
      text += characters[random() % characters.size()];
    }
  }
  return text;
}

void refuse(const std::vector<std::byte>& bytes, Index vocab_size, Index offset, const std::string& text) {
  try {
    (void)Tokenizer::load(bytes, vocab_size, "some file");
    FAIL("loaded");
  } catch (const FormatError& error) {
    CHECK(error.offset() == offset);
    CHECK_THAT(error.what(), kvc_test::contains("some file") && kvc_test::contains(text));
  }
}

}  // namespace

TEST_CASE("encode merges as the plain encoder does", "[model][tokenizer]") {
  std::mt19937_64 random(7);
  for (std::uint64_t seed = 0; seed < 20; ++seed) {
    const auto entries = random_vocabulary(seed);
    const Tokenizer tokenizer = Tokenizer::load(file_of(entries));
    for (std::size_t length : {1U, 2U, 3U, 10U, 40U}) {
      const std::string text = random_text(random, length, seed % 2 == 1);
      CAPTURE(seed, text);
      CHECK(tokenizer.encode(text) == encode_plainly(entries, text));
    }
  }
}

TEST_CASE("any bytes survive encode and decode", "[model][tokenizer]") {
  const Tokenizer tokenizer = Tokenizer::load(file_of(random_vocabulary(3)));
  std::mt19937_64 random(11);
  for (int round = 0; round < 200; ++round) {
    const std::string text = random_text(random, random() % 60, round % 2 == 1);
    const auto tokens = tokenizer.encode(text);
    CHECK(tokens.front() == Tokenizer::bos);
    CHECK(tokenizer.decode(tokens) == text);
    const auto bare = tokenizer.encode(text, false);
    CHECK(std::vector<Token>(tokens.begin() + 1, tokens.end()) == bare);
    CHECK(tokenizer.decode(bare) == text);
  }
  std::string every;
  for (int byte = 0; byte < 256; ++byte) every += static_cast<char>(byte);
  CHECK(tokenizer.decode(tokenizer.encode(every)) == every);
  CHECK(tokenizer.encode("") == std::vector<Token>{Tokenizer::bos});
  CHECK(tokenizer.encode("", false).empty());
}

TEST_CASE("a long text is encoded in no more than n log n", "[model][tokenizer]") {
  // A quadratic encoder needs minutes for this, and every merge here makes work for the next.
  std::vector<Entry> entries = with_bytes();
  for (std::string piece = "a"; piece.size() <= 32; piece += piece) {
    entries.push_back({piece, static_cast<float>(piece.size())});
  }
  entries.push_back({" ", 0});
  const Tokenizer tokenizer = Tokenizer::load(file_of(entries));
  const std::string text(400'000, 'a');
  const auto tokens = tokenizer.encode(text);
  CHECK(tokens.size() == 2 + text.size() / 32);
  CHECK(tokenizer.decode(tokens) == text);
}

TEST_CASE("decode takes off one space after BOS and spells bytes", "[model][tokenizer]") {
  std::vector<Entry> entries = with_bytes();
  entries.push_back({"  a", 0});
  entries.push_back({"<0xzz>", 0});
  const Tokenizer tokenizer = Tokenizer::load(file_of(entries));
  CHECK(tokenizer.vocab_size() == 261);
  CHECK(tokenizer.decode(Tokenizer::bos, 259) == " a");
  CHECK(tokenizer.decode(5, 259) == "  a");
  CHECK(tokenizer.decode(5, 3 + 0x0A) == "\n");
  CHECK(tokenizer.decode(5, 3 + 0x00) == std::string_view("\0", 1));
  CHECK(tokenizer.decode(5, 3 + 0xFF) == "\xFF");
  CHECK(tokenizer.decode(5, 260) == "<0xzz>");
  CHECK_THROWS_AS(tokenizer.decode(5, 261), std::invalid_argument);
  CHECK_THROWS_AS(tokenizer.decode(5, -1), std::invalid_argument);

  const Tokenizer copy = tokenizer;  // nothing in it points into itself
  CHECK(copy.encode("ab") == tokenizer.encode("ab"));
}

TEST_CASE("a text that a vocabulary cannot spell is refused", "[model][tokenizer]") {
  const Tokenizer tokenizer = Tokenizer::load(file_of({{"<unk>", 0}, {"<s>", 0}, {"</s>", 0}, {" ", 0}, {"a", 0}}));
  CHECK(tokenizer.encode("a") == std::vector<Token>{1, 3, 4});
  CHECK_THROWS_AS(tokenizer.encode("b"), std::invalid_argument);
}

TEST_CASE("tokenizers that are no tokenizers are refused", "[model][tokenizer]") {
  const std::vector<Entry> entries = {{"<unk>", 0}, {"<s>", 0}, {"</s>", 0}, {" ", 0}, {"ab", 0}};
  const auto whole = file_of(entries);
  CHECK(Tokenizer::load(whole).vocab_size() == 5);
  CHECK(Tokenizer::load(whole, 5).vocab_size() == 5);

  std::vector<std::size_t> ends = {4};  // where a file may end
  for (const Entry& entry : entries) ends.push_back(ends.back() + 8 + entry.piece.size());
  for (std::size_t size = 0; size < whole.size(); ++size) {
    const std::vector<std::byte> cut(whole.begin(), whole.begin() + static_cast<std::ptrdiff_t>(size));
    CHECK_THROWS_AS(Tokenizer::load(cut, 5), FormatError);
    const bool between = std::find(ends.begin(), ends.end(), size) != ends.end();
    if (!between) CHECK_THROWS_AS(Tokenizer::load(cut), FormatError);
  }
  refuse({}, 0, 0, "header of a llama2.c tokenizer");
  refuse(whole, 4, static_cast<Index>(ends[4]), "the end after 4 tokens");
  refuse(whole, 6, static_cast<Index>(whole.size()), "token 5 of 6");
  refuse(file_of(entries, 0), 5, 0, "positive longest length");
  refuse(file_of(entries, -1), 5, 0, "positive longest length");
  refuse(file_of(entries, 4), 5, 8, "between 0 and 4, found 5");
  refuse(file_of({{"<unk>", std::numeric_limits<float>::quiet_NaN()}}), 1, 4, "NaN");

  kvc_test::ByteWriter negative;
  negative.put(std::int32_t{8});
  negative.put(0.0F);
  negative.put(std::int32_t{-5});
  refuse(negative.take(), 1, 8, "found -5");
  CHECK_THROWS_AS(Tokenizer::load(whole, -1), std::invalid_argument);
  CHECK_THROWS_AS(Tokenizer::load(std::filesystem::path("/no/such/file")), FormatError);
}
