#include "real.hpp"

#include <algorithm>
#include <filesystem>
#include <stdexcept>

#include "kvc/llama/checkpoint.hpp"
#include "kvc/policy/contiguous.hpp"
#include "kvc/policy/paged.hpp"
#include "real_policies.hpp"
#include "real_run.hpp"

namespace serving {

extern template void real_over<kvc::Contiguous>(const Scenario&, const SchedulerConfig&, const RealMachine&,
                                                const OnProgress&, const OnAnswer&, RunResult&);
extern template void real_over<kvc::Paged>(const Scenario&, const SchedulerConfig&, const RealMachine&,
                                           const OnProgress&, const OnAnswer&, RunResult&);
extern template void real_over<RealPrefixShared>(const Scenario&, const SchedulerConfig&, const RealMachine&,
                                                 const OnProgress&, const OnAnswer&, RunResult&);

kvc::llama::Model load_model(const std::string& file) {
  return kvc::llama::load_checkpoint(
      std::filesystem::path(file.empty() ? KVC_SOURCE_DIR "/examples/model/shakespeare.bin" : file));
}

ModelShape shape_of(const kvc::llama::Model& model, std::string name) {
  const kvc::llama::Config& c = model.config;
  ModelShape shape;
  shape.name = std::move(name);
  shape.layers = c.layers;
  shape.hidden = c.dim;
  shape.heads = c.heads;
  shape.kv_heads = c.kv_heads;
  shape.head_dim = c.head_dim();
  shape.ffn = c.hidden_dim;
  shape.vocabulary = c.vocab_size;
  shape.tied_embeddings = model.own_classifier.size() == 0;
  shape.weight_bytes = sizeof(float);
  shape.kv_bytes = sizeof(float);
  shape.source = "the checkpoint";
  shape.last_rows_only = true;
  return shape;
}

Scenario fit_to(Scenario scenario, const kvc::llama::Model& model, const std::string& name) {
  const Index positions = model.config.seq_len;
  for (const TrafficClass& c : scenario.traffic) {
    Index longest = Index{c.prefix_tokens} + c.prompt.most() + std::max(c.max_output, c.output.most());
    if (c.turns.most() > 1) {
      longest = c.most_tokens > 0 ? std::max(longest, c.most_tokens) : longest * c.turns.most();
    }
    if (longest > positions) {
      throw std::runtime_error("requests of the class \"" + c.name + "\" have up to " + std::to_string(longest) +
                               " tokens, and the model was made for " + std::to_string(positions) +
                               ": take another scenario, such as small-model-chat, or another model");
    }
  }
  scenario.model = shape_of(model, name);
  scenario.scheduler.vocabulary = static_cast<Token>(model.config.vocab_size);
  if (scenario.pool_tokens == 0) {
    scenario.pool_tokens = 16 * positions;
  }
  return scenario;
}

RunResult serve_real(const Scenario& scenario, PolicyKind policy, bool chunked, double load, const RealMachine& machine,
                     const OnProgress& on_progress, const OnAnswer& on_answer) {
  RunResult result;
  result.mode = "real";
  const SchedulerConfig scheduling = begin_run(scenario, policy, chunked, load, result);
  switch (policy) {
    case PolicyKind::contiguous_reserve:
    case PolicyKind::contiguous_grow:
      real_over<kvc::Contiguous>(scenario, scheduling, machine, on_progress, on_answer, result);
      break;
    case PolicyKind::paged:
      real_over<kvc::Paged>(scenario, scheduling, machine, on_progress, on_answer, result);
      break;
    case PolicyKind::prefix_shared:
      real_over<RealPrefixShared>(scenario, scheduling, machine, on_progress, on_answer, result);
      break;
  }
  return result;
}

}  // namespace serving
