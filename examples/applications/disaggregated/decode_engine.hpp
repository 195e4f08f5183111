// DecodeEngine: receives sequences whose prompts other engines have computed, and decodes them together, one token of
// each per step. A sequence joins the batch as soon as all its rows have arrived and the batch has a place, and leaves
// with its last token. Rows of other sequences arrive between the layers of a step.
//
// A sequence without room for its next token waits for others to finish. If all wait, the newest one is preempted: it
// gives up its blocks, and its prompt is computed again.
#pragma once

#include <cstring>
#include <deque>
#include <span>
#include <utility>
#include <vector>

#include "engine.hpp"
#include "kvc/transfer/receiver.hpp"

namespace disaggregated {

template <kvc::transport::Transport T>
class DecodeEngine {
 public:
  DecodeEngine(const kvc::llama::Model& model, T& transport, EngineConfig config)
      : model_(&model),
        transport_(&transport),
        config_(std::move(config)),
        cache_(model.config.cache_layers(), config_.pool()),
        receiver_(cache_, transport, {.timeout = config_.timeout, .reserve_tokens = config_.reserve_tokens}),
        post_(transport, to_engines, to_router),
        places_(static_cast<std::size_t>(config_.batch), false) {
    post_.send(router_peer, Kind::ready);
  }

  bool step() {
    bool any = false;
    while (const auto message = post_.receive()) {
      take(*message);
      any = true;
    }
    any = receive() || any;
    while (!waiting_.empty() && running_.size() < places_.size()) {
      join();
    }
    any = decode_step() || any;
    if (stopping_ && !stopped_ && sequences() == 0 && receiver_.draining() == 0) {
      post_.send(router_peer, Kind::stopped, {}, Stopped{computing_, receiving_, received_bytes_, is_clean(cache_)});
      stopped_ = true;
    }
    post_.flush();
    if (!lost_ && transport_->is_lost(router_peer)) {
      lost_ = true;  // nobody waits for the results any more
      leave_if(running_, [](const Sequence&) { return true; });
      leave_if(waiting_, [](const Sequence&) { return true; });
    }
    return any;
  }
  [[nodiscard]] bool done() const { return lost_ || (stopped_ && post_.empty()); }
  [[nodiscard]] kvc::transport::TimePoint wake() const { return receiver_.next_timeout(); }
  [[nodiscard]] const Cache& cache() const noexcept { return cache_; }
  /// Sequences that are here or arriving.
  [[nodiscard]] std::size_t sequences() const { return receiver_.transfers() + waiting_.size() + running_.size(); }

 private:
  struct Sequence {
    Attempt attempt;
    kvc::SeqId seq{};
    Token last = 0;
    std::int32_t made = 1;  // tokens of the output: the first came with the sequence
    Pos output_tokens = 0;
    Time received = 0;
    Time begin = 0;
    int place = 0;
  };

  void take(const Message& message) {
    if (message.kind == Kind::start) {
      config_.clock.start(message.as<Start>().zero);
    } else if (message.kind == Kind::stop) {
      stopping_ = true;
    } else if (message.kind == Kind::cancel) {
      for (Peer peer = 0; peer < transport_->peers(); ++peer) {
        receiver_.cancel(peer, message.attempt.key());
      }
      leave_if(running_, [&](const Sequence& s) { return s.attempt == message.attempt; });
      leave_if(waiting_, [&](const Sequence& s) { return s.attempt == message.attempt; });
    }
  }

  bool receive() {
    const kvc::transport::TimePoint begin = config_.clock.now();
    const bool any = receiver_.poll(begin);
    if (any) {
      receiving_ += std::chrono::nanoseconds(config_.clock.now() - begin).count();
    }
    while (const auto got = receiver_.next()) {
      if (got->outcome != kvc::transfer::Outcome::complete) {
        continue;  // the prefill engine knows, or is lost
      }
      received_bytes_ += got->bytes;
      TransferPayload payload{};
      std::memcpy(&payload, got->payload.data(), std::min(sizeof payload, got->payload.size()));
      const Attempt attempt{static_cast<std::uint32_t>(got->request), static_cast<std::uint32_t>(got->request >> 32U)};
      waiting_.push_back({.attempt = attempt,
                          .seq = got->seq,
                          .last = payload.first,
                          .output_tokens = payload.output_tokens,
                          .received = config_.clock.elapsed()});
    }
    return any;
  }

