// RedisStore: a BlockStore on servers that speak the protocol of Redis (Redis, Valkey, KeyDB). Needs hiredis (Debian:
// libhiredis-dev), to be linked, and xxHash. POSIX.
#pragma once

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <deque>
#include <exception>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <thread>
#include <utility>
#include <vector>

#include "kvc/core/error.hpp"
#include "kvc/core/scope_guard.hpp"
#include "kvc/io/byte_spans.hpp"
#include "kvc/tier/block_store.hpp"
#include "kvc/tier/detail/operation_queue.hpp"
#include "kvc/tier/detail/queued_store.hpp"
#include "kvc/tier/detail/redis_commands.hpp"
#include "kvc/tier/detail/redis_connection.hpp"
#include "kvc/tier/key.hpp"
#include "kvc/tier/record.hpp"
#include "kvc/tier/record_info.hpp"
#include "kvc/tier/redis_server.hpp"

namespace kvc {
inline namespace v0 {
namespace tier {

/// Keeps each block as one value, head and payload, under the key PREFIX + 64 hexadecimal digits. One thread and one
/// connection for each server; commands are pipelined, and payloads are sent straight from the caller's memory.
///
///   several servers      a block lies on the server with the highest hash of (server, key): rendezvous hashing (Thaler
///                        and Ravishankar, 1998). When one is added or removed, only the blocks of that one move
///   room, eviction       are the server's: maxmemory and maxmemory-policy. A server that evicts nothing makes a write
///                        `full`
///   a server that is     operations on it are `failed`, at once as long as it is known to be down; it is asked again
///   gone or hangs        after Config::retry. A lookup finds nothing there, and fails if all servers do.
///                        Config::timeout bounds each wait for bytes
///   damage               the record has checksums from its writer to its reader; what does not pass is refused
///
/// Whoever can write to a server can serve wrong bytes with right checksums: servers are trusted, as the network is.
/// What it fulfils: BlockStore.
class RedisStore : public detail::QueuedStore {
 public:
  /// The settings.
  struct Config {
    std::vector<RedisServer> servers{RedisServer{}};
    std::string prefix = "kvc:";              ///< of all keys
    std::size_t pipeline = 16;                ///< operations that a connection has under way at most
    std::chrono::milliseconds timeout{1000};  ///< for a connection, and for each wait for bytes
    std::chrono::milliseconds retry{500};     ///< from a failure to the next attempt to connect
  };
  static constexpr bool persistent = true;

  /// Does not connect yet: the first operation does. Throws std::invalid_argument.
  explicit RedisStore(const Config& config)
      : QueuedStore(checked(config).servers.size()), config_(config), commands_(config_.prefix) {
    kvc::detail::ScopeGuard join([this] { end(); });
    for (const RedisServer& server : config_.servers) {
      servers_.push_back(std::make_unique<Server>(server, config_.timeout));
    }
    for (std::size_t i = 0; i < servers_.size(); ++i) {
      servers_[i]->thread = std::thread([this, i] { work(i); });
    }
    join.dismiss();
  }
  ~RedisStore() { end(); }

  /// See BlockStore.
  [[nodiscard]] Ticket lookup(std::span<const BlockKey> keys, std::span<std::uint8_t> found) {
    detail::require_lookup(keys, found);
    return queue_.add_to_all(keys, found);
  }
  /// See BlockStore.
  [[nodiscard]] Ticket read(const RecordInfo& block, std::span<const io::ByteSpan> spans, PartRange parts = {}) {
    return queue_.add(detail::Operation::read(block, spans, parts), server_of(block.key));
  }
  /// See BlockStore.
  [[nodiscard]] Ticket write(const RecordInfo& block, std::span<const io::ConstByteSpan> spans) {
    return queue_.add(detail::Operation::write(block, spans), server_of(block.key));
  }
  /// See BlockStore.
  [[nodiscard]] Ticket erase(const BlockKey& key) { return queue_.add(detail::Operation::erase(key), server_of(key)); }
  /// Unlimited: the servers know their limits.
  [[nodiscard]] std::uint64_t capacity() const noexcept { return unlimited; }
  /// See BlockStore. The records and bytes that the servers hold are not known, and stay 0.
  [[nodiscard]] StoreStats stats() const { return queue_.stats(); }
  /// The number of the server that a key belongs to. O(servers).
  [[nodiscard]] std::size_t server_of(const BlockKey& key) const noexcept {
    std::size_t best = 0;
    std::uint64_t highest = 0;
    for (std::size_t i = 0; i < servers_.size(); ++i) {
      struct {
        std::uint64_t server;
        BlockKey key;
      } const both{servers_[i]->hash, key};
      const std::uint64_t score = snapshot::detail::Checksum::of(std::as_bytes(std::span(&both, 1)));
      if (i == 0 || score > highest) {
        best = i;
        highest = score;
      }
    }
    return best;
  }

 private:
  using Clock = std::chrono::steady_clock;
  struct Server {
    Server(const RedisServer& server, std::chrono::milliseconds timeout)
        : name(kvc::detail::concat({server.host, ":", std::to_string(server.port)})),
          hash(snapshot::detail::Checksum::of(std::as_bytes(std::span(name)))),
          connection(server.host, server.port, timeout) {}
    std::string name;
    std::uint64_t hash;
    detail::RedisConnection connection;
    Clock::time_point retry_at{};
    std::thread thread;
  };

  static Config checked(Config config) {
    require(!config.servers.empty(), "servers", config.servers.size(), "at least one");
    require(config.servers.size() <= 1024, "servers", config.servers.size(), "at most 1024");
    require(config.pipeline >= 1, "pipeline", config.pipeline, "at least 1");
    require(config.timeout.count() >= 1, "timeout", config.timeout.count(), "at least 1 ms");
    return config;
  }
  void end() {
    queue_.stop();
    for (const std::unique_ptr<Server>& server : servers_) {
      server->connection.interrupt();
      if (server->thread.joinable()) {
        server->thread.join();
      }
    }
  }

  /// Sends operations as they come, up to Config::pipeline ahead of the replies.
  void work(std::size_t number) {
    Server& server = *servers_[number];
    std::deque<detail::Operation> sent;
    for (;;) {
#if KVC_HAS_EXCEPTIONS
      try {
#endif
        if (!advance(number, sent)) {
          break;
        }
#if KVC_HAS_EXCEPTIONS
      } catch (const std::exception& error) {  // no memory: replies may be on their way to nobody
        server.connection.close("no memory");
        set_error(server, error.what());
      }
#endif
      if (!server.connection.is_open()) {
        for (const detail::Operation& lost : sent) {
          forget(lost, number);
          queue_.end(lost, {});
        }
        sent.clear();
      }
    }
  }
  /// Sends one more operation if there is one and it may, else ends the first of those that were sent. False: the queue
  /// is stopped. After an error the connection is closed, and nobody will answer those that were sent.
  bool advance(std::size_t number, std::deque<detail::Operation>& sent) {
    Server& server = *servers_[number];
    std::optional<detail::Operation> next;
    if (sent.empty()) {
      next = queue_.take(number);
      if (!next) {
        return false;
      }
    } else if (sent.size() < config_.pipeline) {
      next = queue_.try_take(number);
    }
    if (next) {
      sent.push_back(std::move(*next));
      if (!server.connection.is_open() && !reconnect(server)) {
        return true;
      }
      std::vector<std::byte> head;
      send(number, sent.back(), head);
      if (!server.connection.flush()) {
        fail(server);
      }
      return true;
    }
    if (const std::optional<detail::Outcome> how = receive(number, sent.front())) {
      queue_.end(sent.front(), *how);
      sent.pop_front();
    } else {
      fail(server);
    }
    return true;
  }
  /// Whether the connection is open again.
  bool reconnect(Server& server) {
    if (Clock::now() < server.retry_at) {
      return false;
    }
    if (!server.connection.connect()) {
      fail(server);
      return false;
    }
    return true;
  }

  /// Adds the commands of an operation to those that the next flush sends.
  void send(std::size_t number, const detail::Operation& operation, std::vector<std::byte>& head) {
    detail::RedisConnection& to = servers_[number]->connection;
    if (operation.kind != StoreOperation::lookup) {
      commands_.add(to, operation, head);
      return;
    }
    for (const BlockKey& key : operation.keys) {
      if (server_of(key) == number) {
        commands_.add_lookup(to, key);
      }
    }
  }

  /// Takes the replies to an operation. Nothing: the connection is closed.
  std::optional<detail::Outcome> receive(std::size_t number, const detail::Operation& operation) {
    Server& server = *servers_[number];
    if (operation.kind == StoreOperation::lookup) {
      std::uint64_t count = 0;
      for (std::size_t i = 0; i < operation.keys.size(); ++i) {
        if (server_of(operation.keys[i]) != number) {
          continue;
        }
        const std::optional<detail::RedisAnswer> answer = detail::RedisCommands::receive_lookup(server.connection);
        if (!answer) {
          return std::nullopt;
        }
        if (!answer->error.empty()) {
          set_error(server, answer->error);
        }
        operation.found[i] = answer->how.count == 1 ? 1 : 0;
        count += operation.found[i];
      }
      return detail::Outcome{StoreOutcome::done, {}, count};
    }
    const std::optional<detail::RedisAnswer> answer = detail::RedisCommands::receive(server.connection, operation);
    if (!answer) {
      return std::nullopt;
    }
    if (answer->error.starts_with("OOM ")) {
      return detail::Outcome{StoreOutcome::full, {}, 0};
    }
    if (!answer->error.empty()) {
      set_error(server, answer->error);
    }
    return answer->how;
  }

  /// Keys of a server that does not answer are not found.
  void forget(const detail::Operation& operation, std::size_t number) noexcept {
    for (std::size_t i = 0; i < operation.found.size(); ++i) {
      if (server_of(operation.keys[i]) == number) {
        operation.found[i] = 0;
      }
    }
  }
  void fail(Server& server) {
    server.retry_at = Clock::now() + config_.retry;
    set_error(server, server.connection.error());
  }
  void set_error(const Server& server, std::string_view what) {
    QueuedStore::set_error(kvc::detail::concat({server.name, ": ", what}));
  }

  Config config_;
  detail::RedisCommands commands_;
  std::vector<std::unique_ptr<Server>> servers_;
};
static_assert(BlockStore<RedisStore>);

}  // namespace tier
}  // namespace v0
}  // namespace kvc
