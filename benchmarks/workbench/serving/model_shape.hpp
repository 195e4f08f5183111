// ModelShape: the extents of a model, and what they say of its parameters and its memory.
#pragma once

#include <string>
#include <vector>

#include "kvc/core/retained.hpp"
#include "kvc/core/types.hpp"
#include "kvc/layout/layer_groups.hpp"

namespace serving {

using kvc::Index;

/// Layers of a model whose queries see the same positions.
struct ModelGroup {
  Index layers = 0;
  kvc::Retained retained{};
};

/// A mixture of experts in place of the MLP of each layer; by default there is none.
struct Experts {
  Index count = 1;          ///< in a layer, of which a router chooses
  Index chosen = 1;         ///< so many for each token
  Index shared = 0;         ///< further ones, which every token passes
  Index every = 1;          ///< one layer of so many has them; the others an MLP of the same width
  double weight_bytes = 0;  ///< per parameter of an expert; 0: as of the other parameters
};

/// Recurrent layers, which have a state in place of keys and values.
struct ModelStates {
  Index layers = 0;
  Index bytes = 0;        ///< of the state of one layer
  double parameters = 0;  ///< of one layer, in place of those of attention
  double operations = 0;  ///< of one token on the state of one layer
};

/// A decoder of the Llama family, or one some of whose layers are recurrent.
struct ModelShape {
  std::string name;
  Index layers = 0;
  Index hidden = 0;
  Index heads = 0;
  Index kv_heads = 0;
  Index head_dim = 0;
  Index ffn = 0;  ///< width of the gated MLP, or of one expert: three matrices of hidden x ffn
  Index vocabulary = 0;
  bool tied_embeddings = false;  ///< the classifier is the embedding
  double weight_bytes = 2;       ///< per parameter
  double kv_bytes = 2;           ///< per number of a key or value
  std::string source;
  bool last_rows_only = false;  ///< queries of the last layer, and all after them, for one token of each sequence
  /// All layers with attention, by what their queries see; none: every layer sees everything.
  std::vector<ModelGroup> groups{};
  Experts experts{};
  std::vector<ModelStates> states{};  ///< recurrent layers: the others are those of `groups`
  bool gated = false;                 ///< attention has a gate for each number of a query

  /// Parameters that a token is multiplied with.
  [[nodiscard]] double layer_parameters() const noexcept {
    return common_parameters() +
           (expert_layers() * static_cast<double>(experts.chosen + experts.shared) + mlp_layers()) *
               expert_parameters();
  }
  /// Layers that have keys and values.
  [[nodiscard]] Index attention_layers() const noexcept {
    Index recurrent = 0;
    for (const ModelStates& kind : states) {
      recurrent += kind.layers;
    }
    return layers - recurrent;
  }
  /// Layers with experts, or with the MLP that is there in their place.
  [[nodiscard]] double expert_layers() const noexcept { return static_cast<double>(layers / experts.every); }
  /// Layers with an MLP in a model whose other layers have experts.
  [[nodiscard]] double mlp_layers() const noexcept { return static_cast<double>(layers) - expert_layers(); }
  /// Of all layers: attention, what recurrent layers have in its place, and the router.
  [[nodiscard]] double common_parameters() const noexcept {
    const auto queries = static_cast<double>(hidden * head_dim * (gated ? 3 : 2) * heads);
    const auto router = static_cast<double>(experts.count > 1 ? hidden * experts.count : 0);
    double all = static_cast<double>(attention_layers()) * (queries + kv_parameters()) + expert_layers() * router;
    for (const ModelStates& kind : states) {
      all += static_cast<double>(kind.layers) * kind.parameters;
    }
    return all;
  }
  /// Of one layer, those that make keys and values.
  [[nodiscard]] double kv_parameters() const noexcept { return static_cast<double>(2 * hidden * head_dim * kv_heads); }
  /// Of the MLP of one layer, or of one expert.
  [[nodiscard]] double expert_parameters() const noexcept { return static_cast<double>(3 * hidden * ffn); }
  /// MLPs in all layers.
  [[nodiscard]] double all_experts() const noexcept {
    return expert_layers() * static_cast<double>(experts.count + experts.shared) + mlp_layers();
  }
  [[nodiscard]] double classifier_parameters() const noexcept { return static_cast<double>(hidden * vocabulary); }
  [[nodiscard]] double embeddings() const noexcept { return classifier_parameters() * (tied_embeddings ? 1 : 2); }
  /// Bytes of a parameter of an MLP.
  [[nodiscard]] double expert_bytes() const noexcept {
    return experts.weight_bytes > 0 ? experts.weight_bytes : weight_bytes;
  }
  /// Without norms and biases: a ten-thousandth.
  [[nodiscard]] double parameters() const noexcept {
    return common_parameters() + all_experts() * expert_parameters() + embeddings();
  }
  [[nodiscard]] double weights() const noexcept {
    return (common_parameters() + embeddings()) * weight_bytes + all_experts() * expert_parameters() * expert_bytes();
  }
  /// In all layers, until a window or a chunk drops the token.
  [[nodiscard]] double kv_bytes_per_token() const noexcept {
    return static_cast<double>(2 * attention_layers() * kv_heads * head_dim) * kv_bytes;
  }
  /// Of the states of all recurrent layers after one length.
  [[nodiscard]] double state_bytes() const noexcept {
    double all = 0;
    for (const ModelStates& kind : states) {
      all += static_cast<double>(kind.layers * kind.bytes);
    }
    return all;
  }
  /// The layers, as the constructor of a cache takes them.
  [[nodiscard]] kvc::LayerGroups layer_groups() const;
  /// The same with rows of one float per key and value, and states that are as small in proportion: for a cache that
  /// has bytes and simulates.
  [[nodiscard]] kvc::LayerGroups small_layer_groups() const;
};

/// The built-in ones, with the sources of their figures.
[[nodiscard]] const std::vector<ModelShape>& known_models();

}  // namespace serving