  void join() {
    Sequence s = waiting_.front();
    waiting_.pop_front();
    const auto place = std::find(places_.begin(), places_.end(), false);
    *place = true;
    s.place = static_cast<int>(place - places_.begin());
    s.begin = config_.clock.elapsed();
    running_.push_back(s);
  }

  /// Decodes one token of each sequence that has room for it.
  bool decode_step() {
    end_if_finished();
    std::vector<Cache::Append> steps;
    std::vector<Token> tokens;
    std::vector<Sequence*> members;
    for (Sequence& s : running_) {
      if (auto step = cache_.try_extend(s.seq, std::span(&s.last, 1))) {
        steps.push_back(std::move(*step));
        tokens.push_back(s.last);
        members.push_back(&s);
      }
    }
    if (steps.empty()) {  // at once, before an arriving sequence takes the room
      return !running_.empty() && make_room() && (decode_step() || true);
    }
    const Time begin = config_.clock.elapsed();
    const Time received = receiving_;
    const std::vector<Token> next = decode(*model_, cache_, steps, tokens, [&](Index) {
      (void)receive();
      config_.between_layers();
    });
    std::vector<NewToken> made;
    for (std::size_t i = 0; i < steps.size(); ++i) {
      cache_.commit(std::move(steps[i]));
      members[i]->last = next[i];
      made.push_back({members[i]->attempt, members[i]->made++, next[i]});
    }
    computing_ += config_.clock.elapsed() - begin - (receiving_ - received);
    for (auto rest = std::span<const NewToken>(made); !rest.empty();) {
      const auto part = rest.first(std::min(rest.size(), most_new_tokens));
      post_.send_list(router_peer, Kind::tokens, {}, part);
      rest = rest.subspan(part.size());
    }
    end_if_finished();
    return true;
  }
  void end_if_finished() {
    leave_if(running_, [&](const Sequence& s) {
      if (s.made < s.output_tokens) {
        return false;
      }
      post_.send(router_peer, Kind::finished, s.attempt,
                 Finished{s.received, s.begin, config_.clock.elapsed(), s.place});
      return true;
    });
  }
  /// Preempts the newest sequence, unless sequences that are still arriving may make room.
  bool make_room() {
    const bool alone = running_.size() == 1 && waiting_.empty();
    if (alone && receiver_.transfers() + receiver_.draining() > 0) {
      return false;
    }
    const Attempt newest = (waiting_.empty() ? running_.back() : waiting_.back()).attempt;
    post_.send(router_peer, Kind::given_up, newest, GivenUp{alone});
    leave_if(waiting_, [&](const Sequence& s) { return s.attempt == newest; });
    leave_if(running_, [&](const Sequence& s) { return s.attempt == newest; });
    return true;
  }
  template <class Sequences, class F>
  void leave_if(Sequences& sequences, F&& f) {
    std::erase_if(sequences, [&](const Sequence& s) {
      if (!f(s)) {
        return false;
      }
      cache_.close(s.seq);
      if (static_cast<const void*>(&sequences) == static_cast<const void*>(&running_)) {
        places_[static_cast<std::size_t>(s.place)] = false;
      }
      return true;
    });
  }

  const kvc::llama::Model* model_;
  T* transport_;
  EngineConfig config_;
  Cache cache_;
  kvc::transfer::Receiver<Cache, T> receiver_;
  Post<T> post_;
  std::vector<bool> places_;      // places in the batch that are taken
  std::deque<Sequence> waiting_;  // for a place
  std::vector<Sequence> running_;
  Time computing_ = 0;
  Time receiving_ = 0;
  std::uint64_t received_bytes_ = 0;
  bool stopping_ = false;
  bool stopped_ = false;
  bool lost_ = false;
};

}  // namespace disaggregated
