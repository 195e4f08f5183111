// Scheduler: iteration-level continuous batching (Orca, Yu et al., OSDI 2022) over any cache.
//
// It composes one step after another: one token of every sequence that decodes, and prompts, whole or in chunks, up to
// a budget of tokens. It reads no clock: the caller passes the time, and an Executor decides how long a step takes.
//
//   admission    first come, first served. A sequence is admitted when its whole prompt has room (or only its first
//                chunk, if so configured) and the watermark stays free; while nothing runs, the watermark does not
//                apply. A sequence without room even then is refused.
//   preemption   by recomputation. A sequence without room for its next tokens preempts the youngest, possibly itself.
//                Age is the order of arrival, and a preempted sequence keeps its own. So the oldest is never preempted
//                for another, gets the room that it needs, and ends: there is no livelock. The other order exists to
//                show the livelock. A step that preempts admits nothing: otherwise the freed room would go to the next
//                in the queue, and running sequences would starve.
//   fork         a request for several answers computes its prompt once; then its sequence is forked for each answer.
//                If a fork finds no room, the prompt of that answer is recomputed later.
//   loads        with slower tiers, those are asked for the first prompts that wait, up to a quarter of the pool. A
//                prompt whose beginning is on its way waits for it; others go before it.
//   abort        `expire` ends the requests whose clients left, waiting or running.
//
// In any case every request ends exactly once, and every opened sequence is closed. The scheduler decides; Sequences
// carries out.
#pragma once

#include <algorithm>
#include <cstddef>
#include <optional>
#include <span>
#include <utility>
#include <vector>

#include "kvc/core/error.hpp"
#include "scheduler_config.hpp"
#include "sequences.hpp"

namespace serving {

template <ServingCache Cache>
class Scheduler {
 public:
  /// Throws std::invalid_argument for a bad configuration. Cache and metrics must outlive it, and slower tiers, if
  /// there are some.
  Scheduler(Cache& cache, const SchedulerConfig& config, Metrics& metrics, PrefixLoads* loads = nullptr)
      : cache_(cache),
        config_(validated(config)),
        sequences_(cache, metrics, config.max_sequences, config.chunk_tokens, loads),
        loads_(loads) {}
  Scheduler(const Scheduler&) = delete;
  Scheduler& operator=(const Scheduler&) = delete;

  /// A request arrives; ids ascend. One that can never be completed is refused at once.
  /// Throws std::invalid_argument for a request that contradicts itself.
  void submit(Request request) {
    const Pos prompt = request.prompt_tokens();
    kvc::require(prompt >= 1, "prompt", prompt, "at least one token");
    kvc::require(request.samples >= 1, "samples", request.samples, "at least 1");
    kvc::require(request.output_tokens >= 0 && request.output_tokens <= request.max_output_tokens, "output_tokens",
                 request.output_tokens, "between 0 and max_output_tokens");
    sequences_.add(std::move(request));
  }

  /// Ends the requests whose clients have left by `now`. Not while a step is in progress.
  void expire(Time now) {
    while (const auto expired = jobs_.next_expired(now)) {
      sequences_.end_request(expired->first, expired->second, End::aborted);
    }
  }

  /// Takes what slower tiers have brought.
  void poll_loads() {
    if (loads_ != nullptr) {
      loads_->poll();
    }
  }
  /// When slower tiers may bring something that a prompt waits for; empty if no prompt waits for them.
  [[nodiscard]] std::optional<Time> next_load() const {
    return loads_ != nullptr && !jobs_.waiting().empty() ? loads_->next() : std::nullopt;
  }

