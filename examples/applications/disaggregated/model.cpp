#include "model.hpp"

#include "kvc/attention/extern.hpp"
#include "kvc/llama/decoder.hpp"
#include "kvc/llama/sampler.hpp"
#include "kvc/parallel/executor.hpp"

namespace disaggregated {
namespace {

/// The most likely token of each row of logits [sequences, vocab_size].
std::vector<Token> greedy(const kvc::llama::Matrix& logits) {
  std::vector<Token> tokens;
  for (Index row = 0; row < logits.rows(); ++row) {
    const auto columns = static_cast<std::size_t>(logits.cols());
    tokens.push_back(kvc::llama::Sampler::greedy({logits.row(row).data(), columns}));
  }
  return tokens;
}

}  // namespace

std::vector<Token> decode(const kvc::llama::Model& model, Cache& cache, std::span<const Cache::Append> steps,
                          std::span<const Token> tokens, const OnLayer& on_layer) {
  return greedy(kvc::llama::dec(model, cache, steps, tokens, kvc::llama::Logits::last, kvc::Sequential{}, on_layer));
}

Token prefill(const kvc::llama::Model& model, Cache& cache, const Cache::Append& step, std::span<const Token> tokens,
              const OnLayer& on_layer) {
  return decode(model, cache, std::span(&step, 1), tokens, on_layer).front();
}

}  // namespace disaggregated
