#include "model.hpp"

#include <cmath>
#include <set>
#include <utility>

namespace ggml_engine {
namespace {

/// Takes tensors by their names and checks their extents. What nobody takes would be missing in the graph.
class Weights {
 public:
  explicit Weights(const GgufFile& file) : file_(&file) {
    for (std::string& name : file.tensor_names()) {
      left_.insert(std::move(name));
    }
  }

  ggml_tensor* optional(const std::string& name, Index in, Index out = 1) {
    ggml_tensor* tensor = file_->tensor(name);
    if (tensor != nullptr) {
      if (tensor->ne[0] != in || tensor->ne[1] != out || ggml_n_dims(tensor) > 2) {
        file_->fail("the tensor " + name + " is [" + std::to_string(tensor->ne[0]) + ", " +
                    std::to_string(tensor->ne[1]) + "], not [" + std::to_string(in) + ", " + std::to_string(out) + "]");
      }
      left_.erase(name);
    }
    return tensor;
  }
  ggml_tensor* needed(const std::string& name, Index in, Index out = 1) {
    ggml_tensor* tensor = optional(name, in, out);
    if (tensor == nullptr) {
      file_->fail("lacks the tensor " + name);
    }
    return tensor;
  }
  void require_none_left() const {
    if (!left_.empty()) {
      file_->fail("has the tensor " + *left_.begin() + ", which this engine does not know");
    }
  }