  /// Composes the next step. False: nothing runs, and nothing waits but for slower tiers. The step before it must be
  /// complete.
  /// Throws Livelock, never under the default configuration.
  bool compose(Time now, Step<Cache>& step) {
    step.clear();
    step_begin_ = now;
    blocked_ = blocked_25_ = all_load_ = false;
    ask_tiers();
    do {  // again if all were preempted and the step is empty
      sequences_.close_deferred();
      before_step_ = jobs_.running();
      preempted_ = false;
      if (std::exchange(awaits_deferred_, false)) {
        decode(now, step);  // the freed room is for those that preempted for it
        continue_prefills(now, step);
      } else if (config_.order == Order::decode_first) {
        decode(now, step);
        continue_prefills(now, step);
        admit(now, step);
      } else {
        continue_prefills(now, step);
        admit(now, step);
        if (step.work.empty()) {
          decode(now, step);
        }
      }
    } while (step.work.empty() && !(jobs_.running().empty() && (jobs_.waiting().empty() || all_load_)));
    std::size_t wanted = 0;
    for (Work<Cache>& work : step.work) {
      work.first_wanted = wanted;
      wanted += work.wanted;
    }
    step.sampled.resize(wanted);
    return !step.work.empty();
  }

  /// Completes a step: its rows are written, and its next tokens sampled.
  void complete(Time now, Step<Cache>& step) {
    Counters& counters = sequences_.counters();
    ++counters.steps;
    counters.steps_with_prefill += step.prefill_tokens > 0 ? 1 : 0;
    counters.prefill_tokens += step.prefill_tokens;
    counters.decode_tokens += step.decode_tokens;
    counters.blocked += blocked_ ? now - step_begin_ : 0;
    counters.blocked_25 += blocked_25_ ? now - step_begin_ : 0;
    const Time took = now - step_begin_;
    const Index prefill = step.prefill_tokens;
    for (Work<Cache>& work : step.work) {
      Job& job = jobs_[work.job];
      if (loads_ != nullptr && work.prefill && prefill >= least_measured) {
        loads_->computed(work.append.range(), took * work.append.range().size() / prefill);
      }
      job.computed = work.append.range().last;
      job.in_step = false;
      cache_.commit(std::move(work.append));
      if (work.wanted > 0) {
        const auto next = std::span<const Token>(step.sampled).subspan(work.first_wanted, work.wanted);
        preemptions_since_token_ = 0;
        sequences_.emit(work.job, next, now);
      } else if (job.computed == job.known() && jobs_.request(job).output_tokens == 0) {
        preemptions_since_token_ = 0;
        sequences_.complete_without_answer(work.job, now);
      }
    }
    step.clear();
    sequences_.close_deferred();
  }

  /// Unpins all prefixes, at the end: afterwards no block is referenced.
  void unpin_all() { sequences_.unpin_all(); }

  [[nodiscard]] Index waiting() const noexcept { return std::ssize(jobs_.waiting()); }
  [[nodiscard]] Index running() const noexcept { return sequences_.running(); }
  [[nodiscard]] const Counters& counters() const noexcept { return sequences_.counters(); }
  /// f(id of the request, SeqId) for every running sequence, oldest first.
  template <class F>
  void for_each_running(F&& f) const {
    for (const std::size_t job : jobs_.running()) {
      f(jobs_.request(jobs_[job]).id, jobs_[job].seq);
    }
  }

 private:
  static constexpr bool in_blocks = kvc::BlockTablePolicy<typename Cache::PolicyType>;
  static constexpr Index least_measured =
      128;  // prompt tokens: a step with fewer does not tell how long a prompt takes

  // --- slower tiers

