// World: a router and engines that one thread advances in turns, with a clock of its own, so that runs repeat exactly
// and a fault can happen at any moment.
#pragma once

#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "alone.hpp"
#include "catch.hpp"
#include "decode_engine.hpp"
#include "kvc/transport/in_process.hpp"
#include "prefill_engine.hpp"
#include "router.hpp"
#include "tiny_model.hpp"

namespace kvc_test {

using kvc::Pos;
using kvc::Token;
using kvc::transport::InProcess;
using kvc::transport::Peer;
using Endpoint = InProcess::Endpoint;
using Router = disaggregated::Router<Endpoint>;
using PrefillEngine = disaggregated::PrefillEngine<Endpoint>;
using DecodeEngine = disaggregated::DecodeEngine<Endpoint>;
using disaggregated::Request;
using disaggregated::RequestRecord;
using disaggregated::State;

inline const kvc::llama::Model& model_of_engines() {
  static const kvc::llama::Model model = tiny_model();
  return model;
}
/// The same, with a window in its first layer.
inline const kvc::llama::Model& model_with_window() {
  static const kvc::llama::Model model = [] {
    kvc::llama::Model m = tiny_model();
    m.config.window = 7;
    m.config.full_every = 2;
    return m;
  }();
  return model;
}

/// Prompts of 5 to 40 tokens that share their first `shared` tokens.
inline std::vector<Request> some_requests(std::uint64_t count, Pos output_tokens = 6, Pos shared = 1) {
  std::vector<Request> requests;
  const std::vector<Token> beginning = random_tokens(shared, tiny_config().vocab_size, 100);
  for (std::uint64_t i = 0; i < count; ++i) {
    const std::vector<Token> own = random_tokens(static_cast<kvc::Index>(5 + 7 * i % 36), tiny_config().vocab_size, i);
    requests.push_back({beginning, output_tokens + static_cast<Pos>(i % 3)});
    requests.back().prompt.insert(requests.back().prompt.end(), own.begin() + 1, own.end());
  }
  return requests;
}

struct Sizes {
  int prefill = 1;
  int decode = 2;
  kvc::Index prefill_blocks = 80;
  kvc::Index decode_blocks = 80;
  Pos reserve_tokens = 8;
  InProcess::Config transport = {};
  const kvc::llama::Model* model = &model_of_engines();
};

class World {
 public:
  World(const Sizes& sizes, std::vector<Request> requests)
      : sizes_(sizes), requests_(std::move(requests)), hub_(config_of(sizes)) {
    const disaggregated::Clock clock{[this] { return time_; }};
    disaggregated::EngineConfig engine;
    engine.block_tokens = 4;
    engine.batch = 3;
    engine.timeout = std::chrono::seconds(1);
    engine.reserve_tokens = sizes.reserve_tokens;
    engine.clock = clock;
    for (Peer peer = 0; peer < sizes.prefill + sizes.decode; ++peer) {
      endpoints_.push_back(std::make_unique<Endpoint>(hub_, peer));
    }
    router_ = std::make_unique<Router>(
        *endpoints_[0], requests_,
        disaggregated::RouterConfig{
            .prefill_engines = sizes.prefill, .timeout = std::chrono::seconds(1), .clock = clock});
    engine.blocks = sizes.prefill_blocks;
    engine.between_layers = [this] {
      router_->step();
      tick();
    };
    for (Peer peer = 0; peer < sizes.prefill; ++peer) {
      prefill_.push_back(std::make_unique<PrefillEngine>(*sizes.model, *endpoints_[index(peer)], engine));
    }
    engine.blocks = sizes.decode_blocks;
    engine.between_layers = [] {};
    for (Peer peer = sizes.prefill; peer < sizes.prefill + sizes.decode; ++peer) {
      decode_.push_back(std::make_unique<DecodeEngine>(*sizes.model, *endpoints_[index(peer)], engine));
    }
    stalled_.resize(endpoints_.size());
  }
  ~World() {
    prefill_.clear();
    decode_.clear();
    router_.reset();
    endpoints_.clear();
  }

