// The metrics of a run, as the field defines them.
//
//   TTFT        from the arrival of a request to its first token: queueing and prefill
//   TPOT        of an answer of n >= 2 tokens: (last token - first token) / (n - 1)
//   ITL         between two tokens of an answer, each gap separately: shows a stall that TPOT averages away
//   end to end  from the arrival of a request to the last token of its last answer
//   throughput  of the time from the first arrival to the last end of a request: tokens of answers, requests
//   goodput     completed requests whose TTFT and TPOT (the largest of its answers') are within the SLO, per second of
//               the same time
//
// A request without answer has neither TTFT nor TPOT; it is within the SLO if its prefill ends within the TTFT. TTFT,
// TPOT and end to end count completed requests only, ITL counts all tokens.
#pragma once

#include <algorithm>
#include <optional>
#include <vector>

#include "histogram.hpp"
#include "request.hpp"

namespace serving {

/// Service level objective.
struct Slo {
  Time ttft = 2 * second;
  Time tpot = 100 * millisecond;
};

/// How a request ended. Every request ends exactly once.
enum class End {
  completed,
  aborted,       ///< its client left
  refused,       ///< it does not fit even when nothing else runs
  out_of_memory  ///< it was begun, and could not continue even when nothing else ran
};
inline constexpr std::size_t ends = 4;

/// One request, as it ended.
struct Ended {
  Index id = 0;
  std::size_t traffic_class = 0;
  End how = End::completed;
  Time arrival = 0;
  Time end = 0;
  std::optional<Time> first_token{};
  Time tpot = 0;  ///< the largest of its answers'; 0 where none has two tokens
};

/// The latencies of one class of traffic, or of all.
struct Latencies {
  Histogram ttft, tpot, end_to_end;
  Index requests = 0;
  Index good = 0;  ///< completed within the SLO
};

/// Collects the latencies of one run: over all requests, and by class of traffic.
class Metrics {
 public:
  Metrics(const Slo& slo, std::size_t classes) : slo_(slo), by_class_(classes) {}

  void arrived(Time now) {
    first_ = arrived_++ == 0 ? now : std::min(first_, now);
    last_ = std::max(last_, now);
  }
  /// Adds the time between two tokens of an answer.
  void token_gap(Time gap) { itl_.add(gap); }
  /// Adds a complete answer of `tokens` tokens. Returns its TPOT, if it has one.
  std::optional<Time> answered(std::size_t traffic_class, Time first, Time last, Pos tokens) {
    if (tokens < 2) {
      return std::nullopt;
    }
    const Time tpot = (last - first) / (tokens - 1);
    all_.tpot.add(tpot);
    by_class_.at(traffic_class).tpot.add(tpot);
    return tpot;
  }
  void ended(const Ended& request) {
    ++ends_[static_cast<std::size_t>(request.how)];
    last_ = std::max(last_, request.end);
    for (Latencies* latencies : {&all_, &by_class_.at(request.traffic_class)}) {
      ++latencies->requests;
      if (request.how == End::completed) {
        const Time first = request.first_token.value_or(request.end) - request.arrival;
        if (request.first_token) {
          latencies->ttft.add(first);
        }
        latencies->end_to_end.add(request.end - request.arrival);
        latencies->good += first <= slo_.ttft && request.tpot <= slo_.tpot ? 1 : 0;
      }
    }
  }
  void generated(Index tokens) { generated_ += tokens; }

  [[nodiscard]] const Slo& slo() const noexcept { return slo_; }
  [[nodiscard]] const Latencies& all() const noexcept { return all_; }
  [[nodiscard]] const Latencies& of(std::size_t traffic_class) const { return by_class_.at(traffic_class); }
  [[nodiscard]] const Histogram& itl() const noexcept { return itl_; }
  [[nodiscard]] Index count(End how) const noexcept { return ends_[static_cast<std::size_t>(how)]; }
  [[nodiscard]] Index arrivals() const noexcept { return arrived_; }
  [[nodiscard]] Index generated_tokens() const noexcept { return generated_; }
  /// Seconds from the first arrival to the last end.
  [[nodiscard]] double seconds() const noexcept { return static_cast<double>(last_ - first_) / second; }
  [[nodiscard]] double per_second(Index count) const noexcept {
    return last_ == first_ ? 0 : static_cast<double>(count) / seconds();
  }

 private:
  Slo slo_;
  Latencies all_;
  std::vector<Latencies> by_class_;
  Histogram itl_;
  Index ends_[ends] = {};
  Index arrived_ = 0;
  Index generated_ = 0;
  Time first_ = 0;
  Time last_ = 0;
};

/// The part of its pool that a run takes, step by step.
class PoolUse {
 public:
  /// `used` of `slots` slots are referenced by sequences and pins, from now until the next call.
  void observe(Time now, Index used, Index slots, Index running) {
    const double share = static_cast<double>(used) / static_cast<double>(slots);
    const auto lasted = static_cast<double>(since_ < 0 ? 0 : now - since_);
    share_ += lasted * last_share_;
    running_ += lasted * static_cast<double>(last_running_);
    time_ += lasted;
    since_ = now;
    last_share_ = share;
    last_running_ = running;
    most_ = std::max(most_, share);
  }
  /// Share of the pool, over time.
  [[nodiscard]] double mean_share() const noexcept { return time_ > 0 ? share_ / time_ : 0; }
  [[nodiscard]] double most_share() const noexcept { return most_; }
  /// Sequences, over time.
  [[nodiscard]] double mean_running() const noexcept { return time_ > 0 ? running_ / time_ : 0; }

 private:
  double share_ = 0, running_ = 0, time_ = 0;  // time integrals
  double last_share_ = 0, most_ = 0;
  Index last_running_ = 0;
  Time since_ = -1;
};

/// Counters of a scheduler.
struct Counters {
  Index steps = 0;
  Index steps_with_prefill = 0;
  Index prompt_tokens = 0;         ///< of the prompts that were admitted, each once
  Index prompt_tokens_found = 0;   ///< those of them that were cached: prefill tokens saved
  Index again_tokens = 0;          ///< of sequences admitted again after a preemption, prompt and answer
  Index again_tokens_found = 0;    ///< those of them that were still cached
  Index prefill_tokens = 0;        ///< computed: rest of prompts, first time and again
  Index decode_tokens = 0;         ///< computed one by one
  Index forked_tokens = 0;         ///< positions that a fork began with
  Index released_tokens = 0;       ///< positions of sequences when they were closed: found + prefill + decode + forked
  Index lost_tokens = 0;           ///< those of them that a preemption took
  Index admissions = 0;            ///< of sequences, each time
  Index failed_admissions = 0;     ///< attempts that found no room; there is one whenever room was freed
  Index failed_admissions_25 = 0;  ///< those of them with at least a quarter of the pool free
  Index delayed = 0;               ///< sequences that had to wait for room at least once
  Index delayed_25 = 0;            ///< the same, with at least a quarter of the pool free
  Index out_of_room = 0;           ///< times that a running sequence had no room for its next tokens
  Index out_of_room_25 = 0;        ///< those of them with at least a quarter of the pool free
  Index preemptions = 0;
  Index forks = 0;
  Index failed_forks = 0;  ///< the prompt was computed again instead
  Index pins = 0;
  Time blocked = 0;                 ///< nothing was admitted for lack of room
  Time blocked_25 = 0;              ///< the same, with at least a quarter of the pool free
  double most_free_at_failure = 0;  ///< share of the pool that was free when an admission or an extension failed
};

}  // namespace serving
