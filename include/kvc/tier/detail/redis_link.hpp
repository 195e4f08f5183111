// RedisLink: the connection of a thread to one node of a cluster, and what it waits for there. Needs hiredis. POSIX.
#pragma once

#include <chrono>
#include <cstddef>
#include <deque>
#include <memory>
#include <string>
#include <utility>

#include "kvc/core/error.hpp"
#include "kvc/tier/detail/operation_queue.hpp"
#include "kvc/tier/detail/redis_connection.hpp"
#include "kvc/tier/redis_server.hpp"

namespace kvc {
inline namespace v0 {
namespace tier {
namespace detail {

/// An operation under way. It ends with the last of the requests that share it.
struct RedisPending {
  RedisPending(OperationQueue& to, std::size_t& under_way_count, Operation&& taken)
      : queue(to), under_way(under_way_count), operation(std::move(taken)) {
    ++under_way;
  }
  ~RedisPending() {
    --under_way;
    queue.end(operation, how);
  }
  RedisPending(const RedisPending&) = delete;
  RedisPending& operator=(const RedisPending&) = delete;
  OperationQueue& queue;
  std::size_t& under_way;
  Operation operation;
  Outcome how;
};
/// A request to one node: an operation, or of a lookup one key; without an operation, the nodes of all slots.
struct RedisRequest {
  std::shared_ptr<RedisPending> of;
  std::size_t key = 0;
  std::size_t redirects = 0;
  bool is_asking = false;  // the node does not have the slot yet: ASKING goes before each command
};
/// The connection of a thread to a node, and what it waits for there.
struct RedisLink {
  RedisLink(const RedisServer& to, std::chrono::milliseconds timeout)
      : server(to),
        name(kvc::detail::concat({to.host, ":", std::to_string(to.port)})),
        connection(to.host, to.port, timeout) {}
  RedisServer server;
  std::string name;
  RedisConnection connection;
  std::deque<RedisRequest> sent;
  std::chrono::steady_clock::time_point waits_since{}, retry_at{};
  bool has_unsent = false;

  /// The reply to the next command belongs to this request.
  void expect_answer(RedisRequest request) {
    if (sent.empty()) {
      waits_since = std::chrono::steady_clock::now();
    }
    sent.push_back(std::move(request));
    has_unsent = true;
  }
};

}  // namespace detail
}  // namespace tier
}  // namespace v0
}  // namespace kvc
