// The contract of a transport, for the one between threads.
#include <exception>
#include <string>
#include <thread>
#include <vector>

#include "catch.hpp"
#include "kvc/transport/in_process.hpp"
#include "transfer/transport_contract.hpp"

TEST_CASE("The transport between threads keeps the contract", "[transfer][threads]") {
  using namespace kvc;
  using namespace kvc_test;
  using Suite = Contract<transport::InProcess::Endpoint>;
  for (const Suite::Case& one : Suite::cases()) {
    transport::InProcess hub({.peers = contract_peers,
                              .channels = contract_channels,
                              .window_messages = contract_window_messages,
                              .window_bytes = contract_window_bytes});
    std::vector<Checks> checks;
    std::vector<std::optional<transport::InProcess::Endpoint>> endpoints(contract_peers);
    for (int peer = 0; peer < contract_peers; ++peer) {
      checks.emplace_back(peer);
      endpoints[static_cast<std::size_t>(peer)].emplace(hub, peer);
    }
    std::vector<std::thread> threads;
    for (std::size_t peer = 0; peer < contract_peers; ++peer) {
      threads.emplace_back([&, peer] {
        try {
          Suite suite(endpoints[peer], checks[peer]);
          (suite.*one.run)();
        } catch (const std::exception& error) {
          checks[peer].expect(false, error.what());
        }
      });
    }
    for (std::thread& thread : threads) {
      thread.join();
    }
    for (const Checks& peer : checks) {
      INFO(one.name << ": " << (peer.wrong().empty() ? "" : peer.wrong().front()));
      REQUIRE(peer.wrong().empty());
    }
  }
}
