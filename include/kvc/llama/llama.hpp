// Model: the weights of a Llama-family decoder, and its configuration.
//
// Matrices are row-major and lie as checkpoints store them, [out, in], so that  y = x W^T  reads rows of both.
#pragma once

#include <Eigen/Core>
#include <iterator>
#include <string>
#include <vector>

#include "kvc/core/error.hpp"
#include "kvc/core/types.hpp"
#include "kvc/layout/layer_groups.hpp"
#include "kvc/layout/shape.hpp"
#include "kvc/llama/rope.hpp"

namespace kvc {
inline namespace v0 {
namespace llama {

/// Activations and weights: one row per token, or per output.
using Matrix = Eigen::Matrix<float, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;
using RowVector = Eigen::Matrix<float, 1, Eigen::Dynamic>;

/// The extents and constants of a model. All but the last two are positive, heads is a multiple of kv_heads, and dim an
/// even multiple of heads: see require_consistent.
struct Config {
  Index dim = 0;         ///< of the residual stream
  Index hidden_dim = 0;  ///< of the feed-forward network
  Index layers = 0;
  Index heads = 0;     ///< query heads
  Index kv_heads = 0;  ///< key/value heads
  Index vocab_size = 0;
  Index seq_len = 0;  ///< positions that the model was trained for
  float rope_theta = 10000.0F;
  float norm_epsilon = 1e-5F;
  Pos window = 0;        ///< positions that a layer sees, the row's own among them; 0: all. Checkpoints do not say
  Index full_every = 0;  ///< with a window: one layer of so many, the last of them, sees all positions; 0: none does

  /// Elements of one head.
  [[nodiscard]] constexpr Index head_dim() const noexcept { return dim / heads; }
  /// Elements in the keys, or in the values, of all kv heads.
  [[nodiscard]] constexpr Index kv_dim() const noexcept { return kv_heads * head_dim(); }

  /// The window of a layer; 0: it sees all positions.
  [[nodiscard]] constexpr Pos window_of(Index layer) const noexcept {
    return full_every > 0 && layer % full_every == full_every - 1 ? 0 : window;
  }
  /// The layers of a cache for this model.
  [[nodiscard]] LayerGroups cache_layers() const {
    LayerGroups groups;
    for (Index layer = 0; layer < layers; ++layer) {
      groups.add({.kv_heads = kv_heads, .key_dim = head_dim(), .value_dim = head_dim(), .window = window_of(layer)});
    }
    return groups;
  }
  /// The shape of a cache for this model, if it has no window.
  [[nodiscard]] constexpr Shape cache_shape() const noexcept {
    return {.layers = layers, .kv_heads = kv_heads, .key_dim = head_dim(), .value_dim = head_dim()};
  }
};

/// The weights of one layer.
struct Layer {
  RowVector attention_norm;  ///< [dim]
  Matrix wq;                 ///< [dim, dim]
  Matrix wk;                 ///< [kv_dim, dim]
  Matrix wv;                 ///< [kv_dim, dim]
  Matrix wo;                 ///< [dim, dim]
  RowVector ffn_norm;        ///< [dim]
  Matrix w_gate;             ///< [hidden_dim, dim]
  Matrix w_up;               ///< [hidden_dim, dim]
  Matrix w_down;             ///< [dim, hidden_dim]
};

/// A model. Plain data, which load_checkpoint or the program fills in; `dec` and `dec_kv` check it.
struct Model {
  Config config;
  Matrix embedding;           ///< [vocab_size, dim]
  std::vector<Layer> layers;  ///< [config.layers]
  RowVector final_norm;       ///< [dim]
  Matrix own_classifier;      ///< [vocab_size, dim], or empty if the embedding is the classifier
  RopeTable rope;             ///< [seq_len, head_dim / 2], or narrower for partial rotation

  /// The matrix of the logits  [vocab_size, dim].
  [[nodiscard]] const Matrix& classifier() const noexcept {
    return own_classifier.size() == 0 ? embedding : own_classifier;
  }
};

/// Throws std::invalid_argument, which names the member, unless the numbers of a configuration fit each other.
inline void require_consistent(const Config& c) {
  struct Count {
    const char* name;
    Index value;
  };
  for (const auto& [name, value] :
       {Count{"config.dim", c.dim}, Count{"config.hidden_dim", c.hidden_dim}, Count{"config.layers", c.layers},
        Count{"config.heads", c.heads}, Count{"config.kv_heads", c.kv_heads}, Count{"config.vocab_size", c.vocab_size},
        Count{"config.seq_len", c.seq_len}}) {
    require(value >= 1, name, value, "at least 1");
  }
  if (c.heads % c.kv_heads != 0) [[unlikely]] {
    throw_invalid("config.kv_heads", c.kv_heads, "a divisor of config.heads, " + std::to_string(c.heads));
  }
  if (c.dim % c.heads != 0 || c.head_dim() % 2 != 0) [[unlikely]] {
    throw_invalid("config.dim", c.dim, "an even multiple of config.heads, " + std::to_string(c.heads));
  }
  require(c.norm_epsilon >= 0.0F, "config.norm_epsilon", c.norm_epsilon, "at least 0");
  require(c.window >= 0, "config.window", c.window, "at least 0 (0: no window)");
  require(c.full_every >= 0, "config.full_every", c.full_every, "at least 0 (0: all layers have the window)");
}

/// The same for a model: its weights must also have the extents that its configuration says. O(layers).
inline void require_consistent(const Model& model) {
  const Config& c = model.config;
  require_consistent(c);
  const auto has_extents = [](const char* name, const auto& weights, Index rows, Index cols) {
    if (weights.rows() != rows || weights.cols() != cols) [[unlikely]] {
      throw_invalid(name, std::to_string(weights.rows()) + " x " + std::to_string(weights.cols()),
                    std::to_string(rows) + " x " + std::to_string(cols) + ", as config says");
    }
  };
  has_extents("embedding", model.embedding, c.vocab_size, c.dim);
  require(std::ssize(model.layers) == c.layers, "layers.size()", model.layers.size(), "config.layers");
  for (const Layer& layer : model.layers) {
    has_extents("attention_norm", layer.attention_norm, 1, c.dim);
    has_extents("wq", layer.wq, c.dim, c.dim);
    has_extents("wk", layer.wk, c.kv_dim(), c.dim);
    has_extents("wv", layer.wv, c.kv_dim(), c.dim);
    has_extents("wo", layer.wo, c.dim, c.dim);
    has_extents("ffn_norm", layer.ffn_norm, 1, c.dim);
    has_extents("w_gate", layer.w_gate, c.hidden_dim, c.dim);
    has_extents("w_up", layer.w_up, c.hidden_dim, c.dim);
    has_extents("w_down", layer.w_down, c.dim, c.hidden_dim);
  }
  has_extents("final_norm", model.final_norm, 1, c.dim);
  if (model.own_classifier.size() != 0) {
    has_extents("own_classifier", model.own_classifier, c.vocab_size, c.dim);
  }
  require(model.rope.positions() >= c.seq_len, "rope.positions()", model.rope.positions(), "at least config.seq_len");
  require(model.rope.rotary_dim() <= c.head_dim(), "rope.rotary_dim()", model.rope.rotary_dim(),
          "at most config.head_dim()");
}

}  // namespace llama
}  // namespace v0
}  // namespace kvc
