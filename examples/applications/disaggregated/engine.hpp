// What both kinds of engines have in common: the settings of a cache, and how an engine is driven.
#pragma once

#include <algorithm>
#include <chrono>

#include "kvc/policy/prefix_shared.hpp"
#include "messages.hpp"
#include "model.hpp"

namespace disaggregated {

struct EngineConfig {
  Index blocks = 0;
  Pos block_tokens = 16;
  int batch = 8;           ///< sequences that are decoded together
  Pos reserve_tokens = 0;  ///< room that a decode engine wants beside a new sequence
  std::chrono::nanoseconds timeout = std::chrono::seconds(10);  ///< of waiting for a peer, with nothing heard
  Clock clock;
  std::function<void()> between_layers = [] {};  ///< what else this thread has to do

  [[nodiscard]] kvc::PrefixShared<>::Config pool() const { return {.blocks = blocks, .block_tokens = block_tokens}; }
};

/// Whether an engine that has nothing to do holds nothing, and its books are right.
inline bool is_clean(const Cache& cache) {
  try {
    cache.verify();
  } catch (const std::exception&) {
    return false;
  }
  return cache.stats().blocks_referenced == 0 && cache.stats().sequences == 0;
}

/// Lets actors, which share a thread, act until all are done. An actor has `step`, which does what can be done now and
/// says whether that was anything, `done`, and `wake`, when it wants to be asked again though nothing has come.
template <class T, class... Actors>
void drive(T& transport, Actors&... actors) {
  while (!(actors.done() && ...)) {
    if ((static_cast<int>(actors.step()) + ...) == 0) {
      const auto soon = std::chrono::steady_clock::now() + std::chrono::milliseconds(100);
      (void)transport.wait(std::min({soon, actors.wake()...}));
    }
  }
}

}  // namespace disaggregated
