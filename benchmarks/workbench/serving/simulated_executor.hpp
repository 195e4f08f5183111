// Simulated time: the cost model gives the time of a step, and next tokens are synthetic.
#pragma once

#include <algorithm>
#include <limits>
#include <stdexcept>
#include <string>

#include "cost_model.hpp"
#include "step.hpp"

namespace serving {

/// Token `i` of the answer `sample` to a request.
[[nodiscard]] constexpr Token answer_token(Index request, int sample, Pos i) noexcept {
  return synthetic_token(answer_content(request, sample), i, std::numeric_limits<Token>::max());
}

/// An Executor. `run` throws std::runtime_error once the clock passes max_clock.
class SimulatedExecutor {
 public:
  explicit SimulatedExecutor(const CostModel& model) : model_(model) {}

  [[nodiscard]] Time now() const noexcept { return now_; }
  void wait_until(Time t) noexcept { now_ = std::max(now_, t); }

  template <class Cache>
  void run(Cache& cache, Step<Cache>& step) {
    StepCost cost = cost_of(step, model_.model().groups);
    cost.copied = cache.take_copied_tokens();
    now_ += model_.time(cost);
    if (now_ > max_clock) {
      throw std::runtime_error("the simulated time exceeds " + std::to_string(max_clock / second) +
                               " s: the hardware is too slow for this traffic, or requests are too far apart");
    }
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
