#include "cost_model.hpp"

#include <algorithm>
#include <cmath>

#include "kvc/core/error.hpp"

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
  };
  return models;
}

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

double CostModel::prefill_attention_operations(const StepCost& cost) const noexcept {
  const auto pairs = static_cast<double>(cost.pairs - cost.decode_context);
  const auto in_last = model_.last_rows_only ? 0 : pairs;
  return pair_operations() * (static_cast<double>(model_.layers - 1) * pairs + in_last);
}

double CostModel::decode_attention_operations(const StepCost& cost) const noexcept {
  // In the last layer all queries may be single ones.
  const auto in_last = static_cast<double>(model_.last_rows_only ? cost.context : cost.decode_context);
  return pair_operations() * (static_cast<double>((model_.layers - 1) * cost.decode_context) + in_last);
}

double CostModel::bytes(const StepCost& cost) const noexcept {
  const double weights = (model_.layer_parameters() + model_.classifier_parameters()) * model_.weight_bytes;
  const Index rows = cost.context + cost.tokens + 2 * cost.copied;
  return weights + model_.kv_bytes_per_token() * static_cast<double>(rows);
}

Time CostModel::time(const StepCost& cost) const noexcept {
  const auto devices = static_cast<double>(hardware_.devices);
  const double attention_peak = hardware_.attention_peak > 0 ? hardware_.attention_peak : hardware_.peak;
  const double decode_peak = hardware_.decode_peak > 0 ? hardware_.decode_peak : attention_peak;
  const double compute =
      (matrix_operations(cost) / hardware_.peak + prefill_attention_operations(cost) / attention_peak +
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
