// Small models with random weights, for tests that need a model but no meaning.
#pragma once

#include <bit>
#include <cstddef>
#include <cstdint>
#include <random>
#include <span>
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

}  // namespace kvc_test
