// PrefillEngine: computes prompts one after another, and sends each sequence to a decode engine, layer by layer while
// the next layer is computed; the last layers travel while the next prompt is computed.
//
//   queued --room in the pool--> computed, offered --complete--> handed over: its blocks stay cached
//                                    |       ^
//                    no room there --+       +-- again after a moment, or to another engine by order of the router
//
// A sequence stays open until a decode engine has it. If the decode engines are full, this pool fills up too, and
// prompts wait: that is the back-pressure.
#pragma once

#include <deque>
#include <list>
#include <optional>
#include <span>
#include <utility>
#include <vector>

#include "engine.hpp"
#include "kvc/transfer/sender.hpp"

namespace disaggregated {

template <kvc::transport::Transport T>
class PrefillEngine {
 public:
  PrefillEngine(const kvc::llama::Model& model, T& transport, EngineConfig config)
      : model_(&model),
        transport_(&transport),
        config_(std::move(config)),
        cache_(model.config.cache_layers(), config_.pool()),
        sender_(cache_, transport, {.timeout = config_.timeout}),
        post_(transport, to_engines, to_router) {
    post_.send(router_peer, Kind::ready);
  }

  bool step() {
    bool any = false;
    while (const auto message = post_.receive()) {
      take(*message);
      any = true;
    }
    any = sender_.poll(config_.clock.now()) || any;
    any = settle() || any;
    any = compute_next() || any;
    if (stopping_ && !stopped_ && queue_.empty() && jobs_.empty()) {
      post_.send(router_peer, Kind::stopped, {}, Stopped{computing_, 0, 0, is_clean(cache_)});
      stopped_ = true;
    }
    post_.flush();
    if (!lost_ && transport_->is_lost(router_peer)) {
      lost_ = true;  // nobody waits for the results any more
      for (Job& job : jobs_) {
        job.over = true;
        sender_.cancel(job.transfer);
      }
      settle();
    }
    return any;
  }
  [[nodiscard]] bool done() const { return lost_ || (stopped_ && post_.empty()); }
  [[nodiscard]] kvc::transport::TimePoint wake() const {
    kvc::transport::TimePoint next = sender_.next_timeout();
    for (const Job& job : jobs_) {
      next = std::min(next, job.retry);
    }
    return next;
  }
  [[nodiscard]] const Cache& cache() const noexcept { return cache_; }

 private:
  struct Job {
    Attempt attempt;
    Assign assign;
    std::vector<Token> prompt{};
    kvc::SeqId seq{};
    std::optional<Cache::Append> step{};  // committed once none of its rows is in flight
    kvc::transfer::Id transfer = 0;       // 0: none in progress
    kvc::transport::TimePoint retry = kvc::transport::no_deadline;
    bool over = false;  // handed over, or cancelled
    Token first = 0;
    Time begin = 0;  // of sending
    int refusals = 0;
  };
  using Jobs = std::list<Job>;

  void take(const Message& message) {
    const auto named = [&](const Job& job) { return job.attempt == message.attempt; };
    const auto queued = std::find_if(queue_.begin(), queue_.end(), named);
    const auto job = std::find_if(jobs_.begin(), jobs_.end(), named);
    if (message.kind == Kind::start) {
      config_.clock.start(message.as<Start>().zero);
    } else if (message.kind == Kind::stop) {
      stopping_ = true;
    } else if (message.kind == Kind::assign) {
      queue_.push_back({.attempt = message.attempt, .assign = message.as<Assign>()});
    } else if (message.kind == Kind::prompt && queued != queue_.end()) {
      const std::vector<Token> tokens = message.list<Token>();
      queued->prompt.insert(queued->prompt.end(), tokens.begin(), tokens.end());
    } else if (message.kind == Kind::deliver && job != jobs_.end()) {
      job->assign.decode = message.as<Deliver>().decode;
      job->retry = config_.clock.now();
    } else if (message.kind == Kind::cancel && queued != queue_.end()) {
      queue_.erase(queued);
    } else if (message.kind == Kind::cancel && job != jobs_.end()) {
      job->over = true;
      sender_.cancel(job->transfer);
    }
  }

