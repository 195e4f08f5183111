// Model: what a GGUF file says of a decoder of the families Llama, Qwen 3 and Gemma 3, and its weights.
#pragma once

#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "gguf_file.hpp"
#include "kvc/core/types.hpp"
#include "kvc/layout/layer_groups.hpp"
#include "vocabulary.hpp"

namespace ggml_engine {

using kvc::Index;
using kvc::Pos;
using kvc::Token;

/// The weights of one layer, with ggml's extents: [in, out]. Null: the model has none.
struct Layer {
  ggml_tensor* attention_norm = nullptr;
  ggml_tensor* q = nullptr;
  ggml_tensor* k = nullptr;
  ggml_tensor* v = nullptr;
  ggml_tensor* q_norm = nullptr;  ///< of each head; Qwen 3, Gemma 3
  ggml_tensor* k_norm = nullptr;
  ggml_tensor* out = nullptr;
  ggml_tensor* attention_post_norm = nullptr;  ///< Gemma 3
  ggml_tensor* ffn_norm = nullptr;
  ggml_tensor* gate = nullptr;
  ggml_tensor* up = nullptr;
  ggml_tensor* down = nullptr;
  ggml_tensor* ffn_post_norm = nullptr;  ///< Gemma 3
  Pos window = 0;                        ///< 0: full attention
  float rope_base = 10000;
  float rope_scale = 1;
};

/// A decoder: the extents and constants of its graph, its weights, and its vocabulary.
struct Model {
  std::string architecture;
  std::string name;
  Index dim = 0;  ///< of the residual stream
  Index heads = 0;
  Index kv_heads = 0;
  Index key_dim = 0;
  Index value_dim = 0;
  Index positions = 0;  ///< that it was trained for
  Index rope_dims = 0;  ///< of key_dim, those that RoPE turns
  int rope_mode = 0;    ///< of ggml: pairs of neighbours, or of the two halves
  float norm_epsilon = 0;
  float attention_scale = 0;
  float embedding_scale = 1;
  float logit_softcap = 0;  ///< 0: none
  bool gelu = false;        ///< the gate's activation; false: SiLU

  ggml_tensor* embedding = nullptr;
  ggml_tensor* output_norm = nullptr;
  ggml_tensor* output = nullptr;        ///< the embedding where the file has none
  ggml_tensor* rope_factors = nullptr;  ///< divisors of RoPE's frequencies, or null
  std::vector<Layer> layers;
  GgufFile::Loaded tensors;
  std::optional<Vocabulary> vocabulary;  ///< none if the file has a kind that is not read here
  std::string vocabulary_kind;

  /// Loads a file. Throws std::runtime_error that names the file and what is wrong with it, or not supported: another
  /// architecture, scaled RoPE but linear, tensors that the graph does not use.
  [[nodiscard]] static Model load(const std::string& path, WeightType type = WeightType::as_stored);

  /// What the layers store of each token, for a KvCache: layers with a window are a group of their own.
  [[nodiscard]] kvc::LayerGroups layer_groups() const;
  [[nodiscard]] Index vocab_size() const noexcept { return embedding->ne[1]; }
};

}  // namespace ggml_engine