  [[nodiscard]] kvc::OpenOptions options_of(const Request& r) const {
    kvc::OpenOptions options;
    // One slot more than an answer can fill, where there is one.
    options.max_tokens =
        static_cast<Pos>(std::min(longest_sequence(cache_.policy()), Index{r.prompt_tokens()} + r.max_output_tokens));
    options.salt = salt_of(r);
    return options;
  }
  /// Asks slower tiers for the first prompts that wait.
  void ask_tiers() {
    if (loads_ == nullptr) {
      return;
    }
    Index room = pool_tokens(cache_.policy()) / 4;
    others_.clear();
    for (const std::size_t index : jobs_.running()) {
      const Job& job = jobs_[index];
      if (!job.decodes()) {
        others_.push_back({job.computed, job.known()});
      }
    }
    const std::size_t running = others_.size();
    for (const std::size_t index : jobs_.waiting()) {
      const Job& job = jobs_[index];
      const Pos prompt = job.tokens.empty() ? jobs_.request(job).prompt_tokens() : job.known();
      others_.push_back({std::min(job.to_find, prompt), prompt});
    }
    std::size_t at = running;
    for (const std::size_t index : jobs_.waiting()) {
      Job& job = jobs_[index];
      const Request& r = jobs_.request(job);
      if (job.tokens.empty()) {
        job.tokens = prompt_of(r, config_.vocabulary, r.output_tokens);
      }
      room -= job.known();
      if (room < 0 && &job != &jobs_[jobs_.waiting().front()]) {
        return;
      }
      if (!std::exchange(job.asked_tiers, true)) {
        others_[at] = {0, 0};  // itself
        const PrefixLoads::Begun begun = loads_->begin(job.tokens, options_of(r), others_);
        job.load = begun.load;
        job.to_find = begun.found;
        others_[at] = {std::min(job.to_find, job.known()), job.known()};
      }
      ++at;
    }
  }
  /// The oldest job that waits for no load, or none.
  [[nodiscard]] std::optional<std::size_t> first_to_admit() {
    for (const std::size_t index : jobs_.waiting()) {
      Job& job = jobs_[index];
      job.load = job.load != 0 && loads_->pending(job.load) ? job.load : 0;
      if (job.load == 0) {
        return index;
      }
    }
    return std::nullopt;
  }

  // --- running sequences

  void decode(Time now, Step<Cache>& step) {
    for (const std::size_t index : before_step_) {
      if (const Job& job = jobs_[index]; job.running && job.decodes()) {
        extend(index, 1, now, step);
      }
    }
  }

  /// Prompts that were partly computed in earlier steps.
  void continue_prefills(Time now, Step<Cache>& step) {
    for (const std::size_t index : before_step_) {
      if (const Job& job = jobs_[index]; job.running && !job.in_step && !job.decodes()) {
        if (const Pos count = chunk(job.known() - job.computed, step); count > 0) {
          extend(index, count, now, step);
        }
      }
    }
  }

  [[nodiscard]] Index budget_left(const Step<Cache>& step) const {
    return config_.step_tokens - step.prefill_tokens - step.decode_tokens;
  }
  /// Of the `rest` tokens of a prompt, the number to compute in this step.
  [[nodiscard]] Pos chunk(Pos rest, const Step<Cache>& step) const {
    const Index left = budget_left(step);
    if (config_.chunk_tokens == 0) {
      return rest <= left || step.prefill_tokens == 0 ? rest : 0;
    }
    return static_cast<Pos>(std::clamp<Index>(left, 0, std::min(rest, config_.chunk_tokens)));
  }

  /// Puts the next `count` tokens of a running sequence into the step, and preempts others if it must.
  void extend(std::size_t index, Pos count, Time now, Step<Cache>& step) {
    Job& job = jobs_[index];
    bool counted = false;
    while (true) {
      if (auto append = cache_.try_extend(job.seq, next_tokens(job, count))) {
        add_work(index, std::move(*append), step);
        return;
      }
      if (!std::exchange(counted, true)) {
        ++sequences_.counters().out_of_room;
        sequences_.counters().out_of_room_25 += sequences_.quarter_free(0) ? 1 : 0;
      }
      if (config_.counts_deferred && sequences_.deferred_tokens() >= count) {
        awaits_deferred_ = true;  // deferred sequences will free its room
        return;
      }
      const std::size_t victim = choose_victim(index);
      if (victim == index && running() == 1 && sequences_.nothing_deferred() &&
          std::exchange(job.stuck_at, job.tokens.size()) == job.tokens.size()) {
        sequences_.end_request(job.active, now,
                               End::out_of_memory);  // it was alone before, and has not come further since
        return;
      }
      preempt(victim, step);
      if (victim == index) {
        return;
      }
    }
  }

