// Layer groups: the layers of real models in a few lines each, and what one sequence holds in them. Bookkeeping only:
// the policy works without one byte of keys and values.
#include <algorithm>
#include <cstdio>
#include <numeric>
#include <span>
#include <utility>
#include <vector>

#include "../usage.hpp"
#include "kvc/cache.hpp"
#include "kvc/core/matrix.hpp"
#include "kvc/element/float16.hpp"
#include "kvc/element/quantized.hpp"
#include "kvc/policy/paged.hpp"
#include "kvc/policy/prefix_shared.hpp"

namespace {

using Matrix = Eigen::Matrix<float, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;

kvc::LayerGroups mistral_7b() {
  kvc::LayerGroups layers;
  layers.add({.kv_heads = 8, .key_dim = 128, .window = 4096}, 32);
  return layers;
}

kvc::LayerGroups gemma_2_9b() {
  kvc::LayerGroups layers;
  for (int i = 0; i < 42; ++i) {
    layers.add({.kv_heads = 8, .key_dim = 256, .window = i % 2 == 0 ? 4096 : 0});
  }
  return layers;
}

kvc::LayerGroups gemma_3_27b() {
  kvc::LayerGroups layers;
  for (int i = 0; i < 62; ++i) {
    layers.add({.kv_heads = 16, .key_dim = 128, .window = i % 6 == 5 ? 0 : 1024});
  }
  return layers;
}

kvc::LayerGroups gemma_3_270m() {
  kvc::LayerGroups layers;
  for (int i = 0; i < 18; ++i) {
    layers.add({.kv_heads = 1, .key_dim = 256, .window = i % 6 == 5 ? 0 : 512});
  }
  return layers;
}

kvc::LayerGroups gemma_3n_e4b() {
  kvc::LayerGroups layers;
  for (int i = 0; i < 20; ++i) {
    layers.add({.kv_heads = 2, .key_dim = 256, .window = i % 5 == 4 ? 0 : 512});
  }
  for (int i = 20; i < 35; ++i) {
    layers.add_reader_of(i % 5 == 4 ? 19 : 18);  // the last layer of its kind that has rows of its own
  }
  return layers;
}

kvc::LayerGroups gpt_oss_20b() {
  kvc::LayerGroups layers;
  for (int i = 0; i < 24; ++i) {
    layers.add({.kv_heads = 8, .key_dim = 64, .window = i % 2 == 0 ? 128 : 0});
  }
  return layers;
}

/// Three layers with a window for each one without, as in Ministral.
kvc::LayerGroups ministral_like() {
  kvc::LayerGroups layers;
  for (int i = 0; i < 36; ++i) {
    layers.add({.kv_heads = 8, .key_dim = 128, .window = i % 4 == 0 ? 0 : 4096});
  }
  return layers;
}

kvc::LayerGroups llama_4_scout() {
  kvc::LayerGroups layers;
  for (int i = 0; i < 48; ++i) {
    layers.add({.kv_heads = 8, .key_dim = 128, .chunk = i % 4 == 3 ? 0 : 8192});
  }
  return layers;
}

/// Llama 3.2 Vision 11B. Every fifth layer reads the rows of an image: four tiles of 1601 rows.
kvc::LayerGroups mllama() {
  kvc::LayerGroups layers;
  for (int i = 0; i < 40; ++i) {
    layers.add({.kv_heads = 8, .key_dim = 128, .cross_rows = i % 5 == 3 ? 4 * 1601 : 0});
  }
  return layers;
}

/// Latent rows (MLA): the value is the beginning of the key. Behind the layers, the keys of their indexers.
kvc::LayerGroups deepseek_v3_2() {
  kvc::LayerGroups layers;
  layers.add({.kv_heads = 1, .key_dim = 576, .value_dim = 512, .latent = true}, 61);
  layers.add({.kv_heads = 1, .key_dim = 128, .latent = true}, 61);
  return layers;
}

/// Recurrent layers have a state instead of rows: 32 matrices of 128 x 128 in float, and the last three inputs of a
/// convolution of 8192 channels in bfloat16.
kvc::LayerGroups qwen3_next_80b() {
  kvc::LayerGroups layers;
  for (int i = 0; i < 48; ++i) {
    i % 4 == 3 ? layers.add({.kv_heads = 2, .key_dim = 256}) : layers.add_state(32 * 128 * 128 * 4 + 3 * 8192 * 2);
  }
  return layers;
}

/// Jamba: one layer of eight attends, the others are Mamba.
kvc::LayerGroups jamba() {
  kvc::LayerGroups layers;
  for (int i = 0; i < 32; ++i) {
    i % 8 == 4 ? layers.add({.kv_heads = 8, .key_dim = 128}) : layers.add_state(8192 * 16 * 4 + 3 * 8192 * 2);
  }
  return layers;
}

/// Prints the rows that one sequence of 32,000 tokens holds, prefilled in passes of 2,000, beside one shape for all
/// layers.
void hold(const char* name, const kvc::LayerGroups& layers) {
  constexpr kvc::Pos tokens = 32'000;
  const kvc::GroupRules rules = layers.rules(kvc::row_bytes<Eigen::bfloat16>);
  kvc::Paged policy({.blocks = 20'000, .block_tokens = 16}, rules);
  const kvc::SeqId seq = policy.try_open()->seq;
  for (kvc::Pos done = 0; done < tokens; done += 2'000) {
    (void)policy.try_extend(seq, 2'000).value();
    policy.commit(seq);
  }
  kvc::Index block = 0;  // bytes
  kvc::Index one_shape = 0;
  for (kvc::Index g = 0; g < policy.groups(); ++g) {
    const kvc::GroupRule& rule = rules.groups[static_cast<std::size_t>(g)];
    block = std::max(block, policy.block_tokens(g) * rule.row_weight);
    one_shape += tokens * rule.row_weight;
  }
  for (const kvc::StateRule& rule : rules.states) {
    one_shape += rule.layers * rule.weight;
  }
  constexpr double mib = 1 << 20;
  std::printf("%-14s  %3ld layers, %2ld groups  %7.0f MiB  %7.0f MiB\n", name, static_cast<long>(layers.layers()),
              static_cast<long>(policy.groups()) + static_cast<long>(rules.states.size()),
              static_cast<double>(policy.stats().blocks_referenced * block) / mib,
              static_cast<double>(one_shape) / mib);
}

/// Latent rows in bfloat16, and the keys of an indexer in 8 bits: two caches, driven as one.
struct TwoCaches {
  kvc::KvCache<Eigen::bfloat16, kvc::PrefixShared<>> latent;
  kvc::KvCache<kvc::Fp8E4M3, kvc::PrefixShared<>> index;

  /// A sequence in both, with the prefix that both have.
  std::pair<kvc::Opened, kvc::Opened> open(std::span<const kvc::Token> prompt) {
    kvc::Opened a = latent.open(prompt);
    kvc::Opened b = index.open(prompt);
    const kvc::Pos both = std::min(a.cached, b.cached);
    latent.truncate(a.seq, both);
    index.truncate(b.seq, both);
    return {{a.seq, both}, {b.seq, both}};
  }
  /// False, and neither has changed, if one of them has no room: an append that is not committed takes itself back.
  template <class Write>
  bool extend(kvc::SeqId a, kvc::SeqId b, std::span<const kvc::Token> tokens, Write&& write) {
    auto of_latent = latent.try_extend(a, tokens);
    auto of_index = index.try_extend(b, tokens);
    if (!of_latent || !of_index) {
      return false;
    }
    write(*of_latent, *of_index);
    latent.commit(std::move(*of_latent));
    index.commit(std::move(*of_index));
    return true;
  }
};

/// Two requests with one beginning, and one for which only one of the caches has room.
void serve_from_two_caches() {
  kvc::LayerGroups rows;
  rows.add({.kv_heads = 1, .key_dim = 576, .value_dim = 512, .latent = true}, 2);
  kvc::LayerGroups keys;
  keys.add({.kv_heads = 1, .key_dim = 128, .latent = true}, 2);
  TwoCaches caches{decltype(TwoCaches::latent)(rows, {.blocks = 8, .block_tokens = 16}),
                   decltype(TwoCaches::index)(keys, {.blocks = 4, .block_tokens = 16})};
  std::vector<kvc::Token> prompt(40);
  std::iota(prompt.begin(), prompt.end(), 1);
  const auto serve = [&](std::span<const kvc::Token> tokens) {
    const auto [a, b] = caches.open(tokens);
    const auto rest = tokens.subspan(static_cast<std::size_t>(a.cached));
    const bool has_room = caches.extend(a.seq, b.seq, rest, [&](const auto& of_latent, const auto& of_index) {
      const auto count = static_cast<kvc::Index>(rest.size());
      for (kvc::Index layer = 0; layer < 2; ++layer) {
        caches.latent.write(layer, of_latent, Matrix::Zero(count, 576));
        caches.index.write(layer, of_index, Matrix::Zero(count, 128));
      }
    });
    std::printf("%3ld tokens: %2d found in both caches, %s; lengths %ld and %ld\n", static_cast<long>(tokens.size()),
                a.cached, has_room ? "the rest is computed" : "no room for the rest",
                static_cast<long>(caches.latent.length(a.seq)), static_cast<long>(caches.index.length(b.seq)));
    caches.latent.close(a.seq);
    caches.index.close(b.seq);
  };
  serve(prompt);
  serve(prompt);
  prompt.resize(100, 7);
  serve(prompt);
}

}  // namespace

int main(int argc, char** argv) {
  return run_example(argc, argv, "The layer groups of twelve models, and what a long sequence holds in them.", [] {
    std::printf("%-14s  %22s  %11s  %11s\n", "", "", "groups", "one shape");
    hold("Mistral 7B", mistral_7b());
    hold("Gemma 2 9B", gemma_2_9b());
    hold("Gemma 3 27B", gemma_3_27b());
    hold("Gemma 3 270M", gemma_3_270m());
    hold("Gemma 3n E4B", gemma_3n_e4b());
    hold("gpt-oss 20B", gpt_oss_20b());
    hold("Ministral-like", ministral_like());
    hold("Llama 4 Scout", llama_4_scout());
    hold("mllama", mllama());
    hold("DeepSeek V3.2", deepseek_v3_2());
    hold("Qwen3-Next 80B", qwen3_next_80b());
    hold("Jamba", jamba());
    std::printf("\n");
    serve_from_two_caches();
  });
}
