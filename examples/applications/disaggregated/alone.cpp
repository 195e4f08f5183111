#include "alone.hpp"

#include <deque>
#include <utility>

namespace disaggregated {

Alone run_alone(const kvc::llama::Model& model, std::span<const Request> requests, const EngineConfig& config) {
  kvc::PrefixShared<>::Config pool = config.pool();
  const kvc::LayerGroups layers = model.config.cache_layers();
  pool.blocks = 1;
  for (const Request& r : requests) {
    const Index length = static_cast<Index>(r.prompt.size()) + r.output_tokens;
    pool.blocks += std::ssize(layers.groups()) * (kvc::ceil_div(length, Index{config.block_tokens}) + 1);
  }
  Cache cache(layers, pool);
  Clock clock = config.clock;
  clock.start();
  Alone run;
  struct Sequence {
    kvc::SeqId seq;
    std::size_t request;
  };
  std::deque<Sequence> waiting;
  for (const Request& r : requests) {
    const kvc::Opened opened = cache.open(r.prompt);
    const auto rest = std::span(r.prompt).subspan(static_cast<std::size_t>(opened.cached));
    auto step = cache.extend(opened.seq, rest);
    run.outputs.push_back({prefill(model, cache, step, rest, [](Index) {})});
    cache.commit(std::move(step));
    waiting.push_back({opened.seq, run.outputs.size() - 1});
  }
  run.prefill = clock.elapsed();
  std::vector<Sequence> running;
  while (!waiting.empty() || !running.empty()) {
    while (!waiting.empty() && running.size() < static_cast<std::size_t>(config.batch)) {
      running.push_back(waiting.front());
      waiting.pop_front();
    }
    std::erase_if(running, [&](const Sequence& s) {
      if (run.outputs[s.request].size() < static_cast<std::size_t>(requests[s.request].output_tokens)) {
        return false;
      }
      cache.close(s.seq);
      return true;
    });
    if (running.empty()) {
      continue;
    }
    std::vector<Cache::Append> steps;
    std::vector<Token> tokens;
    for (const Sequence& s : running) {
      tokens.push_back(run.outputs[s.request].back());
      steps.push_back(cache.extend(s.seq, std::span(&tokens.back(), 1)));
    }
    const std::vector<Token> next = decode(model, cache, steps, tokens, [](Index) {});
    for (std::size_t i = 0; i < running.size(); ++i) {
      cache.commit(std::move(steps[i]));
      run.outputs[running[i].request].push_back(next[i]);
    }
  }
  run.decode = clock.elapsed() - run.prefill;
  return run;
}

}  // namespace disaggregated