  [[nodiscard]] std::size_t choose_victim(std::size_t in_need) const {
    const auto& running = jobs_.running();
    if (config_.victim == Victim::youngest || running.size() == 1) {
      return running.back();
    }
    return running.front() == in_need ? running[1] : running.front();
  }

  void preempt(std::size_t index, Step<Cache>& step) {
    preempted_ = true;
    if (++preemptions_since_token_ > 1000 + 10 * config_.max_sequences) {
      throw Livelock(preemptions_since_token_);
    }
    if (jobs_[index].in_step) {
      const auto work = std::ranges::find(step.work, index, &Work<Cache>::job);
      (work->prefill ? step.prefill_tokens : step.decode_tokens) -= std::ssize(work->tokens);
      step.work.erase(work);
    }
    sequences_.preempt(index, config_.deferred_free);
  }

  [[nodiscard]] static std::span<const Token> next_tokens(const Job& job, Pos count) {
    return std::span(job.tokens).subspan(static_cast<std::size_t>(job.computed), static_cast<std::size_t>(count));
  }

  void add_work(std::size_t index, typename Cache::Append append, Step<Cache>& step) {
    Job& job = jobs_[index];
    const kvc::PosRange range = append.range();
    const Request& r = jobs_.request(job);
    const bool last = range.last == job.known();
    const bool prefill = !job.decodes();
    const int answers = r.output_tokens == 0 ? 0 : job.answered == 0 && job.sample == 0 ? r.samples : 1;
    (prefill ? step.prefill_tokens : step.decode_tokens) += range.size();
    job.in_step = true;
    step.work.push_back({r.id, job.sample, job.seq, std::move(append), next_tokens(job, range.size()), prefill,
                         job.answered, last ? static_cast<std::size_t>(answers) : 0, 0, index});
  }

  // --- admission

  /// Not in a step that preempted: the freed room is not for newcomers.
  void admit(Time now, Step<Cache>& step) {
    while (!preempted_ && !jobs_.waiting().empty() && running() < config_.max_sequences && budget_left(step) > 0) {
      const std::optional<std::size_t> first = first_to_admit();
      if (!first) {
        all_load_ = true;
        return;
      }
      const std::size_t index = *first;
      const bool only = jobs_.running().empty() && step.work.empty() && sequences_.nothing_deferred();
      const bool alone = only && (loads_ == nullptr || !loads_->loading());
      const std::pair head(jobs_.request(jobs_[index]).id, jobs_[index].sample);
      if (blocked_head_ == head && releases_then_ == sequences_.releases() && !alone && loads_ == nullptr) {
        count_blocked(jobs_[index]);  // nothing has changed since the last attempt
        return;
      }
      const Admitted admitted = try_admit(index, alone ? 0 : config_.watermark_tokens + promised(), step);
      if (admitted == Admitted::next_step) {
        return;
      }
      if (admitted == Admitted::no && alone) {
        sequences_.end_request(jobs_[index].active, now, jobs_[index].answered > 0 ? End::out_of_memory : End::refused);
      } else if (admitted == Admitted::no) {
        ++sequences_.counters().failed_admissions;
        sequences_.counters().failed_admissions_25 += sequences_.quarter_free(promised()) ? 1 : 0;
        blocked_head_ = head;
        releases_then_ = sequences_.releases();
        count_blocked(jobs_[index]);
        all_load_ = only;  // loads have the room
        return;
      }
    }
  }

