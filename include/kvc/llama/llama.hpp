// Model: the weights of a Llama-family decoder, and the numbers that shape it.
//
// Matrices are row-major and lie as checkpoints store them, [out, in], so that  y = x W^T  reads rows of both.
#pragma once

#include <Eigen/Core>
#include <vector>

#include "kvc/core/error.hpp"
#include "kvc/core/types.hpp"
#include "kvc/layout/shape.hpp"
#include "kvc/llama/rope.hpp"

namespace kvc {
inline namespace v0 {
namespace llama {

/// Activations and weights: one row per token, or per output.
using Matrix = Eigen::Matrix<float, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;
using RowVector = Eigen::Matrix<float, 1, Eigen::Dynamic>;

/// What shapes a model. heads is a multiple of kv_heads, and dim an even multiple of heads.
struct Config {
  Index dim = 0;         ///< of the residual stream
  Index hidden_dim = 0;  ///< of the feed-forward network
  Index layers = 0;
  Index heads = 0;     ///< query heads
  Index kv_heads = 0;  ///< key/value heads
  Index vocab_size = 0;
  Index seq_len = 0;  ///< positions the model was made for
  float rope_theta = 10000.0F;
  float norm_epsilon = 1e-5F;

  [[nodiscard]] constexpr Index head_dim() const noexcept { return dim / heads; }
  [[nodiscard]] constexpr Index kv_dim() const noexcept { return kv_heads * head_dim(); }

  /// The shape of a cache for this model.
  [[nodiscard]] constexpr Shape cache_shape() const noexcept {
    return {.layers = layers, .kv_heads = kv_heads, .key_dim = head_dim(), .value_dim = head_dim()};
  }
};

struct Layer {
  RowVector attention_norm;  // [dim]
  Matrix wq;                 // [dim, dim]
  Matrix wk;                 // [kv_dim, dim]
  Matrix wv;                 // [kv_dim, dim]
  Matrix wo;                 // [dim, dim]
  RowVector ffn_norm;        // [dim]
  Matrix w_gate;             // [hidden_dim, dim]
  Matrix w_up;               // [hidden_dim, dim]
  Matrix w_down;             // [dim, hidden_dim]
};

struct Model {
  Config config;
  Matrix embedding;  // [vocab_size, dim]
  std::vector<Layer> layers;
  RowVector final_norm;   // [dim]
  Matrix own_classifier;  // [vocab_size, dim], or empty where the embedding serves as classifier
  RopeTable rope;         // [seq_len, head_dim / 2]

  [[nodiscard]] const Matrix& classifier() const noexcept {
    return own_classifier.size() == 0 ? embedding : own_classifier;
  }
};

}  // namespace llama
}  // namespace v0
}  // namespace kvc
