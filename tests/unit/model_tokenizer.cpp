// The tokenizer against a plain encoder, on any bytes, and on files that are not what they should be.
#include <limits>
#include <optional>
#include <random>
#include <string>

#include "catch.hpp"
#include "kvc/llama/tokenizer.hpp"
#include "random_source.hpp"
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

/// How a text is cut into characters: the length of the first one.
using Cut = std::size_t (*)(const std::string& rest);

bool continues(char c) { return (static_cast<unsigned char>(c) & 0xC0U) == 0x80U; }

/// The rule that kvc documents: the bytes that UTF-8 puts together.
std::size_t cut_utf8(const std::string& rest) {
  const auto lead = static_cast<unsigned char>(rest[0]);
  std::size_t wanted = 0;
  if (lead >> 5U == 0b110U) wanted = 1;
  if (lead >> 4U == 0b1110U) wanted = 2;
  if (lead >> 3U == 0b11110U) wanted = 3;
  std::size_t found = 0;
  while (found < wanted && 1 + found < rest.size() && continues(rest[1 + found])) ++found;
  return 1 + found;
}

/// The rule of llama2.c: any byte, and continuation bytes up to four in all.
std::size_t cut_like_llama2c(const std::string& rest) {
  std::size_t length = 1;
  while (length < 4 && length < rest.size() && continues(rest[length])) ++length;
  return length;
}

/// The definition: look at all pairs, merge the best, start again.
std::vector<Token> encode_plainly(const std::vector<Entry>& entries, const std::string& text, Cut cut = cut_utf8) {
  const auto find = [&](const std::string& piece) -> Token {
    for (std::size_t id = 0; id < entries.size(); ++id) {
      if (entries[id].piece == piece) return static_cast<Token>(id);
    }
    return -1;
  };
  std::vector<Token> tokens;
  for (std::string rest = text.empty() ? "" : " " + text; !rest.empty();) {
    const std::size_t n = cut(rest);
    if (const Token token = find(rest.substr(0, n)); token >= 0) {
      tokens.push_back(token);
    } else {
      for (std::size_t j = 0; j < n; ++j) tokens.push_back(3 + static_cast<unsigned char>(rest[j]));
    }
    rest.erase(0, n);
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

/// Whether the two cuts differ anywhere in a text, the space in front included.
bool cuts_differ(const std::string& text) {
  std::string a = " " + text;
  for (; !a.empty(); a.erase(0, cut_utf8(a))) {
    if (cut_utf8(a) != cut_like_llama2c(a)) return true;
  }
  return false;
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

TEST_CASE("encode gives the tokens of llama2.c where text is UTF-8, and the documented ones anywhere",
          "[model][tokenizer]") {
  std::mt19937_64 random(23);
  int equal_cuts = 0;
  int other_tokens = 0;
  for (int round = 0; round < 10'000; ++round) {
    static std::vector<Entry> entries;
    static std::optional<Tokenizer> tokenizer;
    if (round % 500 == 0) {
      entries = random_vocabulary(100 + static_cast<std::uint64_t>(round));
      tokenizer.emplace(Tokenizer::load(file_of(entries)));
    }
    const std::string text = random_text(random, random() % 12, round % 4 != 0);
    CAPTURE(round, text);
    const auto tokens = tokenizer->encode(text);
    REQUIRE(tokens == encode_plainly(entries, text));
    const auto theirs = encode_plainly(entries, text, cut_like_llama2c);
    if (cuts_differ(text)) {
      other_tokens += tokens != theirs ? 1 : 0;
    } else {
      REQUIRE(tokens == theirs);
      ++equal_cuts;
    }
  }
  CHECK(equal_cuts > 3000);
  CHECK(other_tokens > 1000);  // the two rules are told apart
}

TEST_CASE("a stray continuation byte leaves its neighbours alone", "[model][tokenizer]") {
  std::vector<Entry> entries = with_bytes();
  for (const char* c : {" ", "a", "s", "y", "h", "\xC3\xA9"}) entries.push_back({c, 0});
  const Tokenizer tokenizer = Tokenizer::load(file_of(entries));
  const Token space = 259, a = 260, s = 261, y = 262, h = 263, e_acute = 264;
  const auto byte = [](int value) { return 3 + value; };
  const auto encode = [&](std::string_view text) { return tokenizer.encode(text, false); };
  CHECK(encode("say \x93hay\x94") ==
        std::vector<Token>{space, s, a, y, space, byte(0x93), h, a, y, byte(0x94)});  // quotes of Windows-1252
  CHECK(encode("\x80") == std::vector<Token>{space, byte(0x80)});
  CHECK(encode("a\x80\x81\x82\x83") == std::vector<Token>{space, a, byte(0x80), byte(0x81), byte(0x82), byte(0x83)});
  CHECK(encode("\xC3\xA9\xA9") == std::vector<Token>{space, e_acute, byte(0xA9)});     // one too many
  CHECK(encode("\xC3") == std::vector<Token>{space, byte(0xC3)});                      // none
  CHECK(encode("\xC3y\xA9") == std::vector<Token>{space, byte(0xC3), y, byte(0xA9)});  // apart
  CHECK(encode("\xC3\xC3\xA9") == std::vector<Token>{space, byte(0xC3), e_acute});     // cut short, then whole
  CHECK(encode("\xFF\x80y") == std::vector<Token>{space, byte(0xFF), byte(0x80), y});  // no lead byte
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
  const std::string text(static_cast<std::size_t>(kvc_test::cases_or(12'500)) * 32, 'a');
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
  const auto blames = [](int offset, const char* value) {
    return kvc_test::contains("the byte at offset " + std::to_string(offset) + " of the text is " + value);
  };
  CHECK_THROWS_WITH(tokenizer.encode("a\x80"), blames(1, "0x80"));
  CHECK_THROWS_WITH(tokenizer.encode("\x80"), blames(0, "0x80"));
  CHECK_THROWS_WITH(tokenizer.encode("aa \xC3\xA9"), blames(3, "0xC3"));
  CHECK_THROWS_WITH(tokenizer.encode(std::string(240, 'a') + "b"), blames(240, "0x62"));
  CHECK_THROWS_WITH(tokenizer.encode(std::string("a\0", 2)), blames(1, "0x00"));
  const Tokenizer no_space = Tokenizer::load(file_of({{"<unk>", 0}, {"<s>", 0}, {"</s>", 0}, {"a", 0}}));
  CHECK_THROWS_WITH(no_space.encode("a"), kvc_test::contains("the space in front of the text is 0x20"));
  CHECK(no_space.encode("") == std::vector<Token>{1});
  // A byte of a character that can be spelt in part.
  const Tokenizer half =
      Tokenizer::load(file_of({{"<unk>", 0}, {"<s>", 0}, {"</s>", 0}, {" ", 0}, {"<0xC3>", 0}, {"a", 0}}));
  CHECK_THROWS_WITH(half.encode("a\xC3\xA9"), blames(2, "0xA9"));
}

TEST_CASE("a file of another kind is not taken for a tokenizer", "[model][tokenizer]") {
  for (const auto& [bytes, kind] : kvc_test::foreign_files()) {
    CAPTURE(kind);
    if (kind == "a llama2.c tokenizer") continue;
    kvc_test::ByteWriter out;
    out.put_text(bytes);
    refuse(out.take(), 0, 0, "a llama2.c tokenizer, found " + kind);
  }
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
  refuse({}, 0, 0, "a llama2.c tokenizer, found an empty file");
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
