// Carries out the decisions of a scheduler: sequences start, emit tokens, fork, are preempted, and end. Counts all of
// it.
//
// Under asynchronous scheduling the close of a preempted sequence is deferred, as the current step may still read it;
// `close_deferred` closes it.
#pragma once

#include <algorithm>
#include <optional>
#include <span>
#include <utility>
#include <vector>

#include "jobs.hpp"
#include "metrics.hpp"
#include "pins.hpp"
#include "prefix_loads.hpp"
#include "step.hpp"

namespace serving {

template <ServingCache Cache>
class Sequences {
 public:
  /// Prompts are computed in passes of `pass` tokens; 0: in one.
  Sequences(Cache& cache, Metrics& metrics, Index most_running, Pos pass, PrefixLoads* loads = nullptr)
      : cache_(cache),
        loads_(loads),
        metrics_(metrics),
        most_running_(most_running),
        pass_(pass),
        pool_(pool_tokens(cache.policy())) {}

  [[nodiscard]] Jobs& jobs() noexcept { return jobs_; }
  [[nodiscard]] const Jobs& jobs() const noexcept { return jobs_; }
  [[nodiscard]] Counters& counters() noexcept { return counters_; }
  [[nodiscard]] const Counters& counters() const noexcept { return counters_; }
  [[nodiscard]] Index running() const noexcept { return std::ssize(jobs_.running()); }

  /// A request arrives. One that can never be completed is refused at once: its answer, or under a policy that reserves
  /// the longest one that its client allows, does not fit the pool even alone.
  void add(Request request) {
    metrics_.arrived(request.arrival);
    const bool reserves = reserves_maximum(cache_.policy());
    if (!fits_alone(cache_.policy(), request.slots(reserves ? request.max_output_tokens : request.output_tokens),
                    pass_)) {
      metrics_.ended({request.id, request.traffic_class, End::refused, request.arrival, request.arrival, {}, 0});
    } else {
      jobs_.add(std::move(request));
    }
  }

  /// A waiting job begins to run: its sequence is open, with its cached positions.
  void start(std::size_t index) {
    Job& job = jobs_[index];
    ++counters_.admissions;
    const bool again = std::exchange(job.admitted, true) || job.answered > 0;
    (again ? counters_.again_tokens : counters_.prompt_tokens) += job.known();
    (again ? counters_.again_tokens_found : counters_.prompt_tokens_found) += job.computed;
    jobs_.leave_waiting(index);
    jobs_.run(index);
  }

  /// A running job waits again. Its sequence is closed, now or by close_deferred.
  void preempt(std::size_t index, bool defer) {
    const kvc::SeqId seq = jobs_[index].seq;
    const Index tokens = cache_.length(seq);
    ++counters_.preemptions;
    counters_.lost_tokens += tokens;
    if (defer) {
      deferred_.push_back(seq);
      deferred_tokens_ += tokens;
    } else {
      close(seq);
    }
    jobs_.stop(index);
    jobs_[index].asked_tiers = false;
    jobs_.wait(index);
  }
  [[nodiscard]] Index deferred_tokens() const noexcept { return deferred_tokens_; }
  void close_deferred() {
    for (const kvc::SeqId seq : deferred_) {
      close(seq);
    }
    deferred_.clear();
    deferred_tokens_ = 0;
  }
  [[nodiscard]] bool nothing_deferred() const noexcept { return deferred_.empty(); }
  /// Number of sequences closed so far: room changed since if this did.
  [[nodiscard]] Index releases() const noexcept { return releases_; }

  /// The positions of a job's work are committed, and these tokens follow: one, or after a prompt as many as the
  /// request wants answers.
  void emit(std::size_t index, std::span<const Token> next, Time now) {
    const Job& job = jobs_[index];
    if (job.answered == 0 && job.sample == 0) {
      prompt_done(job, next, now);
    }
    emit(index, next.front(), now);
  }

  /// The prompt of a job is computed, and its request wants no answer: completes it.
  void complete_without_answer(std::size_t index, Time now) {
    Job& job = jobs_[index];
    const std::size_t active = job.active;
    counters_.pins += pins_.pin(cache_, jobs_.request(job), job.tokens) ? 1 : 0;
    if (end_job(index)) {
      report(active, now, End::completed);
    }
  }

