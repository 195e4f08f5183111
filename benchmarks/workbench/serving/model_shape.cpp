#include "model_shape.hpp"

#include <algorithm>
#include <cmath>

namespace serving {

const std::vector<ModelShape>& known_models() {
  // Shapes: config.json of the models as their makers published them, at bf16; the small one is fp32.
  static const std::vector<ModelShape> models = {
      {"llama-3-8b", 32, 4096, 32, 8, 128, 14336, 128256, false, 2, 2, "config.json of meta-llama/Meta-Llama-3-8B"},
      {"llama-3-70b", 80, 8192, 64, 8, 128, 28672, 128256, false, 2, 2, "config.json of meta-llama/Meta-Llama-3-70B"},
      {"qwen2.5-7b", 28, 3584, 28, 4, 128, 18944, 152064, false, 2, 2, "config.json of Qwen/Qwen2.5-7B"},
      {"mistral-7b", 32, 4096, 32, 8, 128, 14336, 32000, false, 2, 2, "config.json of mistralai/Mistral-7B-v0.1"},
      {"shakespeare-0.7m", 4, 128, 8, 4, 16, 304, 512, true, 4, 4, "examples/model/README.md of this project"},
      {"llama-2-13b", 40, 5120, 40, 40, 128, 13824, 32000, false, 2, 2, "config.json of meta-llama/Llama-2-13b-hf"},
      // Models whose layers differ, without their encoders of images.
      {.name = "gemma-3-27b",
       .layers = 62,
       .hidden = 5376,
       .heads = 32,
       .kv_heads = 16,
       .head_dim = 128,
       .ffn = 21504,
       .vocabulary = 262208,
       .tied_embeddings = true,
       .source = "config.json of google/gemma-3-27b-it: five of six layers have a window of 1024",
       .groups = {{52, {.window = 1024}}, {10}}},
      {.name = "gpt-oss-20b",
       .layers = 24,
       .hidden = 2880,
       .heads = 64,
       .kv_heads = 8,
       .head_dim = 64,
       .ffn = 2880,
       .vocabulary = 201088,
       .source = "config.json of openai/gpt-oss-20b: every other layer has a window of 128; 4 of 32 experts, MXFP4",
       .groups = {{12, {.window = 128}}, {12}},
       .experts = {.count = 32, .chosen = 4, .weight_bytes = 4.25 / 8}},
      {.name = "llama-4-scout",
       .layers = 48,
       .hidden = 5120,
       .heads = 40,
       .kv_heads = 8,
       .head_dim = 128,
       .ffn = 8192,
       .vocabulary = 202048,
       .source = "config.json of meta-llama/Llama-4-Scout-17B-16E: three of four layers have chunks of 8192; 1 of 16 "
                 "experts and a shared one",
       .groups = {{36, {.chunk = 8192}}, {12}},
       .experts = {.count = 16, .chosen = 1, .shared = 1}},
      // Models with recurrent layers. Of a gated delta rule a token changes each number of the state by 7 operations:
      // it decays, is multiplied with the key, gets what the value adds, and is multiplied with the query. Parameters
      // of one such layer: matrices to queries, keys, values and gates, from the values, and a convolution.
      {.name = "qwen3-next-80b",
       .layers = 48,
       .hidden = 2048,
       .heads = 16,
       .kv_heads = 2,
       .head_dim = 256,
       .ffn = 512,
       .vocabulary = 151936,
       .source = "config.json of Qwen/Qwen3-Next-80B-A3B-Instruct: three of four layers are a gated delta rule of 32 "
                 "heads of 128 x 128; 10 of 512 experts and a shared one",
       .groups = {{12}},
       .experts = {.count = 512, .chosen = 10, .shared = 1},
       .states = {{.layers = 36,
                   .bytes = 32 * 128 * 128 * 4 + 3 * 8192 * 2,  // in float, and 3 inputs of the convolution in bf16
                   .parameters = 2048 * (2 * 2048 + 2 * 4096 + 2 * 32) + 4096 * 2048 + 4 * 8192,
                   .operations = 7 * 32 * 128 * 128}},
       .gated = true},
      // Of Mamba a token changes each number by 6: a decay, which is an exponential of the step, and the input; then it
      // is multiplied by what is read out. Of its parameters, 256 are the rank of the step, and 16 numbers are a
      // channel's state.
      {.name = "jamba-52b",
       .layers = 32,
       .hidden = 4096,
       .heads = 32,
       .kv_heads = 8,
       .head_dim = 128,
       .ffn = 14336,
       .vocabulary = 65536,
       .source =
           "config.json of ai21labs/Jamba-v0.1: one of eight layers has attention, the others are Mamba of 8192 x "
           "16; every other layer has 2 of 16 experts",
       .groups = {{4}},
       .experts = {.count = 16, .chosen = 2, .every = 2},
       .states = {{.layers = 28,
                   .bytes = 8192 * 16 * 4 + 3 * 8192 * 2,
                   .parameters = 4096 * 2 * 8192 + 8192 * (256 + 2 * 16) + 256 * 8192 + 8192 * 4096 + 8192 * (4 + 16),
                   .operations = 6 * 8192 * 16}}},
  };
  return models;
}

namespace {
/// Layer groups with rows of so many heads and elements, and states of `divisor` times fewer bytes.
kvc::LayerGroups groups_of(const ModelShape& model, Index heads, Index dim, double divisor) {
  kvc::LayerGroups all;
  const std::vector<ModelGroup> alike = {{model.layers}};
  for (const ModelGroup& group : model.groups.empty() ? alike : model.groups) {
    all.add({.kv_heads = heads,
             .key_dim = dim,
             .window = group.retained.window,
             .chunk = group.retained.chunk,
             .kept = group.retained.kept},
            group.layers);
  }
  for (const ModelStates& kind : model.states) {
    all.add_state(std::max<Index>(std::llround(static_cast<double>(kind.bytes) / divisor), 1), kind.layers);
  }
  return all;
}
}  // namespace

kvc::LayerGroups ModelShape::layer_groups() const { return groups_of(*this, kv_heads, head_dim, 1); }

kvc::LayerGroups ModelShape::small_layer_groups() const {
  return groups_of(*this, 1, 1, static_cast<double>(kv_heads * head_dim) * kv_bytes / sizeof(float));
}

}  // namespace serving
