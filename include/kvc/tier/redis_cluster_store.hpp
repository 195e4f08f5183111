// RedisClusterStore: a BlockStore on a cluster of Redis servers (Redis Cluster, Valkey in cluster mode). Needs hiredis
// (Debian: libhiredis-dev), to be linked, and xxHash. POSIX. For servers without cluster mode see tier/redis_store.hpp.
#pragma once

#include <poll.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <exception>
#include <memory>
#include <mutex>
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
#include "kvc/tier/detail/redis_link.hpp"
#include "kvc/tier/detail/redis_slots.hpp"
#include "kvc/tier/key.hpp"
#include "kvc/tier/record_info.hpp"
#include "kvc/tier/redis_server.hpp"

namespace kvc {
inline namespace v0 {
namespace tier {

/// Keeps each block as one value, as RedisStore does, on the node of a cluster that has the slot of its key: CRC-16 of
/// the key, modulo 16384. Each thread has a connection to each node; commands are pipelined.
///
///   nodes           some are named, the others are asked for (CLUSTER SLOTS): at the first operation, and after a node
///                   has redirected a command or has not answered, but not within Config::retry of the time before
///   slots that      a node that no longer has a slot redirects (MOVED): the command is sent to the other, and so are
///   move            later ones. While a slot is moved, its node redirects what it does not have (ASK), once
///   a node that is  operations on its slots are `failed`, and a lookup finds nothing there, as with RedisStore, until
///   gone or hangs   the cluster has given them to another
///   room, damage    as RedisStore
///
/// Only masters are read. With the prefix "{name}:" all blocks have one slot, and so one node. What it fulfils:
/// BlockStore.
class RedisClusterStore : public detail::QueuedStore {
 public:
  /// The settings.
  struct Config {
    std::vector<RedisServer> servers{RedisServer{}};  ///< nodes to ask for the others
    std::string prefix = "kvc:";                      ///< of all keys
    std::size_t threads = 2;                          ///< each has a connection to each node
    std::size_t pipeline = 16;                        ///< operations that a thread has under way at most
    std::size_t redirects = 5;                        ///< that a command follows at most
    std::chrono::milliseconds timeout{1000};          ///< for a connection, and for each wait for bytes
    std::chrono::milliseconds retry{500};             ///< from a failure to the next attempt to connect
  };
  static constexpr bool persistent = true;

  /// Does not connect yet: the first operation does. Throws std::invalid_argument.
  explicit RedisClusterStore(const Config& config)
      : config_(checked(config)), commands_(config_.prefix), slots_(config_.servers) {
    kvc::detail::ScopeGuard join([this] { end(); });
    for (std::size_t i = 0; i < config_.threads; ++i) {
      workers_.push_back(std::make_unique<Worker>());
    }
    for (const std::unique_ptr<Worker>& worker : workers_) {
      worker->thread = std::thread([this, own = worker.get()] { work(*own); });
    }
    join.dismiss();
  }
  ~RedisClusterStore() { end(); }

  /// See BlockStore.
  [[nodiscard]] Ticket lookup(std::span<const BlockKey> keys, std::span<std::uint8_t> found) {
    return queue_.add(detail::Operation::lookup(keys, found));
  }
  /// See BlockStore.
  [[nodiscard]] Ticket read(const RecordInfo& block, std::span<const io::ByteSpan> spans, PartRange parts = {}) {
    return queue_.add(detail::Operation::read(block, spans, parts));
  }
  /// See BlockStore.
  [[nodiscard]] Ticket write(const RecordInfo& block, std::span<const io::ConstByteSpan> spans) {
    return queue_.add(detail::Operation::write(block, spans));
  }
  /// See BlockStore.
  [[nodiscard]] Ticket erase(const BlockKey& key) { return queue_.add(detail::Operation::erase(key)); }
  /// Unlimited: the servers know their limits.
  [[nodiscard]] std::uint64_t capacity() const noexcept { return unlimited; }
  /// See BlockStore. The records and bytes that the servers hold are not known, and stay 0.
  [[nodiscard]] StoreStats stats() const { return queue_.stats(); }
  /// Commands that a node has redirected.
  [[nodiscard]] std::uint64_t redirected() const noexcept { return redirected_; }
  /// The node that has a block, as far as is known; empty if it is not. O(bytes of the key).
  [[nodiscard]] std::optional<RedisServer> server_of(const BlockKey& key) const {
    const std::size_t node = slots_.node_of(detail::redis_slot(commands_.key_of(key)));
    return node == detail::RedisSlots::none ? std::nullopt : std::optional(slots_.node(node));
  }

 private:
  using Clock = std::chrono::steady_clock;
  using Pending = detail::RedisPending;
  using Request = detail::RedisRequest;
  using Link = detail::RedisLink;
  struct Worker {
    std::mutex mutex;  // of the two below: `end` interrupts all connections, and those that are made later
    std::vector<std::unique_ptr<Link>> links;  // by number of the node
    bool is_stopped = false;
    std::size_t under_way = 0;
    std::thread thread;
  };

  static Config checked(Config config) {
    require(!config.servers.empty(), "servers", config.servers.size(), "at least one");
    require(config.servers.size() <= 1024, "servers", config.servers.size(), "at most 1024");
    require(config.threads >= 1 && config.threads <= 1024, "threads", config.threads, "between 1 and 1024");
    require(config.pipeline >= 1, "pipeline", config.pipeline, "at least 1");
    require(config.timeout.count() >= 1, "timeout", config.timeout.count(), "at least 1 ms");
    return config;
  }
  void end() {
    queue_.stop();
    for (const std::unique_ptr<Worker>& worker : workers_) {
      {
        const std::lock_guard lock(worker->mutex);
        worker->is_stopped = true;
        for (const std::unique_ptr<Link>& link : worker->links) {
          if (link != nullptr) {
            link->connection.interrupt();
          }
        }
      }
      if (worker->thread.joinable()) {
        worker->thread.join();
      }
    }
  }

  /// Sends operations as they come, up to Config::pipeline ahead of the replies.
  void work(Worker& worker) {
    for (;;) {
      std::optional<detail::Operation> next;
      if (worker.under_way == 0) {
        next = queue_.take();
        if (!next) {
          return;
        }
      } else if (worker.under_way < config_.pipeline) {
        next = queue_.try_take();
      }
#if KVC_HAS_EXCEPTIONS
      try {
#endif
        next ? begin(worker, *next) : receive(worker);
#if KVC_HAS_EXCEPTIONS
      } catch (const std::exception& error) {  // no memory: replies may be on their way to nobody
        for (const std::unique_ptr<Link>& link : worker.links) {
          if (link != nullptr) {
            drop(*link, error.what());
          }
        }
      }
#endif
    }
  }

  void begin(Worker& worker, detail::Operation& taken) {
    std::shared_ptr<Pending> operation;
#if KVC_HAS_EXCEPTIONS
    try {
#endif
      operation = std::make_shared<Pending>(queue_, worker.under_way, std::move(taken));
#if KVC_HAS_EXCEPTIONS
    } catch (...) {
      queue_.end(taken, {});  // it has not been moved: there was no memory to move it to
      throw;
    }
#endif
    refresh(worker);
    if (operation->operation.kind != StoreOperation::lookup) {
      send(worker, {operation}, slot_of(operation->operation.block.key));
      return;
    }
    std::fill(operation->operation.found.begin(), operation->operation.found.end(), std::uint8_t{0});
    operation->how.outcome =
        operation->operation.keys.empty() ? StoreOutcome::done : StoreOutcome::failed;  // until a node answers
    for (std::size_t i = 0; i < operation->operation.keys.size(); ++i) {
      send(worker, {operation, i}, slot_of(operation->operation.keys[i]));
    }
    for (std::size_t i = 0; i < worker.links.size(); ++i) {
      flush(worker, i);
    }
  }
  [[nodiscard]] std::size_t slot_of(const BlockKey& key) const { return detail::redis_slot(commands_.key_of(key)); }

  /// The connection to a node, which is open; or nothing: the node is known not to answer.
  Link* open_link(Worker& worker, std::size_t node) {
    {
      const std::lock_guard lock(worker.mutex);
      if (worker.links.size() <= node) {
        worker.links.resize(node + 1);
      }
      if (worker.links[node] == nullptr) {
        worker.links[node] = std::make_unique<Link>(slots_.node(node), config_.timeout);
        if (worker.is_stopped) {
          worker.links[node]->connection.interrupt();
        }
      }
    }
    Link& link = *worker.links[node];
    if (link.connection.is_open()) {
      return &link;
    }
    if (Clock::now() < link.retry_at) {
      return nullptr;
    }
    const auto before = Clock::now();
    if (!link.connection.connect()) {
      drop(link, link.connection.error());
      // At most a fifth of the time goes to a node that does not even refuse.
      link.retry_at = std::max(link.retry_at, Clock::now() + 4 * (Clock::now() - before));
      return nullptr;
    }
    return &link;
  }
  /// Gives the request to the node of the slot; to any node that answers, if none is known to have it: it redirects.
  /// Those of a lookup wait for a flush. Nothing is sent, and so the request fails, before any node has told who has
  /// the slots.
  void send(Worker& worker, Request request, std::size_t slot) {
    const std::size_t owner = slots_.node_of(slot);
    if (owner != detail::RedisSlots::none) {
      send_to(worker, std::move(request), owner);
      return;
    }
    for (std::size_t node = 0; is_known_ && node < slots_.nodes(); ++node) {
      if (open_link(worker, node) != nullptr) {
        send_to(worker, std::move(request), node);
        return;
      }
    }
  }
  /// The request fails if the node does not answer.
  void send_to(Worker& worker, Request request, std::size_t node) {
    Link* const link = open_link(worker, node);
    if (link == nullptr) {
      return;
    }
    const detail::Operation& operation = request.of->operation;
    const bool is_asking = request.is_asking;
    const std::size_t key = request.key;
    std::vector<std::byte> head;
    link->expect_answer(std::move(request));
    const auto ask = [is_asking](detail::RedisConnection& to) {
      if (is_asking) {
        to.add({"ASKING"});
      }
    };
    if (operation.kind == StoreOperation::lookup) {
      ask(link->connection);
      commands_.add_lookup(link->connection, operation.keys[key]);
    } else {
      commands_.add(link->connection, operation, head, ask);
      flush(worker, node);
    }
  }
  void flush(Worker& worker, std::size_t node) {
    Link* const link = worker.links[node].get();
    if (link != nullptr && std::exchange(link->has_unsent, false) && !link->connection.flush()) {
      drop(*link, link->connection.error());
    }
  }
  /// Closes a connection. The operations that were sent there fail.
  void drop(Link& link, std::string_view why) {
    set_error(link, why);
    if (link.connection.is_open()) {
      link.connection.close(std::string(why));
    }
    link.retry_at = Clock::now() + config_.retry;
    link.has_unsent = false;
    link.sent.clear();
    is_stale_ = true;
  }

  /// Waits for nodes, and takes one answer of each that has one. Those that have kept it waiting for too long are
  /// dropped.
  void receive(Worker& worker) {
    std::vector<pollfd> waits;
    std::vector<std::size_t> nodes;
    const auto now = Clock::now();
    auto rest = config_.timeout;
    bool has_input = false;
    for (std::size_t i = 0; i < worker.links.size(); ++i) {
      const Link* const link = worker.links[i].get();
      if (link != nullptr && !link->sent.empty()) {
        has_input = has_input || link->connection.has_input();
        waits.push_back({link->connection.fd(), POLLIN, 0});
        nodes.push_back(i);
        const auto left = link->waits_since + config_.timeout - now;
        rest = std::clamp(std::chrono::ceil<std::chrono::milliseconds>(left), std::chrono::milliseconds(0), rest);
      }
    }
    (void)::poll(waits.data(), waits.size(),
                 has_input ? 0 : static_cast<int>(std::min<std::int64_t>(rest.count(), 1 << 30)));
    for (std::size_t i = 0; i < nodes.size(); ++i) {
      Link& link = *worker.links[nodes[i]];
      if (link.sent.empty()) {
        continue;  // it was dropped for the sake of another
      }
      if (waits[i].revents != 0 || link.connection.has_input()) {
        receive(worker, link);
      } else if (Clock::now() >= link.waits_since + config_.timeout) {
        drop(link, "no answer within the time-out");
      }
    }
  }
  /// Takes the answer to the first request of a connection.
  void receive(Worker& worker, Link& link) {
    Request& request = link.sent.front();
    if (request.of == nullptr) {
      if (const detail::RedisReply reply = link.connection.reply()) {
        link.sent.pop_front();
        link.waits_since = Clock::now();
        take_slots(link, *reply);
      } else {
        drop(link, link.connection.error());
      }
      return;
    }
    const detail::Operation& operation = request.of->operation;
    const auto asked = [&](detail::RedisConnection& from) {
      return !request.is_asking || from.reply() != nullptr;  // to ASKING
    };
    std::optional<detail::RedisAnswer> answer;
    if (operation.kind == StoreOperation::lookup) {
      answer = asked(link.connection) ? detail::RedisCommands::receive_lookup(link.connection) : std::nullopt;
    } else {
      answer = detail::RedisCommands::receive(link.connection, operation, asked);
    }
    if (!answer) {
      drop(link, link.connection.error());
      return;
    }
    Request answered = std::move(request);
    link.sent.pop_front();
    link.waits_since = Clock::now();
    if (answer->error.empty()) {
      take(answered, answer->how);
    } else if (answer->error.starts_with("OOM ")) {
      take(answered, {StoreOutcome::full, {}, 0});
    } else if (const auto redirect = detail::RedisRedirect::of(answer->error, link.server)) {
      follow(worker, link, std::move(answered), *redirect);
    } else {
      set_error(link, answer->error);
      is_stale_ = is_stale_ || answer->error.starts_with("CLUSTERDOWN") || answer->error.starts_with("MOVED");
    }
  }
  void take(const Request& request, const detail::Outcome& how) {
    Pending& operation = *request.of;
    if (operation.operation.kind != StoreOperation::lookup) {
      operation.how = how;
    } else if (how.outcome == StoreOutcome::done) {
      operation.operation.found[request.key] = how.count == 1 ? 1 : 0;
      operation.how = {StoreOutcome::done, {}, operation.how.count + how.count};
    }
  }
  void follow(Worker& worker, const Link& by, Request request, const detail::RedisRedirect& redirect) {
    ++redirected_;
    if (++request.redirects > config_.redirects) {
      set_error(by, kvc::detail::concat({"more than ", std::to_string(config_.redirects), " redirects of a command"}));
      return;
    }
    const std::size_t node = slots_.number_of(redirect.to);
    if (node == detail::RedisSlots::none) {
      set_error(by, "a redirect to one node more than a cluster may have");
      return;
    }
    if (!redirect.is_ask) {
      slots_.move(redirect.slot, node);
      is_stale_ = true;
    }
    request.is_asking = redirect.is_ask;
    send_to(worker, std::move(request), node);
    flush(worker, node);
  }

  /// Asks a node for the nodes of all slots, if what is known may be wrong: one thread, and not more often than
  /// Config::retry says. Waits for the answer only as long as nothing is known.
  void refresh(Worker& worker) {
    std::unique_lock first(first_mutex_, std::defer_lock);
    if (!is_known_) {
      first.lock();  // the others wait for the one that asks
    }
    {
      const std::lock_guard lock(refresh_mutex_);
      if (!is_stale_ || Clock::now() < refresh_at_) {
        return;
      }
      refresh_at_ = Clock::now() + config_.retry;
      is_stale_ = false;
    }
    const auto is_open = [&](std::size_t node) {
      return node < worker.links.size() && worker.links[node] != nullptr && worker.links[node]->connection.is_open();
    };
    for (const bool must_connect : {false, true}) {
      for (std::size_t node = 0; node < slots_.nodes(); ++node) {
        Link* const link = is_open(node) != must_connect ? open_link(worker, node) : nullptr;
        if (link == nullptr) {
          continue;
        }
        link->expect_answer({});
        link->connection.add({"CLUSTER", "SLOTS"});
        flush(worker, node);
        while (!is_known_ && !link->sent.empty()) {
          receive(worker);
        }
        if (is_known_) {
          return;
        }
      }
    }
    is_stale_ = true;
  }
  void take_slots(const Link& link, const redisReply& reply) {
    if (reply.type == REDIS_REPLY_ERROR) {
      set_error(link, {reply.str, reply.len});
    } else if (slots_.take(reply, link.server)) {
      is_known_ = true;
      return;
    } else {
      set_error(link, "what it answers to CLUSTER SLOTS is no list of slots");
    }
    is_stale_ = true;
  }

  void set_error(const Link& link, std::string_view what) {
    QueuedStore::set_error(kvc::detail::concat({link.name, ": ", what}));
  }

  Config config_;
  detail::RedisCommands commands_;
  detail::RedisSlots slots_;
  std::mutex first_mutex_, refresh_mutex_;
  Clock::time_point refresh_at_{};
  std::atomic<bool> is_known_ = false;  // a node has told who has the slots
  std::atomic<bool> is_stale_ = true;   // that may be wrong by now
  std::atomic<std::uint64_t> redirected_ = 0;
  std::vector<std::unique_ptr<Worker>> workers_;
};
static_assert(BlockStore<RedisClusterStore>);

}  // namespace tier
}  // namespace v0
}  // namespace kvc
