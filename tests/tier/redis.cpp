// RedisStore, over servers that the tests start on loopback: the contract, several servers, and servers that are
// killed, hang, are full, or answer nonsense.
#if defined(KVC_HAVE_HIREDIS)

#include <signal.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <filesystem>
#include <optional>
#include <span>
#include <sstream>
#include <string>
#include <thread>
#include <vector>

#include "catch.hpp"
#include "kvc/testing/block_store_conformance.hpp"
#include "kvc/tier/redis_store.hpp"
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
using kvc_test::RedisProcess;
using RedisBlock = testing::detail::StoredBlock;

RedisStore::Config config_of(std::initializer_list<const RedisProcess*> servers) {
  RedisStore::Config config;
  config.servers.clear();
  for (const RedisProcess* server : servers) {
    config.servers.push_back({"127.0.0.1", server->port()});
  }
  config.timeout = std::chrono::milliseconds(5000);
  config.retry = std::chrono::milliseconds(0);
  return config;
}
}  // namespace

TEST_CASE("A store on one server and on three keeps the contract", "[tier][redis]") {
  const RedisProcess a;
  testing::block_store_conformance([&] { return RedisStore(config_of({&a})); });
  const RedisProcess b, c;
  testing::block_store_conformance([&] { return RedisStore(config_of({&a, &b, &c})); });
}

TEST_CASE("Blocks lie on the servers evenly, and only those of a new server move", "[tier][redis]") {
  RedisStore::Config three;
  three.servers = {{"a", 1}, {"b", 1}, {"c", 1}};
  RedisStore::Config four = three;
  four.servers.push_back({"d", 1});
  const RedisStore before(three), after(four);
  int at[4] = {};
  for (int i = 0; i < 4000; ++i) {
    const BlockKey key = RedisBlock(i, 0).info.key;
    const std::size_t was = before.server_of(key), is = after.server_of(key);
    REQUIRE((is == was || is == 3));
    ++at[is];
  }
  for (const int count : at) {
    REQUIRE(count > 800);
  }
}

TEST_CASE("Damage on a server is refused, and another's blocks are not found", "[tier][redis]") {
  const RedisProcess server;
  RedisStore store(config_of({&server}));
  const RedisBlock block(1, 3000);
  const std::string key = "kvc:" + block.info.key.hex();
  const auto refusal = [&](std::initializer_list<std::string_view> spoil) {
    REQUIRE(put(store, block) == StoreOutcome::done);
    REQUIRE(get(store, block).outcome == StoreOutcome::done);
    (void)redis_reply(server.port(), spoil);
    return get(store, block).refusal;
  };
  REQUIRE(refusal({"SETRANGE", key, "0", "x"}) == Refusal::no_record);
  REQUIRE(refusal({"SETRANGE", key, "100", "x"}) == Refusal::head_checksum);
  REQUIRE(refusal({"SETRANGE", key, "2000", "xyz"}) == Refusal::payload_checksum);
  REQUIRE(refusal({"SET", key, "short"}) == Refusal::truncated);
  (void)redis_reply(server.port(), {"DEL", key});
  (void)redis_reply(server.port(), {"LPUSH", key, "no string"});
  REQUIRE(get(store, block).outcome == StoreOutcome::failed);
  REQUIRE_THAT(store.last_error(), contains("WRONGTYPE"));
  RedisStore::Config config = config_of({&server});
  config.prefix = "other:";
  RedisStore other(config);
  REQUIRE(get(other, block).outcome == StoreOutcome::missing);
}

TEST_CASE("A server that is killed makes operations fail, and is used again when it is back", "[tier][redis]") {
  std::optional<RedisProcess> server(std::in_place);
  const int port = server->port();
  const RedisProcess second;
  RedisStore store(config_of({&*server, &second}));
  std::vector<RedisBlock> blocks;
  for (int i = 0; i < 12; ++i) {
    blocks.emplace_back(i, 1000);
    REQUIRE(put(store, blocks.back()) == StoreOutcome::done);
  }
  server->stop();
  std::vector<BlockKey> keys;
  std::size_t kept = 0;
  for (const RedisBlock& block : blocks) {
    const bool is_up = store.server_of(block.info.key) == 1;
    kept += is_up ? 1 : 0;
    REQUIRE(get(store, block).outcome == (is_up ? StoreOutcome::done : StoreOutcome::failed));
    keys.push_back(block.info.key);
  }
  REQUIRE(kept > 0);
  REQUIRE(kept < blocks.size());
  std::vector<std::uint8_t> found(keys.size(), 7);
  const Completion looked = kvc_test::end_of(store, store.lookup(keys, found));
  REQUIRE(looked.outcome == StoreOutcome::done);  // the other answers
  REQUIRE(looked.count == kept);
  REQUIRE_THAT(store.last_error(), contains(std::to_string(port)));
  server.emplace(std::vector<std::string>{}, port);
  for (const RedisBlock& block : blocks) {
    const bool is_up = store.server_of(block.info.key) == 1;
    const StoreOutcome outcome = get(store, block).outcome;
    REQUIRE(outcome == (is_up ? StoreOutcome::done : StoreOutcome::missing));  // it kept nothing
    REQUIRE(put(store, block) == StoreOutcome::done);
  }
}

