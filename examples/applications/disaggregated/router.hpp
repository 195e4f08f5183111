// Router: assigns requests to engines, collects their tokens, and completes every request although engines may be lost.
//
// A prompt goes to the prefill engine with the fewest prompts to compute (at most two, so that it never waits for the
// next one), and is decoded by the engine with the fewest tokens to decode. When an engine is lost, its sequences are
// computed again, or only sent again where another engine still has them.
#pragma once

#include <map>
#include <optional>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "kvc/transport/concept.hpp"
#include "messages.hpp"
#include "records.hpp"
#include "requests.hpp"

namespace disaggregated {

struct RouterConfig {
  int prefill_engines = 1;
  Time interval = 0;  ///< between the arrivals of requests
  /// An engine that has work and stays silent for twice as long is dropped; its transfers time out before.
  std::chrono::nanoseconds timeout = std::chrono::seconds(10);
  Clock clock;
};

template <kvc::transport::Transport T>
class Router {
 public:
  /// The engines are the peers of the transport, prefill engines first.
  Router(T& transport, std::span<const Request> requests, RouterConfig config)
      : transport_(&transport),
        requests_(requests),
        config_(std::move(config)),
        post_(transport, to_router, to_engines) {
    run_.prefill_engines = config_.prefill_engines;
    run_.engines.resize(static_cast<std::size_t>(transport.peers()));
    engines_.resize(run_.engines.size(), Engine{.heard = config_.clock.now()});
    for (const Request& request : requests) {
      RequestRecord& record = run_.requests.emplace_back();
      record.attempt.request = static_cast<std::uint32_t>(run_.requests.size() - 1);
      record.arrival = record.attempt.request * config_.interval;
      record.prompt_tokens = static_cast<Pos>(request.prompt.size());
      record.output_tokens = request.output_tokens;
    }
  }

  bool step() {
    bool any = false;
    const std::vector<Peer> lost = newly_lost();  // before their last messages are taken
    while (const auto message = post_.receive()) {
      take(*message);
      any = true;
    }
    for (const Peer peer : lost) {
      lose(peer);  // unless its last message was STOPPED
      any = true;
    }
    if (!started_) {
      start_if_ready();
    }
    if (started_ && !stopping_) {
      any = assign() || any;
      if (std::all_of(run_.requests.begin(), run_.requests.end(), [](const auto& r) { return r.is_over(); })) {
        run_.total = config_.clock.elapsed();
        stopping_ = true;
        for_living([&](Peer peer) {
          engine_of(peer).heard = config_.clock.now();
          post_.send(peer, Kind::stop);
        });
      }
    }
    post_.flush();
    return any;
  }
  /// Whether all requests have ended, and all engines have stopped or are lost.
  [[nodiscard]] bool done() const {
    return stopping_ && post_.empty() &&
           std::all_of(run_.engines.begin(), run_.engines.end(), [](const auto& e) { return e.stopped || e.lost; });
  }
  [[nodiscard]] kvc::transport::TimePoint wake() const {
    for (const RequestRecord& r : run_.requests) {
      if (started_ && r.state == State::waiting && r.arrival > config_.clock.elapsed()) {
        return config_.clock.zero + std::chrono::nanoseconds(r.arrival);
      }
    }
    return kvc::transport::no_deadline;
  }
  [[nodiscard]] const RunRecord& record() const noexcept { return run_; }

  /// Gives up a request; ignores one that has ended.
  void cancel(std::size_t request) { end(run_.requests.at(request), State::cancelled, "cancelled"); }

 private:
  struct Engine {
    bool ready = false;
    kvc::transport::TimePoint heard{};
  };

  [[nodiscard]] Engine& engine_of(Peer peer) { return engines_[static_cast<std::size_t>(peer)]; }
  [[nodiscard]] bool is_stopped(Peer peer) const { return run_.engines[static_cast<std::size_t>(peer)].stopped; }
  [[nodiscard]] bool is_alive(Peer peer) const { return !run_.engines[static_cast<std::size_t>(peer)].lost; }
  template <class F>
  void for_living(F&& f) {
    for (Peer peer = 0; peer < transport_->peers(); ++peer) {
      if (is_alive(peer)) {
        f(peer);
      }
    }
  }