 private:
  const GgufFile* file_;
  std::set<std::string> left_;
};

/// Constants that differ from family to family.
void read_family(const GgufFile& file, Model& m) {
  const std::string& a = m.architecture;
  if (a == "llama") {
    m.rope_mode = GGML_ROPE_TYPE_NORMAL;
  } else if (a == "qwen3") {
    m.rope_mode = GGML_ROPE_TYPE_NEOX;
  } else if (a == "gemma3") {
    m.rope_mode = GGML_ROPE_TYPE_NEOX;
    m.gelu = true;
    m.embedding_scale = std::sqrt(static_cast<float>(m.dim));
    if (m.layers.size() == 62) {  // of all sizes, 27B alone scales by the dimension of a head as dim / heads gives it
      m.attention_scale = 1.0F / std::sqrt(static_cast<float>(m.dim) / static_cast<float>(m.heads));
    }
  } else {
    file.fail("has the architecture " + a + "; this engine runs llama, qwen3 and gemma3");
  }
}

/// Windows and RoPE of each layer.
void read_positions(const GgufFile& file, Model& m) {
  const std::string& a = m.architecture;
  const std::string scaling = file.text(a + ".rope.scaling.type", "none");
  if (scaling != "none" && scaling != "linear") {
    file.fail("scales RoPE by the method " + scaling + "; this engine knows none and linear");
  }
  const float scale = scaling == "linear" ? 1.0F / file.real(a + ".rope.scaling.factor") : 1.0F;
  const float base = file.real(a + ".rope.freq_base", 10000.0F);
  const auto window = static_cast<Pos>(a == "gemma3" ? file.integer(a + ".attention.sliding_window", 0) : 0);
  for (std::size_t i = 0; i < m.layers.size(); ++i) {
    const bool has_window = window > 0 && i % 6 != 5;  // of Gemma 3, which has no key for it
    m.layers[i].window = has_window ? window : 0;
    m.layers[i].rope_base = has_window ? file.real(a + ".rope.freq_base_swa", 10000.0F) : base;
    m.layers[i].rope_scale = has_window ? 1.0F : scale;
  }
}

void take_weights(const GgufFile& file, Model& m) {
  Weights weights(file);
  const Index vocab_size = file.tensor("token_embd.weight") == nullptr ? 0 : file.tensor("token_embd.weight")->ne[1];
  const Index hidden = file.integer(m.architecture + ".feed_forward_length");
  m.embedding = weights.needed("token_embd.weight", m.dim, vocab_size);
  m.output_norm = weights.needed("output_norm.weight", m.dim);
  m.output = weights.optional("output.weight", m.dim, vocab_size);
  m.output = m.output == nullptr ? m.embedding : m.output;
  m.rope_factors = weights.optional("rope_freqs.weight", m.rope_dims / 2);
  const bool gemma = m.architecture == "gemma3";
  const bool head_norms = gemma || m.architecture == "qwen3";
  for (std::size_t i = 0; i < m.layers.size(); ++i) {
    const auto name = [&](const char* part) { return "blk." + std::to_string(i) + "." + part + ".weight"; };
    Layer& layer = m.layers[i];
    layer.attention_norm = weights.needed(name("attn_norm"), m.dim);
    layer.q = weights.needed(name("attn_q"), m.dim, m.heads * m.key_dim);
    layer.k = weights.needed(name("attn_k"), m.dim, m.kv_heads * m.key_dim);
    layer.v = weights.needed(name("attn_v"), m.dim, m.kv_heads * m.value_dim);
    layer.out = weights.needed(name("attn_output"), m.heads * m.value_dim, m.dim);
    layer.ffn_norm = weights.needed(name("ffn_norm"), m.dim);
    layer.gate = weights.needed(name("ffn_gate"), m.dim, hidden);
    layer.up = weights.needed(name("ffn_up"), m.dim, hidden);
    layer.down = weights.needed(name("ffn_down"), hidden, m.dim);
    if (head_norms) {
      layer.q_norm = weights.needed(name("attn_q_norm"), m.key_dim);
      layer.k_norm = weights.needed(name("attn_k_norm"), m.key_dim);
    }
    if (gemma) {
      layer.attention_post_norm = weights.needed(name("post_attention_norm"), m.dim);
      layer.ffn_post_norm = weights.needed(name("post_ffw_norm"), m.dim);
    }
  }
  weights.require_none_left();
}

}  // namespace

Model Model::load(const std::string& path, WeightType type) {
  GgufFile file(path);
  Model m;
  m.architecture = file.text("general.architecture");
  m.name = file.text("general.name", m.architecture);
  const std::string& a = m.architecture;
  // A model of another family may lack the other keys: its architecture is what the user is to hear of.
  if (a != "llama" && a != "qwen3" && a != "gemma3") {
    read_family(file, m);
  }
  m.dim = file.integer(a + ".embedding_length");
  m.heads = file.integer(a + ".attention.head_count");
  m.kv_heads = file.integer(a + ".attention.head_count_kv", m.heads);
  const Index layers = file.integer(a + ".block_count");
  if (m.dim < 1 || m.heads < 1 || m.kv_heads < 1 || m.heads % m.kv_heads != 0 || layers < 1 || layers > 4096) {
    file.fail("has extents that cannot be: embedding_length, head_count, head_count_kv or block_count");
  }
  m.key_dim = file.integer(a + ".attention.key_length", m.dim / m.heads);
  m.value_dim = file.integer(a + ".attention.value_length", m.dim / m.heads);
  m.rope_dims = file.integer(a + ".rope.dimension_count", m.key_dim);
  m.positions = file.integer(a + ".context_length");
  const auto is_extent = [](Index n) { return n >= 1 && n <= (1 << 30); };
  if (!is_extent(m.key_dim) || !is_extent(m.value_dim) || !is_extent(m.positions) || m.rope_dims < 0 ||
      m.rope_dims > m.key_dim || m.rope_dims % 2 != 0) {
    file.fail("has extents that cannot be: key_length, value_length, rope.dimension_count or context_length");
  }
  m.norm_epsilon = file.real(a + ".attention.layer_norm_rms_epsilon");
  m.logit_softcap = file.real(a + ".final_logit_softcapping", 0.0F);
  m.attention_scale = 1.0F / std::sqrt(static_cast<float>(m.key_dim));
  m.layers.resize(static_cast<std::size_t>(layers));
  read_family(file, m);
  read_positions(file, m);
  take_weights(file, m);
  m.vocabulary_kind = file.text("tokenizer.ggml.model", "none");
  if (m.vocabulary_kind == "llama") {
    m.vocabulary.emplace(file);
  }
  std::vector<ggml_tensor*> matrices;
  for (const Layer& layer : m.layers) {
    matrices.insert(matrices.end(), {layer.q, layer.k, layer.v, layer.out, layer.gate, layer.up, layer.down});
  }
  if (m.output != m.embedding) {  // the embedding is read row by row as well
    matrices.push_back(m.output);
  }
  m.tensors = std::move(file).load_tensors(type, matrices);
  return m;
}

kvc::LayerGroups Model::layer_groups() const {
  kvc::LayerGroups groups;
  for (const Layer& layer : layers) {
    groups.add({.kv_heads = kv_heads, .key_dim = key_dim, .value_dim = value_dim, .window = layer.window});
  }
  return groups;
}

}  // namespace ggml_engine
