// The same work on one engine with one thread, phase after phase: all prompts, then all tokens.
#pragma once

#include <span>
#include <vector>

#include "engine.hpp"
#include "requests.hpp"

namespace disaggregated {

struct Alone {
  std::vector<std::vector<Token>> outputs;  // by request
  Time prefill = 0;
  Time decode = 0;
};

/// Decodes `config.batch` sequences together; the pool has room for all.
Alone run_alone(const kvc::llama::Model& model, std::span<const Request> requests, const EngineConfig& config);

}  // namespace disaggregated