  void start_if_ready() {
    bool ready = true;
    for_living([&](Peer peer) { ready = ready && engine_of(peer).ready; });
    if (ready) {
      started_ = true;
      config_.clock.start();
      for_living([&](Peer peer) { post_.send(peer, Kind::start, {}, Start{config_.clock.zero}); });
    }
  }

  /// Engines that are lost, or silent although they have work.
  std::vector<Peer> newly_lost() {
    std::vector<Peer> lost;
    const kvc::transport::TimePoint now = config_.clock.now();
    for_living([&](Peer peer) {
      const bool owes = !engine_of(peer).ready || (stopping_ && !is_stopped(peer)) ||
                        std::any_of(run_.requests.begin(), run_.requests.end(), [&](const RequestRecord& r) {
                          return r.state == State::assigned && ((r.prefill == peer && !r.handed_over) ||
                                                                (r.decode == peer && r.handed_over && !r.finished));
                        });
      if (peer != transport_->self() && owes && now - engine_of(peer).heard > 2 * config_.timeout) {
        transport_->drop(peer);
      }
      if (transport_->is_lost(peer) && !is_stopped(peer)) {
        lost.push_back(peer);
      }
    });
    return lost;
  }
  void lose(Peer peer) {
    EngineRecord& engine = run_.engines[static_cast<std::size_t>(peer)];
    engine.lost = !engine.stopped;
    for (RequestRecord& r : run_.requests) {
      if (r.state == State::assigned && (r.prefill == peer || r.decode == peer)) {
        conclude(r);
      }
    }
  }

  void take(const Message& message) {
    EngineRecord& engine = run_.engines[static_cast<std::size_t>(message.from)];
    engine_of(message.from).heard = config_.clock.now();
    if (message.kind == Kind::ready) {
      engine_of(message.from).ready = true;
      return;
    }
    if (message.kind == Kind::stopped) {
      engine.stopped = true;
      engine.figures = message.as<Stopped>();
      return;
    }
    if (message.kind == Kind::tokens) {
      for (const NewToken& token : message.list<NewToken>()) {
        if (RequestRecord* r = find(token.attempt)) {
          put(*r, token.index, token.token);
        }
      }
      return;
    }
    RequestRecord* const r = find(message.attempt);
    if (r == nullptr) {
      return;
    }
    if (message.kind == Kind::prefilled) {
      r->prefilled = message.as<Prefilled>();
      r->computed = true;
      put(*r, 0, r->prefilled.first);
    } else if (message.kind == Kind::handed_over) {
      r->handover = message.as<HandedOver>();
      r->handed_over = true;
      engine_of(r->decode).heard = config_.clock.now();
    } else if (message.kind == Kind::finished) {
      r->decoded = message.as<Finished>();
      r->finished = true;
    } else if (message.kind == Kind::undelivered) {
      deliver_elsewhere(*r, message.as<Undelivered>().outcome);
    } else if (message.kind == Kind::given_up && message.as<GivenUp>().for_good) {
      end(*r, State::failed, "it does not fit into the pool of engine " + std::to_string(message.from));
    } else if (message.kind == Kind::given_up) {
      again(*r);
    }
    conclude(*r);
  }
  /// The request of the current attempt.
  RequestRecord* find(Attempt attempt) {
    if (attempt.request >= run_.requests.size()) {
      return nullptr;
    }
    RequestRecord& r = run_.requests[attempt.request];
    return r.state == State::assigned && r.attempt == attempt ? &r : nullptr;
  }
  static void put(RequestRecord& r, std::int32_t index, Token token) {
    if (0 <= index && index < r.output_tokens) {
      r.output[static_cast<std::size_t>(index)] = token;
    }
  }

