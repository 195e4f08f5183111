// RandomModel: small models of random weights in GGUF files, of each family and with a small vocabulary, for tests that
// need no model to be fetched.
#pragma once

#include <Eigen/Core>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <map>
#include <string>
#include <vector>

#include "gguf_writer.hpp"
#include "kvc/core/types.hpp"
#include "random_source.hpp"

namespace kvc_test {

using kvc::Index;

/// What the families differ in, and the extents of a small model.
struct Family {
  std::string architecture;
  bool turns_halves = false;  ///< RoPE turns pairs of the two halves of a head, otherwise neighbours
  bool head_norms = false;    ///< of each query head and key head
  bool post_norms = false;    ///< behind attention and feed-forward; also GELU, and the embedding times sqrt(dim)
  bool own_output = false;    ///< an output matrix beside the embedding
  Index window = 0;           ///< of all layers but each sixth
  double rope_factor = 1;     ///< positions of layers without a window are divided by it
  Index dim = 64, heads = 4, kv_heads = 2, head_dim = 32, hidden = 96, layers = 2, vocab = 50, positions = 1024;
};

/// A vocabulary of SentencePiece: two tokens that begin and end a text, all bytes, small letters and space, and some
/// merges of these.
struct SmallVocabulary {
  std::vector<std::string> tokens{"<unk>", "<s>", "</s>"};
  std::vector<float> scores{0, 0, 0};
  std::vector<std::int32_t> kinds{2, 3, 3};  // unknown, control, control

  SmallVocabulary() {
    const auto add = [this](const std::string& token, float score, std::int32_t kind) {
      tokens.push_back(token);
      scores.push_back(score);
      kinds.push_back(kind);
    };
    for (int byte = 0; byte < 256; ++byte) {
      char name[8];
      std::snprintf(name, sizeof name, "<0x%02X>", static_cast<unsigned>(byte));
      add(name, 0, 6);
    }
    const std::string space = "\xE2\x96\x81";
    for (const std::string& token : {space + "t", std::string("he"), space + "the", std::string("in"), space + "a"}) {
      add(token, -static_cast<float>(tokens.size()), 1);
    }
    for (char letter = 'a'; letter <= 'z'; ++letter) {
      add(std::string(1, letter), -static_cast<float>(tokens.size()), 1);
    }
    add(space, -static_cast<float>(tokens.size()), 1);
  }
  [[nodiscard]] Index size() const { return std::ssize(tokens); }

  void write(GgufWriter& writer) const {
    writer.set("tokenizer.ggml.model", "llama");
    writer.set("tokenizer.ggml.tokens", tokens);
    writer.set("tokenizer.ggml.scores", scores);
    writer.set("tokenizer.ggml.token_type", kinds);
    writer.set("tokenizer.ggml.bos_token_id", Index{1});
    writer.set("tokenizer.ggml.eos_token_id", Index{2});
  }
};

inline constexpr double rope_base = 10000;
inline constexpr double norm_epsilon = 1e-6;

/// The weights of a model by their names in the file. Rows are outputs.
struct Weights {
  using Floats = Eigen::Matrix<float, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;
  std::map<std::string, Floats> of;

  Weights(const Family& f, Random& random) {
    const auto add = [&](const std::string& name, Index out, Index in) {
      Floats w(out, in);
      for (Index i = 0; i < w.size(); ++i) {
        w.data()[i] = out == 1 ? random.uniform(0.5F, 1.5F) : random.uniform() * 2 / std::sqrt(static_cast<float>(in));
      }
      of[name + ".weight"] = w;
    };
    add("token_embd", f.vocab, f.dim);
    add("output_norm", 1, f.dim);
    if (f.own_output) {
      add("output", f.vocab, f.dim);
    }
    for (Index i = 0; i < f.layers; ++i) {
      const std::string block = "blk." + std::to_string(i) + ".";
      add(block + "attn_norm", 1, f.dim);
      add(block + "attn_q", f.heads * f.head_dim, f.dim);
      add(block + "attn_k", f.kv_heads * f.head_dim, f.dim);
      add(block + "attn_v", f.kv_heads * f.head_dim, f.dim);
      add(block + "attn_output", f.dim, f.heads * f.head_dim);
      add(block + "ffn_norm", 1, f.dim);
      add(block + "ffn_gate", f.hidden, f.dim);
      add(block + "ffn_up", f.hidden, f.dim);
      add(block + "ffn_down", f.dim, f.hidden);
      if (f.head_norms) {
        add(block + "attn_q_norm", 1, f.head_dim);
        add(block + "attn_k_norm", 1, f.head_dim);
      }
      if (f.post_norms) {
        add(block + "post_attention_norm", 1, f.dim);
        add(block + "post_ffw_norm", 1, f.dim);
      }
    }
  }

  /// Writes the file; `vocabulary` of f.vocab tokens.
  void write(const Family& f, const std::string& path, ggml_type matrices = GGML_TYPE_F32,
             const SmallVocabulary* vocabulary = nullptr) const {
    GgufWriter writer;
    const auto key = [&](const char* name) { return f.architecture + "." + name; };
    writer.set("general.architecture", f.architecture.c_str());
    writer.set(key("embedding_length").c_str(), f.dim);
    writer.set(key("attention.head_count").c_str(), f.heads);
    writer.set(key("attention.head_count_kv").c_str(), f.kv_heads);
    writer.set(key("attention.key_length").c_str(), f.head_dim);
    writer.set(key("attention.value_length").c_str(), f.head_dim);
    writer.set(key("block_count").c_str(), f.layers);
    writer.set(key("context_length").c_str(), f.positions);
    writer.set(key("feed_forward_length").c_str(), f.hidden);
    writer.set(key("attention.layer_norm_rms_epsilon").c_str(), static_cast<float>(norm_epsilon));
    writer.set(key("rope.freq_base").c_str(), static_cast<float>(rope_base));
    if (f.window > 0) {
      writer.set(key("attention.sliding_window").c_str(), f.window);
    }
    if (f.rope_factor != 1) {
      writer.set(key("rope.scaling.type").c_str(), "linear");
      writer.set(key("rope.scaling.factor").c_str(), static_cast<float>(f.rope_factor));
    }
    for (const auto& [name, w] : of) {
      writer.add(name, w.data(), w.cols(), w.rows(), w.rows() == 1 ? GGML_TYPE_F32 : matrices);
    }
    if (vocabulary != nullptr) {
      vocabulary->write(writer);
    }
    writer.write(path);
  }
};

}  // namespace kvc_test