  /// Called between any two events, with their number.
  std::function<void(int)> at_tick = [](int) {};

  /// Advances until nothing more can be done.
  void run() {
    while (!router_->done()) {
      bool any = router_->step();
      for (Peer peer = 0; peer < sizes_.prefill; ++peer) {
        const auto& engine = prefill_[index(peer)];
        any = (engine != nullptr && !stalled_[index(peer)] && engine->step()) || any;
      }
      any = tick() || any;
      if (!any) {
        time_ += std::chrono::milliseconds(1);
      }
      REQUIRE(ticks_ < 100000);
    }
  }
  /// The engine dies without a message.
  void kill(Peer peer) {
    for (Peer other = 0; other < static_cast<Peer>(endpoints_.size()); ++other) {
      endpoints_[index(peer)]->drop(other);
    }
    if (peer < sizes_.prefill) {
      prefill_[index(peer)].reset();
    } else {
      decode_[index(peer - sizes_.prefill)].reset();
    }
  }
  /// The engine stalls, or continues.
  void stall(Peer peer, bool stalled = true) { stalled_[index(peer)] = stalled; }

  [[nodiscard]] Router& router() { return *router_; }
  [[nodiscard]] DecodeEngine& decode(int i) { return *decode_[index(i)]; }
  [[nodiscard]] const disaggregated::RunRecord& record() const { return router_->record(); }

  /// Finished requests have the output of a single engine; the remaining engines reference nothing.
  void check() {
    for (std::size_t i = 0; i < requests_.size(); ++i) {
      INFO("request " << i << ": " << record().requests[i].failure);
      REQUIRE(record().requests[i].is_over());
      if (record().requests[i].state == State::done) {
        REQUIRE(record().requests[i].output == expected()[i]);
      }
    }
    for (std::size_t peer = 0; peer < record().engines.size(); ++peer) {
      INFO("engine " << peer);
      REQUIRE((record().engines[peer].lost || record().engines[peer].figures.clean));
    }
  }
  void check_all_done() {
    check();
    for (const RequestRecord& r : record().requests) {
      INFO("request " << r.attempt.request << ": " << r.failure);
      REQUIRE(r.state == State::done);
    }
  }
  [[nodiscard]] int ticks() const { return ticks_; }

 private:
  static std::size_t index(Peer peer) { return static_cast<std::size_t>(peer); }
  static InProcess::Config config_of(const Sizes& sizes) {
    InProcess::Config config = sizes.transport;
    config.peers = sizes.prefill + sizes.decode;
    config.channels = disaggregated::channels;
    return config;
  }
  bool tick() {
    bool any = false;
    at_tick(ticks_++);
    for (Peer i = 0; i < sizes_.decode; ++i) {
      const auto& engine = decode_[index(i)];
      any = (engine != nullptr && !stalled_[index(sizes_.prefill + i)] && engine->step()) || any;
    }
    return any;
  }
  const std::vector<std::vector<Token>>& expected() {
    if (expected_.empty()) {
      disaggregated::EngineConfig one;
      one.block_tokens = 16;
      expected_ = disaggregated::run_alone(*sizes_.model, requests_, one).outputs;
    }
    return expected_;
  }

  Sizes sizes_;
  std::vector<Request> requests_;
  kvc::transport::TimePoint time_ = std::chrono::steady_clock::now();  // advances by itself only
  InProcess hub_;
  std::vector<std::unique_ptr<Endpoint>> endpoints_;
  std::unique_ptr<Router> router_;
  std::vector<std::unique_ptr<PrefillEngine>> prefill_;
  std::vector<std::unique_ptr<DecodeEngine>> decode_;
  std::vector<bool> stalled_;
  std::vector<std::vector<Token>> expected_;
  int ticks_ = 0;
};

}  // namespace kvc_test
