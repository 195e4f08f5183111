// HeldMemory: the memory that sequences of a model hold in the real policy, beside what their next queries need. It is
// counted, not timed: benchmarks/layer_groups prints it, and tests/oracle/held_memory.cpp tests it.
#pragma once

#include <algorithm>
#include <cstddef>
#include <numeric>
#include <optional>
#include <span>
#include <vector>

#include "kvc/layout/layer_groups.hpp"
#include "kvc/policy/detail/block_sizes.hpp"

namespace kvc_bench {

using kvc::Index;
using kvc::Pos;

struct GroupedModel {
  const char* name;
  kvc::LayerGroups layers;
};

/// `count` layers of which every `period`-th is `full` and the others are `local`.
inline kvc::LayerGroups alternating(Index count, Index period, kvc::LayerKind local, kvc::LayerKind full) {
  kvc::LayerGroups layers;
  for (Index i = 0; i < count; ++i) {
    layers.add(i % period == period - 1 ? full : local);
  }
  return layers;
}

/// `count` layers of which one in every `period` stores rows, the first one number `first`, and the others have states.
inline kvc::LayerGroups hybrid(Index count, Index period, Index first, Index state_bytes, kvc::LayerKind rows) {
  kvc::LayerGroups layers;
  for (Index i = 0; i < count; ++i) {
    i % period == first ? layers.add(rows) : layers.add_state(state_bytes);
  }
  return layers;
}

/// The models of the table in docs/layer-groups.md.
inline std::vector<GroupedModel> grouped_models() {
  kvc::LayerGroups mllama;  // Llama 3.2 Vision 11B: every fifth layer reads the rows of an image of four tiles
  for (Index i = 0; i < 40; ++i) {
    mllama.add({.kv_heads = 8, .key_dim = 128, .cross_rows = i % 5 == 3 ? 4 * 1601 : 0});
  }
  kvc::LayerGroups deepseek;  // V3.2: latent rows, and beside each layer the keys of its indexer
  deepseek.add({.kv_heads = 1, .key_dim = 576, .value_dim = 512, .latent = true}, 61);
  deepseek.add({.kv_heads = 1, .key_dim = 128, .latent = true}, 61);
  kvc::LayerGroups kimi;  // K2: latent rows alone
  kimi.add({.kv_heads = 1, .key_dim = 576, .value_dim = 512, .latent = true}, 61);
  return {
      {"Gemma 3 27B",
       alternating(62, 6, {.kv_heads = 16, .key_dim = 128, .window = 1024}, {.kv_heads = 16, .key_dim = 128})},
      {"Gemma 3 270M",
       alternating(18, 6, {.kv_heads = 1, .key_dim = 256, .window = 512}, {.kv_heads = 1, .key_dim = 256})},
      {"gpt-oss 20B",
       alternating(24, 2, {.kv_heads = 8, .key_dim = 64, .window = 128}, {.kv_heads = 8, .key_dim = 64})},
      {"Ministral-like",
       alternating(36, 4, {.kv_heads = 8, .key_dim = 128, .window = 4096}, {.kv_heads = 8, .key_dim = 128})},
      {"Llama 4", alternating(48, 4, {.kv_heads = 8, .key_dim = 128, .chunk = 8192}, {.kv_heads = 8, .key_dim = 128})},
      {"mllama", mllama},
      {"DeepSeek V3.2", deepseek},
      {"Kimi K2", kimi},
      // 32 value heads of 128 x 128 in float, and three inputs of the convolution in bfloat16
      {"Qwen3-Next 80B", hybrid(48, 4, 3, 32 * 128 * 128 * 4 + 3 * 8192 * 2, {.kv_heads = 2, .key_dim = 256})},
      // 8192 channels of 16 numbers in float, and three inputs of the convolution in bfloat16
      {"Jamba", hybrid(32, 8, 4, 8192 * 16 * 4 + 3 * 8192 * 2, {.kv_heads = 8, .key_dim = 128})},
  };
}

/// What `sequences` sequences of `length` tokens each hold.
struct HeldMemory {
  Index sequences = 64;
  Pos length = 32'000;
  Pos pass = 2'048;         ///< tokens of one pass of their prefill
  Index element_bytes = 2;  ///< bf16

