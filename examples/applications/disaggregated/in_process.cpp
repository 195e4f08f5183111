#include <future>
#include <vector>

#include "decode_engine.hpp"
#include "kvc/transport/in_process.hpp"
#include "prefill_engine.hpp"
#include "router.hpp"
#include "run.hpp"

namespace disaggregated {
namespace {

using kvc::transport::InProcess;

template <template <class> class Engine>
void run_engine(const kvc::llama::Model& model, InProcess& hub, Peer self, const EngineConfig& config) {
  InProcess::Endpoint transport(hub, self);
  Engine<InProcess::Endpoint> engine(model, transport, config);
  drive(transport, engine);
}

}  // namespace

RunRecord run_in_process(const kvc::llama::Model& model, std::span<const Request> requests, const RunConfig& config) {
  InProcess hub({.peers = config.prefill_engines + config.decode_engines, .channels = channels});
  // An exception ends the endpoint of its thread, by which the others see that the peer is lost. They do without an
  // engine, and end without the router.
  std::vector<std::future<void>> threads;
  const auto start = [&](auto run, Peer self, const EngineConfig& engine) {
    threads.push_back(
        std::async(std::launch::async, [&model, &hub, run, self, engine] { run(model, hub, self, engine); }));
  };
  for (Peer peer = 1; peer < config.prefill_engines; ++peer) {
    start(run_engine<PrefillEngine>, peer, config.prefill);
  }
  for (Peer peer = 0; peer < config.decode_engines; ++peer) {
    start(run_engine<DecodeEngine>, config.prefill_engines + peer, config.decode);
  }
  RunRecord record;
  {
    InProcess::Endpoint transport(hub, router_peer);
    Router<InProcess::Endpoint> router(transport, requests, config.router);
    EngineConfig shared = config.prefill;
    shared.between_layers = [&] { router.step(); };
    PrefillEngine<InProcess::Endpoint> engine(model, transport, shared);
    drive(transport, router, engine);
    record = router.record();
  }
  for (std::future<void>& thread : threads) {
    thread.get();  // throws what an engine threw
  }
  return record;
}

}  // namespace disaggregated
