// The time of a step by the roofline model: max(operations / peak, bytes / bandwidth) + overhead.
//
// Operations, a multiply-add counted as two: every token passes all matrices of the layers; every token whose successor
// is sampled passes the classifier; a query at position p meets p + 1 keys and values in every query head. A decoder
// may skip unused results: in the last layer it computes keys and values for all tokens, and the rest for the last
// token of each sequence. Bytes: the weights once per step, the keys and values of every sequence in the step once,
// rows that are written, and rows that a policy moves (read and written). Activations, norms and softmax are neglected:
// at these sizes they are a few per cent.
//
// Weights are read once for all tokens of a step: a prefill of thousands of tokens is bound by operations, a decode of
// a few by bytes. Batching and chunks work in between.
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "step.hpp"

namespace serving {

/// A decoder of the Llama family.
struct ModelShape {
  std::string name;
  Index layers = 0;
  Index hidden = 0;
  Index heads = 0;
  Index kv_heads = 0;
  Index head_dim = 0;
  Index ffn = 0;  ///< width of the gated MLP: three matrices of hidden x ffn
  Index vocabulary = 0;
  bool tied_embeddings = false;  ///< the classifier is the embedding
  double weight_bytes = 2;       ///< per parameter
  double kv_bytes = 2;           ///< per number of a key or value
  std::string source;
  bool last_rows_only = false;  ///< queries of the last layer, and all after them, for one token of each sequence

  /// Parameters that every token is multiplied with.
  [[nodiscard]] double layer_parameters() const noexcept {
    const auto queries = static_cast<double>(hidden * head_dim * 2 * heads);
    const auto mlp = static_cast<double>(3 * hidden * ffn);
    return static_cast<double>(layers) * (queries + kv_parameters() + mlp);
  }
  /// Of one layer, those that make keys and values.
  [[nodiscard]] double kv_parameters() const noexcept { return static_cast<double>(2 * hidden * head_dim * kv_heads); }
  [[nodiscard]] double classifier_parameters() const noexcept { return static_cast<double>(hidden * vocabulary); }
  /// Without norms and biases: a ten-thousandth.
  [[nodiscard]] double parameters() const noexcept {
    return layer_parameters() + classifier_parameters() * (tied_embeddings ? 1 : 2);
  }
  [[nodiscard]] double weights() const noexcept { return parameters() * weight_bytes; }
  [[nodiscard]] double kv_bytes_per_token() const noexcept {
    return static_cast<double>(2 * layers * kv_heads * head_dim) * kv_bytes;
  }
};

/// A machine: some number of equal devices.
struct Hardware {
  std::string name;
  double peak = 0;          ///< operations per second, dense, of one device
  double bandwidth = 0;     ///< bytes per second, of one device
  double memory = 0;        ///< bytes, of one device
  Index devices = 1;        ///< that share the work evenly, without loss
  double overhead = 0.002;  ///< seconds per step beside the arithmetic: launches, scheduling, sampling
  std::string source;
  // Told apart only by a fit to measured steps.
  double attention_peak = 0;  ///< operations per second of attention, where they are not those of matrices; 0: `peak`
  double decode_peak = 0;     ///< of attention of sequences with a single query; 0: `attention_peak`
  double per_sequence = 0;    ///< seconds for each sequence in a step
};

/// The built-in ones, with the sources of their figures.
[[nodiscard]] const std::vector<ModelShape>& known_models();
[[nodiscard]] const std::vector<Hardware>& known_hardware();

/// The work of a step.
struct StepCost {
  Index tokens = 0;   ///< computed
  Index wanted = 0;   ///< next tokens
  Index pairs = 0;    ///< of a query and a key, in one head
  Index context = 0;  ///< positions read, of all sequences
  Index copied = 0;   ///< rows moved within the pool
  Index sequences = 0;
  Index decode_context = 0;  ///< of `context`, and of `pairs`: those of sequences with a single token
};

/// The time of a step for a model on a machine. The figures are the same with every compiler.
class CostModel {
 public:
  /// Throws std::invalid_argument for a shape or a machine with an extent or rate of 0.
  CostModel(ModelShape model, Hardware hardware);

  [[nodiscard]] const ModelShape& model() const noexcept { return model_; }
  [[nodiscard]] const Hardware& hardware() const noexcept { return hardware_; }

  /// Of matrices, of attention of several queries of a sequence, and of attention of single ones.
  [[nodiscard]] double matrix_operations(const StepCost& cost) const noexcept;
  [[nodiscard]] double prefill_attention_operations(const StepCost& cost) const noexcept;
  [[nodiscard]] double decode_attention_operations(const StepCost& cost) const noexcept;
  [[nodiscard]] double operations(const StepCost& cost) const noexcept {
    return matrix_operations(cost) + prefill_attention_operations(cost) + decode_attention_operations(cost);
  }
  [[nodiscard]] double bytes(const StepCost& cost) const noexcept;
  /// At least 1 ns, at most max_clock.
  [[nodiscard]] Time time(const StepCost& cost) const noexcept;
  /// Tokens whose keys and values fit beside the weights into the share `usable` of the memory; 0: none.
  [[nodiscard]] Index pool_tokens(double usable = 0.9) const noexcept;

 private:
  /// Of one query and one key, in all heads of one layer.
  [[nodiscard]] double pair_operations() const noexcept {
    return 4 * static_cast<double>(model_.heads * model_.head_dim);
  }

  ModelShape model_;
  Hardware hardware_;
};

/// The work of a composed step. O(sequences of the step).
template <class Cache>
[[nodiscard]] StepCost cost_of(const Step<Cache>& step) {
  StepCost cost;
  cost.tokens = step.prefill_tokens + step.decode_tokens;
  cost.wanted = std::ssize(step.sampled);
  cost.sequences = std::ssize(step.work);
  for (const Work<Cache>& work : step.work) {
    const kvc::PosRange range = work.append.range();
    const Index n = range.size();
    cost.pairs += n * range.first + n * (n + 1) / 2;
    cost.context += range.last;
    cost.decode_context += n == 1 ? range.last : 0;
  }
  return cost;
}

}  // namespace serving
