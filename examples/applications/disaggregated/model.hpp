// The model as engines use it: the next token after a prompt, and the next one of many sequences. Greedy.
#pragma once

#include <functional>
#include <span>
#include <vector>

#include "kvc/cache.hpp"
#include "kvc/llama/llama.hpp"
#include "kvc/policy/prefix_shared.hpp"

namespace disaggregated {

using kvc::Index;
using kvc::Pos;
using kvc::Token;

/// The cache of every engine.
using Cache = kvc::KvCache<float, kvc::PrefixShared<>>;
/// Called for each layer as soon as its rows are written.
using OnLayer = std::function<void(Index layer)>;

/// Fills the positions of `step` [tokens.size()], layer by layer, and returns the token that follows.
Token prefill(const kvc::llama::Model& model, Cache& cache, const Cache::Append& step, std::span<const Token> tokens,
              const OnLayer& on_layer);

/// Fills one position of each sequence [steps.size()] with its token, and returns the next tokens.
std::vector<Token> decode(const kvc::llama::Model& model, Cache& cache, std::span<const Cache::Append> steps,
                          std::span<const Token> tokens, const OnLayer& on_layer);

}  // namespace disaggregated
