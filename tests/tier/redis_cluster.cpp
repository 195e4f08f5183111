// RedisClusterStore, over a cluster that the test starts on loopback: the contract, slots that move while blocks are
// read and written, and a node that is killed.
#if defined(KVC_HAVE_HIREDIS)

#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <map>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <thread>
#include <vector>

#include "catch.hpp"
#include "kvc/testing/block_store_conformance.hpp"
#include "kvc/tier/redis_cluster_store.hpp"
#include "redis_cluster.hpp"
#include "redis_process.hpp"
#include "store_calls.hpp"

namespace {
using namespace kvc;
using namespace kvc::tier;
using kvc_test::contains;
using kvc_test::free_port;
using kvc_test::get;
using kvc_test::put;
using kvc_test::redis_reply;
using kvc_test::RedisCluster;
using ClusterBlock = testing::detail::StoredBlock;

RedisClusterStore::Config cluster_config(const RedisCluster& cluster) {
  RedisClusterStore::Config config;
  config.servers = {{"127.0.0.1", cluster.port(0)}};  // it is asked for the others
  config.timeout = std::chrono::milliseconds(5000);
  config.retry = std::chrono::milliseconds(0);
  return config;
}

/// Moves a slot while `meanwhile()` uses its blocks, with half of them moved at first.
template <class F>
void move_slot(const RedisCluster& cluster, std::size_t slot, F&& meanwhile) {
  const std::size_t from = cluster.node_of(slot), to = (from + 1) % 3;
  const std::string number = std::to_string(slot), to_id = cluster.id(to);
  cluster.must(to, {"CLUSTER", "SETSLOT", number, "IMPORTING", cluster.id(from)});
  cluster.must(from, {"CLUSTER", "SETSLOT", number, "MIGRATING", to_id});
  for (const int share : {2, 1}) {
    const auto keys = redis_reply(cluster.port(from), {"CLUSTER", "GETKEYSINSLOT", number, "1000"});
    REQUIRE(keys->elements > 1);
    for (std::size_t i = 0; i < keys->elements / static_cast<std::size_t>(share); ++i) {
      cluster.must(from, {"MIGRATE", "127.0.0.1", std::to_string(cluster.port(to)),
                          RedisCluster::text(keys->element[i]), "0", "5000"});
    }
    meanwhile();
  }
  cluster.must(to, {"CLUSTER", "SETSLOT", number, "NODE", to_id});
  cluster.must(from, {"CLUSTER", "SETSLOT", number, "NODE", to_id});
  meanwhile();
}
}  // namespace

