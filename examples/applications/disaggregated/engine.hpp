// Parts of both kinds of engines: their settings, and the loop that drives them.
#pragma once

#include <algorithm>
#include <chrono>

#include "kvc/policy/prefix_shared.hpp"
#include "messages.hpp"
#include "model.hpp"

namespace disaggregated {

/// The settings of an engine.
struct EngineConfig {
  Index blocks = 0;
  Pos block_tokens = 16;
  int batch = 8;           ///< sequences that are decoded together
  Pos reserve_tokens = 0;  ///< tokens that a decode engine must also have room for at admission
  std::chrono::nanoseconds timeout = std::chrono::seconds(10);  ///< of waiting for a silent peer
  Clock clock;
  std::function<void()> between_layers = [] {};  ///< other work of this thread

  [[nodiscard]] kvc::PrefixShared<>::Config pool() const { return {.blocks = blocks, .block_tokens = block_tokens}; }
};

/// Whether an idle engine references no block, and its bookkeeping is consistent.
inline bool is_clean(const Cache& cache) {
  try {
    cache.verify();
  } catch (const std::exception&) {
    return false;
  }
  return cache.stats().blocks_referenced == 0 && cache.stats().sequences == 0;
}

/// Runs actors that share a thread until all are done. An actor has `step`, which does what can be done now and returns
/// whether it did anything; `done`; and `wake`, the time of its next step if no message arrives.
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
