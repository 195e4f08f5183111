#include "cost_model.hpp"

#include <algorithm>
#include <cmath>

#include "kvc/core/error.hpp"

namespace serving {
namespace {

/// base to the power of `exponent`, with the same bits everywhere, which std::pow does not promise.
double power(double base, Index exponent) noexcept {
  double result = 1;
  for (; exponent > 0; exponent /= 2, base *= base) {
    result *= exponent % 2 == 1 ? base : 1;
  }
  return result;
}

}  // namespace

const std::vector<Hardware>& known_hardware() {
  // Peak of dense bf16 on tensor cores: where a data sheet gives it with sparsity, half of that.
  static const std::vector<Hardware> hardware = {
      {"a100-80g", 312e12, 2.039e12, 80e9, 1, 0.002, "NVIDIA A100 data sheet, SXM4 80 GB: 312 TFLOPS, 2039 GB/s"},
      {"h100-sxm", 989.5e12, 3.35e12, 80e9, 1, 0.002,
       "NVIDIA H100 data sheet, SXM: 1979 TFLOPS with sparsity, 3.35 TB/s, 80 GB"},
      {"h200", 989.5e12, 4.8e12, 141e9, 1, 0.002,
       "NVIDIA H200 data sheet, SXM: 1979 TFLOPS with sparsity, 4.8 TB/s, 141 GB"},
      {"a10", 125e12, 0.6e12, 24e9, 1, 0.002, "NVIDIA A10 data sheet: 125 TFLOPS (250 with sparsity), 600 GB/s, 24 GB"},
      {"l40s", 362e12, 0.864e12, 48e9, 1, 0.002,
       "NVIDIA L40S data sheet: 362.05 TFLOPS (733 with sparsity), 864 GB/s, 48 GB"},
  };
  return hardware;
}

CostModel::CostModel(ModelShape model, Hardware hardware) : model_(std::move(model)), hardware_(std::move(hardware)) {
  kvc::require(model_.layers > 0 && model_.hidden > 0 && model_.heads > 0 && model_.kv_heads > 0 &&
                   model_.head_dim > 0 && model_.ffn > 0 && model_.vocabulary > 0,
               "model", model_.name, "a shape whose every extent is at least 1");
  kvc::require(model_.weight_bytes > 0 && model_.kv_bytes > 0, "model", model_.name,
               "one whose numbers have more than 0 bytes");
  Index grouped = 0;
  for (const ModelGroup& group : model_.groups) {
    kvc::require(group.layers > 0, "layers of a group", group.layers, "at least 1");
    kvc::require_valid(group.retained);
    grouped += group.layers;
  }
  for (const ModelStates& kind : model_.states) {
    kvc::require(kind.layers > 0 && kind.bytes > 0 && kind.parameters >= 0 && kind.operations >= 0, "states",
                 kind.layers, "of at least 1 layer and 1 byte, with no negative parameters or operations");
    grouped += kind.layers;
  }
  kvc::require(model_.states.empty() || !model_.groups.empty(), "groups", model_.groups.size(),
               "at least 1 beside recurrent layers");
  kvc::require(model_.groups.empty() || (grouped == model_.layers && !model_.last_rows_only), "layers of all groups",
               grouped, "the layers of the model, all of them computed for all tokens");
  const Experts& experts = model_.experts;
  kvc::require(experts.count >= 1, "experts.count", experts.count, "at least 1 (1: an MLP that every token passes)");
  kvc::require_between(experts.chosen, Index{1}, experts.count, "experts.chosen");
  kvc::require(experts.shared >= 0, "experts.shared", experts.shared, "at least 0");
  kvc::require_between(experts.every, Index{1}, model_.layers, "experts.every");
  kvc::require(hardware_.peak > 0 && hardware_.bandwidth > 0 && hardware_.devices > 0 && hardware_.overhead >= 0 &&
                   hardware_.attention_peak >= 0 && hardware_.decode_peak >= 0 && hardware_.per_sequence >= 0,
               "hardware", hardware_.name, "one with peak, bandwidth and devices above 0, and no negative overhead");
}

double CostModel::matrix_operations(const StepCost& cost) const noexcept {
  const auto tokens = static_cast<double>(cost.tokens);
  const auto last = static_cast<double>(model_.last_rows_only ? cost.sequences : cost.tokens);
  const auto wanted = static_cast<double>(model_.last_rows_only ? cost.sequences : cost.wanted);
  const double all = model_.layer_parameters();
  const double of_last = all / static_cast<double>(model_.layers) - model_.kv_parameters();
  return 2 * ((all - of_last) * tokens + of_last * last + model_.classifier_parameters() * wanted);
}

double CostModel::over_layers(const StepCost& cost, Index AttentionCost::* what) const noexcept {
  double sum = 0;
  for (std::size_t g = 0; g < model_.groups.size(); ++g) {
    sum += static_cast<double>(model_.groups[g].layers * (cost.groups[g].*what));
  }
  return sum;
}

double CostModel::prefill_attention_operations(const StepCost& cost) const noexcept {
  if (!model_.groups.empty()) {
    return pair_operations() *
           (over_layers(cost, &AttentionCost::pairs) - over_layers(cost, &AttentionCost::decode_context));
  }
  const auto pairs = static_cast<double>(cost.pairs - cost.decode_context);
  const auto in_last = model_.last_rows_only ? 0 : pairs;
  return pair_operations() * (static_cast<double>(model_.layers - 1) * pairs + in_last);
}

double CostModel::decode_attention_operations(const StepCost& cost) const noexcept {
  if (!model_.groups.empty()) {
    return pair_operations() * over_layers(cost, &AttentionCost::decode_context);
  }
  // In the last layer all queries may be single ones.
  const auto in_last = static_cast<double>(model_.last_rows_only ? cost.context : cost.decode_context);
  return pair_operations() * (static_cast<double>((model_.layers - 1) * cost.decode_context) + in_last);
}

double CostModel::bytes(const StepCost& cost) const noexcept {
  const Experts& experts = model_.experts;
  // As many tokens as the step has choose evenly and independently.
  const double missed =
      power(1 - static_cast<double>(experts.chosen) / static_cast<double>(experts.count), cost.tokens);
  const double read = static_cast<double>(experts.count) * (1 - missed) + static_cast<double>(experts.shared);
  const double mlps = model_.expert_layers() * read + model_.mlp_layers();
  const double weights = (model_.common_parameters() + model_.classifier_parameters()) * model_.weight_bytes +
                         mlps * model_.expert_parameters() * model_.expert_bytes();
  const auto written = static_cast<double>(cost.tokens + 2 * cost.copied);
  const double seen = model_.groups.empty()
                          ? static_cast<double>(cost.context)
                          : over_layers(cost, &AttentionCost::context) / static_cast<double>(model_.attention_layers());
  const double states = 2 * static_cast<double>(cost.sequences) * model_.state_bytes();
  return weights + model_.kv_bytes_per_token() * (seen + written) + states;
}

double CostModel::recurrence_operations(const StepCost& cost) const noexcept {
  double of_a_token = 0;
  for (const ModelStates& kind : model_.states) {
    of_a_token += static_cast<double>(kind.layers) * kind.operations;
  }
  return static_cast<double>(cost.tokens) * of_a_token;
}

Time CostModel::time(const StepCost& cost) const noexcept {
  const auto devices = static_cast<double>(hardware_.devices);
  const double attention_peak = hardware_.attention_peak > 0 ? hardware_.attention_peak : hardware_.peak;
  const double decode_peak = hardware_.decode_peak > 0 ? hardware_.decode_peak : attention_peak;
  const double compute = (matrix_operations(cost) / hardware_.peak +
                          (prefill_attention_operations(cost) + recurrence_operations(cost)) / attention_peak +
                          decode_attention_operations(cost) / decode_peak) /
                         devices;
  const double traffic = bytes(cost) / (hardware_.bandwidth * devices);
  const double overhead = hardware_.overhead + hardware_.per_sequence * static_cast<double>(cost.sequences);
  const double nanoseconds = (std::max(compute, traffic) + overhead) * 1e9;
  return nanoseconds >= static_cast<double>(max_clock) ? max_clock : std::max<Time>(1, std::llround(nanoseconds));
}

Index CostModel::pool_tokens(double usable) const noexcept {
  const double room = hardware_.memory * static_cast<double>(hardware_.devices) * usable - model_.weights();
  return room <= 0 ? 0 : static_cast<Index>(std::min(room / model_.kv_bytes_per_token(), 2147483647.0));
}

}  // namespace serving