TEST_CASE("A store on a cluster keeps the contract, follows slots that move, and does without a node that is killed",
          "[tier][redis][cluster]") {
  RedisCluster cluster;
  testing::block_store_conformance([&] { return RedisClusterStore(cluster_config(cluster)); });

  // Blocks lie where the servers look for them.
  RedisClusterStore store(cluster_config(cluster));
  std::map<int, std::vector<ClusterBlock>> at;  // by the port
  for (int i = 0; i < 60; ++i) {
    const ClusterBlock block(i, 2000);
    REQUIRE(put(store, block) == StoreOutcome::done);
    const auto slot = redis_reply(cluster.port(0), {"CLUSTER", "KEYSLOT", "kvc:" + block.info.key.hex()});
    REQUIRE(slot->integer == static_cast<long long>(tier::detail::redis_slot("kvc:" + block.info.key.hex())));
    const std::optional<RedisServer> server = store.server_of(block.info.key);
    REQUIRE(server);
    REQUIRE(server->port == cluster.port(cluster.node_of(static_cast<std::size_t>(slot->integer))));
    at[server->port].push_back(block);
  }
  REQUIRE(at.size() == 3);
  REQUIRE(store.redirected() == 0);

  // Many blocks of one slot, which moves: those that were there are read, whole and in parts; new ones are written, and
  // looked up.
  RedisClusterStore::Config config = cluster_config(cluster);
  config.prefix = "{moving}:";
  RedisClusterStore other(config);
  std::vector<ClusterBlock> blocks;
  const auto add_blocks = [&] {
    for (int i = 0; i < 10; ++i) {
      blocks.emplace_back(static_cast<int>(blocks.size()), 3000, 3);
      REQUIRE(put(other, blocks.back()) == StoreOutcome::done);
    }
  };
  const auto check_blocks = [&] {
    std::vector<BlockKey> keys{ClusterBlock(1000, 0).info.key};  // which is not there
    for (const ClusterBlock& block : blocks) {
      REQUIRE(get(other, block).outcome == StoreOutcome::done);
      std::vector<std::byte> part(1000);
      const io::ByteSpan span = part;
      REQUIRE(kvc_test::end_of(other, other.read(block.record(), std::span(&span, 1), {1, 1})).outcome ==
              StoreOutcome::done);
      REQUIRE(std::equal(part.begin(), part.end(), block.bytes.begin() + 1000));
      keys.push_back(block.info.key);
    }
    std::vector<std::uint8_t> found(keys.size(), 7);
    REQUIRE(kvc_test::end_of(other, other.lookup(keys, found)).count == blocks.size());
    REQUIRE(found[0] == 0);
    REQUIRE(get(other, ClusterBlock(1000, 100)).outcome == StoreOutcome::missing);
  };
  add_blocks();
  check_blocks();
  REQUIRE(other.redirected() == 0);
  move_slot(cluster, tier::detail::redis_slot("{moving}:"), [&] {
    add_blocks();
    check_blocks();
  });
  REQUIRE(other.redirected() > 20);
  const std::uint64_t redirected = other.redirected();
  check_blocks();
  REQUIRE(other.redirected() <= redirected + 2);  // one for each thread that was slow to learn

  // A node is killed: its blocks are misses, the others are there, and nothing is wrong.
  cluster.stop(1);
  std::vector<BlockKey> keys;
  std::size_t kept = 0;
  for (const auto& [port, there] : at) {
    for (const ClusterBlock& block : there) {
      const bool is_up = port != cluster.port(1);
      kept += is_up ? 1 : 0;
      keys.push_back(block.info.key);
      REQUIRE(get(store, block).outcome == (is_up ? StoreOutcome::done : StoreOutcome::failed));
    }
  }
  std::vector<std::uint8_t> found(keys.size(), 7);
  const Completion looked = kvc_test::end_of(store, store.lookup(keys, found));
  REQUIRE(looked.outcome == StoreOutcome::done);
  REQUIRE(looked.count == kept);
  // Once the others know, they say that nobody has these slots.
  cluster.wait_for(0, "cluster_slots_fail:546");
  RedisClusterStore later(cluster_config(cluster));
  for (const auto& [port, there] : at) {
    REQUIRE(get(later, there.front()).outcome == (port != cluster.port(1) ? StoreOutcome::done : StoreOutcome::failed));
  }
  cluster.stop(0);
  cluster.stop(2);
  REQUIRE(kvc_test::end_of(later, later.lookup(keys, found)).outcome == StoreOutcome::failed);
  REQUIRE(std::count(found.begin(), found.end(), 1) == 0);
}

TEST_CASE("Keys of a cluster are hashed as its servers hash them", "[tier][redis][cluster]") {
  // From the specification of Redis Cluster: foo is in slot 12182; of a key with braces, what stands in the first pair.
  REQUIRE(tier::detail::redis_slot("foo") == 12182);
  REQUIRE(tier::detail::redis_slot("x{foo}y{bar}") == 12182);
  REQUIRE(tier::detail::redis_slot("{}foo") == tier::detail::crc16("{}foo") % 16384);
  REQUIRE(tier::detail::redis_slot("foo{{bar}}zap") == tier::detail::crc16("{bar") % 16384);
  REQUIRE(tier::detail::redis_slot("foo{bar") == tier::detail::crc16("foo{bar") % 16384);
}

TEST_CASE("The words of a redirect are understood, or are an error", "[tier][redis][cluster]") {
  using Redirect = tier::detail::RedisRedirect;
  const RedisServer by{"10.0.0.1", 7000};
  const auto moved = Redirect::of("MOVED 3999 127.0.0.1:6381", by);
  REQUIRE(moved);
  REQUIRE((!moved->is_ask && moved->slot == 3999 && moved->to == RedisServer{"127.0.0.1", 6381}));
  const auto ask = Redirect::of("ASK 16383 ::1:6381", by);
  REQUIRE(ask);
  REQUIRE((ask->is_ask && ask->slot == 16383 && ask->to == RedisServer{"::1", 6381}));
  REQUIRE(Redirect::of("MOVED 1 :6381", by)->to == RedisServer{"10.0.0.1", 6381});
  for (const char* const wrong : {"", "MOVED", "MOVED ", "MOVED 1", "MOVED 16384 h:1", "MOVED -1 h:1", "MOVED 1 h",
                                  "MOVED 1 h:0", "MOVED 1 h:65536", "MOVED 1 h:", "MOVED x h:1", "MOVED 1 ?:1",
                                  "ASKING", "WRONGTYPE 1 h:1", "MOVED 1x h:1", "MOVED :1 h"}) {
    CAPTURE(wrong);
    REQUIRE(!Redirect::of(wrong, by));
  }
}

