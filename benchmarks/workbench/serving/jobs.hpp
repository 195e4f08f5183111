// The requests that a scheduler holds, and their jobs: one per answer.
//
// A job waits or runs, in one of two lists ordered by age: arrival of the request, then number of the answer. A
// preempted job keeps its age. Indices of requests and jobs are reused after they ended; ids are not.
#pragma once

#include <algorithm>
#include <deque>
#include <functional>
#include <optional>
#include <queue>
#include <tuple>
#include <utility>
#include <vector>

#include "request.hpp"

namespace serving {

/// One answer of a request; a sequence is opened for it.
struct Job {
  std::size_t active = 0;  ///< its request
  int sample = 0;
  kvc::SeqId seq{};
  std::vector<Token> tokens;  ///< the prompt and the answer so far; empty until admission first considers the job
  Pos computed = 0;           ///< those of them that are in the cache
  Pos answered = 0;
  Time first_token = 0;
  Time last_token = 0;
  std::size_t stuck_at = 0;  ///< tokens when it last had no room although nothing else ran
  bool running = false;
  bool in_step = false;
  bool admitted = false;  ///< at least once
  bool delayed = false;
  bool delayed_25 = false;
  bool asked_tiers = false;  ///< slower tiers, for its prompt
  std::uint64_t load = 0;    ///< what they bring, if anything
  Pos to_find = 0;           ///< tokens that will be in place then

  [[nodiscard]] Pos known() const noexcept { return static_cast<Pos>(tokens.size()); }
  /// Only the last token of the answer is still to compute.
  [[nodiscard]] bool decodes() const noexcept { return answered > 0 && computed + 1 == known(); }
};

/// A request that has not ended.
struct Active {
  Request request;
  std::vector<std::size_t> jobs;  ///< incomplete answers; none: this entry is free
  std::optional<Time> first_token{};
  Time tpot = 0;
};

/// All requests that have not ended, their jobs, and the deadlines of impatient clients.
class Jobs {
 public:
  [[nodiscard]] Job& operator[](std::size_t job) { return jobs_[job]; }
  [[nodiscard]] const Job& operator[](std::size_t job) const { return jobs_[job]; }
  [[nodiscard]] Active& active_of(const Job& job) { return actives_[job.active]; }
  [[nodiscard]] const Active& active(std::size_t index) const { return actives_[index]; }
  [[nodiscard]] const Request& request(const Job& job) const { return actives_[job.active].request; }

  [[nodiscard]] const std::deque<std::size_t>& waiting() const noexcept { return waiting_; }
  [[nodiscard]] const std::vector<std::size_t>& running() const noexcept { return running_; }

  /// A new request, whose first answer waits. O(1) if it is the youngest.
  void add(Request request) {
    const std::size_t active = allocate(actives_, free_actives_);
    actives_[active].request = std::move(request);
    const Request& r = actives_[active].request;
    if (r.patience) {
      deadlines_.push({r.arrival + *r.patience, r.id, active});
    }
    wait(new_job(active, 0));
  }
  /// A further answer of the same request. It neither waits nor runs yet.
  [[nodiscard]] std::size_t new_job(std::size_t active, int sample) {
    const std::size_t job = allocate(jobs_, free_jobs_);
    jobs_[job].active = active;
    jobs_[job].sample = sample;
    actives_[active].jobs.push_back(job);
    return job;
  }

  void wait(std::size_t job) { insert(waiting_, job); }
  void leave_waiting(std::size_t job) { waiting_.erase(find(waiting_, job)); }
  void run(std::size_t job) {
    jobs_[job].running = true;
    insert(running_, job);
  }
  /// Its computed positions are lost.
  void stop(std::size_t job) {
    Job& j = jobs_[job];
    j.seq = {};
    j.computed = 0;
    j.running = false;
    j.in_step = false;
    running_.erase(find(running_, job));
  }
  /// Forgets a job that neither waits nor runs. Returns whether it was the last one of its request.
  bool erase(std::size_t job) {
    std::vector<std::size_t>& of_request = active_of(jobs_[job]).jobs;
    of_request.erase(std::ranges::find(of_request, job));
    jobs_[job] = {};
    free_jobs_.push_back(job);
    return of_request.empty();
  }
  /// Forgets a request that has no jobs.
  void erase_active(std::size_t active) {
    actives_[active] = {};
    free_actives_.push_back(active);
  }

  /// The next request whose client has left by `now`, and the time when it left.
  [[nodiscard]] std::optional<std::pair<std::size_t, Time>> next_expired(Time now) {
    while (!deadlines_.empty() && std::get<0>(deadlines_.top()) <= now) {
      const auto [deadline, id, active] = deadlines_.top();
      deadlines_.pop();
      if (!actives_[active].jobs.empty() && actives_[active].request.id == id) {
        return std::pair(active, deadline);
      }
    }
    return std::nullopt;
  }

 private:
  template <class T>
  static std::size_t allocate(std::deque<T>& entries, std::vector<std::size_t>& free) {
    if (free.empty()) {
      entries.emplace_back();
      return entries.size() - 1;
    }
    const std::size_t entry = free.back();
    free.pop_back();
    return entry;
  }
  [[nodiscard]] bool older(std::size_t a, std::size_t b) const {
    return std::pair(request(jobs_[a]).id, jobs_[a].sample) < std::pair(request(jobs_[b]).id, jobs_[b].sample);
  }
  template <class List>
  [[nodiscard]] typename List::iterator find(List& list, std::size_t job) const {
    return std::lower_bound(list.begin(), list.end(), job, [&](auto a, auto b) { return older(a, b); });
  }
  template <class List>
  void insert(List& list, std::size_t job) {
    if (list.empty() || older(list.back(), job)) {
      list.push_back(job);
    } else {
      list.insert(find(list, job), job);
    }
  }

  using Deadline = std::tuple<Time, Index, std::size_t>;  // when, id and index of the request
  std::deque<Active> actives_;
  std::vector<std::size_t> free_actives_;
  std::deque<Job> jobs_;
  std::vector<std::size_t> free_jobs_;
  std::deque<std::size_t> waiting_;   // oldest first
  std::vector<std::size_t> running_;  // oldest first
  std::priority_queue<Deadline, std::vector<Deadline>, std::greater<>> deadlines_;
};

}  // namespace serving
