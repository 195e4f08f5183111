// A model most of whose layers are recurrent, as in Qwen3-Next: they have a state instead of rows. Two questions about
// one document: the second one begins from the state behind the document, and gives the numbers of a cache that had not
// seen it. Shows what an extension wants to be written, and to which lengths a sequence can go back.
//
// The layers are made up: each state is a sum of inputs that fade, and rows of keys depend on the token alone.
#include "usage.hpp"

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <numeric>
#include <span>
#include <stdexcept>
#include <vector>

#include "kvc/attention/prefill.hpp"
#include "kvc/cache.hpp"
#include "kvc/policy/prefix_shared.hpp"

namespace {

using Cache = kvc::KvCache<float, kvc::PrefixShared<>>;
using Tokens = std::vector<kvc::Token>;

constexpr kvc::Index model_layers = 4;
constexpr kvc::Index dim = 32;
using State = std::array<float, 256>;

kvc::LayerGroups recurrent_model() {
  kvc::LayerGroups layers;
  for (kvc::Index i = 0; i < model_layers; ++i) {
    i % 4 == 3 ? layers.add({.kv_heads = 1, .key_dim = dim}) : layers.add_state(sizeof(State));
  }
  return layers;
}

/// Reads the tokens of an append from the state before them, and writes the states that the cache wants. Returns the
/// sum of the last one.
float recurrent_layer(Cache& cache, kvc::Index layer, const Cache::Append& append, std::span<const kvc::Token> tokens) {
  State state{};  // that of no tokens
  if (const std::span<const std::byte> before = cache.state(layer, append.seq()); !before.empty()) {
    std::memcpy(state.data(), before.data(), sizeof(state));
  }
  kvc::Pos length = append.range().first;
  for (const kvc::Pos wanted : cache.states_to_write(append)) {
    for (; length < wanted; ++length) {
      const auto token = static_cast<float>(tokens[static_cast<std::size_t>(length - append.range().first)]);
      for (std::size_t i = 0; i < state.size(); ++i) {
        state[i] = 0.9F * state[i] + std::sin(token * static_cast<float>(layer + 1) + static_cast<float>(i));
      }
    }
    std::memcpy(cache.state_to_write(layer, append, wanted).data(), state.data(), sizeof(state));
  }
  return std::accumulate(state.begin(), state.end(), 0.0F);
}

/// Rows that depend on the token, and attention over them. Returns the sum of the last result.
float attention_layer(Cache& cache, kvc::Index layer, const Cache::Append& append, std::span<const kvc::Token> tokens) {
  const auto count = static_cast<kvc::Index>(tokens.size());
  std::vector<float> rows(tokens.size() * dim), out(rows.size());
  for (std::size_t i = 0; i < rows.size(); ++i) {
    rows[i] = std::sin(static_cast<float>(tokens[i / dim]) + static_cast<float>(i % dim));
  }
  cache.write(layer, append, {rows.data(), count, dim}, {rows.data(), count, dim});
  kvc::prefill(cache.view(layer, append.seq()), append.range(), {rows.data(), count, dim}, {out.data(), count, dim});
  return std::accumulate(out.end() - dim, out.end(), 0.0F);
}

/// One pass of the model over the next tokens of a sequence.
float pass(Cache& cache, kvc::SeqId seq, std::span<const kvc::Token> tokens) {
  auto append = cache.extend(seq, tokens);
  std::printf("  tokens %d to %d, states wanted after", append.range().first, append.range().last);
  for (const kvc::Pos length : cache.states_to_write(append)) {
    std::printf(" %d", length);
  }
  std::printf("\n");
  float sum = 0;
  for (kvc::Index layer = 0; layer < model_layers; ++layer) {
    sum += cache.layers().is_recurrent(layer) ? recurrent_layer(cache, layer, append, tokens)
                                              : attention_layer(cache, layer, append, tokens);
  }
  cache.commit(std::move(append));  // older states are released
  return sum;
}

/// Computes what is not found of a prompt.
float answer(Cache& cache, const Tokens& prompt, kvc::SeqId& seq) {
  const kvc::Opened opened = cache.open(prompt);
  seq = opened.seq;
  return pass(cache, seq, std::span(prompt).subspan(static_cast<std::size_t>(opened.cached)));
}

/// A document of 200 tokens, and a question of 30.
Tokens question(kvc::Token first) {
  Tokens tokens(230);
  std::iota(tokens.begin(), tokens.begin() + 200, 1);
  std::iota(tokens.begin() + 200, tokens.end(), first);
  return tokens;
}

int compare() {
  Cache cache(recurrent_model(), {.blocks = 100, .block_tokens = 8});
  kvc::SeqId seq;
  std::printf("the document alone:\n");
  Tokens document = question(0);
  document.resize(200);
  answer(cache, document, seq);
  cache.close(seq);

  std::printf("the first question about it, and the second:\n");
  answer(cache, question(1000), seq);
  kvc::SeqId second;
  const float found = answer(cache, question(2000), second);

  std::printf("the second question, to a cache that knows nothing:\n");
  Cache fresh(recurrent_model(), {.blocks = 100, .block_tokens = 8});
  kvc::SeqId other;
  const float computed = answer(fresh, question(2000), other);
  if (found != computed) {
    std::printf("the numbers differ\n");
    return 1;
  }

  std::printf("the numbers are the same\n\n");
  try {
    cache.truncate(seq, 210);
    return 1;
  } catch (const std::invalid_argument& error) {
    std::printf("%s\n", error.what());
  }
  return 0;
}

}  // namespace

int main(int argc, char** argv) {
  return run_example(argc, argv, "A model with recurrent layers: states to read and to write, and a prefix hit.",
                     compare);
}
