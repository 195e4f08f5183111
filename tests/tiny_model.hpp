// Small models with random weights, for tests that need a model but no meaning.
#pragma once

#include <bit>
#include <cstddef>
#include <cstdint>
#include <random>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "kvc/llama/checkpoint.hpp"
#include "kvc/llama/llama.hpp"

namespace kvc_test {

/// Two layers, head_dim 6, two query heads to a key/value head.
inline kvc::llama::Config tiny_config() {
  kvc::llama::Config config;
  config.dim = 24;
  config.hidden_dim = 40;
  config.layers = 2;
  config.heads = 4;
  config.kv_heads = 2;
  config.vocab_size = 61;
  config.seq_len = 96;
  return config;
}

/// Writes what a llama2.c checkpoint is made of.
class ByteWriter {
 public:
  template <class V>
  void put(V value) {
    const auto raw = std::bit_cast<std::array<std::byte, sizeof(V)>>(value);
    bytes_.insert(bytes_.end(), raw.begin(), raw.end());
  }
  void put_text(std::string_view text) {
    for (char c : text) put(c);
  }
  [[nodiscard]] std::size_t size() const { return bytes_.size(); }
  [[nodiscard]] std::vector<std::byte> take() { return std::move(bytes_); }

 private:
  std::vector<std::byte> bytes_;
};

/// A checkpoint with random weights; the classifier is the embedding unless `own_classifier`.
inline std::vector<std::byte> tiny_checkpoint(const kvc::llama::Config& c, bool own_classifier = false,
                                              std::uint64_t seed = 1) {
  ByteWriter out;
  for (kvc::Index value :
       {c.dim, c.hidden_dim, c.layers, c.heads, c.kv_heads, own_classifier ? -c.vocab_size : c.vocab_size, c.seq_len}) {
    out.put(static_cast<std::int32_t>(value));
  }
  std::mt19937_64 random(seed);
  const auto tensor = [&](kvc::Index count, float centre, float scale) {
    for (kvc::Index i = 0; i < count; ++i) {
      const auto unit = static_cast<float>(random() >> 40U) * 0x1p-23F - 1.0F;  // [-1, 1)
      out.put(centre + scale * unit);
    }
  };
  tensor(c.vocab_size * c.dim, 0, 1);
  tensor(c.layers * c.dim, 1, 0.2F);
  tensor(c.layers * c.dim * c.dim, 0, 0.6F);
  tensor(c.layers * c.kv_dim() * c.dim, 0, 0.6F);
  tensor(c.layers * c.kv_dim() * c.dim, 0, 0.6F);
  tensor(c.layers * c.dim * c.dim, 0, 0.4F);
  tensor(c.layers * c.dim, 1, 0.2F);
  tensor(c.layers * c.hidden_dim * c.dim, 0, 0.4F);
  tensor(c.layers * c.dim * c.hidden_dim, 0, 0.4F);
  tensor(c.layers * c.hidden_dim * c.dim, 0, 0.4F);
  tensor(c.dim, 1, 0.2F);
  tensor(c.seq_len * c.head_dim(), 0, 1);
  if (own_classifier) {
    tensor(c.vocab_size * c.dim, 0, 1);
  }
  return out.take();
}

inline kvc::llama::Model tiny_model(const kvc::llama::Config& config = tiny_config(), std::uint64_t seed = 1) {
  return kvc::llama::load_checkpoint(tiny_checkpoint(config, false, seed));
}

/// `count` tokens of a vocabulary, the first of them BOS.
inline std::vector<kvc::Token> random_tokens(kvc::Index count, kvc::Index vocab_size, std::uint64_t seed) {
  std::mt19937_64 random(seed);
  std::vector<kvc::Token> tokens(static_cast<std::size_t>(count), 1);
  for (std::size_t i = 1; i < tokens.size(); ++i) {
    tokens[i] = static_cast<kvc::Token>(random() % static_cast<std::uint64_t>(vocab_size));
  }
  return tokens;
}

/// The first bytes of files that people give to a loader of llama2.c files, and the names that it should give them.
struct ForeignFile {
  std::string bytes;
  std::string kind;
};
inline std::vector<ForeignFile> foreign_files() {
  using namespace std::string_literals;
  const std::string rest(600, '\0');
  const std::string text(600, 'x');
  return {
      {"GGUF\3\0\0\0"s + rest, "a GGUF file"},
      {"GGUF is another format, but this is text", "a GGUF file"},
      {"lmgg"s + rest, "a GGML file"},
      {"tjgg\3\0\0\0"s + rest, "a GGJT file"},
      {"24ka\1\0\0\0\x20\1\0\0"s + rest, "a llama2.c checkpoint of format version 1 (\"ak42\")"},
      {"24ka\2\0\0\0"s, "a llama2.c checkpoint of format version 2"},
      {"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 1048\n", "a Git LFS pointer"},
      {"/annex/objects/SHA256E-s1048--4d7a.bin\n", "a git-annex pointer"},
      {"<!DOCTYPE html>\n<html><head></head></html>", "an HTML page"},
      {"\n  <html lang=\"en\">" + text, "an HTML page"},
      {"\xEF\xBB\xBF<!doctype HTML>", "an HTML page"},
      {"\x1F\x8B\x08\0\0\0\0\0\0\3"s + rest, "a gzip file"},
      {"\x28\xB5\x2F\xFD"s + rest, "a Zstandard file"},
      {"\xFD\x37zXZ\0"s + rest, "an xz file"},
      {"PK\3\4"s + rest, "a ZIP archive, as PyTorch writes"},
      {"\x80\2\x8A\x0Al\xFC\x9C\x46\xF9\x20\x6A\xA8\x50\x19."s + rest, "a Python pickle"},
      {"\x80\4\x95\x1B\0\0\0\0\0\0\0"s + rest, "a Python pickle"},
      {"\x40\0\0\0\0\0\0\0{\"__metadata__\":{}}"s + rest, "a safetensors file"},
      {"\x93NUMPY\1\0"s + rest, "a NumPy array"},
      {"\x89KVC\r\n\x1A\n"s + rest, "a kvc snapshot"},
      {"\n\x0E\n\5<unk>\x15\0\0\0\0\x18\2\n"s + rest, "a SentencePiece model"},
      {"\7\0\0\0\0\0\0\0\5\0\0\0<unk>\0\0\0\0\5\0\0\0\n<s>\n"s, "a llama2.c tokenizer"},
      {"404: Not Found", "text that begins with \"404: Not Found\""},
      {"{\"error\": \"Repository not found\"}\nand more", "text that begins with \"{\"error\": \"Repository"},
      {"Once upon a time " + text, "text that begins with \"Once upon a time"},
      {"", "an empty file"},
  };
}

}  // namespace kvc_test