TEST_CASE("A server that hangs is given up after the time-out", "[tier][redis]") {
  const RedisProcess server;
  RedisStore::Config config = config_of({&server});
  config.timeout = std::chrono::milliseconds(50);
  const RedisBlock block(1, 1000);
  {
    RedisStore store(config);
    REQUIRE(put(store, block) == StoreOutcome::done);
    server.signal(SIGSTOP);
    const auto begin = std::chrono::steady_clock::now();
    REQUIRE(get(store, block).outcome == StoreOutcome::failed);
    REQUIRE(std::chrono::steady_clock::now() - begin < std::chrono::seconds(5));
    server.signal(SIGCONT);
    REQUIRE(get(store, block).outcome != StoreOutcome::refused);
  }
  config.timeout = std::chrono::milliseconds(600000);
  std::vector<std::byte> to(1000);  // outlives the store
  const io::ByteSpan span = to;
  RedisStore patient(config);
  REQUIRE(get(patient, block).outcome == StoreOutcome::done);
  server.signal(SIGSTOP);
  (void)patient.read(block.record(), std::span(&span, 1));  // the destructor does not wait for the server
}

TEST_CASE("A server without memory makes a write `full`", "[tier][redis]") {
  const RedisProcess server({"--maxmemory", "3mb", "--maxmemory-policy", "noeviction"});
  RedisStore store(config_of({&server}));
  int done = 0, full = 0;
  for (int i = 0; i < 12; ++i) {
    const StoreOutcome outcome = put(store, RedisBlock(i, 400000));
    ++(outcome == StoreOutcome::done ? done : full);
    REQUIRE((outcome == StoreOutcome::done || outcome == StoreOutcome::full));
  }
  REQUIRE(done > 0);
  REQUIRE(full > 0);
  REQUIRE(store.stats().full == static_cast<std::uint64_t>(full));
}

TEST_CASE("Nobody at the address, and bad settings, are errors that say so", "[tier][redis]") {
  RedisStore::Config config;
  config.servers = {{"127.0.0.1", free_port()}};
  config.retry = std::chrono::hours(1);
  RedisStore store(config);
  const RedisBlock block(1, 100);
  REQUIRE(put(store, block) == StoreOutcome::failed);
  REQUIRE(get(store, block).outcome == StoreOutcome::failed);  // at once: it is not asked again
  std::uint8_t found = 1;
  REQUIRE(kvc_test::end_of(store, store.lookup(std::span(&block.info.key, 1), std::span(&found, 1))).outcome ==
          StoreOutcome::failed);
  REQUIRE(found == 0);
  REQUIRE_THAT(store.last_error(), contains("refused"));
  config.servers = {};
  REQUIRE_THROWS_WITH(RedisStore(config), contains("servers is 0"));
}

TEST_CASE("A server that answers nonsense makes operations fail", "[tier][redis]") {
  const auto [fd, port] = kvc_test::bound_to_loopback();
  const int listener = fd;  // a thread of its own uses it, and clang 14 gives no part of a pair to a lambda
  REQUIRE(::listen(listener, 8) == 0);
  const std::vector<std::string> answers{
      "HTTP/1.1 400 Bad Request\r\n\r\n", "$100\r\nshort", "*1\r\n:1\r\n", ":7\r\n", "$5\r\nwrong\r\n", "", "$-1\r\n"};
  std::thread server([&] {
    for (const std::string& answer : answers) {
      const int peer = ::accept(listener, nullptr, nullptr);
      char asked[4096];
      (void)!::recv(peer, asked, sizeof asked, 0);
      (void)::send(peer, answer.data(), answer.size(), MSG_NOSIGNAL);
      (void)::close(peer);
    }
  });
  RedisStore::Config config;
  config.servers = {{"127.0.0.1", port}};
  config.retry = std::chrono::milliseconds(0);
  const RedisBlock block(1, 100);
  std::string outcomes;
  for (std::size_t i = 0; i < answers.size(); ++i) {
    RedisStore store(config);
    const StoreOutcome outcome = get(store, block).outcome;
    outcomes += outcome == StoreOutcome::failed ? 'f' : outcome == StoreOutcome::refused ? 'r' : 'm';
    CHECK(outcome != StoreOutcome::done);
  }
  server.join();
  (void)::close(listener);
  REQUIRE(outcomes == "ffmmrfm");
}

TEST_CASE("A store on servers is used from one thread while its own work", "[tier][redis][threads]") {
  const RedisProcess a, b;
  std::vector<RedisBlock> blocks;
  for (int i = 0; i < 16; ++i) {
    blocks.emplace_back(i, 2000);
  }
  std::vector<std::vector<std::byte>> to;
  to.reserve(400);
  RedisStore store(config_of({&a, &b}));
  for (int i = 0; i < 400; ++i) {
    const RedisBlock& block = blocks[static_cast<std::size_t>(i * 7 % 16)];
    const io::ConstByteSpan from = block.bytes;
    const io::ByteSpan into = to.emplace_back(block.bytes.size());
    const Ticket ticket =
        i % 3 == 0 ? store.write(block.record(), std::span(&from, 1)) : store.read(block.record(), std::span(&into, 1));
    if (i % 11 == 0) {
      (void)store.cancel(ticket);
    }
  }
  REQUIRE(tier::drain(store, std::chrono::steady_clock::now() + std::chrono::seconds(30), [](const Completion& ended) {
    REQUIRE((ended.outcome == StoreOutcome::done || ended.outcome == StoreOutcome::missing));
  }));
}

#endif
