// Real runs: the scheduler and the policies of a simulation, with a decoder and real keys and values.
//
// real_contiguous.cpp, real_paged.cpp and real_prefix_shared.cpp compile the decoder over a cache, each over one
// policy.
#pragma once

#include <string>

#include "kvc/llama/llama.hpp"
#include "model_executor.hpp"
#include "run.hpp"

namespace serving {

/// The decoder and its clock.
struct RealMachine {
  const kvc::llama::Model* model = nullptr;
  Threads threads;
  ClockKind clock = ClockKind::wall;
};

/// The model of a llama2.c checkpoint; empty: the one that came with the project. Throws what load_checkpoint throws.
[[nodiscard]] kvc::llama::Model load_model(const std::string& file);
/// Its shape, for the cost model. Weights, keys and values are float.
[[nodiscard]] ModelShape shape_of(const kvc::llama::Model& model, std::string name);

/// The scenario with the shape and vocabulary of this model, and a pool of 16 times its positions where the scenario
/// names none. Throws std::runtime_error for made-up traffic that is longer than the model's positions.
[[nodiscard]] Scenario fit_to(Scenario scenario, const kvc::llama::Model& model, const std::string& name);

/// As `simulate`, for a scenario that fit_to returned. Throws std::invalid_argument for a request of a trace that is
/// longer than the model's positions.
[[nodiscard]] RunResult serve_real(const Scenario& scenario, PolicyKind policy, bool chunked, double load,
                                   const RealMachine& machine, const OnProgress& on_progress = {},
                                   const OnAnswer& on_answer = {});

}  // namespace serving
