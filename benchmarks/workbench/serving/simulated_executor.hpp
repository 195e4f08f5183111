// Simulated time: a step takes what the cost model says, and the next tokens are made up.
#pragma once

#include <algorithm>
#include <limits>

#include "cost_model.hpp"
#include "step.hpp"

namespace serving {

/// Token `i` of the answer `sample` to a request: unlike that of any prompt, and the same in every run.
[[nodiscard]] constexpr Token answer_token(Index request, int sample, Pos i) noexcept {
  const std::uint64_t content = scramble(0xa5a5'0000'0000'0000ULL ^ (static_cast<std::uint64_t>(request) << 16) ^
                                         static_cast<std::uint64_t>(sample));
  return synthetic_token(content, i, std::numeric_limits<Token>::max());
}

class SimulatedExecutor {
 public:
  explicit SimulatedExecutor(const CostModel& model) : model_(model) {}

  [[nodiscard]] Time now() const noexcept { return now_; }
  void wait_until(Time t) noexcept { now_ = std::max(now_, t); }

  template <class Cache>
  void run(Cache& cache, Step<Cache>& step) {
    StepCost cost = cost_of(step);
    cost.copied = cache.take_copied_tokens();
    now_ += model_.time(cost);
    for (const Work<Cache>& work : step.work) {
      for (std::size_t i = 0; i < work.wanted; ++i) {
        step.sampled[work.first_wanted + i] =
            answer_token(work.request, work.sample + static_cast<int>(i), work.answered);
      }
    }
  }

 private:
  const CostModel& model_;
  Time now_ = 0;
};

}  // namespace serving
