// The time of a step by the roofline model: max(operations / peak, bytes / bandwidth) + overhead.
//
// Operations, a multiply-add counted as two: every token passes all matrices of the layers, of a mixture of experts
// those that are chosen for it; every token whose successor is sampled passes the classifier; a query at position p
// meets p + 1 keys and values in every query head, or in a layer with a window or chunks those that it sees. A decoder
// may skip unused results: in the last layer it computes keys and values for all tokens, and the rest for the last
// token of each sequence. Bytes: the weights once per step, of experts those that some token of the step chooses; the
// keys and values that a sequence in the step sees, once; rows that are written; and rows that a policy moves (read and
// written, in all layers). Activations, norms and softmax are neglected: at these sizes they are a few per cent.
//
// Weights are read once for all tokens of a step: a prefill of thousands of tokens is bound by operations, a decode of
// a few by bytes. Batching and chunks work in between.
//
// A layer reads the same rows whatever the cache stores: a layer with a window reads its window, whether or not the
// cache keeps the rows before it. A recurrent layer reads and writes the state of each sequence in the step once, and
// each token changes it; what it takes to write the states in between that a prefix cache wants is neglected.
#pragma once

#include <algorithm>
#include <cstddef>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "kvc/core/retained.hpp"
#include "model_shape.hpp"
#include "step.hpp"

namespace serving {

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
[[nodiscard]] const std::vector<Hardware>& known_hardware();

/// The work of attention in one layer of a group.
struct AttentionCost {
  Index pairs = 0;           ///< of a query and a key that it sees, in one head
  Index context = 0;         ///< rows that are read, of all sequences
  Index decode_context = 0;  ///< of both: those of sequences with a single token
};

/// The work of a step.
struct StepCost {
  Index tokens = 0;   ///< computed
  Index wanted = 0;   ///< next tokens
  Index pairs = 0;    ///< of a query and a key, in one head
  Index context = 0;  ///< positions read, of all sequences
  Index copied = 0;   ///< rows moved within the pool
  Index sequences = 0;
  Index decode_context = 0;             ///< of `context`, and of `pairs`: those of sequences with a single token
  std::vector<AttentionCost> groups{};  ///< of each group of the model; `pairs` and what follows are of a layer that
                                        ///< sees everything
};

/// The time of a step for a model on a machine. The figures are the same with every compiler.
class CostModel {
 public:
  /// Throws std::invalid_argument for a shape or a machine with an extent or rate of 0, and for groups that have not as
  /// many layers as the model.
  CostModel(ModelShape model, Hardware hardware);

  [[nodiscard]] const ModelShape& model() const noexcept { return model_; }
  [[nodiscard]] const Hardware& hardware() const noexcept { return hardware_; }

  /// Of matrices, of attention of several queries of a sequence, and of attention of single ones. Where the model has
  /// groups, so must the cost: `cost_of(step, model().groups)`.
  [[nodiscard]] double matrix_operations(const StepCost& cost) const noexcept;
  [[nodiscard]] double prefill_attention_operations(const StepCost& cost) const noexcept;
  [[nodiscard]] double decode_attention_operations(const StepCost& cost) const noexcept;
  /// Of recurrent layers on their states.
  [[nodiscard]] double recurrence_operations(const StepCost& cost) const noexcept;
  [[nodiscard]] double operations(const StepCost& cost) const noexcept {
    return matrix_operations(cost) + prefill_attention_operations(cost) + decode_attention_operations(cost) +
           recurrence_operations(cost);
  }
  [[nodiscard]] double bytes(const StepCost& cost) const noexcept;
  /// At least 1 ns, at most max_clock.
  [[nodiscard]] Time time(const StepCost& cost) const noexcept;
  /// Tokens whose keys and values fit beside the weights into the share `usable` of the memory; 0: none.
  [[nodiscard]] Index pool_tokens(double usable = 0.9) const noexcept;

 private:
  /// The sum over all layers, of a model with groups.
  [[nodiscard]] double over_layers(const StepCost& cost, Index AttentionCost::* what) const noexcept;
  /// Of one query and one key, in all heads of one layer.
  [[nodiscard]] double pair_operations() const noexcept {
    return 4 * static_cast<double>(model_.heads * model_.head_dim);
  }

  ModelShape model_;
  Hardware hardware_;
};

/// Keys that the queries at these positions see in a layer: the sum over them. O(range.size()).
[[nodiscard]] constexpr Index pairs_seen(const kvc::Retained& retained, kvc::PosRange range) noexcept {
  Index pairs = 0;
  for (Pos position = range.first; position < range.last; ++position) {
    pairs += position + 1 - std::max(0, retained.first_seen(position) - retained.kept);
  }
  return pairs;
}
/// Rows that at least one of them sees. O(1).
[[nodiscard]] constexpr Index rows_seen(const kvc::Retained& retained, kvc::PosRange range) noexcept {
  return range.last - std::max(0, retained.first_seen(range.first) - retained.kept);
}

/// The work of a composed step, for a model with these groups. O(sequences of the step), and with groups O(its tokens).
template <class Cache>
[[nodiscard]] StepCost cost_of(const Step<Cache>& step, std::span<const ModelGroup> groups = {}) {
  StepCost cost;
  cost.tokens = step.prefill_tokens + step.decode_tokens;
  cost.wanted = std::ssize(step.sampled);
  cost.sequences = std::ssize(step.work);
  cost.groups.resize(groups.size());
  for (const Work<Cache>& work : step.work) {
    const kvc::PosRange range = work.append.range();
    const Index n = range.size();
    cost.pairs += n * range.first + n * (n + 1) / 2;
    cost.context += range.last;
    cost.decode_context += n == 1 ? range.last : 0;
    for (std::size_t g = 0; g < groups.size(); ++g) {
      const Index rows = rows_seen(groups[g].retained, range);
      cost.groups[g].pairs += pairs_seen(groups[g].retained, range);
      cost.groups[g].context += rows;
      cost.groups[g].decode_context += n == 1 ? rows : 0;
    }
  }
  return cost;
}

}  // namespace serving
