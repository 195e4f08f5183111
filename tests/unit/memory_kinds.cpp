// The kinds of cache memory for which llama.cpp has a class each, as layer groups: every one over every policy.
#include <algorithm>
#include <numeric>
#include <span>
#include <string>
#include <vector>

#include "catch.hpp"
#include "kvc/layout/layer_groups.hpp"
#include "kvc/policy/contiguous.hpp"
#include "kvc/policy/paged.hpp"
#include "kvc/policy/prefix_shared.hpp"

namespace memory_kinds {
namespace {
using kvc::Index, kvc::LayerGroups, kvc::Pos, kvc::SeqId, kvc::Token;

// Llama 3.1 8B: all layers alike. llama_kv_cache.
kvc::LayerGroups plain() {
  kvc::LayerGroups layers;
  layers.add({.kv_heads = 8, .key_dim = 128}, 32);
  return layers;
}

// gpt-oss 20B: windows and full attention by turns. llama_kv_cache_iswa.
kvc::LayerGroups windows() {
  kvc::LayerGroups layers;
  for (int i = 0; i < 24; ++i) {
    layers.add({.kv_heads = 8, .key_dim = 64, .window = i % 2 == 0 ? 128 : 0});
  }
  return layers;
}

// DeepSeek V3.2: latent rows, and keys of an indexer for each layer. llama_kv_cache_dsa.
kvc::LayerGroups latent_and_index() {
  kvc::LayerGroups layers;
  layers.add({.kv_heads = 1, .key_dim = 576, .value_dim = 512, .latent = true}, 61);
  layers.add({.kv_heads = 1, .key_dim = 128, .latent = true}, 61);
  return layers;
}

// The same in one layer of four, the others with a window. llama_kv_cache_dsa_iswa. The numbers are made up.
kvc::LayerGroups latent_index_and_windows() {
  kvc::LayerGroups layers;
  for (int i = 0; i < 40; ++i) {
    layers.add(i % 4 == 3 ? kvc::LayerKind{.kv_heads = 1, .key_dim = 576, .value_dim = 512, .latent = true}
                          : kvc::LayerKind{.kv_heads = 8, .key_dim = 128, .window = 512});
  }
  layers.add({.kv_heads = 1, .key_dim = 128, .latent = true}, 10);
  return layers;
}

// DeepSeek V4 Flash: rows of a window, rows for 4 and for 128 tokens, index keys of the former, and states for what its
// compressors have of rows that are not complete (their size is made up). llama_kv_cache_dsv4.
kvc::LayerGroups compressed() {
  kvc::LayerGroups layers;
  layers.add({.kv_heads = 1, .key_dim = 512, .window = 128, .latent = true}, 43);
  layers.add({.kv_heads = 1, .key_dim = 512, .latent = true, .tokens_per_row = 4}, 21);
  layers.add({.kv_heads = 1, .key_dim = 512, .latent = true, .tokens_per_row = 128}, 20);
  layers.add({.kv_heads = 1, .key_dim = 128, .latent = true, .tokens_per_row = 4}, 21);
  layers.add_state(2 * 512 * 4, 62);
  return layers;
}

// Keys and values, and keys of an indexer that chooses blocks. llama_kv_cache_msa. The numbers are made up.
kvc::LayerGroups block_selection() {
  kvc::LayerGroups layers;
  layers.add({.kv_heads = 4, .key_dim = 128}, 48);
  layers.add({.kv_heads = 1, .key_dim = 64, .latent = true}, 48);
  return layers;
}

// Mamba 2.8B: states of 5120 x 16 floats, and three inputs of a convolution. llama_memory_recurrent.
kvc::LayerGroups recurrent() {
  kvc::LayerGroups layers;
  layers.add_state((5120 * 16 + 3 * 5120) * 4, 64);
  return layers;
}

// Jamba: one layer of eight attends. llama_memory_hybrid.
kvc::LayerGroups hybrid() {
  kvc::LayerGroups layers;
  for (int i = 0; i < 32; ++i) {
    i % 8 == 4 ? layers.add({.kv_heads = 8, .key_dim = 128}) : layers.add_state((8192 * 16 + 3 * 8192) * 4);
  }
  return layers;
}

// Every layer is recurrent, and attends as well: three of 32 to everything. llama_memory_hybrid_iswa. As Hymba.
kvc::LayerGroups hybrid_and_windows() {
  kvc::LayerGroups layers;
  for (int i = 0; i < 32; ++i) {
    layers.add({.kv_heads = 5, .key_dim = 64, .window = i == 0 || i == 15 || i == 31 ? 0 : 1024});
  }
  layers.add_state((3200 * 16 + 3 * 3200) * 4, 32);
  return layers;
}

// One layer of four attends, to positions that an indexer chooses. llama_memory_hybrid_idx. The numbers are made up.
kvc::LayerGroups hybrid_and_index() {
  kvc::LayerGroups layers;
  for (int i = 0; i < 48; ++i) {
    i % 4 == 3 ? layers.add({.kv_heads = 2, .key_dim = 256}) : layers.add_state(32 * 128 * 128 * 4);
  }
  layers.add({.kv_heads = 1, .key_dim = 128, .latent = true}, 12);
  return layers;
}

std::vector<LayerGroups> all_kinds() {
  return {plain(),           windows(),   latent_and_index(), latent_index_and_windows(), compressed(),
          block_selection(), recurrent(), hybrid(),           hybrid_and_windows(),       hybrid_and_index()};
}

/// Memory, in the unit of the rules, that the next query of a sequence of `length` tokens needs.
Index needed(const kvc::GroupRules& rules, Pos length) {
  Index sum = 0;
  for (const kvc::GroupRule& rule : rules.groups) {
    const Pos window = rule.retained.window;
    sum += (window == 0 ? length : std::min(window - 1, length)) * rule.row_weight;
  }
  for (const kvc::StateRule& rule : rules.states) {
    sum += rule.layers * rule.weight;
  }
  return sum;
}
/// Memory of a block.
template <class P>
Index block_weight(const P& policy) {
  Index most = 0;
  for (Index g = 0; g < policy.groups(); ++g) {
    most = std::max(most, policy.block_tokens(g) * policy.group_rules().groups[static_cast<std::size_t>(g)].row_weight);
  }
  for (const kvc::StateRule& rule : policy.group_rules().states) {
    most = std::max(most, rule.weight);
  }
  return most;
}

/// Extends a sequence by tokens in passes of 64, to `length`.
template <class P>
void serve(P& policy, SeqId seq, std::span<const Token> tokens, Pos length) {
  while (policy.length(seq) < length) {
    const Pos count = std::min<Pos>(64, length - policy.length(seq));
    const auto next = tokens.subspan(static_cast<std::size_t>(policy.length(seq)), static_cast<std::size_t>(count));
    REQUIRE(policy.try_extend(seq, count, next).has_value());
    policy.commit(seq);
  }
}

template <class P>
typename P::Config memory() {
  if constexpr (std::same_as<P, kvc::Contiguous>) {
    return {.sequences = 3, .max_tokens = 5000};
  } else {
    return {.blocks = 1000, .block_tokens = 16};
  }
}
}  // namespace

TEMPLATE_TEST_CASE("Each kind of memory that llama.cpp has a class for is a few layer groups", "[groups]",
                   kvc::Contiguous, kvc::Paged, kvc::PrefixShared<>) {
  for (const LayerGroups& layers : all_kinds()) {
    CAPTURE(layers.layers(), layers.groups().size(), layers.states().size());
    const kvc::GroupRules rules = layers.rules();
    TestType policy(memory<TestType>(), rules);
    std::vector<Token> tokens(2000);
    std::iota(tokens.begin(), tokens.end(), 1);
    const SeqId seq = policy.try_open(std::span(tokens).first(1500))->seq;
    serve(policy, seq, tokens, 1500);
    for (Index g = 0; g < policy.groups(); ++g) {
      const Pos window = rules.groups[static_cast<std::size_t>(g)].retained.window;
      Pos rows = 0;
      policy.for_each_run(seq, g, {0, 1500}, [&](const kvc::SlotRun& run) { rows += run.count; });
      CHECK(rows == (window == 0 ? 1500 : window - 1));
      const bool pools = std::same_as<TestType, kvc::Contiguous>;  // one piece for each sequence
      CHECK((pools || policy.block_tokens(g) % rules.groups[static_cast<std::size_t>(g)].grain == 0));
    }
    if constexpr (!std::same_as<TestType, kvc::Contiguous>) {
      // Beside the ends of blocks, one block for each group and kind of states; PrefixShared keeps a block more of a
      // window, and the states of the last whole node as well.
      const Index kinds = policy.groups() + std::ssize(rules.states);
      const double held = static_cast<double>(policy.stats().blocks_referenced * block_weight(policy));
      Index states = 0;
      for (const kvc::StateRule& rule : rules.states) {
        states += rule.layers * rule.weight;
      }
      const bool shares = std::same_as<TestType, kvc::PrefixShared<>>;
      CHECK(held <= 1.04 * static_cast<double>(needed(rules, 1500) + (shares ? states : 0)) +
                        static_cast<double>((shares ? 2 : 1) * kinds * block_weight(policy)));
    }
    const SeqId fork = policy.try_fork(seq, 1500)->seq;
    serve(policy, fork, tokens, 1600);
    serve(policy, seq, tokens, 1550);
    policy.verify();
    policy.close(fork);
    policy.close(seq);
    if constexpr (std::same_as<TestType, kvc::PrefixShared<>>) {
      const auto again = *policy.try_open(std::span(tokens).first(1700));
      CHECK(again.cached > 1400);
      policy.close(again.seq);
    }
    policy.verify();
    CHECK(policy.stats().blocks_referenced == 0);
  }
}

}  // namespace memory_kinds
