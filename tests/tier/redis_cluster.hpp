// A cluster of Redis servers that a test starts on loopback.
#pragma once

#include <algorithm>
#include <chrono>
#include <cstddef>
#include <initializer_list>
#include <memory>
#include <string>
#include <string_view>
#include <thread>
#include <vector>

#include "catch.hpp"
#include "redis_process.hpp"

namespace kvc_test {

/// Servers with the same number of slots each, about, and no replicas.
class RedisCluster {
 public:
  explicit RedisCluster(std::size_t nodes = 3) : nodes_(nodes) {
    for (auto& node : nodes_) {
      // A node that is gone is noticed within moments, and the others keep their slots.
      node = std::make_unique<RedisProcess>(std::vector<std::string>{
          "--cluster-enabled", "yes", "--cluster-port", std::to_string(free_port()), "--cluster-node-timeout", "500",
          "--cluster-require-full-coverage", "no", "--cluster-allow-reads-when-down", "yes"});
    }
    constexpr std::size_t slots = 16384;
    const std::size_t share = slots / nodes + 1;
    for (std::size_t i = 0; i < nodes; ++i) {
      const std::string first = std::to_string(i * share), last = std::to_string(std::min((i + 1) * share, slots) - 1);
      must(i, {"CLUSTER", "ADDSLOTSRANGE", first, last});
      must(i, {"CLUSTER", "SET-CONFIG-EPOCH", std::to_string(i + 1)});
    }
    const std::string bus = text(redis_reply(port(0), {"CONFIG", "GET", "cluster-port"})->element[1]);
    for (std::size_t i = 1; i < nodes; ++i) {
      must(i, {"CLUSTER", "MEET", "127.0.0.1", std::to_string(port(0)), bus});
    }
    for (std::size_t i = 0; i < nodes; ++i) {
      wait_for(i, "cluster_known_nodes:" + std::to_string(nodes));
      wait_for(i, "cluster_slots_ok:" + std::to_string(slots));
      wait_for(i, "cluster_state:ok");
    }
  }
  [[nodiscard]] int port(std::size_t node) const { return nodes_[node]->port(); }
  void stop(std::size_t node) { nodes_[node]->stop(); }
  /// The node that has a slot by the word of the servers.
  [[nodiscard]] std::size_t node_of(std::size_t slot) const {
    const auto reply = redis_reply(port(0), {"CLUSTER", "SLOTS"});
    for (std::size_t i = 0; i < reply->elements; ++i) {
      const redisReply& range = *reply->element[i];
      if (static_cast<long long>(slot) >= range.element[0]->integer &&
          static_cast<long long>(slot) <= range.element[1]->integer) {
        for (std::size_t node = 0; node < nodes_.size(); ++node) {
          if (range.element[2]->element[1]->integer == port(node)) {
            return node;
          }
        }
      }
    }
    FAIL("no node has slot " << slot);
    return 0;
  }
  [[nodiscard]] std::string id(std::size_t node) const {
    return text(redis_reply(port(node), {"CLUSTER", "MYID"}).get());
  }
  void must(std::size_t node, std::initializer_list<std::string_view> words) const {
    const auto reply = redis_reply(port(node), words);
    INFO(std::string(*(words.begin() + 1)) << ": " << text(reply.get()));
    REQUIRE(reply->type != REDIS_REPLY_ERROR);
  }
  void wait_for(std::size_t node, const std::string& what) const {
    for (int i = 0; i < 3000; ++i) {
      if (text(redis_reply(port(node), {"CLUSTER", "INFO"}).get()).find(what) != std::string::npos) {
        return;
      }
      std::this_thread::sleep_for(std::chrono::milliseconds(10));
    }
    FAIL("the cluster does not come to " << what);
  }
  [[nodiscard]] static std::string text(const redisReply* reply) { return {reply->str, reply->len}; }

 private:
  std::vector<std::unique_ptr<RedisProcess>> nodes_;
};

}  // namespace kvc_test