  /// Ends all answers of a request as they are.
  void end_request(std::size_t active, Time now, End how) {
    const std::vector<std::size_t> all = jobs_.active(active).jobs;
    for (const std::size_t job : all) {
      end_job(job);
    }
    report(active, now, how);
  }

  /// At a failure: whether at least a quarter of the pool is free beside the slots promised to others.
  [[nodiscard]] bool quarter_free(Index promised) {
    const Index free = available_tokens(cache_.policy()) - promised;
    counters_.most_free_at_failure =
        std::max(counters_.most_free_at_failure, static_cast<double>(free) / static_cast<double>(pool_));
    return 4 * free >= pool_;
  }

  void unpin_all() { pins_.unpin_all(cache_); }

 private:
  void close(kvc::SeqId seq) {
    counters_.released_tokens += cache_.length(seq);
    cache_.close(seq);
    ++releases_;
  }

  /// Forks the sequence of a computed prompt, one for each further answer.
  void prompt_done(const Job& job, std::span<const Token> next, Time now) {
    Active& active = jobs_.active_of(job);
    active.first_token = now;
    counters_.pins += pins_.pin(cache_, active.request, job.tokens) ? 1 : 0;
    std::vector<std::size_t> children;
    for (std::size_t sample = 1; sample < next.size(); ++sample) {
      children.push_back(jobs_.new_job(job.active, static_cast<int>(sample)));
    }
    for (const std::size_t child : children) {
      fork(job, child);
      emit(child, next[static_cast<std::size_t>(jobs_[child].sample)], now);
    }
  }

  void fork(const Job& parent, std::size_t index) {
    Job& child = jobs_[index];
    child.tokens.reserve(parent.tokens.size() + static_cast<std::size_t>(jobs_.request(parent).output_tokens));
    child.tokens = parent.tokens;
    std::optional<kvc::SeqId> seq;
    if (running() < most_running_) {
      seq = cache_.try_fork(parent.seq, parent.computed);
    }
    if (!seq) {
      ++counters_.failed_forks;
      jobs_.wait(index);
      return;
    }
    ++counters_.forks;
    counters_.forked_tokens += parent.computed;
    child.seq = *seq;
    child.computed = parent.computed;
    child.admitted = true;
    jobs_.run(index);
  }

  void emit(std::size_t index, Token token, Time now) {
    Job& job = jobs_[index];
    if (job.answered == 0) {
      job.first_token = now;
    } else {
      metrics_.token_gap(now - job.last_token);
    }
    job.last_token = now;
    job.tokens.push_back(token);
    metrics_.generated(1);
    if (++job.answered == jobs_.request(job).output_tokens) {
      answer_done(index, now);
    }
  }

  void answer_done(std::size_t index, Time now) {
    const Job& job = jobs_[index];
    const std::size_t active_index = job.active;
    Active& active = jobs_.active_of(job);
    const auto tpot = metrics_.answered(active.request.traffic_class, job.first_token, job.last_token, job.answered);
    active.tpot = std::max(active.tpot, tpot.value_or(0));
    if (end_job(index)) {
      report(active_index, now, End::completed);
    }
  }

  /// Ends one answer. Returns whether it was the last of its request.
  bool end_job(std::size_t index) {
    if (jobs_[index].running) {
      close(jobs_[index].seq);
      jobs_.stop(index);
    } else {
      if (jobs_[index].load != 0) {
        loads_->cancel(jobs_[index].load);
      }
      jobs_.leave_waiting(index);
    }
    return jobs_.erase(index);
  }

  void report(std::size_t active_index, Time now, End how) {
    const Active& active = jobs_.active(active_index);
    const Request& r = active.request;
    metrics_.ended({r.id, r.traffic_class, how, r.arrival, now, active.first_token, active.tpot});
    jobs_.erase_active(active_index);
  }

  Cache& cache_;
  PrefixLoads* loads_;
  Metrics& metrics_;
  Index most_running_;
  Pos pass_;
  Index pool_;
  Counters counters_;
  Jobs jobs_;
  Pins<Cache> pins_;
  std::vector<kvc::SeqId> deferred_;  // preempted and not yet closed
  Index deferred_tokens_ = 0;
  Index releases_ = 0;
};

}  // namespace serving