  /// Bytes of one token in all layers of a group.
  [[nodiscard]] Index row_bytes(const kvc::LayerGroup& group) const {
    const kvc::Shape& shape = group.shape;
    return shape.layers * shape.kv_heads * (shape.key_dim + (group.latent ? 0 : shape.value_dim)) * element_bytes;
  }
  [[nodiscard]] kvc::GroupRules rules(const kvc::LayerGroups& layers) const {
    return layers.rules([this](const kvc::LayerGroup& group) { return row_bytes(group); });
  }
  /// Positions that the next query of a sequence sees.
  [[nodiscard]] Index rows_needed(const kvc::LayerGroup& group) const {
    return group.cross_rows > 0
               ? group.cross_rows
               : length - std::min(std::max(group.retained.first_seen(length), group.retained.kept), length);
  }
  /// Bytes of the states of all recurrent layers.
  [[nodiscard]] Index state_bytes(const kvc::LayerGroups& layers) const {
    Index bytes = 0;
    for (const kvc::StateGroup& kind : layers.states()) {
      bytes += sequences * kind.layers * kind.bytes;
    }
    return bytes;
  }
  /// Bytes that the next queries need.
  [[nodiscard]] Index needed_bytes(const kvc::LayerGroups& layers) const {
    Index bytes = state_bytes(layers);
    for (const kvc::LayerGroup& group : layers.groups()) {
      bytes += sequences * rows_needed(group) * row_bytes(group);
    }
    return bytes;
  }
  /// The same if every layer keeps every row.
  [[nodiscard]] Index one_shape_bytes(const kvc::LayerGroups& layers) const {
    Index bytes = state_bytes(layers);
    for (const kvc::LayerGroup& group : layers.groups()) {
      bytes += sequences * std::max<Index>(length, group.cross_rows) * row_bytes(group);
    }
    return bytes;
  }
  /// The same in groups of as many layers as the smallest group has, padded, in pages of 16 tokens.
  [[nodiscard]] Index padded_bytes(const kvc::LayerGroups& layers) const {
    Index least = layers.layers();
    for (const kvc::LayerGroup& group : layers.groups()) {
      least = std::min(least, group.shape.layers);
    }
    Index bytes = 0;
    for (const kvc::LayerGroup& group : layers.groups()) {
      kvc::LayerGroup page = group;
      page.shape.layers = kvc::ceil_div(group.shape.layers, least) * least;
      bytes += kvc::ceil_div(rows_needed(group), Index{16}) * 16 * row_bytes(page);
    }
    return sequences * bytes + state_bytes(layers);
  }
  /// Bytes of a block of at least `block_tokens` tokens.
  [[nodiscard]] Index block_bytes(const kvc::LayerGroups& layers, Pos block_tokens) const {
    const kvc::GroupRules all = rules(layers);
    const kvc::detail::BlockSizes sizes = kvc::detail::block_sizes(all, block_tokens);
    Index bytes = 0;
    for (std::size_t g = 0; g < all.groups.size(); ++g) {
      bytes = std::max(bytes, sizes.tokens[g] * all.groups[g].row_weight);
    }
    for (const kvc::StateRule& rule : all.states) {
      bytes = std::max(bytes, rule.weight);
    }
    return bytes;
  }
  /// 1.03 times what is needed, and one block for each sequence and layer group, or kind of states.
  [[nodiscard]] Index bound_bytes(const kvc::LayerGroups& layers, Pos block_tokens) const {
    const Index tables = std::ssize(layers.groups()) + std::ssize(layers.states());
    return needed_bytes(layers) * 103 / 100 + sequences * tables * block_bytes(layers, block_tokens);
  }

  /// Bytes of the blocks that the sequences hold in policy P after their prefill. Empty if it has found no room.
  template <class P>
  [[nodiscard]] std::optional<Index> held_bytes(const kvc::LayerGroups& layers, Pos block_tokens) const {
    const Index bytes = block_bytes(layers, block_tokens);
    P policy({.blocks = one_shape_bytes(layers) / bytes + 64 * sequences, .block_tokens = block_tokens}, rules(layers));
    std::vector<kvc::Token> tokens(static_cast<std::size_t>(length));
    for (Index i = 0; i < sequences; ++i) {
      std::iota(tokens.begin(), tokens.end(), static_cast<kvc::Token>(i * length));  // no two begin alike
      const kvc::SeqId seq = policy.try_open(tokens)->seq;
      for (Pos done = 0; done < length; done += pass) {
        const Pos count = std::min(pass, length - done);
        const auto these = std::span(tokens).subspan(static_cast<std::size_t>(done), static_cast<std::size_t>(count));
        if (!policy.try_extend(seq, count, these)) {
          return std::nullopt;
        }
        policy.commit(seq);
      }
    }
    return policy.stats().blocks_referenced * bytes;
  }
};

}  // namespace kvc_bench