  /// Slots that partly computed prompts will still take: a prompt in chunks was admitted as a whole.
  [[nodiscard]] Pos promised() const {
    if (config_.chunk_tokens == 0 || config_.admit == Admit::first_chunk) {
      return 0;
    }
    Index sum = 0;
    for (const std::size_t index : jobs_.running()) {
      const Job& job = jobs_[index];
      if constexpr (PoolsGroups<typename Cache::PolicyType>) {
        if (has_groups(cache_.policy())) {
          sum += slots_to_come(cache_.policy(), job.seq, job.known(), config_.chunk_tokens);
          continue;
        }
      }
      if constexpr (in_blocks) {
        sum += job.known() - cache_.policy().reserved(job.seq);
      } else {
        sum += std::max(0, job.known() - cache_.policy().allocation(job.seq).count);
      }
    }
    return static_cast<Pos>(std::min<Index>(sum, kvc::max_pos / 4));
  }

  enum class Admitted { yes, no, next_step };

  /// `spare` slots must stay free.
  Admitted try_admit(std::size_t index, Pos spare, Step<Cache>& step) {
    Job& job = jobs_[index];
    const Request& r = jobs_.request(job);
    if (job.tokens.empty()) {
      job.tokens = prompt_of(r, config_.vocabulary, r.output_tokens);
    }
    const std::span<const Token> tokens = job.tokens;
    const bool whole = config_.admit == Admit::whole_prompt || config_.chunk_tokens == 0;
    const std::size_t first =
        whole ? tokens.size() : std::min(tokens.size(), static_cast<std::size_t>(config_.chunk_tokens));
    const kvc::OpenOptions options = options_of(r);
    if (!may_have_room(cache_, tokens.first(first), std::min(spare, kvc::max_pos - job.known()), config_.chunk_tokens,
                       options)) {
      return Admitted::no;
    }
    const auto opened = cache_.try_open(tokens, options);
    if (!opened) {
      return Admitted::no;
    }
    job.seq = opened->seq;
    job.computed = opened->cached;
    const Pos rest = job.known() - job.computed;
    const Pos count = chunk(rest, step);
    if (count == 0) {
      return postpone(job, Admitted::next_step);
    }
    if (!in_blocks && whole && count < rest && !cache_.try_extend(job.seq, next_tokens(job, rest))) {
      return postpone(job, Admitted::no);  // no contiguous room: only trying could tell
    }
    auto append = cache_.try_extend(job.seq, next_tokens(job, count));
    if (!append) {
      return postpone(job, Admitted::no);
    }
    sequences_.start(index);
    add_work(index, std::move(*append), step);
    return Admitted::yes;
  }

  Admitted postpone(Job& job, Admitted why) {
    cache_.close(std::exchange(job.seq, {}));
    job.computed = 0;
    return why;
  }

  void count_blocked(Job& job) {
    blocked_ = true;
    blocked_25_ = sequences_.quarter_free(promised());
    sequences_.counters().delayed += std::exchange(job.delayed, true) ? 0 : 1;
    if (blocked_25_) {
      sequences_.counters().delayed_25 += std::exchange(job.delayed_25, true) ? 0 : 1;
    }
  }

  Cache& cache_;
  SchedulerConfig config_;
  Sequences<Cache> sequences_;
  Jobs& jobs_ = sequences_.jobs();
  PrefixLoads* loads_;
  std::vector<kvc::PosRange> others_;     // positions of other prompts that are still to compute
  std::vector<std::size_t> before_step_;  // running when the step was begun
  bool awaits_deferred_ = false;          // a sequence waits for deferred ones to be closed
  bool preempted_ = false;                // in this step
  bool blocked_ = false;                  // lack of room ended the admissions of this step
  bool blocked_25_ = false;
  bool all_load_ = false;                      // all that wait, wait for slower tiers
  std::pair<Index, int> blocked_head_{-1, 0};  // request and answer that found no room
  Index releases_then_ = 0;                    // releases() at that time
  Time step_begin_ = 0;
  Index preemptions_since_token_ = 0;
};

}  // namespace serving