  /// Commits, offers again and closes sequences where that is possible now.
  bool settle() {
    bool any = false;
    while (const auto sent = sender_.next()) {
      const auto job = std::find_if(jobs_.begin(), jobs_.end(), [&](const Job& j) { return j.transfer == sent->id; });
      ended(*job, *sent);
      any = true;
    }
    for (auto job = jobs_.begin(); job != jobs_.end();) {
      if (job->step && sender_.in_flight(job->transfer) == 0) {
        cache_.commit(*std::exchange(job->step, std::nullopt));
        any = true;
      }
      if (job->transfer == 0 && job->over) {
        cache_.close(job->seq);
        job = jobs_.erase(job);
        any = true;
        continue;
      }
      if (job->transfer == 0 && job->retry <= config_.clock.now()) {
        offer(*job);
        finish(*job);
        any = true;
      }
      ++job;
    }
    return any;
  }
  void ended(Job& job, const kvc::transfer::Sent& sent) {
    job.transfer = 0;
    if (sent.outcome == kvc::transfer::Outcome::complete) {
      post_.send(router_peer, Kind::handed_over, job.attempt,
                 HandedOver{sent.bytes, job.begin, sent.cached, job.refusals});
      job.over = true;
    } else if (sent.outcome == kvc::transfer::Outcome::no_room || sent.outcome == kvc::transfer::Outcome::busy) {
      ++job.refusals;
      post_.send(router_peer, Kind::refused, job.attempt);
      job.retry = config_.clock.now() + std::chrono::milliseconds(1);
    } else if (!job.over) {
      post_.send(router_peer, Kind::undelivered, job.attempt, Undelivered{sent.outcome});
    }
  }

  void offer(Job& job) {
    job.transfer =
        sender_.offer({.to = job.assign.decode, .seq = job.seq, .tokens = job.prompt, .request = job.attempt.key()},
                      config_.clock.now());
    job.begin = config_.clock.elapsed();
    job.retry = kvc::transport::no_deadline;
  }
  void finish(const Job& job) {
    const TransferPayload payload{job.first, job.assign.output_tokens};
    sender_.finish(job.transfer, std::as_bytes(std::span(&payload, 1)));
  }

  /// Computes one prompt, if one is queued and has room.
  bool compute_next() {
    if (queue_.empty() ||
        queue_.front().prompt.size() < static_cast<std::size_t>(queue_.front().assign.prompt_tokens)) {
      return false;
    }
    Job& job = queue_.front();
    const std::optional<kvc::Opened> opened = cache_.try_open(job.prompt);
    if (!opened) {
      return give_up();
    }
    const auto rest = std::span(std::as_const(job.prompt)).subspan(static_cast<std::size_t>(opened->cached));
    job.seq = opened->seq;
    job.step = cache_.try_extend(job.seq, rest);
    if (!job.step) {
      cache_.close(job.seq);
      return give_up();
    }
    jobs_.push_back(std::move(job));
    queue_.pop_front();
    compute(jobs_.back(), rest, opened->cached);
    return true;
  }
  /// There is no room for the prompt: others will leave. If there are none, it never fits.
  bool give_up() {
    if (!jobs_.empty()) {
      return false;
    }
    post_.send(router_peer, Kind::given_up, queue_.front().attempt, GivenUp{true});
    queue_.pop_front();
    return true;
  }
  void compute(Job& job, std::span<const Token> rest, Pos reused) {
    const Pos length = job.step->range().last;
    const Time begin = config_.clock.elapsed();
    offer(job);
    job.first = prefill(*model_, cache_, *job.step, rest, [&](Index layer) {
      if (layer == 0) {
        job.begin = config_.clock.elapsed();  // no rows could be sent before
      }
      sender_.ready(job.transfer, layer, length);
      sender_.poll(config_.clock.now());
      config_.between_layers();
    });
    const Time end = config_.clock.elapsed();
    computing_ += end - begin;
    finish(job);
    post_.send(router_peer, Kind::prefilled, job.attempt, Prefilled{begin, end, job.first, reused});
  }

  const kvc::llama::Model* model_;
  T* transport_;
  EngineConfig config_;
  Cache cache_;
  kvc::transfer::Sender<Cache, T> sender_;
  Post<T> post_;
  std::deque<Job> queue_;  // prompts to compute
  Jobs jobs_;              // open sequences
  Time computing_ = 0;
  bool stopping_ = false;
  bool stopped_ = false;
  bool lost_ = false;
};

}  // namespace disaggregated