namespace {
/// A node whose answers the test makes up: those of answer(words of a command, one line each).
class MadeUpNode {
 public:
  template <class F>
  explicit MadeUpNode(F answer) {
    const auto [fd, bound] = kvc_test::bound_to_loopback();
    listener_ = fd;
    port = bound;
    REQUIRE(::listen(listener_, 8) == 0);
    thread_ = std::thread([this, answer] {
      for (int peer = -1; (peer = ::accept(listener_, nullptr, nullptr)) >= 0; (void)::close(peer)) {
        char asked[4096];
        for (ssize_t size = 0; (size = ::recv(peer, asked, sizeof asked, 0)) > 0;) {
          const std::string words = answer(std::string(asked, static_cast<std::size_t>(size)));
          (void)::send(peer, words.data(), words.size(), MSG_NOSIGNAL);
        }
      }
    });
  }
  ~MadeUpNode() {
    (void)::shutdown(listener_, SHUT_RDWR);
    thread_.join();
    (void)::close(listener_);
  }
  MadeUpNode(const MadeUpNode&) = delete;
  int port = 0;

 private:
  int listener_ = -1;
  std::thread thread_;
};
}  // namespace

TEST_CASE("A node that redirects for ever, or knows no slots, makes operations fail", "[tier][redis][cluster]") {
  std::atomic<int> port = 0, asked = 0;
  const MadeUpNode node([&](const std::string& words) -> std::string {
    if (words.find("SLOTS") != std::string::npos) {
      return "*1\r\n*3\r\n:0\r\n:16383\r\n*2\r\n$9\r\n127.0.0.1\r\n:" + std::to_string(port) + "\r\n";
    }
    ++asked;
    return "-MOVED 1 127.0.0.1:" + std::to_string(port) + "\r\n";
  });
  port = node.port;
  RedisClusterStore::Config config;
  config.servers = {{"127.0.0.1", node.port}};
  config.threads = 1;
  config.redirects = 3;
  const ClusterBlock block(1, 100);
  {
    RedisClusterStore store(config);
    REQUIRE(get(store, block).outcome == StoreOutcome::failed);
    REQUIRE(asked == 4);
    REQUIRE_THAT(store.last_error(), contains("more than 3 redirects"));
  }
  for (const std::string answer :
       {"*1\r\n*3\r\n:0\r\n:99999\r\n*2\r\n$1\r\nh\r\n:1\r\n", "*1\r\n:1\r\n", "+OK\r\n",
        "*1\r\n*3\r\n:0\r\n:1\r\n*2\r\n$1\r\nh\r\n:0\r\n", "-ERR This instance has cluster support disabled\r\n"}) {
    CAPTURE(answer);
    const MadeUpNode wrong([&](const std::string&) { return answer; });
    config.servers = {{"127.0.0.1", wrong.port}};
    RedisClusterStore store(config);
    REQUIRE(get(store, block).outcome == StoreOutcome::failed);
    REQUIRE_THAT(store.last_error(), contains(answer[0] == '-' ? "support disabled" : "no list of slots"));
  }
  config.servers = {{"127.0.0.1", free_port()}};
  RedisClusterStore nobody(config);
  REQUIRE(put(nobody, block) == StoreOutcome::failed);
  REQUIRE_THAT(nobody.last_error(), contains("refused"));
  config.threads = 0;
  REQUIRE_THROWS_WITH(RedisClusterStore(config), contains("threads is 0"));
}

TEST_CASE("A store on a cluster is used from one thread while its own work", "[tier][redis][cluster][threads]") {
  RedisCluster cluster;
  std::vector<ClusterBlock> blocks;
  for (int i = 0; i < 16; ++i) {
    blocks.emplace_back(i, 2000);
  }
  std::vector<std::vector<std::byte>> to;  // outlives the store
  to.reserve(400);
  std::map<Ticket, std::size_t> reads;
  RedisClusterStore store(cluster_config(cluster));
  for (int i = 0; i < 400; ++i) {
    const ClusterBlock& block = blocks[static_cast<std::size_t>(i * 7 % 16)];
    const io::ConstByteSpan from = block.bytes;
    const io::ByteSpan into = to.emplace_back(block.bytes.size());
    const Ticket ticket =
        i % 3 == 0 ? store.write(block.record(), std::span(&from, 1)) : store.read(block.record(), std::span(&into, 1));
    if (i % 3 != 0) {
      reads[ticket] = static_cast<std::size_t>(i);
    }
    if (i % 11 == 0) {
      (void)store.cancel(ticket);
    }
    if (i == 300) {
      cluster.stop(2);
    }
  }
  int done = 0;
  REQUIRE(tier::drain(store, std::chrono::steady_clock::now() + std::chrono::seconds(30), [&](const Completion& ended) {
    REQUIRE(ended.outcome != StoreOutcome::refused);
    if (ended.outcome == StoreOutcome::done && ended.operation == StoreOperation::read) {
      const std::size_t i = reads.at(ended.ticket);
      REQUIRE(to[i] == blocks[i * 7 % 16].bytes);
      ++done;
    }
  }));
  REQUIRE(done > 50);
}

#endif
