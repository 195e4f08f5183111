// Real time: a decoder computes each step over a cache with real keys and values.
//
// All sequences of a step go through the network as one batch. The likeliest token is sampled, so the answer to a
// request depends on its prompt alone: not on the policy, the other sequences of its batches, or preemptions. Where a
// prompt is forked, answer i begins with the i-th likeliest token.
#pragma once

#include <algorithm>
#include <ctime>
#include <functional>
#include <iterator>
#include <numeric>
#include <span>
#include <utility>
#include <vector>

#include "generate/threads.hpp"
#include "kvc/attention/extern.hpp"
#include "kvc/llama/decoder.hpp"
#include "kvc/llama/llama.hpp"
#include "kvc/llama/sampler.hpp"
#include "step.hpp"

namespace serving {

using generate::Threads;

/// The clock of real runs.
enum class ClockKind {
  wall,
  cpu  ///< processor time of this process: for one thread on a shared machine
};

/// Nanoseconds since some moment.
[[nodiscard]] inline Time read_clock(ClockKind kind) noexcept {
  std::timespec now{};
  ::clock_gettime(kind == ClockKind::wall ? CLOCK_MONOTONIC : CLOCK_PROCESS_CPUTIME_ID, &now);
  return now.tv_sec * second + now.tv_nsec;
}

/// Called with every sampled token: request, which of its answers, place in the answer.
using OnAnswer = std::function<void(Index request, int sample, Pos place, Token token)>;

/// An Executor over a real decoder. Throws what the decoder throws, std::invalid_argument among them for a sequence
/// that is longer than the positions of the model.
class ModelExecutor {
 public:
  /// The model must outlive it.
  ModelExecutor(const kvc::llama::Model& model, const Threads& threads, ClockKind clock, OnAnswer on_answer = {})
      : model_(model), threads_(threads), clock_(clock), on_answer_(std::move(on_answer)), begin_(read_clock(clock)) {}

  [[nodiscard]] Time now() const noexcept { return read_clock(clock_) - begin_ + skipped_; }
  /// Does not sleep: advances the clock.
  void wait_until(Time t) noexcept { skipped_ += std::max<Time>(0, t - now()); }

  template <class Cache>
  void run(Cache& cache, Step<Cache>& step) {
    std::vector<typename Cache::Append> appends;
    appends.reserve(step.work.size());
    tokens_.clear();
    for (Work<Cache>& work : step.work) {
      tokens_.insert(tokens_.end(), work.tokens.begin(), work.tokens.end());
      appends.push_back(std::move(work.append));
    }
    const kvc::llama::Matrix logits = kvc::llama::dec(model_, cache, std::span<const typename Cache::Append>(appends),
                                                      tokens_, kvc::llama::Logits::last, threads_);
    for (std::size_t i = 0; i < step.work.size(); ++i) {
      Work<Cache>& work = step.work[i];
      work.append = std::move(appends[i]);
      const auto row = static_cast<Index>(i);
      choose({logits.row(row).data(), static_cast<std::size_t>(logits.cols())},
             std::span(step.sampled).subspan(work.first_wanted, work.wanted));
      for (std::size_t sample = 0; on_answer_ && sample < work.wanted; ++sample) {
        on_answer_(work.request, work.sample + static_cast<int>(sample), work.answered,
                   step.sampled[work.first_wanted + sample]);
      }
    }
  }

 private:
  /// The likeliest tokens, as many as chosen has room for, the likeliest first.
  static void choose(std::span<const float> logits, std::span<Token> chosen) {
    if (chosen.size() == 1) {
      chosen.front() = kvc::llama::Sampler::greedy(logits);
    } else if (!chosen.empty()) {
      std::vector<Token> all(logits.size());
      std::iota(all.begin(), all.end(), Token{0});
      const auto count = static_cast<std::ptrdiff_t>(std::min(chosen.size(), all.size()));
      std::partial_sort(all.begin(), all.begin() + count, all.end(), [&](Token a, Token b) {
        return std::pair(-logits[static_cast<std::size_t>(a)], a) < std::pair(-logits[static_cast<std::size_t>(b)], b);
      });
      for (std::size_t i = 0; i < chosen.size(); ++i) {
        chosen[i] = all[i % all.size()];
      }
    }
  }

  const kvc::llama::Model& model_;
  Threads threads_;
  ClockKind clock_;
  OnAnswer on_answer_;
  Time begin_;
  Time skipped_ = 0;
  std::vector<Token> tokens_;
};

}  // namespace serving