  /// Advances a request by what is known of its attempt.
  void conclude(RequestRecord& r) {
    if (r.state != State::assigned) {
      return;
    }
    if (r.finished && r.computed && (r.handed_over || !is_alive(r.prefill))) {
      r.state = State::done;
    } else if (!is_alive(r.decode) && r.handed_over && !r.finished) {
      again(r);
    } else if (!is_alive(r.prefill) && !r.handed_over) {
      again(r);
    }
  }
  /// The prefill engine still has the sequence.
  void deliver_elsewhere(RequestRecord& r, kvc::transfer::Outcome outcome) {
    if (r.finished) {  // and the prefill engine has not heard of it
      r.handed_over = true;
      post_.send(r.prefill, Kind::cancel, r.attempt);
      return;
    }
    if (outcome == kvc::transfer::Outcome::never_fits || outcome == kvc::transfer::Outcome::incompatible) {
      end(r, State::failed, "engine " + std::to_string(r.decode) + ": " + std::string(to_text(outcome)));
      return;
    }
    if (outcome == kvc::transfer::Outcome::timed_out && is_alive(r.decode)) {  // it hangs
      transport_->drop(r.decode);
      lose(r.decode);
    }
    const std::optional<Peer> next = least_busy_decode(is_alive(r.decode) ? r.decode : Peer{-1});
    if (!next) {
      end(r, State::failed, "no decode engine is left");
      return;
    }
    r.decode = *next;
    post_.send(r.prefill, Kind::deliver, r.attempt, Deliver{*next});
  }
  void again(RequestRecord& r) {
    cancel_attempt(r);
    if (++r.attempt.number > most_attempts) {
      end(r, State::failed, "it was begun " + std::to_string(r.attempt.number) + " times");
      return;
    }
    r.state = State::waiting;
    r.computed = r.handed_over = r.finished = false;
  }
  void end(RequestRecord& r, State state, std::string why) {
    if (!r.is_over()) {
      cancel_attempt(r);
      r.state = state;
      r.failure = std::move(why);
    }
  }
  void cancel_attempt(const RequestRecord& r) {
    for (const Peer peer : {r.prefill, r.decode}) {
      if (r.state == State::assigned && is_alive(peer)) {
        post_.send(peer, Kind::cancel, r.attempt);
      }
    }
  }

  bool assign() {
    bool any = false;
    for (RequestRecord& r : run_.requests) {
      if (r.state != State::waiting || r.arrival > config_.clock.elapsed()) {
        continue;
      }
      const std::optional<Peer> decode = least_busy_decode();
      const std::optional<Peer> prefill = least_busy_prefill();
      if (!decode) {
        end(r, State::failed, "no decode engine is left");
        continue;
      }
      if (!prefill) {
        break;
      }
      r.state = State::assigned;
      r.prefill = *prefill;
      r.decode = *decode;
      r.output.assign(static_cast<std::size_t>(r.output_tokens), Token{-1});
      engine_of(*prefill).heard = config_.clock.now();
      post_.send(*prefill, Kind::assign, r.attempt, Assign{*decode, r.prompt_tokens, r.output_tokens});
      for (auto rest = std::span(requests_[r.attempt.request].prompt); !rest.empty();) {
        const auto part = rest.first(std::min(rest.size(), most_prompt_tokens));
        post_.send_list(*prefill, Kind::prompt, r.attempt, part);
        rest = rest.subspan(part.size());
      }
      any = true;
    }
    return any;
  }
  /// A live decode engine other than `unwanted`, if there is one.
  std::optional<Peer> least_busy_decode(Peer unwanted = -1) {
    return least_busy(config_.prefill_engines, transport_->peers(), [&](Peer peer) {
      Index load = peer == unwanted ? Index{1} << 40 : 0;
      for (const RequestRecord& r : run_.requests) {
        load += r.state == State::assigned && r.decode == peer && !r.finished ? r.output_tokens : 0;
      }
      return load;
    });
  }
  /// A prefill engine with room for another prompt; empty if all are busy.
  std::optional<Peer> least_busy_prefill() {
    const auto prompts = [&](Peer peer) {
      return std::count_if(run_.requests.begin(), run_.requests.end(), [&](const RequestRecord& r) {
        return r.state == State::assigned && r.prefill == peer && !r.computed;
      });
    };
    const std::optional<Peer> peer = least_busy(0, config_.prefill_engines, prompts);
    return peer && prompts(*peer) < 2 ? peer : std::nullopt;
  }
  template <class F>
  std::optional<Peer> least_busy(Peer first, Peer last, F&& load) {
    std::optional<Peer> best;
    for (Peer peer = first; peer < last; ++peer) {
      if (is_alive(peer) && (!best || load(peer) < load(*best))) {
        best = peer;
      }
    }
    return best;
  }

  static constexpr std::uint32_t most_attempts = 1000;

  T* transport_;
  std::span<const Request> requests_;
  RouterConfig config_;
  Post<T> post_;
  std::vector<Engine> engines_;
  RunRecord run_;
  bool started_ = false;
  bool stopping_ = false;
};

}  // namespace disaggregated
